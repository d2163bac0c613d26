package conformance_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance"
	"github.com/brokerauth/brokerauth/providers/authcode"
)

const (
	appSecret = "the-secret-of-this-app-5f0d"
	appGrant  = "the-grant-of-this-app-9c1e"
	redirect  = "https://127.0.0.1:8182/back"
)

// sound is a broker with a login page that has most of what there is.
func sound() authcode.Config {
	return authcode.Config{
		Info: brokerauth.Info{
			Name: "suitebroker", BaseURL: "https://api.example.com/v1", Origins: []string{"https://api.example.com", "https://*.data.example.com"},
			Margin: time.Minute,
		},
		AuthURL: "https://login.example.com/auth", TokenURL: "https://api.example.com/v1/token",
		AuthStyle: oauth2.AuthStyleInParams, PKCE: true, AccessLife: 20 * time.Minute, LoginLife: 7 * 24 * time.Hour,
		ClientID: "the-app", ClientSecret: appSecret, RedirectURL: redirect,
		Elsewhere: func(address string) string {
			if strings.HasPrefix(address, "https://old.example.com/") {
				return "ask https://api.example.com/v1"
			}
			return ""
		},
	}
}

// onRecord are refusals of the sound broker.
var onRecord = []conformance.Refusal{
	{Name: "dead refresh token", Op: "refresh", Status: 400, Body: `{"error":"invalid_grant"}`, Kind: brokerauth.ErrLoginRequired, Code: "invalid_grant", Says: []string{"log in again"}},
	{Status: 401, Body: `{"error":"invalid_client","error_description":"no such app"}`, Says: []string{"no such app"}},
}

// harness is of the provider that change has made of the sound one.
func harness(change func(p *brokenProvider)) conformance.Harness {
	return conformance.Harness{Secrets: []string{appSecret}, Refusals: onRecord, New: func(rt http.RoundTripper) (brokerauth.Provider, error) {
		p := &brokenProvider{config: sound()}
		p.config.Transport = rt
		change(p)
		var err error
		p.Provider, err = authcode.New(p.config)
		return p, err
	}}
}

// brokenProvider is the sound provider with one fault.
type brokenProvider struct {
	*authcode.Provider
	config authcode.Config

	info      func(i brokerauth.Info) brokerauth.Info
	begin     func(l *brokerauth.Login) *brokerauth.Login
	callback  func(l *brokerauth.Login, callback string) string
	token     func(old, t *brokerauth.Token, err error) (*brokerauth.Token, error) // old is nil for a login
	before    func(ctx context.Context, old *brokerauth.Token) (context.Context, *brokerauth.Token)
	elsewhere func(address string) string
}

func (p *brokenProvider) Info() brokerauth.Info {
	if p.info != nil {
		return p.info(p.Provider.Info())
	}
	return p.Provider.Info()
}

func (p *brokenProvider) Begin(ctx context.Context) (*brokerauth.Login, error) {
	l, err := p.Provider.Begin(ctx)
	if p.begin != nil && err == nil {
		l = p.begin(l)
	}
	return l, err
}

func (p *brokenProvider) Complete(ctx context.Context, l *brokerauth.Login, callback string) (*brokerauth.Token, error) {
	if p.callback != nil && l != nil {
		callback = p.callback(l, callback)
	}
	if p.before != nil {
		ctx, _ = p.before(ctx, nil)
	}
	t, err := p.Provider.Complete(ctx, l, callback)
	if p.token != nil {
		return p.token(nil, t, err)
	}
	return t, err
}

func (p *brokenProvider) Refresh(ctx context.Context, old *brokerauth.Token) (*brokerauth.Token, error) {
	if p.before != nil && old != nil {
		ctx, old = p.before(ctx, old)
	}
	t, err := p.Provider.Refresh(ctx, old)
	if p.token != nil && old != nil {
		return p.token(old, t, err)
	}
	return t, err
}

func (p *brokenProvider) Elsewhere(address string) string {
	if p.elsewhere != nil {
		return p.elsewhere(address)
	}
	return p.Provider.Elsewhere(address)
}

type (
	infoChange  = func(i brokerauth.Info) brokerauth.Info
	beginChange = func(l *brokerauth.Login) *brokerauth.Login
	backChange  = func(l *brokerauth.Login, callback string) string
	tokenChange = func(old, t *brokerauth.Token, err error) (*brokerauth.Token, error)
)

func badInfo(f infoChange) conformance.Harness {
	return harness(func(p *brokenProvider) { p.info = f })
}
func badBegin(f beginChange) conformance.Harness {
	return harness(func(p *brokenProvider) { p.begin = f })
}
func badCallback(f backChange) conformance.Harness {
	return harness(func(p *brokenProvider) { p.callback = f })
}
func badToken(f tokenChange) conformance.Harness {
	return harness(func(p *brokenProvider) { p.token = f })
}
func badConfig(f func(c *authcode.Config)) conformance.Harness {
	return harness(func(p *brokenProvider) { f(&p.config) })
}

// badError changes what is known of a broker's refusal.
func badError(f func(e *brokerauth.Error)) conformance.Harness {
	return badToken(func(_, t *brokerauth.Token, err error) (*brokerauth.Token, error) {
		if e, ok := errors.AsType[*brokerauth.Error](err); ok {
			f(e)
		}
		return t, err
	})
}

// roundTripper is a transport between the provider and the suite's.
type roundTripper func(r *http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func badTransport(f func(rt http.RoundTripper) roundTripper) conformance.Harness {
	return badConfig(func(c *authcode.Config) { c.Transport = f(c.Transport) })
}

// badForm changes what is sent.
func badForm(f func(form url.Values)) conformance.Harness {
	return badTransport(func(rt http.RoundTripper) roundTripper {
		return func(r *http.Request) (*http.Response, error) {
			body, _ := io.ReadAll(r.Body)
			form, _ := url.ParseQuery(string(body))
			f(form)
			r.Body = io.NopCloser(strings.NewReader(form.Encode()))
			return rt.RoundTrip(r)
		}
	})
}

// badGrant is of a provider without a login page.
func badGrant(wrap func(p *authcode.GrantProvider) brokerauth.Provider) conformance.Harness {
	return conformance.Harness{Secrets: []string{appSecret, appGrant}, New: func(rt http.RoundTripper) (brokerauth.Provider, error) {
		c := sound()
		c.Grant, c.LoginLife, c.Transport, c.Elsewhere = appGrant, 0, rt, nil
		p, err := authcode.NewGrant(c)
		if err != nil {
			return nil, err
		}
		return wrap(p), nil
	}}
}

// pageless claims a login page that it does not have.
type pageless struct{ *authcode.GrantProvider }

func (pageless) Begin(context.Context) (*brokerauth.Login, error) { return nil, errors.ErrUnsupported }
func (pageless) Complete(context.Context, *brokerauth.Login, string) (*brokerauth.Token, error) {
	return nil, errors.ErrUnsupported
}

// half can begin what it cannot complete.
type half struct{ *authcode.GrantProvider }

func (half) Begin(context.Context) (*brokerauth.Login, error) { return new(brokerauth.Login), nil }

// mintless wants a login that nobody can make.
type mintless struct{ *authcode.GrantProvider }

func (m mintless) Refresh(ctx context.Context, old *brokerauth.Token) (*brokerauth.Token, error) {
	if old == nil {
		return nil, &brokerauth.Error{Provider: "suitebroker", Op: "refresh", Kind: brokerauth.ErrRejected, Hint: "there is no login"}
	}
	return m.GrantProvider.Refresh(ctx, old)
}

// wantsLogin asks for a login where nobody can.
type wantsLogin struct{ *authcode.GrantProvider }

func (m wantsLogin) Refresh(ctx context.Context, old *brokerauth.Token) (*brokerauth.Token, error) {
	t, err := m.GrantProvider.Refresh(ctx, old)
	if e, ok := errors.AsType[*brokerauth.Error](err); ok && e.Kind == brokerauth.ErrRejected {
		e.Kind = brokerauth.ErrLoginRequired
	}
	return t, err
}

// naive is what somebody may write who has seen none of this: a client of net/http and a struct for the answer.
type naive struct {
	client *http.Client
	secret string
}

func openNaive(rt http.RoundTripper) (brokerauth.Provider, error) {
	return &naive{&http.Client{Transport: rt}, appSecret}, nil
}

func (n *naive) Info() brokerauth.Info {
	return brokerauth.Info{Name: "naive", Identity: "app", Settings: "1", BaseURL: "https://api.example.com", Origins: []string{"https://api.example.com"}}
}

func (n *naive) Refresh(ctx context.Context, old *brokerauth.Token) (*brokerauth.Token, error) {
	refresh := appGrant
	if old != nil {
		refresh = old.RefreshToken
	}
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh}, "client_secret": {n.secret}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://api.example.com/token", strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	resp, err := n.client.Do(req)
	if err != nil {
		return nil, fail(brokerauth.ErrUnavailable, 0, err.Error())
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fail(brokerauth.ErrUnavailable, resp.StatusCode, err.Error())
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fail(brokerauth.ErrRejected, resp.StatusCode, string(body))
	}
	var answer struct {
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
		ExpiresIn    int    `json:"expires_in"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fail(brokerauth.ErrUnavailable, resp.StatusCode, err.Error())
	}
	now := time.Now()
	return &brokerauth.Token{AccessToken: answer.AccessToken, RefreshToken: answer.RefreshToken, Issued: now,
		Expiry: now.Add(time.Duration(answer.ExpiresIn) * time.Second)}, nil
}

func fail(kind error, status int, said string) error {
	return &brokerauth.Error{Provider: "naive", Op: "refresh", Kind: kind, Status: status, Hint: "read: " + said, Err: errors.New(said)}
}

// begun are the logins that this process began.
var begun sync.Map

// providerBreakages are providers that each break the named rule, of which the suite says so.
var providerBreakages = []struct {
	fault, rule, says string
	h                 conformance.Harness
}{
	{"another identity each time", "Info is whole and constant", "no program finds its login again",
		harness(func(p *brokenProvider) {
			identity := rand.Text()
			p.info = func(i brokerauth.Info) brokerauth.Info { i.Identity = identity; return i }
		})},
	{"its secret as identity", "Info is whole and constant", "tells a secret",
		badInfo(func(i brokerauth.Info) brokerauth.Info { i.Identity = appSecret; return i })},
	{"no settings", "Info is whole and constant", "Settings is empty",
		badInfo(func(i brokerauth.Info) brokerauth.Info { i.Settings = ""; return i })},
	{"an origin with a slash", "Origins are origins", "is not a scheme, host and port",
		badInfo(func(i brokerauth.Info) brokerauth.Info { i.Origins = []string{"https://api.example.com/"}; return i })},
	{"anybody's hosts", "Origins are origins", "hosts of anybody",
		badInfo(func(i brokerauth.Info) brokerauth.Info { i.Origins = append(i.Origins, "https://*.com"); return i })},
	{"origins without the API's", "Origins are origins", "may not be sent to Info().BaseURL",
		badInfo(func(i brokerauth.Info) brokerauth.Info { i.Origins = []string{"https://example.com"}; return i })},
	{"a login page that is none", "a provider claims what it can do", "has no method Begin",
		badGrant(func(p *authcode.GrantProvider) brokerauth.Provider { return pageless{p} })},
	{"half a login page", "a provider claims what it can do", "is no brokerauth.LoginProvider",
		badGrant(func(p *authcode.GrantProvider) brokerauth.Provider { return half{p} })},
	{"a grant that mints nothing", "without a login Refresh mints or asks nobody", "grant stands in the settings",
		badGrant(func(p *authcode.GrantProvider) brokerauth.Provider { return mintless{p} })},
	{"asks for nobody's login", "without a login Refresh mints or asks nobody", "sent 1 requests",
		conformance.Harness{New: func(rt http.RoundTripper) (brokerauth.Provider, error) {
			c := sound()
			c.Transport = rt
			p, err := authcode.New(c)
			return asking{p, rt}, err
		}}},

	{"a login page in the clear", "Begin leads to a login page", "want an https address",
		badBegin(func(l *brokerauth.Login) *brokerauth.Login {
			l.URL = strings.Replace(l.URL, "https:", "http:", 1)
			return l
		})},
	{"the verifier in the address", "Begin leads to a login page", "address tells a secret",
		badBegin(func(l *brokerauth.Login) *brokerauth.Login { l.URL += "&code_verifier=" + l.Secret; return l })},
	{"one state for all", "each login has a state of its own", "two logins have one state",
		badBegin(func(l *brokerauth.Login) *brokerauth.Login {
			const state = "the-state-of-all-the-logins"
			l.URL, l.State = strings.Replace(l.URL, l.State, state, 1), state
			return l
		})},
	{"a state that cannot come back", "each login has a state of its own", "cannot come back",
		badBegin(func(l *brokerauth.Login) *brokerauth.Login { l.State = rand.Text(); return l })},
	{"a plain challenge", "a challenge is its verifier's", "by S256",
		badBegin(func(l *brokerauth.Login) *brokerauth.Login {
			l.URL = strings.Replace(l.URL, "code_challenge_method=S256", "code_challenge_method=plain", 1)
			return l
		})},
	{"no verifier", "a challenge is its verifier's", "without the verifier",
		badForm(func(form url.Values) { form.Del("code_verifier") })},
	{"a redirect URL that was tidied up", "a callback completes its login", "to the letter",
		badForm(func(form url.Values) { form.Set("redirect_uri", redirect+"/") })},
	{"no time of the login", "a callback completes its login", "LoggedInAt is zero",
		badToken(func(old, t *brokerauth.Token, err error) (*brokerauth.Token, error) {
			if old == nil && t != nil {
				t.LoggedInAt = time.Time{}
			}
			return t, err
		})},
	{"keeps logins in memory", "a login is completed in another process", "another process",
		harness(func(p *brokenProvider) {
			p.begin = func(l *brokerauth.Login) *brokerauth.Login { begun.Store(l.State, true); return l }
			p.callback = func(l *brokerauth.Login, callback string) string {
				if _, ok := begun.Load(l.State); !ok {
					return ""
				}
				return callback
			}
		})},
	{"decodes twice", "a callback is decoded once", "was sent 0 times",
		badCallback(func(_ *brokerauth.Login, callback string) string {
			return strings.ReplaceAll(strings.ReplaceAll(callback, "%25", "%"), "%2541", "%41")
		})},
	{"compares no state", "another login's callback is refused unsent", "requests were sent",
		badCallback(func(l *brokerauth.Login, callback string) string {
			before, _, _ := strings.Cut(callback, "&state=")
			return before + "&state=" + l.State
		})},
	{"takes any address", "what is no callback is refused unsent", "another host's address: 1 requests",
		badCallback(func(_ *brokerauth.Login, callback string) string {
			if _, query, ok := strings.Cut(callback, "?"); ok {
				return redirect + "?" + query
			}
			return callback
		})},
	{"a wrong address ends the login", "what is no callback is refused unsent", "may try another address",
		badError(func(e *brokerauth.Error) {
			if e.Kind == nil {
				e.Kind = brokerauth.ErrLoginRequired
			}
		})},
	{"a decline looks like a wrong address", "a declined login is told from a wrong address", "has the kind <nil>",
		badError(func(e *brokerauth.Error) {
			if e.Status == 0 {
				e.Kind = nil
			}
		})},

	{"loses the refresh token", "a new refresh token replaces the old and none keeps it", "no refresh token: the refresh token is \"\"",
		badToken(func(old, t *brokerauth.Token, err error) (*brokerauth.Token, error) {
			if old != nil && t != nil && t.RefreshToken == old.RefreshToken {
				t.RefreshToken = ""
			}
			return t, err
		})},
	{"keeps the old refresh token", "a new refresh token replaces the old and none keeps it", "a new refresh token: the refresh token is",
		badToken(func(old, t *brokerauth.Token, err error) (*brokerauth.Token, error) {
			if old != nil && t != nil {
				t.RefreshToken = old.RefreshToken
			}
			return t, err
		})},
	{"begins a login with each refresh", "a new refresh token replaces the old and none keeps it", "nobody logged in",
		badToken(func(old, t *brokerauth.Token, err error) (*brokerauth.Token, error) {
			if old != nil && t != nil {
				t.LoggedInAt = t.Issued.Add(time.Second)
			}
			return t, err
		})},
	{"an empty token", "an answer without an access token is no token", "want no token and an error",
		badToken(func(old, t *brokerauth.Token, err error) (*brokerauth.Token, error) {
			if e, ok := errors.AsType[*brokerauth.Error](err); ok && e.Status == 200 {
				return new(brokerauth.Token), nil
			}
			return t, err
		})},
	{"an empty answer is final", "an answer without an access token is no token", "is final",
		badConfig(func(c *authcode.Config) {
			c.Rules = []authcode.Rule{{Status: 200, Kind: brokerauth.ErrLoginRequired}}
		})},
	{"takes any token", "a token that no header can carry is an error", "want no token and an error",
		badToken(func(old, t *brokerauth.Token, err error) (*brokerauth.Token, error) {
			if e, ok := errors.AsType[*brokerauth.Error](err); ok && e.Status == 200 {
				return &brokerauth.Token{AccessToken: "a b"}, nil
			}
			return t, err
		})},
	{"lives in whole numbers", "a life is read however it is spelled", "expires_in is", conformance.Harness{New: openNaive}},
	{"lives without end", "a life is read however it is spelled", "want a time that makes sense",
		badToken(func(old, t *brokerauth.Token, err error) (*brokerauth.Token, error) {
			if t != nil && t.Expiry.Sub(t.Issued) != 30*time.Minute {
				t.Expiry = t.Issued.Add(-time.Hour)
			}
			return t, err
		})},
	{"JSON by its name only", "the content type does not matter", `content type is "`,
		badTransport(func(rt http.RoundTripper) roundTripper {
			return func(r *http.Request) (*http.Response, error) {
				resp, err := rt.RoundTrip(r)
				if err == nil && !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
					resp.Body.Close()
					return nil, errors.New("no JSON")
				}
				return resp, err
			}
		})},
	{"writes into the old token", "the old token is not modified", "modified the old token",
		badToken(func(old, t *brokerauth.Token, err error) (*brokerauth.Token, error) {
			if old != nil && t != nil {
				old.Extra["scope"] = t.Extra["scope"]
			}
			return t, err
		})},
	{"gives the old token back", "the old token is not modified", "returned the old token",
		badToken(func(old, t *brokerauth.Token, err error) (*brokerauth.Token, error) {
			if old != nil && err != nil {
				return old, nil
			}
			return t, err
		})},
	{"counts from the answer", "clocks are this machine's and count from the request", "after the request was sent",
		badToken(func(_, t *brokerauth.Token, err error) (*brokerauth.Token, error) {
			if t != nil {
				t.Issued, t.Expiry = time.Now(), time.Now().Add(30*time.Minute)
			}
			return t, err
		})},

	{"tries again", "nothing is sent twice", "2 times, want once",
		badTransport(func(rt http.RoundTripper) roundTripper {
			return func(r *http.Request) (*http.Response, error) {
				body, _ := io.ReadAll(r.Body)
				for try := 0; ; try++ {
					r.Body = io.NopCloser(bytes.NewReader(body))
					resp, err := rt.RoundTrip(r)
					if try > 0 || err == nil && resp.StatusCode < 500 {
						return resp, err
					}
					if err == nil {
						resp.Body.Close()
					}
				}
			}
		})},
	{"a client that follows", "a redirect is not followed", "followed a redirect",
		badTransport(func(rt http.RoundTripper) roundTripper {
			return func(r *http.Request) (*http.Response, error) {
				body, _ := io.ReadAll(r.Body)
				req, _ := http.NewRequestWithContext(r.Context(), r.Method, r.URL.String(), bytes.NewReader(body))
				return (&http.Client{Transport: rt}).Do(req)
			}
		})},
	{"reads all there is", "an answer is read to a bound", "want a bound",
		badTransport(func(rt http.RoundTripper) roundTripper {
			return func(r *http.Request) (*http.Response, error) {
				resp, err := rt.RoundTrip(r)
				if err == nil {
					body, _ := io.ReadAll(resp.Body)
					resp.Body.Close()
					resp.Body = io.NopCloser(bytes.NewReader(body))
				}
				return resp, err
			}
		})},
	{"leaves answers open", "every answer is closed", "leaves the answer open",
		badTransport(func(rt http.RoundTripper) roundTripper {
			return func(r *http.Request) (*http.Response, error) {
				resp, err := rt.RoundTrip(r)
				if err == nil {
					resp.Body = io.NopCloser(resp.Body)
				}
				return resp, err
			}
		})},
	{"waits as long as the broker", "a call ends by itself within 20 seconds", "want 20 seconds at most",
		badTransport(func(rt http.RoundTripper) roundTripper {
			return func(r *http.Request) (*http.Response, error) {
				return rt.RoundTrip(r.WithContext(context.WithoutCancel(r.Context())))
			}
		})},
	{"looks at no context", "a context ends its call", "want context.Canceled",
		harness(func(p *brokenProvider) {
			p.before = func(ctx context.Context, old *brokerauth.Token) (context.Context, *brokerauth.Token) {
				return context.WithoutCancel(ctx), old
			}
		})},
	{"keeps the first context", "no context is kept", "contexts of earlier calls have ended",
		harness(func(p *brokenProvider) {
			var first atomic.Pointer[context.Context]
			p.before = func(ctx context.Context, old *brokerauth.Token) (context.Context, *brokerauth.Token) {
				first.CompareAndSwap(nil, &ctx)
				return *first.Load(), old
			}
		})},

	{"an outage ends the login", "passing trouble is never final", "is final",
		badError(func(e *brokerauth.Error) {
			if e.Status >= 500 {
				e.Kind = brokerauth.ErrLoginRequired
			}
		})},
	{"any refusal ends the login", "a refusal that nobody knows is not final", "is final",
		badConfig(func(c *authcode.Config) {
			c.Rules = []authcode.Rule{{Status: 400, Kind: brokerauth.ErrLoginRequired}}
		})},
	{"asks a dead login for ever", "RFC 6749's refusals are final", "want login required",
		badConfig(func(c *authcode.Config) {
			c.Rules = []authcode.Rule{{Code: "invalid_grant", Kind: brokerauth.ErrUnavailable}}
		})},
	{"wants a login without a page", "RFC 6749's refusals are final", "has no login page",
		badGrant(func(p *authcode.GrantProvider) brokerauth.Provider { return wantsLogin{p} })},
	{"no hint", "every refusal on record has its kind and a hint", "no hint what to do",
		badError(func(e *brokerauth.Error) { e.Hint = "" })},
	{"of another kind", "every refusal on record has its kind and a hint", "want login required",
		badConfig(func(c *authcode.Config) {
			c.Rules = []authcode.Rule{{Code: "invalid_grant", Kind: brokerauth.ErrRejected}}
		})},
	{"an error of its own", "every refusal on record has its kind and a hint", "is no *brokerauth.Error",
		badToken(func(_, t *brokerauth.Token, err error) (*brokerauth.Token, error) {
			if err != nil {
				return nil, errors.New("refused")
			}
			return t, nil
		})},
	{"never waits", "Retry-After is passed on", "has RetryAfter 0s, want",
		badError(func(e *brokerauth.Error) { e.RetryAfter = 0 })},
	{"the broker's words as they are", "what the broker says is cleaned", "move a terminal's cursor",
		badError(func(e *brokerauth.Error) { e.Description = "no \x1b[2J" })},
	{"all of the broker's words", "what the broker says is cleaned", "bytes long, want a few hundred",
		badError(func(e *brokerauth.Error) { e.Description = strings.Repeat("no ", 4<<10) })},
	{"its answers in errors", "no secret is told", "tells a secret", conformance.Harness{New: openNaive}},
	{"a log of its own", "no secret is told", "print or log of the provider's tells a secret",
		harness(func(p *brokenProvider) {
			p.before = func(ctx context.Context, old *brokerauth.Token) (context.Context, *brokerauth.Token) {
				if old != nil {
					slog.Debug("refreshing", "with", old.RefreshToken)
				}
				return ctx, old
			}
		})},
	{"prints of its own", "no secret is told", "print or log of the provider's tells a secret",
		badBegin(func(l *brokerauth.Login) *brokerauth.Login { fmt.Println("open", l.URL); return l })},
	{"prints itself", "no secret is told", "the provider tells a secret",
		badGrant(func(p *authcode.GrantProvider) brokerauth.Provider {
			return struct {
				plain
				Secret string
			}{plain{p}, appSecret}
		})},

	{"mixes up its callers", "calls run beside each other", "got the token of another call",
		harness(func(p *brokenProvider) {
			var last atomic.Pointer[brokerauth.Token]
			p.before = func(ctx context.Context, old *brokerauth.Token) (context.Context, *brokerauth.Token) {
				if old == nil {
					return ctx, nil
				}
				last.Store(old)
				time.Sleep(200 * time.Millisecond)
				return ctx, last.Load()
			}
		})},
	{"leaves a goroutine", "a call leaves no goroutine", "these goroutines run",
		badToken(func(_, t *brokerauth.Token, err error) (*brokerauth.Token, error) {
			go func() { select {} }()
			return t, err
		})},
	{"waits for ever", "a new refresh token replaces the old and none keeps it", "still runs",
		badToken(func(old, t *brokerauth.Token, err error) (*brokerauth.Token, error) {
			if old != nil {
				select {}
			}
			return t, err
		})},
	{"repeats what it is asked", "Elsewhere answers whatever it is asked", "want a line for people",
		harness(func(p *brokenProvider) { p.elsewhere = func(address string) string { return "no " + address } })},
}

// asking asks the broker though nobody has logged in.
type asking struct {
	*authcode.Provider
	rt http.RoundTripper
}

func (a asking) Refresh(ctx context.Context, old *brokerauth.Token) (*brokerauth.Token, error) {
	if old == nil {
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "https://api.example.com/v1/token", nil)
		if resp, err := a.rt.RoundTrip(req); err == nil {
			resp.Body.Close()
		}
	}
	return a.Provider.Refresh(ctx, old)
}

// plain is a grant's provider without its ways to print itself.
type plain struct{ p brokerauth.Provider }

func (p plain) Info() brokerauth.Info { return p.p.Info() }
func (p plain) Refresh(ctx context.Context, old *brokerauth.Token) (*brokerauth.Token, error) {
	return p.p.Refresh(ctx, old)
}

// TestProviderBreakage runs the suite on one broken provider, in a child process of TestProviderFindsBreakages.
func TestProviderBreakage(t *testing.T) {
	name := os.Getenv(breakage)
	if name == "" {
		t.Skip("it is for the child processes of TestProviderFindsBreakages")
	}
	for _, b := range providerBreakages {
		if b.fault+": "+b.rule == name {
			conformance.TestProvider(t, b.h)
			return
		}
	}
	t.Fatalf("there is no breakage %q", name)
}

func TestProviderFindsBreakages(t *testing.T) {
	for _, b := range providerBreakages {
		timeout := time.Minute
		if b.fault == "waits for ever" {
			timeout = 12 * time.Second
		}
		findsBreakage(t, "TestProviderBreakage", b.fault, b.rule, b.says, timeout)
	}
}

func TestEveryRuleOfProvidersIsBroken(t *testing.T) {
	var rules []string
	for _, b := range providerBreakages {
		rules = append(rules, b.rule)
	}
	everyRuleIsBroken(t, "TestProviderSound", rules)
}

// TestProviderSound: what the broken ones are made of is sound, and so is what has nothing but a grant.
func TestProviderSound(t *testing.T) {
	conformance.TestProvider(t, harness(func(*brokenProvider) {}))
}

func TestProviderSoundGrant(t *testing.T) {
	conformance.TestProvider(t, badGrant(func(p *authcode.GrantProvider) brokerauth.Provider { return p }))
}

// TestProviderOfAnotherMake: a broker that speaks neither JSON nor of a code.
func TestProviderOfAnotherMake(t *testing.T) {
	conformance.TestProvider(t, conformance.Harness{
		New: func(rt http.RoundTripper) (brokerauth.Provider, error) {
			c := sound()
			c.PKCE = false
			c.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
				resp, err := rt.RoundTrip(r)
				if err != nil || resp.StatusCode != http.StatusOK {
					return resp, err
				}
				body, err := io.ReadAll(io.LimitReader(resp.Body, 2<<20))
				if form, bad := url.ParseQuery(string(body)); err == nil && bad == nil && form.Has("oauth_token") {
					body = fmt.Appendf(nil, `{"access_token":%q,"refresh_token":%q,"expires_in":900}`, form.Get("oauth_token"), form.Get("oauth_renewal"))
				}
				if err != nil {
					return nil, errors.Join(err, resp.Body.Close())
				}
				resp.Body = struct {
					io.Reader
					io.Closer
				}{bytes.NewReader(body), resp.Body}
				return resp, nil
			})
			p, err := authcode.New(c)
			return another{p}, err
		},
		Callback: func(l *brokerauth.Login, code string) string {
			return redirect + "?oauth_token=" + l.State + "&oauth_verifier=" + url.QueryEscape(code)
		},
		Answer: func(_ *http.Request, fields map[string]any) string {
			text := func(name string) string { s, _ := fields[name].(string); return s }
			return url.Values{"oauth_token": {text("access_token")}, "oauth_renewal": {text("refresh_token")}}.Encode()
		},
	})
}

type another struct{ *authcode.Provider }

func (a another) Complete(ctx context.Context, l *brokerauth.Login, callback string) (*brokerauth.Token, error) {
	callback = strings.Replace(strings.Replace(callback, "oauth_token=", "state=", 1), "oauth_verifier=", "code=", 1)
	return a.Provider.Complete(ctx, l, callback)
}

func ExampleTestProvider() {
	// In a test file of your own:
	//
	//	func TestProvider(t *testing.T) { …
	_ = func(t *testing.T) {
		conformance.TestProvider(t, conformance.Harness{
			New: func(transport http.RoundTripper) (brokerauth.Provider, error) {
				config := sound() // or your broker's settings
				config.Transport = transport
				return authcode.New(config)
			},
			Secrets: []string{appSecret},
			Refusals: []conformance.Refusal{
				{Name: "dead refresh token", Op: "refresh", Status: 400, Body: `{"error":"invalid_grant"}`, Kind: brokerauth.ErrLoginRequired},
			},
		})
	}
	// Output:
}
