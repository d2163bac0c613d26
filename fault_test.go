package brokerauth_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/providers/schwab"
	"github.com/brokerauth/brokerauth/storage/memory"
)

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestForeignCancellation: an error that looks like a caller's leaving, and is none, ends a call.
func TestForeignCancellation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		calls, broken := 0, false
		p, err := schwab.New(schwab.Config{AppKey: "key", AppSecret: "emulated.app-secret", CallbackURL: "https://127.0.0.1:8182",
			Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
				if calls++; broken {
					return nil, context.Canceled
				}
				return b.RoundTrip(r)
			})})
		must(t, err)
		store := &loadFails{}
		s := &brokerauth.Session{Provider: p, Store: store, Observe: func(brokerauth.Event) {}}
		defer s.Close()
		must(t, s.Login(t.Context(), b.Approve))
		calls, broken = 0, true
		if _, err := s.Refresh(t.Context(), nil); err == nil || calls != 1 {
			t.Errorf("%d calls, %v", calls, err)
		}
		time.Sleep(time.Hour)
		store.err = context.Canceled
		if _, err := s.Token(t.Context()); !errors.Is(err, context.Canceled) || store.loads > 10 {
			t.Errorf("%d loads, %v", store.loads, err)
		}
		store.err = nil
	})
}

type loadFails struct {
	memory.Store
	err   error
	loads int
}

func (s *loadFails) Load(ctx context.Context, key brokerauth.Key) ([]byte, error) {
	if s.err != nil {
		s.loads++
		return nil, s.err
	}
	return s.Store.Load(ctx, key)
}

func TestObserverMayCloseAndLogIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		for name, call := range map[string]func(s *brokerauth.Session){
			"Close": func(s *brokerauth.Session) { s.Close() },
			"Login": func(s *brokerauth.Session) { s.Login(context.Background(), b.Deny) },
			"Save": func(s *brokerauth.Session) {
				s.Save(context.Background(), &brokerauth.Token{AccessToken: "emulated.x"})
			},
		} {
			var s *brokerauth.Session
			told := 0
			s = &brokerauth.Session{Provider: b.Provider(), Store: new(memory.Store), Observe: func(brokerauth.Event) {
				if told++; told == 1 {
					call(s)
				}
			}}
			if err := s.Login(t.Context(), b.Approve); err != nil || told == 0 {
				t.Errorf("%s: %d events, %v", name, told, err)
			}
			s.Close()
		}
	})
}

// The same once a token that could not be saved has been, which nobody asked for.
func TestObserverMayCloseOnceSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		store := &link{Store: new(memory.Store)}
		closed := make(chan struct{})
		var s *brokerauth.Session
		s = &brokerauth.Session{Provider: b.Provider(), Store: store, Observe: func(e brokerauth.Event) {
			if e.Kind == "saved" {
				s.Close()
				close(closed)
			}
		}}
		store.lost.Store(true)
		if err := s.Login(t.Context(), b.Approve); !errors.Is(err, errDisk) {
			t.Fatal(err)
		}
		store.cut.Store(false)
		<-closed
	})
}

func TestCloseEndsALoginThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		s, _ := session(b, new(memory.Store))
		done := make(chan error)
		waits := func(ctx context.Context, _ *brokerauth.Login, _ func(context.Context, string) error) error {
			<-ctx.Done()
			return ctx.Err()
		}
		go func() { done <- s.Login(t.Context(), waits) }()
		synctest.Wait()
		must(t, s.Close())
		if err := <-done; !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%v", err)
		}
		if err := s.Login(t.Context(), b.Approve); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("Login after Close: %v", err)
		}
		if _, err := s.Begin(t.Context()); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("Begin after Close: %v", err)
		}
	})
}

func TestLoginOutlivesTheCallerThatBeganIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		s, _ := session(b, new(memory.Store))
		defer s.Close()
		ctx, cancel := context.WithCancel(t.Context())
		go s.Login(ctx, func(ctx context.Context, _ *brokerauth.Login, _ func(context.Context, string) error) error {
			<-ctx.Done()
			return ctx.Err()
		})
		synctest.Wait()
		done := make(chan error)
		go func() { done <- s.Login(t.Context(), b.Approve) }()
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the second caller: %v", err)
		}
	})
}

func TestTokenDoesNotFailForWhatOthersWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		store := new(memory.Store)
		first, _ := loggedIn(t, b, store)
		defer first.Close()
		b.Inject(emulator.Fault{Delay: time.Second, Status: 503})
		s, _ := session(b, store)
		defer s.Close()
		go s.Refresh(t.Context(), nil)
		synctest.Wait()
		mustToken(t, s)
	})
}

// slow is a store that is long in saying that a swap was done.
type slow struct {
	memory.Store
	delay time.Duration
}

func (s *slow) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	swapped, err := s.Store.CompareAndSwap(ctx, key, old, new)
	if claimed(new) {
		time.Sleep(s.delay)
	}
	return swapped, err
}

func TestSlowStoreDoesNotSpendTwice(t *testing.T) {
	for _, test := range []struct{ store, broker time.Duration }{{26 * time.Second, 0}, {9 * time.Second, 19 * time.Second}} {
		t.Run(fmt.Sprint(test.store, test.broker), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := emulator.Schwab(t, emulator.Config{Rotate: true, Latency: test.broker})
				store := &slow{}
				one, _ := loggedIn(t, b, store)
				defer one.Close()
				two, _ := session(b, store)
				defer two.Close()
				time.Sleep(31 * time.Minute)
				store.delay = test.store
				done := make(chan bool)
				for _, s := range []*brokerauth.Session{one, two} {
					go func() {
						s.Token(t.Context())
						done <- true
					}()
					time.Sleep(time.Second)
				}
				<-done
				<-done
				store.delay = 0
				time.Sleep(time.Hour)
				mustToken(t, one) // nobody spent a token twice: the login lives
			})
		})
	}
}

func TestNewLoginCountsWhateverTheClockSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		s, _ := loggedIn(t, b, new(memory.Store))
		defer s.Close()
		ahead := mustToken(t, s).Clone()
		ahead.LoggedInAt = ahead.LoggedInAt.Add(40 * time.Second)
		must(t, s.Save(t.Context(), ahead))
		time.Sleep(time.Second)
		must(t, s.Login(t.Context(), b.Approve))
		other, _ := session(b, s.Store)
		defer other.Close()
		if got := mustToken(t, other); got.AccessToken == ahead.AccessToken || !honoured(t, b, got) {
			t.Error("the new login was dropped for one that a clock called later")
		}
	})
}

// rewrite changes fields of the stored record.
func rewrite(t testing.TB, s *brokerauth.Session, change func(record map[string]any)) {
	t.Helper()
	st, err := s.Status(t.Context())
	must(t, err)
	raw, err := s.Store.Load(t.Context(), st.Key)
	must(t, err)
	var record map[string]any
	must(t, json.Unmarshal(raw, &record))
	change(record)
	changed, err := json.Marshal(record)
	must(t, err)
	if ok, err := s.Store.CompareAndSwap(t.Context(), st.Key, raw, changed); !ok || err != nil {
		t.Fatal(ok, err)
	}
}

func TestWrongClocksHeal(t *testing.T) {
	year := 365 * 24 * time.Hour
	for name, change := range map[string]func(record map[string]any, now time.Time){
		"a refusal of next year": func(record map[string]any, now time.Time) {
			record["verdict"].(map[string]any)["at"] = now.Add(year)
			record["verdict"].(map[string]any)["until"] = now.Add(year + 5*time.Second)
		},
		"a refusal until next year": func(record map[string]any, now time.Time) {
			record["verdict"].(map[string]any)["until"] = now.Add(year)
		},
		"a token of tomorrow": func(record map[string]any, now time.Time) {
			delete(record, "verdict")
			record["token"].(map[string]any)["issued"] = now.Add(24 * time.Hour)
			record["token"].(map[string]any)["expiry"] = now.Add(24*time.Hour + 30*time.Minute)
		},
		"a claim of yesterday": func(record map[string]any, now time.Time) {
			delete(record, "verdict")
			record["claim"] = map[string]any{"id": "x", "since": now.Add(-24 * time.Hour)}
		},
		"a claim of tomorrow": func(record map[string]any, now time.Time) {
			delete(record, "verdict")
			record["claim"] = map[string]any{"id": "x", "since": now.Add(24 * time.Hour)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := emulator.Schwab(t)
				s, _ := loggedIn(t, b, new(memory.Store))
				defer s.Close()
				time.Sleep(31 * time.Minute)
				b.Inject(emulator.Fault{Status: 503})
				s.Token(t.Context())
				rewrite(t, s, func(record map[string]any) { change(record, time.Now()) })
				time.Sleep(25 * time.Hour) // of which no process saw more than a second
				other, _ := session(b, s.Store)
				defer other.Close()
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if token, err := other.Token(ctx); err != nil || !honoured(t, b, token) {
					t.Errorf("%v", err)
				}
			})
		})
	}
}

func TestTokenOfAClockSetBackIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		s, _ := loggedIn(t, b, new(memory.Store))
		defer s.Close()
		rewrite(t, s, func(record map[string]any) {
			record["token"].(map[string]any)["issued"] = time.Now().Add(24 * time.Hour)
			record["token"].(map[string]any)["expiry"] = time.Now().Add(24*time.Hour + 30*time.Minute)
		})
		time.Sleep(31 * time.Minute)
		other, _ := session(b, s.Store)
		defer other.Close()
		if !honoured(t, b, mustToken(t, other)) {
			t.Error("a dead token was served")
		}
	})
}

func TestRetryAfterIsHonouredThoughItCannotBeSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		store := &flaky{}
		s, _ := loggedIn(t, b, store)
		defer s.Close()
		time.Sleep(31 * time.Minute)
		b.Inject(emulator.Fault{Status: 429, RetryAfter: "3600", Times: -1})
		store.failWhen(func(old, _ []byte) error {
			if claimed(old) {
				return errDisk
			}
			return nil
		})
		for range 100 {
			if _, err := s.Token(t.Context()); !errors.Is(err, brokerauth.ErrUnavailable) {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
		}
		if n := refreshes(b); n > 1 {
			t.Errorf("%d requests", n)
		}
	})
}

func TestUnsavedLoginRevivesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		store := &flaky{}
		s, _ := loggedIn(t, b, store)
		other, _ := session(b, store)
		defer other.Close()
		store.failWhen(func(_, _ []byte) error { return errDisk })
		if err := s.Login(t.Context(), b.Approve); !errors.Is(err, errDisk) {
			t.Fatalf("a login that cannot be saved: %v", err)
		}
		store.failWhen(func(_, _ []byte) error { return nil })
		must(t, other.Logout(t.Context()))
		s.Close()
		if _, err := other.Token(t.Context()); !errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Errorf("a login that was ended came back: %v", err)
		}
	})
}

func TestSwapThatNeverGetsDurable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Rotate: true})
		store := &notDurable{}
		s, e := loggedIn(t, b, store)
		time.Sleep(31 * time.Minute)
		store.broken = true
		mustToken(t, s)
		if st, _ := s.Status(t.Context()); !errors.Is(st.SaveError, errDisk) || !e.has("unsaved") {
			t.Errorf("a token that may not outlive a power cut: SaveError %v, events %v", st.SaveError, e.kinds())
		}
		if err := s.Close(); !errors.Is(err, errDisk) {
			t.Errorf("Close: %v", err)
		}
	})
}

// notDurable shows what it was given and cannot promise to keep it.
type notDurable struct {
	memory.Store
	broken bool
}

func (s *notDurable) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	swapped, err := s.Store.CompareAndSwap(ctx, key, old, new)
	if s.broken && !claimed(new) {
		return false, errDisk
	}
	return swapped, err
}

func TestNewLoginForgetsForcedRefreshes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		s, _ := loggedIn(t, b, new(memory.Store))
		defer s.Close()
		for range 5 {
			time.Sleep(2 * time.Minute)
			s.Refresh(t.Context(), mustToken(t, s))
		}
		must(t, s.Login(t.Context(), b.Approve))
		time.Sleep(2 * time.Minute)
		if _, err := s.Refresh(t.Context(), mustToken(t, s)); err != nil {
			t.Error(err)
		}
	})
}

type noToken struct{ brokerauth.LoginProvider }

func (noToken) Refresh(context.Context, *brokerauth.Token) (*brokerauth.Token, error) {
	return nil, nil
}

func TestProviderWithoutATokenOrError(t *testing.T) {
	b := emulator.Schwab(t)
	s, _ := loggedIn(t, b, new(memory.Store))
	defer s.Close()
	broken := &brokerauth.Session{Provider: noToken{b.LoginProvider()}, Store: s.Store, Observe: func(brokerauth.Event) {}}
	defer broken.Close()
	if _, err := broken.Refresh(t.Context(), nil); err == nil {
		t.Error("no token and no error")
	}
	if err := s.Save(t.Context(), nil); err == nil {
		t.Error("no token was saved")
	}
}

func TestSessionPrintsNoSecret(t *testing.T) {
	b := emulator.Schwab(t)
	s, _ := loggedIn(t, b, new(memory.Store))
	defer s.Close()
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%q", "%s", "%x", "%d"} {
		fmt.Fprintf(&out, verb+"\n", s)
		fmt.Fprintf(&out, verb+"\n", s.Store)
	}
	for _, secret := range b.Secrets() {
		for _, form := range []string{secret, fmt.Sprintf("%x", secret), strings.Trim(fmt.Sprint([]byte(secret)), "[]")} {
			if strings.Contains(out.String(), form) {
				t.Error("a Session or its Store prints a secret")
			}
		}
	}
}

func TestUnsavedLoginIsNotReplacedByAnOldRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		store := &flaky{}
		s, _ := loggedIn(t, b, store)
		time.Sleep(31 * time.Minute)
		b.Inject(emulator.Fault{Late: true, Delay: 8 * time.Second})
		go s.Token(t.Context())
		time.Sleep(time.Second)
		store.failWhen(func(_, _ []byte) error { return errDisk })
		if err := s.Login(t.Context(), b.Approve); !errors.Is(err, errDisk) {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		store.failWhen(func(_, _ []byte) error { return nil })
		must(t, s.Close())
		other, _ := session(b, store)
		defer other.Close()
		if !honoured(t, b, mustToken(t, other)) {
			t.Error("the new login was lost")
		}
		time.Sleep(time.Hour)
		mustToken(t, other)
	})
}

func TestRefusalThatCouldNotBeSavedEnds(t *testing.T) {
	for _, who := range []string{"this process", "another"} {
		t.Run("when a refresh succeeds in "+who, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := emulator.Schwab(t)
				store := &flaky{}
				s, _ := loggedIn(t, b, store)
				defer s.Close()
				time.Sleep(31 * time.Minute)
				b.Inject(emulator.Fault{Status: 400, Body: `{"error":"invalid_client","error_description":"refresh token invalid"}`})
				store.failWhen(func(old, _ []byte) error {
					if claimed(old) {
						return errDisk
					}
					return nil
				})
				if _, err := s.Token(t.Context()); !errors.Is(err, brokerauth.ErrLoginRequired) {
					t.Fatal(err)
				}
				store.failWhen(func(_, _ []byte) error { return nil })
				healer := s
				if who == "another" {
					time.Sleep(30 * time.Second) // until the claim is void
					healer, _ = session(b, store)
					defer healer.Close()
				}
				if _, err := healer.Refresh(t.Context(), nil); err != nil {
					t.Fatal(err)
				}
				time.Sleep(31 * time.Minute)
				mustToken(t, s)
			})
		})
	}
}

// unlucky is a provider whose exchange fails without saying whether the code was sent.
type unlucky struct {
	brokerauth.LoginProvider
	calls int
	token *brokerauth.Token
	err   error
}

func (u *unlucky) Complete(context.Context, *brokerauth.Login, string) (*brokerauth.Token, error) {
	u.calls++
	return u.token, u.err
}

func TestCodeOfAnyProviderIsSentOnce(t *testing.T) {
	b := emulator.Schwab(t)
	for name, u := range map[string]*unlucky{
		"a plain error": {err: errors.New("connection reset")},
		"no token":      {},
		"a bad token":   {token: &brokerauth.Token{AccessToken: "a b"}},
	} {
		u.LoginProvider = b.LoginProvider()
		s := &brokerauth.Session{Provider: u, Store: new(memory.Store), Observe: func(brokerauth.Event) {}}
		login, err := s.Begin(t.Context())
		must(t, err)
		for range 3 {
			if err := s.Complete(t.Context(), login, "https://127.0.0.1:8182/?code=C"); !errors.Is(err, brokerauth.ErrUnavailable) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if u.calls != 1 {
			t.Errorf("%s: the code was sent %d times", name, u.calls)
		}
		must(t, s.Close())
	}
}

func TestMoveThatGoesWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		store := &flaky{}
		s, _ := loggedIn(t, b, store)
		func() {
			defer func() { recover() }()
			s.Move(t.Context(), "x", func(*brokerauth.Token) error { panic("hand") })
		}()
		time.Sleep(31 * time.Minute)
		began := time.Now()
		if mustToken(t, s); time.Since(began) > time.Second {
			t.Errorf("it waited %s for its own claim", time.Since(began))
		}
		err := s.Move(t.Context(), "x", func(*brokerauth.Token) error {
			store.failWhen(func(_, _ []byte) error { return errDisk })
			return errors.New("no paper")
		})
		if err == nil {
			t.Error("a move that failed")
		}
		store.failWhen(func(_, _ []byte) error { return nil })
		time.Sleep(31 * time.Minute)
		began = time.Now()
		if mustToken(t, s); time.Since(began) > time.Second {
			t.Errorf("it waited %s for its own claim", time.Since(began))
		}
		must(t, s.Move(t.Context(), "x", func(*brokerauth.Token) error { return s.Close() }))
	})
}

func TestNoFlow(t *testing.T) {
	b := emulator.Schwab(t)
	s, _ := session(b, new(memory.Store))
	defer s.Close()
	if err := s.Login(t.Context(), nil); err == nil {
		t.Error("a login without a flow")
	}
}

func TestPassingRefusalLeavesTheStatusWhenItIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		s, _ := loggedIn(t, b, new(memory.Store))
		defer s.Close()
		time.Sleep(31 * time.Minute)
		b.Inject(emulator.Fault{Status: 503})
		s.Token(t.Context())
		if st, err := s.Status(t.Context()); err != nil || st.LastError == nil {
			t.Errorf("%v, %v", st.LastError, err)
		}
		time.Sleep(time.Hour)
		if st, err := s.Status(t.Context()); err != nil || st.LastError != nil {
			t.Errorf("%v, %v", st.LastError, err)
		}
	})
}

func TestSaveKeepsNewerTokens(t *testing.T) {
	b := emulator.Schwab(t)
	s, _ := session(b, new(memory.Store))
	defer s.Close()
	now := time.Now()
	newer := &brokerauth.Token{AccessToken: "emulated.new", RefreshToken: "emulated.r2", Issued: now, Expiry: now.Add(30 * time.Minute)}
	older := &brokerauth.Token{AccessToken: "emulated.old", RefreshToken: "emulated.r1", Expiry: now.Add(20 * time.Minute)}
	must(t, s.Save(t.Context(), newer))
	if err := s.Save(t.Context(), older); !errors.Is(err, fs.ErrExist) {
		t.Errorf("older tokens of a login of unknown age: %v", err)
	}
	if got := mustToken(t, s); got.AccessToken != newer.AccessToken {
		t.Error("the newer tokens are gone")
	}
}
