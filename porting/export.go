package porting

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/brokerauth/brokerauth"
)

// portableKey marks, and numbers, the form that Export writes. It is not a store's record: that has a refresh under way
// and refusals in it, which mean nothing on another host, and may change without regard to files that lie about.
const portableKey = "brokerauth_login"

const portableVersion = 1

type portable struct {
	Version  int           `json:"brokerauth_login"`
	Provider string        `json:"provider"`
	Identity string        `json:"identity,omitempty"`
	Token    portableToken `json:"token"`
}

type portableToken struct {
	AccessToken  string            `json:"access_token"`
	TokenType    string            `json:"token_type,omitempty"`
	Issued       time.Time         `json:"issued,omitzero"`
	Expiry       time.Time         `json:"expiry,omitzero"`
	RefreshToken string            `json:"refresh_token,omitempty"`
	LoggedInAt   time.Time         `json:"logged_in_at,omitzero"`
	LoginBy      time.Time         `json:"login_by,omitzero"`
	Extra        map[string]string `json:"extra,omitempty"`
}

// Export returns a login as JSON that [Read] reads on another host, age included; info is its Provider's. The result is
// secret: whoever has it has the login.
func Export(info brokerauth.Info, t *brokerauth.Token) ([]byte, error) {
	if t == nil || t.RefreshToken == "" {
		return nil, errors.New("porting: this login has no refresh token, so it cannot be moved: log in on the other host")
	}
	p := portable{portableVersion, info.Name, info.Identity, portableToken(*t)}
	for _, at := range []*time.Time{&p.Token.Issued, &p.Token.Expiry, &p.Token.LoggedInAt, &p.Token.LoginBy} {
		*at = at.Round(0).UTC()
	}
	b, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("porting: writing the login: %w", err)
	}
	return append(b, '\n'), nil
}

// portable reads what Export wrote.
func (r *object) portable() (*Found, error) {
	f := &Found{Format: "brokerauth", Provider: r.text("provider"), Identity: r.text("identity")}
	switch version := r.number(portableKey); {
	case r.err != nil || version < 1:
		r.fail(portableKey, "is no version")
		return f, nil
	case version > portableVersion:
		return nil, fmt.Errorf("this login was exported by a newer version of brokerauth: update this one: %w", errors.ErrUnsupported)
	}
	key := brokerauth.Key{Provider: f.Provider, Identity: f.Identity}
	if key.Validate() != nil || !visible(f.Provider) || !visible(f.Identity) {
		r.fail("provider", "or identity is not as it was written")
		return f, nil
	}
	t := r.nested("token")
	f.Token = &brokerauth.Token{AccessToken: t.text("access_token"), TokenType: t.text("token_type"), RefreshToken: t.text("refresh_token")}
	for name, into := range map[string]*time.Time{
		"issued": &f.Token.Issued, "expiry": &f.Token.Expiry, "logged_in_at": &f.Token.LoggedInAt, "login_by": &f.Token.LoginBy,
	} {
		*into, _ = t.date(name, time.UTC)
	}
	extra := t.nested("extra")
	for name := range extra.fields {
		if f.Token.Extra == nil {
			f.Token.Extra = make(map[string]string)
		}
		if _, ok := extra.fields[name].(string); !ok {
			t.fail("extra", "holds what is no text")
			break
		}
		f.Token.Extra[name] = extra.text(name)
	}
	r.err = cmp.Or(r.err, extra.err, t.err)
	return f, nil
}

// ExportSchwabPy returns a Schwab login as the token file that schwab-py and schwab-go read. The result is secret.
//
// Such a file needs the time of the login: it is an error if t.LoggedInAt is zero. Those libraries refresh by
// themselves, so a login that went there must be used nowhere else.
func ExportSchwabPy(t *brokerauth.Token) ([]byte, error) {
	switch {
	case t == nil || t.RefreshToken == "":
		return nil, errors.New("porting: this login has no refresh token, which schwab-py needs: log in anew")
	case t.LoggedInAt.IsZero():
		return nil, errors.New("porting: when the user logged in is unknown, and schwab-py refuses a file that does not say: log in anew")
	}
	life := schwabAccess
	if !t.Issued.IsZero() && t.Expiry.After(t.Issued) {
		life = t.Expiry.Sub(t.Issued)
	}
	b, err := json.Marshal(map[string]any{
		"creation_timestamp": t.LoggedInAt.Unix(),
		"token": map[string]any{
			"access_token":  t.AccessToken,
			"refresh_token": t.RefreshToken,
			"token_type":    cmp.Or(t.TokenType, "Bearer"),
			"scope":         cmp.Or(t.Extra["scope"], "api"),
			"expires_in":    int64(life / time.Second),
			"expires_at":    max(1, t.Expiry.Unix()), // 0 would be taken for never
		},
	})
	if err != nil {
		return nil, fmt.Errorf("porting: writing the login: %w", err)
	}
	return b, nil
}
