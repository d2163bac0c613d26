package brokerauth_test

import (
	"bytes"
	"context"
	"encoding/json"
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
	"github.com/brokerauth/brokerauth/storage/memory"
)

// otherClock is a store as a host sees it whose clock is ahead, or behind if negative. All that hosts know of each
// other's clocks is in the record, so that it is the same as if the host's clock were wrong.
type otherClock struct {
	brokerauth.Store
	mu    sync.Mutex
	ahead time.Duration
	whole map[string][]byte // what stands in the store, by what this host saw of it
}

func (c *otherClock) Load(ctx context.Context, key brokerauth.Key) ([]byte, error) {
	raw, err := c.Store.Load(ctx, key)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := shifted(raw, c.ahead)
	if c.whole == nil {
		c.whole = map[string][]byte{}
	}
	c.whole[string(seen)] = raw
	return seen, nil
}

func (c *otherClock) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	c.mu.Lock()
	whole := map[bool][]byte{true: nil, false: shifted(new, -c.ahead)}[new == nil]
	if was, ok := c.whole[string(old)]; ok {
		old = was
	} else if old != nil {
		old = shifted(old, -c.ahead)
	}
	if new != nil {
		if c.whole == nil {
			c.whole = map[string][]byte{}
		}
		c.whole[string(new)] = whole
	}
	c.mu.Unlock()
	return c.Store.CompareAndSwap(ctx, key, old, whole)
}

// set moves the host's clock.
func (c *otherClock) set(ahead time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead, c.whole = ahead, nil
}

// shifted is a record whose times are all later by d.
func shifted(raw []byte, d time.Duration) []byte {
	if d == 0 {
		return raw
	}
	var v any
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	if decoder.Decode(&v) != nil {
		return raw
	}
	var walk func(v any) any
	walk = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			for name, x := range v {
				v[name] = walk(x)
			}
		case []any:
			for i, x := range v {
				v[i] = walk(x)
			}
		case string:
			if at, err := time.Parse(time.RFC3339Nano, v); err == nil {
				return at.Add(d).Format(time.RFC3339Nano)
			}
		}
		return v
	}
	b, err := json.Marshal(walk(v))
	if err != nil {
		return raw
	}
	return b
}

// said is what a process that serves got, and when.
type said struct {
	kind  string
	took  time.Duration
	token string
}

func (p *process) said(t *testing.T) said {
	t.Helper()
	line := p.Line()
	var s said
	var ms int64
	if _, err := fmt.Sscanf(line, "%s %d %s", &s.kind, &ms, &s.token); err != nil {
		t.Fatalf("a process said %q", line)
	}
	s.took = time.Duration(ms) * time.Millisecond
	return s
}

// asks waits until the broker has n refreshes.
func asks(t *testing.T, b *emulator.Broker, n int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); refreshes(b) < n; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after a minute the broker has %d refreshes, not %d", refreshes(b), n)
		}
	}
}

// A holder that is killed while the broker thinks: its death is seen, so that the others go on at once. One that is
// stopped past its claim's life cannot be told from a dead one on another host: the others wait for as long as that, and
// when it goes on it takes what they saved.
func TestHolderThatIsGone(t *testing.T) {
	for name, killed := range map[string]bool{"killed": true, "stopped": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if !killed && !canStop {
				t.Skip("this system stops no process")
			}
			b, s, baseURL, dir := served(t, emulator.Config{})
			expire(t, s)
			b.Inject(emulator.Fault{Delay: 10 * time.Second}) // of the holder's request
			holder := start(t, "serve", baseURL, dir)
			waiters := make([]*process, 8)
			for i := range waiters {
				waiters[i] = start(t, "serve", baseURL, dir)
			}
			holder.Tell("go")
			asks(t, b, 1)
			for _, w := range waiters {
				w.Tell("go")
			}
			if killed {
				must(t, holder.Process.Kill())
				holder.Wait()
			} else {
				stopProcess(t, holder)
			}
			var got []said
			for _, w := range waiters {
				got = append(got, w.said(t))
			}
			for _, w := range got {
				if w.kind != "token" || w.token != got[0].token {
					t.Errorf("a waiter got %+v, another %+v", w, got[0])
				}
				if killed && w.took > 20*time.Second || !killed && (w.took < 20*time.Second || w.took > 50*time.Second) {
					t.Errorf("a waiter got its token after %s", w.took)
				}
			}
			if n := refreshes(b); n != 2 {
				t.Errorf("%d requests, want the holder's and one more", n)
			}
			if !killed {
				continueProcess(t, holder)
				if h := holder.said(t); h.kind != "token" || h.token != got[0].token {
					t.Errorf("the holder that went on got %+v, the others %+v", h, got[0])
				}
				waiters[0].Tell("go")
				if again := waiters[0].said(t); again.token != got[0].token || refreshes(b) != 2 {
					t.Errorf("the holder that went on replaced the newer token: %+v, %d requests", again, refreshes(b))
				}
			}
			t.Logf("served after %s", got[0].took)
		})
	}
}

// Processes on hosts whose clocks are 20 minutes apart, in all zones, see one refresh.
func TestManyClocksOneRefresh(t *testing.T) {
	for _, skew := range []string{"20m", "-20m"} {
		t.Run(skew, func(t *testing.T) {
			t.Parallel()
			b, s, baseURL, dir := served(t, emulator.Config{Latency: 300 * time.Millisecond, Rotate: true})
			rewrite(t, s, func(record map[string]any) { // dead by every clock
				token := record["token"].(map[string]any)
				token["issued"], token["expiry"] = time.Now().Add(-2*time.Hour), time.Now().Add(-90*time.Minute)
			})
			var hosts []*process
			for _, zone := range []string{"America/New_York", "Asia/Kolkata", "UTC", "Pacific/Auckland"} {
				for _, skew := range []string{skew, "0s"} {
					hosts = append(hosts, start(t, "serve", baseURL, dir, "TZ="+zone, "CHILD_SKEW="+skew))
				}
			}
			for _, h := range hosts {
				h.Tell("go")
			}
			var first said
			for i, h := range hosts {
				got := h.said(t)
				if i == 0 {
					first = got
				}
				if got.kind != "token" || got.token != first.token || got.took > 20*time.Second {
					t.Errorf("a host got %+v, another %+v", got, first)
				}
			}
			if n := refreshes(b); n != 1 {
				t.Errorf("%d refreshes, want 1", n)
			}
		})
	}
}

// The same for six days, with a broker that takes three times as long as usual: no refresh token is spent twice, and there
// are not many more refreshes than by right clocks. A token that a host believes in for too long, because the one that got
// it is ahead, is renewed when the API refuses it, unseen by whoever calls that.
func TestWrongClocksForDays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Latency: 3 * time.Second, Rotate: true})
		store := new(memory.Store)
		first, _ := loggedIn(t, b, store)
		defer first.Close()
		var wg sync.WaitGroup
		for _, ahead := range []time.Duration{-13 * time.Minute, 0, 7 * time.Minute} {
			s, _ := session(b, &otherClock{Store: store, ahead: ahead})
			defer s.Close()
			api := s.Client(&http.Client{Transport: b})
			wg.Go(func() {
				for range 6 * 24 * 60 {
					time.Sleep(time.Minute)
					resp, err := api.Get("https://api.schwabapi.com/trader/v1/accounts/accountNumbers")
					if err != nil || resp.StatusCode != http.StatusOK {
						t.Errorf("a host whose clock is %s ahead: %v, %v", ahead, resp, err)
						return
					}
				}
			})
		}
		wg.Wait()
		n := refreshes(b)
		t.Logf("%d refreshes in six days", n)
		if n > 2*6*58 {
			t.Errorf("%d refreshes in six days, want %d by right clocks and at most twice that", n, 6*58)
		}
	})
}

// A clock that is set while a refresh is under way, as NTP does once a computer is online, makes nobody take the claim of a
// process of this machine that lives.
func TestClockSetDuringARefresh(t *testing.T) {
	for _, ahead := range []time.Duration{-25 * time.Hour, -61 * time.Minute, 61 * time.Minute, 25 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			b := emulator.Schwab(t, emulator.Config{Latency: 3 * time.Second, Rotate: true})
			store := new(memory.Store)
			holder, _ := loggedIn(t, b, store)
			defer holder.Close()
			time.Sleep(31 * time.Minute)
			done := make(chan error)
			go func() {
				_, err := holder.Token(t.Context())
				done <- err
			}()
			time.Sleep(time.Second)
			other, _ := session(b, &otherClock{Store: store, ahead: ahead})
			defer other.Close()
			_, err := other.Token(t.Context())
			if err := errors.Join(err, <-done); err != nil {
				t.Errorf("a clock %s ahead: %v", ahead, err)
			}
			if _, err := holder.Refresh(t.Context(), nil); err != nil { // the broker takes a spent refresh token for theft
				t.Errorf("a clock %s ahead cost the login: %v", ahead, err)
			}
		})
	}
}

// A store that fails between the request and its save: one holder has the token, the others wait and get it once it is
// saved, and nobody asks again. A store that fails before: nobody asks at all.
func TestStoreThatFailsAroundARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Latency: time.Second, Rotate: true})
		store := &flaky{}
		holder, e := loggedIn(t, b, store)
		defer holder.Close()
		time.Sleep(31 * time.Minute)
		store.failWhen(func(_, _ []byte) error { return errDisk })
		var sessions []*brokerauth.Session
		for range 8 {
			s, _ := session(b, store)
			defer s.Close()
			sessions = append(sessions, s)
			began := time.Now()
			if _, err := s.Token(t.Context()); !errors.Is(err, errDisk) || time.Since(began) > time.Second {
				t.Errorf("before the request: %v after %s", err, time.Since(began))
			}
		}
		if n := refreshes(b); n != 0 {
			t.Fatalf("%d requests whose answer could not have been saved", n)
		}
		// From now on a claim can be saved, and an answer cannot, for ten seconds.
		began := time.Now()
		store.failWhen(func(old, _ []byte) error {
			if claimed(old) && time.Since(began) < 10*time.Second {
				return errDisk
			}
			return nil
		})
		done := make(chan *brokerauth.Token)
		go func() { done <- mustToken(t, holder) }()
		synctest.Wait()
		var wg sync.WaitGroup
		var mu sync.Mutex
		var got []string
		for _, s := range sessions {
			wg.Go(func() {
				token := mustToken(t, s)
				mu.Lock()
				defer mu.Unlock()
				got = append(got, fmt.Sprint(time.Since(began).Round(time.Second), token.AccessToken))
			})
		}
		token := <-done
		if !e.has("unsaved") || !honoured(t, b, token) {
			t.Errorf("the holder's events: %v", e.kinds())
		}
		for range 20 { // it is in use
			time.Sleep(time.Second)
			mustToken(t, holder)
		}
		wg.Wait()
		for _, one := range got {
			if one != got[0] || !strings.HasSuffix(one, token.AccessToken) {
				t.Errorf("one waiter got %.30s, another %.30s, the holder %.20s", one, got[0], token.AccessToken)
			}
		}
		if n := refreshes(b); n != 1 || !e.has("saved") {
			t.Errorf("%d requests, want 1; events %v", n, e.kinds())
		}
		t.Logf("the waiters were served after %s", strings.SplitN(got[0], "e", 2)[0])
	})
}

// Refresh tokens that may be spent once, with a broker that ends the login at a second use: 16 processes, 50 expiries, answers
// that are late, and some that are cut before the broker has decided.
func TestSingleUseRefreshTokens(t *testing.T) {
	t.Parallel()
	const processes, expiries, cuts = 16, 50, 3
	b, s, baseURL, dir := served(t, emulator.Config{Rotate: true})
	children := make([]*process, processes)
	for i := range children {
		children[i] = start(t, "serve", baseURL, dir)
	}
	last := ""
	for round := range expiries {
		rewrite(t, s, func(record map[string]any) {
			token := record["token"].(map[string]any)
			token["issued"], token["expiry"] = time.Now().Add(-31*time.Minute), time.Now().Add(-time.Minute)
		})
		switch {
		case round%17 == 9: // so three times
			b.Inject(emulator.Fault{Drop: true})
		case round%2 == 0:
			b.Inject(emulator.Fault{Delay: 20 * time.Millisecond}, emulator.Fault{Late: true, Delay: 20 * time.Millisecond})
		}
		for _, c := range children {
			c.Tell("go")
		}
		var first said
		for i, c := range children {
			got := c.said(t)
			if i == 0 {
				first = got
			}
			if got.kind != "token" || got.token != first.token || got.token == last {
				t.Fatalf("expiry %d: a process got %+v, another %+v, and all had %.20s before", round, got, first, last)
			}
		}
		last = first.token
	}
	granted := 0
	for _, r := range b.Requests() {
		if r.GrantType == "refresh_token" && r.Status == 200 {
			granted++
		}
	}
	if n := refreshes(b); granted != expiries || n != expiries+cuts {
		t.Errorf("%d grants by %d requests, want %d and %d cut ones more", granted, n, expiries, cuts)
	}
}

// A request that arrives twice, as one does that a proxy repeats, costs nothing where the refresh token stays the same.
func TestRequestThatArrivesTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		store := new(memory.Store)
		s, e := loggedIn(t, b, store)
		defer s.Close()
		for range 50 {
			time.Sleep(31 * time.Minute)
			b.Inject(emulator.Fault{Twice: true})
			if !honoured(t, b, mustToken(t, s)) {
				t.Fatal("the broker does not honour the token")
			}
		}
		if e.has("failed") {
			t.Errorf("events %v", e.kinds())
		}
	})
}

// An answer that is cut after the broker has decided is lost, with the refresh token in it: eight programs learn that it may
// have been rotated, at the cost of one request more, and a login heals them all.
func TestAnswerCutAfterTheBrokerDecided(t *testing.T) {
	for name, fault := range map[string]emulator.Fault{"cut": {Late: true, Cut: true}, "dropped": {Late: true, Drop: true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := emulator.Schwab(t, emulator.Config{Latency: time.Second, Rotate: true})
				store := new(memory.Store)
				first, _ := loggedIn(t, b, store)
				defer first.Close()
				time.Sleep(31 * time.Minute)
				b.Inject(fault)
				var sessions []*brokerauth.Session
				for range 8 {
					s, _ := session(b, store)
					defer s.Close()
					sessions = append(sessions, s)
				}
				all := func(check func(err error)) {
					var wg sync.WaitGroup
					for _, s := range sessions {
						wg.Go(func() {
							_, err := s.Token(t.Context())
							check(err)
						})
					}
					wg.Wait()
				}
				sent := time.Now().Local()
				all(func(err error) {
					if !errors.Is(err, brokerauth.ErrUnavailable) {
						t.Errorf("the answer was lost: %v", err)
					}
				})
				time.Sleep(time.Minute)
				all(func(err error) {
					if !errors.Is(err, brokerauth.ErrLoginRequired) || !strings.Contains(err.Error(), "may have been rotated") ||
						!strings.Contains(err.Error(), sent.Format(time.TimeOnly)) {
						t.Errorf("the refresh token may have been rotated at %s: %v", sent, err)
					}
				})
				if n := refreshes(b); n != 2 {
					t.Errorf("%d requests, want 2", n)
				}
				must(t, first.Login(t.Context(), b.Approve))
				all(func(err error) { must(t, err) })
			})
		})
	}
}
