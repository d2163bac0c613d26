package databases_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/internal/child"
	"github.com/brokerauth/brokerauth/providers/tastytrade"
)

// counted counts what a program asks of its store.
type counted struct {
	brokerauth.Store
	loads, swaps atomic.Int64
}

func (s *counted) Load(ctx context.Context, key brokerauth.Key) ([]byte, error) {
	s.loads.Add(1)
	return s.Store.Load(ctx, key)
}

func (s *counted) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	s.swaps.Add(1)
	return s.Store.CompareAndSwap(ctx, key, old, new)
}

// keeper is a program that keeps all accounts alive, until its standard input ends.
func keeper() {
	inner, closing, err := storeAt(os.Getenv("TEST_STORE"), 4)
	if err != nil {
		fmt.Println("error", err)
		return
	}
	defer closing()
	p, err := partnerAt(os.Getenv("TEST_BROKER"))
	if err != nil {
		fmt.Println("error", err)
		return
	}
	accounts, _ := strconv.Atoi(os.Getenv("TEST_ACCOUNTS"))
	store := &counted{Store: inner}
	var k brokerauth.Keeper
	var failed atomic.Int64
	var sessions []*brokerauth.Session
	for i := range accounts {
		s := &brokerauth.Session{Provider: p, Store: store, Profile: profile(i), Observe: func(e brokerauth.Event) {
			if e.Err != nil {
				failed.Add(1)
				fmt.Fprintln(os.Stderr, e.Kind, e.Err)
			}
		}}
		sessions = append(sessions, s)
		k.Add(s)
	}
	fmt.Println("ready")
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		bufio.NewScanner(os.Stdin).Scan() // a line ends it
		cancel()
	}()
	k.Run(ctx)
	for _, s := range sessions {
		if err := s.Close(); err != nil {
			failed.Add(1)
		}
	}
	fmt.Println(store.loads.Load(), store.swaps.Load(), failed.Load())
}

// partnerAt is a provider at an emulated tastytrade: there an app may have any number of logins.
func partnerAt(baseURL string) (brokerauth.LoginProvider, error) {
	return tastytrade.NewPartner(tastytrade.Config{ClientID: "id", ClientSecret: "emulated.app-secret",
		CallbackURL: "http://127.0.0.1:8182", BaseURL: baseURL})
}

func profile(i int) string { return fmt.Sprintf("account%05d", i) }

// ledger stands before a broker and notes when each account was renewed.
type ledger struct {
	broker *emulator.Broker

	mu      sync.Mutex
	owner   map[string]int // of each refresh token
	grants  map[int][]time.Time
	refused int
}

func (l *ledger) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(strings.NewReader(string(body)))
	form, _ := url.ParseQuery(string(body))
	answer := httptest.NewRecorder()
	l.broker.ServeHTTP(answer, r)
	var token struct {
		RefreshToken string `json:"refresh_token"`
	}
	if form.Get("grant_type") == "refresh_token" {
		err := json.Unmarshal(answer.Body.Bytes(), &token)
		l.mu.Lock()
		if account, ok := l.owner[form.Get("refresh_token")]; ok && err == nil && answer.Code == http.StatusOK {
			l.owner[token.RefreshToken] = account
			l.grants[account] = append(l.grants[account], time.Now())
		} else {
			l.refused++
		}
		l.mu.Unlock()
	}
	for name, values := range answer.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(answer.Code)
	w.Write(answer.Body.Bytes())
}

// TestKeepers has several programs keep all accounts alive at once. The sizes are those of a quick check; for
// docs/benchmarks.md they come from the environment, as that page says.
func TestKeepers(t *testing.T) {
	number := func(name string, usual int) int {
		if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
			return n
		}
		return usual
	}
	accounts, programs := number("KEEPERS_ACCOUNTS", 40), number("KEEPERS_PROGRAMS", 3)
	life, cycles := time.Duration(number("KEEPERS_LIFE", 20))*time.Second, number("KEEPERS_EXPIRIES", 1)
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			b := emulator.Tastytrade(t, emulator.Config{Rotate: true, AccessTTL: life, LoginTTL: 24 * time.Hour})
			book := &ledger{broker: b, owner: map[string]int{}, grants: map[int][]time.Time{}}
			web := httptest.NewServer(book)
			defer web.Close()
			address := e.start(t)
			store := e.open(t, address)
			p, err := partnerAt(web.URL)
			must(t, err)
			logins(t, b, p, store, book, accounts)

			began := time.Now()
			before := queries(t, address)
			var children []*child.Program
			for range programs {
				children = append(children, start(t, "keeper", "TEST_STORE="+address, "TEST_BROKER="+web.URL, "TEST_ACCOUNTS="+strconv.Itoa(accounts)))
			}
			// Until each account was renewed so many times, however slow the machine.
			least := func() int {
				book.mu.Lock()
				defer book.mu.Unlock()
				least := cycles
				for i := range accounts {
					least = min(least, len(book.grants[i]))
				}
				return least
			}
			for end := time.Now().Add(time.Duration(cycles+2)*life + 2*time.Minute); least() < cycles && time.Now().Before(end); {
				time.Sleep(200 * time.Millisecond)
			}
			took, sessions := time.Since(began), connections(t, address)
			asked := queries(t, address) - before
			var loads, swaps int
			for _, c := range children {
				c.Tell("end")
				var l, s, failed int
				if line := c.Line(); true {
					if _, err := fmt.Sscan(line, &l, &s, &failed); err != nil || failed > 0 {
						t.Errorf("a keeper says %q: loads, swaps, failures", line)
					}
				}
				loads, swaps = loads+l, swaps+s
			}
			if n := least(); n < cycles {
				t.Fatalf("an account was renewed %d times, want %d", n, cycles)
			}
			total, early, seconds := 0, 0, map[int64]int{}
			for _, grants := range book.grants {
				total += len(grants)
				for i, at := range grants {
					seconds[at.Unix()]++
					if i > 0 && at.Sub(grants[i-1]) < life*2/5 {
						early++
					}
				}
			}
			// A token is due in the last fifth of its life. Keepers renew some before that where many would end together, as
			// after all these logins at once; but none twice.
			natural := float64(accounts) * float64(took) / float64(life*4/5)
			if float64(total) > 1.5*natural+float64(accounts)/4 {
				t.Errorf("%d refreshes, where %.0f are due", total, natural)
			}
			if early > total/20 {
				t.Errorf("%d of %d tokens were renewed before half of their time was over", early, total)
			}
			most := 0
			for _, n := range seconds {
				most = max(most, n)
			}
			if book.refused > 0 {
				t.Errorf("%d refreshes were refused: a refresh token was spent twice", book.refused)
			}
			first := loads - accounts*programs
			t.Logf("%d accounts, %d programs, %v: %d refreshes where %.0f are due, %d of them early; %.1f a second, %d in the busiest; %d loads and %d swaps, %.1f a refresh "+
				"after the first look; the server counts %d; %d connections", accounts, programs, took.Round(time.Second), total, natural, early,
				float64(total)/took.Seconds(), most, loads, swaps, float64(first+swaps)/float64(total), asked, sessions)
		})
	}
}

// logins logs every account in.
func logins(t *testing.T, b *emulator.Broker, p brokerauth.LoginProvider, store brokerauth.Store, book *ledger, accounts int) {
	t.Helper()
	var all sync.WaitGroup
	todo := make(chan int)
	for range 8 {
		all.Go(func() {
			for i := range todo {
				s := &brokerauth.Session{Provider: p, Store: store, Profile: profile(i), Observe: func(brokerauth.Event) {}}
				login, err := p.Begin(t.Context())
				if err == nil {
					err = b.Approve(t.Context(), login, func(ctx context.Context, callback string) error {
						token, err := p.Complete(ctx, login, callback)
						if err != nil {
							return err
						}
						book.mu.Lock()
						book.owner[token.RefreshToken] = i
						book.mu.Unlock()
						return s.Save(ctx, token)
					})
				}
				if err != nil {
					t.Error(err)
				}
				s.Close()
			}
		})
	}
	for i := range accounts {
		todo <- i
	}
	close(todo)
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// queries is how many statements or commands a server has served.
func queries(t *testing.T, address string) (n int64) {
	t.Helper()
	if addr, ok := strings.CutPrefix(address, "redis://"); ok {
		return redisInfo(t, addr, "total_commands_processed")
	}
	must(t, openDB(t, "pgx", address).QueryRow("SELECT sum(xact_commit + xact_rollback)::bigint FROM pg_stat_database").Scan(&n))
	return n
}

// connections is how many clients a server has.
func connections(t *testing.T, address string) (n int64) {
	t.Helper()
	if addr, ok := strings.CutPrefix(address, "redis://"); ok {
		return redisInfo(t, addr, "connected_clients")
	}
	must(t, openDB(t, "pgx", address).QueryRow("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'").Scan(&n))
	return n
}

func redisInfo(t *testing.T, addr, name string) int64 {
	t.Helper()
	c := goredis.NewClient(&goredis.Options{Addr: addr})
	defer c.Close()
	info, err := c.Info(t.Context()).Result()
	must(t, err)
	for in := bufio.NewScanner(strings.NewReader(info)); in.Scan(); {
		if value, ok := strings.CutPrefix(in.Text(), name+":"); ok {
			n, err := strconv.ParseInt(value, 10, 64)
			must(t, err)
			return n
		}
	}
	t.Fatalf("the server tells no %s", name)
	return 0
}
