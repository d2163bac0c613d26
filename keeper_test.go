package brokerauth_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/storage/memory"
)

// keep runs a Keeper over sessions until the returned function is called.
func keep(t *testing.T, sessions ...*brokerauth.Session) (k *brokerauth.Keeper, stop func()) {
	t.Helper()
	k = new(brokerauth.Keeper)
	for _, s := range sessions {
		k.Add(s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan bool)
	go func() {
		k.Run(ctx)
		close(done)
	}()
	return k, func() {
		cancel()
		<-done
	}
}

func TestKeeperRenewsAheadOfTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Latency: 5 * time.Second, Rotate: true})
		s, _ := loggedIn(t, b, new(memory.Store))
		defer s.Close()
		_, stop := keep(t, s)
		for range 5 * 24 * 60 {
			time.Sleep(time.Minute)
			began := time.Now()
			if mustToken(t, s); time.Since(began) > 0 {
				t.Fatalf("a caller waited %s for the broker", time.Since(began))
			}
		}
		if n := refreshes(b); n < 5*57 || n > 5*60 {
			t.Errorf("%d refreshes in five days, want about 58 a day", n)
		}
		stop()
		n := refreshes(b)
		time.Sleep(time.Hour)
		if refreshes(b) != n {
			t.Error("a Keeper that was stopped went on")
		}
	})
}

// counting counts what a store is asked.
type counting struct {
	memory.Store
	asked atomic.Int64
}

func (s *counting) Load(ctx context.Context, key brokerauth.Key) ([]byte, error) {
	s.asked.Add(1)
	return s.Store.Load(ctx, key)
}

func (s *counting) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	s.asked.Add(1)
	return s.Store.CompareAndSwap(ctx, key, old, new)
}

func TestIdleKeeperAsksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		store := &counting{}
		s, _ := loggedIn(t, b, store)
		defer s.Close()
		k, stop := keep(t, s)
		defer stop()
		k.Add(s)
		k.Add(nil)
		synctest.Wait()
		before := store.asked.Load()
		time.Sleep(24 * time.Minute)
		if n := store.asked.Load() - before; n != 0 || refreshes(b) != 0 {
			t.Errorf("a Keeper with nothing to do asked the store %d times, and the broker %d times", n, refreshes(b))
		}
		time.Sleep(2 * time.Minute)
		if n := store.asked.Load() - before; n != 3 || refreshes(b) != 1 {
			t.Errorf("a renewal asked the store %d times, and the broker %d times, want 3 and 1", n, refreshes(b))
		}
		k.Remove(s)
		k.Remove(s)
		time.Sleep(time.Hour)
		if refreshes(b) != 1 {
			t.Error("a Session that was removed was renewed")
		}
		k.Add(s)
		time.Sleep(time.Minute)
		if refreshes(b) != 2 {
			t.Errorf("a Session that was added while the Keeper runs: %d refreshes, want 2", refreshes(b))
		}
		s.Close()
		time.Sleep(time.Hour)
		if refreshes(b) != 2 {
			t.Error("a Session that was closed was renewed")
		}
	})
}

func TestDeadlinesAreAnnouncedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		store := new(memory.Store)
		var mu sync.Mutex
		var told []string
		var loginBy time.Time
		observe := func(e brokerauth.Event) {
			mu.Lock()
			defer mu.Unlock()
			if e.Kind == "deadline" {
				told = append(told, fmt.Sprint(int(e.Within.Hours())))
				if left := time.Until(e.LoginBy); !e.LoginBy.Equal(loginBy) || e.Err == nil || left > e.Within || left < e.Within-time.Minute {
					t.Errorf("%+v, %s before the login's end", e, left)
				}
			}
		}
		open := func() *brokerauth.Session {
			return &brokerauth.Session{Provider: b.Provider(), Store: store, Observe: observe}
		}
		person := open()
		defer person.Close()
		for range 2 {
			must(t, person.Login(t.Context(), b.Approve))
			loginBy = mustToken(t, person).LoginBy
			told = nil
			for time.Until(loginBy) > 0 {
				// Three processes that start anew every 7 hours or so.
				var stops []func()
				for range 3 {
					s := open()
					_, stop := keep(t, s)
					stops = append(stops, stop, func() { s.Close() })
				}
				time.Sleep(min(7*time.Hour+13*time.Minute, time.Until(loginBy)))
				for _, stop := range stops {
					stop()
				}
			}
			if want := []string{"48", "24", "6", "1"}; !slices.Equal(told, want) {
				t.Errorf("announced %v, want %v", told, want)
			}
		}
	})
}

// What was not announced in time is not made up for, and a login that lives for a day is not announced two days ahead.
func TestDeadlinesThatAreLeftOut(t *testing.T) {
	for name, test := range map[string]struct {
		life, age time.Duration
		want      []time.Duration
	}{
		"started late":  {7 * 24 * time.Hour, 6*24*time.Hour + 20*time.Hour, []time.Duration{6 * time.Hour, time.Hour}},
		"daily login":   {24 * time.Hour, 0, []time.Duration{6 * time.Hour, time.Hour}},
		"already over":  {7 * 24 * time.Hour, 7*24*time.Hour + time.Minute, nil},
		"an hour's one": {time.Hour, 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				now := time.Now()
				p := &mint{life: 30 * time.Minute}
				var got []time.Duration
				s := &brokerauth.Session{Provider: p, Store: new(memory.Store), Observe: func(e brokerauth.Event) {
					if e.Kind == "deadline" {
						got = append(got, e.Within)
					}
				}}
				defer s.Close()
				must(t, s.Save(t.Context(), &brokerauth.Token{AccessToken: "emulated.a", Issued: now, Expiry: now.Add(30 * time.Minute),
					LoggedInAt: now.Add(-test.age), LoginBy: now.Add(test.life - test.age)}))
				_, stop := keep(t, s)
				time.Sleep(max(time.Hour, test.life-test.age))
				stop()
				if !slices.Equal(got, test.want) {
					t.Errorf("announced %v, want %v", got, test.want)
				}
			})
		})
	}
}

// mint is a provider in memory that counts what it is asked, and how often too late.
type mint struct {
	life, latency time.Duration

	mu     sync.Mutex
	asked  map[int64]int // by second
	total  int
	misses int
	serial int
}

func (m *mint) Info() brokerauth.Info {
	return brokerauth.Info{Name: "mint", Settings: "s", BaseURL: "https://mint.invalid", Margin: 5 * time.Minute}
}

func (m *mint) Refresh(_ context.Context, old *brokerauth.Token) (*brokerauth.Token, error) {
	sent := time.Now()
	time.Sleep(m.latency)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.asked == nil {
		m.asked = map[int64]int{}
	}
	m.asked[sent.Unix()]++
	m.total++
	m.serial++
	if old != nil && !sent.Before(old.Expiry) {
		m.misses++
	}
	t := &brokerauth.Token{RefreshToken: "emulated.r"}
	if old != nil {
		t = old.Clone()
	}
	t.AccessToken, t.Issued, t.Expiry = fmt.Sprintf("emulated.m%063d", m.serial), sent, sent.Add(m.life) // never one of herd's
	return t, nil
}

// load is the most requests in a second, and how many there were on average.
func (m *mint) load(over time.Duration) (peak int, mean float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.asked {
		peak = max(peak, n)
	}
	return peak, float64(m.total) / over.Seconds()
}

// herd makes n Sessions whose tokens were all issued at one moment.
func herd(tb testing.TB, n int, p *mint, store brokerauth.Store) []*brokerauth.Session {
	tb.Helper()
	sessions := make([]*brokerauth.Session, n)
	now := time.Now()
	for i := range sessions {
		sessions[i] = &brokerauth.Session{Provider: p, Store: store, Profile: fmt.Sprint("p", i), Observe: func(brokerauth.Event) {}}
		one := &brokerauth.Session{Provider: p, Store: store, Profile: sessions[i].Profile}
		if err := one.Save(context.Background(), &brokerauth.Token{AccessToken: fmt.Sprintf("emulated.%064d", i), RefreshToken: "emulated.r",
			Issued: now, Expiry: now.Add(p.life), LoggedInAt: now, LoginBy: now.Add(7 * 24 * time.Hour)}); err != nil {
			tb.Fatal(err)
		}
	}
	return sessions
}

// A herd of logins, all renewed at one moment, is spread, stays so over a restart, and no token ever ends. BenchmarkKeeper
// runs it, too, with a large one.
func TestKeeperSpreadsAHerd(t *testing.T) {
	n, runs, over := 2000, 2, 10*time.Minute // enough that a renewal more in a second, by chance, is not much
	if os.Getenv("HERD") == "large" {
		n, runs, over = 100_000, 1, 5*time.Minute
	}
	synctest.Test(t, func(t *testing.T) {
		p := &mint{life: 5 * time.Minute, latency: 50 * time.Millisecond}
		store := new(memory.Store)
		sessions := herd(t, n, p, store)
		for run := range runs {
			p.mu.Lock()
			p.asked, p.total = nil, 0
			p.mu.Unlock()
			_, stop := keep(t, sessions...)
			time.Sleep(over)
			stop()
			for _, s := range sessions {
				s.Close() // waits for what was sent
			}
			peak, mean := p.load(over)
			t.Logf("run %d: %d requests, %.2f a second, at most %d", run, p.total, mean, peak)
			if p.misses > 0 || float64(peak) > 2*mean {
				t.Errorf("run %d: %d tokens ended before they were renewed, and a second had %d requests, more than twice the mean of %.2f", run, p.misses, peak, mean)
			}
			for i, s := range sessions {
				sessions[i] = &brokerauth.Session{Provider: p, Store: store, Profile: s.Profile, Observe: s.Observe}
			}
		}
		for _, s := range sessions {
			s.Close()
		}
	})
}

// Programs with a Keeper each, over the same herd, renew each token once: what one of them does early it does for all.
func TestKeepersOfOneHerd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, programs, life, over = 300, 8, 30 * time.Minute, 4 * time.Hour
		p := &mint{life: life, latency: 50 * time.Millisecond}
		store := &counting{}
		var mu sync.Mutex
		renewed := map[string][]time.Time{}
		var stops []func()
		for i := range programs {
			var sessions []*brokerauth.Session
			if i == 0 {
				sessions = herd(t, n, p, store)
			}
			for j := len(sessions); j < n; j++ {
				sessions = append(sessions, &brokerauth.Session{Provider: p, Store: store, Profile: fmt.Sprint("p", j)})
			}
			for _, s := range sessions {
				s.Observe = func(e brokerauth.Event) {
					if e.Kind == "refreshed" {
						mu.Lock()
						defer mu.Unlock()
						renewed[s.Profile] = append(renewed[s.Profile], time.Now())
					}
				}
			}
			_, stop := keep(t, sessions...)
			stops = append(stops, stop, func() {
				for _, s := range sessions {
					s.Close()
				}
			})
			time.Sleep(3 * time.Second) // they are started one after the other
		}
		before := store.asked.Load()
		time.Sleep(over)
		for _, stop := range stops {
			stop()
		}
		asked := float64(store.asked.Load()-before) / float64(p.total)
		peak, mean := p.load(over)
		due := n * float64(over) / float64(life-5*time.Minute)
		short := 0
		for _, times := range renewed {
			for i := range times[1:] {
				if times[i+1].Sub(times[i]) < life/2 {
					short++
				}
			}
		}
		t.Logf("%d refreshes where %.0f are due, %d of them of a token in its first half; at most %d a second, mean %.2f; the store was asked %.1f times a refresh",
			p.total, due, short, peak, mean, asked)
		if p.misses > 0 || short > p.total/100 || float64(p.total) > 1.1*due {
			t.Errorf("%d refreshes where %.0f are due, %d of them of a token in its first half, and %d tokens ended before", p.total, due, short, p.misses)
		}
	})
}

// A token that somebody else is renewing is no failure: the Keeper comes back for the new one, and tells nobody.
func TestKeeperLeavesARenewalToItsHolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Rotate: true, Latency: 15 * time.Second})
		store := new(memory.Store)
		one, _ := loggedIn(t, b, store)
		defer one.Close()
		mustToken(t, one)
		two, e := session(b, store)
		defer two.Close()
		time.Sleep(26 * time.Minute) // due, and valid
		go one.Token(t.Context())
		time.Sleep(time.Second)
		_, stop := keep(t, two)
		time.Sleep(2 * time.Second)
		stop()
		_, stop = keep(t, two)
		time.Sleep(time.Minute)
		stop()
		if e.has("failed") || refreshes(b) != 1 || !honoured(t, b, mustToken(t, two)) {
			t.Errorf("%d refreshes, want 1; events %v", refreshes(b), e.kinds())
		}
	})
}

// A broker whose tokens are due when they are issued, or a moment later, is not asked without end.
func TestKeeperOfTokensThatAreNeverFresh(t *testing.T) {
	for life, most := range map[time.Duration]int{-time.Second: 10, time.Nanosecond: 610} {
		synctest.Test(t, func(t *testing.T) {
			p := &mint{life: life}
			s := &brokerauth.Session{Provider: p, Store: new(memory.Store), Observe: func(brokerauth.Event) {}}
			defer s.Close()
			_, stop := keep(t, s)
			time.Sleep(10 * time.Minute)
			stop()
			if p.total < 1 || p.total > most {
				t.Errorf("tokens that live for %s: %d requests in 10 minutes, want at most %d", life, p.total, most)
			}
		})
	}
}

// stuck is a store that does not answer the next so many loads, until whoever asks gives up.
type stuck struct {
	memory.Store
	hangs atomic.Int64
}

func (s *stuck) Load(ctx context.Context, key brokerauth.Key) ([]byte, error) {
	if s.hangs.Add(-1) >= 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return s.Store.Load(ctx, key)
}

// A store that hung for a while stops a Keeper no longer than that, and a bit.
func TestKeeperOutlivesAStoreThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		store := new(stuck)
		s, _ := loggedIn(t, b, store)
		defer s.Close()
		_, stop := keep(t, s)
		defer stop()
		store.hangs.Store(1 << 20)
		time.Sleep(time.Hour)
		store.hangs.Store(0)
		time.Sleep(20 * time.Minute)
		if p := refreshes(b); p != 1 {
			t.Errorf("%d refreshes after the store had hung, want 1", p)
		}
	})
}
