package sqlstore

import (
	"context"
	"crypto/tls"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"reflect"
	"strings"
	"unicode"

	"github.com/brokerauth/brokerauth"
)

// fault is what went wrong, in words that hold no secret: a driver's error may quote the database's address, its
// password included, or a statement's values, which are tokens. So it is read, and not wrapped.
type fault struct {
	kind    error // what it matches; nil: nothing
	text    string
	again   bool // nothing was done, and another try may help
	missing bool // there is no such table
	unknown bool // whether anything was done
}

func (f *fault) Error() string {
	if f.kind == nil {
		return f.text
	}
	return f.text + ": " + f.kind.Error()
}

func (f *fault) Unwrap() error { return f.kind }

func (s *Store) explain(err error) *fault {
	if e, ok := errors.AsType[interface {
		error
		SQLState() string
	}](err); ok {
		return explainPostgreSQL(e.SQLState(), e.Error())
	}
	if s.dialect == SQLite {
		if code, ok := resultCode(err); ok {
			return explainSQLite(code)
		}
	}
	// The statement never came to an answer. What net says holds addresses and no more.
	text := "the database cannot be reached"
	if e, ok := errors.AsType[*net.OpError](err); ok {
		text += " (" + e.Error() + ")"
		return &fault{kind: brokerauth.ErrUnavailable, text: text, unknown: e.Op != "dial"}
	}
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		return &fault{kind: brokerauth.ErrUnavailable, text: text + " (" + e.Error() + ")"}
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return &fault{kind: brokerauth.ErrUnavailable, text: text + " (" + e.Error() + ")"}
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, driver.ErrBadConn):
		return &fault{kind: brokerauth.ErrUnavailable, text: "the connection to the database ended", unknown: true}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded): // the driver's own
		return &fault{kind: brokerauth.ErrUnavailable, text: "the driver gave up waiting for the database", unknown: true}
	}
	return &fault{kind: brokerauth.ErrUnavailable, unknown: true,
		text: fmt.Sprintf("the driver has failed (%T): db.PingContext may tell why", err)}
}

// explainPostgreSQL explains an answer of the server's: its code, and its text, which is kept only where it cannot quote
// a value.
func explainPostgreSQL(code, text string) *fault {
	is := func(prefixes ...string) bool {
		for _, prefix := range prefixes {
			if strings.HasPrefix(code, prefix) {
				return true
			}
		}
		return false
	}
	said := clean(text)
	switch {
	case is("40001", "40P01", "55P03"):
		return &fault{again: true, kind: brokerauth.ErrUnavailable, text: "others keep the row locked"}
	case is("26000", "42P05"):
		return &fault{kind: brokerauth.ErrUnavailable, text: "prepared statements get lost, as behind a pooler that " +
			"lends connections: have the driver do without, as pgx does with default_query_exec_mode=exec"}
	case is("28", "42501"):
		return &fault{kind: fs.ErrPermission, text: "the database refuses this user: " + said}
	case is("25006"):
		return &fault{kind: brokerauth.ErrUnavailable, text: "the database takes no changes, as a standby: connect to the primary: " + said}
	case is("53100"):
		return &fault{kind: brokerauth.ErrUnavailable, text: "the database's disk is full: " + said}
	case is("08", "57", "58"):
		return &fault{kind: brokerauth.ErrUnavailable, text: "the database ended the connection or the statement: " + said, unknown: true}
	case is("53"):
		return &fault{kind: brokerauth.ErrUnavailable, text: "the database has no room: " + said}
	case is("XX001", "XX002"):
		return &fault{kind: brokerauth.ErrCorrupt, text: "the database says that its data is damaged: restore it from a backup (SQLSTATE " + code + ")"}
	case is("54"):
		return &fault{text: "the record is too large for the database (SQLSTATE " + code + ")"}
	case is("42P01"):
		return &fault{text: "there is no such table: call Create first", missing: true}
	case is("3D000", "3F000"):
		return &fault{text: "there is no such database or schema: " + said}
	}
	return &fault{text: "the database refuses the statement (SQLSTATE " + code + ")"}
}

// explainSQLite explains a result code. See https://sqlite.org/rescode.html.
func explainSQLite(code int) *fault {
	said := fmt.Sprintf(" (SQLite result code %d)", code)
	switch code & 0xff {
	case 5, 6: // SQLITE_BUSY, SQLITE_LOCKED
		return &fault{again: true, kind: brokerauth.ErrUnavailable, text: "others keep the database locked" + said}
	case 3, 8, 23: // SQLITE_PERM, SQLITE_READONLY, SQLITE_AUTH
		return &fault{kind: fs.ErrPermission, text: "the database cannot be written: make its file and folder this user's own" + said}
	case 11, 26: // SQLITE_CORRUPT, SQLITE_NOTADB
		return &fault{kind: brokerauth.ErrCorrupt, text: "the file is damaged or no database: restore it from a backup" + said}
	case 13: // SQLITE_FULL
		return &fault{kind: brokerauth.ErrUnavailable, text: "the disk is full, or the database may not grow: free space there" + said}
	case 14: // SQLITE_CANTOPEN
		return &fault{kind: brokerauth.ErrUnavailable, text: "the file cannot be opened: look whether its folder is there, can be written, and is this user's own" + said}
	case 18: // SQLITE_TOOBIG
		return &fault{text: "the record is too large for the database" + said}
	case 1: // SQLITE_ERROR
		return &fault{text: "the database refuses the statement: has Create made the table?" + said, missing: true}
	case 7, 9, 10, 15: // SQLITE_NOMEM, SQLITE_INTERRUPT, SQLITE_IOERR, SQLITE_PROTOCOL
		return &fault{kind: brokerauth.ErrUnavailable, text: "the file cannot be read or written: look whether its disk is full or read-only" + said, unknown: true}
	}
	return &fault{text: "the database refuses the statement" + said}
}

// resultCode finds SQLite's result code in a driver's error: drivers have it in a method or a field called Code.
func resultCode(err error) (code int, ok bool) {
	for ; err != nil; err = errors.Unwrap(err) {
		v := reflect.ValueOf(err)
		if m := v.MethodByName("Code"); m.IsValid() && m.Type().NumIn() == 0 && m.Type().NumOut() == 1 {
			v = m.Call(nil)[0]
		} else if v = reflect.Indirect(v); v.Kind() == reflect.Struct {
			v = v.FieldByName("Code")
		}
		switch {
		case !v.IsValid():
		case v.CanInt():
			return int(v.Int()), true
		case v.CanUint():
			return int(v.Uint()), true
		}
	}
	return 0, false
}

// clean makes a server's text fit for a terminal and a log line.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, " "))
	if s = strings.Join(strings.Fields(s), " "); len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}
