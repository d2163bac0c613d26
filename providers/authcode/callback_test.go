package authcode_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/providers/authcode"
	"golang.org/x/oauth2"
)

// recording is a transport that keeps the codes that are sent.
func recording(codes *[]string) transport {
	return func(r *http.Request) (*http.Response, error) {
		r.ParseForm()
		*codes = append(*codes, r.Form.Get("code"))
		return answering(200, `{"access_token":"A"}`)(r)
	}
}

func TestCallback(t *testing.T) {
	const state = "the-state-of-this-login"
	var codes []string
	p := provider(t, config(recording(&codes)))
	login := &brokerauth.Login{RedirectURL: redirectURL, State: state, Secret: "the-verifier-of-this-login"}
	for _, test := range []struct {
		callback string
		code     string // empty: an error that says what
		says     string
	}{
		{redirectURL + "?code=C0.a-_b%40&session=5&state=" + state, "C0.a-_b@", ""},
		{redirectURL + "?state=" + state + "&code=C0.ab@", "C0.ab@", ""},
		{"  \r\n" + redirectURL + "?code=C0.ab%40&state=" + state + "\n", "C0.ab@", ""},
		{"HTTPS://127.0.0.1:8182/Callback?code=c&state=" + state, "c", ""},
		{"http://127.0.0.1:8182/Callback?code=c&state=" + state, "c", ""},
		{"127.0.0.1:8182/Callback?code=c&state=" + state, "c", ""},
		{"/Callback?code=c&state=" + state, "c", ""},
		{"?code=c&state=" + state, "c", ""},
		{"code=c&state=" + state, "c", ""},
		{"state=" + state + "&code=c", "c", ""},
		{"code=c&iss=https://issuer.example.com&state=" + state, "c", ""},
		{redirectURL + "?code=c&state=" + state + "#_=_", "c", ""},
		{redirectURL + "?code=c%2540&state=" + state, "c%40", ""},
		{redirectURL + "?code=a+b%2Bc%2F&state=" + state, "a+b+c/", ""},
		{redirectURL + "?code=c&junk=%zz&state=" + state, "c", ""},
		{redirectURL + "?code=c&x=1;2&state=" + state, "c", ""},
		{redirectURL + "?code=c&iss=https%3A%2F%2Fissuer.example.com&state=" + state, "c", ""},
		{"C0.ab%40", "C0.ab@", ""},
		{"C0.ab@", "C0.ab@", ""},
		{"a+b/c==", "a+b/c==", ""},
		{"C0.ab%40&session=5&state=" + state, "C0.ab@", ""},

		{"", "", "empty"},
		{" \n ", "", "empty"},
		{strings.Repeat("c", 20<<10), "", "too long"},
		{redirectURL, "", "no code"},
		{"127.0.0.1:8182/Callback", "", "no code"},
		{redirectURL + "?session=5&state=" + state, "", "no code"},
		{redirectURL + "?code=&state=" + state, "", "empty code"},
		{redirectURL + "?code=a&code=b&state=" + state, "", "more than one code"},
		{redirectURL + "?code=a&state=x&state=" + state, "", "more than one state"},
		{redirectURL + "?code=C0.ab%4&state=" + state, "", "damaged"},
		{redirectURL + "?code=c", "", "no state"},
		{"code=c", "", "no state"},
		{redirectURL + "?code=c&state=" + state + "x", "", "another login"},
		{redirectURL + "?code=c&state=" + state[1:], "", "another login"},
		{redirectURL + "?error=access_denied&state=other", "", "another login"},
		{"C0.ab%40&session=5&state=other", "", "another login"},
		{redirectURL + "?code=c&iss=https%3A%2F%2Fevil.example&state=" + state, "", "another broker"},
		{redirectURL + "?code=c&iss=&state=" + state, "", "another broker"},
		{"https://127.0.0.1:8183/Callback?code=c&state=" + state, "", "127.0.0.1:8183"},
		{"https://127.0.0.1/Callback?code=c&state=" + state, "", "not to the callback"},
		{"https://127.0.0.1:8182/callback?code=c&state=" + state, "", "not to the callback"},
		{"https://127.0.0.1:8182/Callback/?code=c&state=" + state, "", "not to the callback"},
		{"https://evil.example:8182/Callback?code=c&state=" + state, "", "evil.example"},
		{"/other?code=c&state=" + state, "", "not to the callback"},
		{"https://login.example.com/auth?client_id=x&state=" + state, "", "login page"},
		{"https://sso.example.com/login?next=%2Fauth", "", "sso.example.com"},
		{"https://[::1?code=c", "", "cannot be read"},
		{redirectURL + "?code=C0.\nab%40&state=" + state, "", "white space"},
		{redirectURL + "?code=C0.ab%00&state=" + state, "", "character"},
		{redirectURL + "?code=C0.ab%20c&state=" + state, "", "character"},
		{"a code", "", "white space"},
		{"ab%4", "", "neither"},
		{"ab%00", "", "neither"},
		{"a/://b", "", "neither"},
		{"käse", "", "neither"},
	} {
		codes = nil
		_, err := p.Complete(t.Context(), login, test.callback)
		switch {
		case test.code != "":
			if err != nil || len(codes) != 1 || codes[0] != test.code {
				t.Errorf("%q: sent %q, error %v; want %q", test.callback, codes, err, test.code)
			}
		case err == nil || len(codes) != 0:
			t.Errorf("%q: sent %q, want an error", test.callback, codes)
		default:
			e := brokerError(t, err)
			if !strings.Contains(err.Error(), test.says) || e.Hint == "" || e.Kind != nil || e.Op != "login" {
				t.Errorf("%q: %v (kind %v); want one that says %q", test.callback, err, e.Kind, test.says)
			}
			if strings.Contains(err.Error(), state) || strings.Contains(err.Error(), "C0.ab") {
				t.Errorf("%q: the error shows a secret: %v", test.callback, err)
			}
		}
	}
}

// TestCallbackPorts: a port that goes without saying may be said.
func TestCallbackPorts(t *testing.T) {
	for redirect, callback := range map[string]string{
		"https://127.0.0.1":         "https://127.0.0.1:443/?code=c&state=s",
		"https://127.0.0.1:443/":    "https://127.0.0.1?code=c&state=s",
		"http://127.0.0.1":          "https://127.0.0.1/?code=c&state=s",
		"https://example.com/a?b=c": "https://EXAMPLE.com/a?b=c&code=c&state=s",
		"app.example:/back":         "code=c&state=s",
	} {
		var codes []string
		c := config(recording(&codes))
		c.RedirectURL = redirect
		login := &brokerauth.Login{RedirectURL: redirect, State: "s", Secret: "v"}
		if _, err := provider(t, c).Complete(t.Context(), login, callback); err != nil || len(codes) != 1 {
			t.Errorf("%s at %s: sent %q, %v", callback, redirect, codes, err)
		}
	}
}

// TestBareCode: a bare code is taken only where something binds it to the login.
func TestBareCode(t *testing.T) {
	for _, test := range []struct {
		pkce, secret, want bool
	}{{true, true, true}, {true, false, true}, {false, true, true}, {false, false, false}} {
		var codes []string
		c := config(recording(&codes))
		c.PKCE, c.AuthStyle = test.pkce, oauth2.AuthStyleInParams
		if !test.secret {
			c.ClientSecret = ""
		}
		p := provider(t, c)
		_, err := p.Complete(t.Context(), begin(t, p), "c")
		if (err == nil) != test.want || (len(codes) == 1) != test.want {
			t.Errorf("PKCE %v, secret %v: sent %q, %v", test.pkce, test.secret, codes, err)
		}
	}
}

// TestBareCodeShape: where the broker's codes are known by their form, nothing else that was pasted goes to it.
func TestBareCodeShape(t *testing.T) {
	var codes []string
	c := config(recording(&codes))
	c.BareCode = func(code string) bool { return strings.HasPrefix(code, "C0.") }
	p := provider(t, c)
	for callback, want := range map[string]string{
		"C0.ab%40": "C0.ab@", "hunter2": "", "hello%20world": "", "%430.a": "C0.a",
	} {
		codes = nil
		_, err := p.Complete(t.Context(), begin(t, p), callback)
		if want != "" {
			if err != nil || len(codes) != 1 || codes[0] != want {
				t.Errorf("%q: sent %q, %v; want %q", callback, codes, err, want)
			}
			continue
		}
		// Kind nil: the flow asks again.
		if e := brokerError(t, err); len(codes) > 0 || e.Kind != nil || e.Hint == "" || strings.Contains(err.Error(), callback) {
			t.Errorf("%q: sent %q, %v", callback, codes, err)
		}
	}
	// The whole address says by itself what it is.
	codes = nil
	login := begin(t, p)
	if _, err := p.Complete(t.Context(), login, redirectURL+"?code=other&state="+login.State); err != nil || len(codes) != 1 {
		t.Errorf("a whole address: sent %q, %v", codes, err)
	}
}

func TestForeignLogin(t *testing.T) {
	var codes []string
	p := provider(t, config(recording(&codes)))
	for _, login := range []*brokerauth.Login{nil, {}, {RedirectURL: redirectURL, State: "s"}} {
		if _, err := p.Complete(t.Context(), login, redirectURL+"?code=c&state=s"); err == nil || len(codes) > 0 {
			t.Errorf("Complete of %v: sent %q, %v", login, codes, err)
		}
	}
}

func TestDeclined(t *testing.T) {
	var codes []string
	p := provider(t, config(recording(&codes)))
	login := begin(t, p)
	for _, test := range []struct {
		query string
		kind  error
		code  string
		text  string
	}{
		{"error=access_denied&error_description=The+user%0Asaid+no", brokerauth.ErrLoginRequired, "access_denied", "The user said no"},
		{"error=access_denied&code=c", brokerauth.ErrLoginRequired, "access_denied", ""},
		{"error=unauthorized_client", brokerauth.ErrRejected, "unauthorized_client", ""},
		{"error=invalid_scope", brokerauth.ErrRejected, "invalid_scope", ""},
		{"error=temporarily_unavailable", brokerauth.ErrUnavailable, "temporarily_unavailable", ""},
		{"error=server_error&error_description=" + login.Secret, brokerauth.ErrUnavailable, "server_error", "REDACTED"},
	} {
		for _, state := range []string{"", "&state=" + login.State} {
			_, err := p.Complete(t.Context(), login, redirectURL+"?"+test.query+state)
			e := brokerError(t, err)
			if !errors.Is(err, test.kind) || e.Code != test.code || e.Description != test.text || e.Hint == "" || len(codes) > 0 {
				t.Errorf("%s: %#v", test.query, e)
			}
		}
	}
}

func FuzzCallback(f *testing.F) {
	const state, verifier = "the-state-of-this-login", "the-verifier-of-this-login"
	for _, s := range []string{
		"", "C0.ab%40", "code=c&state=" + state, redirectURL + "?code=C0.ab%40&session=5&state=" + state, "https://[::1?code=c",
		"/Callback?code=c", "?error=access_denied&error_description=" + verifier, "127.0.0.1:8182/Callback?code=%zz", "a&b", "%", "0/://",
		"https://login.example.com/auth?client_id=x", redirectURL + "?code=c&state=x&error=" + verifier,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, callback string) {
		var codes []string
		c := config(recording(&codes))
		p, err := authcode.New(c)
		if err != nil {
			t.Fatal(err)
		}
		login := &brokerauth.Login{RedirectURL: redirectURL, State: state, Secret: verifier}
		token, err := p.Complete(t.Context(), login, callback)
		switch {
		case err == nil && (token == nil || len(codes) != 1 || codes[0] == ""):
			t.Errorf("%q: token %v, sent %q", callback, token, codes)
		case err != nil && len(codes) != 0:
			t.Errorf("%q: sent %q, then %v", callback, codes, err)
		case err != nil && (strings.Contains(err.Error(), verifier) || strings.Contains(err.Error(), state)):
			t.Errorf("%q: the error shows a secret: %v", callback, err)
		}
		if err == nil && strings.Contains(callback, "://") && !strings.Contains(callback, state) {
			// Any spelling of the state is this one: it has no character that needs an escape, but may have one.
			if !strings.Contains(callback, "%") {
				t.Errorf("%q: the code was sent without the state", callback)
			}
		}
	})
}
