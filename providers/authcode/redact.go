package authcode

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
)

// shown is what may be seen of a Config.
func (c Config) shown() []slog.Attr {
	return []slog.Attr{
		slog.String("name", c.Info.Name),
		slog.String("token_url", withoutSecrets(c.TokenURL)),
		slog.String("redirect_url", withoutSecrets(c.RedirectURL)),
		slog.String("base_url", withoutSecrets(c.BaseURL)),
		slog.String("client_id", redact(c.ClientID)),
		slog.String("client_secret", redact(c.ClientSecret)),
		slog.String("grant", redact(c.Grant)),
	}
}

// LogValue shows the settings, secrets as fingerprints.
func (c Config) LogValue() slog.Value { return slog.GroupValue(c.shown()...) }

// Format prints the settings, secrets as fingerprints, whatever the verb.
func (c Config) Format(f fmt.State, _ rune) {
	parts := make([]string, 0, 8)
	for _, attr := range c.shown() {
		parts = append(parts, attr.String())
	}
	fmt.Fprintf(f, "authcode{%s}", strings.Join(parts, " "))
}

// MarshalJSON writes the settings, secrets as fingerprints.
func (c Config) MarshalJSON() ([]byte, error) {
	fields := make(map[string]string)
	for _, attr := range c.shown() {
		fields[attr.Key] = attr.Value.String()
	}
	return json.Marshal(fields)
}

// LogValue shows the settings, secrets as fingerprints.
func (p Provider) LogValue() slog.Value { return p.config.LogValue() }

// Format prints the settings, secrets as fingerprints, whatever the verb.
func (p Provider) Format(f fmt.State, verb rune) { p.config.Format(f, verb) }

// MarshalJSON writes the settings, secrets as fingerprints.
func (p Provider) MarshalJSON() ([]byte, error) { return p.config.MarshalJSON() }

// LogValue shows the settings, secrets as fingerprints.
func (p GrantProvider) LogValue() slog.Value { return p.config.LogValue() }

// Format prints the settings, secrets as fingerprints, whatever the verb.
func (p GrantProvider) Format(f fmt.State, verb rune) { p.config.Format(f, verb) }

// MarshalJSON writes the settings, secrets as fingerprints.
func (p GrantProvider) MarshalJSON() ([]byte, error) { return p.config.MarshalJSON() }

// withoutSecrets is an address without user name, password and query, in which people leave things.
func withoutSecrets(address string) string {
	u, err := url.Parse(address)
	switch {
	case address == "":
		return "none"
	case err != nil:
		return "unreadable"
	}
	return place(u)
}

// redact is how a secret prints.
func redact(secret string) string {
	if secret == "" {
		return "none"
	}
	return "REDACTED(fp:" + fingerprint(secret, 4) + ")"
}

// fingerprint identifies s by n bytes of its hash.
func fingerprint(s string, n int) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:n])
}
