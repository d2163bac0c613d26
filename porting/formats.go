package porting

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/brokerauth/brokerauth"
)

// login tells the formats apart by keys that no other has, and reads the one. The Found that comes with r.err set is
// good for its Format only.
func (r *object) login(o *Options) (*Found, error) {
	access, refresh := r.fields["access_token"], r.fields["refresh_token"]
	_, nested := access.(map[string]any)
	if _, ok := refresh.(map[string]any); ok {
		nested = true
	}
	switch {
	case r.has(portableKey):
		return r.portable()
	case r.has("v", "provider", "token"):
		return nil, fmt.Errorf("this is a record out of a brokerauth store, which is its login's home: export that login instead: %w",
			errors.ErrUnsupported)
	case r.has("token"):
		return r.golec(), nil
	case r.has("token_dictionary"), r.has("access_token_issued", "refresh_token_issued"):
		return r.schwabdev(o)
	case r.has("provider_secret", "refresh_token"):
		return r.tastytrade(), nil
	case r.has("Bearer", "Refresh"):
		return r.trader(), nil
	case r.has("access_token_expires_at"), r.has("refresh_token_expires_at"):
		r.text("access_token")
		r.text("refresh_token")
		r.epoch("access_token_expires_at")
		r.epoch("refresh_token_expires_at")
		return &Found{Format: "td-ameritrade-python-api", Provider: tdAmeritrade}, nil
	case nested, r.has("access_token", "refresh_token") && access == nil && refresh == nil:
		for _, name := range []string{"access_token", "refresh_token"} {
			t := r.nested(name)
			t.text("token")
			t.epoch("access_time")
			t.seconds("expires_in")
			r.err = t.err
		}
		return &Found{Format: "pyTD", Provider: tdAmeritrade}, nil
	case r.has("access_token"):
		return r.plain(), nil
	}
	return nil, fmt.Errorf("this is JSON, but of no library whose tokens are known here: %w", errors.ErrUnsupported)
}

// golec reads what schwab-py, schwab-go and tda-api have in common.
func (r *object) golec() *Found {
	t := r.nested("token")
	f := t.reply("schwab-py or schwab-go")
	f.Token.LoggedInAt = r.epoch("creation_timestamp")
	if r.err == nil {
		r.err = t.err
	}
	if f.Provider == "" && t.text("id_token") != "" {
		f.Provider = schwab // TD Ameritrade had none
	}
	switch f.Provider {
	case tdAmeritrade:
		f.Format = "tda-api"
	case "":
		f.Format = "schwab-py or tda-api"
	}
	return f
}

// plain reads a token as it came from a broker, which is how early versions of tda-api kept it, or as x/oauth2 keeps it.
func (r *object) plain() *Found {
	if !r.has("expiry") && (r.has("expires_at") || r.has("scope") || r.has("refresh_token_expires_in")) {
		f := r.reply("a broker's token reply")
		if f.Provider == tdAmeritrade {
			f.Format = "tda-api, an early version"
		}
		return f
	}
	expiry, _ := r.date("expiry", time.UTC)
	return &Found{Format: "golang.org/x/oauth2", Token: &brokerauth.Token{
		AccessToken: r.text("access_token"), TokenType: r.text("token_type"), RefreshToken: r.text("refresh_token"),
		Expiry: expiry,
	}}
}

// reply reads the fields of a token reply, with the expires_at that libraries add, and tells the two brokers apart:
// Schwab's replies have the scope "api" and no refresh_token_expires_in, TD Ameritrade's are the other way round. What
// says neither or both is left open.
func (r *object) reply(format string) *Found {
	f := &Found{Format: format, Token: &brokerauth.Token{
		AccessToken: r.text("access_token"), TokenType: cmp.Or(r.text("token_type"), "Bearer"),
		RefreshToken: r.text("refresh_token"), Expiry: r.epoch("expires_at"),
	}}
	if life := r.seconds("expires_in"); life > 0 && !f.Token.Expiry.IsZero() {
		f.Token.Issued = f.Token.Expiry.Add(-life)
	}
	r.text("id_token")
	scope := strings.Fields(r.text("scope"))
	if len(scope) > 0 {
		f.Token.Extra = map[string]string{"scope": strings.Join(scope, " ")}
	}
	td := r.seconds("refresh_token_expires_in") > 0
	for _, s := range []string{"PlaceTrades", "AccountAccess", "MoveMoney"} {
		td = td || slices.Contains(scope, s)
	}
	switch api := slices.Contains(scope, "api"); {
	case td && !api:
		f.Provider = tdAmeritrade
	case api && !td:
		f.Provider = schwab
	}
	return f
}

// schwabdev reads tokens.json of version 2 or the row of version 3's tokens.db.
func (r *object) schwabdev(o *Options) (*Found, error) {
	t, format, zone := r, "Schwabdev 3", time.UTC // version 3 takes times without a zone for UTC
	if r.has("token_dictionary") {
		t, format, zone = r.nested("token_dictionary"), "Schwabdev 2", time.Local // early ones wrote such times
	}
	f := &Found{Format: format, Provider: schwab, Token: &brokerauth.Token{
		TokenType: cmp.Or(t.text("token_type"), "Bearer"),
		Extra:     map[string]string{"scope": cmp.Or(t.text("scope"), "api")},
	}}
	var zoned [2]bool
	f.Token.Issued, zoned[0] = r.date("access_token_issued", zone)
	f.Token.LoggedInAt, zoned[1] = r.date("refresh_token_issued", zone)
	if zone == time.Local && !(zoned[0] && zoned[1]) {
		f.note("its times name no zone, and were read as this machine's")
	}
	if !f.Token.Issued.IsZero() {
		f.Token.Expiry = f.Token.Issued.Add(cmp.Or(t.seconds("expires_in"), schwabAccess))
	}
	for name, into := range map[string]*string{"access_token": &f.Token.AccessToken, "refresh_token": &f.Token.RefreshToken} {
		*into = t.text(name)
		sealed, ok := strings.CutPrefix(*into, "enc:")
		if !ok {
			continue
		}
		if o.FernetKey == "" {
			return nil, fmt.Errorf("this file of %s is encrypted: give the encryption key that Schwabdev was given", format)
		}
		plain, err := decrypt(o.FernetKey, sealed)
		if err != nil {
			return nil, fmt.Errorf("this file of %s: %w", format, err)
		}
		*into = plain
	}
	if r.err == nil {
		r.err = t.err
	}
	return f, nil
}

// tastytrade reads a session as tastyware's library serialises it.
func (r *object) tastytrade() *Found {
	f := &Found{Format: "tastytrade", Provider: tastytrade, Token: &brokerauth.Token{
		AccessToken: r.text("session_token"), TokenType: "Bearer", RefreshToken: r.text("refresh_token"),
		Extra: map[string]string{"client_secret": r.text("provider_secret")},
	}}
	if _, ok := r.fields["session_expiration"].(string); ok { // versions 10 and 11
		f.Token.Expiry, _ = r.date("session_expiration", time.UTC)
		if time.Until(f.Token.Expiry) > tastyAccess+clockSkew {
			f.Token.Expiry = time.Time{} // their asynchronous refresh took the seconds for days
		}
	} else {
		f.Token.Expiry = r.epoch("session_expiration")
	}
	if r.boolean("is_test") {
		f.Provider = tastySandbox
	}
	if f.Token.AccessToken == "kyrieeleison" {
		f.Token.AccessToken, f.Token.Expiry = "", time.Time{} // what stands there before the first refresh
	}
	if r.err == nil && !visible(r.text("provider_secret")) || r.text("provider_secret") == "" {
		r.fail("provider_secret", "is no secret")
	}
	return f
}

// trader reads go-schwab/trader's own form. On macOS and Windows that library keeps x/oauth2's.
func (r *object) trader() *Found {
	bearerEnds, _ := r.date("BearerExpiration", time.Local)
	loginEnds, _ := r.date("RefreshExpiration", time.Local)
	f := &Found{Format: "go-schwab/trader", Provider: schwab, Token: &brokerauth.Token{
		AccessToken: r.text("Bearer"), TokenType: "Bearer", RefreshToken: r.text("Refresh"), Expiry: bearerEnds,
	}}
	if !bearerEnds.IsZero() {
		f.Token.Issued = bearerEnds.Add(-schwabAccess)
	}
	if !loginEnds.IsZero() {
		// It writes the file at a login only, for seven days ahead.
		f.Token.LoggedInAt = loginEnds.Add(-schwabLogin)
	}
	return f
}
