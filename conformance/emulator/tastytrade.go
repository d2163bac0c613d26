package emulator

import (
	"cmp"
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/providers/tastytrade"
)

// tastyScopes are all there are.
const tastyScopes = "read trade openid"

// tastyRules are tastytrade's or its sandbox's, as its documentation has them; bodies of refusals as users have reported
// them. Nobody has reported those of a code: they are made after the ones of a refresh token.
func tastyRules(name string) rules {
	sandbox := name == "tastytrade-sandbox"
	hosts, issuer, level := []string{"api.tastyworks.com", "api.tastytrade.com", "my.tastytrade.com"}, "https://api.tastytrade.com", "api"
	if sandbox {
		hosts = []string{"api.cert.tastyworks.com", "api.sandbox.tastytrade.com", "cert-my.staging-tasty.works"}
		issuer, level = "https://api.sandbox.tastytrade.com", "demo"
	}
	token := func(kind string) func(l *login, now time.Time) string {
		return func(l *login, now time.Time) string {
			return jwt(`{"alg":"ES256","typ":"`+kind+`"}`, map[string]any{
				"iss": issuer, "aud": cmp.Or(l.client, anyID), "scope": l.scope, "iat": now.Unix(), "jti": uuid(),
			})
		}
	}
	return rules{
		name:      name,
		hosts:     hosts,
		pagePath:  "/auth.html",
		tokenPath: "/oauth/token",
		apis:      []string{"/"},
		codeTTL:   10 * time.Minute, // the most that RFC 6749 advises; tastytrade does not say
		accessTTL: 15 * time.Minute,
		scope:     tastyScopes,
		jsonForms: true,

		newCode:    func() string { return "emulated." + random(32) },
		newAccess:  token("at+jwt"),
		newRefresh: token("rt+jwt"),
		newID: func(l *login, now time.Time) string {
			if !slices.Contains(strings.Fields(l.scope), "openid") {
				return ""
			}
			return token("JWT")(l, now)
		},

		provider: func(b *Broker) (brokerauth.LoginProvider, error) {
			return tastytrade.NewPartner(tastytrade.Config{
				ClientID:     cmp.Or(b.config.ClientID, anyID),
				ClientSecret: cmp.Or(b.config.ClientSecret, anySecret),
				CallbackURL:  "http://localhost:8000",
				Scopes:       []string{"read", "trade"},
				Sandbox:      sandbox,
				Transport:    b,
			})
		},
		grant: func(b *Broker, refresh string) (brokerauth.Provider, error) {
			return tastytrade.New(tastytrade.Config{
				ClientSecret: cmp.Or(b.config.ClientSecret, anySecret),
				Grant:        refresh,
				Sandbox:      sandbox,
				Transport:    b,
			})
		},
		clientID:   func(id string) string { return id },
		refusePage: tastyRefusePage,
		callback:   func(code string) string { return "code=" + url.QueryEscape(code) },
		refuse:     func(r *http.Request) *answer { return tastyRefuse(r, sandbox) },
		token:      tastyToken,
		unauthorized: func(string) *answer {
			return tastyError(http.StatusUnauthorized, "token_invalid", "This token is invalid or has expired")
		},
		api: func(b *Broker, r *http.Request, scope string) *answer { return tastyAPI(b, r, scope, level) },
		notFound: func(string) *answer {
			return tastyError(http.StatusNotFound, "not_found", "The requested resource was not found")
		},
		tooBig: func() *answer {
			return htmlAnswer(http.StatusRequestEntityTooLarge, "Request Entity Too Large", "nginx")
		},
		gateway: func(status int) *answer {
			return htmlAnswer(status, http.StatusText(status), "nginx")
		},
	}
}

// tastyError is the envelope of the API's errors.
func tastyError(status int, code, message string) *answer {
	type problem struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	return jsonAnswer(status, map[string]problem{"error": {code, message}})
}

// tastyRefusal is an error of the token endpoint, whose field is not named as RFC 6749 names it.
func tastyRefusal(status int, code, description string) *answer {
	return jsonAnswer(status, struct {
		Code        string `json:"error_code"`
		Description string `json:"error_description"`
	}{code, description})
}

func tastyRefusePage(b *Broker, q asked) *answer {
	known := strings.Fields(tastyScopes)
	if q.client == "" || b.config.ClientID != "" && q.client != b.config.ClientID || !isCallback(q.redirect, "https", "http") ||
		slices.ContainsFunc(strings.Fields(q.scope), func(scope string) bool { return !slices.Contains(known, scope) }) {
		return newAnswer(http.StatusBadRequest, "text/html; charset=utf-8", "<html><head><title>tastytrade</title></head><body>"+
			"<p>The application, its redirect URI or a scope is not known.</p></body></html>")
	}
	return nil
}

// The name alone is what tastytrade's own clients send, and they are let in although the documentation wants a version.
var tastyAgent = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[\w!#$%&'*+.^|~-]+(/|$)`) })

// tastyRefuse is what stands before every request.
func tastyRefuse(r *http.Request, sandbox bool) *answer {
	if !tastyAgent().MatchString(r.Header.Get("User-Agent")) {
		return htmlAnswer(http.StatusUnauthorized, "Authorization Required", "nginx")
	}
	// The sandbox has been seen not to accept any.
	if version := r.Header.Get("Accept-Version"); version != "" {
		if _, err := time.Parse("20060102", version); err != nil || sandbox {
			return tastyError(http.StatusNotAcceptable, "not_acceptable", "Accept-Version is not supported")
		}
	}
	return nil
}

// tastyToken is the token endpoint.
func tastyToken(b *Broker, r *http.Request) *answer {
	form := r.PostForm
	id, secret := form.Get("client_id"), form.Get("client_secret")
	registered := b.config.ClientID
	switch {
	case r.Header.Get("Authorization") != "":
		return b.rules.unauthorized("") // users have seen the call fail with one; nobody has reported the answer
	case registered != "" && id != "" && id != registered:
		return tastyRefusal(http.StatusUnauthorized, "invalid_client", "Client not found")
	case secret == "" || b.config.ClientSecret != "" && secret != b.config.ClientSecret:
		return tastyRefusal(http.StatusUnauthorized, "invalid_client", "Client secret mismatch")
	}
	var ids []string
	if id != "" {
		ids = []string{id}
	}
	var t *tokens
	var err error
	switch form.Get("grant_type") {
	case "authorization_code":
		if t, err = b.redeem(ids, form.Get("code"), form.Get("redirect_uri"), "", true); err != nil {
			return tastyRefusal(http.StatusBadRequest, "invalid_grant", "Invalid authorization code")
		}
	case "refresh_token":
		switch t, err = b.renew(ids, form.Get("refresh_token"), false); err {
		case errUnknown:
			return tastyRefusal(http.StatusBadRequest, "invalid_grant", "Invalid JWT")
		case errDead:
			return tastyRefusal(http.StatusBadRequest, "invalid_grant", "Grant revoked")
		}
	default:
		return tastyRefusal(http.StatusBadRequest, "unsupported_grant_type", "The grant type is not supported")
	}
	reply := struct {
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token,omitempty"`
		TokenType    string `json:"token_type"`
		ExpiresIn    int    `json:"expires_in"`
		IDToken      string `json:"id_token,omitempty"`
	}{AccessToken: t.access, TokenType: "Bearer", ExpiresIn: int(b.rules.accessTTL / time.Second)}
	if t.fresh {
		reply.RefreshToken = t.refresh
	}
	if form.Get("grant_type") == "authorization_code" {
		reply.IDToken = t.id
	}
	return jsonAnswer(http.StatusOK, reply)
}

func tastyAPI(b *Broker, r *http.Request, scope, level string) *answer {
	if r.Method != http.MethodGet {
		return nil
	}
	var data any
	switch r.URL.Path {
	case "/customers/me/accounts":
		data = json.RawMessage(`{"items":[{"account":{"account-number":"5WX00001","nickname":"Emulated",` +
			`"account-type-name":"Individual","margin-or-cash":"Cash","is-closed":false},"authority-level":"owner"}]}`)
	case "/api-quote-tokens":
		b.mu.Lock()
		token := b.secret("emulated." + random(32))
		b.mu.Unlock()
		// A program under test that goes on to the streamer must not take an emulated token to the real one.
		data = map[string]string{"token": token, "dxlink-url": "wss://streamer.emulated.invalid/realtime", "level": level}
	default:
		return nil
	}
	if !slices.Contains(strings.Fields(scope), "read") {
		return tastyError(http.StatusForbidden, "not_permitted", "User not permitted access")
	}
	return jsonAnswer(http.StatusOK, map[string]any{"data": data, "context": r.URL.Path})
}
