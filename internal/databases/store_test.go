package databases_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/ncruces/go-sqlite3/driver"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance"
	"github.com/brokerauth/brokerauth/internal/engine"
	"github.com/brokerauth/brokerauth/storage/sealed"
	"github.com/brokerauth/brokerauth/storage/sqlstore"
)

// serverURL tells child processes which server their parent has started.
const serverURL = "BROKERAUTH_TEST_SERVER"

// server returns the URL of a server that start starts, or in a child process its parent's.
func server(t *testing.T, start func() string) string {
	t.Helper()
	address := os.Getenv(serverURL)
	if address == "" {
		address = start()
		t.Setenv(serverURL, address)
	}
	return address
}

const sqliteSettings = "?_pragma=busy_timeout(10000)&_pragma=synchronous(full)&_pragma=secure_delete(on)"

// openPostgreSQL opens the store in the schema that the base name of at names, and makes it if it is missing.
func openPostgreSQL(t testing.TB, address, at string) *sqlstore.Store {
	t.Helper()
	schema := place(at)
	db := openDB(t, "pgx", address+"&search_path="+schema)
	// Two that make one at the same time may collide.
	if _, err := db.ExecContext(t.Context(), "CREATE SCHEMA IF NOT EXISTS "+schema); err != nil && !exists(err) {
		t.Fatal(err)
	}
	return create(t, db, sqlstore.PostgreSQL)
}

// openPgBouncer opens the store in a database of its own: a pooler keeps no search path.
func openPgBouncer(t testing.TB, address, at string) *sqlstore.Store {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	admin := openDB(t, "pgx", address)
	if _, err := admin.ExecContext(t.Context(), "CREATE DATABASE "+place(at)); err != nil && !exists(err) {
		t.Fatal(err)
	}
	admin.Close()
	u.Path = place(at)
	return create(t, openDB(t, "pgx", u.String()), sqlstore.PostgreSQL)
}

func place(at string) string { return strings.ReplaceAll(filepath.Base(at), "-", "_") }

func exists(err error) bool {
	e := (*pgconn.PgError)(nil)
	return errors.As(err, &e) && (e.Code == "42P04" || e.Code == "23505")
}

func openSQLite(t testing.TB, dir string) *sqlstore.Store {
	t.Helper()
	return create(t, openDB(t, "sqlite3", "file:"+filepath.Join(dir, "logins.db")+sqliteSettings), sqlstore.SQLite)
}

func openDB(t testing.TB, driver, address string) *sql.DB {
	t.Helper()
	db, err := openPool(driver, address, 10) // without a bound, a crowd opens a connection each, more than a server takes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// openPool opens a pool of so many connections at the most.
func openPool(driver, address string, connections int) (*sql.DB, error) {
	db, err := sql.Open(driver, address)
	if err == nil {
		db.SetMaxOpenConns(connections)
		db.SetMaxIdleConns(connections)
	}
	return db, err
}

func create(t testing.TB, db *sql.DB, dialect sqlstore.Dialect) *sqlstore.Store {
	t.Helper()
	store, err := sqlstore.New(db, dialect)
	if err == nil {
		err = store.Create(context.Background())
	}
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func seal(t testing.TB, inner brokerauth.Store) brokerauth.Store {
	t.Helper()
	store, err := sealed.New(inner, sealed.Key(bytes.Repeat([]byte{1}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func TestStoreOverPostgreSQL(t *testing.T) {
	address := server(t, func() string { return engine.PostgreSQL(t).URL("postgres") })
	conformance.TestStore(t, func(t *testing.T, at string) brokerauth.Store { return openPostgreSQL(t, address, at) })
}

func TestStoreSealedOverPostgreSQL(t *testing.T) {
	address := server(t, func() string { return engine.PostgreSQL(t).URL("postgres") })
	conformance.TestStore(t, func(t *testing.T, at string) brokerauth.Store { return seal(t, openPostgreSQL(t, address, at)) })
}

// Behind pgbouncer a statement may come to a connection that another client has used.
func TestStoreOverPgBouncer(t *testing.T) {
	address := server(t, func() string {
		return engine.PgBouncer(t, engine.PostgreSQL(t), 3).URL("postgres") + "&default_query_exec_mode=exec"
	})
	conformance.TestStore(t, func(t *testing.T, at string) brokerauth.Store { return openPgBouncer(t, address, at) })
}

func TestStoreOverSQLite(t *testing.T) {
	conformance.TestStore(t, func(t *testing.T, at string) brokerauth.Store { return openSQLite(t, at) })
}

// A record that was edited or restored as text, as the sqlite3 shell and other languages do it, is as good as before.
func TestTextInSQLite(t *testing.T) {
	db := openDB(t, "sqlite3", "file:"+filepath.Join(t.TempDir(), "logins.db")+sqliteSettings)
	store := create(t, db, sqlstore.SQLite)
	key := brokerauth.Key{Provider: "schwab", Profile: "default"}
	record := []byte("récord")
	for _, next := range [][]byte{[]byte("next"), nil} {
		_, err := db.Exec("INSERT OR REPLACE INTO brokerauth_logins VALUES (?, 0, ?)", key.String(), string(record))
		must(t, err)
		if got, err := store.Load(t.Context(), key); err != nil || !bytes.Equal(got, record) {
			t.Fatalf("Load = %q, %v, want %q", got, err, record)
		}
		if swapped, err := store.CompareAndSwap(t.Context(), key, record, next); err != nil || !swapped {
			t.Errorf("CompareAndSwap to %q = %v, %v, want true", next, swapped, err)
		}
	}
}

// What is far larger than a record is not fetched, and makes way for a login.
func TestHugeRecords(t *testing.T) {
	for _, c := range []struct {
		db      *sql.DB
		dialect sqlstore.Dialect
		huge    string
	}{
		{openDB(t, "pgx", engine.PostgreSQL(t).URL("postgres")), sqlstore.PostgreSQL, "convert_to(repeat('x', 16 << 20), 'UTF8')"},
		{openDB(t, "sqlite3", "file:"+filepath.Join(t.TempDir(), "logins.db")+sqliteSettings), sqlstore.SQLite, "zeroblob(16 << 20)"},
	} {
		t.Run(string(c.dialect), func(t *testing.T) {
			store := create(t, c.db, c.dialect)
			key := brokerauth.Key{Provider: "schwab", Profile: "default"}
			_, err := c.db.Exec("INSERT INTO brokerauth_logins VALUES ('" + key.String() + "', 0, " + c.huge + ")")
			must(t, err)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err = store.Load(t.Context(), key)
			runtime.ReadMemStats(&after)
			checkKind(t, "Load", err, brokerauth.ErrCorrupt)
			if n := (after.TotalAlloc - before.TotalAlloc) >> 20; n > 8 {
				t.Errorf("Load allocates %d MiB", n)
			}
			_, err = store.SetAside(t.Context(), key)
			must(t, err)
			swapped, err := store.CompareAndSwap(t.Context(), key, nil, []byte("record"))
			if err != nil || !swapped {
				t.Errorf("CompareAndSwap = %v, %v, want true", swapped, err)
			}
			_, err = c.db.Exec("UPDATE brokerauth_logins SET record = " + c.huge + " WHERE name = '.version'")
			must(t, err)
			checkKind(t, "Create over such a version", store.Create(t.Context()), brokerauth.ErrCorrupt)
		})
	}
}

func TestStoreSealedOverSQLite(t *testing.T) {
	conformance.TestStore(t, func(t *testing.T, at string) brokerauth.Store { return seal(t, openSQLite(t, at)) })
}
