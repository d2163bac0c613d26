// Package mybroker is a fictional broker as a package of one's own: all that it takes to add one. The guide
// docs/add-a-broker.md goes through it.
package mybroker

import (
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"golang.org/x/oauth2"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/providers/authcode"
)

// Config is an app that is registered at My Broker's developer site. It prints its secrets as fingerprints.
type Config struct {
	ClientID     string
	ClientSecret string
	CallbackURL  string // as registered, to the letter

	BaseURL   string            // replaces https://api.mybroker.example; empty: the broker's own
	Transport http.RoundTripper // makes the token call; nil: one of its own
}

// New returns My Broker for the app that config describes, or an error that names everything wrong with config.
func New(config Config) (brokerauth.LoginProvider, error) {
	p, err := authcode.New(config.app())
	if err != nil {
		return nil, err // not p: a nil *Provider is no nil LoginProvider
	}
	return p, nil
}

func (c Config) app() authcode.Config {
	return authcode.Config{
		Info: brokerauth.Info{
			Name:    "mybroker",
			BaseURL: "https://api.mybroker.example",
			Origins: []string{"https://api.mybroker.example"},
			Margin:  5 * time.Minute,
		},
		AuthURL:    "https://login.mybroker.example/authorize",
		TokenURL:   "https://api.mybroker.example/oauth/token",
		AuthStyle:  oauth2.AuthStyleInHeader, // developer site, "Getting a token"
		PKCE:       true,                     // likewise
		Scopes:     []string{"read", "trade"},
		AccessLife: 30 * time.Minute,    // likewise; expires_in counts where it is sent
		LoginLife:  30 * 24 * time.Hour, // likewise, "Sessions"
		Rules: []authcode.Rule{
			// The broker's own words. What RFC 6749 has a code for is known already.
			{Op: "refresh", Code: "session_closed", Kind: brokerauth.ErrLoginRequired},
			{Code: "app_suspended", Kind: brokerauth.ErrRejected, Hint: "ask My Broker's support why the app was suspended"},
			{Contains: "market data agreement", Kind: brokerauth.ErrRejected, Hint: "sign the agreement at mybroker.example, under Data"},
		},

		ClientID:     c.ClientID,
		ClientSecret: c.ClientSecret,
		RedirectURL:  c.CallbackURL,
		BaseURL:      c.BaseURL,
		Transport:    c.Transport,
	}
}

func (c Config) LogValue() slog.Value          { return c.app().LogValue() }
func (c Config) Format(f fmt.State, verb rune) { c.app().Format(f, verb) }
func (c Config) MarshalJSON() ([]byte, error)  { return c.app().MarshalJSON() }
