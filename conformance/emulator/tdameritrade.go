package emulator

import (
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/providers/tdameritrade"
)

const (
	// tdHost is where the provider of an emulated TD Ameritrade sends its calls. Nobody can have that name.
	tdHost   = "tdameritrade.emulated.invalid"
	tdSuffix = "@AMER.OAUTHAP"
)

// tdRules are TD Ameritrade's, as its developer site had them; bodies of refusals as users have reported them.
func tdRules() rules {
	// All the characters that a code or token is known to have had; they break clients that decode twice.
	token := func() string {
		raw := make([]byte, 96)
		rand.Read(raw) // never fails
		return "emulated.03@A/B+" + base64.StdEncoding.EncodeToString(raw)
	}
	return rules{
		name:      "tdameritrade",
		hosts:     []string{tdHost, "auth.tdameritrade.com", "api.tdameritrade.com"},
		pagePath:  "/auth",
		tokenPath: "/v1/oauth2/token",
		apis:      []string{"/v1/"},
		codeTTL:   30 * time.Minute, // nobody has said more than that
		accessTTL: 30 * time.Minute,
		loginTTL:  90 * 24 * time.Hour,

		newCode:    token,
		newAccess:  func(*login, time.Time) string { return token() },
		newRefresh: func(*login, time.Time) string { return token() },
		newID:      func(*login, time.Time) string { return "" },

		provider: func(b *Broker) (brokerauth.LoginProvider, error) {
			return tdameritrade.New(tdameritrade.Config{
				ClientID:    cmp.Or(b.config.ClientID, anyID),
				CallbackURL: "http://localhost:8080",
				BaseURL:     "https://" + tdHost,
				Transport:   b,
			})
		},
		clientID:     func(id string) string { return strings.TrimSuffix(id, tdSuffix) },
		refusePage:   tdRefusePage,
		callback:     func(code string) string { return "code=" + url.QueryEscape(code) },
		refuse:       func(*http.Request) *answer { return nil },
		token:        tdToken,
		unauthorized: tdUnauthorized,
		api:          tdAPI,
		notFound:     func(string) *answer { return tdError(http.StatusNotFound, "Not Found") },
		tooBig:       func() *answer { return tdError(http.StatusRequestEntityTooLarge, "Body buffer overflow") },
		gateway:      tdGateway,
	}
}

// tdError spells an error as TD Ameritrade does.
func tdError(status int, text string) *answer {
	return newAnswer(status, "application/json;charset=UTF-8", `{"error" : "`+text+`"}`)
}

// tdRefusePage: the login page wants the suffix, once, and knows no reason of its own for what it refuses.
func tdRefusePage(b *Broker, q asked) *answer {
	key, ok := strings.CutSuffix(q.client, tdSuffix)
	registered := strings.TrimSuffix(b.config.ClientID, tdSuffix)
	if !ok || key == "" || strings.HasSuffix(key, tdSuffix) || registered != "" && key != registered ||
		!isCallback(q.redirect, "https", "http") {
		return newAnswer(http.StatusBadRequest, "text/html; charset=utf-8", "<html><head><title>TD Ameritrade Authentication</title>"+
			"</head><body><p>A third-party application may be attempting to make unauthorized access to your account.</p></body></html>")
	}
	return nil
}

// tdToken is the token endpoint. It is the client that says, by access_type, whether it wants a refresh token.
func tdToken(b *Broker, r *http.Request) *answer {
	form := r.PostForm
	id := strings.TrimSuffix(form.Get("client_id"), tdSuffix)
	registered := strings.TrimSuffix(b.config.ClientID, tdSuffix)
	offline := form.Get("access_type") == "offline"
	switch {
	case id == "":
		return tdError(http.StatusBadRequest, "invalid_request")
	case registered != "" && id != registered:
		return tdError(http.StatusBadRequest, "invalid_grant")
	}
	var t *tokens
	var err error
	switch form.Get("grant_type") {
	case "authorization_code":
		t, err = b.redeem([]string{id}, form.Get("code"), form.Get("redirect_uri"), "", offline)
	case "refresh_token":
		t, err = b.renew([]string{id}, form.Get("refresh_token"), offline)
	default:
		return tdError(http.StatusBadRequest, "invalid_request")
	}
	if err != nil {
		return tdError(http.StatusBadRequest, "invalid_grant")
	}
	reply := struct {
		AccessToken    string `json:"access_token"`
		RefreshToken   string `json:"refresh_token,omitempty"`
		Scope          string `json:"scope"`
		ExpiresIn      int    `json:"expires_in"`
		RefreshExpires int    `json:"refresh_token_expires_in,omitempty"`
		TokenType      string `json:"token_type"`
	}{AccessToken: t.access, Scope: "PlaceTrades AccountAccess MoveMoney",
		ExpiresIn: int(b.rules.accessTTL / time.Second), TokenType: "Bearer"}
	if t.fresh {
		reply.RefreshToken, reply.RefreshExpires = t.refresh, int(b.rules.loginTTL/time.Second)
	}
	return jsonAnswer(http.StatusOK, reply)
}

func tdUnauthorized(header string) *answer {
	if header == "" {
		return tdError(http.StatusForbidden, "You don't have permission to access this resource.")
	}
	a := tdError(http.StatusUnauthorized, "The access token being passed has expired or is invalid.")
	a.header.Set("WWW-Authenticate", `Bearer realm="null",error="invalid_token",`+
		`error_description="keymanagement.service.access_token_expired: Access Token expired"`)
	return a
}

func tdAPI(_ *Broker, r *http.Request, _ string) *answer {
	if r.Method != http.MethodGet {
		return nil
	}
	switch r.URL.Path {
	case "/v1/accounts":
		return newAnswer(http.StatusOK, "application/json", `[{"securitiesAccount":{"type":"CASH","accountId":"000000001",`+
			`"roundTrips":0,"isDayTrader":false,"isClosingOnlyRestricted":false}}]`)
	case "/v1/userprincipals":
		// A program under test that goes on to the streamer must not take an emulated token to a real one.
		return newAnswer(http.StatusOK, "application/json", `{"userId":"emulated","userCdDomainId":"A000000000000001",`+
			`"primaryAccountId":"000000001","authToken":"emulated","streamerInfo":{"streamerSocketUrl":"streamer.emulated.invalid",`+
			`"token":"emulated","tokenTimestamp":"2024-01-02T15:04:05+0000","userGroup":"ACCT","accessLevel":"ACCT","acl":"A",`+
			`"appId":"emulated"},"streamerSubscriptionKeys":{"keys":[{"key":"emulated"}]},"accounts":[{"accountId":"000000001",`+
			`"displayName":"Emulated","accountCdDomainId":"A000000000000001","company":"AMER","segment":"AMER"}]}`)
	}
	return nil
}

func tdGateway(status int) *answer {
	switch status {
	case http.StatusForbidden:
		return tdError(status, "You don't have permission to access this resource.")
	case http.StatusTooManyRequests:
		return newAnswer(status, "application/json", "\n\n    "+`{"error":"Individual App's transactions per seconds restriction `+
			`reached. Please contact us with further questions"}`)
	}
	return htmlAnswer(status, http.StatusText(status), "")
}
