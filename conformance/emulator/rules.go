package emulator

import (
	"net/http"
	"time"

	"github.com/brokerauth/brokerauth"
)

// What a Broker's own providers are registered as where any client is accepted; as long as Schwab's.
const (
	anyID     = "emulatedAppKey000000000000000000"
	anySecret = "emulated.secret0"
)

// rules are what is one broker's own.
type rules struct {
	name                string
	hosts               []string // where RoundTrip serves it
	pagePath, tokenPath string
	apis                []string // path prefixes of calls that want an access token
	codeTTL             time.Duration
	accessTTL, loginTTL time.Duration // a loginTTL of 0: for ever
	scope               string        // of a login that asks for none
	pkce                bool          // a challenge counts; else it is ignored
	oneLogin            bool          // a new login of an app ends the one before
	jsonForms           bool          // a token call may come as JSON

	newCode    func() string
	newAccess  func(l *login, now time.Time) string
	newRefresh func(l *login, now time.Time) string
	newID      func(l *login, now time.Time) string // empty: none

	provider     func(b *Broker) (brokerauth.LoginProvider, error)
	grant        func(b *Broker, refresh string) (brokerauth.Provider, error) // nil: the broker has no personal grants
	clientID     func(id string) string                                       // the app's id in what the login page was sent
	refusePage   func(b *Broker, q asked) *answer                             // nil: the page is shown
	callback     func(code string) (query string)                             // what takes a code to the app
	refuse       func(r *http.Request) *answer                                // any request but the page's; nil: none
	token        func(b *Broker, r *http.Request) *answer                     // r's form is parsed
	unauthorized func(header string) *answer                                  // to an API call with such an Authorization header
	api          func(b *Broker, r *http.Request, scope string) *answer       // nil: no such path
	notFound     func(path string) *answer
	tooBig       func() *answer
	gateway      func(status int) *answer // from what stands before the broker; the body is empty where none is known
}

// asked is what the login page was asked for.
type asked struct{ client, redirect, scope string }
