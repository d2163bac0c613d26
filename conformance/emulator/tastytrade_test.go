package emulator_test

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/brokerauth/brokerauth/conformance/emulator"
)

// tastyClient is an app at tastytrade that knows nothing of this module.
func tastyClient(t *testing.T, b *emulator.Broker) *client {
	return newClient(t, &http.Client{Transport: b}, "https://api.tastyworks.com")
}

// tastyToken makes a token call in JSON, as most clients of tastytrade do.
func (c *client) tastyToken(params map[string]string) reply {
	c.t.Helper()
	body, err := json.Marshal(params)
	if err != nil {
		c.t.Fatal(err)
	}
	return c.must("POST", "/oauth/token", http.Header{"Content-Type": {"application/json"}}, string(body))
}

func tastyRefresh(token string) map[string]string {
	return map[string]string{"grant_type": "refresh_token", "refresh_token": token, "client_secret": "shh"}
}

const tastyGrant = "emulated-grant-of-a-test"

func TestTastytradeGrant(t *testing.T) {
	b := emulator.Tastytrade(t, emulator.Config{Grant: tastyGrant, ClientSecret: "shh"})
	c := tastyClient(t, b)
	minted := c.tastyToken(tastyRefresh(tastyGrant))
	access := field(minted, "access_token")
	delete(minted.fields, "access_token")
	if diff := cmp.Diff(map[string]any{"token_type": "Bearer", "expires_in": 900.0}, minted.fields); minted.status != 200 || diff != "" {
		t.Errorf("HTTP %d, differs (-want +got):\n%s", minted.status, diff)
	}
	parts := strings.Split(access, ".")
	claims, err := base64.RawURLEncoding.DecodeString(parts[len(parts)-2])
	var claim struct{ Iss, Scope string }
	if err == nil {
		err = json.Unmarshal(claims, &claim)
	}
	if err != nil || parts[0] != "emulated" || claim.Iss != "https://api.tastytrade.com" || claim.Scope != "read trade openid" {
		t.Errorf("the access token says %s, %v", claims, err)
	}
	bearer := http.Header{"Authorization": {"Bearer " + access}}
	for path, want := range map[string]string{
		"/customers/me/accounts": `"account-number":"5WX00001"`, "/api-quote-tokens": `"dxlink-url":"wss://streamer.emulated.invalid`,
	} {
		if r := c.must("GET", path, bearer, ""); r.status != 200 || !strings.Contains(r.body, want) || field(r, "context") != path || r.fields["data"] == nil {
			t.Errorf("%s: HTTP %d %s", path, r.status, r.body)
		}
	}

	// A form is as good, the grant outlives everything, and only its deletion ends it.
	b.Advance(10 * 365 * 24 * time.Hour)
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {tastyGrant}, "client_secret": {"shh"}, "client_id": {"mine"}}
	if r := c.must("POST", "/oauth/token", formType, form.Encode()); r.status != 200 || field(r, "refresh_token") != "" {
		t.Errorf("ten years later: HTTP %d", r.status)
	}
	if r := c.must("GET", "/customers/me/accounts", bearer, ""); r.status != 401 || r.fields["error"].(map[string]any)["code"] == "" {
		t.Errorf("an access token that has ended: HTTP %d %s", r.status, r.body)
	}
	identity := b.Provider().Info().Identity
	if b.Provider().Info().Identity != identity {
		t.Error("the grant changed by itself")
	}
	b.RevokeLogins()
	if r := c.tastyToken(tastyRefresh(tastyGrant)); r.status != 400 || r.body != `{"error_code":"invalid_grant","error_description":"Grant revoked"}` {
		t.Errorf("a deleted grant: HTTP %d %s", r.status, r.body)
	}
	if b.Provider().Info().Identity == identity {
		t.Error("no new grant was made")
	}
	if _, err := b.Provider().Refresh(t.Context(), nil); err != nil {
		t.Errorf("the new grant: %v", err)
	}
}

func TestTastytradeRefuses(t *testing.T) {
	b := emulator.Tastytrade(t, emulator.Config{Grant: tastyGrant, ClientID: "mine", ClientSecret: "shh"})
	c := tastyClient(t, b)
	with := func(name, value string) map[string]string {
		params := tastyRefresh(tastyGrant)
		params[name] = value
		return params
	}
	for name, test := range map[string]struct {
		params map[string]string
		status int
		want   string
	}{
		"damaged grant":  {with("refresh_token", tastyGrant[1:]), 400, `{"error_code":"invalid_grant","error_description":"Invalid JWT"}`},
		"wrong secret":   {with("client_secret", "other"), 401, `{"error_code":"invalid_client","error_description":"Client secret mismatch"}`},
		"no secret":      {with("client_secret", ""), 401, `{"error_code":"invalid_client","error_description":"Client secret mismatch"}`},
		"another app":    {with("client_id", "other"), 401, `"invalid_client"`},
		"unknown method": {with("grant_type", "password"), 400, `"unsupported_grant_type"`},
		"unknown code":   {map[string]string{"grant_type": "authorization_code", "code": "x", "client_id": "mine", "client_secret": "shh"}, 400, `"invalid_grant"`},
	} {
		if r := c.tastyToken(test.params); r.status != test.status || !strings.Contains(r.body, test.want) {
			t.Errorf("%s: HTTP %d %s, want %d %s", name, r.status, r.body, test.status, test.want)
		}
	}
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {tastyGrant}, "client_secret": {"shh"}}.Encode()
	for name, test := range map[string]struct {
		header http.Header
		status int
		want   string
	}{
		"Authorization header":      {http.Header{"Authorization": {"Basic eDp5"}}, 401, `"error":{"code"`},
		"empty User-Agent":          {http.Header{"User-Agent": {""}}, 401, "<title>401 Authorization Required</title>"},
		"malformed User-Agent":      {http.Header{"User-Agent": {"(none)"}}, 401, "nginx"},
		"User-Agent of its own SDK": {http.Header{"User-Agent": {"tastytrade-sdk-js"}}, 200, "access_token"},
		"no User-Agent of its own":  {nil, 200, "access_token"}, // net/http sends its own
		"Accept-Version":            {http.Header{"Accept-Version": {"20251101"}}, 200, "access_token"},
		"malformed Accept-Version":  {http.Header{"Accept-Version": {"1"}}, 406, `"error":{"code"`},
	} {
		header := formType.Clone()
		for name, values := range test.header {
			header[name] = values
		}
		if r := c.must("POST", "/oauth/token", header, form); r.status != test.status || !strings.Contains(r.body, test.want) {
			t.Errorf("%s: HTTP %d %s", name, r.status, r.body)
		}
	}
}

func TestTastytradePartner(t *testing.T) {
	b := emulator.Tastytrade(t, emulator.Config{ClientID: "mine"})
	c := tastyClient(t, b)
	page := func(scope string) string {
		return "/auth.html?" + url.Values{"response_type": {"code"}, "client_id": {"mine"}, "redirect_uri": {callback}, "scope": {scope}, "state": {"s"}}.Encode()
	}
	if r := c.must("POST", page("read everything"), formType, "button=approve"); r.status != 400 || r.header.Get("Location") != "" {
		t.Errorf("an unknown scope: HTTP %d", r.status)
	}
	for scope, want := range map[string]struct {
		id     bool
		status int // of an API call
	}{"read": {false, 200}, "read openid": {true, 200}, "": {true, 200}, "trade": {false, 403}} {
		r := c.must("POST", page(scope), formType, "button=approve")
		back, err := url.Parse(r.header.Get("Location"))
		if r.status != 302 || err != nil || back.Query().Get("state") != "s" {
			t.Fatalf("the login page answers HTTP %d, Location %q", r.status, back)
		}
		r = c.tastyToken(map[string]string{"grant_type": "authorization_code", "code": back.Query().Get("code"), "client_id": "mine",
			"client_secret": "any", "redirect_uri": callback})
		if r.status != 200 || field(r, "refresh_token") == "" || (field(r, "id_token") != "") != want.id {
			t.Errorf("%q: HTTP %d %s", scope, r.status, r.body)
		}
		call := c.must("GET", "/customers/me/accounts", http.Header{"Authorization": {"Bearer " + field(r, "access_token")}}, "")
		if call.status != want.status || want.status == 403 && !strings.Contains(call.body, `"not_permitted"`) {
			t.Errorf("%q: the API answers HTTP %d %s", scope, call.status, call.body)
		}
	}
}

// Live and sandbox know nothing of each other.
func TestTastytradeSandbox(t *testing.T) {
	sandbox, err := emulator.New("tastytrade-sandbox", emulator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	info := sandbox.Provider().Info()
	if info.Name != "tastytrade-sandbox" || info.BaseURL != "https://api.cert.tastyworks.com" {
		t.Errorf("Info: %+v", info)
	}
	if _, err := (&http.Client{Transport: sandbox}).Get("https://api.tastyworks.com/customers/me"); err == nil {
		t.Error("the sandbox serves the live address")
	}
	c := newClient(t, &http.Client{Transport: sandbox}, info.BaseURL)
	if r := c.must("GET", "/customers/me/accounts", http.Header{"Accept-Version": {"20251101"}}, ""); r.status != 406 {
		t.Errorf("Accept-Version at the sandbox: HTTP %d", r.status)
	}
	if _, err := emulator.New("schwab", emulator.Config{Grant: "x"}); err == nil {
		t.Error("Schwab has a personal grant")
	}
}
