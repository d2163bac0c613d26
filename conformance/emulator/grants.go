package emulator

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// code is an authorization code: a consent that waits to be exchanged.
type code struct {
	client, redirect string
	challenge        string // PKCE, S256; empty: none
	consented        time.Time
	spent            bool
}

// login is a consent that was exchanged.
type login struct {
	client  string
	ends    time.Time
	refresh string // the one refresh token that works; empty: none does
}

type access struct {
	login *login
	ends  time.Time
}

// now is the broker's clock. b.mu is held.
func (b *Broker) now() time.Time { return time.Now().Add(b.offset) }

// consent issues an authorization code.
func (b *Broker) consent(client, redirect, challenge string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.secret(b.rules.newCode())
	b.codes[c] = &code{client: client, redirect: redirect, challenge: challenge, consented: b.now()}
	return c
}

// errCode is why an authorization code is refused that is neither late nor malformed. Nobody has reported Schwab's own
// words for that.
var errCode = errors.New("AuthorizationCode is not valid")

// redeem exchanges a code. ids are the readings of the client's id.
func (b *Broker) redeem(ids []string, value, redirect, verifier string) (*tokens, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c, now := b.codes[value], b.now()
	if c == nil || c.spent || !slices.Contains(ids, c.client) || redirect != c.redirect {
		return nil, errCode
	}
	if sum := sha256.Sum256([]byte(verifier)); c.challenge == "" && verifier != "" ||
		c.challenge != "" && c.challenge != base64.RawURLEncoding.EncodeToString(sum[:]) {
		return nil, errCode
	}
	if end := c.consented.Add(b.rules.codeTTL); !now.Before(end) {
		return nil, fmt.Errorf("AuthorizationCode has expired,expiration=%d,now=%d", end.UnixMilli(), now.UnixMilli())
	}
	c.spent = true
	for _, l := range b.logins {
		if l.client == c.client {
			// Users of schwab-py report that a new login ends the one before it.
			b.kill(l)
		}
	}
	l := &login{client: c.client, ends: c.consented.Add(b.rules.loginTTL)}
	b.logins = append(b.logins, l)
	return b.issue(l), nil
}

// renew refreshes a login; false: the refresh token is dead.
func (b *Broker) renew(ids []string, refresh string) (*tokens, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.renewals[refresh]
	switch {
	case l == nil || l.refresh == "" || !slices.Contains(ids, l.client) || !b.now().Before(l.ends):
		return nil, false
	case l.refresh != refresh:
		// Whoever spends a rotated token again may have stolen it.
		b.kill(l)
		return nil, false
	}
	return b.issue(l), true
}

// kill ends a login and all its tokens. b.mu is held.
func (b *Broker) kill(l *login) {
	l.refresh = ""
	maps.DeleteFunc(b.accesses, func(_ string, a access) bool { return a.login == l })
}

type tokens struct{ access, refresh, id string }

// issue gives a login its next tokens. b.mu is held.
func (b *Broker) issue(l *login) *tokens {
	if l.refresh == "" || b.config.Rotate {
		l.refresh = b.secret(b.rules.newRefresh())
		b.renewals[l.refresh] = l
	}
	t := &tokens{access: b.secret(b.rules.newAccess()), refresh: l.refresh}
	t.id = b.secret(b.rules.newID(l.client, b.now()))
	b.accesses[t.access] = access{l, b.now().Add(b.rules.accessTTL)}
	return t
}

// admits reports whether an access token is good.
func (b *Broker) admits(token string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	a, ok := b.accesses[token]
	return ok && b.now().Before(a.ends)
}

// secret remembers s for Secrets. b.mu is held.
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

func uuid() string {
	var u [16]byte
	rand.Read(u[:])
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}
