package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/providers/tastytrade"
)

// clientSecret is what a stored token's Extra calls the secret that belongs to its grant, as package porting has it.
const clientSecret = "client_secret"

// keptGrant is tastytrade for a grant that is stored instead of set: the token's RefreshToken is the grant, and its Extra
// has the client secret. So a login has one key whatever the grant, and later runs need no settings.
type keptGrant struct {
	config tastytrade.Config
	info   brokerauth.Info
}

// newKeptGrant returns the provider of c, which has no grant.
func newKeptGrant(c tastytrade.Config) (brokerauth.Provider, error) {
	c.ClientSecret, c.Grant = "secret", "grant" // Info is made of the rest
	p, err := tastytrade.New(c)
	if err != nil {
		return nil, err
	}
	own, err := tastytrade.New(tastytrade.Config{ClientSecret: c.ClientSecret, Grant: c.Grant, Sandbox: c.Sandbox})
	if err != nil {
		return nil, err
	}
	info := p.Info()
	info.Identity = ""
	if at := info.Origins[0]; at != own.Info().Origins[0] {
		// A grant that is stored for tastytrade itself must not reach another address.
		sum := sha256.Sum256([]byte(at))
		info.Identity = hex.EncodeToString(sum[:8])
	}
	return keptGrant{c, info}, nil
}

func (k keptGrant) Info() brokerauth.Info { return k.info }

func (k keptGrant) Refresh(ctx context.Context, old *brokerauth.Token) (*brokerauth.Token, error) {
	if old == nil || old.RefreshToken == "" || old.Extra[clientSecret] == "" {
		return nil, k.missing()
	}
	c := k.config
	c.ClientSecret, c.Grant = old.Extra[clientSecret], old.RefreshToken
	p, err := tastytrade.New(c)
	if err != nil {
		return nil, &brokerauth.Error{Provider: k.info.Name, Op: "refresh", Kind: brokerauth.ErrRejected, Err: err}
	}
	t, err := p.Refresh(ctx, old)
	if e, ok := errors.AsType[*brokerauth.Error](err); ok && e.Kind == brokerauth.ErrRejected {
		e.Hint += "; then run: brokerauth login " + k.info.Name
	}
	return t, err
}

// howToGrant is told whoever has none, such as those who still set TASTY_USERNAME and TASTY_PASSWORD.
const howToGrant = "logins by user name and password ended on 11 February 2026; make a grant at https://my.tastytrade.com " +
	"under Manage, My Profile, API, OAuth Applications, Manage, Create Grant"

func (k keptGrant) missing() error {
	return &brokerauth.Error{Provider: k.info.Name, Op: "refresh", Kind: brokerauth.ErrLoginRequired, Hint: "no grant is set or stored; " + howToGrant}
}

// mints reports whether p needs nobody to log in, because its grant is in the settings.
func mints(p brokerauth.Provider) bool {
	switch p.(type) {
	case brokerauth.LoginProvider, keptGrant, onlyStored:
		return false
	}
	return true
}

// lacksGrant reports that s has neither a grant in the settings nor a stored one. Asking for a token would say so, too,
// but leave a record of it.
func lacksGrant(ctx context.Context, s *brokerauth.Session) error {
	k, ok := s.Provider.(keptGrant)
	if !ok {
		return nil
	}
	st, err := s.Status(ctx)
	if err == nil && !st.LoggedIn && st.MovedTo == "" {
		return k.missing()
	}
	return nil // whatever is wrong, asking for the token tells
}

// grants reports whether logins at b are grants here, and not made on a login page.
func (s *settings) grants(b broker) (bool, error) {
	callback, err := s.get(b.prefix + "_CALLBACK_URL")
	if err != nil {
		return false, usageError{err}
	}
	return b.kept != nil && callback == "", nil
}

// keptProvider makes b's provider for a grant that is stored, and returns the settings that b has, by name.
func (s *settings) keptProvider(b broker) (brokerauth.Provider, map[string]string, error) {
	values := make(map[string]string)
	var faults []error
	for _, setting := range append([]setting{{name: b.prefix + baseURL}}, b.settings...) {
		value, err := s.get(setting.name)
		if err != nil {
			faults = append(faults, err)
		}
		values[setting.name] = value
	}
	p, err := b.kept(func(name string) string { return values[name] })
	if err := errors.Join(append(faults, err)...); err != nil {
		return nil, nil, usageError{err}
	}
	return p, values, nil
}

// loginGrant takes a grant and its secret from a person, proves them, and stores them. Those that stand in the settings it
// proves only: who keeps them there, as in a vault that sets the environment, does not expect a copy on a disk, and two
// grants of which one counts are one too many. It does nothing if unless is set and the grant works.
func (a *app) loginGrant(ctx context.Context, b broker, unless bool) error {
	found, err := a.settings()
	if err != nil {
		return err
	}
	store, err := a.openForTokens(ctx, found, b.name)
	if err != nil {
		return err
	}
	p, values, err := found.keptProvider(b)
	a.tell(found)
	if err != nil {
		return err
	}
	if store.name == "memory" {
		return lost(b.name, store)
	}
	secret, grant := b.settings[0].name, b.settings[1].name
	isSet := values[secret] != "" || values[grant] != ""
	if isSet {
		if p, err = b.open(func(name string) string { return values[name] }); err != nil {
			return usageError{err}
		}
	}
	s := a.session(p, store, a.profile)
	if unless {
		err := lacksGrant(ctx, s)
		if err == nil {
			_, err = s.Token(ctx)
		}
		if !errors.Is(err, brokerauth.ErrLoginRequired) && !errors.Is(err, brokerauth.ErrRejected) {
			if err := closed(s, err); err != nil {
				return err
			}
			_, err := a.sayClocks(ctx, s, "still logged in")
			return err
		}
	}
	var t *brokerauth.Token
	if !isSet {
		t, err = a.askGrant(ctx, b)
	}
	if err == nil {
		err = saveGrant(ctx, s, t)
	}
	if err := closed(s, err); err != nil {
		return err
	}
	st, err := a.sayClocks(ctx, s, "logged in")
	if err != nil {
		return err
	}
	a.remember(context.WithoutCancel(ctx), st.Key, store)
	if isSet {
		a.say("Client secret and grant stay in the settings, which later runs need, too. To keep them in the store instead, unset %s and %s, "+
			"and run this again.", secret, grant)
		return nil
	}
	a.say("Client secret and grant are kept in %s: later runs need no settings.", store.keptAs(st.KeptAs))
	return nil
}

// saveGrant stores a grant in the place of any other, if it works; nil: that of the settings, of which the store keeps
// what it keeps of any token.
func saveGrant(ctx context.Context, s *brokerauth.Session, grant *brokerauth.Token) error {
	ctx = context.WithoutCancel(ctx)
	t, err := s.Provider.Refresh(ctx, grant)
	if err != nil {
		return err
	}
	return s.Save(ctx, t)
}

// sayClocks says what became of a login, and how long it lasts.
func (a *app) sayClocks(ctx context.Context, s *brokerauth.Session, what string) (brokerauth.Status, error) {
	st, err := s.Status(context.WithoutCancel(ctx))
	if err == nil {
		a.say("%s: %s: %s", a.who(st.Key), what, clocks(st))
	}
	return st, err
}

// askGrant returns a grant, as a token without an access token, of what a person types. b.settings begin with the client
// secret and the grant.
func (a *app) askGrant(ctx context.Context, b broker) (*brokerauth.Token, error) {
	secret, grant := b.settings[0], b.settings[1]
	prompt := newPrompt(a.in, a.err)
	if prompt == nil {
		return nil, usageError{fmt.Errorf("%s: %w: set %s and %s %s, or type them in a terminal; %s: see %s",
			b.name, errMissing, secret.name, grant.name, places(a.profile), howToGrant, b.seeGuide())}
	}
	fmt.Fprintf(a.err, "brokerauth: %s: %s\n", b.name, howToGrant)
	typed, err := prompt.ask(ctx, b.name+": ", secret, grant)
	if err != nil {
		return nil, err
	}
	return &brokerauth.Token{RefreshToken: typed[1], Extra: map[string]string{clientSecret: typed[0]}}, nil
}
