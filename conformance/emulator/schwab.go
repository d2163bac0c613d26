package emulator

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/providers/schwab"
)

// schwabRules are Schwab's, as the portal's text "Schwab & API Security" and its OpenAPI files have them; what they
// leave out, such as the bodies of refusals, as users have reported it.
func schwabRules() rules {
	// Codes and tokens name the host that issued them, of one of two data centres.
	host := "." + base64.RawStdEncoding.EncodeToString([]byte("oauth2.bdc.schwab.com")) + "."
	return rules{
		name:      "schwab",
		hosts:     []string{"api.schwabapi.com"},
		pagePath:  "/v1/oauth/authorize",
		tokenPath: "/v1/oauth/token",
		apis:      []string{"/trader/v1/", "/marketdata/v1/"},
		codeTTL:   30 * time.Second,
		accessTTL: 30 * time.Minute,
		loginTTL:  7 * 24 * time.Hour,
		pkce:      true,
		oneLogin:  true,

		newCode:    func() string { return "emulated.C0" + host + random(32) + "@" },
		newAccess:  func(*login, time.Time) string { return "emulated.I0" + host + random(32) + "@" },
		newRefresh: func(*login, time.Time) string { return "emulated." + random(96) + "@" },
		newID: func(l *login, now time.Time) string {
			return jwt(`{"alg":"HS256","typ":"JWT"}`, map[string]any{
				"sub": "emulated", "iss": "emulated", "aud": l.client, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "jti": uuid(),
			})
		},

		provider:     schwabProvider,
		clientID:     func(id string) string { return id },
		refuse:       func(*http.Request) *answer { return nil },
		refusePage:   schwabRefusePage,
		callback:     func(code string) string { return "code=" + url.QueryEscape(code) + "&session=" + uuid() },
		token:        schwabToken,
		unauthorized: schwabUnauthorized,
		api:          schwabAPI,
		notFound: func(path string) *answer {
			return apigeeFault(http.StatusNotFound, "Unable to identify proxy for host: secure and url: "+path,
				"messaging.adaptors.http.flow.ApplicationNotFound")
		},
		tooBig: func() *answer {
			return apigeeFault(http.StatusRequestEntityTooLarge, "Body buffer overflow", "protocol.http.TooBigBody")
		},
		gateway: schwabGateway,
	}
}

func schwabProvider(b *Broker) (brokerauth.LoginProvider, error) {
	return schwab.New(schwab.Config{
		AppKey:      cmp.Or(b.config.ClientID, anyID),
		AppSecret:   cmp.Or(b.config.ClientSecret, anySecret),
		CallbackURL: "https://127.0.0.1:8182",
		Transport:   b,
	})
}

// schwabRefusePage: an unknown app, and a callback URL that Schwab's portal would not have registered.
func schwabRefusePage(b *Broker, q asked) *answer {
	if q.client == "" || b.config.ClientID != "" && q.client != b.config.ClientID {
		return schwabUnauthorizedClient()
	}
	if !isCallback(q.redirect, "https") || len(q.redirect) > 255 {
		return accessDenied("http://api.schwabapi.com/v1/oauth/authorize?")
	}
	return nil
}

// isCallback reports whether redirect could be registered as a callback with one of schemes.
func isCallback(redirect string, schemes ...string) bool {
	u, err := url.Parse(redirect)
	return err == nil && slices.Contains(schemes, u.Scheme) && u.Host != "" && u.User == nil && !strings.Contains(redirect, "#")
}

type oauthError struct {
	Error       string `json:"error"`
	Description string `json:"error_description,omitempty"`
}

func schwabUnauthorizedClient() *answer {
	return jsonAnswer(http.StatusUnauthorized, oauthError{"invalid_client", "Unauthorized"})
}

// schwabToken is the token endpoint.
func schwabToken(b *Broker, r *http.Request) *answer {
	id, secret, _ := r.BasicAuth()
	// Some clients form-encode both before base64, as RFC 6749 section 2.3.1 wants; Schwab's own do not.
	ids, secrets := readings(id), readings(secret)
	if id == "" || secret == "" || !knows(b.config.ClientID, ids) || !knows(b.config.ClientSecret, secrets) {
		return schwabUnauthorizedClient()
	}
	form := r.PostForm
	var t *tokens
	switch form.Get("grant_type") {
	case "authorization_code":
		value := form.Get("code")
		if !strings.HasPrefix(value, "emulated.C0.") || !strings.HasSuffix(value, "@") {
			return schwabBadCode("Invalid authorization code header: " + value[:min(2, len(value))] + "   ")
		}
		var err error
		if t, err = b.redeem(ids, value, form.Get("redirect_uri"), form.Get("code_verifier"), true); err != nil {
			return schwabBadCode(err.Error() + " ")
		}
	case "refresh_token":
		refresh := form.Get("refresh_token")
		var err error
		if t, err = b.renew(ids, refresh, false); err != nil {
			sum := sha256.Sum256([]byte(refresh))
			digest := base64.StdEncoding.EncodeToString(sum[:])
			return schwabWrapped(fmt.Sprintf("Exception while authenticating refresh token "+
				"[tokenDigest=%s, Exception=Failed refresh token authentication [tokenDigest=%[1]s]]", digest),
				"refresh_token_authentication_error")
		}
	case "client_credentials":
		t = b.accident(ids[0], time.Hour)
	default:
		return jsonAnswer(http.StatusBadRequest, oauthError{Error: "unsupported_grant_type"})
	}
	a := jsonAnswer(http.StatusOK, struct {
		ExpiresIn    int    `json:"expires_in"`
		TokenType    string `json:"token_type"`
		Scope        string `json:"scope"`
		RefreshToken string `json:"refresh_token,omitempty"`
		AccessToken  string `json:"access_token"`
		IDToken      string `json:"id_token,omitempty"`
	}{int(t.lives / time.Second), "Bearer", "api", t.refresh, t.access, t.id})
	a.header.Set("Cache-Control", "no-store")
	return a
}

// readings are what a client may have meant: the text as it is, and form-decoded.
func readings(s string) []string {
	if decoded, err := url.QueryUnescape(s); err == nil {
		return []string{s, decoded}
	}
	return []string{s}
}

func knows(registered string, sent []string) bool {
	return registered == "" || slices.Contains(sent, registered)
}

func schwabBadCode(why string) *answer {
	return schwabWrapped("Bad authorization code: "+why, "invalid_request")
}

// schwabWrapped is Schwab's refusal of a grant: JSON, not escaped, in quotes in a string in JSON.
func schwabWrapped(description, code string) *answer {
	return jsonAnswer(http.StatusBadRequest, oauthError{"unsupported_token_type",
		`400 Bad Request: "{"error_description":"` + description + `","error":"` + code + `"}"`})
}

func schwabUnauthorized(header string) *answer {
	type source struct {
		Header string `json:"header"`
	}
	type problem struct {
		ID     string  `json:"id"`
		Status any     `json:"status"`
		Title  string  `json:"title"`
		Detail string  `json:"detail"`
		Source *source `json:"source,omitempty"`
	}
	if header == "" {
		return jsonAnswer(http.StatusBadRequest, map[string][]problem{"errors": {
			{uuid(), "400", "Bad Request", "Missing header", &source{"Authorization"}}}})
	}
	return jsonAnswer(http.StatusUnauthorized, map[string][]problem{"errors": {
		{uuid(), 401, "Unauthorized", "Client not authorized", nil}}})
}

func schwabAPI(_ *Broker, r *http.Request, _ string) *answer {
	if r.Method != http.MethodGet {
		return nil
	}
	switch r.URL.Path {
	case "/trader/v1/accounts/accountNumbers":
		return newAnswer(http.StatusOK, "application/json", `[{"accountNumber":"00000001",`+
			`"hashValue":"E000000000000000000000000000000000000000000000000000000000000001"}]`)
	case "/marketdata/v1/markets":
		return newAnswer(http.StatusOK, "application/json", `{"equity":{"equity":{"date":"2026-01-01","marketType":"EQUITY",`+
			`"product":"equity","isOpen":false}}}`)
	case "/trader/v1/userPreference":
		// A program under test that goes on to the streamer must not take an emulated token to the real one.
		return newAnswer(http.StatusOK, "application/json", `{"accounts":[{"accountNumber":"00000001","primaryAccount":true,`+
			`"type":"BROKERAGE","nickName":"Emulated","accountColor":"Green","displayAcctId":"...001","autoPositionEffect":false}],`+
			`"streamerInfo":[{"streamerSocketUrl":"wss://streamer.emulated.invalid/ws","schwabClientCustomerId":"emulated-customer",`+
			`"schwabClientCorrelId":"`+uuid()+`","schwabClientChannel":"N9","schwabClientFunctionId":"APIAPP"}],`+
			`"offers":[{"level2Permissions":true,"mktDataPermission":"NP"}]}`)
	}
	return nil
}

// apigeeFault is how Schwab's gateway puts an error.
func apigeeFault(status int, text, code string) *answer {
	type detail struct {
		Code string `json:"errorcode"`
	}
	type fault struct {
		Text   string `json:"faultstring"`
		Detail detail `json:"detail"`
	}
	return jsonAnswer(status, map[string]fault{"fault": {text, detail{code}}})
}

func schwabGateway(status int) *answer {
	switch status {
	case http.StatusForbidden:
		return accessDenied("http://api.schwabapi.com/v1/oauth/token")
	case http.StatusTooManyRequests:
		return newAnswer(status, "", "")
	case http.StatusInternalServerError:
		return newAnswer(status, "text/html;charset=UTF-8", "<html><body><h1>Whitelabel Error Page</h1>"+
			"<div>There was an unexpected error (type=Internal Server Error, status=500).</div></body></html>")
	}
	return htmlAnswer(status, http.StatusText(status), "")
}

// htmlAnswer is the page of a gateway that calls itself server.
func htmlAnswer(status int, text, server string) *answer {
	text = fmt.Sprintf("%d %s", status, text)
	if server != "" {
		server = "<hr><center>" + server + "</center>"
	}
	return newAnswer(status, "text/html", "<html><head><title>"+text+"</title></head><body><h1>"+text+"</h1>"+server+"</body></html>")
}

// accessDenied is the page of the content network before Schwab. It encodes the address, so that a search for it fails.
func accessDenied(address string) *answer {
	address = strings.NewReplacer(":", "&#58;", "/", "&#47;", ".", "&#46;", "?", "&#63;").Replace(address)
	return newAnswer(http.StatusForbidden, "text/html", "<HTML><HEAD>\n<TITLE>Access Denied</TITLE>\n</HEAD><BODY>\n"+
		"<H1>Access Denied</H1>\n \nYou don't have permission to access \""+address+"\" on this server.<P>\n</BODY>\n</HTML>\n")
}
