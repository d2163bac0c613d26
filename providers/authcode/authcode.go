// Package authcode logs programs in to any OAuth 2.0 broker that is described as data.
//
// A [Config] holds the broker's own facts, which its package fills in, and the app's settings, which the user does.
// [New] makes a broker with a login page of it: the authorization-code grant of RFC 6749, with PKCE where the broker
// takes it. [NewGrant] makes a broker without one, whose refresh token was issued beforehand on its website. Programs
// use a broker's package, such as providers/schwab; this one is for whoever writes the next.
//
// # The token call
//
// It is one POST, and one only: a code and, at many brokers, a refresh token can be spent once, so nothing repeats the
// request, follows a redirect or probes how the broker wants the client to identify itself. It takes 20 seconds at most
// and reads 1 MiB at most. golang.org/x/oauth2 makes the login page's address and the PKCE verifier, but not this call:
// it loses a good grant whose expires_in is 1800.0, cannot add a parameter to a refresh, and puts bodies into errors.
//
// # What is final
//
// Only the broker's own words are: invalid_grant, invalid_client and unauthorized_client as RFC 6749 means them, and
// what the broker's Rules say. Network trouble, 408, 429, 5xx and HTML never are, and a refusal that nobody knows is not
// either: a login that works is worth more than a quick answer.
package authcode

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/oauth2"

	"github.com/brokerauth/brokerauth"
)

// Config describes one broker and one app registered there. New and NewGrant keep its maps and slices: leave them alone
// afterwards. It prints its secrets as fingerprints.
type Config struct {
	// The broker's own facts, which its package fills in.
	Info      brokerauth.Info  // all but Identity and Settings, which are computed
	AuthURL   string           // the login page; https, or http to loopback
	TokenURL  string           // likewise
	AuthStyle oauth2.AuthStyle // AuthStyleInHeader or AuthStyleInParams, as the broker documents
	Issuer    string           // what a callback's iss must be; empty: the broker declares none
	PKCE      bool             // send an S256 challenge
	Scopes    []string         // asked for at the login page

	AuthParams     map[string]string // further parameters of the login page
	ExchangeParams map[string]string // further parameters of the code's exchange

	// BareCode reports whether what a person pasted in the place of the whole address, decoded, may be one of this
	// broker's codes, so that nothing else is sent there: it may have been a password. nil: anything may be.
	BareCode func(code string) bool

	// RefreshParams returns further parameters of a refresh, and whether a new refresh token that comes in reply begins
	// a new LoginLife. It may be nil.
	RefreshParams func(old *brokerauth.Token, now time.Time) (params map[string]string, renews bool)

	// RateWindow is for a broker that limits requests by its own clock's minute, say, and sends no Retry-After: after a
	// 429 it is time again at the next multiple of it by the answer's Date. 0: the broker has no such window.
	RateWindow time.Duration

	AccessLife time.Duration // of an access token that comes without expires_in; 0: it does not expire
	LoginLife  time.Duration // from the user's consent to the next; 0: unlimited
	Rules      []Rule        // the broker's own words; the first that fits counts
	// Elsewhere says what to ask at this broker in the place of address, which is none of its own, for people who come
	// from another; empty: nothing is known. It may be nil.
	Elsewhere func(address string) string

	EarlyEnd string // what usually ends a login before its time; empty: what does at most brokers

	// The app's settings, which the user fills in.
	ClientID     string
	ClientSecret string // empty for a public client
	RedirectURL  string // the callback as registered; it is sent as it stands, never rewritten
	Grant        string // the refresh token issued beforehand; for NewGrant only
	// BaseURL replaces scheme, host and port of AuthURL, TokenURL and Info.BaseURL, whose paths are added to its own, and
	// all of Info.Origins: for a proxy, or a broker that is emulated. https, or http to loopback; empty: the broker's own.
	BaseURL string
	// Transport makes the token call. nil: a copy of http.DefaultTransport that keeps no connection.
	Transport http.RoundTripper
}

// Rule tells what a broker means by a refusal. An empty condition always holds.
type Rule struct {
	Op       string // "login" or "refresh"
	Status   int    // HTTP status
	Code     string // an error code, wherever in the answer it stands
	Contains string // text of the answer, whatever its case

	Kind error  // ErrLoginRequired, ErrRejected or ErrUnavailable; nil: as RFC 6749 has it
	Hint string // what the user should do; empty: the usual
}

// Provider is a broker with a login page. It implements [brokerauth.LoginProvider].
type Provider struct{ config *Config }

// New returns the broker that config describes, or an error that names everything wrong with config.
func New(config Config) (*Provider, error) {
	var faults []error
	if config.ClientID == "" {
		faults = append(faults, errors.New("the client id (app key) is missing"))
	}
	if config.Grant != "" {
		faults = append(faults, errors.New("a refresh token issued beforehand needs no login page"))
	}
	for _, fault := range redirectFaults(config.RedirectURL) {
		faults = append(faults, errors.New("the redirect URL (callback URL) "+fault))
	}
	if err := config.prepare(config.ClientID, faults); err != nil {
		return nil, err
	}
	return &Provider{&config}, nil
}

// Info returns the broker's constant facts.
func (p *Provider) Info() brokerauth.Info { return p.config.Info }

// Elsewhere says what to ask at this broker in the place of address, which is none of its own; empty: nothing is known.
func (p *Provider) Elsewhere(address string) string {
	if p.config.Elsewhere == nil {
		return ""
	}
	return p.config.Elsewhere(address)
}

// Begin starts a login. It asks the broker nothing.
func (p *Provider) Begin(ctx context.Context) (*brokerauth.Login, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c := p.config
	state := make([]byte, 32)
	rand.Read(state) // never fails
	login := &brokerauth.Login{
		RedirectURL: c.RedirectURL,
		State:       base64.RawURLEncoding.EncodeToString(state),
		Began:       time.Now(),
	}
	var params []oauth2.AuthCodeOption
	if c.PKCE {
		login.Secret = oauth2.GenerateVerifier()
		params = append(params, oauth2.S256ChallengeOption(login.Secret))
	}
	for name, value := range c.AuthParams {
		params = append(params, oauth2.SetAuthURLParam(name, value))
	}
	page := oauth2.Config{
		ClientID:    c.ClientID,
		Endpoint:    oauth2.Endpoint{AuthURL: c.AuthURL},
		RedirectURL: c.RedirectURL,
		Scopes:      c.Scopes,
	}
	login.URL = page.AuthCodeURL(login.State, params...)
	return login, nil
}

// Complete finishes login with the address that the broker sent the user back to: the whole of it, its path and query,
// its query, or the bare code, which is good enough only where PKCE or a client secret binds it. It is decoded once.
// An error whose Kind is nil is about callback alone: nothing was sent, and the user can try another address.
func (p *Provider) Complete(ctx context.Context, login *brokerauth.Login, callback string) (*brokerauth.Token, error) {
	code, err := p.config.code(login, callback)
	if err != nil {
		return nil, err
	}
	form := url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {login.RedirectURL}}
	if login.Secret != "" {
		form.Set("code_verifier", login.Secret)
	}
	for name, value := range p.config.ExchangeParams {
		form.Set(name, value)
	}
	call := &call{Config: p.config, op: "login", old: new(brokerauth.Token), secrets: []string{code, login.Secret, login.State}}
	t, err := call.token(ctx, form)
	if err != nil {
		return nil, err
	}
	t.LoggedInAt = t.Issued
	if p.config.LoginLife > 0 {
		t.LoginBy = t.LoggedInAt.Add(p.config.LoginLife)
	}
	return t, nil
}

// Refresh renews old. Without a login to renew it returns ErrLoginRequired and asks the broker nothing.
func (p *Provider) Refresh(ctx context.Context, old *brokerauth.Token) (*brokerauth.Token, error) {
	hint := ""
	switch {
	case old == nil:
		hint = "nobody has logged in yet: log in"
	case old.RefreshToken == "":
		hint = "this login came without a refresh token and cannot be renewed: log in again"
	default:
		return p.config.refresh(ctx, old)
	}
	return nil, &brokerauth.Error{Provider: p.config.Info.Name, Op: "refresh", Kind: brokerauth.ErrLoginRequired, Hint: hint}
}

// GrantProvider is a broker whose refresh token was issued beforehand, on its website, and stands in the settings.
// It has no login page. It implements [brokerauth.Provider].
type GrantProvider struct{ config *Config }

// NewGrant returns the broker that config describes, or an error that names everything wrong with config. AuthURL,
// RedirectURL and what else belongs to a login page are not used. ClientID may be empty if the broker needs none.
func NewGrant(config Config) (*GrantProvider, error) {
	var faults []error
	if config.Grant == "" {
		faults = append(faults, errors.New("the refresh token (grant) is missing"))
	}
	config.AuthURL, config.RedirectURL = "", ""
	if err := config.prepare(config.Grant, faults); err != nil {
		return nil, err
	}
	return &GrantProvider{&config}, nil
}

// Info returns the broker's constant facts.
func (p *GrantProvider) Info() brokerauth.Info { return p.config.Info }

// Refresh renews old, or mints the first token if old is nil. A grant that the broker no longer takes is ErrRejected:
// a person must put another into the settings.
func (p *GrantProvider) Refresh(ctx context.Context, old *brokerauth.Token) (*brokerauth.Token, error) {
	if old == nil {
		old = new(brokerauth.Token)
	}
	old = old.Clone()
	old.RefreshToken = cmp.Or(old.RefreshToken, p.config.Grant)
	return p.config.refresh(ctx, old)
}

// refresh spends old's refresh token.
func (c *Config) refresh(ctx context.Context, old *brokerauth.Token) (*brokerauth.Token, error) {
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {old.RefreshToken}}
	renews := false
	if c.RefreshParams != nil {
		var params map[string]string
		params, renews = c.RefreshParams(old, time.Now())
		for name, value := range params {
			form.Set(name, value)
		}
	}
	call := &call{Config: c, op: "refresh", old: old, secrets: []string{old.RefreshToken, old.AccessToken}}
	t, err := call.token(ctx, form)
	if err != nil {
		return nil, err
	}
	if renews && t.RefreshToken != old.RefreshToken {
		t.LoginBy = t.Issued.Add(c.LoginLife)
	}
	return t, nil
}

// prepare puts BaseURL in place, computes what Info needs and looks for faults, of which some may be known already.
// who is what tells this app's logins from another's.
func (c *Config) prepare(who string, faults []error) error {
	if c.Info.Name == "" {
		faults = append(faults, errors.New("the broker has no name"))
	}
	if c.AuthStyle != oauth2.AuthStyleInHeader && c.AuthStyle != oauth2.AuthStyleInParams {
		faults = append(faults, errors.New("the AuthStyle must be AuthStyleInHeader or AuthStyleInParams"))
	}
	if c.ClientSecret == "" && c.AuthStyle == oauth2.AuthStyleInHeader {
		faults = append(faults, errors.New("the client secret (app secret) is missing"))
	}
	for _, part := range []struct{ name, value string }{
		{"client id (app key)", c.ClientID}, {"client secret (app secret)", c.ClientSecret}, {"refresh token (grant)", c.Grant},
	} {
		if !visible(part.value) {
			faults = append(faults, fmt.Errorf("the %s holds a space or another character that is none of its own: copy it anew", part.name))
		}
	}
	own := origin(c.TokenURL)
	if c.BaseURL != "" {
		if fault := endpointFault(c.BaseURL); fault != "" {
			faults = append(faults, errors.New("the base URL "+fault))
		} else {
			c.AuthURL, c.TokenURL = rebase(c.BaseURL, c.AuthURL), rebase(c.BaseURL, c.TokenURL)
			c.Info.BaseURL = rebase(c.BaseURL, c.Info.BaseURL)
			c.Info.Origins = []string{origin(c.BaseURL)}
		}
	}
	if fault := endpointFault(c.TokenURL); fault != "" {
		faults = append(faults, errors.New("the token endpoint's address "+fault))
	}
	if fault := endpointFault(c.AuthURL); fault != "" && c.Grant == "" {
		faults = append(faults, errors.New("the login page's address "+fault))
	}
	if len(faults) > 0 {
		for i, fault := range faults {
			faults[i] = fmt.Errorf("%s: %w", cmp.Or(c.Info.Name, "authcode"), fault)
		}
		return errors.Join(faults...)
	}
	if at := origin(c.TokenURL); at != own {
		// A login at an emulator must never stand where a live one stood.
		who += "\n" + at
	}
	c.Info.Identity = fingerprint(who, 8)
	settings := []string{c.ClientID, c.ClientSecret, c.Grant, c.RedirectURL, c.TokenURL}
	c.Info.Settings = fingerprint(fmt.Sprintf("%q", settings), 8)
	if c.Transport == nil {
		c.Transport = http.DefaultTransport
		if t, ok := c.Transport.(*http.Transport); ok {
			// A connection that was kept may be dead, and a token call is not repeated.
			t = t.Clone()
			t.DisableKeepAlives = true
			t.MaxResponseHeaderBytes = maxHeaders
			c.Transport = t
		}
	}
	return nil
}

var _ brokerauth.LoginProvider = (*Provider)(nil)
var _ brokerauth.Provider = (*GrantProvider)(nil)
