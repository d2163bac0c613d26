// Package tdameritrade logs programs in to TD Ameritrade's API, which ended in May 2024.
//
// Against the real TD Ameritrade every call fails and says how to move to Schwab: run "brokerauth migrate", and read
// docs/porting-td-to-schwab.md. Against an emulated one, or any other BaseURL, it all works, so that old code can be run,
// tested and moved.
//
// A login lasts 90 days. Unlike Schwab's it can be renewed for ever without anybody: within its last five days a refresh
// asks for a new refresh token, which begins 90 days of its own. An access token lasts 30 minutes. The developer site's
// frequently asked questions had both.
package tdameritrade

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/providers/authcode"
)

// suffix ends every client id at TD Ameritrade's login page. Its site showed consumer keys without.
const suffix = "@AMER.OAUTHAP"

const (
	loginLife = 90 * 24 * time.Hour
	renewal   = 5 * 24 * time.Hour // before the end of a login a new refresh token is asked for: from day 85, as tda-api did
)

// Config is an app that was registered at TD Ameritrade's developer site. There was no client secret.
type Config struct {
	// ClientID is the app's consumer key, with "@AMER.OAUTHAP" behind it or without, in any case: it is one and the same.
	ClientID string

	// CallbackURL is one of the app's callback URLs, to the letter. It may be http to a loopback host, localhost included,
	// and must be https to any other: nothing binds a code to an app that has no secret, so it must not cross a network in
	// the clear.
	CallbackURL string

	// BaseURL replaces both https://auth.tdameritrade.com and https://api.tdameritrade.com, as for an emulated TD
	// Ameritrade. https, or http to loopback. Without it every call fails: nobody is there any more.
	BaseURL string
	// Transport makes the token call; nil: one of its own.
	Transport http.RoundTripper
}

// New returns TD Ameritrade for the app that config describes, or an error that names everything wrong with config.
//
// Without a BaseURL, or with TD Ameritrade's own, Begin, Complete and Refresh send nothing and return a
// [*brokerauth.Error] that matches brokerauth.ErrRejected and says where to go.
func New(config Config) (brokerauth.LoginProvider, error) {
	var faults []error
	if fault := clientFault(config.ClientID); fault != "" {
		faults = append(faults, errors.New("tdameritrade: the client id (consumer key) "+fault))
		config.ClientID = "key" // to learn of all other faults, too
	}
	if fault := callbackFault(config.CallbackURL); fault != "" {
		faults = append(faults, errors.New("tdameritrade: the callback URL "+fault))
		config.CallbackURL = "https://127.0.0.1"
	}
	p, err := authcode.New(config.app())
	if err != nil {
		faults = append(faults, err)
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	if config.real() {
		return retired{p}, nil
	}
	return p, nil
}

func (c Config) app() authcode.Config {
	id := consumerKey(c.ClientID)
	if id != "" {
		id += suffix
	}
	return authcode.Config{
		Info: brokerauth.Info{
			Name:    "tdameritrade",
			BaseURL: "https://api.tdameritrade.com",
			Origins: []string{"https://api.tdameritrade.com"},
			Margin:  5 * time.Minute,
		},
		// The developer site's "Authentication" guides had both addresses and the parameters.
		AuthURL:        "https://auth.tdameritrade.com/auth",
		TokenURL:       "https://api.tdameritrade.com/v1/oauth2/token",
		AuthStyle:      oauth2.AuthStyleInParams,
		ExchangeParams: map[string]string{"access_type": "offline"}, // without it there is no refresh token
		RefreshParams:  refreshParams,
		RateWindow:     time.Minute, // users saw it end with the minute of the Date header
		AccessLife:     30 * time.Minute,
		LoginLife:      loginLife,
		Rules:          rules(),
		EarlyEnd:       "the refresh token is damaged or another app's, or the access was taken back",

		ClientID:    id,
		RedirectURL: c.CallbackURL,
		BaseURL:     c.BaseURL,
		Transport:   c.Transport,
	}
}

// refreshParams asks for a new refresh token when the old one nears its end, or when that is unknown. The reference
// forbade it and the frequently asked questions prescribed it; TD Ameritrade's support confirmed the latter.
func refreshParams(old *brokerauth.Token, now time.Time) (params map[string]string, renews bool) {
	if now.Before(old.LoginBy.Add(-renewal)) {
		return nil, false
	}
	return map[string]string{"access_type": "offline"}, true
}

// consumerKey is a client id without its suffix, however often and in whatever case that stands there.
func consumerKey(id string) string {
	for len(id) >= len(suffix) && strings.EqualFold(id[len(id)-len(suffix):], suffix) {
		id = id[:len(id)-len(suffix)]
	}
	return id
}

func clientFault(id string) string {
	switch key, other, found := strings.Cut(consumerKey(id), "@"); {
	case id == "":
		return "" // authcode says so
	case key == "":
		return "is only the suffix " + suffix + ": put the consumer key before it"
	case found:
		return fmt.Sprintf("ends in %q, but TD Ameritrade's end in %s: give it with that or without any", "@"+other, suffix)
	}
	return ""
}

// callbackFault says what is wrong with a callback here beyond what is at any broker.
func callbackFault(callback string) string {
	u, err := url.Parse(callback)
	switch {
	case strings.Contains(callback, ","):
		return "holds a comma: the developer site took several callback URLs, use one of them here"
	case callback == "" || err != nil || u.Host == "":
		return "" // any broker refuses that
	case u.Scheme != "https" && u.Scheme != "http":
		return "is neither https nor http"
	case u.Scheme == "http" && !strings.EqualFold(u.Hostname(), "localhost") && !net.ParseIP(u.Hostname()).IsLoopback():
		return "is http to another machine, which would send the code in the clear: use https, or localhost"
	}
	return ""
}

// real reports whether the calls would go to TD Ameritrade itself.
func (c Config) real() bool {
	u, err := url.Parse(cmp.Or(c.BaseURL, "https://api.tdameritrade.com"))
	return err == nil && strings.HasSuffix("."+strings.ToLower(strings.TrimSuffix(u.Hostname(), ".")), ".tdameritrade.com")
}

// rules are TD Ameritrade's own words, from its developer site and as users reported them.
func rules() []authcode.Rule {
	const settings = "compare the client id and, to the letter, the callback URL with the app's registration"
	return []authcode.Rule{
		{Op: "login", Code: "invalid_grant", Kind: brokerauth.ErrLoginRequired,
			Hint: "the code is too old, was used before or was decoded twice, or the callback URL is not the registered one: log in " +
				"again; if it stays, " + settings},
		{Code: "invalid_request", Kind: brokerauth.ErrRejected, Hint: "the request was malformed: " + settings},
		{Contains: "access token being passed has expired", Hint: "the access token has ended early: it is renewed"},
		{Status: http.StatusForbidden, Contains: "permission to access this resource", Kind: brokerauth.ErrRejected,
			Hint: "this app or login may not do that: " + settings + ", and log in again with access to the account"},
		{Status: http.StatusTooManyRequests, Hint: "120 requests a minute are allowed, and the count begins anew with each " +
			"minute of the broker's clock: wait for the next"},
		{Contains: "InvalidApiKey", Hint: "the client id is unknown: " + settings},
		{Contains: "A third-party application may be attempting to make unauthorized access",
			Hint: "the login page says so of a client id or callback URL that it does not know: " + settings},
	}
}

// retired is TD Ameritrade itself.
type retired struct{ *authcode.Provider }

func (r retired) Begin(context.Context) (*brokerauth.Login, error) { return nil, r.ended("login") }

func (r retired) Complete(context.Context, *brokerauth.Login, string) (*brokerauth.Token, error) {
	return nil, r.ended("login")
}

func (r retired) Refresh(context.Context, *brokerauth.Token) (*brokerauth.Token, error) {
	return nil, r.ended("refresh")
}

func (r retired) ended(op string) error {
	return &brokerauth.Error{
		Provider: r.Info().Name, Op: op, Kind: brokerauth.ErrRejected,
		Description: "TD Ameritrade's API ended in May 2024, and its logins with it",
		Hint: `move to Schwab: run "brokerauth migrate" and follow docs/porting-td-to-schwab.md; ` +
			"to run old code against an emulated broker, set the base URL",
	}
}

// LogValue shows the settings, the client id as a fingerprint.
func (c Config) LogValue() slog.Value { return c.app().LogValue() }

// Format prints the settings, the client id as a fingerprint, whatever the verb.
func (c Config) Format(f fmt.State, verb rune) { c.app().Format(f, verb) }

// MarshalJSON writes the settings, the client id as a fingerprint.
func (c Config) MarshalJSON() ([]byte, error) { return c.app().MarshalJSON() }
