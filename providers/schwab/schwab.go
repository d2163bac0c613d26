// Package schwab logs programs in to Charles Schwab's Trader API.
//
// A login lasts seven days from the moment the user consents, and nothing extends it; an access token lasts 30 minutes
// and is renewed without anybody. Schwab's portal text "Schwab & API Security" has both. Whether Schwab ever replaces the
// refresh token is disputed, so the one that came last is kept, and only one renewal runs at a time: see
// [brokerauth.Session].
//
// Register the app at https://developer.schwab.com and wait until its status is "Ready For Use", which takes days. Log in
// with the brokerage account's name and password, not the portal's. One login covers all accounts that the user links at
// consent. A new login, on any machine, ends the one before it.
package schwab

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/internal/tdaddress"
	"github.com/brokerauth/brokerauth/providers/authcode"
)

// Config is an app that is registered in Schwab's developer portal. It prints its secrets as fingerprints.
type Config struct {
	AppKey    string
	AppSecret string

	// CallbackURL is one of the app's callback URLs, to the letter: Schwab compares case, port, path and the slash at the
	// end, and answers a difference by a page that says "Access Denied" or by its login page over and over. It must be
	// https; on a machine of one's own the host is 127.0.0.1 with a port, since localhost is refused and no port means
	// 443, which needs privileges: "https://127.0.0.1:8182". So says the portal text "Schwab & API Security"; the rest
	// was seen in use. It is never rewritten: upper case in scheme or host is wrong almost always, but right where it was
	// registered so, and to change what is registered takes days of approval.
	CallbackURL string

	// BaseURL replaces https://api.schwabapi.com, for a proxy or an emulated Schwab. https, or http to loopback.
	BaseURL string
	// Transport makes the token call; nil: one of its own.
	Transport http.RoundTripper
}

// New returns Schwab for the app that config describes, or an error that names everything wrong with config.
// Its login page and token endpoint are those of the portal text "Schwab & API Security".
func New(config Config) (brokerauth.LoginProvider, error) {
	var faults []error
	if strings.Contains(config.CallbackURL, ",") {
		faults = append(faults, errors.New("schwab: the callback URL holds a comma: the portal takes several callback URLs, "+
			"use one of them here"))
		config.CallbackURL = "https://127.0.0.1" // to learn of all other faults, too
	}
	for _, fault := range callbackFaults(config.CallbackURL) {
		faults = append(faults, errors.New("schwab: the callback URL "+fault))
	}
	p, err := authcode.New(config.app())
	if err != nil {
		faults = append(faults, err)
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return p, nil
}

func (c Config) app() authcode.Config {
	return authcode.Config{
		Info: brokerauth.Info{
			Name:    "schwab",
			BaseURL: "https://api.schwabapi.com",
			Origins: []string{"https://api.schwabapi.com"},
			Margin:  5 * time.Minute,
		},
		AuthURL:  "https://api.schwabapi.com/v1/oauth/authorize",
		TokenURL: "https://api.schwabapi.com/v1/oauth/token",
		// HTTP Basic: portal text "Schwab & API Security".
		AuthStyle: oauth2.AuthStyleInHeader,
		// Not documented, but a client in wide use sends it and logs in.
		PKCE:       true,
		AccessLife: 30 * time.Minute,   // portal text "Schwab & API Security"
		LoginLife:  7 * 24 * time.Hour, // likewise; there is no refresh_token_expires_in
		BareCode:   bareCode,
		EarlyEnd:   "another program or machine logged in with this app key, or the password changed",
		Rules:      rules(),
		Elsewhere:  fromTD,

		ClientID:     c.AppKey,
		ClientSecret: c.AppSecret,
		RedirectURL:  c.CallbackURL,
		BaseURL:      c.BaseURL,
		Transport:    c.Transport,
	}
}

// callbackFaults says all that Schwab refuses in a callback beyond what any broker does.
func callbackFaults(callback string) (faults []string) {
	if len(callback) > 255 {
		faults = append(faults, fmt.Sprintf("is %d characters long: the portal takes 255 at most", len(callback)))
	}
	u, err := url.Parse(callback)
	if err != nil || u.Host == "" {
		return faults // any broker refuses that
	}
	if u.Scheme != "https" {
		faults = append(faults, "is not https, and Schwab takes nothing else")
	}
	if host := strings.ToLower(u.Hostname()); host == "localhost" || strings.HasSuffix(host, ".localhost") {
		faults = append(faults, "names localhost, which Schwab refuses: register and use 127.0.0.1 instead")
	}
	return faults
}

// bareCode reports whether code has the form of all of Schwab's codes that users have shown: "C0.….…@".
func bareCode(code string) bool { return strings.Contains(code, ".") && strings.HasSuffix(code, "@") }

// rules are Schwab's own words. A dead refresh token has three spellings: the one with a JSON object inside a string is
// what users report, "refresh token invalid" is what schwab-py's documentation shows, and invalid_grant is RFC 6749's.
func rules() []authcode.Rule {
	const (
		notReady = "see at developer.schwab.com whether the app's status is \"Ready For Use\", which takes days after every " +
			"change, and log in with the brokerage account, not the portal's"
		keys = "compare app key and app secret with developer.schwab.com, and see there whether the app's status is " +
			"\"Ready For Use\""
		passing = "Schwab's servers have trouble: try again later; if it stays, " + notReady
	)
	return []authcode.Rule{
		// No hint: the login's clocks give it.
		{Op: "refresh", Contains: "refresh_token_authentication_error", Kind: brokerauth.ErrLoginRequired},
		{Op: "refresh", Code: "invalid_client", Contains: "refresh token invalid", Kind: brokerauth.ErrLoginRequired},
		{Op: "refresh", Code: "invalid_client", Contains: "refresh_token_invalid", Kind: brokerauth.ErrLoginRequired},

		{Op: "login", Contains: "AuthorizationCode has expired", Kind: brokerauth.ErrLoginRequired,
			Hint: "Schwab's codes live about 30 seconds: log in again, and hand over the address at once"},
		{Op: "login", Contains: "Invalid authorization code", Kind: brokerauth.ErrLoginRequired,
			Hint: "the code is damaged: log in again, and copy the whole address"},
		{Op: "login", Contains: "Bad authorization code", Kind: brokerauth.ErrLoginRequired,
			Hint: "the code was used before or is older than its 30 seconds: log in again, and hand over the address at once"},

		{Contains: "assertion_rejected", Kind: brokerauth.ErrRejected, Hint: notReady},
		{Contains: "session rejected", Kind: brokerauth.ErrRejected, Hint: notReady},
		{Code: "4001", Kind: brokerauth.ErrRejected, Hint: notReady},
		{Code: "invalid_client", Kind: brokerauth.ErrRejected, Hint: keys},
		{Code: "unauthorized_client", Kind: brokerauth.ErrRejected, Hint: keys},

		// Pages. None is final: the gateway has turned away apps that were ready, for a day.
		{Contains: "Access Denied", Hint: "Schwab's gateway turned the request away, as it does for some hours now and then: " +
			"try again later; if it stays, compare the callback URL with developer.schwab.com to the letter, and " + notReady},
		{Contains: "We are unable to complete your request", Hint: passing},
		{Contains: "Whitelabel Error Page", Hint: passing},

		// What the API answers stands here, too: a gateway that is not told apart may answer so for the token endpoint.
		{Contains: "Client not authorized", Hint: "see at developer.schwab.com whether the app has the product " +
			"\"Trader API - Individual\"; try again later"},
		{Contains: "access token being passed has expired", Hint: "the access token has ended early: it is renewed"},
		{Contains: "Missing header", Hint: "a proxy may have removed the Authorization header: go around it"},
		{Contains: "Body buffer overflow", Hint: "the answer was too large for Schwab's gateway: ask for less"},
		{Status: http.StatusUnauthorized, Hint: keys},
	}
}

// fromTD points programs made for TD Ameritrade to what they look for.
func fromTD(address string) string {
	switch at, ok := tdaddress.Schwab(address); {
	case !ok:
		return ""
	case at == "":
		return "TD Ameritrade ended in May 2024, and Schwab has nothing like this"
	default:
		return "TD Ameritrade ended in May 2024: ask Schwab at " + at
	}
}

// LogValue shows the settings, secrets as fingerprints.
func (c Config) LogValue() slog.Value { return c.app().LogValue() }

// Format prints the settings, secrets as fingerprints, whatever the verb.
func (c Config) Format(f fmt.State, verb rune) { c.app().Format(f, verb) }

// MarshalJSON writes the settings, secrets as fingerprints.
func (c Config) MarshalJSON() ([]byte, error) { return c.app().MarshalJSON() }
