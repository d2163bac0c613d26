package brokerauth

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"time"

	"golang.org/x/oauth2"
)

// Token is what a broker issued. It is read-only once a Session or Provider has returned it.
//
// It prints as fingerprints under every fmt verb, in JSON, in slog and in errors. fmt reads the fields of a Token by
// value in somebody's unexported field past all methods: hold a *Token there.
type Token struct {
	AccessToken  string
	TokenType    string            // "Bearer"
	Issued       time.Time         // when the request that brought the access token was sent
	Expiry       time.Time         // of the access token; zero: does not expire
	RefreshToken string            // empty: the access token cannot be renewed
	LoggedInAt   time.Time         // when the user consented; a refresh never moves it; zero: unknown
	LoginBy      time.Time         // when the user must log in again, an estimate; zero: never, or unknown
	Extra        map[string]string // what requests or renewals need besides: scope, Questrade's api_server
}

// OAuth2 returns a copy for libraries built on x/oauth2. It drops LoggedInAt and LoginBy, and prints its secrets.
func (t *Token) OAuth2() *oauth2.Token {
	extra := make(map[string]any, len(t.Extra))
	for name, value := range t.Extra {
		extra[name] = value
	}
	return (&oauth2.Token{
		AccessToken: t.AccessToken, TokenType: t.TokenType, RefreshToken: t.RefreshToken, Expiry: t.Expiry,
	}).WithExtra(extra)
}

// Clone returns a copy that shares nothing with t, for a Provider's Refresh to build on.
func (t *Token) Clone() *Token {
	c := *t
	c.Extra = maps.Clone(t.Extra)
	return &c
}

// header is the value of the Authorization header.
func (t *Token) header() string {
	if t.TokenType == "" || strings.EqualFold(t.TokenType, "Bearer") {
		// Some brokers answer "bearer" and then expect "Bearer".
		return "Bearer " + t.AccessToken
	}
	return t.TokenType + " " + t.AccessToken
}

// life is how long the access token was issued for; 0: it does not expire.
func (t *Token) life() time.Duration {
	if t.Expiry.IsZero() {
		return 0
	}
	return t.Expiry.Sub(t.Issued)
}

// left is how long the access token has to live at now, and never more than its whole life: hosts' clocks differ. One
// that will be issued well into the future is of a clock that was set back since, and may be dead.
func (t *Token) left(now time.Time) time.Duration {
	if t.Issued.Round(0).Sub(now.Round(0)) > wrongClock {
		return 0
	}
	return min(t.Expiry.Round(0).Sub(now.Round(0)), t.life())
}

// margin is how long before the access token's expiry it is renewed.
func (t *Token) margin(info Info) time.Duration {
	return max(0, min(info.Margin, t.life()/5))
}

// LogValue shows fingerprints and clocks.
func (t Token) LogValue() slog.Value {
	return slog.GroupValue(slog.String("access_token", redact(t.AccessToken)), slog.Time("expiry", t.Expiry),
		slog.String("refresh_token", redact(t.RefreshToken)), slog.Time("login_by", t.LoginBy))
}

// Format prints fingerprints and clocks, whatever the verb.
func (t Token) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "token{access_token=%s expiry=%s refresh_token=%s login_by=%s}", redact(t.AccessToken),
		t.Expiry.Format(time.RFC3339), redact(t.RefreshToken), t.LoginBy.Format(time.RFC3339))
}

// MarshalJSON writes fingerprints and clocks. Only a Store's record has the secrets.
func (t Token) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{
		"access_token": redact(t.AccessToken), "issued": t.Issued, "expiry": t.Expiry,
		"refresh_token": redact(t.RefreshToken), "logged_in_at": t.LoggedInAt, "login_by": t.LoginBy,
	})
}

// fault says what makes a token unfit for a header or a form.
func (t *Token) fault() error {
	if t == nil {
		return errors.New("there is no token")
	}
	for name, value := range map[string]string{"access token": t.AccessToken, "token type": t.TokenType, "refresh token": t.RefreshToken} {
		for i := range len(value) {
			if value[i] < 0x21 || value[i] > 0x7e {
				return fmt.Errorf("the %s has a character that no token may have", name)
			}
		}
	}
	if t.AccessToken == "" {
		return errors.New("the access token is missing")
	}
	return nil
}
