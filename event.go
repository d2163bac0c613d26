package brokerauth

import (
	"context"
	"log/slog"
	"time"
)

// Event is something that happened to a login. It holds no secret.
type Event struct {
	// Kind is one of
	//
	//	"login"       a login was completed and saved
	//	"moved"       the login was handed to another place
	//	"logout"      the login and every copy of it were deleted
	//	"refreshed"   the broker issued a new access token, and it was saved
	//	"adopted"     a token that another process saved was taken
	//	"failed"      a refresh failed: Err says how
	//	"refused"     an API answered 401 to a token that was thought good: Err says what was done
	//	"unsaved"     a token was issued and could not be saved: it works in this process, and saving is tried again
	//	"saved"       a token that had been unsaved was saved
	//	"set aside"   an unreadable record was moved out of a login's way: Err says where to
	//	"deadline"    a person must log in within Within, by LoginBy: a Keeper announces it
	Kind  string
	Time  time.Time     // when it was over
	Took  time.Duration // how long it took; 0: no time worth telling
	Key   Key           // which login
	Token string        // fingerprint of the access token; empty: none
	Err   error         // nil: it went well

	Within  time.Duration // deadline: 48, 24, 6 or 1 hours
	LoginBy time.Time     // deadline: when the user must log in again
}

// LogValue shows the event's fields.
func (e Event) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("kind", e.Kind), slog.String("key", e.Key.String())}
	if e.Took > 0 {
		attrs = append(attrs, slog.Duration("took", e.Took))
	}
	if e.Token != "" {
		attrs = append(attrs, slog.String("token", e.Token))
	}
	if !e.LoginBy.IsZero() {
		attrs = append(attrs, slog.Time("login_by", e.LoginBy))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.String("error", e.Err.Error()))
	}
	return slog.GroupValue(attrs...)
}

// emit tells the observer, which may call back into the Session: no lock is held, and no work is under way.
func (s *Session) emit(events ...Event) {
	for _, e := range events {
		e.Time = time.Now()
		if s.Observe != nil {
			s.Observe(e)
		} else if e.Err != nil {
			slog.LogAttrs(context.Background(), slog.LevelWarn, "brokerauth: "+e.Kind, slog.Any("event", e))
		}
	}
}
