package brokerauth_test

import (
	"context"
	"errors"
	"io/fs"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/storage/memory"
)

// watched is what a Watch yielded.
type watched struct {
	token *brokerauth.Token
	err   error
	at    time.Time
}

// watch collects what s yields; the channel is closed when Watch ends.
func watch(ctx context.Context, s *brokerauth.Session) <-chan watched {
	c := make(chan watched, 1000)
	go func() {
		defer close(c)
		for t, err := range s.Watch(ctx) {
			c <- watched{t, err, time.Now()}
		}
	}()
	return c
}

func TestWatchYieldsEachNewerToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Latency: 100 * time.Millisecond})
		store := new(memory.Store)
		s, _ := loggedIn(t, b, store)
		defer s.Close()
		other, _ := session(b, store) // stands for another process
		defer other.Close()
		ctx, cancel := context.WithCancel(t.Context())
		c := watch(ctx, s)
		if w := <-c; w.err != nil || w.token != mustToken(t, s) {
			t.Fatalf("first %+v, want the current token", w)
		}
		next := func(what string, within time.Duration) {
			t.Helper()
			began := time.Now()
			time.Sleep(within)
			synctest.Wait()
			select {
			case w := <-c:
				if w.err != nil || !honoured(t, b, w.token) || len(c) > 0 {
					t.Fatalf("%s: %+v and %d more", what, w, len(c))
				}
				t.Logf("%s: after %s", what, w.at.Sub(began))
			default:
				t.Fatalf("%s: no token after %s", what, within)
			}
		}
		_, err := s.Refresh(t.Context(), nil)
		must(t, err)
		next("a refresh of this process", 0)
		_, err = other.Refresh(t.Context(), nil)
		must(t, err)
		next("another's", 1100*time.Millisecond)
		must(t, other.Login(t.Context(), b.Approve))
		next("another's login", 1100*time.Millisecond)
		before := refreshes(b)
		time.Sleep(24 * time.Minute)
		if len(c) > 0 || refreshes(b) != before {
			t.Error("a fresh token was replaced")
		}
		next("its own renewal", 2*time.Minute)
		if n := refreshes(b) - before; n != 1 {
			t.Errorf("%d refreshes, want 1", n)
		}
		cancel()
		if w, ok := <-c; ok {
			t.Errorf("after its context ended it yielded %+v", w)
		}
	})
}

func TestWatchOfSlowBodyYieldsTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		s, _ := loggedIn(t, b, new(memory.Store))
		defer s.Close()
		var got []*brokerauth.Token
		for token, err := range s.Watch(t.Context()) {
			must(t, err)
			if got = append(got, token); len(got) == 2 {
				break
			}
			for range 5 {
				_, err := s.Refresh(t.Context(), nil)
				must(t, err)
			}
		}
		if got[1].AccessToken != mustToken(t, s).AccessToken {
			t.Error("a slow body did not get the newest token")
		}
	})
}

func TestWatchGoesOnAfterTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		store := new(memory.Store)
		s, _ := session(b, store)
		c := watch(t.Context(), s)
		expect := func(what string, within time.Duration, want error) {
			t.Helper()
			time.Sleep(within)
			synctest.Wait()
			select {
			case w := <-c:
				if !errors.Is(w.err, want) || want == nil && w.err != nil || (w.token != nil) != (want == nil) || len(c) > 0 {
					t.Fatalf("%s: %+v and %d more", what, w, len(c))
				}
			default:
				t.Fatalf("%s: nothing was yielded within %s", what, within)
			}
		}
		expect("before a login", time.Hour, brokerauth.ErrLoginRequired)
		other, _ := session(b, store)
		defer other.Close()
		must(t, other.Login(t.Context(), b.Approve))
		expect("a login in another process", 1100*time.Millisecond, nil)
		b.Inject(emulator.Fault{Status: 503, Times: -1})
		time.Sleep(29 * time.Minute)
		if len(c) > 0 {
			t.Errorf("a passing trouble was told while the token is valid: %+v", <-c)
		}
		expect("an outage", 20*time.Minute, brokerauth.ErrUnavailable)
		b.Inject()
		_, err := other.Refresh(t.Context(), nil)
		must(t, err)
		expect("its end", 1100*time.Millisecond, nil)
		must(t, s.Logout(t.Context()))
		expect("a logout", 0, brokerauth.ErrLoginRequired)
		must(t, s.Close())
		expect("the Session's end", 0, fs.ErrClosed)
		if w, ok := <-c; ok {
			t.Errorf("after that it yielded %+v", w)
		}
		for _, err := range new(brokerauth.Session).Watch(t.Context()) {
			if err == nil {
				t.Error("a Session without a provider was watched")
			}
		}
	})
}

// A look at the record that hangs keeps nobody from this process' own tokens for long.
func TestWatchOutlivesALookThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		store := new(stuck)
		s, _ := loggedIn(t, b, store)
		defer s.Close()
		c := watch(t.Context(), s)
		<-c
		store.hangs.Store(1)
		time.Sleep(2 * time.Second) // it hangs now
		_, err := s.Refresh(t.Context(), nil)
		must(t, err)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if len(c) != 1 {
			t.Errorf("%d tokens, want the newer one", len(c))
		}
	})
}

// held lets one Load go on only when it is told to, with what it has read.
type held struct {
	memory.Store
	reading, read chan bool
}

func (s *held) Load(ctx context.Context, key brokerauth.Key) ([]byte, error) {
	record, err := s.Store.Load(ctx, key)
	select {
	case s.reading <- true:
		<-s.read
	default:
	}
	return record, err
}

// A login that ended while Watch or a Keeper looked at its record does not come back to life.
func TestLookDuringLogout(t *testing.T) {
	for name, look := range map[string]func(ctx context.Context, s *brokerauth.Session){
		"Keeper": func(ctx context.Context, s *brokerauth.Session) {
			k := new(brokerauth.Keeper)
			k.Add(s)
			k.Run(ctx)
		},
		"Watch": func(ctx context.Context, s *brokerauth.Session) {
			for range s.Watch(ctx) {
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := emulator.Schwab(t)
				store := &held{reading: make(chan bool), read: make(chan bool)}
				s, _ := session(b, store)
				defer s.Close()
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan bool)
				if name == "Watch" { // which looks after its first yield only
					go func() { look(ctx, s); close(done) }()
					synctest.Wait()
				}
				other, _ := loggedIn(t, b, store)
				defer other.Close()
				if name == "Keeper" {
					go func() { look(ctx, s); close(done) }()
				}
				<-store.reading
				must(t, s.Logout(t.Context()))
				close(store.read)
				synctest.Wait()
				if token, err := s.Token(t.Context()); !errors.Is(err, brokerauth.ErrLoginRequired) {
					t.Errorf("after a logout Token returns %v, %v", token, err)
				}
				cancel()
				<-done
			})
		})
	}
}
