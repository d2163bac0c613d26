package brokerauth

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"
)

// recordVersion is the newest form of a record that this code reads and writes. What a later one adds without a new
// version stands beside the token, not in it: a refresh replaces the token as a whole.
const recordVersion = 1

// record is what a Store holds for one login. Only Session writes it, and only by compare-and-swap.
type record struct {
	fields  map[string]json.RawMessage // all of it as stored: fields of later versions survive a rewrite
	token   *Token                     // nil: a grant that has not minted its first token
	claim   *claim                     // nil: nobody is refreshing
	verdict *verdict                   // nil: the broker has refused nothing
	doubt   time.Time                  // when a refresh was sent whose answer never came; zero: there is none
	moved   *moved                     // where the token went; nil: it is here
	forced  []time.Time                // refreshes that a refused request forced, in the last hour
	told    *told                      // which deadline was announced last; nil: none
}

// claim says who is asking the broker, so that nobody else does.
type claim struct {
	ID      string    `json:"id"`
	Since   time.Time `json:"since"`
	Machine string    `json:"machine,omitempty"` // empty: its process cannot be looked for
	PID     int       `json:"pid,omitempty"`
}

// told says which deadline of a login was announced last, so that nobody announces it again.
type told struct {
	LoginBy time.Time `json:"login_by"`       // the login's end, as it was then
	Within  int32     `json:"within_seconds"` // one of warnings
}

// covers reports whether it was announced that the login of t ends within so many seconds. A broker that tells its end
// anew with each refresh may be a little off.
func (w *told) covers(t *Token, within int32) bool {
	return w != nil && w.Within <= within && t.LoginBy.Sub(w.LoginBy).Abs() < time.Hour
}

// moved says where a login went that was here.
type moved struct {
	To string    `json:"to"`
	At time.Time `json:"at"`
}

// verdict is what the broker last refused, for every process that shares the record.
type verdict struct {
	Kind        string    `json:"kind"`
	At          time.Time `json:"at"`
	Until       time.Time `json:"until,omitzero"`        // unavailable: when to ask again
	Failures    int       `json:"failures,omitempty"`    // unavailable: how many in a row
	Token       string    `json:"refresh_token_fp"`      // which refresh token it was about
	Settings    string    `json:"settings_fp,omitempty"` // and which settings
	AccessToo   bool      `json:"access_too,omitempty"`  // an API refused the access token, too
	Status      int       `json:"status,omitempty"`
	Code        string    `json:"code,omitempty"`
	Description string    `json:"description,omitempty"`
	Hint        string    `json:"hint,omitempty"`
}

type storedToken struct {
	AccessToken  string            `json:"access_token"`
	TokenType    string            `json:"token_type,omitempty"`
	Issued       time.Time         `json:"issued,omitzero"`
	Expiry       time.Time         `json:"expiry,omitzero"`
	RefreshToken string            `json:"refresh_token,omitempty"`
	LoggedInAt   time.Time         `json:"logged_in_at,omitzero"`
	LoginBy      time.Time         `json:"login_by,omitzero"`
	Extra        map[string]string `json:"extra,omitempty"`
}

var errNewerRecord = fmt.Errorf("written by a newer version of brokerauth: %w", errors.ErrUnsupported)

// decodeRecord reads what encode wrote. What it cannot read is ErrCorrupt, or errNewerRecord.
func decodeRecord(raw []byte) (*record, error) {
	// A json error quotes what it read, so none is passed on.
	r := &record{}
	if err := json.Unmarshal(raw, &r.fields); err != nil || r.fields == nil {
		return nil, fmt.Errorf("not a brokerauth record: %w", ErrCorrupt)
	}
	var version int
	if err := json.Unmarshal(r.fields["v"], &version); err != nil || version < 1 {
		return nil, fmt.Errorf("a record without a version: %w", ErrCorrupt)
	}
	if version > recordVersion {
		return nil, errNewerRecord
	}
	var stored *storedToken
	for name, into := range map[string]any{
		"token": &stored, "claim": &r.claim, "verdict": &r.verdict, "doubt": &r.doubt, "moved": &r.moved, "forced": &r.forced,
		"told": &r.told,
	} {
		if field, ok := r.fields[name]; ok {
			if err := json.Unmarshal(field, into); err != nil {
				return nil, fmt.Errorf("a record whose %s cannot be read: %w", name, ErrCorrupt)
			}
		}
	}
	if stored != nil {
		t := Token(*stored)
		if err := t.fault(); err != nil {
			return nil, fmt.Errorf("a record in which %w: %w", err, ErrCorrupt)
		}
		r.token = &t
	}
	return r, nil
}

// encode writes the record, fields that this version does not know included.
func (r *record) encode(provider string) ([]byte, error) {
	fields := maps.Clone(r.fields)
	if fields == nil {
		fields = map[string]json.RawMessage{}
	}
	known := map[string]any{"v": recordVersion, "provider": provider}
	if r.token != nil && fields["token"] == nil {
		known["token"] = storedToken(*r.token)
	}
	for name, field := range map[string]struct {
		value any
		set   bool
	}{
		"claim": {r.claim, r.claim != nil}, "verdict": {r.verdict, r.verdict != nil},
		"doubt": {r.doubt, !r.doubt.IsZero()}, "moved": {r.moved, r.moved != nil}, "forced": {r.forced, len(r.forced) > 0},
		"told": {r.told, r.told != nil},
	} {
		delete(fields, name)
		if field.set {
			known[name] = field.value
		}
	}
	for name, value := range known {
		b, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("brokerauth: writing a record: %w", err)
		}
		fields[name] = b
	}
	return json.Marshal(fields)
}

// with returns a copy of r, which may be nil, that change has changed.
func (r *record) with(change func(*record)) *record {
	c := &record{}
	if r != nil {
		*c = *r
		c.fields = maps.Clone(r.fields)
	}
	change(c)
	return c
}

// withToken returns a copy of r, which may be nil, with a new token: no claim, verdict, doubt or move outlives that, nor
// what was counted before a new login.
func (r *record) withToken(t *Token, login bool) *record {
	return r.with(func(c *record) {
		delete(c.fields, "token")
		if login {
			c.forced, c.told = nil, nil
		}
		c.token, c.claim, c.verdict, c.doubt, c.moved = utc(t), nil, nil, time.Time{}, nil
	})
}

// utc returns t with its times as the record spells them.
func utc(t *Token) *Token {
	c := t.Clone()
	for _, at := range []*time.Time{&c.Issued, &c.Expiry, &c.LoggedInAt, &c.LoginBy} {
		*at = at.Round(0).UTC()
	}
	return c
}

// verdictFor returns the verdict if it is about this refresh token and these settings, else nil. Empty settings are
// those of a program that only looks.
func (r *record) verdictFor(settings string) *verdict {
	if r == nil || r.verdict == nil || r.verdict.Token != fingerprint(r.refreshToken()) ||
		settings != "" && r.verdict.Settings != settings {
		return nil
	}
	return r.verdict
}

func (r *record) refreshToken() string {
	if r == nil || r.token == nil {
		return ""
	}
	return r.token.RefreshToken
}

func (r *record) hasToken() bool { return r != nil && r.token != nil }

// loginOver reports whether the login has lived its days.
func (r *record) loginOver(now time.Time) bool {
	return r.hasToken() && !r.token.LoginBy.IsZero() && !now.Before(r.token.LoginBy)
}

// kinds are the kinds of error that a verdict can hold.
var kinds = [...]error{ErrLoginRequired, ErrRejected, ErrUnavailable}

func (v *verdict) final() bool { return v.kind() != ErrUnavailable }

// wait is how long a passing refusal stands.
func (v *verdict) wait() time.Duration { return min(v.Until.Sub(v.At), longestRetry) }

func (v *verdict) kind() error {
	for _, kind := range kinds {
		if v.Kind == kind.Error() {
			return kind
		}
	}
	return ErrUnavailable // of a later version: nothing that this one may take for final
}

// err is the error that the verdict stands for, at now.
func (v *verdict) err(provider string, now time.Time) *Error {
	e := &Error{
		Provider: provider, Op: "refresh", Kind: v.kind(), Status: v.Status, Code: v.Code,
		Description: v.Description, Hint: v.Hint,
	}
	if !v.final() {
		e.RetryAfter = min(max(0, v.Until.Sub(now)), longestRetry)
	}
	return e
}

// newVerdict records e, which is about refreshToken and settings.
func newVerdict(e *Error, refreshToken, settings string, now time.Time) *verdict {
	kind := ErrUnavailable
	for _, k := range kinds {
		if e.Kind == k {
			kind = k
		}
	}
	return &verdict{
		Kind: kind.Error(), At: now.UTC().Round(0), Token: fingerprint(refreshToken), Settings: settings,
		Status: e.Status, Code: clean(e.Code), Description: strings.TrimSpace(clean(e.Description) + " " + underlying(e)), Hint: e.Hint,
	}
}

// underlying is the text of what lies beneath e.
func underlying(e *Error) string {
	if e.Err == nil {
		return ""
	}
	return clean(e.Err.Error())
}
