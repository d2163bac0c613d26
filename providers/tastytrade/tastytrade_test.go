package tastytrade_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance"
	"github.com/brokerauth/brokerauth/internal/configtest"
	"github.com/brokerauth/brokerauth/providers/tastytrade"
)

const (
	secret   = "Zq9Secret0123456789"
	callback = "http://localhost:8000"
)

// jwt is a token as tastytrade makes them; the signature is of no one.
func jwt(kind, issuer, scope string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","typ":"`+kind+`"}`)) + "." +
		base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"`+issuer+`","aud":"an-app","scope":"`+scope+`","iat":1780000000}`)) + ".c2lnbmF0dXJl"
}

var (
	liveGrant    = jwt("rt+jwt", "https://api.tastytrade.com", "read trade")
	sandboxGrant = jwt("rt+jwt", "https://api.cert.tastyworks.com", "read")
)

func personal() tastytrade.Config {
	return tastytrade.Config{ClientSecret: secret, Grant: liveGrant}
}

func app() tastytrade.Config {
	return tastytrade.Config{ClientID: "an-app", ClientSecret: secret, CallbackURL: callback, Scopes: []string{"read", "openid"}}
}

func provider(t *testing.T, c tastytrade.Config) brokerauth.Provider {
	t.Helper()
	p, err := tastytrade.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func partner(t *testing.T, c tastytrade.Config) brokerauth.LoginProvider {
	t.Helper()
	p, err := tastytrade.NewPartner(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// serve serves h over TLS, as the broker that c then asks.
func serve(t *testing.T, c *tastytrade.Config, h http.HandlerFunc) {
	server := httptest.NewTLSServer(h)
	t.Cleanup(server.Close)
	c.BaseURL, c.Transport = server.URL, server.Client().Transport
}

// TestGrant mints and renews at tastytrade's path and with its shapes.
func TestGrant(t *testing.T) {
	access := jwt("at+jwt", "https://api.tastytrade.com", "read trade \\u0007 X")
	for agent, want := range map[string]string{"": `^brokerauth/\d`, "mine/2.1": `^mine/2\.1$`} {
		var forms []url.Values
		c := personal()
		c.UserAgent = agent
		serve(t, &c, func(w http.ResponseWriter, r *http.Request) {
			r.ParseForm()
			forms = append(forms, r.PostForm)
			if r.Method != "POST" || r.URL.Path != "/oauth/token" || r.Header["Authorization"] != nil ||
				!regexp.MustCompile(want).MatchString(r.UserAgent()) {
				t.Errorf("%s %s with %v", r.Method, r.URL, r.Header)
			}
			fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","expires_in":900}`, access)
		})
		p := provider(t, c)
		if _, ok := p.(brokerauth.LoginProvider); ok {
			t.Error("a personal grant claims to have a login page")
		}
		first, err := p.Refresh(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		second, err := p.Refresh(t.Context(), first)
		if err != nil {
			t.Fatal(err)
		}
		form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {liveGrant}, "client_secret": {secret}}
		if diff := cmp.Diff([]url.Values{form, form}, forms); diff != "" {
			t.Errorf("requests (-want +got):\n%s", diff)
		}
		for _, token := range []*brokerauth.Token{first, second} {
			if token.Expiry.Sub(token.Issued) != 15*time.Minute || !token.LoginBy.IsZero() || token.Extra["scope"] != "read trade" {
				t.Errorf("token %v, scope %q", token, token.Extra["scope"])
			}
		}
	}
}

func TestPartner(t *testing.T) {
	var forms []url.Values
	c := app()
	serve(t, &c, func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		forms = append(forms, r.PostForm)
		if r.URL.Path != "/oauth/token" || r.Header["Authorization"] != nil || !strings.HasPrefix(r.UserAgent(), "brokerauth/") {
			t.Errorf("%s with %v", r.URL, r.Header)
		}
		fmt.Fprintf(w, `{"access_token":%q,"refresh_token":%q,"token_type":"Bearer","expires_in":900,"id_token":"a.b.c"}`,
			jwt("at+jwt", "https://api.tastytrade.com", "read openid"), liveGrant)
	})
	p := partner(t, c)
	login, err := p.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	page, err := url.Parse(login.URL)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(url.Values{
		"client_id": {"an-app"}, "redirect_uri": {callback}, "response_type": {"code"}, "state": {login.State}, "scope": {"read openid"},
	}, page.Query()); diff != "" || page.Path != "/auth.html" {
		t.Errorf("login page %s, parameters (-want +got):\n%s", page.Path, diff)
	}
	token, err := p.Complete(t.Context(), login, callback+"/?code=c0de&state="+login.State)
	if err != nil {
		t.Fatal(err)
	}
	renewed, err := p.Refresh(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]url.Values{
		{"grant_type": {"authorization_code"}, "code": {"c0de"}, "redirect_uri": {callback}, "client_id": {"an-app"}, "client_secret": {secret}},
		{"grant_type": {"refresh_token"}, "refresh_token": {liveGrant}, "client_id": {"an-app"}, "client_secret": {secret}},
	}, forms); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	for _, got := range []*brokerauth.Token{token, renewed} {
		if got.RefreshToken != liveGrant || !got.LoggedInAt.Equal(token.Issued) || !got.LoginBy.IsZero() || got.Extra["scope"] != "read openid" {
			t.Errorf("token %v, logged in %v, scope %q", got, got.LoggedInAt, got.Extra["scope"])
		}
	}
}

func TestInfo(t *testing.T) {
	live := provider(t, personal()).Info()
	c := personal()
	c.Sandbox, c.Grant = true, sandboxGrant
	sandbox := provider(t, c).Info()
	for _, test := range []struct {
		info                 brokerauth.Info
		name, base, identity string
	}{
		{live, "tastytrade", "https://api.tastyworks.com", live.Identity},
		{sandbox, "tastytrade-sandbox", "https://api.cert.tastyworks.com", sandbox.Identity},
	} {
		if diff := cmp.Diff(brokerauth.Info{
			Name: test.name, BaseURL: test.base, Origins: []string{test.base}, Margin: time.Minute,
			Identity: test.identity, Settings: test.info.Settings, UserAgent: "brokerauth/1.0",
		}, test.info); diff != "" {
			t.Errorf("Info (-want +got):\n%s", diff)
		}
	}
	other := personal()
	other.Grant = jwt("rt+jwt", "https://api.tastytrade.com", "read")
	emulated := personal()
	emulated.BaseURL = "http://127.0.0.1:8080"
	newSecret := personal()
	newSecret.ClientSecret += "1"
	if got := provider(t, other).Info(); got.Identity == live.Identity {
		t.Error("another grant is the same login")
	}
	if got := provider(t, emulated).Info(); got.Identity == live.Identity {
		t.Error("an emulated tastytrade shares the identity of the real one")
	}
	if got := provider(t, newSecret).Info(); got.Identity != live.Identity || got.Settings == live.Settings {
		t.Error("a new secret is another login, or the same settings")
	}

	partnerSandbox := app()
	partnerSandbox.Sandbox = true
	for want, c := range map[string]tastytrade.Config{
		"https://my.tastytrade.com/auth.html?": app(), "https://cert-my.staging-tasty.works/auth.html?": partnerSandbox,
	} {
		login, err := partner(t, c).Begin(t.Context())
		if err != nil || !strings.HasPrefix(login.URL, want) {
			t.Errorf("login page %s, %v, want %s", login.URL, err, want)
		}
	}
}

// makers are how tests make providers of configurations: of a personal grant, and of a partner's app.
var grants, partners = makers()

func makers() (grants, partners configtest.Maker[tastytrade.Config]) {
	grants = configtest.Maker[tastytrade.Config]{
		New:      func(c tastytrade.Config) (brokerauth.Provider, error) { return tastytrade.New(c) },
		Callback: func(c tastytrade.Config) string { return c.CallbackURL },
		Secrets:  func(c tastytrade.Config) []string { return []string{c.ClientSecret, c.Grant, secret, liveGrant} },
		Prefix:   "tastytrade: ",
	}
	partners = grants
	partners.New = func(c tastytrade.Config) (brokerauth.Provider, error) { return tastytrade.NewPartner(c) }
	return grants, partners
}

func TestConfig(t *testing.T) {
	grants.Run(t, personal(), []struct {
		Name   string
		Change func(*tastytrade.Config)
		Faults int
		Says   string
	}{
		{"grant", func(*tastytrade.Config) {}, 0, ""},
		{"grant that is no JWT", func(c *tastytrade.Config) { c.Grant = "opaque" }, 0, ""},
		{"client id as well", func(c *tastytrade.Config) { c.ClientID = "an-app" }, 0, ""},
		{"user agent", func(c *tastytrade.Config) { c.UserAgent = "my-app/1.2 (linux)" }, 0, ""},
		{"user agent without a version", func(c *tastytrade.Config) { c.UserAgent = "my-app" }, 1, "product/version"},
		{"user agent of two lines", func(c *tastytrade.Config) { c.UserAgent = "my-app/1\r\nX: y" }, 1, "product/version"},
		{"no grant", func(c *tastytrade.Config) { c.Grant = "" }, 1, "user name and password have ended"},
		{"no secret", func(c *tastytrade.Config) { c.ClientSecret = "" }, 1, "client secret is missing"},
		{"nothing", func(c *tastytrade.Config) { *c = tastytrade.Config{} }, 2, "Create Grant"},
		{"line end in the grant", func(c *tastytrade.Config) { c.Grant += "\n" }, 1, "grant"},
		{"a partner's settings", func(c *tastytrade.Config) { c.CallbackURL = callback }, 1, "NewPartner"},
		{"all of it", func(c *tastytrade.Config) {
			*c = tastytrade.Config{UserAgent: "x", Scopes: []string{"read"}, BaseURL: "http://example.com"}
		}, 5, "base URL"},
	})
	partners.Run(t, app(), []struct {
		Name   string
		Change func(*tastytrade.Config)
		Faults int
		Says   string
	}{
		{"partner", func(*tastytrade.Config) {}, 0, ""},
		{"partner without scopes", func(c *tastytrade.Config) { c.Scopes = nil }, 0, ""},
		{"partner with a grant", func(c *tastytrade.Config) { c.Grant = liveGrant }, 1, "beforehand"},
		{"partner without anything", func(c *tastytrade.Config) { *c = tastytrade.Config{} }, 3, "client id"},
	})
}

// FuzzConfig: New and NewPartner take anything, and make a whole provider or name faults.
func FuzzConfig(f *testing.F) {
	f.Add("an-app", secret, liveGrant, callback, "read openid", "mine/1.0", "")
	f.Add("", "", "", "", "", "", "")
	f.Add("a b", "\n", "x.y.z", "https://u:p@0.0.0.0:0/#", "\x00", "x\r\nY: z", "http://example.com")
	f.Fuzz(func(t *testing.T, id, secret, grant, callback, scopes, agent, base string) {
		c := tastytrade.Config{ClientID: id, ClientSecret: secret, Grant: grant, UserAgent: agent, BaseURL: base}
		grants.Check(t, c)
		c.CallbackURL, c.Scopes = callback, strings.Fields(scopes)
		grants.Check(t, c)
		partners.Check(t, c)
		c.Grant = ""
		partners.Check(t, c)
	})
}

const noAgent = "<html>\r\n<head><title>401 Authorization Required</title></head>\r\n<body>\r\n<center><h1>401 Authorization Required</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"

// TestProvider has the suite for a personal grant and for a partner's app, with every refusal that is on record.
func TestProvider(t *testing.T) {
	login, rejected, passing := brokerauth.ErrLoginRequired, brokerauth.ErrRejected, brokerauth.ErrUnavailable
	var granted, partnered []conformance.Refusal
	for _, r := range []struct {
		name           string
		status         int
		body           string
		grant, partner error  // the kind of a grant's refresh, and of a partner's
		code           string // the broker's
		hint           []string
	}{
		{"damaged token", 400, `{"error_code":"invalid_grant","error_description":"Invalid JWT"}`, rejected, login, "invalid_grant", []string{"ask the live one"}},
		{"grant deleted", 400, `{"error_code":"invalid_grant","error_description":"Grant revoked"}`, rejected, login, "invalid_grant", []string{"deleted", "secret was regenerated, which ends every grant"}},
		{"grant deleted, by the RFC", 400, `{"error":"invalid_grant","error_description":"Grant revoked"}`, rejected, login, "invalid_grant", []string{"deleted"}},
		{"wrong secret", 400, `{"error_code":"invalid_client","error_description":"Client secret mismatch"}`, rejected, rejected, "invalid_client", []string{"client secret", "ends every grant"}},
		{"wrong secret, other status", 401, `{"error":"invalid_client","error_description":"Client secret mismatch"}`, rejected, rejected, "invalid_client", []string{"client secret", "ends every grant"}},
		{"unknown app", 401, `{"error":"invalid_client"}`, rejected, rejected, "invalid_client", []string{"client id"}},
		{"not onboarded", 400, `{"error_code":"invalid_request","error_description":"User is not a TastyTrade customer"}`, rejected, rejected, "invalid_request", []string{"opened an account"}},
		{"no quotes", 404, `{"error":{"code":"quote_streamer.customer_not_found_error","message":"You must be a customer to access a quote stream."}}`, rejected, rejected, "quote_streamer.customer_not_found_error", []string{"opened an account"}},
		{"expired access token", 401, `{"error":{"code":"token_invalid","message":"This token is invalid or has expired"}}`, passing, passing, "token_invalid", []string{"renewed"}},
		{"no User-Agent", 401, noAgent, passing, passing, "", []string{"User-Agent", "product/version"}},
		{"no scope", 403, `{"error":{"code":"not_permitted","message":"User not permitted access"}}`, rejected, rejected, "not_permitted", []string{"two-factor", "read"}},
		{"refused scope", 400, `{"error":"invalid_scope"}`, rejected, rejected, "invalid_scope", []string{"two-factor"}},
		{"password login", 401, `{"error":{"code":"invalid_credentials","message":"Invalid login, please check your username and password."}}`, rejected, rejected, "invalid_credentials", []string{"ask the live", "Create Grant"}},
		{"e-mail not confirmed", 401, `{"error":{"code":"unconfirmed_user","message":"Please confirm your email"}}`, rejected, rejected, "unconfirmed_user", []string{"confirm the e-mail"}},
		{"validation", 422, `{"error":{"code":"validation_error","message":"Request validation failed","errors":[{"domain":"grant_type","reason":"is missing"}]}}`, passing, passing, "validation_error", []string{"malformed"}},
		{"bad Accept-Version", 406, `{"error":{"code":"not_acceptable","message":"no"}}`, passing, passing, "not_acceptable", []string{"Accept-Version"}},
		{"too often", 429, `<html><head><title>429 Too Many Requests</title></head></html>`, passing, passing, "", []string{"less often"}},
		{"maintenance", 502, `<html><head><title>502 Bad Gateway</title></head></html>`, passing, passing, "", []string{"try again later"}},
		{"server error", 500, `{"error":{"code":"internal_server_error","message":"An internal server error occurred. Support identifier: 1a2b"}}`, passing, passing, "internal_server_error", []string{"try again later"}},
	} {
		refusal := conformance.Refusal{Name: r.name, Status: r.status, Body: r.body, Kind: r.grant, Code: r.code, Says: r.hint}
		granted = append(granted, refusal)
		refusal.Kind, refusal.Op = r.partner, "refresh"
		partnered = append(partnered, refusal)
		refusal.Op, refusal.Says, refusal.Name = "login", nil, r.name+", at the login"
		partnered = append(partnered, refusal)
	}
	t.Run("grant", func(t *testing.T) {
		conformance.TestProvider(t, conformance.Harness{
			New: func(transport http.RoundTripper) (brokerauth.Provider, error) {
				c := personal()
				c.Transport = transport
				return tastytrade.New(c)
			},
			Secrets: []string{secret, liveGrant}, Refusals: granted,
		})
	})
	t.Run("partner", func(t *testing.T) {
		conformance.TestProvider(t, conformance.Harness{
			New: func(transport http.RoundTripper) (brokerauth.Provider, error) {
				c := app()
				c.Transport = transport
				return tastytrade.NewPartner(c)
			},
			Secrets: []string{secret}, Refusals: partnered,
		})
	})
}

// TestHints has what depends on the settings.
func TestHints(t *testing.T) {
	const foreign = `{"error_code":"invalid_grant","error_description":"Invalid JWT"}`
	const customer = `{"error_code":"invalid_request","error_description":"User is not a TastyTrade customer"}`
	const forbidden = `{"error":{"code":"not_permitted","message":"no"}}`
	for _, test := range []struct {
		name    string
		grant   string
		sandbox bool
		status  int
		body    string
		kind    error
		hint    string
	}{
		{"live grant at the sandbox", liveGrant, true, 400, foreign, brokerauth.ErrRejected, "of the live environment, but these settings ask the sandbox one"},
		{"sandbox grant at the live one", sandboxGrant, false, 400, foreign, brokerauth.ErrRejected, "of the sandbox environment, but these settings ask the live one"},
		{"grant of nobody knows where", "opaque", true, 400, foreign, brokerauth.ErrRejected, "these settings ask the sandbox"},
		{"customer of the live one", liveGrant, false, 400, customer, brokerauth.ErrRejected, "account"},
		{"customer of the sandbox, which forgets", sandboxGrant, true, 400, customer, brokerauth.ErrUnavailable, "account"},
		{"scopes of the grant", liveGrant, false, 403, forbidden, brokerauth.ErrRejected, "the scopes here are: read trade"},
		{"other scopes", sandboxGrant, true, 403, forbidden, brokerauth.ErrRejected, "the scopes here are: read;"},
		{"no known scopes", "opaque", false, 403, forbidden, brokerauth.ErrRejected, "which of the scopes read, trade and openid"},
	} {
		c := tastytrade.Config{ClientSecret: secret, Grant: test.grant, Sandbox: test.sandbox}
		serve(t, &c, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(test.status)
			io.WriteString(w, test.body)
		})
		_, err := provider(t, c).Refresh(t.Context(), nil)
		var e *brokerauth.Error
		if !errors.As(err, &e) || e.Kind != test.kind || !strings.Contains(e.Hint, test.hint) {
			t.Errorf("%s: %v, want %v and %q", test.name, err, test.kind, test.hint)
		}
	}
}

type silent struct{}

func (silent) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

type refusing struct{}

func (refusing) RoundTrip(r *http.Request) (*http.Response, error) {
	return nil, errors.New("connection refused")
}

// TestSilence: an address that was blocked gets no answer at all.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, test := range []struct {
			transport http.RoundTripper
			blocked   bool
		}{{silent{}, true}, {refusing{}, false}} {
			c := personal()
			c.Transport = test.transport
			_, err := provider(t, c).Refresh(t.Context(), nil)
			var e *brokerauth.Error
			if !errors.Is(err, brokerauth.ErrUnavailable) || !errors.As(err, &e) || strings.Contains(e.Hint, "eight hours") != test.blocked {
				t.Errorf("%T: %v", test.transport, err)
			}
		}
	})
}

// FuzzToken: whatever an access token and a grant say of themselves, nothing but plain names of scopes is believed.
func FuzzToken(f *testing.F) {
	for _, s := range []string{
		`{"iss":"https://api.tastytrade.com","scope":"read trade"}`, `{"scope":7}`, `{"scope":"\u0000 <b> read"}`, `{"iss":"://"}`, `null`, ``, `[`,
		`{"scope":"` + strings.Repeat("read ", 100) + `"}`,
	} {
		f.Add(s)
	}
	plain := regexp.MustCompile(`^([a-z_:.]{1,32}( [a-z_:.]{1,32}){0,9})?$`)
	f.Fuzz(func(t *testing.T, payload string) {
		token := "emulated.e30." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".x"
		c := personal()
		c.Grant, c.Transport = token, answering{token}
		got, err := provider(t, c).Refresh(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if scope := got.Extra["scope"]; !plain.MatchString(scope) {
			t.Errorf("%q: scope %q", payload, scope)
		}
	})
}

type answering struct{ token string }

func (a answering) RoundTrip(r *http.Request) (*http.Response, error) {
	body := `{"access_token":"` + a.token + `","expires_in":900}`
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

func TestPrint(t *testing.T) {
	for _, c := range []tastytrade.Config{personal(), app()} {
		var p any
		if c.Grant != "" {
			p = provider(t, c)
		} else {
			p = partner(t, c)
		}
		j, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf("%v %+v %#v %q %s %x %v %+v %#v", c, c, c, c, &c, c, p, p, p) + string(j) + c.LogValue().String()
		if strings.Contains(text, secret) || strings.Contains(text, liveGrant) || strings.Count(text, "REDACTED(fp:") != 2*11 {
			t.Errorf("%s", text)
		}
	}
}
