package brokerauth_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/storage/memory"
)

// movable is a host whose wall clock moves while its monotonic clock does not. synctest moves both together, so the
// move is made in all that a Session sees of the wall clock: the times in the record, and those of the token in hand.
type movable struct {
	*brokerauth.Session
	clock *otherClock
}

func (m *movable) move(d time.Duration) {
	m.clock.set(m.clock.ahead - d)
	m.MoveWall(d)
}

// A laptop sleeps for eight hours, in which its monotonic clock stands still; a clock is set back by an hour, or forward. In
// each case the next token is good, and costs one refresh at most.
func TestWallClockThatMoves(t *testing.T) {
	for name, test := range map[string]struct {
		move  time.Duration // of the wall clock
		slept bool          // the broker's time has passed, too
	}{
		"eight hours' sleep":       {8 * time.Hour, true},
		"two minutes' sleep":       {2 * time.Minute, true},
		"set back by an hour":      {-time.Hour, false},
		"set back by 10 minutes":   {-10 * time.Minute, false},
		"set forward by an hour":   {time.Hour, false},
		"set forward by 10 minute": {10 * time.Minute, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := emulator.Schwab(t, emulator.Config{Rotate: true})
				clock := &otherClock{Store: new(memory.Store)}
				s, _ := loggedIn(t, b, clock)
				defer s.Close()
				m := &movable{s, clock}
				time.Sleep(20 * time.Minute)
				mustToken(t, s)
				if m.move(test.move); test.slept {
					b.Advance(test.move)
				}
				for range 60 { // the next minutes, and half an hour, and more
					if !honoured(t, b, mustToken(t, s)) {
						t.Fatal("a dead token was served")
					}
					time.Sleep(time.Minute)
				}
				if n := refreshes(b); n > 4 {
					t.Errorf("%d refreshes in an hour", n)
				}
			})
		})
	}
}

// A Keeper on a laptop that has slept renews when it notices, and not when its timer would have it.
func TestKeeperAfterSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		clock := &otherClock{Store: new(memory.Store)}
		s, _ := loggedIn(t, b, clock)
		defer s.Close()
		k, stop := keep(t, s)
		defer stop()
		time.Sleep(5 * time.Minute)
		(&movable{s, clock}).move(8 * time.Hour)
		b.Advance(8 * time.Hour)
		k.Replan()
		time.Sleep(2 * time.Second)
		if refreshes(b) != 1 || !honoured(t, b, mustToken(t, s)) {
			t.Errorf("%d refreshes after eight hours' sleep, want 1", refreshes(b))
		}
	})
}

// The zone of a host, and a change to summer time, change nothing: times are kept in UTC.
func TestZoneThatChanges(t *testing.T) {
	zone := time.Local
	defer func() { time.Local = zone }()
	for _, name := range []string{"America/New_York", "Asia/Kolkata", "Pacific/Apia"} {
		there, err := time.LoadLocation(name)
		if err != nil {
			t.Skip("this system knows no zones")
		}
		synctest.Test(t, func(t *testing.T) {
			// New York changes its clocks on 2 April 2000.
			time.Sleep(time.Until(time.Date(2000, 4, 1, 12, 0, 0, 0, time.UTC)))
			b := emulator.Schwab(t)
			store := new(memory.Store)
			time.Local = there
			s, _ := loggedIn(t, b, store)
			defer s.Close()
			for i := range 48 * 4 {
				time.Sleep(15 * time.Minute)
				if i == 100 {
					time.Local = time.UTC
				}
				other, _ := session(b, store)
				if !honoured(t, b, mustToken(t, other)) || !honoured(t, b, mustToken(t, s)) {
					t.Fatal("a dead token was served")
				}
				other.Close()
			}
			if n := refreshes(b); n > 2*60 {
				t.Errorf("%d refreshes in two days", n)
			}
		})
	}
}
