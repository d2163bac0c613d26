package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/providers/tdameritrade"
)

func brokerNames() []string {
	var names []string
	for _, b := range brokers() {
		names = append(names, b.name)
	}
	return names
}

func findBroker(name string) (broker, error) {
	for _, b := range brokers() {
		if b.name == name {
			return b, nil
		}
	}
	return broker{}, usageError{fmt.Errorf("no broker is called %q: there are %s", name, strings.Join(brokerNames(), ", "))}
}

// open makes the Session that the command line asks for. The caller closes it.
func (a *app) open(ctx context.Context, b broker, prompt *prompt) (s *brokerauth.Session, store keptStore, asked []string, err error) {
	found, err := a.settings()
	if err != nil {
		return nil, store, nil, err
	}
	if store, err = a.openForTokens(ctx, found, b.name); err != nil {
		return nil, store, nil, err
	}
	p, asked, err := found.provider(ctx, b, prompt)
	a.tell(found)
	if err != nil {
		return nil, store, nil, err
	}
	if store.name == "memory" && !mints(p) {
		return nil, store, nil, lost(b.name, store)
	}
	if store.why != "" {
		fmt.Fprintf(a.err, "brokerauth: %s, so the token is forgotten when this command ends\n", store.why)
	}
	return a.session(p, store, a.profile), store, asked, nil
}

// ended is the error of a broker that no longer exists, unless the settings name an emulated one. It comes first: there
// is no use in setting what such a broker needs.
func (a *app) ended(ctx context.Context, b broker) error {
	if b.name != "tdameritrade" {
		return nil
	}
	found, err := a.settings()
	if err != nil {
		return err
	}
	base, err := found.get(b.prefix + baseURL)
	if err != nil {
		return usageError{err}
	}
	p, err := tdameritrade.New(tdameritrade.Config{ClientID: "key", CallbackURL: "http://localhost:8080", BaseURL: base})
	if err != nil {
		return usageError{err}
	}
	_, err = p.Begin(ctx) // it asks nobody
	return err
}

// lost says that a store which ends with this command is none for b's login.
func lost(who string, store keptStore) error {
	if store.why != "" {
		return usageError{fmt.Errorf("%s: %s, so nothing is written to a disk, and a login would end with this command: "+
			"unset that, or name a store by --store", who, store.why)}
	}
	return usageError{fmt.Errorf("%s: the store memory ends with this command, and the login would be lost: "+
		"leave --store out, or name another", who)}
}

// tell says what a person should know of where settings came from.
func (a *app) tell(s *settings) {
	if text := s.told(); text != "" {
		a.warn(text)
	}
}

func (a *app) session(p brokerauth.Provider, store keptStore, profile string) *brokerauth.Session {
	return &brokerauth.Session{Provider: p, Store: store.Store, Profile: profile, Observe: a.observer()}
}

// with opens the Session of the named broker, and closes it after use.
func (a *app) with(ctx context.Context, name string, use func(ctx context.Context, s *brokerauth.Session) error) error {
	b, err := findBroker(name)
	if err != nil {
		return err
	}
	a.broker = b.name
	if err := a.ended(ctx, b); err != nil {
		return err
	}
	s, _, _, err := a.open(ctx, b, nil)
	if err != nil {
		return err
	}
	if err := lacksGrant(ctx, s); err != nil {
		return closed(s, err)
	}
	return closed(s, use(ctx, s))
}

// closed closes s, after which whatever was sent to a broker is saved or never will be, and adds what goes wrong to err.
func closed(s *brokerauth.Session, err error) error {
	closeErr := s.Close()
	if closeErr == nil || err != nil && err.Error() == closeErr.Error() {
		return err
	}
	return errors.Join(err, closeErr)
}

// oneBroker is what most commands take.
func oneBroker(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("name one broker: %s", strings.Join(brokerNames(), ", "))
	}
	return nil
}

// atMostOne is what commands take that look at all brokers if none is named.
func atMostOne(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return oneBroker(cmd, args)
}

// observer tells a person what they should know of, or all there is. What ends in an error is told as one.
func (a *app) observer() func(brokerauth.Event) {
	note := func(e brokerauth.Event) {
		switch e.Kind {
		case "login", "refreshed", "saved", "unsaved":
			a.last.Store(e.Kind)
		}
	}
	if a.debug {
		log := slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: slog.LevelDebug}))
		return func(e brokerauth.Event) {
			note(e)
			log.Debug("brokerauth: "+e.Kind, "event", e)
		}
	}
	return func(e brokerauth.Event) {
		note(e)
		if e.Kind == "set aside" {
			fmt.Fprintf(a.err, "brokerauth: warning: %s\n", forPeople(e.Err))
		}
	}
}

// version is the module's and, of one without a release, the commit's, as the go command stamped them.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	stamps := make(map[string]string)
	for _, s := range info.Settings {
		stamps[s.Key] = s.Value
	}
	text, commit := info.Main.Version, stamps["vcs.revision"]
	if len(commit) >= 12 && !strings.Contains(text, commit[:12]) {
		text += " of commit " + commit[:12]
		if stamps["vcs.modified"] == "true" {
			text += ", changed"
		}
	}
	return text
}
