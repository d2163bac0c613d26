package brokerauth_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/storage/memory"
)

// link is one program's way to a store that several share: its calls may take long, or fail.
type link struct {
	brokerauth.Store
	loads, swaps atomic.Int64 // how long they take
	cut          atomic.Bool
	lost         atomic.Bool // the next swap is done, and the link cut before its answer
}

func (l *link) wait(ctx context.Context, takes *atomic.Int64) error {
	select {
	case <-time.After(time.Duration(takes.Load())):
	case <-ctx.Done():
		return ctx.Err()
	}
	if l.cut.Load() {
		return errDisk
	}
	return nil
}

func (l *link) Load(ctx context.Context, key brokerauth.Key) ([]byte, error) {
	if err := l.wait(ctx, &l.loads); err != nil {
		return nil, err
	}
	return l.Store.Load(ctx, key)
}

func (l *link) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	if err := l.wait(ctx, &l.swaps); err != nil {
		return false, err
	}
	swapped, err := l.Store.CompareAndSwap(ctx, key, old, new)
	if !strings.HasPrefix(key.Provider, "~") && l.lost.CompareAndSwap(true, false) { // not that of a probe
		l.cut.Store(true)
		return false, errDisk
	}
	return swapped, err
}

// A program has the broker's answer and cannot save it, and nobody asks it for a token again: it saves the answer once
// the store is back, and before anybody takes its claim for abandoned, however long that was.
func TestStoreThatComesBack(t *testing.T) {
	for name, test := range map[string]struct {
		away time.Duration
		both bool // or it is away for the one that has the answer
	}{
		"for the holder":       {12 * time.Second, false},
		"for all, for seconds": {12 * time.Second, true},
		"for all, for minutes": {5 * time.Minute, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := emulator.Schwab(t, emulator.Config{Rotate: true, Latency: 2 * time.Second})
				shared := new(memory.Store)
				mine, others := &link{Store: shared}, &link{Store: shared}
				holder, e := loggedIn(t, b, mine)
				defer holder.Close()
				waiter, _ := session(b, others)
				defer waiter.Close()
				time.Sleep(31 * time.Minute)
				// Both see the claim; then the store goes away, before the answer.
				time.AfterFunc(time.Second, func() {
					mine.cut.Store(true)
					others.cut.Store(test.both)
				})
				time.AfterFunc(time.Second+test.away, func() {
					mine.cut.Store(false)
					others.cut.Store(false)
				})
				got := make(chan *brokerauth.Token)
				go func() {
					time.Sleep(time.Millisecond)
					token, err := waiter.Token(t.Context())
					for errors.Is(err, errDisk) {
						time.Sleep(time.Second)
						token, err = waiter.Token(t.Context())
					}
					if err != nil {
						t.Errorf("a waiter got %v", err)
					}
					got <- token
				}()
				want := mustToken(t, holder)
				if token := <-got; token == nil || token.AccessToken != want.AccessToken || refreshes(b) != 1 || !e.has("saved") {
					t.Errorf("%d refreshes, want 1, and its token for all; the holder's events: %v", refreshes(b), e.kinds())
				}
			})
		})
	}
}

// The holder of a claim is cut off for so long that another program takes the claim over, and spends the refresh token once
// more. What that has cost is told as what it is, though the holder saves its answer in the end.
func TestClaimTakenOverIsNoStranger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Rotate: true, Latency: 2 * time.Second})
		shared := new(memory.Store)
		mine := &link{Store: shared}
		holder, e := loggedIn(t, b, mine)
		defer holder.Close()
		other, _ := session(b, shared)
		defer other.Close()
		time.Sleep(31 * time.Minute)
		time.AfterFunc(time.Second, func() { mine.cut.Store(true) })
		mustToken(t, holder)
		if _, err := other.Token(t.Context()); !errors.Is(err, brokerauth.ErrLoginRequired) || !strings.Contains(err.Error(), "may have been rotated") {
			t.Fatalf("who took the claim over: %v", err)
		}
		mine.cut.Store(false)
		time.Sleep(31 * time.Minute)
		for _, s := range []*brokerauth.Session{holder, other} {
			if _, err := s.Token(t.Context()); !errors.Is(err, brokerauth.ErrLoginRequired) || !strings.Contains(err.Error(), "may have been rotated") {
				t.Errorf("once the holder's answer is saved (%v): %v", e.kinds(), err)
			}
		}
	})
}

// Whoever logs out while a login is being saved at last is logged out.
func TestLogoutWhileALoginIsSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		shared := new(memory.Store)
		store := &link{Store: shared}
		s, e := session(b, store)
		defer s.Close()
		time.AfterFunc(time.Second, func() { store.swaps.Store(int64(time.Hour)) }) // once the person is at the login page
		slowly := func(ctx context.Context, login *brokerauth.Login, finish func(context.Context, string) error) error {
			time.Sleep(2 * time.Second)
			return b.Approve(ctx, login, finish)
		}
		if err := s.Login(t.Context(), slowly); err == nil || !e.has("unsaved") {
			t.Fatalf("%v; events: %v", err, e.kinds())
		}
		store.swaps.Store(int64(8 * time.Second))
		time.Sleep(3 * time.Second) // the swap is on its way
		store.swaps.Store(0)
		must(t, s.Logout(t.Context()))
		time.Sleep(time.Minute)
		if keys, err := shared.Keys(t.Context()); err != nil || len(keys) > 0 || e.has("saved") {
			t.Errorf("still stored: %v, %v; events: %v", keys, err, e.kinds())
		}
		if _, err := s.Token(t.Context()); !errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Errorf("Token after a logout: %v", err)
		}
	})
}

// A login was saved and its program does not know, because the answer was lost. Another program finds it and renews it:
// the first one's next try must not bring the old tokens back.
func TestLoginThatWasSavedAfterAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Rotate: true})
		shared := new(memory.Store)
		mine := &link{Store: shared}
		mine.lost.Store(true)
		s, _ := session(b, mine)
		defer s.Close()
		if err := s.Login(t.Context(), b.Approve); !errors.Is(err, errDisk) {
			t.Fatal(err)
		}
		other, _ := session(b, shared)
		defer other.Close()
		first := mustToken(t, other)
		time.Sleep(26 * time.Minute)
		if second := mustToken(t, other); second.AccessToken == first.AccessToken || refreshes(b) != 1 {
			t.Fatalf("%d refreshes, want 1", refreshes(b))
		}
		mine.cut.Store(false)
		time.Sleep(time.Hour)
		for _, s := range []*brokerauth.Session{s, other} {
			if token := mustToken(t, s); !honoured(t, b, token) {
				t.Error("the old tokens came back")
			}
		}
	})
}

// The store answers, but late: what a waiter sees late was done late, too.
func TestStoreThatIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Rotate: true})
		shared := new(memory.Store)
		mine, others := &link{Store: shared}, &link{Store: shared}
		holder, _ := loggedIn(t, b, mine)
		defer holder.Close()
		waiter, _ := session(b, others)
		defer waiter.Close()
		time.Sleep(31 * time.Minute)
		others.loads.Store(int64(8 * time.Second))
		mine.loads.Store(int64(8 * time.Second))
		mine.swaps.Store(int64(8 * time.Second))
		time.AfterFunc(10*time.Second, func() { mine.swaps.Store(int64(11 * time.Second)) }) // longer than one write may take
		time.AfterFunc(time.Minute, func() { mine.swaps.Store(int64(8 * time.Second)) })
		want := make(chan *brokerauth.Token)
		go func() { want <- mustToken(t, holder) }()
		time.Sleep(20 * time.Second)
		token := mustToken(t, waiter)
		if held := <-want; token.AccessToken != held.AccessToken || refreshes(b) != 1 {
			t.Errorf("%d refreshes, want 1", refreshes(b))
		}
	})
}

// A store that hangs keeps nobody from a token that is good: saving it is tried again behind the callers' backs.
func TestStoreThatHangsHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Rotate: true, Latency: 2 * time.Second})
		store := &link{Store: new(memory.Store)}
		s, e := loggedIn(t, b, store)
		defer s.Close()
		time.Sleep(31 * time.Minute)
		time.AfterFunc(time.Second, func() { store.swaps.Store(int64(time.Hour)) })
		token := mustToken(t, s)
		for time.Until(token.Expiry) > time.Second { // it is due for renewal in the last minutes
			asked := time.Now()
			mustToken(t, s)
			if d := time.Since(asked); d > 0 {
				t.Fatalf("a caller waited for %v, with %v of the token left", d, time.Until(token.Expiry))
			}
			time.Sleep(time.Second)
		}
		store.swaps.Store(0)
		time.Sleep(30 * time.Second) // a try that hangs ends after ten, and the next follows within 12.5
		if mustToken(t, s); !e.has("unsaved") || !e.has("saved") || refreshes(b) != 2 {
			t.Errorf("%d refreshes, want 2; events: %v", refreshes(b), e.kinds())
		}
	})
}
