package conformance

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/brokerauth/brokerauth"
)

func infoWhole(t *testing.T, s *scene) {
	a := s.play(t)
	info := a.p.Info()
	if info.Name == "" || strings.HasPrefix(info.Name, "~") {
		t.Errorf("Info().Name = %q, want the broker's name; a leading ~ is the library's own", info.Name)
	}
	if err := (brokerauth.Key{Provider: info.Name, Identity: info.Identity, Profile: strings.Repeat("p", 64)}).Validate(); err != nil {
		t.Errorf("Info() makes no key of a login: %v", err)
	}
	if fault := addressFault(info.BaseURL); fault != "" || strings.HasSuffix(info.BaseURL, "/") {
		t.Errorf("Info().BaseURL = %q %s, want an address without a slash at the end", info.BaseURL, fault)
	}
	if info.Settings == "" {
		t.Error("Info().Settings is empty, want a fingerprint of the settings, so that a refusal ends when they change")
	}
	if info.Margin < 0 {
		t.Errorf("Info().Margin = %v, want no negative time", info.Margin)
	}
	if !clean(info.Name + info.Identity + info.Settings + info.UserAgent) {
		t.Errorf("Info() = %+v, want printable characters only", info)
	}
	a.token()
	if again := a.p.Info(); !reflect.DeepEqual(info, again) {
		t.Errorf("Info() after a login = %+v, want what it was: %+v", again, info)
	}
	if other := a.another().Info(); !reflect.DeepEqual(info, other) {
		t.Errorf("Info() of another provider with the same settings = %+v, want %+v: else no program finds its login again", other, info)
	}
	a.mustTellNothing("Info()", fmt.Sprintf("%+v", info))
}

func originsSpelled(t *testing.T, s *scene) {
	info := s.play(t).p.Info()
	base, err := url.Parse(info.BaseURL)
	if err != nil {
		t.Fatalf("Info().BaseURL: %v", err)
	}
	reaches := false
	for _, origin := range info.Origins {
		scheme, host, _ := strings.Cut(origin, "://")
		name := strings.TrimPrefix(host, "*.")
		u, err := url.Parse(scheme + "://" + name)
		switch {
		case err != nil || u.Host == "" || u.Host != name || addressFault(u.String()) != "":
			t.Errorf("the origin %q is not a scheme, host and port, such as https://api.example.com", origin)
		case name != strings.ToLower(name) || scheme == "https" && u.Port() == "443" || scheme == "http" && u.Port() == "80":
			t.Errorf("the origin %q is spelled otherwise than requests are: want lower case, and no port that goes without saying", origin)
		case name != host && !strings.Contains(name, "."):
			t.Errorf("the origin %q stands for hosts of anybody", origin)
		}
		_, rest, below := strings.Cut(base.Host, ".")
		reaches = reaches || base.Scheme == scheme && (base.Host == host || below && name != host && rest == name)
	}
	if !reaches {
		t.Errorf("the token may not be sent to Info().BaseURL, %s: want it among Origins, %q", info.BaseURL, info.Origins)
	}
}

// addressFault says what is wrong with an address that secrets are sent to.
func addressFault(address string) string {
	u, err := url.Parse(address)
	switch {
	case err != nil || u.Host == "":
		return "is no address"
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "holds more than scheme, host, port and path"
	}
	return encryptionFault(u)
}

func encryptionFault(u *url.URL) string {
	ip := net.ParseIP(u.Hostname())
	if u.Scheme != "https" && (u.Scheme != "http" || u.Hostname() != "localhost" && !ip.IsLoopback()) {
		return "is not https, nor http to loopback"
	}
	return ""
}

func claims(t *testing.T, s *scene) {
	a := s.play(t)
	for name, want := range map[string]reflect.Type{
		"Begin": reflect.TypeFor[brokerauth.LoginProvider](), "Complete": reflect.TypeFor[brokerauth.LoginProvider](),
		"Elsewhere": reflect.TypeFor[interface{ Elsewhere(string) string }](),
	} {
		is := reflect.TypeOf(a.p)
		if _, ok := is.MethodByName(name); ok && !is.Implements(want) {
			t.Errorf("the provider has a method %s, but is no %v", name, want)
		}
	}
	if a.hasPage() {
		login := a.begin()
		token, err := a.complete(login, a.callback(login, theCode))
		a.mustIssue("the provider claims a login page", outcome{op: "login", token: token, err: err})
	}
	token := a.token()
	if len(a.sent()) == 0 {
		t.Error("the first token came without a request through the harness's transport")
	}
	for _, r := range a.sent() {
		if fault := encryptionFault(r.URL); fault != "" {
			t.Errorf("%s://%s, where secrets are sent, %s", r.URL.Scheme, r.URL.Host, fault)
		}
	}
	if !a.hasPage() && token.LoginBy != (time.Time{}) {
		t.Errorf("a login ends at %v, but the provider has no login page for the next", token.LoginBy)
	}
}

func refreshOfNothing(t *testing.T, s *scene) {
	a := s.play(t)
	token, err := a.refresh(nil)
	if !a.hasPage() {
		a.mustIssue("the grant stands in the settings", outcome{op: "refresh", token: token, err: err})
		return
	}
	e := a.refused("nobody has logged in", outcome{op: "refresh", token: token, err: err})
	if e != nil && e.Kind != brokerauth.ErrLoginRequired {
		t.Errorf("Refresh(nil): %v, want ErrLoginRequired", err)
	}
	if n := len(a.sent()); n > 0 {
		t.Errorf("Refresh(nil) sent %d requests, want none", n)
	}
}

func begins(t *testing.T, s *scene) {
	a := s.play(t)
	before := time.Now()
	login := a.begin()
	page, err := url.Parse(login.URL)
	if err != nil || page.Host == "" || encryptionFault(page) != "" {
		t.Fatalf("Login.URL is %q, want an https address, or http to loopback", login.URL)
	}
	if login.RedirectURL == "" {
		t.Error("Login.RedirectURL is empty, want the address that the broker sends the user back to")
	}
	if login.Key != (brokerauth.Key{}) {
		t.Errorf("Login.Key = %v, want none: it is the Session's", login.Key)
	}
	if login.Began.Before(before.Add(-time.Second)) || login.Began.After(time.Now().Add(time.Second)) {
		t.Errorf("Login.Began = %v, want now", login.Began)
	}
	if form := told(login.URL, append(slices.Clone(s.Secrets), login.Secret)); form != "" {
		t.Errorf("the login page's address tells a secret, %s", form)
	}
	if redirect := page.Query().Get("redirect_uri"); redirect != "" && redirect != login.RedirectURL {
		t.Errorf("the login page is told the redirect_uri %q, want %q to the letter", redirect, login.RedirectURL)
	}
}

func ownState(t *testing.T, s *scene) {
	a := s.play(t)
	one, two := a.begin(), a.begin()
	if one.State == "" {
		t.Skip("the broker has no state")
	}
	if one.State == two.State {
		t.Errorf("two logins have one state, %q", one.State)
	}
	if len(one.State) < 22 {
		t.Errorf("the state %q has %d characters, want 128 random bits at least, which is 22 in base64", one.State, len(one.State))
	}
	if !slices.Contains(slices.Concat(slices.Collect(maps.Values(queryOf(one.URL)))...), one.State) {
		t.Error("the login page's address does not hold the state, so it cannot come back")
	}
	if one.Secret != "" && one.Secret == two.Secret {
		t.Error("two logins have one secret")
	}
}

func queryOf(address string) url.Values {
	u, err := url.Parse(address)
	if err != nil {
		return nil
	}
	return u.Query()
}

func challenge(t *testing.T, s *scene) {
	a := s.play(t)
	login := a.begin()
	query := queryOf(login.URL)
	if !query.Has("code_challenge") {
		t.Skip("the login page is sent no PKCE challenge")
	}
	sum := sha256.Sum256([]byte(login.Secret))
	if want := base64.RawURLEncoding.EncodeToString(sum[:]); query.Get("code_challenge") != want || query.Get("code_challenge_method") != "S256" {
		t.Errorf("the challenge is %q by %q, want %q by S256, of Login.Secret", query.Get("code_challenge"), query.Get("code_challenge_method"), want)
	}
	if len(login.Secret) < 43 {
		t.Errorf("the verifier has %d characters, want 43 at least", len(login.Secret))
	}
	a.perform(a.stage.granting(nil))
	if _, err := a.complete(login, a.callback(login, theCode)); err != nil {
		t.Fatalf("Complete: %v", err)
	}
	a.mustExchange(login)
}

// mustExchange fails the check unless the code was sent, once, and with it what binds it to login.
func (a *play) mustExchange(login *brokerauth.Login) {
	a.t.Helper()
	n := 0
	for _, r := range a.sent() {
		if !r.says(theCode) {
			continue
		}
		n++
		if fault := encryptionFault(r.URL); fault != "" {
			a.t.Errorf("%s://%s, where the code is sent, %s", r.URL.Scheme, r.URL.Host, fault)
		}
		if queryOf(login.URL).Has("code_challenge") && !r.says(login.Secret) {
			a.t.Error("the code is sent without the verifier of the challenge")
		}
		if queryOf(login.URL).Has("redirect_uri") && !r.says(login.RedirectURL) {
			a.t.Errorf("the code is sent without the redirect URL %s, to the letter", login.RedirectURL)
		}
		if r.URL.RawQuery != "" && told(r.URL.RawQuery, []string{theCode}) != "" {
			a.t.Error("the code is sent in an address, which is logged on its way")
		}
	}
	if n != 1 {
		a.t.Errorf("the code %q was sent %d times, want once", theCode, n)
	}
}

func completes(t *testing.T, s *scene) {
	a := s.play(t)
	login := a.begin()
	a.perform(a.stage.granting(map[string]any{"access_token": "conformance-access-token", "refresh_token": "conformance-refresh-token"}))
	token, err := a.complete(login, a.callback(login, theCode))
	a.mustIssue("a consent", outcome{op: "login", token: token, err: err})
	if s.Callback == nil {
		a.mustExchange(login)
	}
	if s.Answer == nil && (token.AccessToken != "conformance-access-token" || token.RefreshToken != "conformance-refresh-token") {
		t.Errorf("the token is not what the broker issued")
	}
	if login.Key != (brokerauth.Key{}) {
		t.Error("Complete modified the login")
	}
	if token.LoggedInAt.IsZero() {
		t.Error("Token.LoggedInAt is zero after a login")
	}
}

func completesElsewhere(t *testing.T, s *scene) {
	a := s.play(t)
	login := a.begin()
	s.child(t, &task{Do: "complete", Login: login, Callback: a.callback(login, theCode)})
}

// callbacks of RFC 6749, or else the check is skipped: a harness has told of others.
func (a *play) standard() {
	a.t.Helper()
	if a.scene.Callback != nil {
		a.t.Skip("the broker's callback is not RFC 6749's")
	}
}

func decodedOnce(t *testing.T, s *scene) {
	a := s.play(t)
	a.pages()
	a.standard()
	escaped := url.QueryEscape(theCode)
	for name, spell := range map[string]func(l *brokerauth.Login) string{
		"with a further parameter": func(l *brokerauth.Login) string {
			return withQuery(l.RedirectURL, "session=5b0c&code="+escaped+"&state="+url.QueryEscape(l.State))
		},
		"with the state first": func(l *brokerauth.Login) string {
			return withQuery(l.RedirectURL, "state="+url.QueryEscape(l.State)+"&code="+escaped)
		},
		"with %20 and the like in lower case": func(l *brokerauth.Login) string {
			return withQuery(l.RedirectURL, "code="+strings.NewReplacer("%2B", "%2b", "%2F", "%2f", "%3D", "%3d").Replace(escaped)+"&state="+url.QueryEscape(l.State))
		},
	} {
		login := a.begin()
		if login.State == "" {
			name += ", and a state that nobody asked for"
		}
		a.perform(a.stage.granting(nil))
		token, err := a.complete(login, spell(login))
		if login.State == "" && err != nil {
			continue // it may look wrong
		}
		a.mustIssue("a callback "+name, outcome{op: "login", token: token, err: err})
		a.mustExchange(login)
	}
	// A bare code may be taken, where something else binds it to the login.
	login := a.begin()
	a.perform(a.stage.granting(nil))
	if token, err := a.complete(login, escaped); err != nil {
		a.mustBeUnsent("a bare code", outcome{op: "login", token: token, err: err})
	} else {
		a.mustExchange(login)
	}
}

func foreignCallback(t *testing.T, s *scene) {
	a := s.play(t)
	if a.begin().State == "" {
		t.Skip("the broker has no state")
	}
	for name, spell := range map[string]func(login, other *brokerauth.Login) string{
		"of another login":     func(_, other *brokerauth.Login) string { return a.callback(other, theCode) },
		"with a longer state":  func(l, _ *brokerauth.Login) string { return replaceState(a.callback(l, theCode), l.State, l.State+"x") },
		"with a shorter state": func(l, _ *brokerauth.Login) string { return replaceState(a.callback(l, theCode), l.State, l.State[1:]) },
		"with an empty state":  func(l, _ *brokerauth.Login) string { return replaceState(a.callback(l, theCode), l.State, "") },
		"with two states": func(l, other *brokerauth.Login) string {
			return replaceState(a.callback(l, theCode), l.State, l.State+"&state="+other.State)
		},
		"that declines, elsewhere": func(l, other *brokerauth.Login) string {
			return withQuery(l.RedirectURL, "error=access_denied&state="+url.QueryEscape(other.State))
		},
	} {
		login, other := a.begin(), a.begin()
		a.perform(a.stage.granting(nil))
		token, err := a.complete(login, spell(login, other))
		a.mustBeUnsent("a callback "+name, outcome{op: "login", token: token, err: err})
	}
}

func replaceState(callback, state, by string) string {
	return strings.Replace(callback, url.QueryEscape(state), by, 1)
}

func noCallback(t *testing.T, s *scene) {
	a := s.play(t)
	login := a.begin()
	right := a.callback(login, theCode)
	query := right[strings.IndexByte(right, '?')+1:]
	wrong := map[string]string{
		"nothing": "", "white space": " \t\n", "the login page's address": login.URL, "the callback without a query": login.RedirectURL,
		"another host's address": "https://conformance.invalid/?" + query, "a megabyte": strings.Repeat("c", 1<<20),
		"a script": "javascript:alert(1)?" + query, "another host's address without a query": "https://conformance.invalid",
	}
	if s.Callback == nil {
		state := "&state=" + url.QueryEscape(login.State)
		wrong["no code"] = withQuery(login.RedirectURL, "session=1"+state)
		wrong["an empty code"] = withQuery(login.RedirectURL, "code="+state)
		wrong["two codes"] = withQuery(login.RedirectURL, "code=a&code=b"+state)
		wrong["a code of two lines"] = withQuery(login.RedirectURL, "code=a%0d%0ab"+state)
		wrong["a code with a zero byte"] = withQuery(login.RedirectURL, "code=a%00b"+state)
	}
	for name, callback := range wrong {
		a.perform(a.stage.granting(nil))
		token, err := a.complete(login, callback)
		a.mustBeUnsent(name, outcome{op: "login", token: token, err: err})
	}
	for name, login := range map[string]*brokerauth.Login{"no login": nil, "an empty login": {}} {
		a.perform(a.stage.granting(nil))
		token, err := a.complete(login, right)
		if len(a.sent()) > 0 || err == nil {
			t.Errorf("%s: Complete = %v, %v after %d requests, want an error and none", name, token, err, len(a.sent()))
		}
	}
	// None of it has spoiled the login.
	a.perform(a.stage.granting(nil))
	token, err := a.complete(login, right)
	a.mustIssue("the right callback after wrong ones", outcome{op: "login", token: token, err: err})
}

func declined(t *testing.T, s *scene) {
	a := s.play(t)
	a.pages()
	a.standard()
	for code, want := range map[string]error{
		"access_denied": brokerauth.ErrLoginRequired, "temporarily_unavailable": brokerauth.ErrUnavailable, "server_error": brokerauth.ErrUnavailable,
	} {
		login := a.begin()
		a.perform(a.stage.granting(nil))
		query := "error=" + code + "&error_description=by%1b%5b31mthe+user%0d%0a" + url.QueryEscape(login.Secret)
		if login.State != "" {
			query += "&state=" + url.QueryEscape(login.State)
		}
		token, err := a.complete(login, withQuery(login.RedirectURL, query))
		e := a.refused(code, outcome{op: "login", login: login, token: token, err: err})
		if e == nil {
			continue
		}
		if e.Kind != want {
			t.Errorf("a callback with error=%s: %v, want %v", code, e, want)
		}
		if n := len(a.sent()); n > 0 {
			t.Errorf("a callback with error=%s: %d requests were sent, want none", code, n)
		}
		a.mustBeClean(code, err)
		a.mustTellNothing("the error for error="+code, err.Error())
	}
}

func refreshTokens(t *testing.T, s *scene) {
	a := s.play(t)
	for name, answer := range map[string]any{
		"no refresh token": absent, "an empty refresh token": "", "a null refresh token": nil, "the same refresh token": "same",
		"a new refresh token": "conformance-refresh-new", "a refresh token that is no text": 7,
	} {
		old := a.renewable()
		want := old.RefreshToken
		switch answer {
		case "same":
			answer = old.RefreshToken
		case "conformance-refresh-new":
			want = "conformance-refresh-new"
		}
		a.perform(a.stage.granting(map[string]any{"refresh_token": answer}))
		token, err := a.refresh(old)
		a.mustIssue("an answer with "+name, outcome{op: "refresh", token: token, err: err})
		if token.RefreshToken != want {
			t.Errorf("an answer with %s: the refresh token is %q, want %q", name, token.RefreshToken, want)
		}
		if token.AccessToken == old.AccessToken {
			t.Errorf("an answer with %s: the access token is the old one", name)
		}
		if !token.LoggedInAt.Equal(old.LoggedInAt) {
			t.Errorf("an answer with %s: LoggedInAt moved from %v to %v, but nobody logged in", name, old.LoggedInAt, token.LoggedInAt)
		}
	}
}

func noAccessToken(t *testing.T, s *scene) {
	a := s.play(t)
	answers := map[string]script{
		"nothing": always(200, ""), "null": always(200, "null"), "an empty object": always(200, "{}"), "a list": always(200, "[]"),
		"no content": always(204, ""), "half an object": always(200, `{"access_token":"conformance-cut`),
		"a page": always(200, "<html><title>Welcome</title></html>", "Content-Type", "text/html"),
	}
	for name, v := range map[string]any{"no access token": absent, "an empty access token": "", "a null access token": nil, "a number as access token": 17} {
		answers[name] = a.stage.granting(map[string]any{"access_token": v})
	}
	for name, s := range answers {
		a.each(s, func(o outcome) { a.mustBePassing("an answer with HTTP 2xx and "+name, o) })
	}
	if s.Answer == nil {
		a.each(a.stage.granting(map[string]any{"error": "invalid_grant"}), func(o outcome) {
			a.refused("an answer with HTTP 200 and an error beside the token", o)
		})
	}
}

func unfitTokens(t *testing.T, s *scene) {
	a := s.play(t)
	for _, field := range []string{"access_token", "refresh_token"} {
		for _, v := range []string{"conformance\r\nX-Other: y", "conformance\x00", "conformance token", "conformancé", "conformance\x7f"} {
			a.each(a.stage.granting(map[string]any{field: v}), func(o outcome) {
				a.mustBePassing(fmt.Sprintf("an answer with the %s %q", field, v), o)
			})
		}
	}
}

func lives(t *testing.T, s *scene) {
	a := s.play(t)
	number := func(text string) any { return json.RawMessage(text) }
	usual := time.Duration(-1) // of an answer that does not tell
	tells := true
	for _, test := range []struct {
		name string
		v    any
		want time.Duration // 0: any that makes sense
	}{
		{"none", absent, 0}, {"a number", 1800, life}, {"a text", "1800", life}, {"a fraction", number("1800.0"), life}, {"a fraction in a text", "1800.0", life},
		{"a huge number", number("99999999999999999999"), 0}, {"a huge text", "99999999999999999999", 0}, {"more than a number can be", number("1e400"), 0},
		{"a power of ten", number("1e300"), 0}, {"a negative number", -5, 0}, {"a hugely negative number", number("-1e300"), 0}, {"zero", 0, 0},
		{"null", nil, 0}, {"words", "soon", 0}, {"an infinity", "Inf", 0}, {"no number", "NaN", 0}, {"an object", map[string]any{"a": 1}, 0},
	} {
		a.each(a.stage.granting(map[string]any{"expires_in": test.v}), func(o outcome) {
			what := "an answer whose expires_in is " + test.name
			token := a.mustIssue(what, o)
			got := time.Duration(0)
			if !token.Expiry.IsZero() {
				got = token.Expiry.Sub(token.Issued)
			}
			if test.v == any(absent) && usual < 0 {
				usual = got
			}
			if s.Answer != nil && test.v == any(1800) && got != life {
				tells = false // not at this broker
			}
			if tells && test.want > 0 && got != test.want {
				t.Errorf("%s: after %s the access token lives for %v, want %v", what, o.op, got, test.want)
			}
			if got < 0 || got > 20*365*24*time.Hour || got == 0 && (usual > 0 || !token.Expiry.IsZero()) {
				t.Errorf("%s: after %s the access token lives for %v, until %v, want a time that makes sense", what, o.op, got, token.Expiry)
			}
		})
	}
}

func contentTypes(t *testing.T, s *scene) {
	a := s.play(t)
	for _, contentType := range []string{"", "text/plain", "text/html; charset=utf-8", "application/json; charset=UTF-8", "x", "application/octet-stream"} {
		a.each(func(r *sent) (*http.Response, error) {
			resp, err := a.stage.granting(nil)(r)
			resp.Header.Set("Content-Type", contentType)
			if contentType == "" {
				resp.Header.Del("Content-Type")
			}
			return resp, err
		}, func(o outcome) { a.mustIssue(fmt.Sprintf("a token whose content type is %q", contentType), o) })
	}
}

func oldUnmodified(t *testing.T, s *scene) {
	a := s.play(t)
	for name, answer := range map[string]script{
		"a new token":   a.stage.granting(map[string]any{"scope": "conformance-other"}),
		"a refusal":     always(400, `{"error":"invalid_grant"}`),
		"no answer":     func(*sent) (*http.Response, error) { return nil, io.ErrUnexpectedEOF },
		"another shape": a.stage.granting(map[string]any{"refresh_token": absent, "expires_in": absent, "token_type": "bearer"}),
	} {
		old := a.renewable()
		if old.Extra == nil {
			old.Extra = make(map[string]string)
		}
		old.Extra["conformance"] = "as it was"
		before := old.Clone()
		a.perform(answer)
		token, err := a.refresh(old)
		if !reflect.DeepEqual(old, before) {
			t.Errorf("%s: Refresh modified the old token: it is %v with %v, want %v with %v", name, old, old.Extra, before, before.Extra)
		}
		if token == old {
			t.Errorf("%s: Refresh returned the old token and the error %v", name, err)
		}
	}
}

func clocks(t *testing.T, s *scene) {
	synctest.Test(t, func(t *testing.T) {
		a := s.play(t)
		a.bubble = true
		slow := func(r *sent) (*http.Response, error) {
			time.Sleep(7 * time.Second)
			resp, err := a.stage.granting(nil)(r)
			resp.Header.Set("Date", "Fri, 10 May 2024 12:00:18 GMT") // the broker's clock is wrong
			return resp, err
		}
		loggedIn := time.Time{}
		a.each(slow, func(o outcome) {
			token := a.mustIssue("a slow broker whose clock is wrong", o)
			asked := o.sent[len(o.sent)-1].at
			if token.Issued.Before(o.before) || token.Issued.After(asked) {
				t.Errorf("%s: Issued is %v after the request was sent, want the time before: what the broker counts from", o.op, token.Issued.Sub(asked))
			}
			if lives := token.Expiry.Sub(token.Issued); s.Answer == nil && lives != life {
				t.Errorf("%s: the access token lives for %v after Issued, want %v", o.op, lives, life)
			}
			if o.op == "login" {
				if loggedIn = token.LoggedInAt; loggedIn.Before(o.login.Began) || loggedIn.After(time.Now()) {
					t.Errorf("LoggedInAt is %v, want a time between Begin and now", loggedIn)
				}
			} else if !token.LoggedInAt.Equal(o.old.LoggedInAt) {
				t.Errorf("a refresh moved LoggedInAt from %v to %v", o.old.LoggedInAt, token.LoggedInAt)
			}
			if !token.LoginBy.IsZero() && !token.LoginBy.After(token.LoggedInAt) {
				t.Errorf("%s: LoginBy, %v, is not after LoggedInAt, %v", o.op, token.LoginBy, token.LoggedInAt)
			}
		})
		// A login that is old already.
		old := a.renewable()
		old.LoggedInAt, old.Issued, old.Expiry = old.LoggedInAt.Add(-time.Hour), old.Issued.Add(-time.Hour), old.Issued.Add(-time.Minute)
		token, err := a.refresh(old)
		a.mustIssue("a token that has expired", outcome{op: "refresh", token: token, err: err})
		if !token.LoggedInAt.Equal(old.LoggedInAt) {
			t.Errorf("a refresh moved LoggedInAt from %v to %v", old.LoggedInAt, token.LoggedInAt)
		}
	})
}

// trouble is what a broker may do instead of answering.
func trouble() map[string]script {
	return map[string]script{
		"a connection that ends":      func(*sent) (*http.Response, error) { return nil, io.ErrUnexpectedEOF },
		"an answer that ends halfway": cut,
		"HTTP 400":                    always(400, `{"error":"invalid_grant"}`),
		"HTTP 401":                    always(401, `{"error":"invalid_client"}`, "WWW-Authenticate", "Basic"),
		"HTTP 429":                    always(429, ""),
		"HTTP 500":                    always(500, "{}"),
		"HTTP 503":                    always(503, "", "Retry-After", "0"),
		"a token that is none":        always(200, "{}"),
	}
}

func cut(*sent) (*http.Response, error) {
	resp := reply(200, "")
	resp.ContentLength = 500
	resp.Body = io.NopCloser(io.MultiReader(strings.NewReader(`{"access_token":"conformance`), errorReader{io.ErrUnexpectedEOF}))
	return resp, nil
}

type errorReader struct{ err error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.err }

func sentOnce(t *testing.T, s *scene) {
	a := s.play(t)
	answers := trouble()
	answers["a token"] = a.stage.granting(nil)
	for name, answer := range answers {
		a.each(answer, func(o outcome) {
			n := 0
			for i, r := range o.sent {
				same := slices.ContainsFunc(o.sent[:i], func(q *sent) bool { return q.URL.String() == r.URL.String() && q.body == r.body })
				if same || r.says(o.spent) {
					n++
				}
			}
			if n > 1 {
				t.Errorf("%s: %s sent what can be spent once %d times, want once", name, o.op, n)
			}
		})
	}
}

func redirects(t *testing.T, s *scene) {
	a := s.play(t)
	for _, status := range []int{301, 302, 303, 307, 308} {
		for _, elsewhere := range []bool{true, false} {
			answer := func(r *sent) (*http.Response, error) {
				to := *r.URL
				to.Path += "/conformance"
				if elsewhere {
					to.Host = "conformance.invalid"
				}
				to.RawQuery = r.body
				if strings.HasSuffix(r.URL.Path, "/conformance") {
					return a.stage.granting(nil)(r)
				}
				return reply(status, "", "Location", to.String()), nil
			}
			a.each(answer, func(o outcome) {
				what := fmt.Sprintf("HTTP %d", status)
				if slices.ContainsFunc(o.sent, func(r *sent) bool { return strings.HasSuffix(r.URL.Path, "/conformance") }) {
					t.Errorf("%s: %s followed a redirect, to wherever it leads, with what must go to the broker only", what, o.op)
					return
				}
				a.mustBePassing(what, o)
				if o.err != nil {
					a.mustTellNothing("the error for "+what, o.err.Error())
				}
			})
		}
	}
}

// maxRead is far more than any answer to a token call has. The library's own providers read 1 MiB.
const maxRead = 4 << 20

// endless is a body without an end, as far as a check can tell.
type endless struct {
	mu   sync.Mutex
	read int
}

func (e *endless) Read(b []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.read > 2*maxRead {
		return 0, io.EOF
	}
	for n := 0; n < len(b); {
		n += copy(b[n:], "                                                                ")
	}
	e.read += len(b)
	return len(b), nil
}

func bounded(t *testing.T, s *scene) {
	a := s.play(t)
	for _, status := range []int{200, 400, 500} {
		var body *endless
		answer := func(*sent) (*http.Response, error) {
			body = new(endless)
			resp := reply(status, "")
			resp.ContentLength, resp.Body = -1, io.NopCloser(body)
			return resp, nil
		}
		a.each(answer, func(o outcome) {
			what := fmt.Sprintf("HTTP %d and an answer without an end", status)
			a.mustBePassing(what, o)
			if body != nil && body.read > maxRead {
				t.Errorf("%s: %s read %d MiB, want a bound of %d MiB at most", what, o.op, body.read>>20, maxRead>>20)
			}
		})
	}
	if s.Answer == nil {
		a.each(a.stage.granting(map[string]any{"id_token": strings.Repeat("x", 256<<10)}), func(o outcome) {
			a.mustIssue("a token in an answer of 256 KiB", o)
		})
	}
}

func closed(t *testing.T, s *scene) {
	a := s.play(t)
	answers := trouble()
	answers["a token"] = a.stage.granting(nil)
	answers["a redirect"] = always(302, "", "Location", "https://conformance.invalid")
	for name, answer := range answers {
		a.each(answer, func(o outcome) {
			a.stage.mu.Lock()
			defer a.stage.mu.Unlock()
			if a.stage.open > 0 {
				t.Errorf("%s: %s leaves the answer open, and with it the connection", name, o.op)
				a.stage.open = 0
			}
		})
	}
}

// drip sends a byte a second until its request ends, or somebody has waited ten minutes.
type drip struct {
	ctx   context.Context
	until time.Time
}

func (d drip) Read(b []byte) (int, error) {
	select {
	case <-d.ctx.Done():
		return 0, d.ctx.Err()
	case <-time.After(time.Second):
	}
	if time.Now().After(d.until) {
		return 0, io.ErrUnexpectedEOF
	}
	return copy(b, " "), nil
}

func endsByItself(t *testing.T, s *scene) {
	synctest.Test(t, func(t *testing.T) {
		a := s.play(t)
		a.bubble = true
		for name, answer := range map[string]script{
			"a broker that does not answer": func(r *sent) (*http.Response, error) {
				select {
				case <-r.Context().Done():
					return nil, r.Context().Err()
				case <-time.After(10 * time.Minute):
					return nil, io.ErrUnexpectedEOF
				}
			},
			"an answer that drips": func(r *sent) (*http.Response, error) {
				resp := reply(200, "")
				resp.ContentLength, resp.Body = -1, io.NopCloser(drip{r.Context(), time.Now().Add(10 * time.Minute)})
				return resp, nil
			},
		} {
			a.each(answer, func(o outcome) {
				a.mustBePassing(name, o)
				if took := time.Since(o.before); took > 20*time.Second {
					t.Errorf("%s: %s ends after %v, want 20 seconds at most: others wait for it no longer", name, o.op, took)
				}
			})
		}
	})
}

func contextEnds(t *testing.T, s *scene) {
	a := s.play(t)
	late := min(5*time.Second, patience(t)/2)
	for _, op := range []string{"login", "refresh"} {
		var old *brokerauth.Token
		var login *brokerauth.Login
		call := func(ctx context.Context) (token *brokerauth.Token, err error) {
			a.do(op, func(context.Context) {
				if op == "login" {
					token, err = a.pages().Complete(ctx, login, a.callback(login, theCode))
				} else {
					token, err = a.p.Refresh(ctx, old)
				}
			})
			return token, err
		}
		if op == "login" {
			if !a.hasPage() {
				continue
			}
			login = a.begin()
		} else if old = a.token(); old.RefreshToken == "" {
			continue
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		a.perform(a.stage.granting(nil))
		if token, err := call(ended); !errors.Is(err, context.Canceled) || len(a.sent()) > 0 {
			t.Errorf("%s with an ended context = %v, %v, want context.Canceled, and nothing sent", op, token, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		a.perform(func(r *sent) (*http.Response, error) {
			cancel()
			select {
			case <-r.Context().Done():
				return nil, r.Context().Err()
			case <-time.After(late):
				return nil, errors.New("the broker waited long enough")
			}
		})
		if token, err := call(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%s whose context ends while the broker is asked = %v, %v, want context.Canceled, at once", op, token, err)
		}
	}
}

func contextsKept(t *testing.T, s *scene) {
	a := s.play(t)
	var old *brokerauth.Token
	call := func(what string, f func(ctx context.Context) error) {
		t.Helper()
		a.do(what, func(outer context.Context) {
			ctx, cancel := context.WithCancel(outer)
			defer cancel()
			if err := f(ctx); err != nil {
				t.Errorf("%s, after the contexts of earlier calls have ended: %v", what, err)
			}
		})
	}
	if p, ok := a.p.(brokerauth.LoginProvider); ok {
		var login *brokerauth.Login
		call("Begin", func(ctx context.Context) (err error) { login, err = p.Begin(ctx); return err })
		if login == nil {
			return
		}
		call("Complete", func(ctx context.Context) (err error) {
			old, err = p.Complete(ctx, login, a.callback(login, theCode))
			return err
		})
		if old == nil || old.RefreshToken == "" {
			return
		}
	}
	for range 2 {
		call("Refresh", func(ctx context.Context) (err error) { old, err = a.p.Refresh(ctx, old); return err })
	}
}

const page = "<html><head><title>Access Denied</title></head><body><h1>Access Denied</h1>invalid_grant</body></html>"

func passingTrouble(t *testing.T, s *scene) {
	a := s.play(t)
	for _, status := range []int{408, 429, 500, 502, 503, 504} {
		for _, body := range []string{"", `{"error":"invalid_grant"}`, `{"error":"invalid_client"}`, page} {
			a.each(always(status, body), func(o outcome) { a.mustBePassing(fmt.Sprintf("HTTP %d with %q", status, body), o) })
		}
	}
	for _, status := range []int{200, 400, 401, 403, 404} {
		a.each(always(status, page, "Content-Type", "text/html"), func(o outcome) {
			a.mustBePassing(fmt.Sprintf("HTTP %d with a page, which is a gateway's", status), o)
		})
	}
	for name, answer := range map[string]script{
		"a connection that ends": func(*sent) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }, "an answer that ends halfway": cut,
		"no such host": func(*sent) (*http.Response, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "conformance.invalid", IsNotFound: true}}
		},
	} {
		a.each(answer, func(o outcome) { a.mustBePassing(name, o) })
	}
}

func unknownRefusals(t *testing.T, s *scene) {
	a := s.play(t)
	for _, status := range []int{400, 401, 403, 404, 422} {
		for _, body := range []string{"", "No", "{}", `{"error":"conformance_unknown","error_description":"Nobody knows"}`, `{"message":"Nobody knows"}`, "\x00\xff"} {
			a.each(always(status, body), func(o outcome) { a.mustBePassing(fmt.Sprintf("HTTP %d with %q", status, body), o) })
		}
	}
}

func knownRefusals(t *testing.T, s *scene) {
	if s.Answer != nil {
		t.Skip("the broker's answers are not RFC 6749's")
	}
	a := s.play(t)
	for _, test := range []struct {
		status int
		code   string
		want   error
	}{
		{400, "invalid_grant", brokerauth.ErrLoginRequired}, {401, "invalid_client", brokerauth.ErrRejected}, {400, "unauthorized_client", brokerauth.ErrRejected},
	} {
		a.each(always(test.status, `{"error":"`+test.code+`"}`), func(o outcome) {
			want := test.want
			if !a.hasPage() {
				want = brokerauth.ErrRejected // nobody can log in
			}
			what := fmt.Sprintf("HTTP %d with %s", test.status, test.code)
			e := a.refused(what, o)
			if e == nil {
				return
			}
			if e.Kind != want {
				t.Errorf("%s: %s is %v, want %v: %v", what, o.op, e.Kind, want, e)
			}
			if e.Code != test.code || e.Status != test.status {
				t.Errorf("%s: %s: the error has the code %q and the status %d", what, o.op, e.Code, e.Status)
			}
		})
	}
}

func refusalsOnRecord(t *testing.T, s *scene) {
	for i, r := range s.Refusals {
		name := r.Name
		if name == "" {
			name = fmt.Sprintf("refusal %d", i+1)
		}
		t.Run(name, func(t *testing.T) {
			a := s.play(t)
			n := 0
			for _, op := range []string{"login", "refresh"} {
				if r.Op != "" && r.Op != op {
					continue
				}
				o, ok := a.ask(op, always(r.Status, r.Body))
				if !ok {
					continue
				}
				n++
				e := a.refused("the broker's own answer", o)
				if e == nil {
					continue
				}
				if r.Kind != nil && e.Kind != r.Kind {
					t.Errorf("%s is %v, want %v: %v", op, e.Kind, r.Kind, e)
				}
				if r.Code != "" && e.Code != r.Code {
					t.Errorf("%s has the code %q, want %q: %v", op, e.Code, r.Code, e)
				}
				if e.Status != r.Status {
					t.Errorf("%s has the status %d, want %d: %v", op, e.Status, r.Status, e)
				}
				for _, word := range r.Says {
					if !strings.Contains(e.Error(), word) {
						t.Errorf("%s does not say %q: %v", op, word, e)
					}
				}
				a.mustBeClean("the broker's own answer", e)
				a.mustTellNothing("the error", e.Error())
			}
			if n == 0 {
				t.Errorf("the provider makes no call that could be refused so: Op is %q", r.Op)
			}
		})
	}
}

func retryAfter(t *testing.T, s *scene) {
	a := s.play(t)
	const date = "Mon, 16 Nov 2026 14:00:00 GMT"
	for header, want := range map[string]time.Duration{"7": 7 * time.Second, "Mon, 16 Nov 2026 14:01:30 GMT": 90 * time.Second, "-5": -1, "soon": -1, "99999999999999999999": -1} {
		for _, status := range []int{429, 503} {
			a.each(always(status, "", "Retry-After", header, "Date", date), func(o outcome) {
				e := a.refused("Retry-After "+header, o)
				if e == nil {
					return
				}
				if want >= 0 && e.RetryAfter != want || e.RetryAfter < 0 || e.RetryAfter > 31*24*time.Hour {
					t.Errorf("HTTP %d with Retry-After %q: %s has RetryAfter %v, want %v, by the broker's clock, and never more than makes sense",
						status, header, o.op, e.RetryAfter, max(0, want))
				}
			})
		}
	}
}

// clean reports whether s is fit for a terminal and a log line.
func clean(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r == unicode.ReplacementChar || !unicode.IsPrint(r) })
}

func (a *play) mustBeClean(what string, err error) {
	a.t.Helper()
	texts := err.Error()
	var e *brokerauth.Error
	if errors.As(err, &e) {
		texts += e.Code + e.Description + e.Hint
	}
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		texts += inner.Error()
	}
	if !clean(texts) {
		a.t.Errorf("%s: the error holds characters that move a terminal's cursor or end a log's line: %q", what, err)
	}
	if len(texts) > 8<<10 {
		a.t.Errorf("%s: the error is %d bytes long, want a few hundred of the broker's words at most", what, len(texts))
	}
}

func cleaned(t *testing.T, s *scene) {
	a := s.play(t)
	nasty, _ := json.Marshal("a\x1b[2J\x1b]0;title\x07b\r\nc\u202ed\u0000e\u0085f\x7f" + strings.Repeat("Nobody knows. ", 1000))
	for _, status := range []int{200, 400, 401, 503} {
		for _, shape := range []string{
			`{"error":%s}`, `{"error":"conformance_unknown","error_description":%s}`, `{"message":%s}`, `{"errors":[{"title":%[1]s,"detail":%[1]s}]}`,
			`{"error_code":%s}`, `{"error":{"code":%[1]s,"message":%[1]s}}`, `<html><title>%s</title>`, `error=%s`, "%s",
		} {
			a.each(always(status, fmt.Sprintf(shape, nasty)), func(o outcome) {
				what := fmt.Sprintf("HTTP %d with %q", status, shape)
				if e := a.refused(what, o); e != nil {
					a.mustBeClean(what, o.err)
				}
			})
		}
	}
	a.each(func(*sent) (*http.Response, error) { return nil, errors.New("proxy says \x1b[31mno\r\nway") }, func(o outcome) {
		if e := a.refused("a transport's error", o); e != nil {
			a.mustBeClean("a transport's error", o.err)
		}
	})
}

func secretsKept(t *testing.T, s *scene) {
	s.play(t).tellAll()
	if t.Failed() {
		return
	}
	j := &task{Do: "tell"} // once more, where all that is printed and logged can be read
	out := s.child(t, j)
	if form := told(out, slices.Concat(s.Secrets, j.Secrets)); form != "" {
		t.Errorf("a print or log of the provider's tells a secret, %s:\n%.2000s", form, out)
	}
}

// tellAll looks at all that may be printed: the provider, and its errors when the broker, the network or the user say
// back what they were told.
func (a *play) tellAll() {
	a.token() // from here on the secrets are known
	look := func(what string, v any) {
		a.t.Helper()
		text := fmt.Sprintf("%v\n%+v\n%#v\n%q\n%s\n%v", v, v, v, v, v, slog.AnyValue(v).Resolve())
		if object, err := json.Marshal(v); err == nil {
			text += "\n" + string(object)
		}
		a.mustTellNothing(what, text)
	}
	look("the provider", a.p)
	tell := func(what string, err error) {
		a.t.Helper()
		if err == nil {
			return
		}
		look(what, err)
		var e *brokerauth.Error
		if errors.As(err, &e) {
			look(what, []string{e.Code, e.Description, e.Hint})
			for inner := e.Err; inner != nil; inner = errors.Unwrap(inner) {
				a.mustTellNothing(what, inner.Error())
			}
		}
	}
	// echo makes the broker say back each thing that it was told, or knows.
	echo := func(what string, answer func(said string, r *sent) (*http.Response, error)) {
		a.t.Helper()
		for i, more := 0, true; more && !a.t.Failed(); i++ {
			more = false
			a.each(func(r *sent) (*http.Response, error) {
				if all := slices.Concat(r.values(), r.headers(), a.scene.Secrets); i < len(all) {
					more = true
					return answer(all[i], r)
				}
				return reply(400, "{}"), nil
			}, func(o outcome) { tell("the error of "+o.op+" where "+what, o.err) })
		}
	}
	for _, shape := range []string{
		`{"error":%s}`, `{"error":"invalid_grant","error_description":%s}`, `{"message":%s}`, `{"errors":[{"title":%s}]}`, `{"error_code":%s}`,
	} {
		for _, status := range []int{400, 200} {
			echo(fmt.Sprintf("the broker says back what it was told, as HTTP %d and %s", status, shape), func(said string, _ *sent) (*http.Response, error) {
				text, _ := json.Marshal("got " + said + ", sorry")
				return reply(status, fmt.Sprintf(shape, text)), nil
			})
		}
	}
	echo("a page says back what it was told", func(said string, _ *sent) (*http.Response, error) {
		return reply(500, "<html><title>"+said+"</title></html>"), nil
	})
	echo("a redirect says back what it was told", func(said string, _ *sent) (*http.Response, error) {
		return reply(302, "", "Location", "https://conformance.invalid/?"+said), nil
	})
	echo("the network's error says what was sent", func(said string, r *sent) (*http.Response, error) {
		return nil, &url.Error{Op: "Post", URL: r.URL.String() + "?" + r.body, Err: errors.New("sent " + said)}
	})
	if !a.hasPage() {
		return
	}
	login := a.begin()
	right := a.callback(login, theCode)
	for _, callback := range []string{
		strings.Replace(right, login.RedirectURL, "https://conformance.invalid/", 1), right + "x", right + "&" + right, "x" + right,
		strings.TrimPrefix(right, "https://"), login.URL, theCode + " ", theCode[:20] + "\n" + theCode[20:], right + "%", right[:len(right)-1],
		withQuery(login.RedirectURL, "error="+url.QueryEscape(theCode)+"&error_description="+url.QueryEscape(login.State+" "+login.Secret)+"&state="+login.State),
	} {
		_, err := a.complete(login, callback)
		tell("the error of a callback that is none", err)
	}
}

func besideEachOther(t *testing.T, s *scene) {
	a := s.play(t)
	const n = 8
	pages, _ := a.p.(brokerauth.LoginProvider)
	base := a.token()
	spent := func(i int) string { return fmt.Sprintf("C0.conformance-beside-%d.b9@", i) }
	calls := func(i int) bool { return i < n && pages != nil || i >= n && base.RefreshToken != "" }
	want := 0
	for i := range 2 * n {
		if calls(i) {
			want++
		}
	}
	var asked atomic.Int64
	allAsked := make(chan struct{})
	// Each answer tells whose it is. None comes before all have asked, or much later: a provider may let one call wait for another.
	a.perform(func(r *sent) (*http.Response, error) {
		for i := range 2 * n {
			if r.says(spent(i)) {
				if asked.Add(1) == int64(want) {
					close(allAsked)
				}
				select {
				case <-allAsked:
				case <-time.After(50 * time.Millisecond):
				}
				return a.stage.granting(map[string]any{"access_token": fmt.Sprintf("conformance-for-%d.", i)})(r)
			}
		}
		return a.stage.granting(nil)(r)
	})
	errs := make([]error, 2*n)
	within(t, "calls beside each other", func(ctx context.Context) {
		var all sync.WaitGroup
		for i := range 2 * n {
			if !calls(i) {
				continue
			}
			all.Go(func() {
				a.p.Info()
				var token *brokerauth.Token
				var err error
				if i < n {
					var login *brokerauth.Login
					if login, err = pages.Begin(ctx); err == nil {
						token, err = pages.Complete(ctx, login, a.callback(login, spent(i)))
					}
				} else {
					old := base.Clone()
					old.RefreshToken = spent(i)
					token, err = a.p.Refresh(ctx, old)
				}
				switch {
				case err != nil:
					errs[i] = err
				case token == nil:
					errs[i] = errors.New("no token and no error")
				case strings.Contains(token.AccessToken, "conformance-for-") && !strings.Contains(token.AccessToken, fmt.Sprintf("-for-%d.", i)):
					errs[i] = fmt.Errorf("call %d got the token of another call", i)
				}
			})
		}
		all.Wait()
	})
	if err := errors.Join(errs...); err != nil {
		t.Errorf("calls beside each other: %v", err)
	}
}

func callsLeaveNone(t *testing.T, s *scene) {
	leaveNone(t, func(t *testing.T) {
		a := s.play(t)
		answers := trouble()
		answers["a token"] = a.stage.granting(nil)
		for _, answer := range answers {
			a.each(answer, func(outcome) {})
		}
	})
}

func elsewhere(t *testing.T, s *scene) {
	a := s.play(t)
	p, ok := a.p.(interface{ Elsewhere(address string) string })
	if !ok {
		t.Skip("the provider has no method Elsewhere")
	}
	for _, address := range []string{
		"", " ", "%", "://", "https://", "https://conformance.invalid/v1/accounts", a.p.Info().BaseURL, "https://[::1", "\x1b[31m", strings.Repeat("/", 64<<10),
		regexp.QuoteMeta("https://(a|b)*"),
	} {
		var answer string
		a.do("Elsewhere", func(context.Context) { answer = p.Elsewhere(address) })
		if !clean(answer) || len(answer) > 4<<10 {
			t.Errorf("Elsewhere(%.40q) = %.200q, want a line for people", address, answer)
		}
	}
	if answer := p.Elsewhere("https://conformance.invalid/v1/accounts"); answer != "" {
		t.Errorf("Elsewhere of an address that is nobody's = %q, want nothing", answer)
	}
}
