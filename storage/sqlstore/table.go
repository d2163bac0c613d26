package sqlstore

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strconv"

	"github.com/brokerauth/brokerauth"
)

const table = "brokerauth_logins"

// tableVersion is that of the table. A later one must leave what is here to work, as older programs go on.
const tableVersion = 1

// The table has a row for each record, where aside is 0, and for each that was set aside. The parameters appear in the
// order of their numbers, which is how some SQLite drivers count them.
//
// In SQLite a column holds whatever a tool has put in: a record that was restored as text equals no bytes without a cast.
const (
	load = `SELECT length(record), CASE WHEN length(record) <= $1 THEN CAST(record AS BLOB) END FROM ` + table + `
		WHERE name = $2 AND aside = 0`
	create = `INSERT INTO ` + table + ` (name, aside, record) VALUES ($1, 0, $2) ON CONFLICT (name, aside) DO NOTHING`
	swap   = `UPDATE ` + table + ` SET record = $1 WHERE name = $2 AND aside = 0 AND CAST(record AS BLOB) = $3`
	aside  = `UPDATE ` + table + ` SET aside = $1 WHERE name = $2 AND aside = 0`
	list   = `SELECT name FROM ` + table + ` WHERE aside = 0 AND name > $1 ORDER BY name LIMIT $2`
	absent = `SELECT CASE WHEN EXISTS (SELECT 1 FROM ` + table + ` WHERE name = $1 AND aside = 0) THEN 0 ELSE 1 END`
	sweep  = `DELETE FROM ` + table + ` WHERE name = $1 AND aside <> 0
		AND NOT EXISTS (SELECT 1 FROM ` + table + ` WHERE name = $1 AND aside = 0)`

	// What was set aside goes only where the record did. In PostgreSQL a subquery does not see what another session has
	// changed since the statement began, but the row that a DELETE waits for is compared anew.
	dropPostgreSQL = `WITH gone AS (DELETE FROM ` + table + ` WHERE name = $1 AND aside = 0 AND record = $2 RETURNING 1),
		copies AS (DELETE FROM ` + table + ` WHERE name = $1 AND aside <> 0 AND EXISTS (SELECT 1 FROM gone))
		SELECT count(*) FROM gone`
	dropSQLite = `DELETE FROM ` + table + ` WHERE name = $1
		AND EXISTS (SELECT 1 FROM ` + table + ` WHERE name = $1 AND aside = 0 AND CAST(record AS BLOB) = $2)`
)

// versionRow is the name of the row that tells the table's version: no key is spelt like it.
const versionRow = ".version"

// makeTable is what each version has added. Two hosts may run it at the same time.
var makeTable = map[Dialect][]string{
	PostgreSQL: {`CREATE TABLE IF NOT EXISTS ` + table + ` (
		name text COLLATE "C" NOT NULL, aside bigint NOT NULL, record bytea NOT NULL, PRIMARY KEY (name, aside))`},
	SQLite: {`CREATE TABLE IF NOT EXISTS ` + table + ` (
		name TEXT NOT NULL, aside INTEGER NOT NULL, record BLOB NOT NULL, PRIMARY KEY (name, aside)) WITHOUT ROWID`},
}

// Create makes the table where there is none, and brings one of an earlier version up to date. Call it whenever a
// program starts, or once by a role that may create tables: where nothing is to be done it only looks.
//
// It also checks that the connection keeps what it reports as kept. One that does not, and a table of a newer version
// than it can work with, match [errors.ErrUnsupported].
func (s *Store) Create(ctx context.Context) error {
	err := ctx.Err()
	if err == nil {
		err = s.checkDurable(ctx)
	}
	if err == nil {
		err = s.migrate(ctx)
	}
	if err != nil {
		return fmt.Errorf("sqlstore: %s table %s: %w", s.dialect, table, err)
	}
	return nil
}

func (s *Store) migrate(ctx context.Context) error {
	version, err := s.version(ctx)
	if e := (*fault)(nil); errors.As(err, &e) && e.missing {
		version, err = 0, nil
	}
	switch {
	case err != nil:
		return err
	case version == tableVersion:
		return nil
	case version > tableVersion:
		return fmt.Errorf("it was made by a newer version of brokerauth: use that: %w", errors.ErrUnsupported)
	}
	for _, statement := range makeTable[s.dialect][version:] {
		if _, err := s.exec(ctx, statement); err != nil {
			// PostgreSQL lets one of two that make a table at the same time fail.
			if version, e := s.version(ctx); e != nil || version != tableVersion {
				return err
			}
		}
	}
	_, err = s.exec(ctx, create, versionRow, []byte(strconv.Itoa(tableVersion)))
	return err
}

// version is that of the table, and 0 if it is empty.
func (s *Store) version(ctx context.Context) (version int, err error) {
	found := false
	var record []byte
	err = s.try(ctx, reads, func(ctx context.Context) error {
		rows, err := s.db.QueryContext(ctx, s.sql(load), maxRecord, versionRow)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			if err := rows.Scan(new(any), &record); err != nil {
				return err
			}
			found = true
		}
		return rows.Err()
	})
	if err != nil || !found {
		return 0, err
	}
	if version, err = strconv.Atoi(string(record)); err != nil || version < 1 {
		return 0, fmt.Errorf("its version cannot be read: %w", brokerauth.ErrCorrupt)
	}
	return version, nil
}

// checkDurable finds settings under which a change that was reported may be lost.
func (s *Store) checkDurable(ctx context.Context) error {
	ask := func(question string) (answer string, err error) {
		err = s.try(ctx, reads, func(ctx context.Context) error {
			return s.db.QueryRowContext(ctx, question).Scan(&answer)
		})
		return answer, err
	}
	if s.dialect == PostgreSQL {
		commit, err := ask(`SELECT current_setting('synchronous_commit')`)
		if err == nil && commit == "off" {
			err = fmt.Errorf("synchronous_commit is off, so that a crash of the server loses tokens that are the only ones: "+
				"ALTER ROLE … SET synchronous_commit = on: %w", errors.ErrUnsupported)
		}
		return err
	}
	mode, err := ask(`PRAGMA journal_mode`)
	if err == nil && mode != "wal" {
		if mode, err = ask(`PRAGMA journal_mode = wal`); err == nil {
			err = s.reconnect(ctx) // what a connection syncs may depend on the mode that it found
		}
	}
	if err != nil {
		return err
	}
	if mode != "wal" {
		return fmt.Errorf("the database cannot have a write-ahead log, as one in memory or on a network file system: "+
			"use a file on a local disk: %w", errors.ErrUnsupported)
	}
	level, err := ask(`PRAGMA synchronous`)
	if n, _ := strconv.Atoi(level); err == nil && n < 2 {
		err = fmt.Errorf("synchronous is below FULL, so that a power failure loses tokens that are the only ones: "+
			"set that pragma to FULL for each connection, as by _pragma=synchronous(full) in its address: %w", errors.ErrUnsupported)
	}
	return err
}

// reconnect has the pool throw a connection away.
func (s *Store) reconnect(ctx context.Context) error {
	return s.try(ctx, writes, func(ctx context.Context) error {
		c, err := s.db.Conn(ctx)
		if err != nil {
			return err
		}
		if err := c.Raw(func(any) error { return driver.ErrBadConn }); !errors.Is(err, driver.ErrBadConn) {
			return err
		}
		return nil
	})
}
