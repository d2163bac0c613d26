package emulator

import (
	"net/http"
	"time"

	"github.com/brokerauth/brokerauth"
)

// What a Broker's own provider is registered as where any client is accepted; as long as Schwab's.
const (
	anyID     = "emulatedAppKey000000000000000000"
	anySecret = "emulatedSecret00"
)

// rules are what is one broker's own.
type rules struct {
	name                string
	hosts               []string // where RoundTrip serves it
	pagePath, tokenPath string
	apis                []string // path prefixes of calls that want an access token
	codeTTL             time.Duration
	accessTTL, loginTTL time.Duration

	newCode, newAccess, newRefresh func() string
	newID                          func(client string, now time.Time) string

	provider     func(b *Broker) (brokerauth.LoginProvider, error)
	refusePage   func(b *Broker, client, redirect string) *answer // nil: the page is shown
	callback     func(code string) (query string)                 // what takes a code to the app
	token        func(b *Broker, r *http.Request) *answer         // r's form is parsed
	unauthorized func(header string) *answer                      // to an API call with such an Authorization header
	api          func(r *http.Request) *answer                    // nil: no such path
	notFound     func(path string) *answer
	tooBig       func() *answer
	gateway      func(status int) *answer // from what stands before the broker; the body is empty where none is known
}
