package brokerauth_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/storage/memory"
)

// refreshes counts the token calls that asked for a refresh.
func refreshes(b *emulator.Broker) int { return grants(b, "refresh_token") }

func grants(b *emulator.Broker, grantType string) (n int) {
	for _, r := range b.Requests() {
		if r.GrantType == grantType {
			n++
		}
	}
	return n
}

// loggedIn returns a Session that has just logged in, and keeps its events.
func loggedIn(t *testing.T, b *emulator.Broker, store brokerauth.Store) (*brokerauth.Session, *events) {
	t.Helper()
	s, e := session(b, store)
	if err := s.Login(t.Context(), b.Approve); err != nil {
		t.Fatal(err)
	}
	return s, e
}

func session(b *emulator.Broker, store brokerauth.Store) (*brokerauth.Session, *events) {
	e := &events{}
	return &brokerauth.Session{Provider: b.Provider(), Store: store, Observe: e.add}, e
}

type events struct {
	mu   sync.Mutex
	list []brokerauth.Event
}

func (e *events) add(event brokerauth.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, event)
}

func (e *events) kinds() (kinds []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, event := range e.list {
		kinds = append(kinds, event.Kind)
	}
	return kinds
}

func (e *events) has(kind string) bool { return slices.Contains(e.kinds(), kind) }

func mustToken(t testing.TB, s *brokerauth.Session) *brokerauth.Token {
	t.Helper()
	token, err := s.Token(t.Context())
	if err != nil {
		t.Fatalf("Token: %v", err)
	}
	return token
}

// honoured reports whether the broker's API takes the token.
func honoured(t *testing.T, b *emulator.Broker, token *brokerauth.Token) bool {
	t.Helper()
	req, _ := http.NewRequest("GET", "https://api.schwabapi.com/trader/v1/accounts/accountNumbers", nil)
	req.Header.Set("Authorization", "Bearer "+token.AccessToken)
	resp, err := b.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func TestTokenIsRenewedOnceItNearsItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		s, e := loggedIn(t, b, new(memory.Store))
		defer s.Close()
		first := mustToken(t, s)
		time.Sleep(24 * time.Minute)
		if mustToken(t, s) != first || refreshes(b) != 0 {
			t.Fatal("a token with 6 of its 30 minutes left was renewed")
		}
		time.Sleep(2 * time.Minute)
		second := mustToken(t, s)
		if second.AccessToken == first.AccessToken || refreshes(b) != 1 {
			t.Fatalf("a token with 4 of its 30 minutes left was not renewed: %d refreshes", refreshes(b))
		}
		if !second.LoggedInAt.Equal(first.LoggedInAt) || !second.LoginBy.Equal(first.LoginBy) {
			t.Error("a refresh moved the login's clock")
		}
		if !slices.Equal(e.kinds(), []string{"login", "refreshed"}) {
			t.Errorf("events: %v", e.kinds())
		}
	})
}

func TestValidTokenIsServedDuringARefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		s, _ := loggedIn(t, b, new(memory.Store))
		defer s.Close()
		old := mustToken(t, s)
		b.Inject(emulator.Fault{Delay: 5 * time.Second})
		time.Sleep(26 * time.Minute)
		renewing := make(chan *brokerauth.Token)
		go func() { renewing <- mustToken(t, s) }()
		synctest.Wait()
		began := time.Now()
		if mustToken(t, s) != old || time.Since(began) != 0 {
			t.Errorf("a valid token was not served at once during a refresh: %s", time.Since(began))
		}
		if renewed := <-renewing; renewed.AccessToken == old.AccessToken {
			t.Error("the caller that renews was given the old token")
		}
	})
}

func TestPassingFailureIsInvisibleWhileTheTokenIsValid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		s, e := loggedIn(t, b, new(memory.Store))
		defer s.Close()
		b.Inject(emulator.Fault{Status: 503, Times: -1})
		old := mustToken(t, s)
		time.Sleep(26 * time.Minute)
		for range 100 {
			if mustToken(t, s) != old {
				t.Fatal("a new token came from a broker that was down")
			}
		}
		if refreshes(b) != 1 || !e.has("failed") {
			t.Errorf("%d refreshes and events %v, want 1 and a failure", refreshes(b), e.kinds())
		}
		st, err := s.Status(t.Context())
		if err != nil || !errors.Is(st.LastError, brokerauth.ErrUnavailable) {
			t.Errorf("Status: %v, %v", st.LastError, err)
		}
		time.Sleep(5 * time.Minute)
		_, err = s.Token(t.Context())
		if !errors.Is(err, brokerauth.ErrUnavailable) || errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Errorf("an expired token at a broker that is down: %v", err)
		}
		b.Inject()
		time.Sleep(30 * time.Minute)
		if mustToken(t, s) == old {
			t.Error("the old token was served")
		}
	})
}

func TestManyHandlesManyGoroutinesOneRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Latency: 50 * time.Millisecond, Rotate: true})
		store := new(memory.Store)
		first, _ := loggedIn(t, b, store)
		defer first.Close()
		time.Sleep(31 * time.Minute)
		handles := make([]*brokerauth.Session, 100)
		for i := range handles {
			handles[i] = &brokerauth.Session{Provider: b.Provider(), Store: store}
			defer handles[i].Close()
		}
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() {
				if _, err := handles[i%len(handles)].Token(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := refreshes(b); n != 1 {
			t.Errorf("%d refreshes, want 1", n)
		}
	})
}

func TestRefreshOutlivesTheCallerThatBeganIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Latency: 5 * time.Second})
		s, _ := loggedIn(t, b, new(memory.Store))
		defer s.Close()
		time.Sleep(31 * time.Minute)
		ctx, cancel := context.WithCancel(t.Context())
		failed := make(chan error)
		go func() {
			_, err := s.Token(ctx)
			failed <- err
		}()
		time.Sleep(time.Second)
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("the cancelled caller got %v", err)
		}
		if mustToken(t, s); refreshes(b) != 1 {
			t.Errorf("%d refreshes, want 1", refreshes(b))
		}
	})
}

func TestCloseWaitsForARefreshToBeSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Latency: 5 * time.Second, Rotate: true})
		store := new(memory.Store)
		s, _ := loggedIn(t, b, store)
		time.Sleep(31 * time.Minute)
		ctx, cancel := context.WithCancel(t.Context())
		go s.Token(ctx)
		time.Sleep(time.Second)
		cancel()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("closed again: %v", err)
		}
		if _, err := s.Token(t.Context()); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("Token after Close: %v", err)
		}
		other, _ := session(b, store)
		defer other.Close()
		if mustToken(t, other); refreshes(b) != 1 {
			t.Errorf("the token was not saved before Close returned: %d refreshes", refreshes(b))
		}
	})
}

func TestSevenDays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		store := new(memory.Store)
		s, _ := loggedIn(t, b, store)
		defer s.Close()
		for range 6 * 24 {
			time.Sleep(time.Hour)
			mustToken(t, s)
		}
		time.Sleep(25 * time.Hour)
		_, err := s.Token(t.Context())
		if !errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Fatalf("after the seven days: %v", err)
		}
		over := err.Error()
		asked := refreshes(b)
		for range 100 {
			if _, err := s.Token(t.Context()); !errors.Is(err, brokerauth.ErrLoginRequired) {
				t.Fatal(err)
			}
		}
		another, _ := session(b, store)
		defer another.Close()
		if _, err := another.Token(t.Context()); !errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Errorf("another process: %v", err)
		}
		if n := refreshes(b) - asked; n != 0 {
			t.Errorf("the broker was asked %d times about a login that it had refused", n)
		}
		// A login by anybody heals everybody.
		if err := another.Login(t.Context(), b.Approve); err != nil {
			t.Fatal(err)
		}
		mustToken(t, s)

		// A login that the broker ends early reads differently.
		time.Sleep(76 * time.Hour)
		b.RevokeLogins()
		_, err = s.Token(t.Context())
		if !errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Fatalf("after the login was ended: %v", err)
		}
		var e1 *brokerauth.Error
		if !errors.As(err, &e1) || e1.Hint == "" || strings.Contains(over, e1.Hint) {
			t.Errorf("a login over after its days, and one that ended early, read the same:\n%s\n%v", over, err)
		}
	})
}

func TestFailuresAreNotRepeatedForLong(t *testing.T) {
	for name, fault := range map[string]emulator.Fault{
		"429":  {Status: 429, Times: -1},
		"503":  {Status: 503, Times: -1},
		"hang": {Hang: true, Times: -1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := emulator.Schwab(t)
				store := new(memory.Store)
				s, _ := loggedIn(t, b, store)
				defer s.Close()
				time.Sleep(31 * time.Minute)
				b.Inject(fault)
				began, firstHour := time.Now(), 0
				for time.Since(began) < 24*time.Hour {
					// Every call is another process's, so only the record remembers.
					one, _ := session(b, store)
					if _, err := one.Token(t.Context()); !errors.Is(err, brokerauth.ErrUnavailable) {
						t.Fatal(err)
					}
					one.Close()
					time.Sleep(10 * time.Second)
					if time.Since(began) < time.Hour {
						firstHour = refreshes(b)
					}
				}
				if n := refreshes(b); firstHour > 8 || n > 60 {
					t.Errorf("%d requests in the first hour and %d in the day, want at most 8 and 60", firstHour, n)
				}
			})
		})
	}
}

// Where the broker hangs everybody is told so, by a clock that no busy machine slows, within the token call's 20 seconds and
// one more.
func TestHangingBrokerKeepsNobodyLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		store := new(memory.Store)
		first, _ := loggedIn(t, b, store)
		defer first.Close()
		time.Sleep(31 * time.Minute)
		b.Inject(emulator.Fault{Hang: true, Times: -1})
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() {
				s, _ := session(b, store)
				defer s.Close()
				began := time.Now()
				_, err := s.Token(t.Context())
				if took := time.Since(began); !errors.Is(err, brokerauth.ErrUnavailable) || took > 21*time.Second {
					t.Errorf("%v after %s", err, took)
				}
			})
		}
		wg.Wait()
		if n := refreshes(b); n != 1 {
			t.Errorf("%d requests, want 1", n)
		}
	})
}

func TestRetryAfterIsHonoured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		s, _ := loggedIn(t, b, new(memory.Store))
		defer s.Close()
		time.Sleep(31 * time.Minute)
		b.Inject(emulator.Fault{Status: 429, RetryAfter: "120"})
		_, err := s.Token(t.Context())
		var e *brokerauth.Error
		if !errors.As(err, &e) || e.RetryAfter < 119*time.Second {
			t.Fatalf("%v", err)
		}
		time.Sleep(119 * time.Second)
		if _, err := s.Token(t.Context()); err == nil || refreshes(b) != 1 {
			t.Errorf("asked again before Retry-After: %d requests, %v", refreshes(b), err)
		}
		time.Sleep(2 * time.Second)
		mustToken(t, s)
	})
}

func TestLostAnswerIsNotCalledRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Rotate: true})
		s, _ := loggedIn(t, b, new(memory.Store))
		defer s.Close()
		time.Sleep(31 * time.Minute)
		b.Inject(emulator.Fault{Late: true, Drop: true})
		sent := time.Now().Local().Format(time.TimeOnly)
		if _, err := s.Token(t.Context()); !errors.Is(err, brokerauth.ErrUnavailable) {
			t.Fatalf("an answer that never came: %v", err)
		}
		time.Sleep(time.Minute)
		_, err := s.Token(t.Context())
		if !errors.Is(err, brokerauth.ErrLoginRequired) || !strings.Contains(err.Error(), "may have been rotated") ||
			!strings.Contains(err.Error(), sent) {
			t.Errorf("a refresh token that was rotated by an answer lost at %s: %v", sent, err)
		}
	})
}

// flaky is a store that fails when told to. The real ones are made to fail by full disks and read-only folders in
// their own tests; this one fails at a chosen step.
type flaky struct {
	memory.Store
	fail   atomic.Pointer[func(old, new []byte) error] // before the swap
	unsure atomic.Bool                                 // swaps, and then reports an error
}

var errDisk = errors.New("disk on fire")

func (s *flaky) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	if f := s.fail.Load(); f != nil && key.Provider == "schwab" {
		if err := (*f)(old, new); err != nil {
			return false, err
		}
	}
	swapped, err := s.Store.CompareAndSwap(ctx, key, old, new)
	if s.unsure.Load() && key.Provider == "schwab" && !bytes.Equal(old, new) {
		return false, errDisk
	}
	return swapped, err
}

func (s *flaky) failWhen(f func(old, new []byte) error) { s.fail.Store(&f) }

func claimed(record []byte) bool { return bytes.Contains(record, []byte(`"claim"`)) }

func TestNothingIsAskedThatCannotBeSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Rotate: true})
		store := &flaky{}
		s, _ := loggedIn(t, b, store)
		defer s.Close()
		time.Sleep(31 * time.Minute)
		store.failWhen(func(_, new []byte) error { return errDisk })
		if _, err := s.Token(t.Context()); !errors.Is(err, errDisk) || refreshes(b) != 0 {
			t.Errorf("%d requests, %v: want none, and the store's error", refreshes(b), err)
		}
		store.failWhen(func(_, _ []byte) error { return nil })
		mustToken(t, s)
	})
}

func TestSaveThatFailsIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Rotate: true})
		store := &flaky{}
		s, e := loggedIn(t, b, store)
		time.Sleep(31 * time.Minute)
		store.failWhen(func(old, _ []byte) error {
			if claimed(old) {
				return errDisk
			}
			return nil
		})
		token := mustToken(t, s)
		st, err := s.Status(t.Context())
		if err != nil || !errors.Is(st.SaveError, errDisk) || !e.has("unsaved") {
			t.Fatalf("SaveError %v, err %v, events %v", st.SaveError, err, e.kinds())
		}
		time.Sleep(time.Minute)
		if got := mustToken(t, s); got.AccessToken != token.AccessToken {
			t.Error("the unsaved token is not in use")
		}
		store.failWhen(func(_, _ []byte) error { return nil })
		time.Sleep(time.Minute)
		mustToken(t, s)
		if st, _ := s.Status(t.Context()); st.SaveError != nil || !e.has("saved") {
			t.Errorf("SaveError %v, events %v", st.SaveError, e.kinds())
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		other, _ := session(b, store)
		defer other.Close()
		if got := mustToken(t, other); got.AccessToken != token.AccessToken || refreshes(b) != 1 {
			t.Errorf("the token was not saved: %d refreshes", refreshes(b))
		}
	})
}

func TestCloseSavesOrSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Rotate: true})
		store := &flaky{}
		s, _ := loggedIn(t, b, store)
		time.Sleep(31 * time.Minute)
		store.failWhen(func(old, _ []byte) error {
			if claimed(old) {
				return errDisk
			}
			return nil
		})
		mustToken(t, s)
		if err := s.Close(); !errors.Is(err, errDisk) {
			t.Errorf("Close lost a token and said %v", err)
		}
	})
}

func TestUnsureSwapIsReadBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Rotate: true})
		store := &flaky{}
		s, e := loggedIn(t, b, store)
		defer s.Close()
		time.Sleep(31 * time.Minute)
		store.unsure.Store(true)
		mustToken(t, s)
		if refreshes(b) != 1 || e.has("unsaved") {
			t.Errorf("%d refreshes, events %v", refreshes(b), e.kinds())
		}
	})
}

func TestUnsavedTokenNeverOverwritesNewerFacts(t *testing.T) {
	for name, newer := range map[string]func(t *testing.T, b *emulator.Broker, other *brokerauth.Session){
		"login": func(t *testing.T, b *emulator.Broker, other *brokerauth.Session) {
			must(t, other.Login(t.Context(), b.Approve))
		},
		"logout": func(t *testing.T, _ *emulator.Broker, other *brokerauth.Session) { must(t, other.Logout(t.Context())) },
		"sibling's refresh": func(t *testing.T, _ *emulator.Broker, other *brokerauth.Session) {
			_, err := other.Refresh(t.Context(), nil) // once the claim of the first is void
			must(t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := emulator.Schwab(t)
				store := &flaky{}
				s, _ := loggedIn(t, b, store)
				time.Sleep(31 * time.Minute)
				store.failWhen(func(old, _ []byte) error {
					if claimed(old) {
						return errDisk
					}
					return nil
				})
				mustToken(t, s)
				store.failWhen(func(_, _ []byte) error { return nil })
				other, _ := session(b, store)
				defer other.Close()
				newer(t, b, other)
				before, _ := other.Token(t.Context())
				must(t, s.Close())
				after, err := other.Token(t.Context())
				third, _ := session(b, store)
				defer third.Close()
				stored, storedErr := third.Token(t.Context())
				if name == "logout" {
					if !errors.Is(err, brokerauth.ErrLoginRequired) || !errors.Is(storedErr, brokerauth.ErrLoginRequired) {
						t.Errorf("a login that was ended came back: %v, %v", err, storedErr)
					}
					return
				}
				if err != nil || storedErr != nil || after.AccessToken != before.AccessToken || stored.AccessToken != before.AccessToken {
					t.Errorf("a newer login was overwritten: %v, %v", err, storedErr)
				}
			})
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestLoginBetweenRequestAndAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		store := new(memory.Store)
		s, e := loggedIn(t, b, store)
		defer s.Close()
		time.Sleep(31 * time.Minute)
		b.Inject(emulator.Fault{Delay: 5 * time.Second}) // of the refresh; the new login then kills the old one
		got := make(chan *brokerauth.Token)
		go func() { got <- mustToken(t, s) }()
		time.Sleep(time.Second)
		other, _ := session(b, store)
		defer other.Close()
		must(t, other.Login(t.Context(), b.Approve))
		if token := <-got; token.AccessToken != mustToken(t, other).AccessToken {
			t.Error("the waiting caller did not get the new login's token")
		}
		if e.has("failed") {
			t.Errorf("events %v", e.kinds())
		}
	})
}

func TestLogoutDuringARefreshStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Latency: 5 * time.Second})
		s, _ := loggedIn(t, b, new(memory.Store))
		defer s.Close()
		time.Sleep(31 * time.Minute)
		done := make(chan error)
		go func() {
			_, err := s.Token(t.Context())
			done <- err
		}()
		time.Sleep(time.Second)
		must(t, s.Logout(t.Context()))
		if err := <-done; !errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Errorf("a refresh after a logout: %v", err)
		}
		if _, err := s.Token(t.Context()); !errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Errorf("Token after a logout: %v", err)
		}
	})
}

// forgetful is a store that does not know its own record again, as a database of which another tool has changed a type.
type forgetful struct {
	memory.Store
	forgets atomic.Bool
	swaps   atomic.Int64
}

func (s *forgetful) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	s.swaps.Add(1)
	if s.forgets.Load() && old != nil {
		return false, nil
	}
	return s.Store.CompareAndSwap(ctx, key, old, new)
}

// Whoever logs out there or needs a new token hears soon that it does not work.
func TestForgetfulStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(forgetful)
		s, _ := loggedIn(t, emulator.Schwab(t), store)
		defer s.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour) // far off
		defer cancel()
		before := store.swaps.Load()
		store.forgets.Store(true)
		start := time.Now()
		err := s.Logout(ctx)
		if tries, took := store.swaps.Load()-before, time.Since(start); !errors.Is(err, brokerauth.ErrUnavailable) || tries > 20 || took > 5*time.Second {
			t.Errorf("after %d tries in %v: %v", tries, took, err)
		}
		mustToken(t, s)
		time.Sleep(31 * time.Minute)
		before, start = store.swaps.Load(), time.Now()
		_, err = s.Token(ctx)
		if tries, took := store.swaps.Load()-before, time.Since(start); !errors.Is(err, brokerauth.ErrUnavailable) || tries > 20 || took > 5*time.Second {
			t.Errorf("a token after %d tries in %v: %v", tries, took, err)
		}
		store.forgets.Store(false)
		must(t, s.Logout(t.Context()))
	})
}

// What the API says with its refusal is not waited for.
func TestRefusalThatNeverEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		s, _ := loggedIn(t, b, new(memory.Store))
		defer s.Close()
		time.Sleep(2 * time.Minute)
		body, _ := io.Pipe()
		calls := 0
		api := s.Client(&http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			if calls++; calls == 1 {
				return &http.Response{StatusCode: http.StatusUnauthorized, Body: body}, nil
			}
			return b.RoundTrip(r)
		})})
		resp, err := api.Get("https://api.schwabapi.com/trader/v1/accounts/accountNumbers")
		if err != nil || resp.StatusCode != http.StatusOK || calls != 2 {
			t.Errorf("%d calls, %v, %v", calls, resp, err)
		}
	})
}

// A token for work that takes long is renewed as often as that takes, which is no API's refusal.
func TestTokenFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Rotate: true, Latency: time.Second})
		store := new(memory.Store)
		s, _ := loggedIn(t, b, store)
		defer s.Close()
		left := func(t *brokerauth.Token) time.Duration { return time.Until(t.Expiry.Round(0)) }
		for _, atLeast := range []time.Duration{0, 10 * time.Minute, 27 * time.Minute} {
			before := refreshes(b)
			for range 180 {
				time.Sleep(time.Minute)
				if token, err := s.TokenFor(t.Context(), atLeast); err != nil || left(token) < atLeast {
					t.Fatalf("a token for %s: %v, %v", atLeast, token, err)
				}
			}
			most := int(180*time.Minute/(30*time.Minute-max(atLeast, 5*time.Minute))) + 1
			if n := refreshes(b) - before; n > most {
				t.Errorf("tokens for %s took %d refreshes in three hours, want at most %d", atLeast, n, most)
			}
		}
		if _, err := s.TokenFor(t.Context(), 28*time.Minute); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("a token for 28 of 30 minutes: %v", err)
		}

		// Any number of callers and processes cause one, and an API's refusal has its own count.
		time.Sleep(12 * time.Minute)
		before, held := refreshes(b), mustToken(t, s)
		var wg sync.WaitGroup
		for range 3 {
			other, _ := session(b, store)
			defer other.Close()
			for range 30 {
				wg.Go(func() {
					if token, err := other.TokenFor(t.Context(), 20*time.Minute); err != nil || left(token) < 20*time.Minute {
						t.Errorf("one of many: %v, %v", token, err)
					}
				})
			}
		}
		wg.Wait()
		if n := refreshes(b) - before; n != 1 {
			t.Errorf("many callers caused %d refreshes, want 1", n)
		}
		time.Sleep(2 * time.Minute)
		if token, err := s.Refresh(t.Context(), held); err != nil || token.AccessToken == held.AccessToken || refreshes(b) != before+1 {
			t.Errorf("a refused token that others have renewed: %v, %v", token, err)
		}
		if _, err := s.Refresh(t.Context(), mustToken(t, s)); err != nil || refreshes(b) != before+2 {
			t.Errorf("an API's refusal was not obeyed: %v", err)
		}

		// What the broker does not give is an error here, and none for who has a valid one.
		time.Sleep(12 * time.Minute)
		b.Inject(emulator.Fault{Status: 503})
		if _, err := s.TokenFor(t.Context(), 20*time.Minute); !errors.Is(err, brokerauth.ErrUnavailable) {
			t.Errorf("a broker that is away: %v", err)
		}
		mustToken(t, s)
	})
}

func TestForcedRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Rotate: true})
		s, _ := loggedIn(t, b, new(memory.Store))
		defer s.Close()
		refused := mustToken(t, s)
		if _, err := s.Refresh(t.Context(), refused); !errors.Is(err, brokerauth.ErrUnavailable) || refreshes(b) != 0 {
			t.Errorf("a token issued just now was renewed for a 401: %d refreshes, %v", refreshes(b), err)
		}
		time.Sleep(2 * time.Minute)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if token, err := s.Refresh(t.Context(), refused); err != nil || token.AccessToken == refused.AccessToken {
					t.Errorf("%v, %v", token, err)
				}
			})
		}
		wg.Wait()
		if n := refreshes(b); n != 1 {
			t.Errorf("a hundred callers with one refused token: %d refreshes, want 1", n)
		}
		for range 50 {
			time.Sleep(time.Minute)
			s.Refresh(t.Context(), mustToken(t, s))
		}
		if n := refreshes(b); n > 4+2 {
			t.Errorf("%d refreshes in an hour of 401s, want at most the natural two and twice as many forced", n)
		}
		before := refreshes(b)
		if _, err := s.Refresh(t.Context(), nil); err != nil || refreshes(b) != before+1 {
			t.Errorf("a person's refresh: %d requests, %v", refreshes(b)-before, err)
		}
	})
}

func TestClientSurvivesA401(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		b.Handle("POST /trader/v1/orders", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(w, r.Body)
		}))
		s, _ := loggedIn(t, b, new(memory.Store))
		defer s.Close()
		base := s.Provider.Info().BaseURL
		client := s.Client(&http.Client{Transport: b})
		status := func(method, path string, header ...string) int {
			req, _ := http.NewRequestWithContext(t.Context(), method, base+path, strings.NewReader("buy"))
			for _, h := range header {
				req.Header.Set(h, "1")
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			io.Copy(io.Discard, resp.Body)
			return resp.StatusCode
		}
		for _, test := range []struct {
			name, method, path string
			header             []string
			want, calls        int
		}{
			{"a GET is sent again", "GET", "/trader/v1/accounts/accountNumbers", nil, 200, 2},
			{"an order is not", "POST", "/trader/v1/orders", nil, 401, 1},
			{"unless it may be", "POST", "/trader/v1/orders", []string{"Idempotency-Key"}, 200, 2},
		} {
			time.Sleep(2 * time.Minute)
			b.Advance(30 * time.Minute) // all access tokens end
			before := len(b.Requests()) - refreshes(b)
			if got := status(test.method, test.path, test.header...); got != test.want {
				t.Errorf("%s: HTTP %d, want %d", test.name, got, test.want)
			}
			if n := len(b.Requests()) - refreshes(b) - before; n != test.calls {
				t.Errorf("%s: %d calls, want %d", test.name, n, test.calls)
			}
		}
		// The order's 401 renewed the token all the same.
		if got := status("POST", "/trader/v1/orders"); got != 200 {
			t.Errorf("after a refused order: HTTP %d", got)
		}
		// A dead login gives back the API's own answer.
		time.Sleep(2 * time.Minute)
		b.Advance(30 * time.Minute) // all access tokens end
		b.RevokeLogins()
		if got := status("GET", "/trader/v1/accounts/accountNumbers"); got != 401 {
			t.Errorf("a dead login: HTTP %d", got)
		}
		if _, err := s.Token(t.Context()); !errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Errorf("a token that the API and a login that the broker refused: %v", err)
		}
	})
}

// echo answers every request and remembers where it went signed.
type echo struct{ signed, unsigned []string }

func (e *echo) RoundTrip(r *http.Request) (*http.Response, error) {
	at := &e.unsigned
	if r.Header.Get("Authorization") != "" {
		at = &e.signed
	}
	*at = append(*at, r.URL.String())
	resp := &http.Response{StatusCode: 200, Header: http.Header{}, Body: http.NoBody, Request: r}
	if to := r.URL.Query().Get("to"); to != "" {
		resp.StatusCode = 302
		resp.Header.Set("Location", to)
	}
	return resp, nil
}

func TestTokenGoesOnlyToTheBroker(t *testing.T) {
	b := emulator.Schwab(t)
	s, _ := loggedIn(t, b, new(memory.Store))
	defer s.Close()
	// Nothing of a request to these is sent, and so no token.
	for _, address := range []string{
		"http://api.schwabapi.com/", "http://api.schwabapi.com:443/", "ws://api.schwabapi.com/", "wss://api.schwabapi.com/",
		"https://api.schwabapi.com:8443/", "https://api.schwabapi.com:443/", "https://api.schwabapi.com:0443/",
		"https://api.schwabapi.com.evil.example/", "https://evil.example/api.schwabapi.com", "https://evil.example/?https://api.schwabapi.com/",
		"https://evil.example#https://api.schwabapi.com/", "https://evilapi.schwabapi.com/", "https://api-schwabapi.com/",
		"https://API.schwabapi.com/", "https://Api.SchwabAPI.com/", "https://api.schwabapi.com./", "https://.api.schwabapi.com/",
		"https://user:pw@api.schwabapi.com/", "https://user@api.schwabapi.com/", "https://@api.schwabapi.com/",
		"https://api.schwabapi.com@evil.example/", "https://api.schwabapi.com%2eevil.example/", "https://api.schwabapi.com%00.evil.example/",
		`https://evil.example\@api.schwabapi.com/`, "https://schwabapi.com/", "https://a.api.schwabapi.com/", "https://*.schwabapi.com/",
		"https://api.schwabapi.co/", "https://api.schwabapi.comm/", "https://127.0.0.1/", "https://[::1]/", "https://0/",
		"https://аpi.schwabapi.com/", "https://xn--pi-7kc.schwabapi.com/", "https://api。schwabapi.com/", "https://ａpi.schwabapi.com/",
		"https://api.schwabapi.com\u200b/", "file:///etc/passwd", "//evil.example/",
	} {
		base := &echo{}
		resp, err := s.Client(&http.Client{Transport: base}).Get(address)
		if err == nil {
			resp.Body.Close()
			t.Errorf("%s was asked", address)
		}
		if len(base.signed)+len(base.unsigned) > 0 {
			t.Errorf("%s was reached", address)
		}
	}
	for _, address := range []string{"https://api.schwabapi.com", "https://api.schwabapi.com/", "https://api.schwabapi.com/a/b?c=d#e",
		"HTTPS://api.schwabapi.com/", "https://api.schwabapi.com:/", "https://api.schwabapi.com//evil.example/", "https://api.schwabapi.com/@evil.example/"} {
		base := &echo{}
		resp, err := s.Client(&http.Client{Transport: base}).Get(address)
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		resp.Body.Close()
		if len(base.signed) != 1 {
			t.Errorf("%s: signed %v, unsigned %v", address, base.signed, base.unsigned)
		}
	}
	_, err := s.Client(&http.Client{Transport: &echo{}}).Get("https://api.tdameritrade.com/v1/marketdata/quotes?symbol=A")
	if err == nil || !strings.Contains(err.Error(), "https://api.schwabapi.com/marketdata/v1/quotes") {
		t.Errorf("a TD Ameritrade address: %v, want Schwab's", err)
	}
	base := &echo{}
	resp, err := s.Client(&http.Client{Transport: base}).Get("https://api.schwabapi.com/?to=" + url.QueryEscape("https://evil.example/?to=https://api.schwabapi.com/back"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if len(base.signed) != 2 || len(base.unsigned) != 1 || !strings.HasPrefix(base.unsigned[0], "https://evil.example/") {
		t.Errorf("signed %q, unsigned %q", base.signed, base.unsigned)
	}
	// Down to http, over to a port, and to a name that only looks the same: all unsigned, and the caller's own header is not sent along.
	for _, to := range []string{"http://api.schwabapi.com/", "https://api.schwabapi.com:8443/", "https://API.schwabapi.com/", "https://api.schwabapi.com./",
		"https://a.api.schwabapi.com/"} {
		base := &echo{}
		req, err := http.NewRequest("GET", "https://api.schwabapi.com/?to="+url.QueryEscape(to), nil)
		must(t, err)
		resp, err := s.Client(&http.Client{Transport: base}).Do(req)
		must(t, err)
		resp.Body.Close()
		if len(base.signed) != 1 || len(base.unsigned) != 1 {
			t.Errorf("redirected to %s: signed %q, unsigned %q", to, base.signed, base.unsigned)
		}
	}
}

func TestTokenSource(t *testing.T) {
	b := emulator.Schwab(t)
	s, _ := loggedIn(t, b, new(memory.Store))
	defer s.Close()
	ctx := context.WithValue(t.Context(), oauth2.HTTPClient, &http.Client{Transport: b})
	resp, err := oauth2.NewClient(ctx, s.TokenSource(ctx)).Get(s.Provider.Info().BaseURL + "/trader/v1/accounts/accountNumbers")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("HTTP %d", resp.StatusCode)
	}
}

func TestObserverMayCallBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		var s *brokerauth.Session
		calls := 0
		s = &brokerauth.Session{Provider: b.Provider(), Store: new(memory.Store), Observe: func(brokerauth.Event) {
			if calls++; calls > 50 {
				t.Fatal("events without end")
			}
			s.Token(context.Background())
			s.Status(context.Background())
		}}
		defer s.Close()
		must(t, s.Login(t.Context(), b.Approve))
		time.Sleep(31 * time.Minute)
		mustToken(t, s)
		time.Sleep(31 * time.Minute)
		b.Inject(emulator.Fault{Status: 500})
		if _, err := s.Token(t.Context()); err == nil {
			t.Error("no error")
		}
		time.Sleep(31 * time.Minute)
		b.RevokeLogins()
		if _, err := s.Token(t.Context()); !errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Error(err)
		}
	})
}

func TestEnsure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		s, _ := session(b, new(memory.Store))
		defer s.Close()
		logins := func() int { return grants(b, "authorization_code") }
		ensure := func(within time.Duration, want int) {
			t.Helper()
			if err := s.Ensure(t.Context(), b.Approve, within); err != nil || logins() != want {
				t.Fatalf("Ensure within %s: %v after %d logins, want %d", within, err, logins(), want)
			}
		}
		ensure(12*time.Hour, 1)
		ensure(12*time.Hour, 1)
		ensure(8*24*time.Hour, 2)
		time.Sleep(6*24*time.Hour + 11*time.Hour)
		ensure(12*time.Hour, 2)
		time.Sleep(2 * time.Hour)
		b.Inject(emulator.Fault{Status: 503, Times: 2})
		if err := s.Ensure(t.Context(), b.Approve, 12*time.Hour); err == nil {
			t.Fatal("a login at a broker that is down")
		}
		b.Inject()
		mustToken(t, s) // the old login still works
		ensure(12*time.Hour, 4)
		// The estimate says yes, and the broker says no.
		time.Sleep(time.Hour)
		b.RevokeLogins()
		ensure(12*time.Hour, 5)
		mustToken(t, s)
		// The same, and the access token would still do for a while.
		b.RevokeLogins()
		if _, err := s.Refresh(t.Context(), nil); !errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Fatal(err)
		}
		ensure(12*time.Hour, 6)
	})
}

func TestConcurrentLoginsShareOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		s, _ := session(b, new(memory.Store))
		defer s.Close()
		asked, release := make(chan bool, 50), make(chan bool)
		flow := func(ctx context.Context, login *brokerauth.Login, finish func(context.Context, string) error) error {
			asked <- true
			<-release
			return b.Approve(ctx, login, finish)
		}
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if err := s.Login(t.Context(), flow); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait() // all of them
		close(release)
		wg.Wait()
		if n := len(asked); n != 1 {
			t.Errorf("%d people were asked to log in, want 1", n)
		}
	})
}

func TestCompleteSpendsACodeOnce(t *testing.T) {
	b := emulator.Schwab(t)
	s, _ := session(b, new(memory.Store))
	defer s.Close()
	login, err := s.Begin(t.Context())
	must(t, err)
	var callback string
	must(t, b.Approve(t.Context(), login, func(_ context.Context, c string) error {
		callback = c
		return nil
	}))
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if err := s.Complete(t.Context(), login, callback); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	_, query, _ := strings.Cut(callback, "?")
	values, err := url.ParseQuery(query)
	must(t, err)
	code := values.Get("code")
	for _, spelled := range []string{" " + callback + "&extra=1", query, "code=" + code, code, url.QueryEscape(code), url.QueryEscape(code) + "&session=x"} {
		if err := s.Complete(t.Context(), login, spelled); err != nil {
			t.Errorf("the same code, spelled differently: %v", err)
		}
	}
	if n := grants(b, "authorization_code"); n != 1 {
		t.Errorf("the code was sent %d times", n)
	}
	alice := &brokerauth.Session{Provider: b.Provider(), Store: new(memory.Store), Profile: "alice"}
	defer alice.Close()
	if err := alice.Complete(t.Context(), login, callback); err == nil {
		t.Error("another session's login was completed")
	}
}

func TestLoginProvesTheStoreFirst(t *testing.T) {
	b := emulator.Schwab(t)
	store := &readOnly{}
	s, _ := session(b, store)
	defer s.Close()
	err := s.Login(t.Context(), func(context.Context, *brokerauth.Login, func(context.Context, string) error) error {
		t.Error("a person was asked to log in for nothing")
		return nil
	})
	if !errors.Is(err, errDisk) {
		t.Errorf("%v", err)
	}
	s, _ = loggedIn(t, b, new(memory.Store))
	defer s.Close()
	keys, err := s.Store.(*memory.Store).Keys(t.Context())
	if err != nil || len(keys) != 1 {
		t.Errorf("after a login the store holds %v, %v", keys, err)
	}
}

type readOnly struct{ memory.Store }

func (*readOnly) CompareAndSwap(context.Context, brokerauth.Key, []byte, []byte) (bool, error) {
	return false, errDisk
}

func TestDeniedConsentKeepsTheOldLogin(t *testing.T) {
	b := emulator.Schwab(t)
	s, _ := loggedIn(t, b, new(memory.Store))
	defer s.Close()
	old := mustToken(t, s)
	if err := s.Login(t.Context(), b.Deny); err == nil {
		t.Fatal("a denied login succeeded")
	}
	if mustToken(t, s) != old {
		t.Error("the old login is gone")
	}
}

// Without a login, and with one that has ended, whoever asks for a token hears so at once: nothing is waited for, and the
// broker is not asked.
func TestNoLogin(t *testing.T) {
	b := emulator.Schwab(t)
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		store := new(memory.Store)
		hears := func(when string) *brokerauth.Session {
			s, _ := session(b, store)
			before, began := len(b.Requests()), time.Now()
			_, err := s.Token(t.Context())
			if took, n := time.Since(began), len(b.Requests())-before; !errors.Is(err, brokerauth.ErrLoginRequired) || took != 0 || n != 0 {
				t.Errorf("%s: %v after %s and %d requests", when, err, took, n)
			}
			return s
		}
		s := hears("without a login")
		defer s.Close()
		st, err := s.Status(t.Context())
		if err != nil || st.LoggedIn || !st.LoginRequired(0) || len(b.Requests()) != 0 {
			t.Errorf("%+v, %v", st, err)
		}
		must(t, s.Logout(t.Context()))

		must(t, s.Login(t.Context(), b.Approve))
		b.RevokeLogins()
		time.Sleep(31 * time.Minute)
		if _, err := s.Token(t.Context()); !errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Errorf("after the login was ended: %v", err)
		}
		must(t, hears("a login that has ended").Close())
	})
	for _, broken := range []*brokerauth.Session{{}, {Provider: b.Provider()}, {Store: new(memory.Store)}} {
		_, tokenErr := broken.Token(t.Context())
		_, statusErr := broken.Status(t.Context())
		_, clientErr := broken.Client(nil).Get("https://api.schwabapi.com/")
		for _, err := range []error{tokenErr, statusErr, clientErr, broken.Login(t.Context(), b.Approve), broken.Logout(t.Context())} {
			if err == nil {
				t.Error("a session without a provider or store worked")
			}
		}
		must(t, broken.Close())
	}
}

func TestTwoAppsTwoLogins(t *testing.T) {
	store := new(memory.Store)
	b := emulator.Schwab(t)
	one, _ := loggedIn(t, b, store)
	defer one.Close()
	alice := &brokerauth.Session{Provider: b.Provider(), Store: store, Profile: "alice"}
	defer alice.Close()
	if _, err := alice.Token(t.Context()); !errors.Is(err, brokerauth.ErrLoginRequired) {
		t.Errorf("another profile: %v", err)
	}
}

func TestMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		here, there := new(memory.Store), new(memory.Store)
		s, e := loggedIn(t, b, here)
		defer s.Close()
		other, _ := session(b, here)
		defer other.Close()
		new, _ := session(b, there)
		defer new.Close()
		token := mustToken(t, s)
		if err := s.Move(t.Context(), "nowhere", func(*brokerauth.Token) error { return errDisk }); !errors.Is(err, errDisk) {
			t.Errorf("%v", err)
		}
		if mustToken(t, s) != token || e.has("moved") {
			t.Error("a move that failed took the login away")
		}
		time.Sleep(31 * time.Minute) // so that other wants to renew what is on its way
		renewed := make(chan error)
		must(t, s.Move(t.Context(), "a test", func(token *brokerauth.Token) error {
			go func() {
				_, err := other.Token(t.Context())
				renewed <- err
			}()
			time.Sleep(5 * time.Second)
			return new.Save(t.Context(), token)
		}))
		_, err := s.Token(t.Context())
		for _, err := range []error{err, <-renewed} {
			if !errors.Is(err, brokerauth.ErrLoginRequired) || !strings.Contains(err.Error(), "a test") {
				t.Errorf("where the login was: %v", err)
			}
		}
		if refreshes(b) != 0 {
			t.Error("a login on its way was renewed")
		}
		st, err := s.Status(t.Context())
		if err != nil || st.LoggedIn || st.MovedTo != "a test" || st.MovedAt.IsZero() {
			t.Errorf("%+v, %v", st, err)
		}
		if got := mustToken(t, new); !got.LoggedInAt.Equal(token.LoggedInAt) {
			t.Error("the login lost its age")
		}
		must(t, s.Login(t.Context(), b.Approve))
		mustToken(t, other)
	})
}

func TestNothingSecretIsTold(t *testing.T) {
	var told bytes.Buffer
	b := emulator.Schwab(t, emulator.Config{Rotate: true, AccessTTL: time.Second})
	log := slog.New(slog.NewTextHandler(&told, &slog.HandlerOptions{Level: slog.LevelDebug}))
	store := new(memory.Store)
	var mu sync.Mutex
	s := &brokerauth.Session{Provider: b.Provider(), Store: store, Observe: func(e brokerauth.Event) {
		mu.Lock()
		defer mu.Unlock()
		log.Debug("event", "e", e)
		fmt.Fprintf(&told, "%v %+v %#v\n", e, e, e)
	}}
	defer s.Close()
	tell := func(values ...any) {
		mu.Lock()
		defer mu.Unlock()
		for _, v := range values {
			fmt.Fprintf(&told, "%v %+v %#v %q %s\n", v, v, v, v, v)
			log.Info("value", "v", v)
		}
	}
	login, err := s.Begin(t.Context())
	must(t, err)
	tell(*login, login, []*brokerauth.Login{login})
	must(t, s.Login(t.Context(), b.Approve))
	token := mustToken(t, s)
	tell(*token, token, []brokerauth.Token{*token}, map[string]*brokerauth.Token{"t": token}, struct{ T *brokerauth.Token }{token})
	tell(b.Provider())
	tell(s.Complete(t.Context(), login, "https://127.0.0.1:8182/?code=emulated.stolen&state="+url.QueryEscape(login.State)))
	for _, fault := range []emulator.Fault{{Status: 500}, {Cut: true}, {Drop: true}, {Status: 403}, {Body: "garbage"}, {}} {
		time.Sleep(1100 * time.Millisecond)
		b.Inject(fault)
		_, err := s.Refresh(t.Context(), nil)
		st, _ := s.Status(t.Context())
		tell(err, st)
	}
	b.RevokeLogins()
	_, err = s.Refresh(t.Context(), nil)
	tell(err)
	secrets := append(b.Secrets(), login.State, login.Secret)
	if len(secrets) < 10 {
		t.Fatalf("only %d secrets were issued", len(secrets))
	}
	for _, secret := range secrets {
		for form, spelled := range map[string]string{
			"plain": secret, "URL-encoded": url.QueryEscape(secret), "base64": base64.StdEncoding.EncodeToString([]byte(secret)),
			"base64url": base64.RawURLEncoding.EncodeToString([]byte(secret)), "hex": fmt.Sprintf("%x", secret),
		} {
			if strings.Contains(told.String(), spelled) {
				t.Errorf("a secret was told, %s", form)
			}
		}
	}
}

func TestRequestsNameTheirSender(t *testing.T) {
	b := emulator.Tastytrade(t)
	var got []string
	b.Handle("GET /sender", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = append(got, r.UserAgent()) }))
	s := &brokerauth.Session{Provider: b.Provider(), Store: new(memory.Store)}
	defer s.Close()
	for _, own := range []string{"", "my-app/2"} {
		req, err := http.NewRequest("GET", s.Provider.Info().BaseURL+"/sender", nil)
		must(t, err)
		if own != "" {
			req.Header.Set("User-Agent", own)
		}
		resp, err := s.Client(&http.Client{Transport: b}).Do(req)
		must(t, err)
		resp.Body.Close()
	}
	if want := []string{s.Provider.Info().UserAgent, "my-app/2"}; !slices.Equal(got, want) || want[0] == "" {
		t.Errorf("requests came from %q, want %q", got, want)
	}
}
