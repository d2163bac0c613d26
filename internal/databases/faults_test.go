package databases_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	goredis "github.com/redis/go-redis/v9"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/internal/engine"
	"github.com/brokerauth/brokerauth/storage/redis"
	"github.com/brokerauth/brokerauth/storage/sqlstore"
)

// interrupted is a broker whose answer comes while something happens to the store: the claim is held, and the token is
// issued.
type interrupted struct {
	brokerauth.Provider
	mu   sync.Mutex
	then func()
}

func (p *interrupted) Refresh(ctx context.Context, old *brokerauth.Token) (*brokerauth.Token, error) {
	t, err := p.Provider.Refresh(ctx, old)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.then != nil && old != nil {
		p.then()
		p.then = nil
	}
	return t, err
}

// program is a Session that notes its events.
type program struct {
	*brokerauth.Session
	mu     sync.Mutex
	events []brokerauth.Event
}

func (p *program) kinds() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var kinds []string
	for _, e := range p.events {
		kinds = append(kinds, e.Kind)
	}
	return strings.Join(kinds, " ")
}

// storeError is the error of the last event, if any.
func (p *program) storeError() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.events) == 0 {
		return nil
	}
	return p.events[len(p.events)-1].Err
}

// trial is a login at a broker with single-use refresh tokens, whose access token has ended.
type trial struct {
	t       *testing.T
	broker  *emulator.Broker
	store   brokerauth.Store // past whatever happens to the program's own
	program *program
	hook    *interrupted
	key     brokerauth.Key
}

// newTrial logs in to own, which is the program's way to the storage that store leads to, too.
func newTrial(t *testing.T, own, store brokerauth.Store) *trial {
	t.Helper()
	b := emulator.Schwab(t, emulator.Config{Rotate: true})
	tr := &trial{t: t, broker: b, store: store, hook: &interrupted{Provider: b.Provider()}}
	first := &brokerauth.Session{Provider: b.Provider(), Store: store, Observe: func(brokerauth.Event) {}}
	defer first.Close()
	must(t, first.Login(t.Context(), b.Approve))
	status, err := first.Status(t.Context())
	must(t, err)
	tr.key = status.Key
	b.Advance(31 * time.Minute)
	must(t, backdate(t.Context(), store, tr.key, 31*time.Minute))
	tr.program = &program{}
	tr.program.Session = &brokerauth.Session{Provider: tr.hook, Store: own, Observe: func(e brokerauth.Event) {
		tr.program.mu.Lock()
		defer tr.program.mu.Unlock()
		tr.program.events = append(tr.program.events, e)
	}}
	t.Cleanup(func() { tr.program.Close() })
	return tr
}

// token is what the program gets.
func (tr *trial) token() *brokerauth.Token {
	tr.t.Helper()
	ctx, cancel := context.WithTimeout(tr.t.Context(), 2*time.Minute)
	defer cancel()
	t, err := tr.program.Token(ctx)
	if err != nil {
		tr.t.Fatal(err)
	}
	return t
}

// mustShare checks that another program has the token that was issued, that nothing was issued but it, and that the
// login goes on.
func (tr *trial) mustShare(want *brokerauth.Token) {
	tr.t.Helper()
	other := &brokerauth.Session{Provider: tr.broker.Provider(), Store: tr.store, Observe: func(brokerauth.Event) {}}
	defer other.Close()
	got, err := other.Token(tr.t.Context())
	if err != nil || got.AccessToken != want.AccessToken || refreshes(tr.broker) != 1 {
		tr.t.Fatalf("another program gets %v, %v, after %d refreshes, want the one token that was issued", got, err, refreshes(tr.broker))
	}
	if _, err := other.Refresh(tr.t.Context(), nil); err != nil {
		tr.t.Errorf("the login is lost: %v", err)
	}
}

// mustSave checks that the token which was issued while f happened was saved by the same refresh.
func (tr *trial) mustSave(f func()) {
	tr.t.Helper()
	tr.hook.then = f
	t := tr.token()
	if kinds := tr.program.kinds(); kinds != "refreshed" {
		tr.t.Errorf("events %q (%v), want refreshed", kinds, tr.program.storeError())
	}
	tr.mustShare(t)
}

// mustKeep checks that the token which was issued after the store had failed serves its program, that this is told with
// what has failed, and that it is saved once the store is well.
func (tr *trial) mustKeep(fail, heal func(), want error) {
	tr.t.Helper()
	tr.hook.then = fail
	t := tr.token()
	if kinds := tr.program.kinds(); kinds != "unsaved" {
		tr.t.Fatalf("events %q, want unsaved", kinds)
	}
	checkKind(tr.t, "the event", tr.program.storeError(), want)
	if again := tr.token(); again.AccessToken != t.AccessToken {
		tr.t.Error("the program has lost the token")
	}
	heal()
	// A program that goes on asks now and then; one that ends tries a last time.
	if err := tr.program.Close(); err != nil {
		tr.t.Errorf("Close: %v", err)
	}
	if kinds := tr.program.kinds(); kinds != "unsaved saved" {
		tr.t.Errorf("events %q, want unsaved and then saved", kinds)
	}
	tr.mustShare(t)
}

// checkKind checks that err matches want, and nothing else that a program acts on, and shows no secret.
func checkKind(t *testing.T, what string, err, want error) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error, want %v", what, want)
		return
	}
	for _, kind := range []error{brokerauth.ErrRejected, brokerauth.ErrCorrupt, brokerauth.ErrUnavailable, brokerauth.ErrLoginRequired,
		fs.ErrNotExist, fs.ErrPermission, fs.ErrClosed, errors.ErrUnsupported} {
		if errors.Is(err, kind) != (kind == want) {
			t.Errorf("%s: %v, want %v alone", what, err, want)
		}
	}
	if strings.Contains(err.Error(), "emulated.") || strings.Contains(err.Error(), "postgres://") {
		t.Errorf("%s: the error shows a secret", what)
	}
}

// through returns the URL of a server behind a proxy.
func through(t *testing.T, address string, p *engine.Proxy) string {
	t.Helper()
	u, err := url.Parse(address)
	must(t, err)
	u.Host = p.Addr
	return u.String()
}

// A refresh swaps twice: first its claim comes into the record, and then the claim goes.
func claims(request []byte) bool { return bytes.Contains(request, []byte(`"claim"`)) }
func saves(request []byte) bool  { return bytes.Contains(request, []byte(`"access_token"`)) }

// fault is something that happens to a store's server while a refresh is under way.
type fault struct {
	name string
	run  func(t *testing.T, tr *trial, server *engine.Server, proxy *engine.Proxy)
}

// everywhere are the faults that every server meets.
var everywhere = []fault{
	{"restart", func(t *testing.T, tr *trial, server *engine.Server, _ *engine.Proxy) {
		tr.mustSave(func() { server.Stop(); server.Start() })
	}},
	{"crash", func(t *testing.T, tr *trial, server *engine.Server, _ *engine.Proxy) {
		tr.mustSave(func() { server.Kill(); server.Start() })
	}},
	{"server away", func(t *testing.T, tr *trial, server *engine.Server, _ *engine.Proxy) {
		tr.mustKeep(server.Stop, server.Start, brokerauth.ErrUnavailable)
	}},
	{"connections cut", func(t *testing.T, tr *trial, _ *engine.Server, proxy *engine.Proxy) {
		tr.mustSave(func() { proxy.Cut(); proxy.Restore() })
	}},
	{"network away", func(t *testing.T, tr *trial, _ *engine.Server, proxy *engine.Proxy) {
		tr.mustKeep(proxy.Cut, proxy.Restore, brokerauth.ErrUnavailable)
	}},
	{"answer to the claim lost", func(t *testing.T, tr *trial, _ *engine.Server, proxy *engine.Proxy) {
		proxy.LoseAnswer(claims)
		tr.mustSave(func() {})
		if proxy.Lost() != 1 {
			t.Error("no answer was lost: the test proves nothing")
		}
	}},
	{"answer to the save lost", func(t *testing.T, tr *trial, _ *engine.Server, proxy *engine.Proxy) {
		tr.mustSave(func() { proxy.LoseAnswer(saves) })
		if proxy.Lost() != 1 {
			t.Error("no answer was lost: the test proves nothing")
		}
	}},
}

func TestPostgreSQLFaults(t *testing.T) {
	t.Parallel()
	server := engine.PostgreSQL(t)
	faults := append(slices.Clone(everywhere), fault{"backends terminated",
		func(t *testing.T, tr *trial, server *engine.Server, _ *engine.Proxy) {
			tr.mustSave(func() { terminate(t, openDB(t, "pgx", server.URL("postgres"))) })
		}}, fault{"read-only for a while", func(t *testing.T, tr *trial, server *engine.Server, _ *engine.Proxy) {
		admin, err := openPool("pgx", server.URL("postgres"), 1)
		must(t, err)
		defer admin.Close()
		readOnly := func(value string) func() {
			return func() {
				if _, err := admin.ExecContext(t.Context(), "ALTER ROLE "+engine.User+" SET default_transaction_read_only = "+value); err != nil {
					t.Error(err)
				}
				terminate(t, admin)
			}
		}
		tr.mustKeep(readOnly("on"), readOnly("off"), brokerauth.ErrUnavailable)
	}})
	for i, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			proxy := engine.NewProxy(t, server.Addr)
			place := fmt.Sprintf("/place%d", i)
			store := openPostgreSQL(t, server.URL("postgres"), place)
			own := openPostgreSQL(t, through(t, server.URL("postgres"), proxy), place)
			f.run(t, newTrial(t, own, store), server, proxy)
		})
	}
}

// terminate ends all clients' connections but db's own.
func terminate(t *testing.T, db *sql.DB) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'`); err != nil {
		t.Error(err)
	}
}

func TestRedisFaults(t *testing.T) {
	t.Parallel()
	server := engine.Redis(t, "--appendonly", "yes", "--appendfsync", "always")
	admin := goredis.NewClient(&goredis.Options{Addr: server.Addr})
	defer admin.Close()
	pause := func(t *testing.T, d time.Duration) {
		if err := admin.Do(t.Context(), "CLIENT", "PAUSE", d.Milliseconds(), "ALL").Err(); err != nil {
			t.Error(err)
		}
	}
	faults := append(slices.Clone(everywhere), fault{"a short pause", func(t *testing.T, tr *trial, _ *engine.Server, _ *engine.Proxy) {
		tr.mustSave(func() { pause(t, 1500*time.Millisecond) })
	}}, fault{"a long pause", func(t *testing.T, tr *trial, server *engine.Server, _ *engine.Proxy) {
		// It is far longer than a save is tried, and than a call to the store may take.
		tr.mustKeep(server.Pause, server.Resume, brokerauth.ErrUnavailable)
	}}, fault{"no memory", func(t *testing.T, tr *trial, _ *engine.Server, _ *engine.Proxy) {
		memory := func(bytes string) func() {
			return func() {
				if err := admin.ConfigSet(t.Context(), "maxmemory", bytes).Err(); err != nil {
					t.Error(err)
				}
			}
		}
		tr.mustKeep(memory("1"), memory("0"), brokerauth.ErrUnavailable)
	}})
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			proxy := engine.NewProxy(t, server.Addr)
			f.run(t, newTrial(t, openRedis(t, proxy.Addr, f.name), openRedis(t, server.Addr, f.name)), server, proxy)
		})
	}
}

func openRedis(t *testing.T, addr, prefix string) brokerauth.Store {
	t.Helper()
	client := goredis.NewClient(&goredis.Options{Addr: addr, ContextTimeoutEnabled: true, ReadTimeout: time.Second})
	t.Cleanup(func() { client.Close() })
	store, err := redis.New(client, prefix)
	must(t, err)
	return store
}

// TestRedisFailover loses what a replica had not heard of when it took its primary's place.
func TestRedisFailover(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		claim bool // it has heard of the claim
		says  string
	}{"claim and token lost": {false, "log in"}, "token lost": {true, "may have been rotated"}} {
		t.Run(name, func(t *testing.T) {
			primary := engine.Redis(t)
			proxy := engine.NewProxy(t, primary.Addr)
			host, port, err := net.SplitHostPort(proxy.Addr)
			must(t, err)
			replica := engine.Redis(t, "--replicaof", host+" "+port)
			own, heir := openRedis(t, primary.Addr, ""), openRedis(t, replica.Addr, "")
			tr := newTrial(t, own, own)
			follow := func() {
				want, err := own.Load(t.Context(), tr.key)
				for end := time.Now().Add(time.Minute); err == nil && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
					if got, _ := heir.Load(t.Context(), tr.key); bytes.Equal(got, want) {
						break
					}
				}
				proxy.Cut()
			}
			if c.claim {
				tr.hook.then = follow
			} else {
				follow()
			}
			tr.token()
			primary.Kill()
			admin := goredis.NewClient(&goredis.Options{Addr: replica.Addr})
			defer admin.Close()
			must(t, admin.Do(t.Context(), "REPLICAOF", "NO", "ONE").Err())
			s := &brokerauth.Session{Provider: tr.broker.Provider(), Store: heir, Observe: func(brokerauth.Event) {}}
			defer s.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err = s.Token(ctx)
			checkKind(t, "after the failover", err, brokerauth.ErrLoginRequired)
			if err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("it says %q, want %q in it", err, c.says)
			}
			must(t, s.Login(t.Context(), tr.broker.Approve))
		})
	}
}

// badConns are connections that lose the answer to the next change, and then call themselves bad, as those of some drivers
// do: database/sql takes that for a statement which was never sent.
type badConns struct {
	driver.Connector
	lose atomic.Bool
}

func (b *badConns) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := b.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &badConn{c.(*stdlib.Conn), b}, nil
}

type badConn struct {
	*stdlib.Conn
	all *badConns
}

func (c *badConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	result, err := c.Conn.ExecContext(ctx, query, args)
	if err == nil && c.all.lose.CompareAndSwap(true, false) {
		return nil, driver.ErrBadConn
	}
	return result, err
}

func (c *badConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	rows, err := c.Conn.QueryContext(ctx, query, args)
	if err == nil && c.all.lose.CompareAndSwap(true, false) {
		return nil, cmp.Or(rows.Close(), driver.ErrBadConn)
	}
	return rows, err
}

// TestChangesAreSentOnce loses answers behind database/sql's back: a change that it repeated would be one that was not done.
func TestChangesAreSentOnce(t *testing.T) {
	t.Parallel()
	config, err := pgx.ParseConfig(engine.PostgreSQL(t).URL("postgres"))
	must(t, err)
	conns := &badConns{Connector: stdlib.GetConnector(*config)}
	db := sql.OpenDB(conns)
	defer db.Close()
	store := create(t, db, sqlstore.PostgreSQL)
	key := brokerauth.Key{Provider: "schwab", Profile: "default"}
	var record []byte
	for _, next := range [][]byte{[]byte("first"), []byte("second"), nil} {
		conns.lose.Store(true)
		swapped, err := store.CompareAndSwap(t.Context(), key, record, next)
		what := fmt.Sprintf("CompareAndSwap from %q to %q", record, next)
		checkKind(t, what, err, brokerauth.ErrUnavailable)
		if swapped || err != nil && !strings.Contains(err.Error(), "unknown") {
			t.Errorf("%s = %v, %v, want an error that says the outcome is unknown", what, swapped, err)
		}
		if got, err := store.Load(t.Context(), key); !bytes.Equal(got, next) || next != nil && err != nil {
			t.Errorf("after %s, Load = %q, %v", what, got, err)
		}
		record = next
	}
}

// TestSQLErrors tells apart what a database refuses.
func TestSQLErrors(t *testing.T) {
	t.Parallel()
	server := engine.PostgreSQL(t)
	address := server.URL("postgres")
	admin := openDB(t, "pgx", address)
	for _, statement := range []string{"CREATE ROLE guest LOGIN PASSWORD '" + engine.Password + "'", "CREATE SCHEMA empty", "GRANT USAGE ON SCHEMA empty TO guest"} {
		if _, err := admin.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	create(t, admin, sqlstore.PostgreSQL)
	key := brokerauth.Key{Provider: "schwab", Profile: "default"}
	for name, c := range map[string]struct {
		dialect sqlstore.Dialect
		address string
		want    error
	}{
		"wrong password":  {sqlstore.PostgreSQL, strings.Replace(address, engine.Password, engine.Password+"x", 1), fs.ErrPermission},
		"no rights":       {sqlstore.PostgreSQL, strings.Replace(address, engine.User+":", "guest:", 1), fs.ErrPermission},
		"no database":     {sqlstore.PostgreSQL, server.URL("missing"), nil},
		"no table":        {sqlstore.PostgreSQL, address + "&search_path=empty", nil},
		"nobody there":    {sqlstore.PostgreSQL, strings.Replace(address, server.Addr, "127.0.0.1:"+engine.FreePort(t), 1), brokerauth.ErrUnavailable},
		"no such host":    {sqlstore.PostgreSQL, strings.Replace(address, server.Addr, "no-such-host.invalid:5432", 1), brokerauth.ErrUnavailable},
		"TLS refused":     {sqlstore.PostgreSQL, strings.Replace(address, "disable", "verify-full", 1), brokerauth.ErrUnavailable},
		"no address":      {sqlstore.PostgreSQL, "postgres://" + engine.User + ":" + engine.Password + "@[/x", brokerauth.ErrUnavailable},
		"SQLite no table": {sqlstore.SQLite, "file:" + filepath.Join(t.TempDir(), "a.db"), nil},
		"no folder":       {sqlstore.SQLite, "file:" + filepath.Join(t.TempDir(), "missing", "a.db"), brokerauth.ErrUnavailable},
		"no SQLite file":  {sqlstore.SQLite, "file:" + written(t, strings.Repeat("emulated.token", 1000)), brokerauth.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			driver := "pgx"
			if c.dialect == sqlstore.SQLite {
				driver = "sqlite3"
			}
			store, err := sqlstore.New(openDB(t, driver, c.address), c.dialect)
			must(t, err)
			_, loadErr := store.Load(t.Context(), key)
			_, createErr := store.CompareAndSwap(t.Context(), key, nil, []byte("emulated.token"))
			_, swapErr := store.CompareAndSwap(t.Context(), key, []byte("emulated.token"), []byte("emulated.next"))
			_, deleteErr := store.CompareAndSwap(t.Context(), key, []byte("emulated.token"), nil)
			_, keysErr := store.Keys(t.Context())
			_, asideErr := store.SetAside(t.Context(), key)
			for what, err := range map[string]error{"Load": loadErr, "creating": createErr, "swapping": swapErr, "deleting": deleteErr,
				"Keys": keysErr, "SetAside": asideErr} {
				checkKind(t, what, err, c.want)
				if strings.Contains(err.Error(), "unknown") {
					t.Errorf("%s: %v, though nothing was sent", what, err)
				}
			}
		})
	}

	full := create(t, openDB(t, "sqlite3", "file:"+filepath.Join(t.TempDir(), "full.db")+sqliteSettings+"&_pragma=max_page_count(8)"), sqlstore.SQLite)
	_, err := full.CompareAndSwap(t.Context(), key, nil, bytes.Repeat([]byte("emulated."), 10_000))
	checkKind(t, "a full disk", err, brokerauth.ErrUnavailable)

	for name, bad := range map[string]func() error{
		"synchronous_commit": func() error {
			store, err := sqlstore.New(openDB(t, "pgx", address+"&synchronous_commit=off"), sqlstore.PostgreSQL)
			must(t, err)
			return store.Create(t.Context())
		},
		"synchronous": func() error {
			store, err := sqlstore.New(openDB(t, "sqlite3", "file:"+filepath.Join(t.TempDir(), "a.db")), sqlstore.SQLite)
			must(t, err)
			return store.Create(t.Context())
		},
		"memory": func() error {
			store, err := sqlstore.New(openDB(t, "sqlite3", "file::memory:"), sqlstore.SQLite)
			must(t, err)
			return store.Create(t.Context())
		},
		"newer": func() error {
			if _, err := admin.Exec("UPDATE brokerauth_logins SET record = '2' WHERE name = '.version'"); err != nil {
				t.Fatal(err)
			}
			store, err := sqlstore.New(admin, sqlstore.PostgreSQL)
			must(t, err)
			return store.Create(t.Context())
		},
	} {
		checkKind(t, name, bad(), errors.ErrUnsupported)
	}
	if _, err := sqlstore.New(nil, sqlstore.SQLite); err == nil {
		t.Error("no database: no error")
	}
	if _, err := sqlstore.New(admin, "MySQL"); err == nil {
		t.Error("no such dialect: no error")
	}
}

func written(t *testing.T, text string) string {
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// TestFullDisk fills the disk that PostgreSQL has its table on.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	server := engine.PostgreSQL(t)
	disk, ok := engine.SmallDisk(t, server, 2<<20)
	if !ok {
		t.Log("this user may mount no small disk, so none is filled")
		return
	}
	admin := openDB(t, "pgx", server.URL("postgres"))
	if _, err := admin.Exec("CREATE TABLESPACE small LOCATION '" + disk + "'"); err != nil {
		t.Fatal(err)
	}
	store := create(t, openDB(t, "pgx", server.URL("postgres")+"&default_tablespace=small"), sqlstore.PostgreSQL)
	key := brokerauth.Key{Provider: "schwab", Profile: "default"}
	swap := func(old, new []byte) error {
		swapped, err := store.CompareAndSwap(t.Context(), key, old, new)
		if err == nil && !swapped {
			err = errors.New("not swapped")
		}
		return err
	}
	small, large := []byte("emulated.record"), noise(512<<10)
	must(t, swap(nil, small))
	filler := filepath.Join(disk, "filler")
	f, err := os.Create(filler)
	must(t, err)
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	checkKind(t, "a full disk", swap(small, large), brokerauth.ErrUnavailable)
	if got, err := store.Load(t.Context(), key); err != nil || !bytes.Equal(got, small) {
		t.Errorf("Load = %d bytes, %v, want what was there", len(got), err)
	}
	must(t, os.Remove(filler))
	must(t, f.Close())
	must(t, swap(small, large))
}

// noise does not compress.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}
