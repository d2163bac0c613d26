package emulator_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/storage/memory"
)

// tdClient is an app at TD Ameritrade that knows nothing of this module.
func tdClient(t *testing.T, b *emulator.Broker) *client {
	return newClient(t, &http.Client{Transport: b}, "https://api.tdameritrade.com")
}

const tdCallback = "http://localhost:8080/back"

func tdPage(id, redirect string) string {
	return "/auth?" + url.Values{"response_type": {"code"}, "client_id": {id}, "redirect_uri": {redirect}}.Encode()
}

func (c *client) tdCode() string {
	c.t.Helper()
	r := c.must("POST", tdPage("KEY@AMER.OAUTHAP", tdCallback), formType, "button=approve")
	u, err := url.Parse(r.header.Get("Location"))
	if r.status != 302 || err != nil || !strings.HasPrefix(u.String(), tdCallback+"?code=") {
		c.t.Fatalf("the login page answers HTTP %d, Location %q", r.status, u)
	}
	return u.Query().Get("code")
}

// tdToken makes a token call; parameters are pairs.
func (c *client) tdToken(params ...string) reply {
	c.t.Helper()
	form := url.Values{"client_id": {"KEY"}}
	for i := 0; i < len(params); i += 2 {
		form.Set(params[i], params[i+1])
	}
	return c.must("POST", "/v1/oauth2/token", formType, form.Encode())
}

func field(r reply, name string) string {
	s, _ := r.fields[name].(string)
	return s
}

// TestTDAmeritrade has its login, and who gets which tokens.
func TestTDAmeritrade(t *testing.T) {
	b := emulator.TDAmeritrade(t, emulator.Config{ClientID: "KEY"})
	c := tdClient(t, b)
	exchange := func(more ...string) reply {
		t.Helper()
		return c.tdToken(append([]string{"grant_type", "authorization_code", "code", c.tdCode(), "redirect_uri", tdCallback}, more...)...)
	}
	refresh := func(token string, more ...string) reply {
		t.Helper()
		return c.tdToken(append([]string{"grant_type", "refresh_token", "refresh_token", token}, more...)...)
	}
	shape := func(what string, r reply, refresh bool) {
		t.Helper()
		want := map[string]any{"access_token": true, "token_type": "Bearer", "expires_in": 1800.0, "scope": "PlaceTrades AccountAccess MoveMoney"}
		if refresh {
			want["refresh_token"], want["refresh_token_expires_in"] = true, 7776000.0
		}
		got := make(map[string]any)
		for name, value := range r.fields {
			got[name] = value
			if strings.HasSuffix(name, "_token") {
				got[name] = strings.HasPrefix(value.(string), "emulated.")
			}
		}
		if diff := cmp.Diff(want, got); r.status != 200 || diff != "" {
			t.Errorf("%s: HTTP %d, differs (-want +got):\n%s", what, r.status, diff)
		}
	}
	shape("exchange", exchange(), false)
	offline := exchange("access_type", "offline", "client_id", "KEY@AMER.OAUTHAP", "refresh_token", "")
	shape("exchange, offline", offline, true)
	old := field(offline, "refresh_token")
	exchange("access_type", "offline") // which ends no login before it
	shape("refresh", refresh(old), false)

	b.Advance(89 * 24 * time.Hour)
	renewed := refresh(old, "access_type", "offline")
	shape("refresh, offline", renewed, true)
	if field(renewed, "refresh_token") == old {
		t.Error("the refresh token did not change")
	}
	shape("refresh of the old one, to its end", refresh(old), false)
	b.Advance(2 * 24 * time.Hour)
	if r := refresh(old); r.status != 400 || r.body != `{"error" : "invalid_grant"}` {
		t.Errorf("refresh after 90 days: HTTP %d %s", r.status, r.body)
	}
	b.Advance(87 * 24 * time.Hour)
	access := field(refresh(field(renewed, "refresh_token")), "access_token")

	var accounts []struct{ SecuritiesAccount struct{ AccountID string } }
	bearer := http.Header{"Authorization": {"Bearer " + access}}
	if err := json.Unmarshal([]byte(c.must("GET", "/v1/accounts", bearer, "").body), &accounts); err != nil || len(accounts) != 1 ||
		accounts[0].SecuritiesAccount.AccountID == "" {
		t.Errorf("accounts: %v, %v", accounts, err)
	}
	principals := c.must("GET", "/v1/userprincipals?fields=streamerSubscriptionKeys,streamerConnectionInfo", bearer, "")
	if info, _ := principals.fields["streamerInfo"].(map[string]any); info["streamerSocketUrl"] != "streamer.emulated.invalid" {
		t.Errorf("userprincipals: HTTP %d %s", principals.status, principals.body)
	}
	if r := c.must("GET", "/v1/nothing", bearer, ""); r.status != 404 {
		t.Errorf("an unknown path: HTTP %d", r.status)
	}
}

func TestTDAmeritradeRefuses(t *testing.T) {
	b := emulator.TDAmeritrade(t, emulator.Config{ClientID: "KEY@AMER.OAUTHAP"})
	c := tdClient(t, b)
	for _, page := range []struct{ id, redirect string }{
		{"KEY", tdCallback}, {"KEY@AMER.OAUTHAP@AMER.OAUTHAP", tdCallback}, {"OTHER@AMER.OAUTHAP", tdCallback}, {"", tdCallback},
		{"KEY@AMER.OAUTHAP", "localhost"}, {"KEY@AMER.OAUTHAP", ""},
	} {
		r := c.must("POST", tdPage(page.id, page.redirect), formType, "button=approve")
		if r.header.Get("Location") != "" || !strings.Contains(r.body, "A third-party application may be attempting to make unauthorized access") {
			t.Errorf("%+v: HTTP %d %s", page, r.status, r.body)
		}
	}
	// Where any app is known, the suffix still stands there once.
	if r := tdClient(t, emulator.TDAmeritrade(t)).must("GET", tdPage("A@AMER.OAUTHAP@AMER.OAUTHAP", tdCallback), nil, ""); r.status != 400 {
		t.Errorf("the suffix twice: HTTP %d", r.status)
	}
	grant := func(token string) []string { return []string{"grant_type", "refresh_token", "refresh_token", token} }
	code := func(code, redirect string) []string {
		return []string{"grant_type", "authorization_code", "code", code, "redirect_uri", redirect}
	}
	late := c.tdCode()
	b.Advance(31 * time.Minute)
	used := c.tdCode()
	if r := c.tdToken(code(used, tdCallback)...); r.status != 200 {
		t.Errorf("a code: HTTP %d %s", r.status, r.body)
	}
	for name, test := range map[string]struct {
		params []string
		want   string
	}{
		"unknown refresh token": {grant("x"), "invalid_grant"},
		"late code":             {code(late, tdCallback), "invalid_grant"},
		"code decoded twice":    {code(strings.ReplaceAll(c.tdCode(), "+", " "), tdCallback), "invalid_grant"},
		"another callback":      {code(c.tdCode(), tdCallback+"/"), "invalid_grant"},
		"another app":           {append(code(c.tdCode(), tdCallback), "client_id", "OTHER"), "invalid_grant"},
		"no app":                {append(grant("x"), "client_id", ""), "invalid_request"},
		"used code":             {code(used, tdCallback), "invalid_grant"},
		"no grant type":         {nil, "invalid_request"},
	} {
		if r := c.tdToken(test.params...); r.status != 400 || r.body != `{"error" : "`+test.want+`"}` {
			t.Errorf("%s: HTTP %d %s, want %s", name, r.status, r.body, test.want)
		}
	}
	r := c.must("GET", "/v1/accounts", http.Header{"Authorization": {"Bearer x"}}, "")
	if r.status != 401 || field(r, "error") != "The access token being passed has expired or is invalid." ||
		r.header.Get("WWW-Authenticate") != `Bearer realm="null",error="invalid_token",error_description="keymanagement.service.access_token_expired: Access Token expired"` {
		t.Errorf("a dead access token: HTTP %d %s, %v", r.status, r.body, r.header)
	}
	if r := c.must("GET", "/v1/accounts", nil, ""); r.status != 403 || field(r, "error") != "You don't have permission to access this resource." {
		t.Errorf("no access token: HTTP %d %s", r.status, r.body)
	}
}

// TestTDAmeritradeForEver: a program that runs needs no second login, one that stood still for 90 days does.
func TestTDAmeritradeForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.TDAmeritrade(t)
		s := &brokerauth.Session{Provider: b.Provider(), Store: new(memory.Store)}
		defer s.Close()
		if err := s.Login(t.Context(), b.Approve); err != nil {
			t.Fatal(err)
		}
		first, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		day := func(d int) *brokerauth.Token {
			t.Helper()
			time.Sleep(time.Until(first.LoggedInAt.Add(time.Duration(d) * 24 * time.Hour)))
			token, err := s.Token(t.Context())
			if err != nil {
				t.Fatalf("day %d: %v", d, err)
			}
			if !token.LoggedInAt.Equal(first.LoggedInAt) {
				t.Errorf("day %d: the login moved to %v", d, token.LoggedInAt)
			}
			return token
		}
		if token := day(84); !token.LoginBy.Equal(first.LoginBy) || token.RefreshToken != first.RefreshToken {
			t.Errorf("day 84: log in by %v", token.LoginBy)
		}
		if token := day(85); token.LoginBy.Sub(token.Issued) != 90*24*time.Hour || token.RefreshToken == first.RefreshToken {
			t.Errorf("day 85: log in by %v", token.LoginBy)
		}
		day(174)
		day(260)
		time.Sleep(91 * 24 * time.Hour)
		var e *brokerauth.Error
		if _, err := s.Token(t.Context()); !errors.Is(err, brokerauth.ErrLoginRequired) || !errors.As(err, &e) || e.Code != "invalid_grant" {
			t.Errorf("after 91 days of standstill: %v", err)
		}
	})
}

// TestTDAmeritradeTooOften: the count begins anew with the minute of the broker's clock.
func TestTDAmeritradeTooOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := emulator.TDAmeritrade(t)
		b.Advance(-15 * time.Second) // its clock shows 23:59:45
		b.Inject(emulator.Fault{Status: 429})
		_, err := b.Provider().Refresh(t.Context(), &brokerauth.Token{RefreshToken: "x"})
		var e *brokerauth.Error
		if !errors.As(err, &e) || e.Kind != brokerauth.ErrUnavailable || e.RetryAfter != 15*time.Second ||
			!strings.Contains(e.Description, "transactions per seconds restriction") {
			t.Errorf("%v", err)
		}
	})
}

// FuzzForms: no token call that holds nothing issued gets a token, and each gets an answer that can be read.
func FuzzForms(f *testing.F) {
	f.Add("application/x-www-form-urlencoded", "grant_type=refresh_token&refresh_token=x&client_id=a&client_secret=b")
	f.Add("application/x-www-form-urlencoded; charset=utf-8", "grant_type=authorization_code&code=%zz&client_id=@AMER.OAUTHAP")
	f.Add("application/json", `{"grant_type":"refresh_token","refresh_token":"","client_secret":"b"}`)
	f.Add("application/json;charset=utf-8", `{"grant_type":["refresh_token"],"client_secret":{"a":null}}`)
	f.Add("application/json", `[`)
	f.Add("", "\x00")
	f.Fuzz(func(t *testing.T, contentType, body string) {
		for name, path := range map[string]string{"tdameritrade": "/v1/oauth2/token", "tastytrade": "/oauth/token"} {
			b, err := emulator.New(name, emulator.Config{})
			if err != nil {
				t.Fatal(err)
			}
			req := httptest.NewRequest("POST", path, strings.NewReader(body))
			req.Header.Set("Content-Type", contentType)
			req.Header.Set("User-Agent", "fuzz/1")
			w := httptest.NewRecorder()
			b.ServeHTTP(w, req)
			var fields map[string]any
			err = json.Unmarshal(w.Body.Bytes(), &fields)
			if _, token := fields["access_token"]; err != nil || token || w.Code != 400 && w.Code != 401 {
				t.Errorf("%s: HTTP %d %s, %v", name, w.Code, w.Body, err)
			}
		}
	})
}
