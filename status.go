package brokerauth

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"
)

// Status is what is known of a login without asking the broker. No login is a Status, too.
type Status struct {
	Key             Key
	KeptAs          string    // where and how the store keeps it, for people; empty: nothing is stored
	LoggedIn        bool      // a token is stored
	LoggedInAt      time.Time // when the user consented; zero: unknown
	AccessIssuedAt  time.Time // when the access token was asked for; zero: unknown
	AccessExpiresAt time.Time // zero: never
	LoginBy         time.Time // when the user must log in again, an estimate; zero: never, or unknown
	Scopes          []string  // what the token may do; empty: the broker does not say
	Refreshing      time.Time // since when a process has been refreshing it; zero: none is
	LastError       error     // what the broker refused last, while that stands; nil: nothing
	MovedTo         string    // where the login went that was here; empty: nowhere
	MovedAt         time.Time // when it did
	SaveError       error     // why this Session's newest token is not stored; nil: it is
}

// Status reads the record. It never calls the broker and never writes.
func (s *Session) Status(ctx context.Context) (Status, error) {
	key, err := s.key()
	if err != nil {
		return Status{}, err
	}
	st := Status{Key: key}
	var t *Token
	s.mu.Lock()
	st.SaveError = s.saveErr
	if s.unsaved != nil {
		t = s.unsaved.token
	}
	s.mu.Unlock()
	_, rec, err := s.load(ctx, key)
	if err != nil && t == nil {
		return st, err
	}
	if rec != nil {
		st.KeptAs = s.where(key)
		if rec.moved != nil {
			st.MovedTo, st.MovedAt = clean(rec.moved.To), rec.moved.At
		}
		if t == nil {
			t = rec.token
		}
		if rec.claim != nil {
			st.Refreshing = rec.claim.Since
		}
		info := s.Provider.Info()
		if v := rec.verdictFor(info.Settings); v != nil && (v.final() || time.Since(v.At) < v.wait()) {
			st.LastError = v.err(info.Name, time.Now())
		}
	}
	if t != nil {
		st.LoggedIn, st.LoggedInAt, st.AccessExpiresAt, st.LoginBy = true, t.LoggedInAt, t.Expiry, t.LoginBy
		st.AccessIssuedAt = t.Issued
		st.Scopes = strings.Fields(t.Extra["scope"])
	}
	return st, nil
}

// LoginRequired reports whether a person must log in within d from now, or now already.
func (st Status) LoginRequired(d time.Duration) bool {
	return !st.LoggedIn || errors.Is(st.LastError, ErrLoginRequired) ||
		!st.LoginBy.IsZero() && time.Until(st.LoginBy) <= d
}

// MarshalJSON writes the status for a health check: times are RFC 3339, age_seconds counts from the login, and what is
// unknown is null.
func (st Status) MarshalJSON() ([]byte, error) {
	orNull := func(t time.Time) any {
		if t.IsZero() {
			return nil
		}
		return t
	}
	orNone := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	text := func(err error) any {
		if err == nil {
			return nil
		}
		return err.Error()
	}
	m := map[string]any{
		"broker": st.Key.Provider, "profile": st.Key.Profile, "kept_as": orNone(st.KeptAs), "logged_in": st.LoggedIn,
		"logged_in_at": orNull(st.LoggedInAt), "age_seconds": nil, "access_issued_at": orNull(st.AccessIssuedAt), "access_expires_at": orNull(st.AccessExpiresAt),
		"login_by": orNull(st.LoginBy), "scopes": append([]string{}, st.Scopes...),
		"last_error": text(st.LastError), "save_error": text(st.SaveError), "moved_to": orNone(st.MovedTo),
	}
	if !st.LoggedInAt.IsZero() {
		m["age_seconds"] = int64(time.Since(st.LoggedInAt).Seconds())
	}
	return json.Marshal(m)
}
