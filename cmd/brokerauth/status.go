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
			"It exits with 3 if a person must log in, and for several logins with the highest code of any.",
		Args:      cobra.MaximumNArgs(1),
		ValidArgs: brokerNames(),
	}
	flags := cmd.Flags()
	flags.Var(&within, "within", "exit with 3 already if a person must log in that soon")
	flags.BoolVar(&asJSON, "json", false, "print JSON: an object, or an array if no broker is named")
	cmd.RunE = a.action(func(ctx context.Context, args []string) error {
		var (
			sessions []*brokerauth.Session
			store    keptStore
			err      error
		)
		if len(args) == 1 {
			b, findErr := findBroker(args[0])
			if findErr != nil {
				return findErr
			}
			a.broker = b.name
			sessions, store, err = a.stored(ctx, b)
		} else {
			sessions, store, err = a.allStored(ctx)
		}
		if err != nil {
			return err
		}
		var worst error
		objects := []json.RawMessage{}
		for _, s := range sessions {
			st, err := s.Status(ctx)
			if err == nil {
				err = due(st, time.Duration(within))
				if !asJSON {
					a.describe(st)
				}
			} else {
				st.LastError = err // for JSON
			}
			if asJSON {
				object, err := withStore(st, store.name)
				if err != nil {
					return err
				}
				objects = append(objects, object)
			}
			if err != nil {
				one := *a
				one.broker, one.profile = st.Key.Provider, st.Key.Profile
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
		if len(sessions) == 0 {
			return fmt.Errorf("no login is stored: run: brokerauth login BROKER: %w", brokerauth.ErrLoginRequired)
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
	found, err := loadSettings(a.profile, a.named)
	if err != nil {
		return nil, keptStore{}, err
	}
	store, err := a.openStore(found)
	if err != nil {
		return nil, keptStore{}, err
	}
	p, _, err := found.provider(ctx, b, nil)
	a.tell(found)
	if err == nil {
		return []*brokerauth.Session{a.session(p, store, a.profile)}, store, nil
	}
	if !errors.Is(err, errMissing) {
		return nil, keptStore{}, err
	}
	keys, err := store.keys(ctx)
	if err != nil {
		return nil, keptStore{}, err
	}
	var sessions []*brokerauth.Session
	for _, key := range keys {
		if key.Provider == b.name && key.Profile == a.profile {
			sessions = append(sessions, a.session(onlyStored{key}, store, key.Profile))
		}
	}
	if sessions == nil {
		sessions = []*brokerauth.Session{a.session(onlyStored{brokerauth.Key{Provider: b.name}}, store, a.profile)}
	}
	return sessions, store, nil
}

// allStored returns the Sessions of all stored logins: of all profiles unless one was named.
func (a *app) allStored(ctx context.Context) ([]*brokerauth.Session, keptStore, error) {
	found, err := loadSettings(a.profile, a.named)
	if err != nil {
		return nil, keptStore{}, err
	}
	store, err := a.openStore(found)
	if err != nil {
		return nil, keptStore{}, err
	}
	keys, err := store.keys(ctx)
	if err != nil {
		return nil, keptStore{}, err
	}
	var sessions []*brokerauth.Session
	for _, key := range keys {
		if a.named && key.Profile != a.profile {
			continue
		}
		sessions = append(sessions, a.session(a.providerOf(ctx, key, found), store, key.Profile))
	}
	a.tell(found)
	return sessions, store, nil
}

// providerOf returns the provider of the app that key's login is of, if the settings know it.
func (a *app) providerOf(ctx context.Context, key brokerauth.Key, found *settings) brokerauth.Provider {
	b, err := findBroker(key.Provider)
	if err == nil && key.Profile != found.profile {
		found, err = loadSettings(key.Profile, true)
	}
	if err == nil {
		p, _, err := found.provider(ctx, b, nil)
		if err == nil && p.Info().Identity == key.Identity {
			return p
		}
	}
	return onlyStored{key}
}

// keys returns the keys of all logins.
func (store keptStore) keys(ctx context.Context) ([]brokerauth.Key, error) {
	lister, ok := store.Store.(interface {
		Keys(context.Context) ([]brokerauth.Key, error)
	})
	if !ok {
		return nil, fmt.Errorf("the store %s cannot list its logins: name a broker and set its settings: %w", store.name, errors.ErrUnsupported)
	}
	keys, err := lister.Keys(ctx)
	return slices.DeleteFunc(keys, func(key brokerauth.Key) bool { return strings.HasPrefix(key.Provider, "~") }), err
}

// onlyStored is a Provider that knows no more of a login than its key.
type onlyStored struct{ key brokerauth.Key }

func (o onlyStored) Info() brokerauth.Info {
	return brokerauth.Info{Name: o.key.Provider, Identity: o.key.Identity}
}

func (o onlyStored) Refresh(context.Context, *brokerauth.Token) (*brokerauth.Token, error) {
	return nil, errMissing
}

// due reports that a person must do something within d.
func due(st brokerauth.Status, d time.Duration) error {
	name := st.Key.Provider
	switch {
	case !st.LoggedIn:
		return fmt.Errorf("%s: nobody is logged in: %w", name, brokerauth.ErrLoginRequired)
	case errors.Is(st.LastError, brokerauth.ErrLoginRequired), errors.Is(st.LastError, brokerauth.ErrRejected):
		return st.LastError
	case st.LoginRequired(d):
		return fmt.Errorf("%s: the login is over by %s: %w", name, moment(st.LoginBy), brokerauth.ErrLoginRequired)
	}
	return nil
}

// describe prints a status.
func (a *app) describe(st brokerauth.Status) {
	if !st.LoggedIn {
		a.say("%s: not logged in", a.who(st.Key))
		return
	}
	a.say("%s: %s", a.who(st.Key), clocks(st))
	if !st.LoggedInAt.IsZero() {
		a.say("  logged in %s", moment(st.LoggedInAt))
	}
	a.say("  kept in %s", st.KeptAs)
	if st.LastError != nil {
		a.say("  last refusal: %v", st.LastError)
	}
}

// clocks says how long the access token and the login last.
func clocks(st brokerauth.Status) string {
	var access, login string
	switch left := time.Until(st.AccessExpiresAt); {
	case st.AccessExpiresAt.IsZero():
		access = "access: does not expire"
	case left > 0:
		access = fmt.Sprintf("access: %s left", inWords(left))
	default:
		access = fmt.Sprintf("access: expired %s ago", inWords(left))
	}
	switch left := time.Until(st.LoginBy); {
	case st.LoginBy.IsZero():
		login = "the login has no end that is known"
	case left > 0:
		login = fmt.Sprintf("log in again by %s, in %s", moment(st.LoginBy), inWords(left))
	default:
		login = fmt.Sprintf("logging in again was due %s, %s ago", moment(st.LoginBy), inWords(left))
	}
	return access + "; " + login
}

// withStore is the status in JSON, with the store's name.
func withStore(st brokerauth.Status, store string) (json.RawMessage, error) {
	raw, err := json.Marshal(st)
	if err != nil {
		return nil, err
	}
	var fields map[string]any
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, err
	}
	fields["store"] = store
	return json.Marshal(fields)
}
