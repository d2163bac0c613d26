package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/internal/private"
	"github.com/brokerauth/brokerauth/storage/disk"
	"github.com/brokerauth/brokerauth/storage/keyring"
	"github.com/brokerauth/brokerauth/storage/memory"
	"github.com/brokerauth/brokerauth/storage/sealed"
)

const (
	// storeHelp is for --store.
	storeHelp = "where logins are kept: keyring, disk, disk:DIR, sealed+disk:DIR, sqlite:FILE, postgres://…, redis://… or memory " +
		"(default the one that the login went to, or keyring)"
	defaultStore = "keyring"
	passphrase   = "BROKERAUTH_PASSPHRASE" // of a sealed store
)

// keptStore is a store and what people are told of it.
type keptStore struct {
	brokerauth.Store
	name    string // as --store takes it, without a password
	lasting string // the name under which later commands find it, from any working directory; empty: they cannot
	how     string // it keeps a login
	why     string // it was chosen, if nobody has named it
}

// where says where the login of s is kept, or would be.
func (store keptStore) where(s *brokerauth.Session) string {
	if w, ok := store.Store.(interface{ Where(brokerauth.Key) string }); ok {
		info := s.Provider.Info()
		return w.Where(brokerauth.Key{Provider: info.Name, Identity: info.Identity, Profile: s.Profile})
	}
	return "the store " + store.name
}

// keptAs says where a login is kept, and how: once, where the place says already that it is encrypted.
func (store keptStore) keptAs(place string) string {
	if strings.HasPrefix(store.how, "encrypted") {
		place = strings.TrimSuffix(place, ", encrypted")
	}
	return fmt.Sprintf("%s (%s)", place, store.how)
}

// openNamed opens the store that name names, as --store takes it. All stores of the command are opened here; what must
// be closed is added to a.atEnd.
func (a *app) openNamed(ctx context.Context, s *settings, name string) (store keptStore, err error) {
	store.name = shown(name)
	dir, isDir := strings.CutPrefix(name, "disk:")
	if !isDir {
		dir = "" // the user's own
	}
	switch {
	case name == "memory":
		store.Store, store.how = new(memory.Store), "until this command ends"
	case name == "keyring":
		ring, err := keyring.New("")
		if err != nil {
			return store, err
		}
		ring.Prompt = a.attended
		store.Store, store.lasting, store.how = ring, name, "encrypted by the system, open while this user is logged in"
	case isDir && dir == "":
		return store, usageError{errors.New("the store disk: names no folder: write disk:DIR, or disk for the usual one")}
	case strings.HasPrefix(dir, "~"):
		return store, usageError{fmt.Errorf("the store %s begins with ~, which no shell replaces there: write the folder's whole path", name)}
	case isDir || name == "disk":
		files, err := disk.New(dir)
		if err != nil {
			return store, usageError{err}
		}
		store.Store, store.lasting, store.how = files, name, "not encrypted, readable by this user alone"
		if isDir {
			dir, err = filepath.Abs(dir)
			if err != nil {
				return store, usageError{err}
			}
			store.lasting = "disk:" + dir
		}
	case isDatabaseName(name):
		return a.openDatabase(s, name)
	case strings.HasPrefix(name, "sealed+"):
		return a.openSealed(ctx, s, name)
	default:
		called := strconv.Quote(store.name)
		if store.name != name {
			called += " (not shown whole, since a password may be in it)"
		}
		return store, usageError{fmt.Errorf("no store is called %s: there are keyring, disk, disk:DIR, sqlite:FILE, postgres://…, redis://…, memory, and "+
			"sealed+ before any but the first and the last", called)}
	}
	return store, nil
}

// hidden stands for an address of which nobody can say what is its password.
const hidden = "://…"

// shown is a store's name without a password, which a database's address may have.
func shown(name string) string {
	if inner, ok := strings.CutPrefix(name, "sealed+"); ok {
		return "sealed+" + shown(inner)
	}
	scheme, _, isURL := strings.Cut(name, "://")
	switch {
	case isURL && isScheme(scheme):
		if scheme != "disk" && !isDatabaseName(name) {
			return scheme + hidden // it may be a user's name, and what follows a password
		}
	case strings.HasPrefix(name, "disk:"):
		return name
	case strings.HasPrefix(name, "sqlite:"):
		name, _, _ = strings.Cut(name, "?") // other programs take the key of an encrypted file there
		return name
	case strings.Contains(name, "@"): // perhaps a database's address without its scheme, whatever part of it is secret
		return "…"
	default: // or another spelling of one, such as host=h password=p
		if at := strings.IndexAny(name, ":="); at >= 0 {
			return name[:at+1] + "…"
		}
		return name
	}
	u, err := url.Parse(name)
	if err == nil {
		_, err = url.ParseQuery(u.RawQuery)
	}
	// A password without the %-escapes that it needs may be read as a port, a path, a query or a fragment.
	if err != nil || u.Fragment != "" || strings.Contains(u.EscapedPath()+u.RawQuery, "@") {
		return scheme + hidden // whatever part of it is secret
	}
	if _, ok := u.User.Password(); ok {
		u.User = url.User(u.User.Username())
	}
	if scheme == "sqlite" {
		u.RawQuery = ""
	}
	parts := strings.Split(u.RawQuery, "&")
	if at := slices.IndexFunc(parts, isSecret); at >= 0 {
		if slices.ContainsFunc(parts, func(part string) bool { return part != "" && strings.Index(part, "=") < 1 }) {
			return scheme + hidden // an & of the password's own has cut it in two, perhaps
		}
		u.RawQuery = strings.Join(parts[:at], "&") // what looks like a parameter behind it may be the rest of it
	}
	return u.String()
}

// isSecret reports whether a part of an address's query gives a password or the like.
func isSecret(part string) bool {
	key, _, _ := strings.Cut(part, "=")
	if plain, err := url.QueryUnescape(key); err == nil {
		key = plain
	}
	key = strings.ToLower(key)
	return strings.Contains(key, "pass") || strings.Contains(key, "secret") || strings.Contains(key, "token")
}

// isScheme reports whether s may stand before "://".
func isScheme(s string) bool {
	return s != "" && strings.Trim(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz0123456789+-.") == ""
}

// openSealed opens the store sealed+INNER. Its key is in the keyring, unless a passphrase is set, or is what opens it.
func (a *app) openSealed(ctx context.Context, s *settings, name string) (store keptStore, err error) {
	inner, err := a.openNamed(ctx, s, strings.TrimPrefix(name, "sealed+"))
	if err != nil {
		return store, err
	}
	if inner.name == "memory" || strings.HasPrefix(inner.name, "sealed+") {
		return store, usageError{fmt.Errorf("the store %s makes no sense: write sealed+disk:DIR, or another lasting store after sealed+", shown(name))}
	}
	if files, ok := inner.Store.(*disk.Store); ok {
		files.AllowOthers = true // they can read it and learn nothing
	}
	store.name = shown(name)
	if inner.lasting != "" {
		store.lasting = "sealed+" + inner.lasting
	}
	typed, err := s.get(passphrase)
	if err != nil {
		return store, usageError{err}
	}
	byPassphrase, byKept, err := sealed.OpenedBy(ctx, inner.Store)
	if err != nil {
		return store, err
	}
	var secret *sealed.Secret
	if typed == "" {
		secret, err = a.keptSecret(ctx, byPassphrase, byKept)
		store.how = "encrypted, and its key is in the OS keyring"
	}
	if typed == "" && err == nil && secret == nil {
		typed, err = a.askPassphrase(ctx, store.name, !byPassphrase)
	}
	if err != nil {
		return store, err
	}
	if typed != "" {
		secret = sealed.Passphrase(typed)
		store.how = "encrypted under a passphrase"
	}
	store.Store, err = sealed.New(inner.Store, secret)
	return store, err
}

// keptSecret is the key in the keyring, nil if a sealed store is opened by a passphrase, or can be: a new one needs no
// keyring.
func (a *app) keptSecret(ctx context.Context, byPassphrase, byKept bool) (*sealed.Secret, error) {
	if byPassphrase && !byKept {
		return nil, nil
	}
	ring, err := keyring.New("")
	if err == nil && (byPassphrase || !byKept) {
		ring.Prompt = a.attended
		if _, err = ring.Load(ctx, brokerauth.Key{Provider: "~probe"}); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		if errors.Is(err, errors.ErrUnsupported) {
			return nil, nil
		}
	}
	if err != nil {
		return nil, err
	}
	ring.Prompt = a.attended
	return sealed.KeptIn(ring), nil
}

// askPassphrase asks for the passphrase of a sealed store; twice if it is new.
func (a *app) askPassphrase(ctx context.Context, name string, isNew bool) (string, error) {
	prompt := newPrompt(a.in, a.err)
	if prompt == nil {
		return "", usageError{fmt.Errorf("the store %s needs a passphrase, and no keyring is here to keep a key in its place: "+
			"set %s_FILE to a file that only you can read and that holds it, or type it in a terminal", name, passphrase)}
	}
	wanted := []setting{{name: passphrase, what: "passphrase", secret: true}}
	if isNew {
		wanted = append(wanted, setting{name: passphrase, what: "the same passphrase again: without it these logins are lost", secret: true})
	}
	typed, err := prompt.ask(ctx, name+": ", wanted...)
	if err != nil {
		return "", err
	}
	if typed[len(typed)-1] != typed[0] {
		return "", usageError{errors.New("the two passphrases differ: try again")}
	}
	return typed[0], nil
}

// openStore opens the store that a flag, or else the setting BROKERAUTH_STORE, names, or else the one that the
// profile's login at broker went to; the default if there is none. Without a broker it is the one that all logins went to.
func (a *app) openStore(ctx context.Context, s *settings, broker string) (keptStore, error) {
	name, err := a.nameOf(s)
	if err != nil {
		return keptStore{}, err
	}
	if name != "" {
		return a.openOnce(ctx, s, name, "")
	}
	kept, err := remembered(ctx)
	if err != nil {
		return keptStore{}, err
	}
	names := make(map[string]bool)
	for key, name := range kept {
		if key.Identity == broker && key.Profile == a.profile {
			return a.openOnce(ctx, s, name, movable(name))
		}
		names[name] = true
	}
	if broker == "" && len(names) == 1 {
		for name := range names {
			return a.openOnce(ctx, s, name, movable(name))
		}
	}
	return a.openOnce(ctx, s, defaultStore, unnamed)
}

// nameOf is the store that the command line or the settings name; empty: none.
func (a *app) nameOf(s *settings) (string, error) {
	name, err := s.get("BROKERAUTH_STORE")
	if err != nil {
		return "", usageError{err}
	}
	return cmp.Or(a.store, name), nil
}

// allStores opens the store that is named or, if none is, all that logins went to, and the default.
func (a *app) allStores(ctx context.Context, s *settings) (stores []keptStore, err error) {
	name, err := a.nameOf(s)
	if err != nil {
		return nil, err
	}
	if name != "" {
		store, err := a.openOnce(ctx, s, name, "")
		if err != nil {
			return nil, err
		}
		return []keptStore{store}, nil
	}
	kept, err := remembered(ctx)
	if err != nil {
		return nil, err
	}
	names := slices.Compact(slices.Sorted(maps.Values(kept)))
	var faults []error
	for _, name := range names {
		store, err := a.openOnce(ctx, s, name, movable(name))
		if err != nil {
			faults = append(faults, about(whose(kept, name), err))
			continue
		}
		stores = append(stores, store)
	}
	if slices.Contains(names, defaultStore) {
		return stores, errors.Join(faults...)
	}
	// A program may have put a login there. That it cannot be looked at matters only if there is nothing else.
	store, err := a.openOnce(ctx, s, defaultStore, unnamed)
	if err == nil && len(names) > 0 {
		_, err = store.keys(ctx)
	}
	switch {
	case err == nil:
		stores = append(stores, store)
	case len(names) == 0:
		faults = append(faults, err)
	}
	return stores, errors.Join(faults...)
}

// unnamed and movable tell what to do where a store that nobody has named is out of reach.
const unnamed = "nobody has named a store, and this is the default: name another, such as --store disk:DIR for plain files " +
	"that only you can read, or --store disk for those in the usual folder"

// What a person reads where no keyring is running, as on a server: first of all if nobody has named a store.
const (
	noKeyring        = "name a store, such as --store disk or --store disk:DIR (files that only you can read) or BROKERAUTH_STORE=disk: no keyring can be reached here"
	noNamedKeyring   = "no keyring can be reached here: run this in a desktop session, or name another store, such as disk:DIR"
	noKeyringOfLogin = "the login went to the keyring, and no keyring can be reached here: run this in a desktop session, or there: " +
		"brokerauth store move keyring disk:DIR"
)

func movable(name string) string {
	return fmt.Sprintf("the login went to the store %s: use it where that is in reach, or there move it to one that is in reach here, "+
		"such as: brokerauth store move %[1]s disk:DIR", quoted(name))
}

// openOnce is openNamed for a store that is opened once a run. todo is told where it is out of reach.
func (a *app) openOnce(ctx context.Context, s *settings, name, todo string) (keptStore, error) {
	if store, ok := a.opened[name]; ok {
		return store, nil
	}
	store, err := a.openNamed(ctx, s, name)
	if err != nil {
		return store, outOfReach(err, name, todo)
	}
	store.Store = reached{store.Store, store.name, todo}
	if a.opened == nil {
		a.opened = make(map[string]keptStore)
	}
	a.opened[name] = store
	return store, nil
}

// openForTokens opens the store for a command that gets tokens. Where nobody names one, pyTD's switch counts, which says
// that no token may be written to a disk.
func (a *app) openForTokens(ctx context.Context, s *settings, broker string) (keptStore, error) {
	named, err := a.nameOf(s)
	if err != nil {
		return keptStore{}, err
	}
	keep, err := s.get("TD_STORE_TOKENS")
	if err != nil {
		return keptStore{}, usageError{err}
	}
	if named != "" || !strings.EqualFold(keep, "False") {
		return a.openStore(ctx, s, broker)
	}
	return keptStore{Store: new(memory.Store), name: "memory", how: "until this command ends", why: "TD_STORE_TOKENS is False"}, nil
}

// unreachable is the error of a store, not a broker, that cannot be reached now.
type unreachable struct {
	error
	name, todo string
	who        string // whose login it keeps from being looked at, if that is not plain
}

// noKeyring reports whether there is no keyring, rather than one that is locked or the like.
func (e unreachable) noKeyring() bool {
	return e.name == "keyring" && errors.Is(e.error, errors.ErrUnsupported)
}

func (e unreachable) Error() string {
	if e.who != "" {
		who := e.who + ": "
		e.who = ""
		return who + e.Error()
	}
	text := strings.TrimSuffix(e.error.Error(), ": "+brokerauth.ErrUnavailable.Error())
	absent := e.noKeyring()
	switch {
	case absent && e.todo == "":
		return noNamedKeyring
	case absent && e.todo == unnamed:
		return noKeyring
	case absent:
		return noKeyringOfLogin
	case e.todo == "":
		return text
	}
	return text + ": " + e.todo
}

func (e unreachable) Unwrap() error { return e.error }

func outOfReach(err error, name, todo string) error {
	if _, already := errors.AsType[unreachable](err); !already && errors.Is(err, brokerauth.ErrUnavailable) {
		return unreachable{error: err, name: name, todo: todo}
	}
	if todo := mend(err); todo != "" {
		return unwritable{err, todo}
	}
	return err
}

// about says whose login err is about, if it does not yet. That no keyring is here is told without what it was wanted for,
// but not without another error that is joined to it.
func about(who string, err error) error {
	if who == "" {
		return err
	}
	if e, ok := errors.AsType[unreachable](err); ok && e.noKeyring() && !strings.Contains(err.Error(), "\n") {
		e.who = who
		return e
	}
	if strings.HasPrefix(err.Error(), who+":") {
		return err
	}
	return fmt.Errorf("%s: %w", who, err)
}

// whose names the brokers whose logins went to a store, by the notes of that.
func whose(kept map[brokerauth.Key]string, name string) string {
	var brokers []string
	for key, at := range kept {
		if at == name {
			brokers = append(brokers, key.Identity)
		}
	}
	slices.Sort(brokers)
	return strings.Join(slices.Compact(brokers), " and ")
}

// mend is what to do where files take no record because of err; empty: err is about something else, or says it by itself,
// as a database's does.
func mend(err error) string {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "free space there"
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EACCES):
		return "make it writable for you alone"
	}
	return ""
}

// elsewhere goes on from mend for a login that is yet to be made.
const elsewhere = ", or name another with --store disk:DIR"

// unwritable is the error of a store whose files take no record, and not of a broker or of another file.
type unwritable struct {
	error
	todo string
}

func (e unwritable) Unwrap() error { return e.error }

// reached is a store whose errors tell that it is the store which is out of reach or takes nothing, and what to do.
type reached struct {
	brokerauth.Store
	name, todo string
}

func (s reached) Load(ctx context.Context, key brokerauth.Key) ([]byte, error) {
	record, err := s.Store.Load(ctx, key)
	return record, outOfReach(err, s.name, s.todo)
}

func (s reached) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	swapped, err := s.Store.CompareAndSwap(ctx, key, old, new)
	return swapped, outOfReach(err, s.name, s.todo)
}

// Keys is errors.ErrUnsupported of a store that has no such method, and so is SetAside.
func (s reached) Keys(ctx context.Context) ([]brokerauth.Key, error) {
	lister, ok := s.Store.(interface {
		Keys(context.Context) ([]brokerauth.Key, error)
	})
	if !ok {
		return nil, fmt.Errorf("the store %s cannot list its logins: name a broker and set its settings: %w", s.name, errors.ErrUnsupported)
	}
	keys, err := lister.Keys(ctx)
	return keys, outOfReach(err, s.name, s.todo)
}

func (s reached) SetAside(ctx context.Context, key brokerauth.Key) (string, error) {
	mover, ok := s.Store.(interface {
		SetAside(context.Context, brokerauth.Key) (string, error)
	})
	if !ok {
		return "", fmt.Errorf("the store %s cannot move a record away: delete it there: %w", s.name, errors.ErrUnsupported)
	}
	where, err := mover.SetAside(ctx, key)
	return where, outOfReach(err, s.name, s.todo)
}

func (s reached) Where(key brokerauth.Key) string {
	if w, ok := s.Store.(interface{ Where(brokerauth.Key) string }); ok {
		return w.Where(key)
	}
	return "the store " + s.name
}

// prove writes, reads and deletes a record that is nobody's login.
func prove(ctx context.Context, store brokerauth.Store) error {
	key, record := brokerauth.Key{Provider: "~probe", Profile: strings.ToLower(rand.Text())}, []byte(`{"v":1}`)
	if swapped, err := store.CompareAndSwap(ctx, key, nil, record); err != nil || !swapped {
		return cmp.Or(err, errors.New("it does not keep what it is given"))
	}
	back, err := store.Load(ctx, key)
	if err == nil && string(back) != string(record) {
		err = errors.New("it gives back something else than it was given")
	}
	swapped, deleteErr := store.CompareAndSwap(context.WithoutCancel(ctx), key, record, nil)
	if deleteErr == nil && !swapped {
		deleteErr = errors.New("it does not delete what it was given")
	}
	return errors.Join(err, deleteErr)
}

// keptIn is what a note of where logins went is kept under: its identity is the broker's name.
const keptIn = "~kept-in"

// notes is the store that holds, for each login, the name of the store it went to; nil: this user has no folder for it.
func notes() (*disk.Store, error) {
	home, err := private.Home()
	if err != nil {
		return nil, nil
	}
	return disk.New(filepath.Join(home, "stores"))
}

// remembered returns the names of the stores that logins went to, by the keys of their notes.
func remembered(ctx context.Context) (map[brokerauth.Key]string, error) {
	store, err := notes()
	if err != nil || store == nil {
		return nil, err
	}
	fault := func(err error) error {
		return fmt.Errorf("the notes of where logins are kept cannot be read: %w: mend that, or name the store by --store", err)
	}
	keys, err := store.Keys(ctx)
	if err != nil {
		return nil, fault(err)
	}
	kept := make(map[brokerauth.Key]string)
	for _, key := range keys {
		name, err := store.Load(ctx, key)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fault(err)
		}
		if err == nil && key.Provider == keptIn {
			kept[key] = string(name)
		}
	}
	return kept, nil
}

// remember notes that key's login is in store, for later commands. That it cannot is no failure: the login is there.
func (a *app) remember(ctx context.Context, key brokerauth.Key, kept keptStore) {
	store, err := notes()
	if err == nil && (store == nil || kept.lasting == "") {
		err = errors.New("this user has no folder for it")
	}
	note := brokerauth.Key{Provider: keptIn, Identity: key.Provider, Profile: key.Profile}
	name := shown(kept.lasting)
	for err == nil {
		var old []byte
		if old, err = store.Load(ctx, note); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		if err != nil || string(old) == name {
			break
		}
		var swapped bool
		if swapped, err = store.CompareAndSwap(ctx, note, old, []byte(name)); swapped {
			break
		}
	}
	if err != nil {
		fmt.Fprintf(a.err, "brokerauth: where the login is kept cannot be noted, so name the store again: %v\n", err)
	}
}
