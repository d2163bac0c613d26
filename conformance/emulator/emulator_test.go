package emulator_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/providers/schwab"
)

const callback = "https://127.0.0.1:8182/back"

// client is an app that knows nothing of this module: it speaks HTTP.
type client struct {
	t          testing.TB
	http       *http.Client
	base       string
	id, secret string
}

// inProcess has the broker as its transport.
func inProcess(t testing.TB, b *emulator.Broker) *client {
	return newClient(t, &http.Client{Transport: b}, "https://api.schwabapi.com")
}

// overTLS meets the broker on a real port.
func overTLS(t testing.TB, b *emulator.Broker) *client {
	server := httptest.NewTLSServer(b)
	t.Cleanup(server.Close)
	return newClient(t, server.Client(), server.URL)
}

func newClient(t testing.TB, c *http.Client, base string) *client {
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &client{t: t, http: c, base: base, id: "app", secret: "shh"}
}

// overBoth runs a test over either wire.
func overBoth(t *testing.T, test func(t *testing.T, connect func(testing.TB, *emulator.Broker) *client)) {
	t.Run("in process", func(t *testing.T) { test(t, inProcess) })
	t.Run("over TLS", func(t *testing.T) { test(t, overTLS) })
}

type reply struct {
	status int
	header http.Header
	body   string
	fields map[string]any // of a JSON object
}

func (c *client) send(ctx context.Context, method, path string, header http.Header, body string) (reply, error) {
	c.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header = header
	resp, err := c.http.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	r := reply{status: resp.StatusCode, header: resp.Header}
	raw, err := io.ReadAll(resp.Body)
	r.body = string(raw)
	json.Unmarshal(raw, &r.fields)
	return r, err
}

func (c *client) must(method, path string, header http.Header, body string) reply {
	c.t.Helper()
	r, err := c.send(c.t.Context(), method, path, header, body)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return r
}

func (c *client) page(extra url.Values) string {
	q := url.Values{"client_id": {c.id}, "redirect_uri": {callback}}
	for name, values := range extra {
		q[name] = values
	}
	return "/v1/oauth/authorize?" + q.Encode()
}

var formType = http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}

// consent returns where a user who presses a button on the login page is sent.
func (c *client) consent(button string, extra url.Values) *url.URL {
	c.t.Helper()
	r := c.must("POST", c.page(extra), formType, "button="+button)
	u, err := url.Parse(r.header.Get("Location"))
	if r.status != 302 || err != nil {
		c.t.Fatalf("the login page answers HTTP %d, Location %v", r.status, err)
	}
	return u
}

func (c *client) code() string {
	c.t.Helper()
	return c.consent("approve", nil).Query().Get("code")
}

func (c *client) basic() http.Header {
	h := formType.Clone()
	h.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(c.id+":"+c.secret)))
	return h
}

func (c *client) token(form url.Values) reply {
	c.t.Helper()
	return c.must("POST", "/v1/oauth/token", c.basic(), form.Encode())
}

func exchangeForm(code string) url.Values {
	return url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {callback}}
}

func refreshForm(token string) url.Values {
	return url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}}
}

// login returns the tokens of a new login.
func (c *client) login() (access, refresh string) {
	c.t.Helper()
	r := c.token(exchangeForm(c.code()))
	if r.status != 200 {
		c.t.Fatalf("the exchange answers HTTP %d: %s", r.status, r.body)
	}
	return r.fields["access_token"].(string), r.fields["refresh_token"].(string)
}

func (c *client) refresh(token string) (status int, access, refresh string) {
	c.t.Helper()
	r := c.token(refreshForm(token))
	access, _ = r.fields["access_token"].(string)
	refresh, _ = r.fields["refresh_token"].(string)
	return r.status, access, refresh
}

// api returns the status of an API call.
func (c *client) api(access string) int {
	c.t.Helper()
	return c.must("GET", "/trader/v1/accounts/accountNumbers", http.Header{"Authorization": {"Bearer " + access}}, "").status
}

func (c *client) wantAPI(access string, want int) {
	c.t.Helper()
	if got := c.api(access); got != want {
		c.t.Errorf("the API answers HTTP %d, want %d", got, want)
	}
}

func (c *client) wantRefresh(token string, want int) {
	c.t.Helper()
	if got, _, _ := c.refresh(token); got != want {
		c.t.Errorf("a refresh answers HTTP %d, want %d", got, want)
	}
}

func TestLogin(t *testing.T) {
	overBoth(t, func(t *testing.T, connect func(testing.TB, *emulator.Broker) *client) {
		b := emulator.Schwab(t)
		c := connect(t, b)
		state := "a+b/c=&d%"
		page := c.must("GET", c.page(url.Values{"state": {state}}), nil, "")
		if page.status != 200 || !strings.HasPrefix(page.header.Get("Content-Type"), "text/html") ||
			!strings.Contains(page.body, "emulated") || !strings.Contains(page.body, `<form method="post">`) {
			t.Errorf("the login page: HTTP %d\n%s", page.status, page.body)
		}
		back := c.consent("approve", url.Values{"state": {state}})
		shape := regexp.MustCompile(`^https://127\.0\.0\.1:8182/back\?code=emulated\.C0\.b2F1dGgyLmJkYy5zY2h3YWIuY29t\.[\w-]{43}%40` +
			`&session=[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}&state=a%2Bb%2Fc%3D%26d%25$`)
		if !shape.MatchString(back.String()) {
			t.Errorf("the user is sent back to %s", back)
		}

		got := c.token(exchangeForm(back.Query().Get("code")))
		for name, shape := range map[string]string{
			"access_token":  `^emulated\.I0\.b2F1dGgyLmJkYy5zY2h3YWIuY29t\.[\w-]{43}@$`,
			"refresh_token": `^emulated\.[\w-]{128}@$`,
			"id_token":      `^emulated(\.[\w-]+){3}$`,
		} {
			if value, _ := got.fields[name].(string); !regexp.MustCompile(shape).MatchString(value) {
				t.Errorf("%s is %q", name, value)
			}
			delete(got.fields, name)
		}
		want := map[string]any{"expires_in": 1800.0, "token_type": "Bearer", "scope": "api"}
		if diff := cmp.Diff(want, got.fields); got.status != 200 || diff != "" {
			t.Errorf("the exchange: HTTP %d, differs (-want +got):\n%s", got.status, diff)
		}

		access, refresh := c.login()
		bearer := http.Header{"Authorization": {"Bearer " + access}}
		var numbers []struct{ AccountNumber, HashValue string }
		err := json.Unmarshal([]byte(c.must("GET", "/trader/v1/accounts/accountNumbers", bearer, "").body), &numbers)
		if err != nil || len(numbers) != 1 || numbers[0].AccountNumber == "" || numbers[0].HashValue == "" {
			t.Errorf("accountNumbers: %v, %v", numbers, err)
		}
		var preference struct {
			StreamerInfo []struct{ StreamerSocketURL, SchwabClientChannel, SchwabClientFunctionID string }
		}
		err = json.Unmarshal([]byte(c.must("GET", "/trader/v1/userPreference", bearer, "").body), &preference)
		if err != nil || len(preference.StreamerInfo) != 1 || preference.StreamerInfo[0].SchwabClientChannel == "" {
			t.Errorf("userPreference: %v, %v", preference, err)
		}

		status, access2, refresh2 := c.refresh(refresh)
		if status != 200 || access2 == access || refresh2 != refresh {
			t.Errorf("a refresh: HTTP %d; new access token: %t; same refresh token: %t",
				status, access2 != access, refresh2 == refresh)
		}
		c.wantAPI(access, 200)
		c.wantAPI(access2, 200)
	})
}

func TestCallback(t *testing.T) {
	for _, test := range []struct{ redirect, button, want string }{
		{"https://127.0.0.1:8182", "approve", `^https://127\.0\.0\.1:8182/\?code=[^&]+&session=[^&]+$`},
		{"https://127.0.0.1:8182/", "approve", `^https://127\.0\.0\.1:8182/\?code=[^&]+&session=[^&]+$`},
		{"https://app.example/cb?a=1&b=%20", "approve", `^https://app\.example/cb\?a=1&b=%20&code=[^&]+&session=[^&]+$`},
		{"https://app.example/cb?", "approve", `^https://app\.example/cb\?code=[^&]+&session=[^&]+$`},
		{"HTTPS://App.Example/CB", "approve", `^HTTPS://App\.Example/CB\?code=`},
		{callback, "deny", `^https://127\.0\.0\.1:8182/back\?error=access_denied&error_description=[^&]+$`},
	} {
		c := inProcess(t, emulator.Schwab(t))
		r := c.must("POST", c.page(url.Values{"redirect_uri": {test.redirect}}), formType, "button="+test.button)
		if got := r.header.Get("Location"); !regexp.MustCompile(test.want).MatchString(got) {
			t.Errorf("%s, %s: sent back to %q", test.redirect, test.button, got)
		}
	}
}

func pkce(challenge, method string) url.Values {
	return url.Values{"code_challenge": {challenge}, "code_challenge_method": {method}}
}

func TestPageRefuses(t *testing.T) {
	challenge := base64.RawURLEncoding.EncodeToString(make([]byte, 32))
	for _, test := range []struct {
		name   string
		query  url.Values
		status int
		want   string // in the body or the Location
	}{
		{"unknown app", url.Values{"client_id": {"other"}}, 401, `{"error":"invalid_client","error_description":"Unauthorized"}`},
		{"no app", url.Values{"client_id": nil}, 401, `"invalid_client"`},
		{"no redirect", url.Values{"redirect_uri": nil}, 403, "<H1>Access Denied</H1>"},
		{"http redirect", url.Values{"redirect_uri": {"http://127.0.0.1"}}, 403, "&#47;v1&#47;oauth&#47;authorize"},
		{"relative redirect", url.Values{"redirect_uri": {"//evil.example/"}}, 403, "Access Denied"},
		{"fragment", url.Values{"redirect_uri": {callback + "#"}}, 403, "Access Denied"},
		{"user", url.Values{"redirect_uri": {"https://a@b.example/"}}, 403, "Access Denied"},
		{"newline", url.Values{"redirect_uri": {callback + "\r\nX-Evil: 1"}}, 403, "Access Denied"},
		{"256 bytes", url.Values{"redirect_uri": {callback + "/" + strings.Repeat("x", 255-len(callback))}}, 403, "Access Denied"},
		{"implicit grant", url.Values{"response_type": {"token"}}, 302, "error=unsupported_response_type"},
		{"plain PKCE", pkce(challenge, "plain"), 302, "error=invalid_request"},
		{"PKCE without a method", url.Values{"code_challenge": {challenge}}, 302, "error=invalid_request"},
		{"PKCE method alone", url.Values{"code_challenge_method": {"S256"}}, 302, "error=invalid_request"},
		{"short challenge", pkce(challenge[:42], "S256"), 302, "error=invalid_request"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := inProcess(t, emulator.Schwab(t, emulator.Config{ClientID: "app"}))
			for _, method := range []string{"GET", "POST"} {
				r := c.must(method, c.page(test.query), formType, "button=approve")
				text := r.body + r.header.Get("Location")
				if r.status != test.status || !strings.Contains(text, test.want) || strings.Contains(text, "code=") {
					t.Errorf("%s: HTTP %d, want %d with %s: %s", method, r.status, test.status, test.want, text)
				}
			}
		})
	}
}

func TestPageEscapes(t *testing.T) {
	c := inProcess(t, emulator.Schwab(t))
	r := c.must("GET", c.page(url.Values{"client_id": {"<script>"}, "redirect_uri": {callback + "/<script>"}}), nil, "")
	if r.status != 200 || strings.Contains(r.body, "<script>") {
		t.Errorf("HTTP %d: %s", r.status, r.body)
	}
}

// badCode is the body of a refused code, as reported for expired and malformed ones.
func badCode(why string) string {
	return `^\{"error":"unsupported_token_type","error_description":"400 Bad Request: ` +
		`\\"\{\\"error_description\\":\\"Bad authorization code: ` + why + `\\",\\"error\\":\\"invalid_request\\"\}\\""\}$`
}

func TestCode(t *testing.T) {
	verifier := strings.Repeat("v", 43)
	sum := sha256.Sum256([]byte(verifier))
	bound := pkce(base64.RawURLEncoding.EncodeToString(sum[:]), "S256")
	with := func(form url.Values, name, value string) url.Values {
		form.Set(name, value)
		return form
	}
	for _, test := range []struct {
		name string
		page url.Values
		form func(c *client, b *emulator.Broker, code string) url.Values
		want string // empty: accepted
	}{
		{"in time", nil, func(c *client, b *emulator.Broker, code string) url.Values {
			b.Advance(29 * time.Second)
			return exchangeForm(code)
		}, ""},
		{"late", nil, func(c *client, b *emulator.Broker, code string) url.Values {
			b.Advance(30 * time.Second)
			return exchangeForm(code)
		}, badCode(`AuthorizationCode has expired,expiration=\d{12,13},now=\d{12,13} `)},
		{"again", nil, func(c *client, b *emulator.Broker, code string) url.Values {
			c.token(exchangeForm(code))
			return exchangeForm(code)
		}, badCode(".*")},
		{"unknown", nil, func(c *client, b *emulator.Broker, code string) url.Values {
			return exchangeForm(strings.Replace(code, "Y29t.", "Y29t.x", 1))
		}, badCode(".*")},
		{"encoded twice", nil, func(c *client, b *emulator.Broker, code string) url.Values {
			return exchangeForm(url.QueryEscape(code))
		}, badCode("Invalid authorization code header: em +")},
		{"cut before the @", nil, func(c *client, b *emulator.Broker, code string) url.Values {
			return exchangeForm(strings.TrimSuffix(code, "@"))
		}, badCode("Invalid authorization code header: em +")},
		{"none", nil, func(c *client, b *emulator.Broker, code string) url.Values {
			return exchangeForm("")
		}, badCode("Invalid authorization code header: +")},
		{"redirect with a slash more", nil, func(c *client, b *emulator.Broker, code string) url.Values {
			return with(exchangeForm(code), "redirect_uri", callback+"/")
		}, badCode(".*")},
		{"somebody else's", nil, func(c *client, b *emulator.Broker, code string) url.Values {
			c.id = "other"
			return exchangeForm(code)
		}, badCode(".*")},
		{"verifier", bound, func(c *client, b *emulator.Broker, code string) url.Values {
			return with(exchangeForm(code), "code_verifier", verifier)
		}, ""},
		{"wrong verifier", bound, func(c *client, b *emulator.Broker, code string) url.Values {
			return with(exchangeForm(code), "code_verifier", verifier+"v")
		}, badCode(".*")},
		{"no verifier", bound, func(c *client, b *emulator.Broker, code string) url.Values {
			return exchangeForm(code)
		}, badCode(".*")},
		{"verifier without challenge", nil, func(c *client, b *emulator.Broker, code string) url.Values {
			return with(exchangeForm(code), "code_verifier", verifier)
		}, badCode(".*")},
		{"id and secret in the body, too", nil, func(c *client, b *emulator.Broker, code string) url.Values {
			return with(with(exchangeForm(code), "client_id", c.id), "client_secret", c.secret)
		}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // for thirty seconds to the nanosecond
				b := emulator.Schwab(t)
				c := inProcess(t, b)
				form := test.form(c, b, c.consent("approve", test.page).Query().Get("code"))
				r := c.token(form)
				if test.want == "" {
					if r.status != 200 {
						t.Errorf("HTTP %d: %s", r.status, r.body)
					}
				} else if r.status != 400 || !regexp.MustCompile(test.want).MatchString(r.body) {
					t.Errorf("HTTP %d: %s, want 400 and %s", r.status, r.body, test.want)
				}
			})
		})
	}
}

func TestClient(t *testing.T) {
	b := emulator.Schwab(t, emulator.Config{ClientID: "app/1", ClientSecret: "s+%:~"})
	c := inProcess(t, b)
	for _, test := range []struct {
		name, id, secret string
		want             int
	}{
		{"raw", "app/1", "s+%:~", 200},
		{"form-encoded", url.QueryEscape("app/1"), url.QueryEscape("s+%:~"), 200},
		{"another secret", "app/1", "s", 401},
		{"no secret", "app/1", "", 401},
		{"another id", "app", "s+%:~", 401},
	} {
		c.id = "app/1"
		code := c.code()
		c.id, c.secret = test.id, test.secret
		if r := c.token(exchangeForm(code)); r.status != test.want {
			t.Errorf("%s: HTTP %d, want %d: %s", test.name, r.status, test.want, r.body)
		} else if want := `{"error":"invalid_client","error_description":"Unauthorized"}`; test.want == 401 && r.body != want {
			t.Errorf("%s: %s, want %s", test.name, r.body, want)
		}
	}
	for _, form := range []url.Values{nil, {"grant_type": {"password"}}} {
		c.id, c.secret = "app/1", "s+%:~"
		if r := c.token(form); r.status != 400 || r.fields["error"] == nil {
			t.Errorf("%v: HTTP %d %s", form, r.status, r.body)
		}
	}
	if r := c.must("POST", "/v1/oauth/token", formType, exchangeForm(c.code()).Encode()); r.status != 401 {
		t.Errorf("without Basic: HTTP %d, want 401", r.status)
	}
}

// A client that finds no code in what was pasted may guess another grant, and gets an hour without a person's consent.
func TestClientCredentials(t *testing.T) {
	b := emulator.Schwab(t)
	c := inProcess(t, b)
	r := c.token(url.Values{"grant_type": {"client_credentials"}})
	if r.status != 200 || r.fields["expires_in"] != 3600.0 || r.fields["refresh_token"] != nil || r.fields["id_token"] != nil {
		t.Fatalf("HTTP %d with %d fields", r.status, len(r.fields))
	}
	access := r.fields["access_token"].(string)
	b.Advance(59 * time.Minute)
	c.wantAPI(access, 200)
	b.Advance(time.Minute)
	c.wantAPI(access, 401)
	if !slices.Contains(b.Secrets(), access) {
		t.Error("Secrets does not know the token")
	}
	c.secret = ""
	if r := c.token(url.Values{"grant_type": {"client_credentials"}}); r.status != 401 {
		t.Errorf("without a secret: HTTP %d", r.status)
	}
}

func TestAnyClientButItsOwn(t *testing.T) {
	c := inProcess(t, emulator.Schwab(t))
	access, refresh := c.login()
	c.id = "other"
	c.wantRefresh(refresh, 400)
	c.id = "app"
	c.wantAPI(access, 200)
	c.wantRefresh(refresh, 200)
	c.secret = ""
	c.wantRefresh(refresh, 401)
}

// deadRefresh is the body that users report for a refresh token that is expired, revoked or replaced.
var deadRefresh = regexp.MustCompile(`^\{"error":"unsupported_token_type","error_description":"400 Bad Request: ` +
	`\\"\{\\"error_description\\":\\"Exception while authenticating refresh token \[tokenDigest=[^ ,]+, ` +
	`Exception=Failed refresh token authentication \[tokenDigest=[^ ,]+\]\]\\",` +
	`\\"error\\":\\"refresh_token_authentication_error\\"\}\\""\}$`)

func TestDeadRefreshToken(t *testing.T) {
	for name, kill := range map[string]func(c *client, b *emulator.Broker, refresh string){
		"revoked":   func(c *client, b *emulator.Broker, refresh string) { b.RevokeLogins() },
		"a new one": func(c *client, b *emulator.Broker, refresh string) { c.login() },
		"seven days": func(c *client, b *emulator.Broker, refresh string) {
			b.Advance(7*24*time.Hour - time.Second)
			c.wantRefresh(refresh, 200) // which does not move the end
			b.Advance(time.Second)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := emulator.Schwab(t)
			c := inProcess(t, b)
			_, refresh := c.login()
			kill(c, b, refresh)
			r := c.token(refreshForm(refresh))
			if r.status != 400 || !deadRefresh.MatchString(r.body) || strings.Contains(r.body, refresh) {
				t.Errorf("HTTP %d: %s", r.status, r.body)
			}
		})
	}
}

// The week begins at the consent, not when the code is exchanged.
func TestLoginBeginsAtConsent(t *testing.T) {
	b := emulator.Schwab(t, emulator.Config{LoginTTL: time.Minute})
	c := inProcess(t, b)
	code := c.code()
	b.Advance(29 * time.Second)
	refresh := c.token(exchangeForm(code)).fields["refresh_token"].(string)
	b.Advance(31 * time.Second)
	c.wantRefresh(refresh, 400)
}

func TestAccessToken(t *testing.T) {
	for name, test := range map[string]struct {
		do   func(c *client, b *emulator.Broker, refresh string)
		want int
	}{
		"fresh":          {func(c *client, b *emulator.Broker, refresh string) { b.Advance(29 * time.Minute) }, 200},
		"expired":        {func(c *client, b *emulator.Broker, refresh string) { b.Advance(30 * time.Minute) }, 401},
		"login revoked":  {func(c *client, b *emulator.Broker, refresh string) { b.RevokeLogins(); c.wantRefresh(refresh, 400) }, 200},
		"another login":  {func(c *client, b *emulator.Broker, refresh string) { c.login() }, 401},
		"another client": {func(c *client, b *emulator.Broker, refresh string) { c.id = "other"; c.login() }, 200},
	} {
		t.Run(name, func(t *testing.T) {
			b := emulator.Schwab(t)
			c := inProcess(t, b)
			access, refresh := c.login()
			test.do(c, b, refresh)
			c.wantAPI(access, test.want)
		})
	}
}

func TestAPIErrors(t *testing.T) {
	overBoth(t, func(t *testing.T, connect func(testing.TB, *emulator.Broker) *client) {
		b := emulator.Schwab(t)
		c := connect(t, b)
		access, _ := c.login()
		bearer := http.Header{"Authorization": {"Bearer " + access}}
		const id = `\{"errors":\[\{"id":"[0-9a-f-]{36}",`
		for _, test := range []struct {
			method, path string
			header       http.Header
			status       int
			want         string
		}{
			{"GET", "/trader/v1/userPreference", nil, 400,
				`^` + id + `"status":"400","title":"Bad Request","detail":"Missing header","source":\{"header":"Authorization"\}\}\]\}$`},
			{"GET", "/marketdata/v1/quotes", http.Header{"Authorization": {"Bearer " + access + "x"}}, 401,
				`^` + id + `"status":401,"title":"Unauthorized","detail":"Client not authorized"\}\]\}$`},
			{"GET", "/trader/v1/userPreference", http.Header{"Authorization": {"Basic " + access}}, 401, `"Client not authorized"`},
			{"POST", "/trader/v1/userPreference", bearer, 404, `^\{"fault":\{"faultstring":".*"\}\}\}$`},
			{"HEAD", "/trader/v1/userPreference", bearer, 404, `^$`},
			{"GET", "/trader/v1/nothing", bearer, 404, `"fault"`},
			{"GET", "/", nil, 404, `"fault"`},
			{"GET", "/v1/oauth/token", nil, 404, `"fault"`},
			{"PUT", "/v1/oauth/token", nil, 404, `"fault"`},
			{"HEAD", "/v1/oauth/authorize", nil, 404, `^$`},
			{"POST", "/v1/oauth/revoke", nil, 404, `"fault"`},
		} {
			r := c.must(test.method, test.path, test.header, "")
			if r.status != test.status || !regexp.MustCompile(test.want).MatchString(r.body) {
				t.Errorf("%s %s: HTTP %d, want %d: %s", test.method, test.path, r.status, test.status, r.body)
			}
		}
		if r := c.must("POST", "/v1/oauth/token", c.basic(), strings.Repeat("x", 1<<20+1)); r.status != 413 {
			t.Errorf("a body over 1 MiB: HTTP %d, want 413", r.status)
		}
	})
}

func TestHandle(t *testing.T) {
	overBoth(t, func(t *testing.T, connect func(testing.TB, *emulator.Broker) *client) {
		b := emulator.Schwab(t)
		b.Handle("POST /trader/v1/accounts/{hash}/orders", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			w.Header().Set("Location", "/orders/1")
			w.WriteHeader(http.StatusCreated)
			fmt.Fprint(w, r.PathValue("hash"), r.Host, string(body))
		}))
		b.Handle("/elsewhere", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		b.Handle("/trader/v1/userPreference", http.NotFoundHandler())
		c := connect(t, b)
		access, _ := c.login()
		bearer := http.Header{"Authorization": {"bearer " + access}}
		r := c.must("POST", "/trader/v1/accounts/E01/orders", bearer, "buy")
		want := "E01" + strings.TrimPrefix(c.base, "https://") + "buy"
		if r.status != 201 || r.body != want || r.header.Get("Location") != "/orders/1" {
			t.Errorf("HTTP %d %q %v, want 201 %q", r.status, r.body, r.header, want)
		}
		for _, test := range []struct {
			path   string
			header http.Header
			want   int
		}{
			{"/elsewhere", bearer, 200},
			{"/elsewhere", nil, 400},
			{"/trader/v1/userPreference", bearer, 404},
		} {
			if r := c.must("GET", test.path, test.header, ""); r.status != test.want {
				t.Errorf("%s: HTTP %d, want %d", test.path, r.status, test.want)
			}
		}
	})
}

func TestRotate(t *testing.T) {
	c := inProcess(t, emulator.Schwab(t, emulator.Config{Rotate: true}))
	_, first := c.login()
	status, access, second := c.refresh(first)
	if status != 200 || second == first {
		t.Fatalf("a refresh: HTTP %d, rotated: %t", status, second != first)
	}
	c.wantAPI(access, 200)
	c.wantRefresh(first, 400) // by a thief, or the other way round
	c.wantRefresh(second, 400)
	c.wantAPI(access, 401)
	access, _ = c.login()
	c.wantAPI(access, 200)
}

func TestRotateConcurrently(t *testing.T) {
	overBoth(t, func(t *testing.T, connect func(testing.TB, *emulator.Broker) *client) {
		b := emulator.Schwab(t, emulator.Config{Rotate: true, Latency: 5 * time.Millisecond})
		c := connect(t, b)
		for range 5 {
			_, refresh := c.login()
			var mu sync.Mutex
			var won []string
			var all sync.WaitGroup
			for range 32 {
				all.Go(func() {
					r, err := c.send(t.Context(), "POST", "/v1/oauth/token", c.basic(), refreshForm(refresh).Encode())
					if err != nil {
						t.Error(err)
						return
					}
					if r.status == 200 {
						mu.Lock()
						won = append(won, r.fields["refresh_token"].(string))
						mu.Unlock()
					}
				})
			}
			all.Wait()
			if len(won) != 1 {
				t.Fatalf("%d of 32 refreshes with one token succeed, want 1", len(won))
			}
			c.wantRefresh(won[0], 400) // the reuse ended the login
		}
	})
}

func TestFaults(t *testing.T) {
	overBoth(t, func(t *testing.T, connect func(testing.TB, *emulator.Broker) *client) {
		b := emulator.Schwab(t, emulator.Config{Rotate: true})
		c := connect(t, b)
		refresh := func(token string) (reply, error) {
			return c.send(t.Context(), "POST", "/v1/oauth/token", c.basic(), refreshForm(token).Encode())
		}
		for _, test := range []struct {
			name      string
			fault     emulator.Fault
			status    int // 0: an error
			want      string
			committed bool // the old refresh token is spent
		}{
			{"429", emulator.Fault{Status: 429, RetryAfter: "7"}, 429, `^$`, false},
			{"500", emulator.Fault{Status: 500}, 500, `Whitelabel`, false},
			{"502 after", emulator.Fault{Status: 502, Late: true}, 502, `<title>`, true},
			{"503", emulator.Fault{Status: 503, RetryAfter: "7"}, 503, `<title>`, false},
			{"gateway", emulator.Fault{Status: 403}, 403, `api&#46;schwabapi&#46;com`, false},
			{"own body", emulator.Fault{Status: 400, Body: `{"error":"invalid_client"}`}, 400, `^{"error":"invalid_client"}$`, false},
			{"garbage", emulator.Fault{Body: "\x00<{"}, 200, `^\x00<{$`, false},
			{"garbage after", emulator.Fault{Body: "{", Late: true}, 200, `^{$`, true},
			{"dropped", emulator.Fault{Drop: true}, 0, ``, false},
			{"dropped after", emulator.Fault{Drop: true, Late: true}, 0, ``, true},
			{"cut", emulator.Fault{Cut: true}, 0, `^{"expires_in":1800`, true},
			{"cut 503", emulator.Fault{Cut: true, Status: 503}, 0, `^<html>`, false},
			{"slow", emulator.Fault{Delay: time.Millisecond}, 200, `"access_token"`, true},
			{"slow after", emulator.Fault{Delay: time.Millisecond, Late: true}, 200, `"access_token"`, true},
			{"nothing", emulator.Fault{}, 200, `"access_token"`, true},
		} {
			t.Run(test.name, func(t *testing.T) {
				_, token := c.login()
				b.Inject(test.fault)
				r, err := refresh(token)
				if test.status == 0 && err == nil || test.status != 0 && (err != nil || r.status != test.status) {
					t.Fatalf("HTTP %d, %v; want %d", r.status, err, test.status)
				}
				if !regexp.MustCompile(test.want).MatchString(r.body) {
					t.Errorf("the body is %q, want %s", r.body, test.want)
				}
				if got := r.header.Get("Retry-After"); got != test.fault.RetryAfter {
					t.Errorf("Retry-After: %q, want %q", got, test.fault.RetryAfter)
				}
				// The fault has passed; the broker remembers what it decided.
				want := 200
				if test.committed {
					want = 400
				}
				c.wantRefresh(token, want)
			})
		}
	})
}

func TestTwice(t *testing.T) {
	overBoth(t, func(t *testing.T, connect func(testing.TB, *emulator.Broker) *client) {
		b := emulator.Schwab(t, emulator.Config{Rotate: true})
		c := connect(t, b)
		_, refresh := c.login()
		before := len(b.Requests())
		b.Inject(emulator.Fault{Twice: true})
		c.wantRefresh(refresh, 400)
		var got []int
		for _, r := range b.Requests()[before:] {
			got = append(got, r.Status)
		}
		if !slices.Equal(got, []int{200, 400}) {
			t.Errorf("the broker answered %v, want the first copy accepted, the second refused", got)
		}
	})
}

func TestFaultsInLine(t *testing.T) {
	b := emulator.Schwab(t)
	c := inProcess(t, b)
	access, refresh := c.login()
	expect := func(kind string, got func() int, want ...int) {
		t.Helper()
		for i, want := range want {
			if got := got(); got != want {
				t.Errorf("%s call %d: HTTP %d, want %d", kind, i, got, want)
			}
		}
	}
	token := func() int { status, _, _ := c.refresh(refresh); return status }
	api := func() int { return c.api(access) }

	b.Inject(emulator.Fault{Status: 503, Times: 2}, emulator.Fault{}, emulator.Fault{Status: 500},
		emulator.Fault{API: true, Status: 429})
	c.must("GET", c.page(nil), nil, "") // no call
	expect("token", token, 503)
	expect("API", api, 429, 200)
	expect("token", token, 503, 200, 500, 200)

	b.Inject(emulator.Fault{Status: 502, Times: -1}, emulator.Fault{Status: 500, API: true})
	expect("token", token, 502, 502, 502)
	b.Inject(emulator.Fault{Status: 504})
	expect("API", api, 200)
	expect("token", token, 504, 200)
	b.Inject(emulator.Fault{Status: 504})
	b.Inject()
	expect("token", token, 200)
}

// A client that leaves before the broker has decided leaves its token unspent; after, spent.
func TestClientLeaves(t *testing.T) {
	for _, test := range []struct {
		name  string
		fault emulator.Fault
		want  int // of the next refresh with the same token
	}{
		{"during the latency", emulator.Fault{}, 200},
		{"during a delay", emulator.Fault{Delay: time.Hour}, 200},
		{"of a hanging broker", emulator.Fault{Hang: true}, 200},
		{"during a delay, after", emulator.Fault{Delay: time.Hour, Late: true}, 400},
		{"of a hanging broker, after", emulator.Fault{Hang: true, Late: true}, 400},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := emulator.Schwab(t, emulator.Config{Rotate: true, Latency: 10 * time.Second})
				c := inProcess(t, b)
				_, refresh := c.login()
				wait := 9 * time.Second
				if test.fault != (emulator.Fault{}) {
					wait = 30 * time.Minute
				}
				b.Inject(test.fault)
				ctx, cancel := context.WithTimeout(t.Context(), wait)
				defer cancel()
				start := time.Now()
				_, err := c.send(ctx, "POST", "/v1/oauth/token", c.basic(), refreshForm(refresh).Encode())
				if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != wait {
					t.Errorf("after %s: %v, want the deadline's error after %s", time.Since(start), err, wait)
				}
				c.wantRefresh(refresh, test.want)
			})
		})
	}
}

// Over TCP, too, a hanging broker is rid of a client that leaves.
func TestHangOverTLS(t *testing.T) {
	b := emulator.Schwab(t)
	c := overTLS(t, b)
	b.Inject(emulator.Fault{Hang: true})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := c.send(ctx, "POST", "/v1/oauth/token", c.basic(), refreshForm("x").Encode())
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want the deadline's error", err)
	}
	// The server's Close in the cleanup waits for the handler.
}

func TestHandlerSeesTheClientLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t)
		b.Handle("/trader/v1/slow", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		c := inProcess(t, b)
		access, _ := c.login()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := c.send(ctx, "GET", "/trader/v1/slow", http.Header{"Authorization": {"Bearer " + access}}, "")
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want the deadline's error", err)
		}
	})
}

// Eight days pass in no time, by the bubble's clock alone.
func TestEightDays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Latency: 200 * time.Millisecond})
		c := inProcess(t, b)
		start := time.Now()
		access, refresh := c.login()
		refreshes := 0
		for time.Since(start) < 8*24*time.Hour {
			time.Sleep(29 * time.Minute)
			c.wantAPI(access, 200)
			status, next, _ := c.refresh(refresh)
			if status != 200 {
				break
			}
			access = next
			refreshes++
		}
		if week := 7 * 24 * time.Hour; time.Since(start).Round(time.Hour) != week || refreshes < 300 {
			t.Errorf("the login ended after %s and %d refreshes, want %s", time.Since(start), refreshes, week)
		}
		time.Sleep(time.Hour)
		c.wantAPI(access, 401)
		access, _ = c.login()
		c.wantAPI(access, 200)
	})
}

func TestConfigLifetimes(t *testing.T) {
	b := emulator.Schwab(t, emulator.Config{AccessTTL: 2 * time.Second, LoginTTL: 10 * time.Second})
	c := inProcess(t, b)
	r := c.token(exchangeForm(c.code()))
	if r.fields["expires_in"] != 2.0 {
		t.Errorf("expires_in is %v, want 2", r.fields["expires_in"])
	}
	b.Advance(2 * time.Second)
	c.wantAPI(r.fields["access_token"].(string), 401)
	c.wantRefresh(r.fields["refresh_token"].(string), 200)
	b.Advance(8 * time.Second)
	c.wantRefresh(r.fields["refresh_token"].(string), 400)
}

func TestNew(t *testing.T) {
	if _, err := emulator.New("nobody", emulator.Config{}); err == nil || !strings.Contains(err.Error(), "schwab") {
		t.Errorf("an unknown broker: %v, want an error that names the known", err)
	}
	for _, c := range []emulator.Config{
		{AccessTTL: -time.Second}, {AccessTTL: 1500 * time.Millisecond}, {LoginTTL: -1}, {Latency: -1},
	} {
		if _, err := emulator.New("schwab", c); err == nil {
			t.Errorf("New accepts %+v", c)
		}
	}
}

func TestOtherAddresses(t *testing.T) {
	b := emulator.Schwab(t)
	c := &http.Client{Transport: b}
	for _, address := range []string{
		"https://example.com/", "http://api.schwabapi.com/", "https://api.schwabapi.com:8443/",
		"https://api.schwabapi.com.evil.example/",
	} {
		if resp, err := c.Get(address); err == nil {
			resp.Body.Close()
			t.Errorf("%s is served", address)
		}
	}
	if resp, err := c.Get("https://api.schwabapi.com:443"); err != nil || resp.StatusCode != 404 {
		t.Errorf("the default port, spelt out: %v, %v", resp, err)
	}
	if n := len(b.Requests()); n != 1 {
		t.Errorf("%d requests reached the broker, want 1", n)
	}
}

// What a client set in Form for itself does not go over the wire, nor does it here.
func TestClientForm(t *testing.T) {
	b := emulator.Schwab(t)
	c := inProcess(t, b)
	_, refresh := c.login()
	req, err := http.NewRequest("POST", c.base+"/v1/oauth/token", strings.NewReader(refreshForm(refresh).Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = c.basic()
	req.Form, req.PostForm = url.Values{}, url.Values{}
	resp, err := b.RoundTrip(req)
	if err != nil || resp.StatusCode != 200 {
		t.Errorf("a refresh: %v, %v", resp, err)
	}
}

// Any HTTP client that follows the login page's address ends at the callback.
func TestAutoApprove(t *testing.T) {
	b := emulator.Schwab(t, emulator.Config{AutoApprove: true})
	c := overTLS(t, b)
	app := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.URL.Query().Get("code"))
	}))
	defer app.Close()
	c.http.CheckRedirect = nil
	r := c.must("GET", c.page(url.Values{"redirect_uri": {app.URL}}), nil, "")
	form := exchangeForm(r.body)
	form.Set("redirect_uri", app.URL)
	if got := c.token(form); got.status != 200 {
		t.Errorf("the exchange of %q: HTTP %d %s", r.body, got.status, got.body)
	}
}

func TestRecord(t *testing.T) {
	overBoth(t, func(t *testing.T, connect func(testing.TB, *emulator.Broker) *client) {
		var log bytes.Buffer
		b := emulator.Schwab(t, emulator.Config{Log: &log})
		b.Advance(24 * time.Hour)
		c := connect(t, b)
		_, refresh := c.login()
		c.api("wrong")
		b.Inject(emulator.Fault{Drop: true})
		c.send(t.Context(), "POST", "/v1/oauth/token", c.basic(), refreshForm(refresh).Encode())

		var lines []map[string]any
		for line := range strings.Lines(log.String()) {
			var fields map[string]any
			if err := json.Unmarshal([]byte(line), &fields); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			at, err := time.Parse(time.RFC3339, fields["time"].(string))
			if left := time.Until(at); err != nil || left < 23*time.Hour || left > 24*time.Hour {
				t.Errorf("time is %v, want the broker's clock", fields["time"])
			}
			delete(fields, "time")
			lines = append(lines, fields)
		}
		want := []map[string]any{
			{"method": "POST", "path": "/v1/oauth/authorize", "status": 302.0},
			{"method": "POST", "path": "/v1/oauth/token", "status": 200.0, "grant_type": "authorization_code"},
			{"method": "GET", "path": "/trader/v1/accounts/accountNumbers", "status": 401.0},
			{"method": "POST", "path": "/v1/oauth/token", "status": 0.0, "grant_type": "refresh_token"},
		}
		if diff := cmp.Diff(want, lines); diff != "" {
			t.Errorf("the log differs (-want +got):\n%s", diff)
		}
		var recorded []map[string]any
		for _, r := range b.Requests() {
			fields := map[string]any{"method": r.Method, "path": r.Path, "status": float64(r.Status)}
			if r.GrantType != "" {
				fields["grant_type"] = r.GrantType
			}
			recorded = append(recorded, fields)
		}
		if diff := cmp.Diff(want, recorded); diff != "" {
			t.Errorf("Requests differs (-want +got):\n%s", diff)
		}
		for _, secret := range b.Secrets() {
			if strings.Contains(log.String(), secret) {
				t.Errorf("the log holds a secret: %s", secret)
			}
		}
	})
}

// A request is in the record while the broker still works on it.
func TestRecordAtArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.Schwab(t, emulator.Config{Latency: time.Minute})
		c := inProcess(t, b)
		done := make(chan bool)
		go func() { c.token(refreshForm("x")); close(done) }()
		synctest.Wait()
		if got := b.Requests(); len(got) != 1 || got[0].Status != 0 {
			t.Errorf("during the latency: %v, want one request without a status", got)
		}
		<-done
		if got := b.Requests(); len(got) != 1 || got[0].Status != 400 {
			t.Errorf("after it: %v, want one request with status 400", got)
		}
	})
}

func TestSecrets(t *testing.T) {
	b := emulator.Schwab(t, emulator.Config{Rotate: true, ClientSecret: "shh"})
	c := inProcess(t, b)
	code := c.code()
	r := c.token(exchangeForm(code))
	refresh := r.fields["refresh_token"].(string)
	r2 := c.token(refreshForm(refresh))
	secrets := b.Secrets()
	want := []string{"shh", code, refresh, r.fields["access_token"].(string), r.fields["id_token"].(string),
		r2.fields["refresh_token"].(string), r2.fields["access_token"].(string), r2.fields["id_token"].(string)}
	for _, secret := range want {
		if !slices.Contains(secrets, secret) {
			t.Errorf("Secrets lacks %s", secret)
		}
	}
	if len(secrets) != len(want) {
		t.Errorf("Secrets has %d, want %d", len(secrets), len(want))
	}
}

// failed is a TB that remembers.
type failed struct{ why []any }

func (f *failed) Helper()           {}
func (f *failed) Fatal(args ...any) { f.why = args; panic(f) }

func TestSchwabFailsTheTest(t *testing.T) {
	f := new(failed)
	func() {
		defer func() { recover() }()
		emulator.Schwab(f, emulator.Config{LoginTTL: -1})
	}()
	if f.why == nil {
		t.Error("a Config that cannot work passes")
	}
}

func TestFlows(t *testing.T) {
	for _, auto := range []bool{false, true} {
		b := emulator.Schwab(t, emulator.Config{AutoApprove: auto})
		p := b.LoginProvider()
		login, err := p.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var token *brokerauth.Token
		finish := func(ctx context.Context, callback string) (err error) {
			token, err = p.Complete(ctx, login, callback)
			return err
		}
		if err := b.Deny(t.Context(), login, finish); err == nil || token != nil {
			t.Errorf("a user who declines (auto-approve %t): %v, %v", auto, token, err)
		}
		if err := b.Approve(t.Context(), login, finish); err != nil {
			t.Fatalf("a user who consents (auto-approve %t): %v", auto, err)
		}
		inProcess(t, b).wantAPI(token.AccessToken, 200)
		renewed, err := p.Refresh(t.Context(), token)
		if err != nil {
			t.Fatal(err)
		}
		inProcess(t, b).wantAPI(renewed.AccessToken, 200)
		b.RevokeLogins()
		if _, err := p.Refresh(t.Context(), renewed); !errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Errorf("a refresh of a revoked login: %v, want ErrLoginRequired", err)
		}
	}
}

// The flows are as good for a provider that meets the broker on a port.
func TestFlowsOverTLS(t *testing.T) {
	b := emulator.Schwab(t)
	server := httptest.NewTLSServer(b)
	defer server.Close()
	p, err := schwab.New(schwab.Config{AppKey: "app", AppSecret: "shh", CallbackURL: callback,
		BaseURL: server.URL, Transport: server.Client().Transport})
	if err != nil {
		t.Fatal(err)
	}
	login, err := p.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Approve(t.Context(), login, func(ctx context.Context, callback string) error {
		_, err := p.Complete(ctx, login, callback)
		return err
	}); err != nil {
		t.Error(err)
	}
}

func TestFlowsFail(t *testing.T) {
	b := emulator.Schwab(t, emulator.Config{ClientID: "app"})
	finish := func(context.Context, string) error { t.Error("finish is called"); return nil }
	const page = "https://api.schwabapi.com/v1/oauth/authorize?redirect_uri=https%3A%2F%2F127.0.0.1&client_id="
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for name, test := range map[string]struct {
		ctx     context.Context
		address string
	}{
		"another app":  {t.Context(), page + "other"},
		"another page": {t.Context(), "https://api.schwabapi.com/"},
		"no address":   {t.Context(), ":"},
		"no time":      {gone, page + "app"},
	} {
		if err := b.Approve(test.ctx, &brokerauth.Login{URL: test.address}, finish); err == nil {
			t.Errorf("%s: no error", name)
		} else if strings.Contains(err.Error(), "client_id=") {
			t.Errorf("%s: the error shows the login's address: %v", name, err)
		}
	}
}

// Whatever is asked of it, the login page sends nobody but to the redirect that the request names, with its state.
func FuzzPage(f *testing.F) {
	f.Add("client_id=app&redirect_uri=https%3A%2F%2F127.0.0.1%3A8182&state=s", "approve")
	f.Add("client_id=app&redirect_uri=https://127.0.0.1/?a=b&response_type=code&state=%25", "deny")
	f.Add("client_id=app&redirect_uri=https://[::1]:1/&code_challenge=x&code_challenge_method=S256", "")
	f.Add("client_id=app&redirect_uri=https://a/&code_challenge=x", "approve")
	f.Add("redirect_uri=https://a?%0d%0aX:&client_id=%00", "approve")
	f.Fuzz(func(t *testing.T, query, button string) {
		b := emulator.Schwab(t)
		u := &url.URL{Scheme: "https", Host: "api.schwabapi.com", Path: "/v1/oauth/authorize", RawQuery: query}
		body := io.NopCloser(strings.NewReader(url.Values{"button": {button}}.Encode()))
		req := &http.Request{Method: "POST", URL: u, Header: formType.Clone(), Body: body}
		resp, err := b.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		location := resp.Header.Get("Location")
		if (resp.StatusCode == 302) != (location != "") {
			t.Fatalf("HTTP %d, Location %q", resp.StatusCode, location)
		}
		if location == "" {
			return
		}
		to, err := url.Parse(location)
		if err != nil {
			t.Fatalf("Location %q: %v", location, err)
		}
		asked := u.Query()
		base, old, _ := strings.Cut(asked.Get("redirect_uri"), "?")
		from, err := url.Parse(base)
		if err != nil || to.Scheme != "https" || to.Host != from.Host ||
			strings.TrimSuffix(to.Path, "/") != strings.TrimSuffix(from.Path, "/") {
			t.Errorf("%q is sent back to %q", asked.Get("redirect_uri"), location)
		}
		added, err := url.ParseQuery(strings.TrimPrefix(strings.TrimPrefix(to.RawQuery, old), "&"))
		if err != nil || added.Get("state") != asked.Get("state") ||
			added.Has("code") == added.Has("error") || added.Has("code") && button != "approve" {
			t.Errorf("%q: sent back with %v, %v", query, added, err)
		}
	})
}

// No token call that holds nothing issued gets a token, and each gets an answer that can be read.
func FuzzToken(f *testing.F) {
	f.Add("Basic YTpi", "grant_type=authorization_code&code=emulated.C0.x%40&redirect_uri=https%3A%2F%2F127.0.0.1")
	f.Add("Basic YTpi", "grant_type=refresh_token&refresh_token=")
	f.Add("Basic JTpi", "grant_type=authorization_code&code=\"\\\x00%zz")
	f.Add("Bearer x", "grant_type=password")
	f.Fuzz(func(t *testing.T, authorization, form string) {
		b := emulator.Schwab(t)
		page := "https://api.schwabapi.com/v1/oauth/authorize?client_id=a&redirect_uri=https%3A%2F%2F127.0.0.1"
		b.Approve(t.Context(), &brokerauth.Login{URL: page}, func(context.Context, string) error { return nil })
		header := formType.Clone()
		header["Authorization"] = []string{authorization}
		req := &http.Request{Method: "POST", URL: &url.URL{Scheme: "https", Host: "api.schwabapi.com", Path: "/v1/oauth/token"},
			Header: header, Body: io.NopCloser(strings.NewReader(form))}
		resp, err := b.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		var body struct {
			Error string `json:"error"`
		}
		err = json.NewDecoder(resp.Body).Decode(&body)
		if err != nil || body.Error == "" || resp.StatusCode != 400 && resp.StatusCode != 401 {
			t.Errorf("HTTP %d, %+v, %v", resp.StatusCode, body, err)
		}
	})
}
