package brokerauth_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/providers/tastytrade"
	"github.com/brokerauth/brokerauth/storage/memory"
)

// html is what gateways answer with, whatever the status.
const html = `<html><head><title>Access Denied</title></head><body>invalid_grant</body></html>`

// schwabDead is how Schwab puts that a refresh token is dead.
const schwabDead = `{"error":"unsupported_token_type","error_description":"400 Bad Request: \"{\"error_description\":\"Exception while ` +
	`authenticating refresh token\",\"error\":\"refresh_token_authentication_error\"}\""}`

// What each broker's answer to a refresh means to 32 programs that share the login: which kind of error each gets, that the broker
// is asked at most twice, and that it is not asked again by whoever comes in the next hour, cron's programs included, more
// often than backing off allows.
func TestVerdictsAreShared(t *testing.T) {
	login, rejected, passing := brokerauth.ErrLoginRequired, brokerauth.ErrRejected, brokerauth.ErrUnavailable
	type answer struct {
		status int
		body   string
		want   error
	}
	answers := map[string][]answer{
		"schwab": {
			{400, schwabDead, login},
			{400, `{"error":"invalid_client","error_description":"refresh token invalid"}`, login},
			{400, `{"error":"invalid_grant"}`, login},
			{401, `{"error":"invalid_client","error_description":"Unauthorized"}`, rejected},
			{400, `{"error":"unsupported_token_type"}`, passing},
			{400, ``, passing},
			{401, `401 Unauthorized`, passing},
		},
		"tdameritrade": {
			{400, `{"error" : "invalid_grant"}`, login},
			{401, `{"error":"invalid_grant"}`, login},
			{400, `{"error" : "invalid_request"}`, rejected},
			{401, `{"error":"The access token being passed has expired or is invalid."}`, passing},
		},
		"tastytrade": {
			{400, `{"error_code":"invalid_grant","error_description":"Grant revoked"}`, rejected},
			{400, `{"error_code":"invalid_grant","error_description":"Invalid JWT"}`, rejected},
			{400, `{"error_code":"invalid_client","error_description":"Client secret mismatch"}`, rejected},
			{401, `{"error":"invalid_client"}`, rejected},
			{401, html, passing},
		},
	}
	dead := map[string]string{"schwab": schwabDead, "tdameritrade": `{"error":"invalid_grant"}`,
		"tastytrade": `{"error_code":"invalid_grant","error_description":"Grant revoked"}`}
	for broker := range answers {
		// Trouble of the broker's own is passing, whatever the words that come with it.
		for _, status := range []int{408, 429, 500, 502, 503, 504} {
			for _, body := range []string{``, html, dead[broker]} {
				answers[broker] = append(answers[broker], answer{status, body, passing})
			}
		}
		for _, status := range []int{200, 400, 403} {
			answers[broker] = append(answers[broker], answer{status, html, passing})
		}
	}
	for broker, all := range answers {
		for _, a := range all {
			t.Run(fmt.Sprintf("%s/%d/%.60s", broker, a.status, a.body), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b, err := emulator.New(broker, emulator.Config{Latency: 50 * time.Millisecond})
					must(t, err)
					p, store := b.Provider(), new(memory.Store)
					open := func() *brokerauth.Session {
						return &brokerauth.Session{Provider: p, Store: store, Observe: func(brokerauth.Event) {}}
					}
					first := open()
					defer first.Close()
					if _, ok := p.(brokerauth.LoginProvider); ok {
						must(t, first.Login(t.Context(), b.Approve))
					} else {
						mustToken(t, first)
					}
					before := refreshes(b)
					time.Sleep(31 * time.Minute)
					b.Inject(emulator.Fault{Status: a.status, Body: a.body, Times: -1})
					var wg sync.WaitGroup
					for range 32 {
						wg.Go(func() {
							s := open()
							defer s.Close()
							if _, err := s.Token(t.Context()); !errors.Is(err, a.want) || isOther(err, a.want) {
								t.Errorf("%v, want %v", err, a.want)
							}
						})
					}
					wg.Wait()
					if n := refreshes(b) - before; n < 1 || n > 2 {
						t.Errorf("%d requests, want 1 or 2", n)
					}
					for range 20 {
						time.Sleep(3 * time.Minute)
						s := open()
						if _, err := s.Token(t.Context()); !errors.Is(err, a.want) {
							t.Errorf("%v, want %v", err, a.want)
						}
						s.Close()
					}
					most := 2
					if a.want == passing {
						most = 8
					}
					if n := refreshes(b) - before; n > most {
						t.Errorf("%d requests in an hour, want at most %d", n, most)
					}
					// Once the broker is well, a passing trouble is over by itself; a dead login by logging in.
					b.Inject()
					if a.want == login {
						must(t, first.Login(t.Context(), b.Approve))
					}
					time.Sleep(40 * time.Minute)
					s := open()
					defer s.Close()
					if _, err := s.Token(t.Context()); err != nil && a.want != rejected {
						t.Errorf("after its end: %v", err)
					}
				})
			})
		}
	}
}

// isOther reports whether err is of another kind than want, too.
func isOther(err, want error) bool {
	for _, kind := range []error{brokerauth.ErrLoginRequired, brokerauth.ErrRejected, brokerauth.ErrUnavailable} {
		if kind != want && errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// A day of programs that want a token every second, of which there are eight.
func TestBudgetOfADay(t *testing.T) {
	for name, test := range map[string]struct {
		broker string
		fault  *emulator.Fault
		most   int
	}{
		"schwab":            {"schwab", nil, 60},
		"tdameritrade":      {"tdameritrade", nil, 60},
		"tastytrade":        {"tastytrade", nil, 110},
		"a dead login":      {"schwab", &emulator.Fault{Status: 400, Body: schwabDead, Times: -1}, 5},
		"a deleted grant":   {"tastytrade", &emulator.Fault{Status: 400, Body: `{"error_code":"invalid_grant","error_description":"Grant revoked"}`, Times: -1}, 5},
		"429":               {"tastytrade", &emulator.Fault{Status: 429, Times: -1}, 110},
		"429 for two hours": {"schwab", &emulator.Fault{Status: 429, RetryAfter: "7200", Times: -1}, 13},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, err := emulator.New(test.broker, emulator.Config{Latency: 100 * time.Millisecond})
				must(t, err)
				p, store := b.Provider(), new(memory.Store)
				var sessions []*brokerauth.Session
				for range 8 {
					s := &brokerauth.Session{Provider: p, Store: store, Observe: func(brokerauth.Event) {}}
					defer s.Close()
					sessions = append(sessions, s)
				}
				if _, ok := p.(brokerauth.LoginProvider); ok {
					must(t, sessions[0].Login(t.Context(), b.Approve))
				} else {
					mustToken(t, sessions[0])
				}
				before := refreshes(b)
				if test.fault != nil {
					time.Sleep(31 * time.Minute)
					b.Inject(*test.fault)
				}
				// Every second where that is quick, else every minute.
				every, calls := time.Second, 24*60*60
				if test.fault != nil {
					every, calls = 30*time.Second, 24*60*2
				}
				for i := range calls {
					time.Sleep(every)
					if _, err := sessions[i%8].Token(t.Context()); (err != nil) != (test.fault != nil) {
						t.Fatal(err)
					}
				}
				if n := refreshes(b) - before; n > test.most {
					t.Errorf("%d requests in a day, want at most %d", n, test.most)
				} else {
					t.Logf("%d requests in a day", n)
				}
			})
		})
	}
}

// Tastytrade locks out for eight hours who repeats a wrong secret. Mending the secret, or the grant, heals at once, and so does a
// mend that another process was started with.
func TestWrongSecretIsNotRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := emulator.New("tastytrade", emulator.Config{ClientSecret: "emulated.right-secret", Grant: "emulated.grant"})
		must(t, err)
		store := new(memory.Store)
		open := func(secret, grant string) *brokerauth.Session {
			p, err := tastytrade.New(tastytrade.Config{ClientSecret: secret, Grant: grant, Transport: b})
			must(t, err)
			return &brokerauth.Session{Provider: p, Store: store, Observe: func(brokerauth.Event) {}}
		}
		wrong := open("emulated.wrong-secret", "emulated.grant")
		defer wrong.Close()
		for range 8 * 60 {
			another := open("emulated.wrong-secret", "emulated.grant")
			for _, s := range []*brokerauth.Session{wrong, another} {
				if _, err := s.Token(t.Context()); !errors.Is(err, brokerauth.ErrRejected) || !strings.Contains(err.Error(), "secret") {
					t.Fatal(err)
				}
			}
			another.Close()
			time.Sleep(time.Minute)
		}
		if n := len(b.Requests()); n > 2 {
			t.Errorf("a wrong secret was sent %d times in eight hours", n)
		}
		right := open("emulated.right-secret", "emulated.grant")
		defer right.Close()
		mustToken(t, right)
		// A grant that was deleted, and one made anew.
		b.RevokeLogins()
		time.Sleep(16 * time.Minute)
		if _, err := right.Token(t.Context()); !errors.Is(err, brokerauth.ErrRejected) {
			t.Errorf("a deleted grant: %v", err)
		}
		mended := &brokerauth.Session{Provider: b.Provider(), Store: store}
		defer mended.Close()
		mustToken(t, mended)
	})
}

// An API that answers 401 to everything: 100 goroutines of one program cost the broker one refresh, and eight programs
// that call it every second for an hour no more than twice the natural number, each getting the API's own answer.
func TestStormOf401(t *testing.T) {
	for name, programs := range map[string]int{"goroutines": 1, "programs": 8} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := emulator.Schwab(t, emulator.Config{Latency: 50 * time.Millisecond, Rotate: true})
				store := new(memory.Store)
				first, _ := loggedIn(t, b, store)
				defer first.Close()
				time.Sleep(2 * time.Minute)
				b.Inject(emulator.Fault{API: true, Status: 401, Body: `{"errors":[{"status":401,"title":"Unauthorized"}]}`, Times: -1})
				var sessions []*brokerauth.Session
				var told []*events
				for range programs {
					s, e := session(b, store)
					defer s.Close()
					sessions, told = append(sessions, s), append(told, e)
				}
				call := func(s *brokerauth.Session) {
					resp, err := s.Client(&http.Client{Transport: b}).Get("https://api.schwabapi.com/trader/v1/accounts/accountNumbers")
					if err != nil {
						t.Error(err)
						return
					}
					defer resp.Body.Close()
					if resp.StatusCode != http.StatusUnauthorized {
						t.Errorf("HTTP %d, want the API's own 401", resp.StatusCode)
					}
				}
				var wg sync.WaitGroup
				if programs == 1 {
					for range 100 {
						wg.Go(func() { call(sessions[0]) })
					}
					wg.Wait()
					if n := refreshes(b); n != 1 {
						t.Errorf("%d refreshes, want 1", n)
					}
				} else {
					for _, s := range sessions {
						wg.Go(func() {
							for range 60 * 60 {
								call(s)
								time.Sleep(time.Second)
							}
						})
					}
					wg.Wait()
					if n := refreshes(b); n > 4+2 {
						t.Errorf("%d refreshes in an hour, want at most the natural two and twice as many forced", n)
					} else {
						t.Logf("%d refreshes in an hour", n)
					}
				}
				for _, e := range told {
					hinted := false
					for _, event := range e.list {
						own := (*brokerauth.Error)(nil)
						hinted = hinted || event.Kind == "refused" && errors.As(event.Err, &own) && own.Hint != ""
					}
					if !hinted && programs > 1 {
						t.Error("no event says what else to look for")
					}
				}
			})
		})
	}
}

// Observe is told while no request is out and no lock is held: it may ask for all that a Session has. What it is told has
// the time that it took, and the fingerprint of the token.
func TestEventsTellHowLongAndWhich(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Latency: 2 * time.Second})
		store := new(memory.Store)
		out := func() (n int) {
			for _, r := range b.Requests() {
				if r.Status == 0 {
					n++
				}
			}
			return n
		}
		var list []brokerauth.Event
		var s *brokerauth.Session
		s = &brokerauth.Session{Provider: b.Provider(), Store: store, Observe: func(e brokerauth.Event) {
			if n := out(); n > 0 {
				t.Errorf("%s was told while %d requests are out", e.Kind, n)
			}
			list = append(list, e)
			_, err := s.Status(context.Background()) // hangs if a lock is held, which ends the test
			must(t, err)
		}}
		must(t, s.Login(t.Context(), b.Approve))
		time.Sleep(31 * time.Minute)
		mustToken(t, s)
		other, _ := session(b, store)
		_, err := other.Refresh(t.Context(), nil)
		must(t, err)
		must(t, other.Close())
		time.Sleep(27 * time.Minute)
		b.RevokeLogins()
		if _, err := s.Refresh(t.Context(), nil); err == nil {
			t.Error("a dead login was renewed")
		}
		must(t, s.Logout(t.Context()))
		must(t, s.Close())
		var kinds []string
		for _, e := range list {
			kinds = append(kinds, e.Kind)
			if (e.Kind == "login" || e.Kind == "refreshed" || e.Kind == "failed") && (e.Took < 2*time.Second || e.Took > 3*time.Second) {
				t.Errorf("%s took %s, want 2 s", e.Kind, e.Took)
			}
			if (e.Kind == "login" || e.Kind == "refreshed") && len(e.Token) != 8 || (e.Kind == "failed") != (e.Err != nil) || e.Time.IsZero() || e.Key.Provider != "schwab" {
				t.Errorf("%+v", e)
			}
		}
		if want := "login refreshed failed logout"; strings.Join(kinds, " ") != want {
			t.Errorf("events %v, want %s", kinds, want)
		}
	})
}
