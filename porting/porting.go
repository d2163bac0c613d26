// Package porting moves logins and settings here from other libraries, and from TD Ameritrade to Schwab.
//
// [Read] recognises by their content the token files of schwab-py, schwab-go, tda-api, td-ameritrade-python-api, pyTD,
// Schwabdev, tastytrade, go-schwab/trader and golang.org/x/oauth2, and what [Export] wrote; [Files] finds those that
// lie in their libraries' usual places. [Migrate] says what a program that was made for TD Ameritrade has to change,
// and [SchwabAddress] where an API call goes now.
//
// A login keeps its age: Schwab's seven days count from the moment the user consented, whoever holds the tokens. And it
// must have one home, since two programs that refresh one login end it for each other: once it is saved, remove the
// file that it came from.
//
//	found, err := porting.Read(data, nil)
//	if err != nil { … }
//	if found.Token != nil {
//		err = session.Save(ctx, found.Token)
//	}
//
// Nothing here reads a file or asks a broker, and no error, note or finding holds a secret.
package porting

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/brokerauth/brokerauth"
)

// The names that the brokers' providers have.
const (
	schwab       = "schwab"
	tdAmeritrade = "tdameritrade"
	tastytrade   = "tastytrade"
	tastySandbox = "tastytrade-sandbox"
)

const (
	maxData   = 1 << 20         // bytes; a login has one or two thousand
	clockSkew = 5 * time.Minute // how far ahead another machine's clock may be

	// Schwab's portal text "Schwab & API Security" has both.
	schwabAccess = 30 * time.Minute
	schwabLogin  = 7 * 24 * time.Hour
	// Tastytrade's documentation of OAuth2.
	tastyAccess = 15 * time.Minute
)

// accessLife is how long a broker's access tokens live; 0: unknown. A file that claims more is damaged, and would keep
// a dead token in use.
func accessLife(provider string) time.Duration {
	switch provider {
	case schwab:
		return schwabAccess
	case tastytrade, tastySandbox:
		return tastyAccess
	}
	return 0
}

// Options is what a file may leave open. A nil *Options is the zero Options. It prints without the key.
type Options struct {
	// Provider is the broker, as Info.Name spells it, of a file that does not say. It is an error if the file says
	// another.
	Provider string
	// LoggedInAt is when the user consented, for a file that does not say. Zero: unknown, and then the token's
	// LoggedInAt and LoginBy are zero.
	LoggedInAt time.Time
	// FernetKey is the encryption key that Schwabdev was given, in base64 as it takes it.
	FernetKey string `json:"-"`
}

// LogValue shows the options without the key.
func (o Options) LogValue() slog.Value {
	return slog.GroupValue(slog.String("provider", o.Provider), slog.Time("logged_in_at", o.LoggedInAt))
}

// Format prints the options without the key, whatever the verb.
func (o Options) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "options{provider=%s logged_in_at=%s}", o.Provider, o.LoggedInAt.Format(time.RFC3339))
}

// Found is what Read recognised.
type Found struct {
	Format   string // whose format it is, for people: "schwab-py or schwab-go"
	Provider string // the broker, as Info.Name spells it: "schwab"
	// Identity is the app that the login is of, if the data says: a login works with no other, so compare it with
	// Provider.Info().Identity.
	Identity string
	// Token is nil if there is nothing to move, as with TD Ameritrade, whose service ended in May 2024.
	//
	// Of a tastytrade session, RefreshToken is the grant and Extra["client_secret"] the secret that belongs to it, which
	// are settings here; AccessToken is empty if the session had none yet.
	Token *brokerauth.Token
	Notes []string // what a person should know
}

// Read recognises data, the whole of a file, and returns the login in it. o may be nil.
//
// An error matches [brokerauth.ErrCorrupt] if data is damaged, or claims what cannot be, such as a login in the future;
// and [errors.ErrUnsupported] if it is no format that Read knows, or one that it refuses: a Python pickle, which runs
// code when it is read, and an SQLite database, which begins with "SQLite format 3". Of Schwabdev's tokens.db, read the
// one row of table schwabdev and hand Read a JSON object, or an array of one, of column names and values, as
// sqlite3 -json prints it.
func Read(data []byte, o *Options) (*Found, error) {
	if o == nil {
		o = &Options{}
	}
	f, err := recognise(data, o)
	if err != nil {
		return nil, fmt.Errorf("porting: %w", err)
	}
	if err := f.settle(o, time.Now().Round(0)); err != nil {
		return nil, fmt.Errorf("porting: this file of %s %w", f.Format, err)
	}
	return f, nil
}

func recognise(data []byte, o *Options) (*Found, error) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return nil, fmt.Errorf("the file is empty: %w", brokerauth.ErrCorrupt)
	case len(data) > maxData:
		return nil, fmt.Errorf("the file is larger than %d bytes, and no login is: %w", maxData, errors.ErrUnsupported)
	case bytes.HasPrefix(data, []byte("SQLite format 3\x00")):
		return nil, fmt.Errorf("this is an SQLite database: if Schwabdev wrote it, hand over what "+
			"sqlite3 -json FILE 'select * from schwabdev' prints: %w", errors.ErrUnsupported)
	case bytes.HasPrefix(data, []byte("\xff\xfe")), bytes.HasPrefix(data, []byte("\xfe\xff")):
		return nil, fmt.Errorf("the file is in UTF-16, as PowerShell 5 writes it by >: write it again in UTF-8, "+
			"as Get-Content FILE | Set-Content -Encoding ascii NEW does: %w", errors.ErrUnsupported)
	case data[0] == 0x80, bytes.HasPrefix(data, []byte("(d")):
		return nil, fmt.Errorf("this is a Python pickle, which runs code when it is read, so it is not: early versions of tda-api "+
			"wrote such files for TD Ameritrade, which ended in May 2024, so there is nothing to move: %w", errors.ErrUnsupported)
	}
	v, err := parse(data)
	if err != nil {
		return nil, err
	}
	if rows, ok := v.([]any); ok {
		if len(rows) != 1 {
			return nil, fmt.Errorf("this is a list of %d, where Schwabdev's table has one row: %w", len(rows), errors.ErrUnsupported)
		}
		v = rows[0]
	}
	fields, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("this is JSON, but no object, so no login: %w", errors.ErrUnsupported)
	}
	r := &object{fields: fields}
	f, err := r.login(o)
	if err == nil && r.err != nil {
		err = fmt.Errorf("this file of %s is damaged: %w: %w", f.Format, r.err, brokerauth.ErrCorrupt)
	}
	return f, err
}

// settle checks what a format's reader found, and works out what follows from the broker. Its errors go on from
// "this file of X".
func (f *Found) settle(o *Options, now time.Time) error {
	switch {
	case f.Provider == "" && o.Provider == "":
		return fmt.Errorf("does not say which broker its login is of: name the broker")
	case f.Provider != "" && o.Provider != "" && f.Provider != o.Provider:
		return fmt.Errorf("is of a login at %s, not at %s", f.Provider, o.Provider)
	}
	f.Provider = cmp.Or(f.Provider, o.Provider)
	if f.Provider == tdAmeritrade {
		f.Token = nil
		f.note("TD Ameritrade ended in May 2024: there is nothing to move; log in to Schwab instead, and delete the file")
		return nil
	}
	t := f.Token
	damaged := func(what string) error { return fmt.Errorf("is damaged: %s: %w", what, brokerauth.ErrCorrupt) }
	switch {
	case t.RefreshToken == "":
		return fmt.Errorf("holds no refresh token, so its login cannot be kept alive: log in anew")
	case t.AccessToken == "" && f.Provider != tastytrade && f.Provider != tastySandbox:
		return damaged("it holds no access token")
	case !visible(t.AccessToken) || !visible(t.RefreshToken) || !visible(t.TokenType):
		return damaged("a token in it has a character that no token may have")
	}
	if t.LoggedInAt.IsZero() {
		t.LoggedInAt = o.LoggedInAt
	} else if !o.LoggedInAt.IsZero() && t.LoggedInAt.Sub(o.LoggedInAt).Abs() > clockSkew {
		f.note("the file says another time of the login than was given, and the file's counts")
	}
	if f.Provider == tastytrade || f.Provider == tastySandbox {
		// A grant has no age that counts, and one that claimed to be newer would stand in the way of the next.
		t.LoggedInAt, t.LoginBy = time.Time{}, time.Time{}
	}
	soon, far := now.Add(clockSkew), now.AddDate(10, 0, 0)
	life := accessLife(f.Provider)
	if life > 0 {
		far = soon.Add(life)
	}
	switch {
	case t.LoggedInAt.After(soon):
		return damaged("its login lies in the future, or this machine's clock is wrong")
	case t.Issued.After(soon):
		return damaged("its access token was issued in the future, or this machine's clock is wrong")
	case t.Expiry.After(far):
		return damaged("its access token lives longer than the broker's do, or this machine's clock is wrong")
	case t.LoginBy.After(now.AddDate(10, 0, 0)):
		return damaged("its login lives longer than any")
	}
	// A clock that was a little ahead must not make a login longer.
	for _, at := range []*time.Time{&t.LoggedInAt, &t.Issued} {
		if at.After(now) {
			*at = now
		}
	}
	if life > 0 && t.Expiry.IsZero() {
		t.Expiry = now // unknown, and zero would mean never: the first use renews it
	}
	if f.Provider == schwab {
		t.LoginBy = time.Time{}
		if !t.LoggedInAt.IsZero() {
			t.LoginBy = t.LoggedInAt.Add(schwabLogin)
		} else {
			f.note("when the user logged in is unknown, so nobody can be told ahead of time when to log in again")
		}
	}
	if !t.LoginBy.IsZero() && !t.LoginBy.After(now) {
		f.note("this login has ended, about " + t.LoginBy.UTC().Format(time.RFC3339) + ": log in again")
	}
	for _, at := range []*time.Time{&t.Issued, &t.Expiry, &t.LoggedInAt, &t.LoginBy} {
		*at = at.UTC()
	}
	return nil
}

func (f *Found) note(s string) { f.Notes = append(f.Notes, s) }

// visible reports whether s has only what may stand in a header.
func visible(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < 0x21 || r > 0x7e }) < 0
}
