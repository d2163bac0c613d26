package tdameritrade_test

import (
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
	"github.com/brokerauth/brokerauth/providers/tdameritrade"
)

const (
	key      = "Q1W2E3R4T5Y6U7I8"
	callback = "http://localhost:8080/Back"
	base     = "https://broker.example.com"
)

func config() tdameritrade.Config {
	return tdameritrade.Config{ClientID: key, CallbackURL: callback, BaseURL: base}
}

func provider(t *testing.T, c tdameritrade.Config) brokerauth.LoginProvider {
	t.Helper()
	p, err := tdameritrade.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// at serves h over TLS, as the broker.
func at(t *testing.T, h http.HandlerFunc) brokerauth.LoginProvider {
	server := httptest.NewTLSServer(h)
	t.Cleanup(server.Close)
	c := config()
	c.BaseURL, c.Transport = server.URL, server.Client().Transport
	return provider(t, c)
}

// TestLogin logs in and renews, at TD Ameritrade's paths and with its shapes.
func TestLogin(t *testing.T) {
	var forms []url.Values
	answers := []string{
		`{"access_token":"A/1+=","refresh_token":"R/1+=","token_type":"Bearer","expires_in":1800,"scope":"PlaceTrades AccountAccess MoveMoney","refresh_token_expires_in":7776000}`,
		`{"access_token":"A2","token_type":"Bearer","expires_in":1800,"scope":"PlaceTrades AccountAccess MoveMoney"}`,
		`{"access_token":"A3","refresh_token":"R3","token_type":"Bearer","expires_in":1800,"scope":"PlaceTrades AccountAccess MoveMoney","refresh_token_expires_in":7776000}`,
		`{"access_token":"A4","token_type":"Bearer","expires_in":1800}`,
		`{"access_token":"A5","refresh_token":"R5","token_type":"Bearer","expires_in":1800}`,
	}
	p := at(t, func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		if r.Method != "POST" || r.URL.Path != "/v1/oauth2/token" || r.Header.Get("Authorization") != "" {
			t.Errorf("%s %s with %q", r.Method, r.URL, r.Header.Get("Authorization"))
		}
		io.WriteString(w, answers[len(forms)])
		forms = append(forms, r.PostForm)
	})
	login, err := p.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	page, err := url.Parse(login.URL)
	if err != nil {
		t.Fatal(err)
	}
	id := key + "@AMER.OAUTHAP"
	if diff := cmp.Diff(url.Values{
		"client_id": {id}, "redirect_uri": {callback}, "response_type": {"code"}, "state": {login.State},
	}, page.Query()); diff != "" || page.Path != "/auth" {
		t.Errorf("login page %s, parameters (-want +got):\n%s", page.Path, diff)
	}
	// The browser has turned http into https, and the code is the documentation's sample.
	token, err := p.Complete(t.Context(), login, "https://localhost:8080/Back?code=03%40A%2FB&state="+login.State)
	if err != nil {
		t.Fatal(err)
	}
	if token.RefreshToken != "R/1+=" || token.Extra["scope"] != "PlaceTrades AccountAccess MoveMoney" || token.Expiry.Sub(token.Issued) != 30*time.Minute ||
		!token.LoggedInAt.Equal(token.Issued) || token.LoginBy.Sub(token.LoggedInAt) != 90*24*time.Hour {
		t.Errorf("token %v of %v", token, token.LoggedInAt)
	}
	want := []url.Values{{
		"grant_type": {"authorization_code"}, "code": {"03@A/B"}, "redirect_uri": {callback}, "client_id": {id}, "access_type": {"offline"},
	}}

	plain := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {"R/1+="}, "client_id": {id}}
	offline := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {"R/1+="}, "client_id": {id}, "access_type": {"offline"}}
	now := time.Now()
	for _, test := range []struct {
		loginBy time.Time
		form    url.Values
		refresh string
		renewed bool
	}{
		{now.Add(5*24*time.Hour + time.Minute), plain, "R/1+=", false},
		{now.Add(5 * 24 * time.Hour), offline, "R3", true},
		{now.Add(-24 * time.Hour), offline, "R/1+=", false}, // a reply without a refresh token
		{time.Time{}, offline, "R5", true},                  // unknown
	} {
		old := token.Clone()
		old.LoginBy = test.loginBy
		renewed, err := p.Refresh(t.Context(), old)
		if err != nil {
			t.Fatal(err)
		}
		if renewed.RefreshToken != test.refresh || !renewed.LoggedInAt.Equal(token.LoggedInAt) {
			t.Errorf("log in by %v: refresh token %q, logged in %v", test.loginBy, renewed.RefreshToken, renewed.LoggedInAt)
		}
		until := test.loginBy
		if test.renewed {
			until = renewed.Issued.Add(90 * 24 * time.Hour)
		}
		if !renewed.LoginBy.Equal(until) {
			t.Errorf("log in by %v: now by %v, want %v", test.loginBy, renewed.LoginBy, until)
		}
		want = append(want, test.form)
	}
	if diff := cmp.Diff(want, forms); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestInfo(t *testing.T) {
	c := config()
	c.BaseURL = ""
	info := provider(t, c).Info()
	if diff := cmp.Diff(brokerauth.Info{
		Name: "tdameritrade", BaseURL: "https://api.tdameritrade.com", Origins: []string{"https://api.tdameritrade.com"}, Margin: 5 * time.Minute,
		Identity: info.Identity, Settings: info.Settings,
	}, info); diff != "" || info.Identity == "" {
		t.Errorf("Info (-want +got):\n%s", diff)
	}
	moved := provider(t, config()).Info()
	if moved.BaseURL != base || moved.Origins[0] != base || moved.Identity == info.Identity {
		t.Errorf("elsewhere: %+v", moved)
	}
}

// TestClientID has the one spelling of a client id, whatever the user's.
func TestClientID(t *testing.T) {
	identity := provider(t, config()).Info().Identity
	for _, id := range []string{key, key + "@AMER.OAUTHAP", key + "@amer.oauthap", key + "@Amer.OAuthAp", key + "@AMER.OAUTHAP@amer.OAUTHAP"} {
		c := config()
		c.ClientID = id
		p := provider(t, c)
		login, err := p.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		page, err := url.Parse(login.URL)
		if err != nil || page.Query().Get("client_id") != key+"@AMER.OAUTHAP" || p.Info().Identity != identity {
			t.Errorf("%s: the login page is told %q", id, page.Query().Get("client_id"))
		}
		if text := fmt.Sprintf("%v %+v %s", c, p, c.LogValue()); strings.Contains(strings.ToUpper(text), "OAUTHAP") {
			t.Errorf("%s is shown as %s", id, text)
		}
	}
	c := config()
	c.ClientID = strings.ToLower(key)
	if provider(t, c).Info().Identity == identity {
		t.Error("a key in another case is the same app")
	}
}

// maker is how tests make providers of configurations.
var maker = configtest.Maker[tdameritrade.Config]{
	New:      func(c tdameritrade.Config) (brokerauth.Provider, error) { return tdameritrade.New(c) },
	Callback: func(c tdameritrade.Config) string { return c.CallbackURL },
	Secrets:  func(tdameritrade.Config) []string { return nil },
	Prefix:   "tdameritrade: ",
}

func TestConfig(t *testing.T) {
	maker.Run(t, config(), []struct {
		Name   string
		Change func(*tdameritrade.Config)
		Faults int
		Says   string
	}{
		{"http to localhost", func(*tdameritrade.Config) {}, 0, ""},
		{"http to LOCALHOST", func(c *tdameritrade.Config) { c.CallbackURL = "http://LOCALHOST" }, 0, ""},
		{"http to 127.0.0.1", func(c *tdameritrade.Config) { c.CallbackURL = "http://127.0.0.1:8182/" }, 0, ""},
		{"http to ::1", func(c *tdameritrade.Config) { c.CallbackURL = "http://[::1]:8182/" }, 0, ""},
		{"https to localhost", func(c *tdameritrade.Config) { c.CallbackURL = "https://localhost" }, 0, ""},
		{"web app", func(c *tdameritrade.Config) { c.CallbackURL = "https://app.example.com/td" }, 0, ""},
		{"http elsewhere", func(c *tdameritrade.Config) { c.CallbackURL = "http://app.example.com/td" }, 1, "https"},
		{"http to what looks local", func(c *tdameritrade.Config) { c.CallbackURL = "http://localhost.example.com/td" }, 1, "https"},
		{"another scheme", func(c *tdameritrade.Config) { c.CallbackURL = "myapp://back" }, 1, "neither"},
		{"list", func(c *tdameritrade.Config) { c.CallbackURL += ",https://app.example.com" }, 1, "use one of them"},
		{"fragment", func(c *tdameritrade.Config) { c.CallbackURL += "#a" }, 1, "#"},
		{"no callback", func(c *tdameritrade.Config) { c.CallbackURL = "" }, 1, "missing"},
		{"no key", func(c *tdameritrade.Config) { c.ClientID = "" }, 1, "missing"},
		{"suffix only", func(c *tdameritrade.Config) { c.ClientID = "@amer.oauthap" }, 1, "consumer key"},
		{"another suffix", func(c *tdameritrade.Config) { c.ClientID = key + "@EMEA.OAUTHAP" }, 1, `"@EMEA.OAUTHAP"`},
		{"two suffixes", func(c *tdameritrade.Config) { c.ClientID = key + "@x@AMER.OAUTHAP" }, 1, `"@x"`},
		{"space in the key", func(c *tdameritrade.Config) { c.ClientID += " " }, 1, "client id"},
		{"base URL", func(c *tdameritrade.Config) { c.BaseURL = "http://broker.example.com" }, 1, "base URL"},
		{"all of it", func(c *tdameritrade.Config) {
			*c = tdameritrade.Config{ClientID: "a@b", CallbackURL: "http://example.com", BaseURL: "http://example.com"}
		}, 3, "base URL"},
	})
}

// FuzzConfig: New takes anything, and makes a whole provider or names faults.
func FuzzConfig(f *testing.F) {
	f.Add(key, callback, base)
	f.Add("", "", "")
	f.Add(key+"@EMEA.OAUTHAP", "http://example.com,https://example.com", "http://example.com")
	f.Add("@", "myapp://back", "https://user:pw@[::1]:x/?a#b")
	f.Fuzz(func(t *testing.T, id, callback, base string) {
		c := tdameritrade.Config{ClientID: id, CallbackURL: callback, BaseURL: base}
		if u, err := url.Parse(base); base == "" || err == nil && strings.HasSuffix(strings.ToLower(strings.TrimSuffix(u.Hostname(), ".")), "tdameritrade.com") {
			c.BaseURL = "http://127.0.0.1:1" // at the real one no login begins: see TestRetired
		}
		maker.Check(t, c)
	})
}

type noTransport struct{ t *testing.T }

func (n noTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	n.t.Errorf("a request was sent to %s", r.URL.Host)
	return nil, errors.New("no network")
}

// TestRetired: nothing is sent to a broker that is no more, and whoever asks learns where to go.
func TestRetired(t *testing.T) {
	for _, base := range []string{"", "https://api.tdameritrade.com", "https://API.TDAmeritrade.com./v1", "https://auth.tdameritrade.com"} {
		c := config()
		c.BaseURL, c.Transport = base, noTransport{t}
		p := provider(t, c)
		_, began := p.Begin(t.Context())
		_, completed := p.Complete(t.Context(), &brokerauth.Login{RedirectURL: callback, State: "s"}, callback+"?code=c&state=s")
		_, first := p.Refresh(t.Context(), nil)
		_, refreshed := p.Refresh(t.Context(), &brokerauth.Token{AccessToken: "A", RefreshToken: "R"})
		for op, err := range map[string]error{"begin": began, "complete": completed, "first refresh": first, "refresh": refreshed} {
			var e *brokerauth.Error
			if !errors.Is(err, brokerauth.ErrRejected) || !errors.As(err, &e) || e.Provider != "tdameritrade" {
				t.Errorf("%q: %s: %v", base, op, err)
				continue
			}
			for _, word := range []string{"May 2024", "brokerauth migrate", "docs/porting-td-to-schwab.md"} {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q: %s: %v does not name %q", base, op, err, word)
				}
			}
		}
	}
	for _, base := range []string{base, "https://nottdameritrade.com", "https://api.tdameritrade.com.example.org", "http://127.0.0.1:1"} {
		c := config()
		c.BaseURL = base
		if _, err := provider(t, c).Begin(t.Context()); err != nil {
			t.Errorf("%q: %v", base, err)
		}
	}
}

// TestProvider has the suite, with every refusal that is on record.
func TestProvider(t *testing.T) {
	login, rejected, passing := brokerauth.ErrLoginRequired, brokerauth.ErrRejected, brokerauth.ErrUnavailable
	var refusals []conformance.Refusal
	for _, r := range []struct {
		name   string
		op     string // empty: both
		status int
		body   string
		kind   error
		code   string
		hint   string // what it must not fail to name
	}{
		{"refused code", "login", 400, `{"error" : "invalid_grant"}`, login, "invalid_grant", "callback URL"},
		{"dead refresh token", "refresh", 400, `{"error" : "invalid_grant"}`, login, "invalid_grant", "log in again"},
		{"dead refresh token, other status", "refresh", 401, `{"error":"invalid_grant"}`, login, "invalid_grant", "log in again"},
		{"malformed request", "", 400, `{"error" : "invalid_request"}`, rejected, "invalid_request", "client id"},
		{"expired access token", "", 401, `{"error":"The access token being passed has expired or is invalid."}`, passing, "", "renewed"},
		{"no permission", "", 403, `{"error" : "You don't have permission to access this resource."}`, rejected, "", "account"},
		{"too often", "", 429, "\n\n   " + `{"error":"Individual App's transactions per seconds restriction reached. Please contact us with further questions"}`, passing, "", "minute"},
		{"unknown key", "", 500, `{"error":"InvalidApiKey"}`, passing, "InvalidApiKey", "client id"},
		{"login page", "", 200, `<html><body>A third-party application may be attempting to make unauthorized access to your account</body></html>`, passing, "", "callback URL"},
		{"internal error", "", 500, `{"error":"oops, no"}`, passing, "", "try again later"},
		{"unavailable", "", 503, ``, passing, "", "try again later"},
	} {
		refusals = append(refusals, conformance.Refusal{Name: r.name, Op: r.op, Status: r.status, Body: r.body, Kind: r.kind, Code: r.code,
			Says: []string{r.hint}})
	}
	conformance.TestProvider(t, conformance.Harness{
		New: func(transport http.RoundTripper) (brokerauth.Provider, error) {
			c := config()
			c.Transport = transport
			return tdameritrade.New(c)
		},
		Refusals: refusals,
	})
}

// TestRateWindow: whoever asked too often may ask again when the broker's minute is over.
func TestRateWindow(t *testing.T) {
	for status, want := range map[int]time.Duration{429: 42 * time.Second, 503: 0} {
		p := at(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", "Fri, 10 May 2024 12:00:18 GMT")
			w.WriteHeader(status)
		})
		_, err := p.Refresh(t.Context(), &brokerauth.Token{RefreshToken: "R", LoginBy: time.Now().Add(-time.Hour)})
		var e *brokerauth.Error
		if !errors.As(err, &e) || e.RetryAfter != want {
			t.Errorf("HTTP %d: %v, want to try again in %v", status, err, want)
		}
	}
}

// FuzzClientID: a client id is refused, or it is told to the broker with exactly one suffix.
func FuzzClientID(f *testing.F) {
	for _, id := range []string{key, key + "@AMER.OAUTHAP", "@", "a@b@AMER.OAUTHAP", "", "\x00", "ſ@AMER.OAUTHAP", "k@ÄMER.OAUTHAP", "x@AMER.OAUTHAP@"} {
		f.Add(id)
	}
	f.Fuzz(func(t *testing.T, id string) {
		c := config()
		c.ClientID = id
		p, err := tdameritrade.New(c)
		if err != nil {
			return
		}
		login, err := p.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		page, err := url.Parse(login.URL)
		if err != nil {
			t.Fatal(err)
		}
		sent := page.Query().Get("client_id")
		bare, ok := strings.CutSuffix(sent, "@AMER.OAUTHAP")
		if !ok || bare == "" || strings.Contains(bare, "@") || !strings.HasPrefix(id, bare) {
			t.Errorf("%q is sent as %q", id, sent)
		}
	})
}

func TestPrint(t *testing.T) {
	c := config()
	j, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("%v %+v %#v %q %s %x", c, c, c, c, &c, c) + string(j) + c.LogValue().String()
	if strings.Contains(text, key) || strings.Count(text, "REDACTED(fp:") != 8 {
		t.Errorf("%s", text)
	}
}
