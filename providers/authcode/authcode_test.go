package authcode_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/oauth2"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/internal/configtest"
	"github.com/brokerauth/brokerauth/providers/authcode"
)

const (
	clientID     = "key+with/signs"
	clientSecret = "secret:with%signs-7d1f"
	redirectURL  = "https://127.0.0.1:8182/Callback"
)

// transport answers requests in process.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// answering is a transport that says the same to everything.
func answering(status int, body string, header ...string) transport {
	return func(r *http.Request) (*http.Response, error) {
		resp := &http.Response{
			StatusCode: status, Header: http.Header{}, Request: r, Body: io.NopCloser(strings.NewReader(body)),
		}
		for i := 0; i+1 < len(header); i += 2 {
			resp.Header.Set(header[i], header[i+1])
		}
		return resp, nil
	}
}

// config is a broker that uses most of what there is.
func config(rt http.RoundTripper) authcode.Config {
	return authcode.Config{
		Info: brokerauth.Info{
			Name: "testbroker", BaseURL: "https://api.example.com/v1", Origins: []string{"https://api.example.com"},
			Margin: time.Minute,
		},
		AuthURL:        "https://login.example.com/auth",
		TokenURL:       "https://api.example.com/v1/token",
		AuthStyle:      oauth2.AuthStyleInHeader,
		PKCE:           true,
		Issuer:         "https://issuer.example.com",
		Scopes:         []string{"read", "trade"},
		AuthParams:     map[string]string{"prompt": "consent"},
		ExchangeParams: map[string]string{"access_type": "offline"},
		AccessLife:     30 * time.Minute,
		LoginLife:      7 * 24 * time.Hour,
		ClientID:       clientID,
		ClientSecret:   clientSecret,
		RedirectURL:    redirectURL,
		Transport:      rt,
	}
}

func provider(t testing.TB, c authcode.Config) *authcode.Provider {
	t.Helper()
	p, err := authcode.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func begin(t testing.TB, p *authcode.Provider) *brokerauth.Login {
	t.Helper()
	login, err := p.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return login
}

func brokerError(t testing.TB, err error) *brokerauth.Error {
	t.Helper()
	var e *brokerauth.Error
	if !errors.As(err, &e) {
		t.Fatalf("error %v is no *brokerauth.Error", err)
	}
	return e
}

// TestLogin takes a login over real HTTPS and looks at every byte that the broker sees.
func TestLogin(t *testing.T) {
	var got []*http.Request
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		got = append(got, r)
		io.WriteString(w, `{"expires_in":1800,"token_type":"Bearer","scope":"api","refresh_token":"R1","access_token":"A1","id_token":"J"}`)
	}))
	defer server.Close()
	c := config(server.Client().Transport)
	c.BaseURL = server.URL
	c.Info.UserAgent = "test/1"
	p := provider(t, c)
	login := begin(t, p)

	page, err := url.Parse(login.URL)
	if err != nil {
		t.Fatal(err)
	}
	if at := page.Scheme + "://" + page.Host + page.Path; at != server.URL+"/auth" {
		t.Errorf("login page at %s", at)
	}
	challenge := sha256.Sum256([]byte(login.Secret))
	if diff := cmp.Diff(url.Values{
		"response_type": {"code"}, "client_id": {clientID}, "redirect_uri": {redirectURL}, "scope": {"read trade"},
		"prompt": {"consent"}, "state": {login.State}, "code_challenge_method": {"S256"},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(challenge[:])},
	}, page.Query()); diff != "" {
		t.Errorf("login page's parameters (-want +got):\n%s", diff)
	}
	if state, err := base64.RawURLEncoding.DecodeString(login.State); err != nil || len(state) != 32 {
		t.Errorf("state is not 256 bits: %d bytes, %v", len(state), err)
	}
	if again := begin(t, p); again.State == login.State || again.Secret == login.Secret {
		t.Error("two logins share their state or verifier")
	}

	before := time.Now()
	token, err := p.Complete(t.Context(), login, redirectURL+"?code=C0.host.A-_%40&session=1&state="+login.State)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 {
		t.Fatalf("%d requests, want 1", len(got))
	}
	r := got[0]
	if diff := cmp.Diff(url.Values{
		"grant_type": {"authorization_code"}, "code": {"C0.host.A-_@"}, "redirect_uri": {redirectURL},
		"code_verifier": {login.Secret}, "access_type": {"offline"},
	}, r.Form); diff != "" {
		t.Errorf("exchange's parameters (-want +got):\n%s", diff)
	}
	id, secret, _ := r.BasicAuth()
	if r.Method != "POST" || r.URL.Path != "/v1/token" || id != url.QueryEscape(clientID) || secret != url.QueryEscape(clientSecret) {
		t.Errorf("request %s %s with Basic %q %q", r.Method, r.URL.Path, id, secret)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json", "User-Agent": "test/1",
	} {
		if r.Header.Get(name) != want {
			t.Errorf("%s: %q, want %q", name, r.Header.Get(name), want)
		}
	}

	if token.AccessToken != "A1" || token.RefreshToken != "R1" || token.TokenType != "Bearer" {
		t.Errorf("token %v", token)
	}
	if diff := cmp.Diff(map[string]string{"scope": "api"}, token.Extra); diff != "" {
		t.Errorf("Extra (-want +got):\n%s", diff)
	}
	if token.Issued.Before(before) || token.Issued.After(time.Now()) || !token.Expiry.Equal(token.Issued.Add(30*time.Minute)) ||
		!token.LoggedInAt.Equal(token.Issued) || !token.LoginBy.Equal(token.LoggedInAt.Add(7*24*time.Hour)) {
		t.Errorf("clocks: issued %v, expiry %v, logged in %v, login by %v", token.Issued, token.Expiry, token.LoggedInAt, token.LoginBy)
	}
}

// TestParamsStyle: a public client, and one whose secret goes into the body, send no Authorization header.
func TestParamsStyle(t *testing.T) {
	for _, secret := range []string{"", clientSecret} {
		c := config(transport(func(r *http.Request) (*http.Response, error) {
			r.ParseForm()
			if _, ok := r.Header["Authorization"]; ok {
				t.Error("an Authorization header was sent")
			}
			if r.Form.Get("client_id") != clientID || r.Form.Get("client_secret") != secret || r.Form.Has("client_secret") != (secret != "") {
				t.Errorf("form %v", slices.Sorted(maps.Keys(r.Form)))
			}
			return answering(200, `{"access_token":"A"}`)(r)
		}))
		c.AuthStyle, c.ClientSecret = oauth2.AuthStyleInParams, secret
		if _, err := provider(t, c).Refresh(t.Context(), &brokerauth.Token{RefreshToken: "R"}); err != nil {
			t.Error(err)
		}
	}
}

func TestRefresh(t *testing.T) {
	loggedIn := time.Now().Add(-100 * time.Hour)
	old := &brokerauth.Token{
		AccessToken: "A0", TokenType: "Bearer", RefreshToken: "R0", Issued: loggedIn, Expiry: loggedIn.Add(time.Hour),
		LoggedInAt: loggedIn, LoginBy: loggedIn.Add(168 * time.Hour), Extra: map[string]string{"scope": "api", "server": "7"},
	}
	const year = 365 * 24 * time.Hour
	for _, test := range []struct {
		name, body string
		refresh    string
		life       time.Duration
		scope      string
	}{
		{"all of it", `{"access_token":"A1","refresh_token":"R1","expires_in":900,"scope":"more","token_type":"Bearer"}`, "R1", 15 * time.Minute, "more"},
		{"no refresh token", `{"access_token":"A1","expires_in":1800}`, "R0", 30 * time.Minute, "api"},
		{"empty refresh token", `{"access_token":"A1","refresh_token":"","expires_in":1800}`, "R0", 30 * time.Minute, "api"},
		{"null refresh token", `{"access_token":"A1","refresh_token":null,"expires_in":1800}`, "R0", 30 * time.Minute, "api"},
		{"refresh token of another type", `{"access_token":"A1","refresh_token":7,"scope":["a"]}`, "R0", 30 * time.Minute, "api"},
		{"life as text", `{"access_token":"A1","expires_in":"600"}`, "R0", 10 * time.Minute, "api"},
		{"life with a fraction", `{"access_token":"A1","expires_in":600.5}`, "R0", 600*time.Second + 500*time.Millisecond, "api"},
		{"life as text with a fraction", `{"access_token":"A1","expires_in":"1800.0"}`, "R0", 30 * time.Minute, "api"},
		{"null life", `{"access_token":"A1","expires_in":null}`, "R0", 30 * time.Minute, "api"},
		{"no life left", `{"access_token":"A1","expires_in":0}`, "R0", 30 * time.Minute, "api"},
		{"next to no life", `{"access_token":"A1","expires_in":1e-10}`, "R0", 30 * time.Minute, "api"},
		{"negative life", `{"access_token":"A1","expires_in":-5}`, "R0", 30 * time.Minute, "api"},
		{"absurd life", `{"access_token":"A1","expires_in":1e300}`, "R0", 10 * year, "api"},
		{"infinite life", `{"access_token":"A1","expires_in":"inf"}`, "R0", 30 * time.Minute, "api"},
		{"life that is no number", `{"access_token":"A1","expires_in":"soon"}`, "R0", 30 * time.Minute, "api"},
		{"null error", `{"access_token":"A1","error":null,"error_code":""}`, "R0", 30 * time.Minute, "api"},
		{"scope that is none", `{"access_token":"A1","scope":"a\nb"}`, "R0", 30 * time.Minute, "api"},
		{"white space", " \n\n" + `{"access_token":"A1"}` + "\n", "R0", 30 * time.Minute, "api"},
	} {
		t.Run(test.name, func(t *testing.T) {
			copied := old.Clone()
			rt := answering(200, test.body, "Content-Type", "text/plain")
			got, err := provider(t, config(rt)).Refresh(t.Context(), old)
			if err != nil {
				t.Fatal(err)
			}
			if got.AccessToken != "A1" || got.TokenType != "Bearer" || got.RefreshToken != test.refresh {
				t.Errorf("access %q, type %q, refresh %q; want %q", got.AccessToken, got.TokenType, got.RefreshToken, test.refresh)
			}
			if life := got.Expiry.Sub(got.Issued); life != test.life {
				t.Errorf("life %v, want %v", life, test.life)
			}
			if !got.LoggedInAt.Equal(old.LoggedInAt) || !got.LoginBy.Equal(old.LoginBy) || time.Since(got.Issued) > time.Minute {
				t.Errorf("clocks moved: %v %v %v", got.Issued, got.LoggedInAt, got.LoginBy)
			}
			if diff := cmp.Diff(map[string]string{"scope": test.scope, "server": "7"}, got.Extra); diff != "" {
				t.Errorf("Extra (-want +got):\n%s", diff)
			}
			if old.AccessToken != copied.AccessToken || !maps.Equal(old.Extra, copied.Extra) || old.RefreshToken != copied.RefreshToken {
				t.Error("the old token was modified")
			}
		})
	}
}

// TestNoToken: what looks like success and is none.
func TestNoToken(t *testing.T) {
	old := &brokerauth.Token{AccessToken: "A0", RefreshToken: "R0"}
	for _, test := range []struct {
		body string
		kind error
	}{
		{``, brokerauth.ErrUnavailable},
		{`null`, brokerauth.ErrUnavailable},
		{`[]`, brokerauth.ErrUnavailable},
		{`{}`, brokerauth.ErrUnavailable},
		{`{"access_token":""}`, brokerauth.ErrUnavailable},
		{`{"access_token":17}`, brokerauth.ErrUnavailable},
		{`{"refresh_token":"R1"}`, brokerauth.ErrUnavailable},
		{`{"access_token":"A\u0000B"}`, brokerauth.ErrUnavailable},
		{`{"access_token":"A B"}`, brokerauth.ErrUnavailable},
		{`{"access_token":"Ä"}`, brokerauth.ErrUnavailable},
		{`{"access_token":"A","refresh_token":"R\r\nX: y"}`, brokerauth.ErrUnavailable},
		{`{"access_token":"A","error":"invalid_grant"}`, brokerauth.ErrLoginRequired},
		{`{"error_code":"invalid_client","access_token":"A"}`, brokerauth.ErrRejected},
		{`{"access_token":"A"`, brokerauth.ErrUnavailable},
		{`<html><title>Welcome</title></html>`, brokerauth.ErrUnavailable},
	} {
		token, err := provider(t, config(answering(200, test.body))).Refresh(t.Context(), old)
		if token != nil || !errors.Is(err, test.kind) {
			t.Errorf("%s: token %v, error %v; want %v", test.body, token, err, test.kind)
			continue
		}
		if e := brokerError(t, err); e.Status != 200 || e.Hint == "" {
			t.Errorf("%s: status %d, hint %q", test.body, e.Status, e.Hint)
		}
	}
}

func TestRefreshWithoutLogin(t *testing.T) {
	p := provider(t, config(transport(func(*http.Request) (*http.Response, error) {
		t.Error("the broker was asked")
		return nil, io.EOF
	})))
	for _, old := range []*brokerauth.Token{nil, {AccessToken: "A"}} {
		if _, err := p.Refresh(t.Context(), old); !errors.Is(err, brokerauth.ErrLoginRequired) || brokerError(t, err).Hint == "" {
			t.Errorf("Refresh(%v): %v", old, err)
		}
	}
}

func TestRefreshParams(t *testing.T) {
	var form url.Values
	body := `{"access_token":"A1"}`
	c := config(transport(func(r *http.Request) (*http.Response, error) {
		r.ParseForm()
		form = r.Form
		return answering(200, body)(r)
	}))
	c.RefreshParams = func(old *brokerauth.Token, now time.Time) (map[string]string, bool) {
		if old.LoginBy.Sub(now) > 5*24*time.Hour {
			return nil, false
		}
		return map[string]string{"access_type": "offline"}, true
	}
	p := provider(t, c)
	old := &brokerauth.Token{RefreshToken: "R0", LoggedInAt: time.Now(), LoginBy: time.Now().Add(6 * 24 * time.Hour)}
	for _, test := range []struct {
		left   time.Duration
		body   string
		params bool
		moves  bool
	}{
		{6 * 24 * time.Hour, `{"access_token":"A1","refresh_token":"R1"}`, false, false},
		{4 * 24 * time.Hour, `{"access_token":"A1"}`, true, false},
		{4 * 24 * time.Hour, `{"access_token":"A1","refresh_token":"R1"}`, true, true},
	} {
		old.LoginBy, body = time.Now().Add(test.left), test.body
		got, err := p.Refresh(t.Context(), old)
		if err != nil {
			t.Fatal(err)
		}
		if form.Has("access_type") != test.params {
			t.Errorf("%v: form %v", test, form)
		}
		want := old.LoginBy
		if test.moves {
			want = got.Issued.Add(7 * 24 * time.Hour)
		}
		if !got.LoginBy.Equal(want) || !got.LoggedInAt.Equal(old.LoggedInAt) {
			t.Errorf("%v: login by %v, want %v", test, got.LoginBy, want)
		}
	}
}

// TestGrant: a refresh token from the settings mints the first access token, and its end asks for other settings.
func TestGrant(t *testing.T) {
	var sent []string
	body, status := `{"access_token":"A1","expires_in":900}`, 200
	c := config(transport(func(r *http.Request) (*http.Response, error) {
		r.ParseForm()
		sent = append(sent, r.Form.Get("refresh_token"))
		if _, ok := r.Header["Authorization"]; ok || r.Form.Has("client_id") || r.Form.Get("client_secret") != clientSecret {
			t.Errorf("form %v", slices.Sorted(maps.Keys(r.Form)))
		}
		return answering(status, body)(r)
	}))
	c.AuthStyle, c.ClientID, c.Grant, c.LoginLife = oauth2.AuthStyleInParams, "", "grant-0123456789", 0
	p, err := authcode.NewGrant(c)
	if err != nil {
		t.Fatal(err)
	}
	first, err := p.Refresh(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if !first.LoginBy.IsZero() || !first.LoggedInAt.IsZero() || first.RefreshToken != c.Grant {
		t.Errorf("first token: %v", first)
	}
	if _, err := p.Refresh(t.Context(), &brokerauth.Token{RefreshToken: "rotated"}); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"grant-0123456789", "rotated"}, sent); diff != "" {
		t.Errorf("refresh tokens sent (-want +got):\n%s", diff)
	}

	status, body = 400, `{"error_code":"invalid_grant","error_description":"Grant revoked"}`
	_, err = p.Refresh(t.Context(), first)
	if e := brokerError(t, err); !errors.Is(err, brokerauth.ErrRejected) || errors.Is(err, brokerauth.ErrLoginRequired) ||
		e.Code != "invalid_grant" || e.Description != "Grant revoked" || e.Hint == "" {
		t.Errorf("dead grant: %v", err)
	}

	c.Grant = "another-grant"
	other, err := authcode.NewGrant(c)
	if err != nil {
		t.Fatal(err)
	}
	if other.Info().Identity == p.Info().Identity || strings.Contains(p.Info().Identity, "grant") {
		t.Errorf("identities %q and %q", p.Info().Identity, other.Info().Identity)
	}
	if _, ok := any(p).(brokerauth.LoginProvider); ok {
		t.Error("a grant claims a login page")
	}
	c.Grant = ""
	if _, err := authcode.NewGrant(c); err == nil {
		t.Error("NewGrant takes no grant for one")
	}
}

func TestInfo(t *testing.T) {
	info := func(change func(*authcode.Config)) brokerauth.Info {
		c := config(nil)
		change(&c)
		return provider(t, c).Info()
	}
	own := info(func(*authcode.Config) {})
	if own.BaseURL != "https://api.example.com/v1" || !slices.Equal(own.Origins, []string{"https://api.example.com"}) || own.Margin != time.Minute {
		t.Errorf("own: %+v", own)
	}
	if len(own.Identity) != 16 || len(own.Settings) != 16 {
		t.Errorf("identity %q, settings %q", own.Identity, own.Settings)
	}
	for _, base := range []string{"https://api.example.com", "https://API.example.com:443/"} {
		if same := info(func(c *authcode.Config) { c.BaseURL = base }); same.Identity != own.Identity {
			t.Errorf("%s is the broker's own and changes the identity", base)
		}
	}
	moved := info(func(c *authcode.Config) { c.BaseURL = "http://127.0.0.1:9000/x/" })
	if moved.BaseURL != "http://127.0.0.1:9000/x/v1" || !slices.Equal(moved.Origins, []string{"http://127.0.0.1:9000"}) || moved.Identity == own.Identity {
		t.Errorf("moved: %+v", moved)
	}
	if info(func(c *authcode.Config) { c.ClientID = "another" }).Identity == own.Identity {
		t.Error("another app has the same identity")
	}
	for name, change := range map[string]func(*authcode.Config){
		"secret": func(c *authcode.Config) { c.ClientSecret = "another" }, "redirect": func(c *authcode.Config) { c.RedirectURL += "/" },
		"id": func(c *authcode.Config) { c.ClientID += "x" }, "token URL": func(c *authcode.Config) { c.BaseURL = "https://other.example.com" },
	} {
		if info(change).Settings == own.Settings {
			t.Errorf("another %s has the same settings", name)
		}
	}
	if info(func(c *authcode.Config) { c.ClientSecret = "another" }).Identity != own.Identity {
		t.Error("another secret is another identity: the login would be lost")
	}
}

// The page on security says how much of which hash stands where.
func TestFingerprints(t *testing.T) {
	start := func(of string, bits int) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(of)))[:bits/4] }
	c := config(nil)
	info := provider(t, c).Info()
	if want := start(c.ClientID, 64); info.Identity != want {
		t.Errorf("an app's identity is %q, want %q", info.Identity, want)
	}
	all := fmt.Sprintf("%q", []string{c.ClientID, c.ClientSecret, "", c.RedirectURL, c.TokenURL})
	if want := start(all, 64); info.Settings != want {
		t.Errorf("the settings are %q, want %q", info.Settings, want)
	}
	if text := fmt.Sprint(c); !strings.Contains(text, "(fp:"+start(c.ClientSecret, 32)+")") {
		t.Errorf("no 32 bits of the secret alone in %s", text)
	}
	token := brokerauth.Token{AccessToken: "an-access-token"}
	if text := fmt.Sprint(token); !strings.Contains(text, "(fp:"+start(token.AccessToken, 32)+")") {
		t.Errorf("no 32 bits of the token alone in %s", text)
	}
	c = config(nil)
	c.Grant, c.RedirectURL, c.PKCE, c.BaseURL = "the-grant", "", false, "http://127.0.0.1:9000"
	p, err := authcode.NewGrant(c)
	if err != nil {
		t.Fatal(err)
	}
	if want := start(c.Grant+"\n"+c.BaseURL, 64); p.Info().Identity != want {
		t.Errorf("a grant's identity elsewhere is %q, want %q", p.Info().Identity, want)
	}
}

// TestFaults: every fault is told at once, and none of them tells a secret.
func TestFaults(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*authcode.Config)
		faults int
	}{
		{"none", func(c *authcode.Config) {}, 0},
		{"loopback", func(c *authcode.Config) { c.BaseURL = "http://[::1]:80" }, 0},
		{"custom scheme", func(c *authcode.Config) { c.RedirectURL = "app.example:/back" }, 0},
		{"nothing", func(c *authcode.Config) { *c = authcode.Config{} }, 6},
		{"no secret", func(c *authcode.Config) { c.ClientSecret = "" }, 1},
		{"space in key and secret", func(c *authcode.Config) { c.ClientID += " "; c.ClientSecret += "\n" }, 2},
		{"secret with an invisible space", func(c *authcode.Config) { c.ClientSecret += "\u200b" }, 1},
		{"grant", func(c *authcode.Config) { c.Grant = "g" }, 1},
		{"probed style", func(c *authcode.Config) { c.AuthStyle = oauth2.AuthStyleAutoDetect }, 1},
		{"plain token endpoint", func(c *authcode.Config) { c.TokenURL = "http://api.example.com/" }, 1},
		{"plain base", func(c *authcode.Config) { c.BaseURL = "http://api.example.com" }, 1},
		{"base without scheme", func(c *authcode.Config) { c.BaseURL = "127.0.0.1:80" }, 1},
		{"base with query", func(c *authcode.Config) { c.BaseURL = "https://x.example/?a" }, 1},
		{"base with password", func(c *authcode.Config) { c.BaseURL = "https://u:hunter2@x.example" }, 1},
		{"base like loopback", func(c *authcode.Config) { c.BaseURL = "http://127.0.0.1.example.com" }, 1},
		{"other scheme", func(c *authcode.Config) { c.BaseURL = "ftp://127.0.0.1" }, 1},
		{"redirect relative", func(c *authcode.Config) { c.RedirectURL = "/cb" }, 1},
		{"redirect with fragment", func(c *authcode.Config) { c.RedirectURL += "#" }, 1},
		{"redirect with password", func(c *authcode.Config) { c.RedirectURL = "https://u:hunter2@127.0.0.1" }, 1},
		{"redirect with both", func(c *authcode.Config) { c.RedirectURL = "https://u:hunter2@127.0.0.1/#" }, 2},
		{"redirect with the last port", func(c *authcode.Config) { c.RedirectURL = "https://127.0.0.1:65535" }, 0},
		{"redirect to port 0", func(c *authcode.Config) { c.RedirectURL = "https://127.0.0.1:0" }, 1},
		{"redirect beyond the last port", func(c *authcode.Config) { c.RedirectURL = "https://127.0.0.1:65536/cb" }, 1},
		{"redirect to a long port", func(c *authcode.Config) { c.RedirectURL = "https://[::1]:99999999999999999999" }, 1},
		{"redirect to no port", func(c *authcode.Config) { c.RedirectURL = "https://127.0.0.1:/cb" }, 1},
		{"redirect to any address", func(c *authcode.Config) { c.RedirectURL = "https://0.0.0.0:8182" }, 1},
		{"redirect to any address of IPv6", func(c *authcode.Config) { c.RedirectURL = "https://[::]:0" }, 2},
		{"redirect to any mapped address", func(c *authcode.Config) { c.RedirectURL = "https://[::ffff:0.0.0.0]" }, 1},
		{"redirect with space", func(c *authcode.Config) { c.RedirectURL += " " }, 1},
		{"redirect unreadable", func(c *authcode.Config) { c.RedirectURL = "https://%zz:" + clientSecret }, 1},
	} {
		c := config(nil)
		test.change(&c)
		_, err := authcode.New(c)
		n := 0
		if err != nil {
			n = len(strings.Split(err.Error(), "\n"))
			if strings.Contains(err.Error(), clientSecret) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s: the secret is shown: %v", test.name, err)
			}
		}
		if n != test.faults {
			t.Errorf("%s: %d faults, want %d: %v", test.name, n, test.faults, err)
		}
	}
}

// FuzzConfig: New and NewGrant take anything, and make a whole provider or name faults.
func FuzzConfig(f *testing.F) {
	f.Add(clientID, clientSecret, redirectURL, "", "", "https://login.example.com/auth", "https://api.example.com/v1/token", 2)
	f.Add("", "", "", "", "", "", "", 0)
	f.Add("a b", "\n", "https://u:hunter2-hunter2@0.0.0.0:0/#", "grant-0123456789", "https://x.example/?a", "http://[::1", "ftp://127.0.0.1", 1)
	f.Add("key", "", "app.example:/back", "", "http://[::1]:80/a%2Fb/", "https://login.example.com", "https://api.example.com", 1)
	maker := configtest.Maker[authcode.Config]{
		New:      func(c authcode.Config) (brokerauth.Provider, error) { return authcode.New(c) },
		Callback: func(c authcode.Config) string { return c.RedirectURL },
		Secrets:  func(c authcode.Config) []string { return []string{c.ClientSecret, c.Grant, "hunter2-hunter2"} },
		Prefix:   "testbroker: ",
	}
	grants := maker
	grants.New = func(c authcode.Config) (brokerauth.Provider, error) { return authcode.NewGrant(c) }
	f.Fuzz(func(t *testing.T, id, secret, redirect, grant, base, page, endpoint string, style int) {
		c := config(nil)
		c.ClientID, c.ClientSecret, c.RedirectURL, c.Grant, c.BaseURL = id, secret, redirect, grant, base
		c.AuthURL, c.TokenURL, c.AuthStyle = page, endpoint, oauth2.AuthStyle(style)
		maker.Check(t, c)
		grants.Check(t, c)
		c.Grant = ""
		maker.Check(t, c)
	})
}

// TestPrint prints everything in every way.
func TestPrint(t *testing.T) {
	c := config(nil)
	c.BaseURL = "https://127.0.0.1:1"
	p := provider(t, c)
	c.Grant = "grant-0123456789"
	g, err := authcode.NewGrant(c)
	if err != nil {
		t.Fatal(err)
	}
	c.BaseURL = "https://user:" + clientSecret + "@127.0.0.1/?" + clientSecret
	for _, v := range []any{c, &c, p, *p, g, *g, []authcode.Config{c}, map[string]any{"p": p}, struct{ P *authcode.Provider }{p}} {
		var out bytes.Buffer
		for _, format := range []string{"%v", "%+v", "%#v", "%q", "%s", "%d", "%x"} {
			fmt.Fprintf(&out, format+"\n", v)
		}
		j, err := json.Marshal(v)
		if err != nil {
			t.Error(err)
		}
		out.Write(j)
		slog.New(slog.NewTextHandler(&out, nil)).Info("m", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "v", v)
		for _, secret := range []string{clientSecret, c.Grant, clientID, fmt.Sprintf("%x", clientSecret), url.QueryEscape(clientSecret)} {
			if strings.Contains(out.String(), secret) {
				t.Errorf("%T shows %q:\n%s", v, secret, &out)
			}
		}
		sum := sha256.Sum256([]byte(clientSecret))
		if want := fmt.Sprintf("REDACTED(fp:%x)", sum[:4]); strings.Count(out.String(), want) < 8 {
			t.Errorf("%T does not show %s:\n%s", v, want, &out)
		}
	}
}

func TestBeginCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := provider(t, config(nil)).Begin(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Begin: %v", err)
	}
}
