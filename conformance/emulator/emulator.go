// Package emulator has pretend brokers, faithful on the wire, for testing without an account, money or a network.
//
// A [Broker] is an [http.RoundTripper] first: a provider wired to it keeps the broker's real addresses, needs no port
// and no certificate, and works inside a testing/synctest bubble. It is an [http.Handler] second, to be served over
// TCP. Login page, codes, tokens, lifetimes and error bodies are the broker's own; whatever it issues begins with
// "emulated.", so that nobody takes it for the real thing.
//
//	broker := emulator.Schwab(t) // or TDAmeritrade, or Tastytrade
//	session := &brokerauth.Session{Provider: broker.Provider(), Store: new(memory.Store)}
//	err := session.Login(ctx, broker.Approve)
//	api := session.Client(&http.Client{Transport: broker}) // session.Client(nil) would call the real broker
//
// [OAuth2] emulates any other broker with a login page, as far as RFC 6749 goes.
//
// The example "Relogin" tests a program's way back from a login that died.
//
// At Tastytrade Provider has a personal grant and needs no login; LoginProvider is a partner's app, which does.
//
// # Time
//
// In testing/synctest time.Sleep moves the clocks of broker and program together, and a week takes no time:
//
//	func TestWeek(t *testing.T) {
//		synctest.Test(t, func(t *testing.T) {
//			broker := emulator.Schwab(t)
//			session := &brokerauth.Session{Provider: broker.Provider(), Store: new(memory.Store)}
//			defer session.Close()
//			if err := session.Login(t.Context(), broker.Approve); err != nil {
//				t.Fatal(err)
//			}
//			api := session.Client(&http.Client{Transport: broker})
//
//			time.Sleep(31 * time.Minute) // the access token's life is over
//			resp, err := api.Get("https://api.schwabapi.com/trader/v1/accounts/accountNumbers")
//			if err != nil {
//				t.Fatal(err)
//			}
//			defer resp.Body.Close()
//			refreshes := 0
//			for _, r := range broker.Requests() {
//				if r.GrantType == "refresh_token" {
//					refreshes++
//				}
//			}
//			if resp.StatusCode != http.StatusOK || refreshes != 1 {
//				t.Errorf("an expired token: %s after %d refreshes", resp.Status, refreshes)
//			}
//
//			time.Sleep(7 * 24 * time.Hour) // and now the login's
//			if _, err := session.Token(t.Context()); !errors.Is(err, brokerauth.ErrLoginRequired) {
//				t.Errorf("after the seventh day: %v", err)
//			}
//		})
//	}
//
// Where that cannot be, as over TCP, have short lives in Config, and wait.
//
// # Faults
//
// [Broker.Advance] moves the broker's clock and not the program's, [Broker.Inject] makes calls go wrong,
// [Broker.RevokeLogins] ends logins before their time, [Broker.Deny] is a user who declines, and [Broker.Handle] adds a
// program's own API replies.
package emulator

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/brokerauth/brokerauth"
)

// Config says how an emulated broker behaves. The zero value is the broker's own behaviour, for any client.
type Config struct {
	ClientID, ClientSecret string        // the one registered app; empty: any is accepted
	Grant                  string        // the personal grant's refresh token, at Tastytrade; empty: one is made up
	AutoApprove            bool          // the login page consents by itself, at once
	AccessTTL              time.Duration // life of an access token, in whole seconds; 0: the broker's own
	LoginTTL               time.Duration // life of a login, from consent; 0: the broker's own
	Rotate                 bool          // a refresh issues a new refresh token; a second use of an old one ends the login
	Latency                time.Duration // of every token call, before the broker decides
	Log                    io.Writer     // gets each request when it is answered: a Request in JSON and a newline
}

// Broker is an emulated broker. Its methods are safe for concurrent use. A token call takes effect as a whole at the
// moment when the broker decides it, after the latency: a client that leaves earlier has spent nothing.
//
// A Broker remembers each request and secret for as long as it lives.
type Broker struct {
	config   Config
	rules    rules
	provider brokerauth.LoginProvider
	handlers *http.ServeMux // the caller's own
	personal *grant         // the personal grant; nil: this broker has none

	logging sync.Mutex

	mu       sync.Mutex
	offset   time.Duration
	codes    map[string]*code
	logins   []*login
	renewals map[string]*login // by refresh token, spent ones too
	accesses map[string]access
	faults   []Fault
	requests []Request
	secrets  []string
}

// New returns an emulated broker. It knows "schwab", "tdameritrade", "tastytrade" and "tastytrade-sandbox".
func New(broker string, c Config) (*Broker, error) {
	var own rules
	switch broker {
	case "schwab":
		own = schwabRules()
	case "tdameritrade":
		own = tdRules()
	case "tastytrade", "tastytrade-sandbox":
		own = tastyRules(broker)
	default:
		return nil, fmt.Errorf("emulator: no broker is called %q; there are schwab, tdameritrade, tastytrade and "+
			"tastytrade-sandbox", broker)
	}
	return newBroker(own, c)
}

func newBroker(own rules, c Config) (*Broker, error) {
	if c.Grant != "" && own.grant == nil {
		return nil, fmt.Errorf("emulator: %s has no personal grants", own.name)
	}
	if c.AccessTTL < 0 || c.AccessTTL%time.Second != 0 {
		return nil, fmt.Errorf("emulator: an access token cannot live %s: choose whole seconds", c.AccessTTL)
	}
	if c.LoginTTL < 0 || c.Latency < 0 {
		return nil, fmt.Errorf("emulator: LoginTTL and Latency cannot be negative")
	}
	b := &Broker{
		config:   c,
		rules:    own,
		handlers: http.NewServeMux(),
		codes:    make(map[string]*code),
		renewals: make(map[string]*login),
		accesses: make(map[string]access),
		secrets:  []string{cmp.Or(c.ClientSecret, anySecret)},
	}
	b.rules.accessTTL = cmp.Or(c.AccessTTL, b.rules.accessTTL)
	b.rules.loginTTL = cmp.Or(c.LoginTTL, b.rules.loginTTL)
	p, err := b.rules.provider(b)
	if err != nil {
		return nil, fmt.Errorf("emulator: %w", err)
	}
	b.provider = p
	if own.grant != nil {
		b.personal = b.newGrant(c.Grant)
		if _, err := b.rules.grant(b, b.personal.refresh); err != nil {
			return nil, fmt.Errorf("emulator: %w", err)
		}
	}
	return b, nil
}

// TB is the part of testing.TB that this package needs, so that a program which serves a Broker links no testing.
type TB interface {
	Helper()
	Fatal(args ...any)
}

// Schwab returns an emulated Schwab for a test, with at most one Config.
func Schwab(t TB, c ...Config) *Broker {
	t.Helper()
	return forTest(t, "schwab", c)
}

// TDAmeritrade returns an emulated TD Ameritrade for a test, with at most one Config. The real one is no more, so its
// provider has an address of its own: programs build theirs from Info().BaseURL.
func TDAmeritrade(t TB, c ...Config) *Broker {
	t.Helper()
	return forTest(t, "tdameritrade", c)
}

// Tastytrade returns an emulated tastytrade for a test, with at most one Config. It is the live one; New has the sandbox.
func Tastytrade(t TB, c ...Config) *Broker {
	t.Helper()
	return forTest(t, "tastytrade", c)
}

func forTest(t TB, broker string, c []Config) *Broker {
	t.Helper()
	b, err := New(broker, only(t, c))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// only returns the one Config of a test, or the zero value.
func only(t TB, c []Config) (config Config) {
	t.Helper()
	if len(c) > 1 {
		t.Fatal("emulator: more than one Config")
	}
	if len(c) > 0 {
		config = c[0]
	}
	return config
}

// Provider returns the broker's provider, ready and wired to b. Its API calls need b as their transport, too:
//
//	session.Client(&http.Client{Transport: b})
//
// At Tastytrade it is that of a personal grant: Config.Grant, or after RevokeLogins one made anew, as a person would on
// the website and put into the settings.
func (b *Broker) Provider() brokerauth.Provider {
	if b.personal == nil {
		return b.provider
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.personal.login.refresh == "" {
		b.personal = b.newGrant("")
	}
	p, _ := b.rules.grant(b, b.personal.refresh) // New has seen it succeed
	return p
}

// LoginProvider returns the provider with a login page, ready and wired to b. At Tastytrade it is a partner's; elsewhere
// it is Provider's.
func (b *Broker) LoginProvider() brokerauth.LoginProvider { return b.provider }

// Approve is a [brokerauth.Flow]: a user who opens the login page and consents.
func (b *Broker) Approve(ctx context.Context, login *brokerauth.Login,
	finish func(ctx context.Context, callback string) error) error {
	return b.visit(ctx, login, "approve", finish)
}

// Deny is a [brokerauth.Flow]: a user who opens the login page and declines.
func (b *Broker) Deny(ctx context.Context, login *brokerauth.Login,
	finish func(ctx context.Context, callback string) error) error {
	return b.visit(ctx, login, "deny", finish)
}

// Handle adds replies to API calls, in the place of b's own. They are asked only with a valid access token, and sent
// when h returns. The pattern is one of [http.ServeMux], and panics as there.
func (b *Broker) Handle(pattern string, h http.Handler) { b.handlers.Handle(pattern, h) }

// Advance moves the broker's clock, which else runs like the program's. By an access token's life it has the API refuse a
// token that its holder thinks fresh, as brokers do now and then before its time.
//
// It does not move the program's clock: to a Session the token is as young as before, and what ends then ended early. To
// let a token or a login grow old, use testing/synctest and time.Sleep, or a short AccessTTL and a sleep.
func (b *Broker) Advance(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.offset += d
}

// RevokeLogins kills every refresh token, as a change of password does, or at Tastytrade a new secret. Access tokens live
// on.
func (b *Broker) RevokeLogins() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.logins {
		l.refresh = ""
	}
}

// Requests returns the requests so far in the order of their arrival.
func (b *Broker) Requests() []Request {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.requests)
}

// Secrets returns all that must never show up in a log or an error: the app's secret and each code, token and grant.
func (b *Broker) Secrets() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.secrets)
}
