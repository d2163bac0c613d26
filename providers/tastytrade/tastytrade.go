// Package tastytrade logs programs in to tastytrade's API.
//
// [New] is for one's own account: a personal grant, made once on the website, whose refresh token never expires. Nobody
// logs in. To make one, open https://my.tastytrade.com, then Manage, My Profile, API, OAuth Applications: create an
// application with the scopes it needs, keep the client secret, which is shown once, then choose Manage, Create Grant,
// and keep the refresh token. The scopes read and trade need two-factor authentication on the account. The sandbox has a
// website and credentials of its own; set Config.Sandbox for them.
//
// [NewPartner] is for apps that tastytrade has made trusted partners: their users log in on tastytrade's page.
//
// An access token lasts 15 minutes. A grant ends when it is deleted on the website or when the application's secret is
// regenerated, which ends every grant of the application. Logins by user name and password ended on 11 February 2026.
// All this is in tastytrade's documentation at https://developer.tastytrade.com.
package tastytrade

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/providers/authcode"
)

// Config is an app that is registered at tastytrade. It prints its secrets as fingerprints.
type Config struct {
	ClientSecret string
	// ClientID is needed by NewPartner. New may leave it out: the grant says which app it is for.
	ClientID string

	Grant string // for New: the refresh token that "Create Grant" has shown

	CallbackURL string   // for NewPartner: one of the app's redirect URIs, to the letter
	Scopes      []string // for NewPartner: some of read, trade and openid; empty: tastytrade decides

	// Sandbox is for apps and grants of the sandbox, https://api.cert.tastyworks.com, which knows none of the live ones.
	Sandbox bool
	// UserAgent is "product/version" of the program, as tastytrade demands with every request; empty: brokerauth's own.
	UserAgent string
	// BaseURL replaces https://api.tastyworks.com, and for NewPartner the login page's https://my.tastytrade.com, or what
	// the sandbox has in their place, for a proxy or an emulated tastytrade. https, or http to loopback.
	BaseURL string
	// Transport makes the token call; nil: one of its own.
	Transport http.RoundTripper
}

// defaultUserAgent names this library.
const defaultUserAgent = "brokerauth/1.0"

// userAgent is how tastytrade's frequently asked questions describe one. Patterns compile when they are first needed: a
// program that has another broker only does not wait.
var userAgent = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[\w!#$%&'*+.^|~-]+/[\w!#$%&'*+.^|~-]+( [ -~]*)?$`)
})

// New returns tastytrade for a personal grant, or an error that names everything wrong with config. There is no login:
// the first Refresh mints an access token. A grant that tastytrade no longer takes is brokerauth.ErrRejected.
func New(config Config) (brokerauth.Provider, error) {
	faults := config.faults()
	if config.Grant == "" {
		faults = append(faults, errors.New("tastytrade: the grant (refresh token) is missing: "+howToGrant))
		config.Grant = "grant" // to learn of all other faults, too
	}
	if config.CallbackURL != "" || len(config.Scopes) > 0 {
		faults = append(faults, errors.New("tastytrade: callback URL and scopes are for NewPartner: a grant has no login page, "+
			"and its scopes were chosen with it"))
	}
	p, err := authcode.NewGrant(config.app())
	if err := errors.Join(append(faults, err)...); err != nil {
		return nil, err
	}
	return grant{p}, nil
}

// NewPartner returns tastytrade for an app with a login page, or an error that names everything wrong with config.
func NewPartner(config Config) (brokerauth.LoginProvider, error) {
	p, err := authcode.New(config.app())
	if err := errors.Join(append(config.faults(), err)...); err != nil {
		return nil, err
	}
	return partner{p}, nil
}

const howToGrant = "logins by user name and password have ended; make a grant at https://my.tastytrade.com under Manage, " +
	"My Profile, API, OAuth Applications, Manage, Create Grant"

// faults are what New and NewPartner find wrong alike.
func (c Config) faults() (faults []error) {
	if c.ClientSecret == "" {
		faults = append(faults, errors.New("tastytrade: the client secret is missing: it was shown when the OAuth application "+
			"was created; logins by user name and password have ended"))
	}
	if c.UserAgent != "" && !userAgent().MatchString(c.UserAgent) {
		faults = append(faults, errors.New(`tastytrade: the user agent is not of the form "product/version", which tastytrade demands`))
	}
	return faults
}

func (c Config) app() authcode.Config {
	name, page, api := "tastytrade", "https://my.tastytrade.com/auth.html", "https://api.tastyworks.com"
	if c.Sandbox {
		name, page, api = "tastytrade-sandbox", "https://cert-my.staging-tasty.works/auth.html", "https://api.cert.tastyworks.com"
	}
	return authcode.Config{
		Info: brokerauth.Info{
			Name:    name,
			BaseURL: api,
			Origins: []string{api},
			Margin:  time.Minute,

			UserAgent: cmp.Or(c.UserAgent, defaultUserAgent),
		},
		AuthURL:    page,
		TokenURL:   api + "/oauth/token",
		AuthStyle:  oauth2.AuthStyleInParams, // tastytrade refuses an Authorization header on this call
		Scopes:     c.Scopes,
		AccessLife: 15 * time.Minute,
		Rules:      c.rules(),

		ClientID:     c.ClientID,
		ClientSecret: c.ClientSecret,
		RedirectURL:  c.CallbackURL,
		Grant:        c.Grant,
		BaseURL:      c.BaseURL,
		Transport:    c.Transport,
	}
}

// rules are tastytrade's own words, from its documentation and as users have reported them. The API's stand here, too: a
// gateway may answer so for the token endpoint.
func (c Config) rules() []authcode.Rule {
	const (
		anew   = "make a new grant with Manage, Create Grant at https://my.tastytrade.com"
		ends   = "regenerating a secret ends every grant of the app"
		agent  = `tastytrade demands a User-Agent of the form "product/version" with every request: a proxy may remove it`
		onward = "the user must have opened an account with tastytrade and finished the application"
	)
	here, there := "live", "sandbox"
	if c.Sandbox {
		here, there = there, here
	}
	which := "the live and the sandbox environment have credentials of their own, and these settings ask the " + here + " one"
	if from := environment(claimsOf(c.Grant).Issuer); from == there {
		which = "this grant is of the " + there + " environment, but these settings ask the " + here + " one: change either"
	}
	scopes := strings.Join(c.Scopes, " ")
	if c.Grant != "" {
		scopes = claimsOf(c.Grant).scopes()
	}
	allowed := "see with the app at https://my.tastytrade.com which of the scopes read, trade and openid it has"
	if scopes != "" {
		allowed = "the scopes here are: " + scopes
	}
	end := anew
	if c.Grant == "" {
		end = "log in again"
	}
	// A sandbox has been seen to say so for a while of users who are.
	customer := brokerauth.ErrRejected
	if c.Sandbox {
		customer = brokerauth.ErrUnavailable
	}
	return []authcode.Rule{
		{Op: "refresh", Contains: "Grant revoked", Kind: brokerauth.ErrLoginRequired,
			Hint: "the grant was deleted, or the app's secret was regenerated, which ends every grant: " + end},
		{Op: "refresh", Code: "invalid_grant", Kind: brokerauth.ErrLoginRequired,
			Hint: "the refresh token is damaged or not of this app: " + which + "; else " + end},
		{Op: "login", Code: "invalid_grant", Kind: brokerauth.ErrLoginRequired,
			Hint: "the code is too old, was used before, or is for another callback URL or app: log in again; " + which},
		{Contains: "Client secret mismatch", Kind: brokerauth.ErrRejected, Hint: "the client secret is not the app's: compare it, and " +
			"know that " + ends + ", so that a new secret wants a new grant; " + which},
		{Code: "invalid_client", Kind: brokerauth.ErrRejected,
			Hint: "compare client id and client secret with the app at https://my.tastytrade.com; " + ends + "; " + which},
		{Contains: "not a TastyTrade customer", Kind: customer, Hint: onward + "; " + which},
		{Code: "quote_streamer.customer_not_found_error", Kind: customer, Hint: onward + "; " + which},
		{Code: "invalid_credentials", Kind: brokerauth.ErrRejected, Hint: which + "; " + howToGrant},
		{Code: "unconfirmed_user", Kind: brokerauth.ErrRejected, Hint: "confirm the e-mail address of the account first"},
		{Code: "invalid_scope", Kind: brokerauth.ErrRejected,
			Hint: "the app does not have every scope that is asked for, or the account no two-factor authentication, which read and " +
				"trade need; " + allowed},
		{Contains: "401 Authorization Required", Hint: agent},
		{Status: http.StatusForbidden, Code: "not_permitted", Kind: brokerauth.ErrRejected, Hint: "the grant may not do that: " + allowed +
			"; read and trade need two-factor authentication on the account, and the account must give authority"},
		{Status: http.StatusUnauthorized, Hint: "the access token has ended and is renewed, or a proxy adds an " +
			"Authorization header, which the token call must not have; " + which},
		{Status: http.StatusNotAcceptable, Hint: "something adds an Accept-Version that tastytrade does not know: leave it out"},
		{Status: http.StatusUnprocessableEntity, Hint: "tastytrade found the request malformed: compare the settings, and go around proxies"},
		{Status: http.StatusTooManyRequests, Hint: "tastytrade was asked too often and publishes no limits: ask less often"},
	}
}

// blocked is why tastytrade may not answer at all: so say its frequently asked questions.
const blocked = "; tastytrade also leaves addresses unanswered for about eight hours after too many failed logins"

// grant is tastytrade for a personal grant.
type grant struct{ *authcode.GrantProvider }

func (g grant) Refresh(ctx context.Context, old *brokerauth.Token) (*brokerauth.Token, error) {
	return explained(g.GrantProvider.Refresh(ctx, old))
}

// partner is tastytrade for an app with a login page.
type partner struct{ *authcode.Provider }

func (p partner) Complete(ctx context.Context, login *brokerauth.Login, callback string) (*brokerauth.Token, error) {
	return explained(p.Provider.Complete(ctx, login, callback))
}

func (p partner) Refresh(ctx context.Context, old *brokerauth.Token) (*brokerauth.Token, error) {
	return explained(p.Provider.Refresh(ctx, old))
}

// explained adds the scopes, which only the access token itself tells, and what silence means.
func explained(t *brokerauth.Token, err error) (*brokerauth.Token, error) {
	var e *brokerauth.Error
	var timeout net.Error
	if errors.As(err, &e) && e.Status == 0 && errors.As(e.Err, &timeout) && timeout.Timeout() {
		e.Hint += blocked
	}
	if err != nil {
		return nil, err
	}
	if scopes := claimsOf(t.AccessToken).scopes(); scopes != "" {
		if t.Extra == nil {
			t.Extra = make(map[string]string)
		}
		t.Extra["scope"] = scopes
	}
	return t, nil
}

// claims are what a token says of itself. Nobody has checked the signature, so they serve to inform people only.
type claims struct {
	Issuer string `json:"iss"`
	Scope  string `json:"scope"`
}

// claimsOf reads a JWT, which tokens of tastytrade are; of anything else it has none.
func claimsOf(token string) (c claims) {
	parts := strings.Split(token, ".")
	if len(parts) < 3 || len(token) > 16<<10 {
		return claims{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[len(parts)-2])
	if err != nil || json.Unmarshal(payload, &c) != nil {
		return claims{}
	}
	return c
}

var scopeNames = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z_:.]{1,32}$`) })

// scopes returns the names in the scope claim that look like some.
func (c claims) scopes() string {
	var names []string
	for _, name := range strings.Fields(c.Scope) {
		if scopeNames().MatchString(name) && len(names) < 10 {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

// environment tells from a token's issuer whether it is "live" or "sandbox"; empty: it does not tell.
func environment(issuer string) string {
	if !strings.Contains(issuer, "://") {
		issuer = "https://" + issuer
	}
	u, err := url.Parse(issuer)
	if err != nil {
		return ""
	}
	switch strings.ToLower(u.Hostname()) {
	case "api.tastytrade.com", "api.tastyworks.com":
		return "live"
	case "api.cert.tastyworks.com", "api.sandbox.tastytrade.com":
		return "sandbox"
	}
	return ""
}

// LogValue shows the settings, secrets as fingerprints.
func (c Config) LogValue() slog.Value { return c.app().LogValue() }

// Format prints the settings, secrets as fingerprints, whatever the verb.
func (c Config) Format(f fmt.State, verb rune) { c.app().Format(f, verb) }

// MarshalJSON writes the settings, secrets as fingerprints.
func (c Config) MarshalJSON() ([]byte, error) { return c.app().MarshalJSON() }
