// Package sqlstore keeps logins in a PostgreSQL or SQLite database, through any database/sql driver: with PostgreSQL,
// hosts share them.
//
// The caller opens the database and names its dialect, so this package brings no driver:
//
//	db, err := sql.Open("pgx", os.Getenv("DATABASE_URL")) // github.com/jackc/pgx/v5/stdlib
//	...
//	store, err := sqlstore.New(db, sqlstore.PostgreSQL)
//	...
//	err = store.Create(ctx) // makes the table, brokerauth_logins, where there is none
//
// Each record is one row, and each change of it one statement: the Store opens no transaction, keeps no connection while
// a broker is asked, and works in a pool of one connection. The secrets in a row are not encrypted: whoever may read the
// table, its backup, or the traffic to the server can read them. Package storage/sealed encrypts what any store keeps.
//
// Bound the pool, as with db.SetMaxOpenConns(10) and db.SetMaxIdleConns(10): left alone, database/sql opens a connection
// for each call that is made at the same time and keeps two, and a PostgreSQL server takes a hundred of all its clients.
//
// # PostgreSQL
//
// The connection must lead to the primary, or to a pooler in front of it: a standby refuses changes, and what it shows
// may be old. The role needs SELECT, INSERT, UPDATE and DELETE on the table; Create also CREATE on the schema, until the
// table is there. Up to PostgreSQL 14 every role may create tables in the schema public: give this one a schema of its
// own, or revoke that, else another role may make the table first, and read what is put in. A record that was reported
// as written is durable as far as the server's settings make it so: Create refuses a connection whose synchronous_commit
// is off, which loses the last changes when the server crashes. A failover to a standby loses them, too, unless it is a
// synchronous one (synchronous_standby_names).
//
// Behind a pooler that lends a connection for one transaction at a time, such as pgbouncer before 1.21, a driver must not
// prepare statements: give pgx default_query_exec_mode=exec in its address. With pgx's default many calls fail there, with
// an error that says so.
//
// # SQLite
//
// Create turns the write-ahead log on, and refuses connections whose synchronous is below FULL, which loses the last
// changes when the power fails: some drivers' own default is NORMAL, so set it for each connection, as with
// _pragma=synchronous(full) in the addresses of github.com/ncruces/go-sqlite3 and modernc.org/sqlite. The database is
// one file, for processes of one host: keep it off network file systems, and end all of them before it is replaced, as
// one that runs goes on in the old file.
// SQLite makes the file readable by whomever the umask lets: make an empty one of mode 0600 first, in a folder of its
// user's own. With PRAGMA secure_delete=on, the file keeps nothing of a record that was deleted; the log is emptied, too, unless
// somebody reads it at that moment.
//
// # Errors
//
// A database that cannot be reached, does not answer within ten seconds, shuts down, is read-only for now or has no
// room is [brokerauth.ErrUnavailable]. One that refuses the user, or what they ask for, is [fs.ErrPermission]. What the
// database calls damaged is [brokerauth.ErrCorrupt]. Where the connection ended before the answer came, the error of
// CompareAndSwap says that the outcome is unknown, as a change is sent once. With a driver that does not look whether a
// pooled connection has ended, such as lib/pq, that is what changes may meet after a restart of the server. No error holds
// the database's address or what a driver says on its own account, as that may hold the password: db.PingContext tells more.
package sqlstore

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strings"
	"time"

	"github.com/brokerauth/brokerauth"
)

const (
	maxRecord = 1 << 20          // bytes; a login has one or two thousand
	patience  = 10 * time.Second // that one statement may take, waiting for a connection included
	page      = 1000             // keys that one statement of Keys asks for
)

var _ brokerauth.Store = (*Store)(nil)

// Dialect is which SQL a database speaks.
type Dialect string

const (
	PostgreSQL Dialect = "PostgreSQL" // 11 or later
	SQLite     Dialect = "SQLite"     // 3.24 or later
)

// Store keeps records in one table. Any number of Stores, in any number of processes and on any number of hosts that
// reach the database, may share it.
type Store struct {
	db      *sql.DB
	dialect Dialect
	loads   chan struct{} // holds the loads under way
}

// New returns the store in db, which stays the caller's to close. New touches nothing. A Dialect that is none is an
// error.
//
// However many loads wait for a connection, a write is not behind them: they use one connection less than the pool may
// have by the time of New (see [sql.DB.SetMaxOpenConns]), but for the only one.
func New(db *sql.DB, dialect Dialect) (*Store, error) {
	switch {
	case db == nil:
		return nil, errors.New("sqlstore: there is no database to keep records in")
	case dialect != PostgreSQL && dialect != SQLite:
		return nil, fmt.Errorf("sqlstore: no dialect is called %q: there are %s and %s", string(dialect), PostgreSQL, SQLite)
	}
	// A token that a broker issued must not wait behind those who ask for one; of all who wait, a pool serves any.
	loads := math.MaxInt
	if most := db.Stats().MaxOpenConnections; most > 0 {
		loads = max(1, most-1)
	}
	return &Store{db, dialect, make(chan struct{}, loads)}, nil
}

// Format prints which table it is: the database's address may hold a password.
func (s *Store) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "%s table %s", s.dialect, table) }

// Load returns the record at key. A missing one is [fs.ErrNotExist]; one that is empty or larger than 1 MiB, as no Store
// writes it, is [brokerauth.ErrCorrupt].
func (s *Store) Load(ctx context.Context, key brokerauth.Key) ([]byte, error) {
	if err := check(ctx, key); err != nil {
		return nil, err
	}
	var size int64 // what is larger than any record stays in the database
	var record []byte
	err := s.try(ctx, reads, func(ctx context.Context) error {
		select {
		case s.loads <- struct{}{}:
			defer func() { <-s.loads }()
		case <-ctx.Done():
			return ctx.Err()
		}
		return s.db.QueryRowContext(ctx, s.sql(load), maxRecord, key.String()).Scan(&size, &record)
	})
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, fmt.Errorf("sqlstore: %s: %w", s.Where(key), fs.ErrNotExist)
	case err != nil:
		return nil, fmt.Errorf("sqlstore: %s: %w", s.Where(key), err)
	case size > maxRecord, len(record) > maxRecord: // size counts a text's characters
		return nil, fmt.Errorf("sqlstore: %s: the record is larger than %d bytes: restore it from a backup, or log in again: %w",
			s.Where(key), maxRecord, brokerauth.ErrCorrupt)
	case len(record) == 0:
		return nil, fmt.Errorf("sqlstore: %s: the record is empty: restore it from a backup, or log in again: %w",
			s.Where(key), brokerauth.ErrCorrupt)
	}
	return record, nil
}

// CompareAndSwap replaces the record at key by new if it still is old, as [brokerauth.Store] says, in one statement. A
// new nil deletes what SetAside moved away, too. It waits for other writers.
//
// A new that is empty and not nil, or larger than 1 MiB, is an error.
func (s *Store) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	if err := check(ctx, key); err != nil {
		return false, err
	}
	name := key.String()
	var changed int64
	var err error
	switch {
	case new != nil && len(new) == 0:
		return false, errors.New("sqlstore: a record cannot be empty: give nil to delete it")
	case len(new) > maxRecord:
		return false, fmt.Errorf("sqlstore: a record of %d bytes is too large: at most %d fit", len(new), maxRecord)
	case old != nil && len(old) == 0:
		return false, nil // no record is
	case old == nil && new == nil:
		// Two statements, but there is nothing to swap: copies of what is gone go, and then there is a record or none.
		if _, err = s.exec(ctx, sweep, name); err == nil {
			err = s.try(ctx, reads, func(ctx context.Context) error {
				return s.db.QueryRowContext(ctx, s.sql(absent), name).Scan(&changed)
			})
		}
	case old == nil:
		changed, err = s.exec(ctx, create, name, new)
	case new == nil && s.dialect == PostgreSQL:
		err = s.change(ctx, func(ctx context.Context, c *sql.Conn) error {
			return c.QueryRowContext(ctx, s.sql(dropPostgreSQL), name, old).Scan(&changed)
		})
	case new == nil:
		if changed, err = s.exec(ctx, dropSQLite, name, old); err == nil && changed > 0 {
			s.emptyLog(ctx)
		}
	default:
		changed, err = s.exec(ctx, swap, new, name, old)
	}
	if err != nil {
		if e := (*fault)(nil); errors.As(err, &e) && e.unknown {
			e.text += "; whether the record was changed is unknown"
		}
		return false, fmt.Errorf("sqlstore: %s: %w", s.Where(key), err)
	}
	return changed > 0, nil
}

// emptyLog takes what was deleted out of SQLite's write-ahead log, too. While others read it, it stays; then the next
// checkpoint does it.
func (s *Store) emptyLog(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_, _ = s.db.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)")
}

// Keys returns the keys of all records, sorted by their spelling. It asks for a thousand at a time.
func (s *Store) Keys(ctx context.Context) ([]brokerauth.Key, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("sqlstore: %w", err)
	}
	var keys []brokerauth.Key
	for after, full := "", true; full; {
		var names []string
		err := s.try(ctx, reads, func(ctx context.Context) error {
			names = nil
			rows, err := s.db.QueryContext(ctx, s.sql(list), after, page)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var name string
				if err := rows.Scan(&name); err != nil {
					return err
				}
				names = append(names, name)
			}
			return rows.Err()
		})
		if err != nil {
			return nil, fmt.Errorf("sqlstore: table %s: %w", table, err)
		}
		for _, name := range names {
			after = name
			if key, err := brokerauth.ParseKey(name); err == nil { // the table's version is in a row, too
				keys = append(keys, key)
			}
		}
		full = len(names) == page
	}
	return keys, nil
}

// Where names the row of the record at key.
func (s *Store) Where(key brokerauth.Key) string {
	return fmt.Sprintf("row %s of the %s table %s", key, s.dialect, table)
}

// SetAside keeps the record at key under a number, so that another can be written, and says where. It stays as it is
// until the key is deleted.
func (s *Store) SetAside(ctx context.Context, key brokerauth.Key) (where string, err error) {
	if err := check(ctx, key); err != nil {
		return "", err
	}
	number := time.Now().UnixMicro() // it tells people when; that another host takes the same one is an error, and no loss
	moved, err := s.exec(ctx, aside, number, key.String())
	if err == nil && moved == 0 {
		err = fs.ErrNotExist
	}
	if err != nil {
		return "", fmt.Errorf("sqlstore: %s: %w", s.Where(key), err)
	}
	return fmt.Sprintf("%s, where aside is %d", s.Where(key), number), nil
}

func check(ctx context.Context, key brokerauth.Key) error {
	err := ctx.Err()
	if err == nil {
		err = key.Validate()
	}
	if err != nil {
		return fmt.Errorf("sqlstore: %w", err)
	}
	return nil
}

// sql is a statement as the dialect spells it.
func (s *Store) sql(statement string) string {
	if s.dialect == SQLite {
		return strings.ReplaceAll(statement, "$", "?")
	}
	return strings.ReplaceAll(statement, " AS BLOB", " AS bytea")
}

// exec returns how many rows a statement has changed.
func (s *Store) exec(ctx context.Context, statement string, args ...any) (changed int64, err error) {
	err = s.change(ctx, func(ctx context.Context, c *sql.Conn) error {
		result, err := c.ExecContext(ctx, s.sql(statement), args...)
		if err == nil {
			changed, err = result.RowsAffected()
		}
		return err
	})
	return changed, err
}

// change runs a statement that changes something, on one connection. Left to choose, database/sql sends it over another
// one again where the driver calls the first bad, which some do when an answer is lost: a swap that was done would then be
// reported as not done.
func (s *Store) change(ctx context.Context, statement func(ctx context.Context, c *sql.Conn) error) error {
	sent := false
	err := s.try(ctx, writes, func(ctx context.Context) error {
		c, err := s.db.Conn(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		sent = true
		return statement(ctx, c)
	})
	if e := (*fault)(nil); !sent && errors.As(err, &e) {
		e.unknown = false
	}
	return err
}

// What a statement does, as far as trying again goes.
const (
	reads  = true
	writes = false
)

// staleConnections is how many connections one after the other may turn out to be dead, as after a restart of the server.
const staleConnections = 5

// try runs one statement, and again where others are in its way and nothing was done. One that reads it runs again on
// another connection, too, where the first has ended.
func (s *Store) try(ctx context.Context, reads bool, statement func(ctx context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var blocked *fault
	stale := 0
	for delay := time.Millisecond; ; delay = min(2*delay, 50*time.Millisecond) {
		err := statement(bounded)
		switch {
		case err == nil, errors.Is(err, sql.ErrNoRows):
			return err
		case ended(ctx) != nil:
			return ended(ctx) // which a driver may say in other words
		case ended(bounded) != nil && blocked == nil:
			return &fault{kind: brokerauth.ErrUnavailable, unknown: true,
				text: fmt.Sprintf("the database did not answer within %s", patience)}
		case ended(bounded) != nil:
			return blocked
		}
		e := s.explain(err)
		if reads && e.unknown && stale < staleConnections {
			stale++
			continue
		}
		if !e.again {
			return e
		}
		blocked = e
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-bounded.Done():
			timer.Stop()
		}
	}
}

// ended is ctx.Err, and does not wait for the context's timer: a connection has one of its own for the same moment.
func ended(ctx context.Context) error {
	if end, ok := ctx.Deadline(); ok && !time.Now().Before(end) {
		return cmp.Or(ctx.Err(), context.DeadlineExceeded)
	}
	return ctx.Err()
}
