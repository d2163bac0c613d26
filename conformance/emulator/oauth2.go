package emulator

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/brokerauth/brokerauth"
)

// OAuth2 returns an emulated broker for a test of a provider of one's own, with at most one Config. newProvider makes the
// provider, with a login page and the broker's real addresses; it sends everything through transport.
//
// The broker is what RFC 6749 and RFC 7636 say, and no more: it has no words, limits or faults of its own, so let
// conformance.TestProvider see those that are on record. Its access tokens live for 30 minutes and its logins for seven days
// unless the Config says otherwise, and an app with a Config.ClientSecret may send it in either way. All other requests are
// API calls, which Handle answers.
func OAuth2(t TB, newProvider func(transport http.RoundTripper) (brokerauth.Provider, error), c ...Config) *Broker {
	t.Helper()
	own, err := oauth2Rules(newProvider)
	if err != nil {
		t.Fatal(err)
	}
	b, err := newBroker(own, only(t, c))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// asking is where a provider sends its token calls.
type asking struct{ endpoint *url.URL }

func (a *asking) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		r.Body.Close()
	}
	a.endpoint = r.URL
	return nil, errors.New("emulator: not yet")
}

// oauth2Rules finds out where the provider's login page and token endpoint are.
func oauth2Rules(newProvider func(transport http.RoundTripper) (brokerauth.Provider, error)) (rules, error) {
	probe := new(asking)
	made, err := newProvider(probe)
	if err != nil {
		return rules{}, fmt.Errorf("emulator: %w", err)
	}
	p, ok := made.(brokerauth.LoginProvider)
	if !ok {
		return rules{}, errors.New("emulator: the provider has no login page")
	}
	ctx := context.Background()
	begun, err := p.Begin(ctx)
	if err != nil {
		return rules{}, fmt.Errorf("emulator: %w", err)
	}
	page, err := url.Parse(begun.URL)
	if err != nil {
		return rules{}, errors.New("emulator: the login page's address is no address") // the parser's error quotes it
	}
	p.Refresh(ctx, &brokerauth.Token{AccessToken: "emulated.none", RefreshToken: "emulated.none"}) // fails, and shows where it asks
	if probe.endpoint == nil {
		return rules{}, errors.New("emulator: the provider sends no token call through the transport")
	}
	if page.Path == probe.endpoint.Path {
		return rules{}, errors.New("emulator: the login page and the token endpoint have one path: they cannot be told apart")
	}
	info := p.Info()
	hosts := []string{page.Hostname(), probe.endpoint.Hostname()}
	for _, address := range append(slices.Clone(info.Origins), info.BaseURL) {
		if u, err := url.Parse(address); err == nil && u.Hostname() != "" {
			hosts = append(hosts, u.Hostname())
		}
	}
	return rules{
		name:      info.Name,
		hosts:     hosts,
		pagePath:  page.Path,
		tokenPath: probe.endpoint.Path,
		apis:      []string{"/"},
		codeTTL:   10 * time.Minute, // RFC 6749, section 4.1.2
		accessTTL: 30 * time.Minute,
		loginTTL:  7 * 24 * time.Hour,
		pkce:      true,

		newCode:    func() string { return "emulated.c." + random(32) },
		newAccess:  func(*login, time.Time) string { return "emulated.a." + random(32) },
		newRefresh: func(*login, time.Time) string { return "emulated.r." + random(32) },
		newID:      func(*login, time.Time) string { return "" },

		provider: func(b *Broker) (brokerauth.LoginProvider, error) {
			p, err := newProvider(b)
			if err != nil {
				return nil, err
			}
			return p.(brokerauth.LoginProvider), nil
		},
		clientID: func(id string) string { return id },
		refusePage: func(b *Broker, q asked) *answer {
			if q.client == "" || !knows(b.config.ClientID, []string{q.client}) || !isCallback(q.redirect, "https", "http") {
				// RFC 6749, section 4.1.2.1: the user is told, and not sent on.
				return htmlAnswer(http.StatusBadRequest, "Unknown app or callback URL", "")
			}
			return nil
		},
		callback: func(code string) string { return "code=" + url.QueryEscape(code) },
		refuse:   func(*http.Request) *answer { return nil },
		token:    oauth2Token,
		unauthorized: func(string) *answer {
			a := jsonAnswer(http.StatusUnauthorized, oauthError{Error: "invalid_token"})
			a.header.Set("WWW-Authenticate", `Bearer error="invalid_token"`) // RFC 6750, section 3
			return a
		},
		api:      func(*Broker, *http.Request, string) *answer { return nil },
		notFound: func(string) *answer { return newAnswer(http.StatusNotFound, "text/plain", "not found\n") },
		tooBig:   func() *answer { return newAnswer(http.StatusRequestEntityTooLarge, "text/plain", "too large\n") },
		gateway:  func(status int) *answer { return htmlAnswer(status, http.StatusText(status), "") },
	}, nil
}

// oauth2Token is the token endpoint of RFC 6749.
func oauth2Token(b *Broker, r *http.Request) *answer {
	form := r.PostForm
	id, secret, basic := r.BasicAuth()
	if !basic {
		id, secret = form.Get("client_id"), form.Get("client_secret")
	}
	ids := readings(id)
	if id == "" || !knows(b.config.ClientID, ids) || !knows(b.config.ClientSecret, readings(secret)) {
		a := jsonAnswer(http.StatusUnauthorized, oauthError{Error: "invalid_client"})
		if basic {
			a.header.Set("WWW-Authenticate", "Basic")
		}
		return a
	}
	var t *tokens
	var err error
	switch form.Get("grant_type") {
	case "authorization_code":
		t, err = b.redeem(ids, form.Get("code"), form.Get("redirect_uri"), form.Get("code_verifier"), true)
	case "refresh_token":
		t, err = b.renew(ids, form.Get("refresh_token"), false)
	default:
		return jsonAnswer(http.StatusBadRequest, oauthError{Error: "unsupported_grant_type"})
	}
	if err != nil {
		return jsonAnswer(http.StatusBadRequest, oauthError{"invalid_grant", err.Error()})
	}
	a := jsonAnswer(http.StatusOK, struct {
		AccessToken  string `json:"access_token"`
		TokenType    string `json:"token_type"`
		ExpiresIn    int    `json:"expires_in"`
		RefreshToken string `json:"refresh_token,omitempty"`
		Scope        string `json:"scope,omitempty"`
	}{t.access, "Bearer", int(b.rules.accessTTL / time.Second), t.refresh, t.scope})
	a.header.Set("Cache-Control", "no-store")
	return a
}
