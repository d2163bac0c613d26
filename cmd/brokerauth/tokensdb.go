package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/internal/private"
)

// maxDatabase bounds each file of a database, in bytes; Schwabdev's have some ten thousand.
const maxDatabase = 4 << 20

func isDatabase(data []byte) bool { return bytes.HasPrefix(data, []byte("SQLite format 3\x00")) }

// databaseFiles are those that a database at path consists of. The newest rows may stand in its write-ahead log alone.
func databaseFiles(path string) []string { return []string{path, path + "-wal", path + "-journal"} }

// readDatabase returns the rows of Schwabdev's table as JSON. To open a database is to write beside it, so it opens a
// copy, which it deletes.
func readDatabase(ctx context.Context, path string) (rows []byte, seen snapshot, err error) {
	dir, err := scratch()
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	duplicate := filepath.Join(dir, "tokens.db")
	for tries := 0; ; tries++ {
		if seen, err = look(databaseFiles(path)); err != nil {
			return nil, nil, err
		}
		for i, to := range databaseFiles(duplicate) {
			os.Remove(to) // of an earlier try
			if seen[i] != nil {
				if err := copyFile(to, databaseFiles(path)[i]); err != nil {
					return nil, nil, err
				}
			}
		}
		now, err := look(databaseFiles(path))
		if err != nil {
			return nil, nil, err
		}
		if now.same(seen) {
			break
		}
		if tries == 20 {
			return nil, nil, fmt.Errorf("%s is being written all the time: stop the program that uses it", path)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
	rows, err = selectTokens(ctx, duplicate)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		// SQLite's own error may quote what it read.
		err = fmt.Errorf("%s is an SQLite database that is damaged or still being written: %w", path, brokerauth.ErrCorrupt)
	} else if err != nil {
		err = fmt.Errorf("%s is an SQLite database, but not Schwabdev's: %w", path, err)
	}
	return rows, seen, err
}

// scratch makes a folder for the copy, and removes those of imports that were killed. It is among this user's own where
// that is possible.
func scratch() (string, error) {
	const pattern = "import-*"
	home, err := private.Home()
	if err == nil {
		err = private.MakeDir(home)
	}
	if err != nil {
		return os.MkdirTemp("", "brokerauth-"+pattern)
	}
	old, _ := filepath.Glob(filepath.Join(home, pattern))
	for _, dir := range old {
		if info, err := os.Lstat(dir); err == nil && info.IsDir() && time.Since(info.ModTime()) > time.Hour {
			os.RemoveAll(dir)
		}
	}
	return os.MkdirTemp(home, pattern)
}

func selectTokens(ctx context.Context, path string) ([]byte, error) {
	db, err := sqlite3.OpenFlags(path, sqlite3.OPEN_READWRITE)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	db.SetInterrupt(ctx)
	db.Limit(sqlite3.LIMIT_LENGTH, 64<<10)
	// Without it a write-ahead log needs memory that processes share, which not every system has.
	if err := db.Exec("PRAGMA locking_mode=exclusive"); err != nil {
		return nil, err
	}
	// A view, a virtual table or a computed column is a program of the file's, and may never end.
	count, _, err := db.Prepare("SELECT count(*) FROM sqlite_schema WHERE type='table' AND name='schwabdev' AND rootpage>0")
	if err != nil {
		return nil, err
	}
	defer count.Close()
	if !count.Step() {
		return nil, errors.Join(count.Err(), brokerauth.ErrCorrupt)
	}
	if count.ColumnInt(0) == 0 {
		return nil, fmt.Errorf("it has no table schwabdev: %w", errors.ErrUnsupported)
	}
	computed, _, err := db.Prepare("SELECT count(*) FROM pragma_table_xinfo('schwabdev') WHERE hidden<>0")
	if err != nil {
		return nil, err
	}
	defer computed.Close()
	if !computed.Step() || computed.ColumnInt(0) != 0 {
		return nil, errors.Join(computed.Err(), brokerauth.ErrCorrupt)
	}
	all, _, err := db.Prepare("SELECT * FROM schwabdev LIMIT 2")
	if err != nil {
		return nil, err
	}
	defer all.Close()
	rows := []map[string]any{}
	for all.Step() {
		row := make(map[string]any)
		for i := range all.ColumnCount() {
			switch name := all.ColumnName(i); all.ColumnType(i) {
			case sqlite3.INTEGER:
				row[name] = all.ColumnInt64(i)
			case sqlite3.NULL:
			default:
				row[name] = all.ColumnText(i)
			}
		}
		rows = append(rows, row)
	}
	if err := all.Err(); err != nil {
		return nil, err
	}
	return json.Marshal(rows)
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, io.LimitReader(in, maxDatabase+1))
	if n > maxDatabase {
		err = fmt.Errorf("%s is larger than any database of tokens", from)
	}
	return errors.Join(err, out.Close())
}
