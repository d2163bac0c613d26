// Package brokerauth logs a program in to brokerages and keeps the login alive, in one place that every goroutine,
// process and host can share.
//
// Five nouns are all there is to it:
//
//   - a [Provider] is one broker's rules, bound to one registered app: package providers/schwab makes one;
//   - a [Token] is what the broker issued, with its two clocks: the access token's minutes, the login's days;
//   - a [Store] keeps a login's record: package storage/keyring has the one to begin with, and other packages under
//     storage have files, databases, and encryption for any of them;
//   - a [Flow] takes a person to the broker's login page and back: package flows has them;
//   - a [Session] joins them: one login at one broker, kept fresh.
//
// A program that spans brokers holds one Session a login. See the package example. A [Keeper] renews many Sessions in the
// background, and [Session.Watch] tells each new token to connections that outlive one.
//
// # Errors
//
// An error that a program may want to act on matches one of [ErrLoginRequired] (a person must log in), [ErrRejected]
// (a person must change the settings), [ErrUnavailable] (try later) and [ErrCorrupt] (a record cannot be read), or a
// standard one: [fs.ErrNotExist], [fs.ErrPermission], [errors.ErrUnsupported], a context's. What the broker said is in
// [*Error].
//
// No error, event or printed value holds a secret: a token prints as a fingerprint.
package brokerauth

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// Provider is one broker's authentication rules, bound to one registered app.
// Its methods are safe for concurrent use and keep no token.
//
// A Provider may also offer
//
//	Elsewhere(address string) string   // what to ask here instead of another broker's address, for people; empty: unknown
type Provider interface {
	// Info returns the broker's constant facts.
	Info() Info
	// Refresh renews old, which it never modifies. old is nil if no login is stored: a broker whose grant was
	// issued beforehand then mints the first token, and one with a login page refuses without asking anybody. An error
	// matching ErrLoginRequired or ErrRejected is final.
	Refresh(ctx context.Context, old *Token) (*Token, error)
}

// LoginProvider is a Provider with a login page.
type LoginProvider interface {
	Provider
	// Begin starts a login. It leaves Login.Key to the Session.
	Begin(ctx context.Context) (*Login, error)
	// Complete finishes login with the address that the broker sent the user back to, or the bare code as typed.
	// One call spends the code at most once. An *Error with neither Kind nor Status says that nothing was sent, so that
	// the user may try another address.
	Complete(ctx context.Context, login *Login, callback string) (*Token, error)
}

// Info is what is constant about a Provider.
type Info struct {
	// Name is the broker and, where it has several, the environment: "schwab", "tastytrade-sandbox".
	Name string
	// Identity tells apart the logins of several apps at one broker: a fingerprint of the client id or, where the
	// settings hold a grant, of that grant; and of the token endpoint's origin when that is not the broker's own.
	// It may be empty, and is never secret.
	Identity string
	// Settings is a fingerprint of every setting that a broker may refuse, secrets included. A refusal is remembered
	// only until it changes.
	Settings string
	// BaseURL is where API calls go, without a slash at the end.
	BaseURL string
	// Origins are the scheme, host and port that the token may be sent to, such as "https://api.schwabapi.com".
	// A host may begin with "*." for exactly one label.
	Origins []string
	// UserAgent is what requests are to call themselves, "product/version", where the broker insists: token calls do,
	// and API calls that set none of their own. Empty: net/http's.
	UserAgent string
	// Margin is the longest time before the access token's expiry at which it is renewed. A Session takes the smaller
	// of it and a fifth of the token's life.
	Margin time.Duration
}

// Store keeps one opaque record a key. Its methods are safe for concurrent use by any number of processes that share
// the storage.
//
// A missing, corrupt, locked, denied, oversize and unreachable record are told apart: errors match [fs.ErrNotExist],
// [ErrCorrupt], [fs.ErrPermission], [ErrUnavailable] and so on, and name the place. Methods honour ctx while they wait.
//
// A Store may also offer any of these:
//
//	Keys(ctx context.Context) ([]Key, error)                           // the keys of all records, sorted by their spelling
//	Where(key Key) string                                              // where and how the record is kept, for people
//	SetAside(ctx context.Context, key Key) (where string, err error)   // moves an unreadable record out of the way
type Store interface {
	// Load returns the record at key; a missing one is nil, fs.ErrNotExist.
	Load(ctx context.Context, key Key) ([]byte, error)
	// CompareAndSwap replaces the record at key by new if it still is old, and reports whether it did.
	// old nil: there must be none. new nil: delete, every copy included; no record is empty. When it returns true, new
	// is durable; when it returns an error the outcome is unknown: load again.
	CompareAndSwap(ctx context.Context, key Key, old, new []byte) (swapped bool, err error)
}

// Flow takes the user to login.URL and hands finish the address that the broker sent them back to.
// finish completes the login and saves the token; its error is for the user to see, and finish may be called again
// with another address.
type Flow func(ctx context.Context, login *Login, finish func(ctx context.Context, callback string) error) error

// Login is a login that has begun and waits for the user to come back. It is plain data: JSON keeps all of it, so a
// web app can finish on another host. It is secret, and prints redacted.
type Login struct {
	Key         Key       `json:"key,omitzero"`     // the Session that began it; zero: none did
	URL         string    `json:"url"`              // the broker's login page, where the user goes
	RedirectURL string    `json:"redirect_url"`     // where the broker sends the user back to
	State       string    `json:"state,omitempty"`  // comes back with the user; empty: the broker has none
	Secret      string    `json:"secret,omitempty"` // PKCE verifier, or OAuth 1.0a request secret
	Began       time.Time `json:"began"`
}

// LogValue shows the login without its secrets.
func (l Login) LogValue() slog.Value {
	return slog.GroupValue(slog.String("key", l.Key.String()), slog.String("redirect_url", l.RedirectURL),
		slog.String("state", redact(l.State)), slog.Time("began", l.Began))
}

// Format prints the login without its secrets, whatever the verb.
func (l Login) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "login{%s redirect_url=%s state=%s began=%s}", l.Key, l.RedirectURL, redact(l.State), l.Began.Format(time.RFC3339))
}

// Key names one login in a Store: which broker, which app, whose. Each part is at most 64 bytes.
type Key struct {
	Provider string // Info.Name; a leading "~" is the library's own
	Identity string // Info.Identity
	Profile  string // the person or purpose
}

// maxKey is the longest spelling of a Key: with a store's ending it is a file name on every system.
const maxKey = 240

// String is the key's one spelling: safe as a file name on every system, case-insensitive ones included. Parts stand
// between dots; a byte other than a lower-case letter, digit, "-" and "_" is "=" and two hex digits; an empty part is "=".
// [ParseKey] reads it.
func (k Key) String() string {
	var b strings.Builder
	for i, part := range [...]string{k.Provider, k.Identity, k.Profile} {
		if i > 0 {
			b.WriteByte('.')
		}
		if part == "" {
			b.WriteByte('=')
		}
		for j := range len(part) {
			c := part[j]
			plain := 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_'
			if i == 0 && j == 0 {
				// A device's name is no file name on Windows, whatever its ending.
				plain = plain && !deviceName(part) || c == '~'
			}
			if plain {
				b.WriteByte(c)
			} else {
				fmt.Fprintf(&b, "=%02x", c)
			}
		}
	}
	return b.String()
}

func deviceName(s string) bool {
	switch s {
	case "con", "prn", "aux", "nul":
		return true
	}
	return len(s) == 4 && (strings.HasPrefix(s, "com") || strings.HasPrefix(s, "lpt")) && '0' <= s[3] && s[3] <= '9'
}

// Validate reports a key that no store can hold: a part over 64 bytes, no provider, or a spelling over 240 bytes.
func (k Key) Validate() error {
	for _, part := range []struct{ name, value string }{
		{"provider", k.Provider}, {"identity", k.Identity}, {"profile", k.Profile},
	} {
		if len(part.value) > 64 {
			return fmt.Errorf("brokerauth: the %s of a login's key is %d bytes long: at most 64 fit; choose a shorter one", part.name, len(part.value))
		}
	}
	if k.Provider == "" {
		return fmt.Errorf("brokerauth: a login's key has no provider name")
	}
	if n := len(k.String()); n > maxKey {
		return fmt.Errorf("brokerauth: a login's key spells %d characters: at most %d fit; use fewer unusual characters in the profile", n, maxKey)
	}
	return nil
}

// ParseKey reads what [Key.String] wrote, and nothing else.
func ParseKey(s string) (Key, error) {
	parts := strings.Split(s, ".")
	if len(parts) != 3 {
		return Key{}, fmt.Errorf("brokerauth: %q is not a login's key: it has %d parts, not 3", s, len(parts))
	}
	for i, part := range parts {
		if part == "=" {
			parts[i] = ""
			continue
		}
		var b []byte
		for j := 0; j < len(part); j++ {
			if part[j] != '=' {
				b = append(b, part[j])
				continue
			}
			if j+3 > len(part) {
				return Key{}, fmt.Errorf("brokerauth: %q is not a login's key", s)
			}
			c, err := hex.DecodeString(part[j+1 : j+3])
			if err != nil {
				return Key{}, fmt.Errorf("brokerauth: %q is not a login's key", s)
			}
			b = append(b, c...)
			j += 2
		}
		parts[i] = string(b)
	}
	k := Key{parts[0], parts[1], parts[2]}
	if err := k.Validate(); err != nil {
		return Key{}, err
	}
	if k.String() != s {
		return Key{}, fmt.Errorf("brokerauth: %q is not the spelling of a login's key: that is %q", s, k)
	}
	return k, nil
}

// MarshalText writes the key's spelling, so that a Key is a JSON string.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads the key's spelling.
func (k *Key) UnmarshalText(text []byte) (err error) {
	*k, err = ParseKey(string(text))
	return err
}

// fingerprint identifies a secret without giving any of it away.
func fingerprint(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:4])
}

// redact is how a secret prints.
func redact(secret string) string {
	if secret == "" {
		return "none"
	}
	return "REDACTED(fp:" + fingerprint(secret) + ")"
}
