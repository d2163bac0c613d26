package brokerauth_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/storage/memory"
)

// moody is one host's way to a store that several share. A call takes up to 0.3 s, and one in seven fails, of which half
// the swaps were done.
type moody struct {
	brokerauth.Store
	mu  sync.Mutex
	rng *rand.Rand
}

func (m *moody) fails(ctx context.Context) (done bool, err error) {
	m.mu.Lock()
	wait, mood := time.Duration(m.rng.IntN(300))*time.Millisecond, m.rng.IntN(14)
	m.mu.Unlock()
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if mood < 2 {
		return mood == 0, errDisk
	}
	return false, nil
}

func (m *moody) Load(ctx context.Context, key brokerauth.Key) ([]byte, error) {
	if _, err := m.fails(ctx); err != nil {
		return nil, err
	}
	return m.Store.Load(ctx, key)
}

func (m *moody) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	done, err := m.fails(ctx)
	if done {
		m.Store.CompareAndSwap(context.WithoutCancel(ctx), key, old, new)
	}
	if err != nil {
		return false, err
	}
	return m.Store.CompareAndSwap(ctx, key, old, new)
}

// Three hosts share a login at a broker whose refresh tokens work once, over a store in moods, and do whatever programs
// do, in any order: no login is lost. A seed that fails is repeated by CHAOS=SEED; CHAOS=1-1000 tries a thousand.
func TestChaos(t *testing.T) {
	first, last := uint64(1), uint64(30)
	if s := os.Getenv("CHAOS"); s != "" {
		from, to, many := strings.Cut(s, "-")
		if !many {
			to = from
		}
		var errs [2]error
		first, errs[0] = strconv.ParseUint(from, 10, 64)
		last, errs[1] = strconv.ParseUint(to, 10, 64)
		if err := errors.Join(errs[:]...); err != nil {
			t.Fatal(err)
		}
	}
	for seed := first; seed <= last && !t.Failed(); seed++ {
		for _, logins := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				rng := rand.New(rand.NewPCG(seed, 0))
				b := emulator.Schwab(t, emulator.Config{Rotate: true, Latency: time.Duration(rng.IntN(4000)) * time.Millisecond})
				shared := new(memory.Store)
				s, _ := loggedIn(t, b, shared)
				s.Close()
				var wg sync.WaitGroup
				for host := range uint64(3) {
					rng := rand.New(rand.NewPCG(seed, 1+host))
					wg.Go(func() {
						if err := program(t.Context(), b, shared, rng, logins); err != nil {
							t.Errorf("seed %d, host %d, logins %v: %v", seed, host, logins, err)
						}
					})
				}
				wg.Wait()
			})
		}
	}
}

// program uses the login for half a day and returns the error by which it is lost.
func program(ctx context.Context, b *emulator.Broker, shared brokerauth.Store, rng *rand.Rand, logins bool) error {
	begin := func() *brokerauth.Session {
		s, _ := session(b, &moody{Store: shared, rng: rand.New(rand.NewPCG(rng.Uint64(), 0))})
		return s
	}
	s := begin()
	defer func() { s.Close() }()
	act := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, time.Duration(rng.IntN(40_000))*time.Millisecond)
		defer cancel()
		switch rng.IntN(8) {
		case 0:
			_, err := s.Refresh(ctx, nil)
			return err
		case 1:
			token, err := s.Token(ctx)
			if err == nil {
				_, err = s.Refresh(ctx, token)
			}
			return err
		case 2:
			_, err := s.TokenFor(ctx, 20*time.Minute)
			return err
		case 3:
			resp, err := s.Client(&http.Client{Transport: b}).Get("https://api.schwabapi.com/trader/v1/accounts/accountNumbers")
			if err == nil {
				resp.Body.Close()
			}
			return err
		case 4:
			s.Close()
			s = begin()
		case 5:
			if logins {
				return s.Login(ctx, b.Approve)
			}
		}
		_, err := s.Token(ctx)
		return err
	}
	for range 120 {
		// All hosts' programs begin at whole three minutes, as cron's do, so that they meet.
		next := time.Now().Truncate(3 * time.Minute).Add(time.Duration(1+rng.IntN(4)) * 3 * time.Minute)
		time.Sleep(time.Until(next) + time.Duration(rng.IntN(3000))*time.Millisecond)
		err := act(ctx)
		// After somebody's login the old one is dead, and the new one may not be saved yet.
		for wait := 0; logins && errors.Is(err, brokerauth.ErrLoginRequired) && wait < 5; wait++ {
			time.Sleep(time.Minute)
			_, err = s.Token(ctx)
		}
		if errors.Is(err, brokerauth.ErrLoginRequired) {
			return err
		}
	}
	return nil
}
