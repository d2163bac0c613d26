package databases_test

import (
	"os"
	"strings"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/internal/child"
	"github.com/brokerauth/brokerauth/internal/engine"
	"github.com/brokerauth/brokerauth/providers/schwab"
	"github.com/brokerauth/brokerauth/storage/redis"
	"github.com/brokerauth/brokerauth/storage/sqlstore"
)

const childRole = "BROKERAUTH_TEST_ROLE"

// TestMain is also what the child processes run: their environment says what.
func TestMain(m *testing.M) {
	switch os.Getenv(childRole) {
	case "host":
		host()
	case "keeper":
		keeper()
	default:
		os.Exit(m.Run())
	}
}

// engines are the stores that hosts share. open opens one at what start has returned; each call is a program of its own.
var engines = []struct {
	name  string
	start func(t testing.TB) (address string)
	open  func(t testing.TB, address string) brokerauth.Store
}{
	{"PostgreSQL", func(t testing.TB) string {
		address := engine.PostgreSQL(t).URL("postgres")
		create(t, openDB(t, "pgx", address), sqlstore.PostgreSQL)
		return address
	}, openAt},
	{"Redis", func(t testing.TB) string { return "redis://" + engine.Redis(t, "--appendonly", "yes").Addr }, openAt},
}

// openAt opens the store at the address of a server.
func openAt(t testing.TB, address string) brokerauth.Store {
	store, closing, err := storeAt(address, 4)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(closing)
	return store
}

// storeAt opens the store at an address, with so many connections at the most.
func storeAt(address string, connections int) (brokerauth.Store, func(), error) {
	if addr, ok := strings.CutPrefix(address, "redis://"); ok {
		client := goredis.NewClient(&goredis.Options{Addr: addr, ContextTimeoutEnabled: true, PoolSize: connections})
		store, err := redis.New(client, "")
		return store, func() { client.Close() }, err
	}
	db, err := openPool("pgx", address, connections)
	if err != nil {
		return nil, nil, err
	}
	store, err := sqlstore.New(db, sqlstore.PostgreSQL)
	return store, func() { db.Close() }, err
}

// schwabAt is a Session's provider at an emulated Schwab.
func schwabAt(baseURL string) (brokerauth.Provider, error) {
	return schwab.New(schwab.Config{AppKey: "key", AppSecret: "emulated.app-secret", CallbackURL: "https://127.0.0.1:8182", BaseURL: baseURL})
}

// start runs this test's program in a role, and waits until it is ready.
func start(t *testing.T, role string, env ...string) *child.Program {
	t.Helper()
	return child.Start(t, append(env, childRole+"="+role)...)
}

// refreshes counts the refresh requests that b was sent.
func refreshes(b *emulator.Broker) int {
	n := 0
	for _, r := range b.Requests() {
		if r.GrantType == "refresh_token" {
			n++
		}
	}
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
