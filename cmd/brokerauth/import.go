package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/porting"
)

// fernetKey is the setting for encrypted files.
const fernetKey = "BROKERAUTH_FERNET_KEY"

func (a *app) importCommand() *cobra.Command {
	var (
		dryRun, move     bool
		loggedIn, broker string
	)
	cmd := &cobra.Command{
		Use:   "import [FILE|-]",
		Short: "Take over a login from another library, or another machine",
		Long: "Take over the login in a file of schwab-py, schwab-go, Schwabdev, go-schwab/trader, tastytrade or golang.org/x/oauth2, " +
			"or in what export wrote; - is standard input. The login keeps its age. Without FILE it tells what lies in " +
			"the older libraries' usual places.\n\n" +
			"A login must have one home: two programs that refresh it end it for each other. --move removes the file, " +
			"once the store has read the login back.\n\n" +
			"Where a login comes by a pipe, name its --broker and, where no keyring is running, a --store: then that broker's settings, and " +
			"that the store can save, are proved before standard input is read, and what cannot work leaves the login where it was. A login " +
			"arrives as the profile that --profile names here, whatever it was there.\n\n" +
			"The key of an encrypted file of Schwabdev's is asked for, or stands in " + fernetKey + ".",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return errors.New("name one file")
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&dryRun, "dry-run", false, "only tell what the file holds")
	flags.BoolVar(&move, "move", false, "remove the file once the login is stored")
	flags.StringVar(&loggedIn, "logged-in", "", `when the user logged in, if the file does not say: "2026-06-01 09:30"`)
	flags.StringVar(&broker, "broker", "", "whose login it is, if the file does not say")
	cmd.RunE = a.action(func(ctx context.Context, args []string) error {
		options := porting.Options{Provider: broker}
		if broker != "" {
			if _, err := findBroker(broker); err != nil {
				return err
			}
		}
		if loggedIn != "" {
			var err error
			if options.LoggedInAt, err = parseMoment(loggedIn); err != nil {
				return usageError{err}
			}
		}
		found, err := a.settings()
		if err != nil {
			return err
		}
		if options.FernetKey, err = found.get(fernetKey); err != nil {
			return usageError{err}
		}
		if len(args) == 0 {
			if move {
				return usageError{errors.New("--move needs a file to import")}
			}
			return a.listImports(ctx, options)
		}
		if args[0] == "-" && move {
			return usageError{errors.New("--move removes a file, and standard input is none")}
		}
		return a.importLogin(ctx, found, args[0], options, dryRun, move)
	})
	return cmd
}

// listImports tells what lies in the older libraries' usual places.
func (a *app) listImports(ctx context.Context, o porting.Options) error {
	paths := porting.Files()
	if len(paths) == 0 {
		a.say("Nothing lies in the older libraries' usual places. schwab-py and tda-api have none: name the file.")
	}
	for _, path := range paths {
		file, err := readLogin(ctx, path)
		var found *porting.Found
		if err == nil {
			found, err = porting.Read(file.data, &o)
		}
		if err != nil {
			a.say("%s: %s", path, forPeople(importError{err}))
			continue
		}
		a.sayFound(path, found)
	}
	return nil
}

// importLogin stores the login in the file at path, which it reads, and with move removes at the end.
func (a *app) importLogin(ctx context.Context, s *settings, path string, o porting.Options, dryRun, move bool) error {
	if path == "-" && !dryRun {
		// What exports a login into a pipe may have ended it there: what cannot work is found before that is read.
		if err := a.importable(ctx, s, o.Provider); err != nil {
			return err
		}
	}
	file, err := a.loginAt(ctx, path)
	if err != nil {
		return err
	}
	if prompt := newPrompt(a.in, a.err); o.FernetKey == "" && prompt != nil && bytes.Contains(file.data, []byte(`"enc:`)) {
		key, err := prompt.ask(ctx, "", setting{name: fernetKey, what: "the encryption key that Schwabdev was given", secret: true})
		if err != nil {
			return err
		}
		o.FernetKey = key[0]
	}
	found, err := porting.Read(file.data, &o)
	if err != nil {
		return importError{err}
	}
	what := path
	if path == "-" {
		what = "standard input"
	}
	a.sayFound(what, found)
	if found.Token == nil || dryRun {
		return nil
	}
	b, err := findBroker(found.Provider)
	if err != nil {
		return err
	}
	a.broker = b.name
	session, store, err := a.importer(ctx, s, b)
	if err != nil {
		return err
	}
	did := "imported"
	err = closed(session, a.take(ctx, session, found))
	switch {
	case move && errors.Is(err, errStored):
		did = "stored already" // as the file has it
	case errors.Is(err, fs.ErrExist) && path != "-":
		return fmt.Errorf("%w: if nothing else uses %s, delete it", err, path)
	case err != nil:
		return err
	}
	if move {
		if err := file.remove(); err != nil {
			return fmt.Errorf("the login is stored, but %w", err)
		}
	}
	st, err := a.sayClocks(ctx, session, did)
	if err != nil {
		return err
	}
	a.remember(context.WithoutCancel(ctx), st.Key, store)
	a.say("Kept in %s.", store.keptAs(st.KeptAs))
	switch {
	case move:
		a.say("Removed %s.", path)
	case path != "-":
		fmt.Fprintf(a.err, "brokerauth: warning: %s still holds the login, and whoever refreshes it ends it for the other: remove the file\n", path)
	}
	return due(b.name, st, 0)
}

// importable reports what keeps a login from being imported, as far as that shows without it: a store that cannot save, and
// a named broker's settings.
func (a *app) importable(ctx context.Context, s *settings, name string) error {
	if name == "" {
		return a.importableByAny(ctx, s)
	}
	b, err := findBroker(name)
	if err != nil {
		return err
	}
	a.broker = b.name
	session, store, err := a.importer(ctx, s, b)
	if err != nil {
		return err
	}
	_, err = session.Status(ctx) // whether a login may stand in that place
	if err == nil || errors.Is(err, brokerauth.ErrCorrupt) {
		err = prove(ctx, store)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", b.name, unread(store, err))
	}
	return closed(session, err)
}

// importableByAny is importable before anybody knows whose login it is.
func (a *app) importableByAny(ctx context.Context, s *settings) error {
	store, err := a.openForTokens(ctx, s, "")
	if err != nil {
		return err
	}
	if store.name == "memory" {
		return lost("import", store)
	}
	named, err := a.nameOf(s)
	if err != nil {
		return err
	}
	kept, err := remembered(ctx)
	if err != nil || named == "" && len(kept) > 0 { // that broker's may be another store
		return err
	}
	if err := prove(ctx, store); err != nil {
		return unread(store, err)
	}
	return nil
}

// unread is why standard input was not read, so that whoever writes it keeps the login.
func unread(store keptStore, err error) error {
	return fmt.Errorf("standard input was not read, because the store %s cannot save a login: %w", store.name, err)
}

// portable is what porting.Read calls the format of export.
const portable = "brokerauth"

// importer makes the Session that an imported login of b's goes to.
func (a *app) importer(ctx context.Context, s *settings, b broker) (*brokerauth.Session, keptStore, error) {
	store, err := a.openForTokens(ctx, s, b.name)
	if err != nil {
		return nil, store, err
	}
	grants, err := s.grants(b)
	if err != nil {
		return nil, store, err
	}
	var p brokerauth.Provider
	if grants {
		p, _, err = s.keptProvider(b) // a grant is imported to be stored, whatever is set
	} else {
		p, _, err = s.provider(ctx, b, nil)
	}
	a.tell(s)
	if err == nil && store.name == "memory" {
		err = lost(b.name, store)
	}
	if err != nil {
		return nil, store, err
	}
	return a.session(p, store, a.profile), store, nil
}

// errStored is that the store has the very tokens that were found.
var errStored = fmt.Errorf("this login is stored already: %w", fs.ErrExist)

// take saves a login that was found, and reads it back.
func (a *app) take(ctx context.Context, s *brokerauth.Session, found *porting.Found) error {
	t, info := found.Token, s.Provider.Info()
	if found.Format == portable && found.Identity != info.Identity {
		return usageError{fmt.Errorf("%s: this login is of another app, or of another base URL, than the settings name: "+
			"it works with those only that it was exported with", info.Name)}
	}
	if _, ok := s.Provider.(keptGrant); ok && t.Extra[clientSecret] == "" {
		return usageError{fmt.Errorf("%s: this file has no client secret, without which its grant is of no use: run: %s", info.Name, a.remedy())}
	}
	st, err := s.Status(ctx)
	if ahead := st.LoggedInAt.Sub(t.LoggedInAt); err == nil && st.LoggedIn && ahead > 0 && ahead < time.Second {
		t = t.Clone() // the same login: schwab-py counts whole seconds
		t.LoggedInAt = st.LoggedInAt
	}
	if err == nil && st.LoggedIn && !t.LoggedInAt.IsZero() && st.LoggedInAt.Equal(t.LoggedInAt) && st.AccessExpiresAt.After(t.Expiry) {
		if raw, err := s.Store.Load(ctx, st.Key); err == nil && holds(raw, t.RefreshToken) && holds(raw, t.AccessToken) { // schwab-py counts whole seconds
			return fmt.Errorf("%s: %w", info.Name, errStored)
		}
		return fmt.Errorf("%s: this login is stored already, with newer tokens than these: %w", info.Name, fs.ErrExist)
	}
	ctx = context.WithoutCancel(ctx) // from here on it is carried to its end
	if _, grant := s.Provider.(keptGrant); grant || t.AccessToken == "" {
		// A grant takes the place of another, of which there may be no copy: it must prove itself.
		if t, err = s.Provider.Refresh(ctx, t); err != nil {
			return err
		}
	}
	if err := s.Save(ctx, t); err != nil {
		return err
	}
	raw, err := s.Store.Load(ctx, st.Key)
	if err == nil {
		st, err = s.Status(ctx)
	}
	if err != nil {
		return fmt.Errorf("%s: the login was stored, but cannot be read back: %w", info.Name, err)
	}
	// A sibling may have renewed it already.
	renewed := st.LoggedIn && st.LoggedInAt.Equal(t.LoggedInAt) && st.AccessExpiresAt.After(t.Expiry)
	if !holds(raw, t.RefreshToken) && !renewed {
		return fmt.Errorf("%s: the login was stored, but another is read back: log in again", info.Name)
	}
	return nil
}

// holds reports whether a record has a token's value.
func holds(record []byte, token string) bool {
	want, _ := json.Marshal(token)
	return bytes.Contains(record, want)
}

// sayFound tells what a file holds.
func (a *app) sayFound(path string, found *porting.Found) {
	line := fmt.Sprintf("%s: %s, a login at %s", path, found.Format, found.Provider)
	if t := found.Token; t != nil && !t.LoggedInAt.IsZero() {
		line += ", logged in " + moment(t.LoggedInAt)
	}
	if t := found.Token; t != nil && !t.LoginBy.IsZero() {
		line += ", log in again by " + moment(t.LoginBy)
	}
	a.say("%s", line)
	for _, note := range found.Notes {
		a.say("  %s", note)
	}
}

// importError is an error of package porting, for people.
type importError struct{ error }

func (e importError) Unwrap() error { return e.error }

func (e importError) Error() string {
	text := withoutPackage(e.error)
	if strings.HasSuffix(text, "name the broker") {
		text += " by --broker"
	}
	if strings.Contains(text, "give the encryption key") {
		text += " in " + fernetKey
	}
	return text
}

func withoutPackage(err error) string { return strings.TrimPrefix(err.Error(), "porting: ") }

// parseMoment reads a time that has been.
func parseMoment(s string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			if t.After(time.Now()) {
				return time.Time{}, fmt.Errorf("%s lies in the future", s)
			}
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf(`%q is no time: write it like "2026-06-01 09:30" or 2026-06-01T09:30:00Z`, s)
}

// loginFile is a file that may hold a login, as it was when it was read.
type loginFile struct {
	paths []string // a database is several; none: it was standard input
	seen  snapshot
	data  []byte // what porting.Read takes
}

// loginAt reads the file at path, or standard input.
func (a *app) loginAt(ctx context.Context, path string) (*loginFile, error) {
	if path != "-" {
		return readLogin(ctx, path)
	}
	if term.IsTerminal(int(a.in.Fd())) {
		return nil, usageError{errors.New("standard input is a terminal: pipe the login in, or name a file")}
	}
	type result struct {
		data []byte
		err  error
	}
	read := make(chan result, 1)
	go func() {
		data, err := io.ReadAll(io.LimitReader(a.in, maxLogin))
		read <- result{data, err}
	}()
	select {
	case r := <-read:
		return &loginFile{data: r.data}, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// maxLogin is a little more than porting.Read takes, so that it says so.
const maxLogin = 1<<20 + 1

// readLogin reads the file at path, and nothing that is no plain file: what a link names may change, and be somebody
// else's.
func readLogin(ctx context.Context, path string) (*loginFile, error) {
	file := &loginFile{paths: []string{path}}
	var err error
	if file.seen, err = look(file.paths); err != nil {
		return nil, err
	}
	if file.seen[0] == nil {
		return nil, usageError{fmt.Errorf("%s: %w", path, fs.ErrNotExist)}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !os.SameFile(info, file.seen[0]) {
		return nil, cmp.Or(err, fmt.Errorf("%s was replaced while it was read: try again", path))
	}
	if file.data, err = io.ReadAll(io.LimitReader(f, maxLogin)); err != nil {
		return nil, err
	}
	if isDatabase(file.data) {
		file.paths = databaseFiles(path)
		file.data, file.seen, err = readDatabase(ctx, path)
	}
	return file, err
}

// remove removes the file, unless somebody has written it since it was read.
func (f *loginFile) remove() error {
	now, err := look(f.paths)
	if err != nil {
		return err
	}
	if !now.same(f.seen) {
		return fmt.Errorf("%s was written meanwhile: stop the program that uses it, and import again", f.paths[0])
	}
	for i, path := range f.paths {
		if f.seen[i] != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}
	if len(f.paths) > 1 {
		os.Remove(f.paths[0] + "-shm") // no row stands there
	}
	return err
}

// snapshot tells whether files have changed; nil stands for one that does not exist.
type snapshot []fs.FileInfo

func look(paths []string) (snapshot, error) {
	seen := make(snapshot, len(paths))
	for i, path := range paths {
		info, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, err
		case info.Mode()&fs.ModeSymlink != 0:
			return nil, fmt.Errorf("%s is a symbolic link: name the file itself", path)
		case !info.Mode().IsRegular():
			return nil, fmt.Errorf("%s is %w", filepath.Clean(path), errNotRegular)
		}
		seen[i] = info
	}
	return seen, nil
}

func (s snapshot) same(other snapshot) bool {
	for i, info := range s {
		was := other[i]
		if (info == nil) != (was == nil) {
			return false
		}
		if info != nil && (!os.SameFile(info, was) || info.Size() != was.Size() || !info.ModTime().Equal(was.ModTime())) {
			return false
		}
	}
	return true
}
