package databases_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/internal/child"
)

// elsewhere is a store as a host sees it whose clock is ahead, or behind, and whose processes nobody else sees. No
// program's clock can be set for it alone: Go asks the kernel, past whatever a library preloads. But all that a clock
// leaves in a shared store is the times in a record, and all that it is compared with. So a host whose clock is ahead by
// an hour does what one does that finds every time an hour earlier, and leaves every time an hour later.
type elsewhere struct {
	brokerauth.Store
	ahead time.Duration
	host  string
}

var (
	instant = regexp.MustCompile(`"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"`)
	machine = regexp.MustCompile(`"machine":"([^"]*)"`)
)

func (s elsewhere) shift(record []byte, by time.Duration) []byte {
	return instant.ReplaceAllFunc(record, func(quoted []byte) []byte {
		var at time.Time
		if err := json.Unmarshal(quoted, &at); err != nil {
			return quoted
		}
		shifted, err := json.Marshal(at.Add(by))
		if err != nil {
			return quoted
		}
		return shifted
	})
}

func (s elsewhere) out(record []byte) []byte {
	return machine.ReplaceAll(s.shift(record, s.ahead), []byte(`"machine":"$1@`+s.host+`"`))
}

func (s elsewhere) in(record []byte) []byte {
	own := []byte("@" + s.host + `"`)
	return machine.ReplaceAllFunc(s.shift(record, -s.ahead), func(m []byte) []byte {
		if n := len(m) - len(own); string(m[n:]) == string(own) {
			return append(m[:n:n], '"')
		}
		return m
	})
}

func (s elsewhere) Load(ctx context.Context, key brokerauth.Key) ([]byte, error) {
	record, err := s.Store.Load(ctx, key)
	if err != nil {
		return nil, err
	}
	return s.in(record), nil
}

func (s elsewhere) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	translate := func(record []byte) []byte {
		if record == nil {
			return nil
		}
		return s.out(record)
	}
	return s.Store.CompareAndSwap(ctx, key, translate(old), translate(new))
}

// host is a program on one of several hosts. Each time it is told to, it makes a Session as if it had just started, gets
// a token, and says which.
func host() {
	ahead, _ := time.ParseDuration(os.Getenv("TEST_AHEAD"))
	inner, closing, err := storeAt(os.Getenv("TEST_STORE"), 2)
	if err != nil {
		fmt.Println("error", err)
		return
	}
	defer closing()
	p, err := schwabAt(os.Getenv("TEST_BROKER"))
	if err != nil {
		fmt.Println("error", err)
		return
	}
	fmt.Println("ready")
	store := elsewhere{inner, ahead, os.Getenv("TEST_HOST")}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		s := &brokerauth.Session{Provider: p, Store: store, Observe: func(brokerauth.Event) {}}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		t, err := s.Token(ctx)
		cancel()
		if err != nil {
			fmt.Println("error", err)
		} else {
			fmt.Println("token", t.AccessToken)
		}
		s.Close()
	}
}

// expiries is how often a login's access token ends in TestHosts.
const expiries = 200

// TestHosts has two programs on each of three hosts, whose clocks differ by minutes, share one login whose refresh tokens
// work once.
func TestHosts(t *testing.T) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			b := emulator.Schwab(t, emulator.Config{Rotate: true, LoginTTL: 365 * 24 * time.Hour, Latency: time.Millisecond})
			web := httptest.NewServer(b)
			defer web.Close()
			address := e.start(t)
			store := e.open(t, address)
			p, err := schwabAt(web.URL)
			must(t, err)
			s := &brokerauth.Session{Provider: p, Store: store, Observe: func(brokerauth.Event) {}}
			defer s.Close()
			must(t, s.Login(t.Context(), b.Approve))
			status, err := s.Status(t.Context())
			must(t, err)

			var programs []*child.Program
			for i, ahead := range []string{"0s", "4m", "-3m"} {
				for range 2 {
					programs = append(programs, start(t, "host", "TEST_STORE="+address, "TEST_BROKER="+web.URL, "TEST_AHEAD="+ahead,
						"TEST_HOST=host"+strconv.Itoa(i)))
				}
			}
			for round := range expiries {
				// By some clocks the token is about to end, by others it has ended.
				age := 28*time.Minute + rand.N(30*time.Minute)
				b.Advance(age)
				must(t, backdate(t.Context(), store, status.Key, age))
				before := refreshes(b)
				var tokens [2]map[string]bool
				for again := range 2 { // and nobody thinks that what another host has saved is old
					for _, p := range programs {
						p.Tell("token")
					}
					tokens[again] = map[string]bool{}
					for _, p := range programs {
						line := p.Line()
						token, ok := strings.CutPrefix(line, "token ")
						if !ok {
							t.Fatalf("expiry %d: a program says: %s", round, line)
						}
						tokens[again][token] = true
					}
				}
				if n := refreshes(b) - before; n != 1 || len(tokens[1]) != 1 {
					t.Fatalf("expiry %d: %d refreshes, and then %d tokens, want one", round, n, len(tokens[1]))
				}
			}
			if n := refreshes(b); n != expiries {
				t.Errorf("%d refreshes in %d expiries", n, expiries)
			}
		})
	}
}

// backdate makes every time in a record one that was so long before.
func backdate(ctx context.Context, store brokerauth.Store, key brokerauth.Key, by time.Duration) error {
	old, err := store.Load(ctx, key)
	if err != nil {
		return err
	}
	swapped, err := store.CompareAndSwap(ctx, key, old, elsewhere{}.shift(old, -by))
	if err == nil && !swapped {
		err = errors.New("somebody else is at the record")
	}
	return err
}
