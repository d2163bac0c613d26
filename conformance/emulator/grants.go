package emulator

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// code is an authorization code: a consent that waits to be exchanged.
type code struct {
	asked
	challenge string // PKCE, S256; empty: none
	consented time.Time
	spent     bool
}

// login is a consent that was exchanged, or a personal grant.
type login struct {
	client  string // empty: any
	scope   string
	ends    time.Time // zero: never
	refresh string    // the one refresh token that works; empty: none does
}

func (l *login) over(now time.Time) bool { return !l.ends.IsZero() && !now.Before(l.ends) }

type access struct {
	login *login
	ends  time.Time
}

// now is the broker's clock. b.mu is held.
func (b *Broker) now() time.Time { return time.Now().Add(b.offset) }

// consent issues an authorization code.
func (b *Broker) consent(q asked, challenge string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.secret(b.rules.newCode())
	b.codes[c] = &code{asked: q, challenge: challenge, consented: b.now()}
	return c
}

// grant is a personal grant: a login, and the refresh token that it began with.
type grant struct {
	*login
	refresh string
}

// newGrant issues a personal grant, which refresh may spell. b.mu is held, or b is new.
func (b *Broker) newGrant(refresh string) *grant {
	l := &login{client: b.config.ClientID, scope: b.rules.scope, ends: b.end(b.now())}
	if l.refresh = refresh; refresh == "" {
		l.refresh = b.rules.newRefresh(l, b.now())
	}
	b.renewals[b.secret(l.refresh)] = l
	b.logins = append(b.logins, l)
	return &grant{l, l.refresh}
}

// end is when a login ends that begins at start; zero: never.
func (b *Broker) end(start time.Time) time.Time {
	if b.rules.loginTTL == 0 {
		return time.Time{}
	}
	return start.Add(b.rules.loginTTL)
}

var (
	// errCode is why an authorization code is refused that is neither late nor malformed. Nobody has reported Schwab's
	// own words for that.
	errCode    = errors.New("AuthorizationCode is not valid")
	errUnknown = errors.New("no such refresh token")
	errDead    = errors.New("the login has ended")
)

// redeem exchanges a code. ids are the readings of the client's id. The login gets a refresh token only if it lasts.
func (b *Broker) redeem(ids []string, value, redirect, verifier string, lasts bool) (*tokens, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c, now := b.codes[value], b.now()
	if c == nil || c.spent || !slices.Contains(ids, c.client) || redirect != c.redirect {
		return nil, errCode
	}
	if sum := sha256.Sum256([]byte(verifier)); b.rules.pkce && c.challenge == "" && verifier != "" ||
		c.challenge != "" && c.challenge != base64.RawURLEncoding.EncodeToString(sum[:]) {
		return nil, errCode
	}
	if end := c.consented.Add(b.rules.codeTTL); !now.Before(end) {
		return nil, fmt.Errorf("AuthorizationCode has expired,expiration=%d,now=%d", end.UnixMilli(), now.UnixMilli())
	}
	c.spent = true
	for _, l := range b.logins {
		if b.rules.oneLogin && l.client == c.client {
			// Users of schwab-py report that a new login ends the one before it.
			b.kill(l)
		}
	}
	l := &login{client: c.client, scope: c.scope, ends: b.end(c.consented)}
	b.logins = append(b.logins, l)
	return b.issue(l, lasts), nil
}

// renew refreshes a login. ids are the readings of the client's id; none: it was not sent, and need not be. anew makes
// the login begin again, with a refresh token of its own.
func (b *Broker) renew(ids []string, refresh string, anew bool) (*tokens, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.renewals[refresh]
	switch {
	case l == nil || l.client != "" && len(ids) > 0 && !slices.Contains(ids, l.client):
		return nil, errUnknown
	case l.refresh == "" || l.over(b.now()):
		return nil, errDead
	case l.refresh != refresh:
		// Whoever spends a rotated token again may have stolen it.
		b.kill(l)
		return nil, errDead
	case anew && b.config.Rotate:
		l.ends = b.end(b.now())
	case anew:
		l = &login{client: l.client, scope: l.scope, ends: b.end(b.now())}
		b.logins = append(b.logins, l)
	}
	return b.issue(l, true), nil
}

// kill ends a login and all its tokens. b.mu is held.
func (b *Broker) kill(l *login) {
	l.refresh = ""
	maps.DeleteFunc(b.accesses, func(_ string, a access) bool { return a.login == l })
}

type tokens struct {
	access, refresh, id, scope string
	lives                      time.Duration // the access token, from now on
	fresh                      bool          // the refresh token is new
}

// issue gives a login its next tokens, with a refresh token only if it lasts. b.mu is held.
func (b *Broker) issue(l *login, lasts bool) *tokens {
	now := b.now()
	t := &tokens{refresh: l.refresh, scope: l.scope, lives: b.rules.accessTTL}
	if lasts && (l.refresh == "" || b.config.Rotate) {
		l.refresh = b.secret(b.rules.newRefresh(l, now))
		b.renewals[l.refresh] = l
		t.refresh, t.fresh = l.refresh, true
	}
	t.access = b.secret(b.rules.newAccess(l, now))
	b.accesses[t.access] = access{l, now.Add(t.lives)}
	if t.id = b.rules.newID(l, now); t.id != "" {
		b.secret(t.id)
	}
	return t
}

// accident gives an app a token without anybody's consent, by the client-credentials grant: users of schwab-py got one
// when what they had pasted held no code, and found out when it could not be renewed.
func (b *Broker) accident(client string, lives time.Duration) *tokens {
	b.mu.Lock()
	defer b.mu.Unlock()
	l, now := &login{client: client, scope: b.rules.scope}, b.now()
	t := &tokens{access: b.secret(b.rules.newAccess(l, now)), lives: lives}
	b.accesses[t.access] = access{l, now.Add(lives)}
	return t
}

// admits reports whether an access token is good, and what for.
func (b *Broker) admits(token string) (scope string, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a, ok := b.accesses[token]
	if !ok || !b.now().Before(a.ends) {
		return "", false
	}
	return a.login.scope, true
}

// secret remembers s for Secrets. b.mu is held, or b is new.
func (b *Broker) secret(s string) string {
	b.secrets = append(b.secrets, s)
	return s
}

// random returns n random bytes in base64url.
func random(n int) string {
	raw := make([]byte, n)
	rand.Read(raw) // never fails
	return base64.RawURLEncoding.EncodeToString(raw)
}

// jwt returns an unsigned JSON Web Token that says it is emulated.
func jwt(header string, claims map[string]any) string {
	body, _ := json.Marshal(claims) // cannot fail: strings and numbers
	return "emulated." + base64.RawURLEncoding.EncodeToString([]byte(header)) + "." +
		base64.RawURLEncoding.EncodeToString(body) + "." + random(32)
}

func uuid() string {
	var u [16]byte
	rand.Read(u[:])
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}
