package authcode_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/internal/guide"
)

// answerer is a transport that gives one answer.
type answerer func() (*http.Response, error)

func (a answerer) RoundTrip(*http.Request) (*http.Response, error) { return a() }

func says(status int, body string, header ...string) answerer {
	return func() (*http.Response, error) {
		h := make(http.Header)
		for i := 0; i < len(header); i += 2 {
			h.Set(header[i], header[i+1])
		}
		return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body))}, nil
	}
}

func fails(err error) answerer { return func() (*http.Response, error) { return nil, err } }

// The docs list what no broker has words of its own for.
func TestTroubleshooting(t *testing.T) {
	lines := []string{"| what happened | exit code | what to do |", "| --- | --- | --- |"}
	over := &brokerauth.Token{RefreshToken: "refresh", LoggedInAt: time.Date(2026, 6, 1, 9, 30, 0, 0, time.UTC), LoginBy: time.Date(2026, 6, 8, 9, 30, 0, 0, time.UTC)}
	early := &brokerauth.Token{RefreshToken: "refresh", LoggedInAt: time.Now().Add(-50*time.Hour - time.Second), LoginBy: time.Now().Add(100 * time.Hour)}
	for _, test := range []struct {
		what   string
		old    *brokerauth.Token // nil: it is a login
		answer answerer
	}{
		{"no answer: no network, no such host, a refused connection", over, fails(&net.OpError{Op: "dial", Err: errors.New("no route")})},
		{"a certificate that this computer does not trust", over, fails(&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}})},
		{"HTTP 429", over, says(429, "")},
		{"HTTP 500 and above", over, says(503, "{}")},
		{"a page of HTML instead of an answer", over, says(403, "<html><title>Blocked</title></html>")},
		{"a redirect", over, says(302, "", "Location", "https://elsewhere.example/")},
		{"a good status, and no token", over, says(200, "{}")},
		{"a refusal that says nothing known", over, says(400, "{}")},
		{"`invalid_client`, `unauthorized_client`", over, says(401, `{"error":"invalid_client"}`)},
		{"`invalid_grant` at a login", nil, says(400, `{"error":"invalid_grant"}`)},
		{"`invalid_grant` at a refresh, after the login's time", over, says(400, `{"error":"invalid_grant"}`)},
		{"`invalid_grant` at a refresh, before", early, says(400, `{"error":"invalid_grant"}`)},
		{"`invalid_grant` at a refresh, and nobody knows when the login was", &brokerauth.Token{RefreshToken: "refresh"}, says(400, `{"error":"invalid_grant"}`)},
	} {
		p := provider(t, config(test.answer))
		var err error
		if test.old == nil {
			l := begin(t, p)
			_, err = p.Complete(t.Context(), l, redirectURL+"?code=abc&state="+l.State)
		} else {
			_, err = p.Refresh(t.Context(), test.old)
		}
		e := brokerError(t, err)
		code := map[error]int{brokerauth.ErrLoginRequired: 3, brokerauth.ErrRejected: 2, brokerauth.ErrUnavailable: 4}[e.Kind]
		lines = append(lines, fmt.Sprintf("| %s | %d | %s |", test.what, code, e.Hint))
	}
	guide.Check(t, "../../docs/troubleshooting.md", "any broker", lines)
}

// The docs list all that can be wrong with an address that was pasted.
func TestTroubleshootingPaste(t *testing.T) {
	p := provider(t, config(says(500, "")))
	lines := []string{"| the error | what to do |", "| --- | --- |"}
	seen := make(map[string]bool)
	l := begin(t, p)
	at := redirectURL + "?state=" + l.State
	for _, callback := range []string{
		"", strings.Repeat("a", 20<<10), redirectURL + "?code=a b", "https://login.example.com/auth?client_id=x",
		"https://elsewhere.example/cb?code=abc", "%zz", redirectURL + "?code=a&code=b&state=" + l.State, redirectURL + "?code=a&state=other",
		at + "&code=a&iss=https%3A%2F%2Fother.example", at + "&error=access_denied", at + "&error=invalid_scope", at + "&%zz",
		at, at + "&code=", redirectURL + "?code=a", at + "&code=%00",
	} {
		_, err := p.Complete(t.Context(), l, callback)
		e := brokerError(t, err)
		what := e.Code
		if what == "" {
			what = e.Err.Error()
		}
		if !seen[what] {
			seen[what] = true
			lines = append(lines, fmt.Sprintf("| %s | %s |", what, e.Hint))
		}
	}
	public := config(says(500, ""))
	public.ClientSecret, public.PKCE, public.AuthStyle = "", false, 1 // in the body
	q := provider(t, public)
	_, err := q.Complete(t.Context(), begin(t, q), "abc")
	e := brokerError(t, err)
	lines = append(lines, fmt.Sprintf("| %s | %s |", e.Err, e.Hint))
	_, err = p.Complete(t.Context(), &brokerauth.Login{}, at)
	e = brokerError(t, err)
	lines = append(lines, fmt.Sprintf("| %s | %s |", e.Err, e.Hint))
	guide.Check(t, "../../docs/troubleshooting.md", "paste", lines)
}
