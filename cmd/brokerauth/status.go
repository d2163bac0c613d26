package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/brokerauth/brokerauth"
)

func (a *app) statusCommand() *cobra.Command {
	var (
		within period
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "status [BROKER]",
		Short: "Tell how long the login lasts",
		Long: "Tell how long the access token and the login last, of one broker or of all stored logins. " +
			"It asks no broker and changes nothing.\n\n" +
			"It exits with 3 if a person must log in, and for several logins with the highest code of any. A login of another " +
			"app, grant or base URL than the settings name does not count. One whose settings are not here is told with its identity.\n\n" +
			"With --json and a broker the answer is one object: if logins of several apps are stored, the settings must name the app.",
		Args:      atMostOne,
		ValidArgs: brokerNames(),
	}
	flags := cmd.Flags()
	flags.Var(&within, "within", "exit with 3 already if a person must log in that soon")
	flags.BoolVar(&asJSON, "json", false, "print JSON: an object of the broker that is named, whose settings must tell which login if several are stored; else an array")
	cmd.RunE = a.action(func(ctx context.Context, args []string) error {
		var (
			sessions []placed
			fault    error // of a store, of several
		)
		if len(args) == 1 {
			b, findErr := findBroker(args[0])
			if findErr != nil {
				return findErr
			}
			a.broker = b.name
			if err := a.ended(ctx, b); err != nil {
				return err
			}
			found, store, err := a.stored(ctx, b)
			if err != nil {
				return err
			}
			if asJSON && len(found) > 1 {
				// A program that reads an object must not be surprised by an array.
				return usageError{fmt.Errorf("%s: several apps' logins are stored (%s), and %s is not set, which says of which this should tell: "+
					"set it, and %s where that is not the broker's own; or leave %[1]s out, for an array of all",
					b.name, strings.Join(identities(found), ", "), b.settings[0].name, b.prefix+baseURL)}
			}
			for _, s := range found {
				sessions = append(sessions, placed{s, store})
			}
		} else if sessions, fault = a.allStored(ctx); len(sessions) == 0 && fault != nil {
			return fault
		}
		worst := fault
		a.complain(fault)
		counted := 0
		objects := []json.RawMessage{}
		alike := make(map[brokerauth.Key]int) // logins of one broker and profile
		for _, s := range sessions {
			alike[brokerauth.Key{Provider: s.Provider.Info().Name, Profile: s.Profile}]++
		}
		newest := lastLogins{a: a}
		for _, s := range sessions {
			st, err := s.Status(ctx)
			stored, isStored := s.Provider.(onlyStored)
			// The record of a grant that was refused once is no login, and must not ask a person for one for ever.
			idle := isStored && err == nil && st.KeptAs != "" && !st.LoggedIn && st.MovedTo == ""
			name := a.who(st.Key)
			if stored.other {
				name += " (another app, grant or base URL, " + shortened(st.Key) + "…)"
			} else if _, unknown := findBroker(st.Key.Provider); isStored && !stored.named && !idle && st.KeptAs != "" && unknown == nil {
				why := "whose settings are not here"
				if stored.fault != nil {
					why = "whose settings cannot work"
					fmt.Fprintf(a.err, "brokerauth: %s: its settings cannot work: %s\n", name, forPeople(stored.fault))
				}
				name += " (" + shortened(st.Key) + "…, " + why + ")" // it may be an emulated broker's
			} else if alike[brokerauth.Key{Provider: st.Key.Provider, Profile: st.Key.Profile}] > 1 {
				name += " (" + shortened(st.Key) + "…)"
			}
			if mints(s.Provider) {
				st.LoggedIn = true // whether or not a first token is stored
			}
			switch {
			case asJSON:
				object, err := withStore(st, s.store.name, err)
				if err != nil {
					return err
				}
				objects = append(objects, object)
			case err == nil:
				a.describe(name, st)
				if later := newest.after(ctx, s, st); later != nil {
					a.say("  a later login of this app (profile %s, %s) has probably ended it", later.Key.Profile, moment(later.LoggedInAt))
				}
			case stored.other:
				a.say("%s: %s", name, forPeople(err))
			}
			if stored.other || idle {
				if !asJSON {
					a.say("  it does not count here; to delete it, run: %s", a.deletion(st.Key))
				}
				continue
			}
			counted++
			if err == nil {
				err = due(name, st, time.Duration(within))
			} else if len(args) == 0 {
				err = about(a.who(st.Key), err)
			}
			if k, ok := s.Provider.(keptGrant); ok && err != nil && !st.LoggedIn && st.MovedTo == "" && st.KeptAs == "" {
				err = k.missing()
			}
			if err != nil {
				one := *a
				one.broker, one.profile = st.Key.Provider, st.Key.Profile
				if isStored && st.KeptAs != "" {
					// Whoever logs in by other settings makes another login, and this one stays.
					err = fmt.Errorf("%w: log in with the settings of its app or, if that is out of use, run: %s", err, a.deletion(st.Key))
					one.broker = ""
				}
				one.complain(err)
				if worst == nil || exitCode(err) > exitCode(worst) {
					worst = err
				}
			}
		}
		switch {
		case asJSON && len(args) == 1 && len(objects) == 1:
			a.say("%s", objects[0])
		case asJSON:
			if err := json.NewEncoder(a.out).Encode(objects); err != nil {
				return err
			}
		}
		switch {
		case fault != nil && counted == 0:
			return told{fault} // the logins may be in the store that cannot be read
		case len(sessions) == 0:
			return fmt.Errorf("no login is stored: run: brokerauth login BROKER: %w", brokerauth.ErrLoginRequired)
		case counted == 0:
			return fmt.Errorf("no login of the settings' own apps is stored: run: brokerauth login BROKER: %w", brokerauth.ErrLoginRequired)
		}
		if worst != nil {
			return told{worst}
		}
		return nil
	})
	return cmd
}

// stored returns the Session of a broker's login or, if the app's settings are not there to tell which one, those of
// all that are stored for it and the profile, and at least one.
func (a *app) stored(ctx context.Context, b broker) ([]*brokerauth.Session, keptStore, error) {
	found, err := a.settings()
	if err != nil {
		return nil, keptStore{}, err
	}
	store, err := a.openStore(ctx, found, b.name)
	if err != nil {
		return nil, keptStore{}, err
	}
	p, _, err := found.provider(ctx, b, nil)
	a.tell(found)
	switch {
	case err == nil && (store.name != "memory" || mints(p)):
		return []*brokerauth.Session{a.session(p, store, a.profile)}, store, nil
	case err != nil && !errors.Is(err, errMissing):
		return nil, keptStore{}, err
	}
	if own, ok := found.identity(b); ok && store.name != "memory" {
		key := brokerauth.Key{Provider: b.name, Identity: own, Profile: a.profile}
		return []*brokerauth.Session{a.session(onlyStored{key: key, named: true}, store, a.profile)}, store, nil
	}
	keys, err := store.keys(ctx)
	if err != nil {
		return nil, keptStore{}, err
	}
	var sessions []*brokerauth.Session
	for _, key := range keys {
		if key.Provider == b.name && key.Profile == a.profile {
			sessions = append(sessions, a.session(onlyStored{key: key}, store, key.Profile))
		}
	}
	if sessions == nil {
		none := brokerauth.Key{Provider: b.name}
		sessions = []*brokerauth.Session{a.session(onlyStored{key: none}, store, a.profile)}
	}
	return sessions, store, nil
}

// identified returns the Session of the one stored login of a broker, of this library's or a program's own, and the
// profile whose identity begins with prefix.
func (a *app) identified(ctx context.Context, broker, prefix string) ([]*brokerauth.Session, keptStore, error) {
	if prefix == "" {
		return nil, keptStore{}, usageError{errors.New("--identity is empty: give it what status shows")} // a script's unset variable
	}
	_, store, keys, err := a.openKeys(ctx, broker)
	if err != nil {
		return nil, keptStore{}, err
	}
	keys = slices.DeleteFunc(keys, func(key brokerauth.Key) bool {
		return key.Provider != broker || key.Profile != a.profile || !strings.HasPrefix(identity(key), prefix)
	})
	if len(keys) != 1 {
		return nil, keptStore{}, usageError{fmt.Errorf("%s: %d stored logins of the profile %s have an identity that begins with %q, "+
			"not one: see: brokerauth status", broker, len(keys), a.profile, prefix)}
	}
	return []*brokerauth.Session{a.session(onlyStored{key: keys[0]}, store, a.profile)}, store, nil
}

// identities returns enough of each login's to tell them apart.
func identities(sessions []*brokerauth.Session) (all []string) {
	for _, s := range sessions {
		info := s.Provider.Info()
		all = append(all, shortened(brokerauth.Key{Provider: info.Name, Identity: info.Identity}))
	}
	return all
}

// lastLogins finds, for each app of a broker that keeps one login of it, the last that is stored, of whatever profile.
type lastLogins struct {
	a     *app
	found map[string]map[brokerauth.Key]brokerauth.Status // by the store, then the key without its profile
}

// after returns the login that has ended that of s, whose status is st, if the store knows; or nil.
func (l *lastLogins) after(ctx context.Context, s placed, st brokerauth.Status) *brokerauth.Status {
	if b, err := findBroker(st.Key.Provider); err != nil || b.afterLogin == "" || st.LoggedInAt.IsZero() ||
		errors.Is(st.LastError, brokerauth.ErrLoginRequired) {
		return nil
	}
	app := func(key brokerauth.Key) brokerauth.Key { key.Profile = ""; return key }
	last, ok := l.found[s.store.name]
	if !ok {
		last = make(map[brokerauth.Key]brokerauth.Status)
		keys, _ := s.store.keys(ctx) // what cannot be listed is not known
		for _, key := range keys {
			one, err := l.a.session(onlyStored{key: key}, s.store, key.Profile).Status(ctx)
			if err == nil && one.LoggedInAt.After(last[app(key)].LoggedInAt) {
				last[app(key)] = one
			}
		}
		if l.found == nil {
			l.found = make(map[string]map[brokerauth.Key]brokerauth.Status)
		}
		l.found[s.store.name] = last
	}
	if later := last[app(st.Key)]; later.LoggedInAt.After(st.LoggedInAt) {
		return &later
	}
	return nil
}

// openKeys opens the settings and the store of the broker's login, and lists what is in it.
func (a *app) openKeys(ctx context.Context, broker string) (*settings, keptStore, []brokerauth.Key, error) {
	found, err := a.settings()
	if err != nil {
		return nil, keptStore{}, nil, err
	}
	store, err := a.openStore(ctx, found, broker)
	if err != nil {
		return nil, keptStore{}, nil, err
	}
	keys, err := store.keys(ctx)
	return found, store, keys, err
}

// identity is a login's as its key spells it: plain characters, and "=" for the one that is empty.
func identity(key brokerauth.Key) string { return strings.Split(key.String(), ".")[1] }

// shortened is enough of an identity to tell a login from others.
func shortened(key brokerauth.Key) string {
	s := identity(key)
	return s[:min(len(s), 8)]
}

// deletion is the command line that deletes a login whatever the settings.
func (a *app) deletion(key brokerauth.Key) string {
	return a.line("logout", quoted(key.Provider), key.Profile) + " --identity " + shortened(key)
}

// placed is a Session and its store.
type placed struct {
	*brokerauth.Session
	store keptStore
}

// allStored returns the Sessions of all stored logins: of all profiles unless one was named. It looks into the store that
// is named or, if none is, into all that logins went to and the default. A store that cannot be read is an error besides.
func (a *app) allStored(ctx context.Context) (sessions []placed, err error) {
	found, err := a.settings()
	if err != nil {
		return nil, err
	}
	stores, err := a.allStores(ctx, found)
	if len(stores) == 0 {
		return nil, err
	}
	faults := []error{err}
	var all []brokerauth.Key
	for _, store := range stores {
		keys, err := store.keys(ctx)
		if err != nil {
			kept, _ := remembered(ctx)
			err = about(whose(kept, shown(store.lasting)), err)
		}
		faults = append(faults, err)
		for _, key := range keys {
			if a.named && key.Profile != a.profile {
				continue
			}
			sessions = append(sessions, placed{a.session(a.providerOf(ctx, key, found, keys), store, key.Profile), store})
		}
		all = append(all, keys...)
	}
	for _, b := range brokers() {
		// A grant in the settings is a login, stored or not.
		if b.kept == nil {
			continue
		}
		p, _, err := found.provider(ctx, b, nil)
		if err != nil || !mints(p) || slices.Contains(all, brokerauth.Key{Provider: b.name, Identity: p.Info().Identity, Profile: a.profile}) {
			continue
		}
		store, err := a.openStore(ctx, found, b.name)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		sessions = append(sessions, placed{a.session(p, store, a.profile), store})
	}
	a.tell(found)
	return sessions, errors.Join(faults...)
}

// providerOf returns the provider of the app that key's login is of, if the settings know it. keys are all that is stored.
func (a *app) providerOf(ctx context.Context, key brokerauth.Key, found *settings, keys []brokerauth.Key) brokerauth.Provider {
	b, err := findBroker(key.Provider)
	if err != nil {
		return onlyStored{key: key}
	}
	if key.Profile != found.profile {
		found, err = loadSettings(key.Profile, true)
	}
	if err != nil {
		return onlyStored{key: key, fault: err}
	}
	p, _, err := found.provider(ctx, b, nil)
	if err != nil {
		id, ok := found.identity(b)
		named := ok && id == key.Identity
		only := onlyStored{key: key, named: named, other: ok && !named}
		if !errors.Is(err, errMissing) {
			only.fault = err
		}
		return only
	}
	own := key
	if own.Identity = p.Info().Identity; own == key {
		return p
	}
	_, unset := p.(keptGrant) // no settings lead to it, so they may be out of reach here
	return onlyStored{key: key, other: !unset || slices.Contains(keys, own)}
}

// keys returns the keys of all logins that were stored before this command.
func (store keptStore) keys(ctx context.Context) ([]brokerauth.Key, error) {
	if store.name == "memory" {
		return nil, usageError{errors.New("the store memory begins with this command, so no login is in it: leave --store out, or name another")}
	}
	lister, ok := store.Store.(interface {
		Keys(context.Context) ([]brokerauth.Key, error)
	})
	if !ok {
		return nil, errors.ErrUnsupported
	}
	keys, err := lister.Keys(ctx)
	return slices.DeleteFunc(keys, func(key brokerauth.Key) bool { return strings.HasPrefix(key.Provider, "~") }), err
}

// onlyStored is a Provider that knows no more of a login than its key.
type onlyStored struct {
	key   brokerauth.Key
	named bool  // the settings name it, though not all that a refresh needs
	other bool  // they name another app, grant or base URL of that broker
	fault error // what is wrong with them; nil: they are not there
}

func (o onlyStored) Info() brokerauth.Info {
	return brokerauth.Info{Name: o.key.Provider, Identity: o.key.Identity}
}

func (o onlyStored) Refresh(context.Context, *brokerauth.Token) (*brokerauth.Token, error) {
	return nil, errMissing
}

// due reports that a person must do something within d. What describe has told it leaves out.
func due(name string, st brokerauth.Status, d time.Duration) error {
	e, _ := errors.AsType[*brokerauth.Error](st.LastError)
	switch {
	case !st.LoggedIn:
		return fmt.Errorf("%s: nobody is logged in: %w", name, brokerauth.ErrLoginRequired)
	case errors.Is(st.LastError, brokerauth.ErrLoginRequired):
		return fmt.Errorf("%s: the login has ended: %w", name, brokerauth.ErrLoginRequired)
	case errors.Is(st.LastError, brokerauth.ErrRejected) && e != nil && e.Hint != "":
		return fmt.Errorf("%s: %w: %s", name, brokerauth.ErrRejected, e.Hint)
	case errors.Is(st.LastError, brokerauth.ErrRejected):
		return st.LastError
	case st.LoginRequired(0):
		return fmt.Errorf("%s: the login was over by %s: %w", name, moment(st.LoginBy), brokerauth.ErrLoginRequired)
	case st.LoginRequired(d):
		return soon{fmt.Errorf("%s: the login is over by %s, within %s", name, moment(st.LoginBy), inWords(d))}
	}
	return nil
}

// soon is that a person must log in before long, but not now.
type soon struct{ error }

func (soon) Unwrap() error { return brokerauth.ErrLoginRequired }

// describe prints the status of a login called name.
func (a *app) describe(name string, st brokerauth.Status) {
	switch {
	case st.MovedTo != "":
		a.say("%s: not logged in: the login was moved to %s, %s; if it never arrived, log in again", name, st.MovedTo, moment(st.MovedAt))
		return
	case !st.LoggedIn:
		a.say("%s: not logged in", name)
		return
	}
	a.say("%s: %s", name, clocks(st))
	if !errors.Is(st.LastError, brokerauth.ErrLoginRequired) {
		if warning := inTradingWeek(st.LoginBy, time.Now()); warning != "" {
			a.say("  %s", warning)
		}
	}
	if !st.LoggedInAt.IsZero() {
		a.say("  logged in %s", moment(st.LoggedInAt))
	}
	if len(st.Scopes) > 0 {
		a.say("  scopes: %s", strings.Join(st.Scopes, " "))
	}
	if st.KeptAs != "" {
		a.say("  kept in %s", st.KeptAs)
	}
	if st.LastError != nil {
		one := *a
		one.broker, one.profile = st.Key.Provider, st.Key.Profile
		a.say("  last error: %s", one.inFull(st.LastError.Error()))
	}
}

// clocks says how long the access token and the login last.
func clocks(st brokerauth.Status) string {
	var access, login string
	b, _ := findBroker(st.Key.Provider)
	switch left := time.Until(st.AccessExpiresAt); {
	case st.AccessExpiresAt.IsZero() && b.endless:
		access = "access: none yet, the first use brings one"
	case st.AccessExpiresAt.IsZero():
		access = "access: does not expire"
	case left > 0:
		access = fmt.Sprintf("access: %s left", inWords(left))
	case left > -time.Second:
		access = "access: expired just now"
	default:
		access = fmt.Sprintf("access: expired %s ago", inWords(left))
	}
	switch left := time.Until(st.LoginBy); {
	case errors.Is(st.LastError, brokerauth.ErrLoginRequired):
		login = "the login has ended"
	case b.endless:
		login = "log in again: never"
	case st.LoginBy.IsZero():
		login = "the login has no end that is known"
	case left > 0:
		login = fmt.Sprintf("log in again by %s, in %s", moment(st.LoginBy), inWords(left))
	default:
		login = fmt.Sprintf("logging in again was due %s, %s ago", moment(st.LoginBy), inWords(left))
	}
	return access + "; " + login
}

// withStore is the status in JSON, with the store's name and the login's identity. unknown is why there is no status.
func withStore(st brokerauth.Status, store string, unknown error) (json.RawMessage, error) {
	if unknown != nil {
		st.LastError = unknown
	}
	raw, err := json.Marshal(st)
	if err != nil {
		return nil, err
	}
	var fields map[string]any
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, err
	}
	fields["store"], fields["identity"] = store, st.Key.Identity
	if unknown != nil {
		fields["logged_in"] = nil
	}
	return json.Marshal(fields)
}
