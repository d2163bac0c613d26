package schwab_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance"
	"github.com/brokerauth/brokerauth/internal/configtest"
	"github.com/brokerauth/brokerauth/providers/schwab"
)

const callback = "https://127.0.0.1:8182"

func config() schwab.Config {
	return schwab.Config{AppKey: "hJ7key0123456789hJ7key0123456789", AppSecret: "Zq9Secret0123456", CallbackURL: callback}
}

func provider(t *testing.T, c schwab.Config) brokerauth.LoginProvider {
	t.Helper()
	p, err := schwab.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestLogin logs in and renews, at Schwab's addresses and with its shapes.
func TestLogin(t *testing.T) {
	const (
		code    = "C0.b2F1dGgyLmJkYy5zY2h3YWIuY29t.0123456789-_0123456789-_0123456789-_0123456@"
		access  = "I0.b2F1dGgyLmJkYy5zY2h3YWIuY29t.0123456789-_0123456789-_0123456789-_0123456@"
		refresh = "7dayRefresh0123456789-_0123456789@"
	)
	var forms []url.Values
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		forms = append(forms, r.PostForm)
		c := config()
		if r.Method != "POST" || r.URL.Path != "/v1/oauth/token" || r.URL.RawQuery != "" ||
			r.Header.Get("Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte(c.AppKey+":"+c.AppSecret)) {
			t.Errorf("%s %s with %q", r.Method, r.URL, r.Header.Get("Authorization"))
		}
		fmt.Fprintf(w, `{"expires_in":1800,"token_type":"Bearer","scope":"api","refresh_token":%q,"access_token":%q,"id_token":"a.b.c"}`, refresh, access)
	}))
	defer server.Close()
	c := config()
	c.BaseURL, c.Transport = server.URL, server.Client().Transport
	p := provider(t, c)

	login, err := p.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	page, err := url.Parse(login.URL)
	if err != nil {
		t.Fatal(err)
	}
	query := page.Query()
	if query.Get("code_challenge") == "" || query.Get("code_challenge_method") != "S256" {
		t.Error("no PKCE challenge")
	}
	query.Del("code_challenge")
	if diff := cmp.Diff(url.Values{
		"client_id": {c.AppKey}, "redirect_uri": {callback}, "response_type": {"code"}, "state": {login.State},
		"code_challenge_method": {"S256"},
	}, query); diff != "" || page.Path != "/v1/oauth/authorize" {
		t.Errorf("login page %s, parameters (-want +got):\n%s", page.Path, diff)
	}

	// As the address bar shows it.
	back := callback + "/?code=" + strings.ReplaceAll(code, "@", "%40") + "&session=0b5c0d6e-6a9c-4d0e-9f4b-1f2e3d4c5b6a&state=" + login.State
	token, err := p.Complete(t.Context(), login, back)
	if err != nil {
		t.Fatal(err)
	}
	renewed, err := p.Refresh(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]url.Values{
		{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {callback}, "code_verifier": {login.Secret}},
		{"grant_type": {"refresh_token"}, "refresh_token": {refresh}},
	}, forms); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	for _, got := range []*brokerauth.Token{token, renewed} {
		if got.AccessToken != access || got.RefreshToken != refresh || got.Extra["scope"] != "api" || len(got.Extra) != 1 ||
			got.Expiry.Sub(got.Issued) != 30*time.Minute || !got.LoggedInAt.Equal(token.Issued) ||
			got.LoginBy.Sub(got.LoggedInAt) != 7*24*time.Hour {
			t.Errorf("token %v, logged in %v, scope %q", got, got.LoggedInAt, got.Extra)
		}
	}
}

// TestDamagedCode: Schwab says back how a code began, which is not shown.
func TestDamagedCode(t *testing.T) {
	c := config()
	c.Transport = transport(func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 400, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(`{"error":"unsupported_token_type",` +
			`"error_description":"400 Bad Request: \"{\"error_description\":\"Bad authorization code: Invalid authorization code header: ` +
			`C0.b2F1dGg\",\"error\":\"invalid_request\"}\""}`))}, nil
	})
	p := provider(t, c)
	login, err := p.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Complete(t.Context(), login, "C0.b2F1dGgyLmJkYy5zY2h3YWIuY29t.0123456789-_%40")
	if !errors.Is(err, brokerauth.ErrLoginRequired) || !strings.Contains(err.Error(), "code header: REDACTED") || strings.Contains(err.Error(), "b2F1") {
		t.Errorf("%v", err)
	}
}

// TestBareCode: a bare code is sent only if it looks like one of Schwab's.
func TestBareCode(t *testing.T) {
	const code = "C0.b2F1dGgyLmJkYy5zY2h3YWIuY29t.0123456789-_0123456789-_0123456789-_0123456@"
	sent := ""
	c := config()
	c.Transport = transport(func(r *http.Request) (*http.Response, error) {
		r.ParseForm()
		sent = r.PostForm.Get("code")
		return nil, io.ErrUnexpectedEOF
	})
	p := provider(t, c)
	for pasted, want := range map[string]string{
		code: code, strings.Replace(code, "@", "%40", 1): code, " " + code + "\n": code,
		"hello": "", "hello world": "", "me@example.com": "", "correct.horse.battery": "", "p@ss.word": "", "staple@": "", code + "x": "",
	} {
		login, err := p.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		sent = ""
		_, err = p.Complete(t.Context(), login, pasted)
		if sent != want {
			t.Errorf("%q: sent %q, want %q", pasted, sent, want)
		}
		var e *brokerauth.Error
		if want == "" && (!errors.As(err, &e) || e.Kind != nil || strings.Contains(e.Error(), pasted)) {
			t.Errorf("%q: %v, want an error about what was pasted, without it", pasted, err)
		}
	}
}

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestInfo(t *testing.T) {
	c := config()
	p := provider(t, c)
	info := p.Info()
	identity, settings := info.Identity, info.Settings
	if diff := cmp.Diff(brokerauth.Info{
		Name: "schwab", BaseURL: "https://api.schwabapi.com", Origins: []string{"https://api.schwabapi.com"}, Margin: 300 * time.Second,
		Identity: identity, Settings: settings,
	}, info); diff != "" {
		t.Errorf("Info (-want +got):\n%s", diff)
	}
	login, err := p.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(login.URL, "https://api.schwabapi.com/v1/oauth/authorize?") {
		t.Errorf("login page %s", login.URL)
	}
	c.BaseURL = "http://127.0.0.1:8080"
	if provider(t, c).Info().Identity == identity {
		t.Error("an emulated Schwab shares the identity of the real one")
	}
}

// maker is how tests make providers of configurations.
var maker = configtest.Maker[schwab.Config]{
	New:      func(c schwab.Config) (brokerauth.Provider, error) { return schwab.New(c) },
	Callback: func(c schwab.Config) string { return c.CallbackURL },
	Secrets:  func(c schwab.Config) []string { return []string{c.AppSecret, "Zq9Secret"} },
	Prefix:   "schwab: ",
}

func TestConfig(t *testing.T) {
	maker.Run(t, config(), []struct {
		Name   string
		Change func(*schwab.Config)
		Faults int
		Says   string
	}{
		{"loopback", func(*schwab.Config) {}, 0, ""},
		{"longer key and secret", func(c *schwab.Config) { c.AppKey += c.AppKey[:16]; c.AppSecret = strings.Repeat("s", 64) }, 0, ""},
		{"no port", func(c *schwab.Config) { c.CallbackURL = "https://127.0.0.1" }, 0, ""},
		{"slash", func(c *schwab.Config) { c.CallbackURL = callback + "/" }, 0, ""},
		{"path", func(c *schwab.Config) { c.CallbackURL = callback + "/Back" }, 0, ""},
		{"web app", func(c *schwab.Config) { c.CallbackURL = "https://app.example.com/schwab/callback" }, 0, ""},
		{"upper case, as registered", func(c *schwab.Config) { c.CallbackURL = "HTTPS://127.0.0.1:8182" }, 0, ""},
		{"255 characters", func(c *schwab.Config) { c.CallbackURL += "/" + strings.Repeat("x", 255-len(callback)-1) }, 0, ""},
		{"256 characters", func(c *schwab.Config) { c.CallbackURL += "/" + strings.Repeat("x", 256-len(callback)-1) }, 1, "255"},
		{"plain", func(c *schwab.Config) { c.CallbackURL = "http://127.0.0.1:8182" }, 1, "https"},
		{"localhost", func(c *schwab.Config) { c.CallbackURL = "https://localhost:8182" }, 1, "127.0.0.1"},
		{"localhost below", func(c *schwab.Config) { c.CallbackURL = "https://app.LOCALHOST" }, 1, "127.0.0.1"},
		{"fragment", func(c *schwab.Config) { c.CallbackURL = callback + "/#a" }, 1, "#"},
		{"user", func(c *schwab.Config) { c.CallbackURL = "https://me:Zq9Secret0123456@127.0.0.1" }, 1, "password"},
		{"impossible port", func(c *schwab.Config) { c.CallbackURL = "https://127.0.0.1:99999" }, 1, "65535"},
		{"port 0", func(c *schwab.Config) { c.CallbackURL = "https://127.0.0.1:0" }, 1, "65535"},
		{"empty port", func(c *schwab.Config) { c.CallbackURL = "https://127.0.0.1:" }, 1, "65535"},
		{"any address", func(c *schwab.Config) { c.CallbackURL = "https://0.0.0.0:8182" }, 1, "127.0.0.1"},
		{"plain localhost with fragment", func(c *schwab.Config) { c.CallbackURL = "http://localhost:8182/#x" }, 3, "#"},
		{"list", func(c *schwab.Config) { c.CallbackURL = callback + ",https://app.example.com" }, 1, "use one of them"},
		{"space", func(c *schwab.Config) { c.CallbackURL += " " }, 1, "a space at its start or end"},
		{"no scheme", func(c *schwab.Config) { c.CallbackURL = "127.0.0.1:8182" }, 1, "not an address"},
		{"no key", func(c *schwab.Config) { c.AppKey = "" }, 1, "app key"},
		{"no secret", func(c *schwab.Config) { c.AppSecret = "" }, 1, "app secret"},
		{"line end in the secret", func(c *schwab.Config) { c.AppSecret += "\n" }, 1, "app secret"},
		{"nothing", func(c *schwab.Config) { *c = schwab.Config{} }, 3, "callback URL"},
		{"all of it", func(c *schwab.Config) {
			*c = schwab.Config{AppKey: "a b", AppSecret: "\tZq9Secret0123456", CallbackURL: "http://localhost", BaseURL: "http://x"}
		}, 5, "base URL"},
	})
}

// FuzzConfig: New takes anything, and makes a whole provider or names faults.
func FuzzConfig(f *testing.F) {
	f.Add("hJ7key0123456789hJ7key0123456789", "Zq9Secret0123456", callback, "")
	f.Add("", "", "", "")
	f.Add("a b", "\tZq9Secret0123456", "http://localhost", "http://x")
	f.Add("key", "secret", callback+",https://app.example.com", "https://user:Zq9Secret0123456@127.0.0.1/?a#b")
	f.Add("key", "secret", "https://[::1%25lo]:8182/%zz", "http://[::1]:80/a%2Fb/")
	f.Fuzz(func(t *testing.T, key, secret, callback, base string) {
		maker.Check(t, schwab.Config{AppKey: key, AppSecret: secret, CallbackURL: callback, BaseURL: base})
	})
}

const deniedPage = "<HTML><HEAD>\n<TITLE>Access Denied</TITLE>\n</HEAD><BODY>\n<H1>Access Denied</H1>\n \nYou don't have permission to access " +
	"\"http&#58;&#47;&#47;api&#46;schwabapi&#46;com&#47;v1&#47;oauth&#47;token\" on this server.<P>\nReference&#32;&#35;18&#46;abc\n</BODY>\n</HTML>\n"

// TestProvider has the suite, with every refusal that is on record.
func TestProvider(t *testing.T) {
	conformance.TestProvider(t, conformance.Harness{
		New: func(transport http.RoundTripper) (brokerauth.Provider, error) {
			c := config()
			c.Transport = transport
			return schwab.New(c)
		},
		Secrets:  []string{"Zq9Secret0123456"},
		Refusals: refusals(),
	})
}

func refusals() (refusals []conformance.Refusal) {
	login, rejected, passing := brokerauth.ErrLoginRequired, brokerauth.ErrRejected, brokerauth.ErrUnavailable
	dead := `Exception while authenticating refresh token [tokenDigest=kP3x+9fQ=, Exception=Failed refresh token authentication [tokenDigest=kP3x+9fQ=]]`
	badCode := func(what string) string {
		return `{"error":"unsupported_token_type","error_description":"400 Bad Request: \"{\"error_description\":\"Bad authorization code: ` +
			what + `\",\"error\":\"invalid_request\"}\""}`
	}
	for _, r := range []struct {
		name   string
		op     string // empty: both
		status int
		body   string
		kind   error
		code   string
		text   string
		hint   string // what it must not fail to name
	}{
		{"dead refresh token", "refresh", 400, `{"error":"unsupported_token_type","error_description":"400 Bad Request: \"{\"error_description\":\"` + dead + `\",\"error\":\"refresh_token_authentication_error\"}\""}`,
			login, "unsupported_token_type", "tokenDigest=REDACTED", "app key"},
		{"dead refresh token, spaces", "refresh", 400, `{"error":"unsupported_token_type","error_description":"400 Bad Request: \"{\"error_description\" : \"` + dead + `\", \"error\" : \"refresh_token_authentication_error\"}\""}`,
			login, "unsupported_token_type", "refresh_token_authentication_error", "log in again"},
		{"dead refresh token, bare quotes", "refresh", 400, `{"error":"unsupported_token_type","error_description":"400 Bad Request: "{"error_description":"` + dead + `","error":"refresh_token_authentication_error"}""}`,
			login, "refresh_token_authentication_error", "tokenDigest=REDACTED", "log in again"},
		{"dead refresh token, words", "refresh", 400, `{"error":"invalid_client","error_description":"refresh token invalid"}`, login, "invalid_client", "refresh token invalid", "log in again"},
		{"dead refresh token, one word", "refresh", 400, `{"error":"invalid_client","error_description":"refresh_token_invalid"}`, login, "invalid_client", "refresh_token_invalid", "log in again"},
		{"dead refresh token, by the RFC", "refresh", 400, `{"error":"invalid_grant","error_description":"expired"}`, login, "invalid_grant", "expired", "log in again"},
		{"unknown use of a known code", "refresh", 400, `{"error":"unsupported_token_type","error_description":"?"}`, passing, "unsupported_token_type", "?", ""},

		{"expired code", "login", 400, badCode("AuthorizationCode has expired,expiration=1728437138768,now=1728437166999"), login, "unsupported_token_type", "AuthorizationCode has expired", "30 seconds"},
		{"damaged code", "login", 400, badCode("Invalid authorization code header: C0.b2F1dGg"), login, "unsupported_token_type", "Invalid authorization code header", "whole address"},
		{"reused code", "login", 400, badCode("whatever"), login, "unsupported_token_type", "Bad authorization code", "used before"},
		{"code refused by the RFC", "login", 400, `{"error":"invalid_grant"}`, login, "invalid_grant", "", "log in again"},

		{"a login's words", "refresh", 400, badCode("whatever"), passing, "unsupported_token_type", "Bad authorization code", "try again later"},
		{"a refresh's words", "login", 400, `{"error":"x","error_description":"refresh_token_authentication_error"}`, passing, "x", "refresh_token", "new login"},

		{"wrong key or secret", "", 401, `{"error":"invalid_client","error_description":"Unauthorized"}`, rejected, "invalid_client", "Unauthorized", "app secret"},
		{"client id not in the body", "", 400, `Bad Request`, passing, "", "", ""},
		{"not ready, plain", "", 401, `401 Unauthorized`, passing, "", "", "Ready For Use"},
		{"not ready, number", "", 401, `{"error":4001}`, rejected, "4001", "", "Ready For Use"},
		{"not ready, number as text", "", 401, `{"code":"4001","message":"no"}`, rejected, "4001", "no", "Ready For Use"},
		{"not ready, session", "", 401, `{"message":"Session rejected"}`, rejected, "", "Session rejected", "Ready For Use"},
		{"not ready, assertion", "", 401, `{"error":"assertion_rejected"}`, rejected, "assertion_rejected", "", "Ready For Use"},
		{"gateway", "", 403, deniedPage, passing, "", "Access Denied", "gateway"},
		{"gateway, in other clothes", "", 200, deniedPage, passing, "", "Access Denied", "gateway"},
		{"gateway with a final status", "", 401, deniedPage, passing, "", "Access Denied", "gateway"},
		{"unable", "", 500, `<html><body><p>We are unable to complete your request. Please contact customer service for further assistance.</p></body></html>`, passing, "", "", "Ready For Use"},
		{"whitelabel", "", 500, `<html><body><h1>Whitelabel Error Page</h1><p>This application has no explicit mapping for /error</p><div>There was an unexpected error (type=Internal Server Error, status=500).</div></body></html>`,
			passing, "", "Whitelabel Error Page", "try again later"},
		{"trouble in other clothes", "", 400, `{"error":"invalid_grant","status": 500}`, passing, "invalid_grant", "", ""},
		{"too often", "", 429, ``, passing, "", "", "often"},

		// The API's answers.
		{"not subscribed", "", 401, `{"errors":[{"id":"5d0a4d0f-2f3c-4e6a-8c6e-5a3b7b1f0e11","status":401,"title":"Unauthorized","detail":"Client not authorized"}]}`, passing, "", "Unauthorized: Client not authorized", "product"},
		{"not subscribed, status as text", "", 401, `{"errors":[{"status":"401","title":"Unauthorized","detail":"Client not authorized"}]}`, passing, "", "Client not authorized", "product"},
		{"older wording", "", 401, `{"message":"The access token being passed has expired or is invalid"}`, passing, "", "The access token being passed has expired", "renewed"},
		{"missing header", "", 400, `{"errors":[{"id":"1","status":"400","title":"Bad Request","detail":"Missing header","source":{"header":"Authorization"}}]}`, passing, "", "Bad Request: Missing header", "proxy"},
		{"trader", "", 400, `{"message":"first","errors":["second"]}`, passing, "", "first: second", ""},
		{"too big", "", 500, `{"fault":{"faultstring":"Body buffer overflow","detail":{"errorcode":"protocol.http.TooBigBody"}}}`, passing, "protocol.http.TooBigBody", "Body buffer overflow", "too large"},
	} {
		refusals = append(refusals, conformance.Refusal{Name: r.name, Op: r.op, Status: r.status, Body: r.body, Kind: r.kind, Code: r.code,
			Says: []string{r.text, r.hint}})
	}
	return refusals
}

func TestPrint(t *testing.T) {
	c := config()
	text := fmt.Sprintf("%v %+v %#v %q %s %x", c, c, c, c, &c, c)
	j, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	text += string(j) + c.LogValue().String()
	if strings.Contains(text, c.AppKey) || strings.Contains(text, c.AppSecret) || strings.Count(text, "REDACTED(fp:") != 16 {
		t.Errorf("%s", text)
	}
}
