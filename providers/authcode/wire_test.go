package authcode_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/internal/engine"
	"github.com/brokerauth/brokerauth/providers/authcode"
)

var old = &brokerauth.Token{AccessToken: "old-access-token-5f0d", RefreshToken: "old-refresh/token@9c1e"}

// serve returns a provider with its own transport whose broker is handler, on a real connection of plain HTTP.
func serve(t *testing.T, handler http.HandlerFunc) *authcode.Provider {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	c := config(nil)
	c.BaseURL = server.URL
	return provider(t, c)
}

// Whoever traces a request of their own is not shown what a token call sends.
func TestTraceShowsNoSecret(t *testing.T) {
	p := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"access_token":"A1"}`) })
	var traced []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		WroteHeaderField: func(name string, _ []string) { traced = append(traced, name) },
	})
	if _, err := p.Refresh(ctx, old); err != nil || len(traced) > 0 {
		t.Errorf("the caller's trace saw %v, %v", traced, err)
	}
}

func TestRedirect(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		var requests atomic.Int32
		elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			t.Errorf("the redirect was followed with %s", r.Method)
		}))
		p := serve(t, func(w http.ResponseWriter, r *http.Request) {
			requests.Add(1)
			body, _ := io.ReadAll(r.Body)
			w.Header().Set("Location", elsewhere.URL+"/?"+string(body))
			w.WriteHeader(status)
		})
		_, err := p.Refresh(t.Context(), old)
		elsewhere.Close()
		if !errors.Is(err, brokerauth.ErrUnavailable) || requests.Load() != 1 {
			t.Errorf("%d: %d requests, %v", status, requests.Load(), err)
		}
		host := strings.TrimPrefix(elsewhere.URL, "http://")
		if !strings.Contains(err.Error(), host) || strings.Contains(err.Error(), "refresh_token=") {
			t.Errorf("%d: error %v should name %s and no more", status, err, host)
		}
	}
}

// TestBounds: an answer without an end is not read to the end, packed or not.
func TestBounds(t *testing.T) {
	ends := map[int]string{200: `{"access_token":"A"}`, 400: `{"error":"invalid_grant"}`} // what stands behind the bounds
	for status, end := range ends {
		for _, packed := range []bool{false, true} {
			p := serve(t, func(w http.ResponseWriter, r *http.Request) {
				var out io.Writer = w
				if packed {
					w.Header().Set("Content-Encoding", "gzip")
					z := gzip.NewWriter(w)
					defer z.Close()
					out = z
				}
				w.WriteHeader(status)
				io.WriteString(out, strings.Repeat(" ", 1<<20)+end)
			})
			_, err := p.Refresh(t.Context(), old)
			if !errors.Is(err, brokerauth.ErrUnavailable) || brokerError(t, err).Status != status {
				t.Errorf("packed %v, %d: %v", packed, status, err)
			}
			if text := err.Error(); status == 200 && (!strings.Contains(text, "the answer is too long") || strings.Contains(text, "no access token")) {
				t.Errorf("packed %v: of an answer that was not read to its end it says %q", packed, text)
			}
		}
	}
	for status, most := range map[int]int{200: 1 << 20, 400: 64 << 10} {
		read := 0
		endless := transport(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(readerFunc(func(b []byte) (int, error) {
				if read += len(b); read > 8<<20 {
					return 0, io.EOF
				}
				return len(b), nil
			}))}, nil
		})
		if _, err := provider(t, config(endless)).Refresh(t.Context(), old); err == nil || read > most {
			t.Errorf("%d: %d bytes were read, want at most %d: %v", status, read, most, err)
		}
	}

	// A large answer within bounds is still a token.
	p := provider(t, config(answering(200, `{"access_token":"A","id_token":"`+strings.Repeat("x", 900<<10)+`"}`)))
	if _, err := p.Refresh(t.Context(), old); err != nil {
		t.Errorf("an answer of 900 KiB: %v", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// TestOneRequest: a connection that ends instead of an answer costs no second request, even where connections are kept.
func TestOneRequest(t *testing.T) {
	for _, kept := range []bool{false, true} {
		for _, cut := range []string{"", "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{\"access_token\":\"A\""} {
			var requests atomic.Int32
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				if requests.Add(1) == 1 && kept {
					io.WriteString(w, `{"access_token":"A1"}`)
					return
				}
				conn, _, err := w.(http.Hijacker).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				io.WriteString(conn, cut)
				conn.Close()
			}))
			c := config(nil)
			c.BaseURL = server.URL
			want := int32(1)
			if kept {
				c.Transport = http.DefaultTransport.(*http.Transport).Clone()
			}
			p := provider(t, c)
			if kept {
				if _, err := p.Refresh(t.Context(), old); err != nil {
					t.Fatal(err)
				}
				want = 2
			}
			_, err := p.Refresh(t.Context(), old)
			if !errors.Is(err, brokerauth.ErrUnavailable) {
				t.Errorf("kept %v, cut %q: %v", kept, cut, err)
			}
			if n := requests.Load(); n != want {
				t.Errorf("kept %v, cut %q: %d requests, want %d", kept, cut, n, want)
			}
			server.CloseClientConnections()
			server.Close()
		}
	}
}

// TestRequest: net/http gets no way to send the body again, and a token is as old as its request.
func TestRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := provider(t, config(transport(func(r *http.Request) (*http.Response, error) {
			if r.GetBody != nil {
				t.Error("the request has a GetBody")
			}
			time.Sleep(5 * time.Second)
			return answering(200, `{"access_token":"A1"}`)(r)
		})))
		began := time.Now()
		got, err := p.Refresh(t.Context(), old)
		if err != nil {
			t.Fatal(err)
		}
		if !got.Issued.Equal(began) {
			t.Errorf("issued %v after the request was sent", got.Issued.Sub(began))
		}
	})
}

// TestOwnTransport: a connection is not kept for the next call.
func TestOwnTransport(t *testing.T) {
	seen := make(map[string]bool)
	p := serve(t, func(w http.ResponseWriter, r *http.Request) {
		seen[r.RemoteAddr] = true
		io.WriteString(w, `{"access_token":"A1"}`)
	})
	for range 3 {
		if _, err := p.Refresh(t.Context(), old); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != 3 {
		t.Errorf("%d connections for 3 calls", len(seen))
	}
}

// TestSlow: an answer that drips ends with the caller's context.
func TestSlow(t *testing.T) {
	quickest := time.Hour // of three, as this machine may be busy
	for tries := 0; tries < 3 && quickest > 5*time.Second; tries++ {
		quickest = min(quickest, dripped(t))
	}
	if quickest > 5*time.Second {
		t.Errorf("a call of a second ended after %v", quickest)
	}
}

// dripped is how long a call takes whose context has a second, and whose answer has no end.
func dripped(t *testing.T) time.Duration {
	t.Helper()
	begun, gone := make(chan struct{}), make(chan struct{})
	p := serve(t, func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		defer close(gone)
		io.Copy(io.Discard, r.Body)
		for {
			if _, err := io.WriteString(w, " "); err != nil {
				return
			}
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("somebody's cause"))
	defer cancel()
	began := time.Now()
	_, err := p.Refresh(ctx, old)
	took := time.Since(began)
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, brokerauth.ErrUnavailable) {
		t.Errorf("after %v: %v", took, err)
	}
	select {
	case <-begun:
	default:
		return time.Hour // the broker has not heard of it: this says nothing
	}
	select {
	case <-gone:
	case <-time.After(30 * time.Second):
		t.Error("the connection is still open")
	}
	return took
}

// TestTimeout: without a deadline of the caller's there is one of 20 seconds, for the answer's end too.
func TestTimeout(t *testing.T) {
	for name, rt := range map[string]transport{
		"no answer": func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, &url.Error{Op: "Post", URL: r.URL.String(), Err: errors.New("gave up")}
		},
		"slow answer": func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: io.NopCloser(readerFunc(func(b []byte) (int, error) {
				select {
				case <-r.Context().Done():
					return 0, r.Context().Err()
				case <-time.After(time.Second):
					return copy(b, " "), nil
				}
			}))}, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := provider(t, config(rt))
				began := time.Now()
				_, err := p.Refresh(t.Context(), old)
				if took := time.Since(began); took != 20*time.Second || !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, brokerauth.ErrUnavailable) {
					t.Errorf("after %v: %v", took, err)
				}
				if text := err.Error(); !strings.Contains(text, "did not answer within 20 s") || strings.Contains(text, "deadline") {
					t.Errorf("a person reads %q", text)
				}
			})
		})
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p := provider(t, config(transport(func(r *http.Request) (*http.Response, error) {
		cancel()
		<-r.Context().Done()
		return nil, r.Context().Err()
	})))
	if _, err := p.Refresh(ctx, old); !errors.Is(err, context.Canceled) {
		t.Errorf("Refresh: %v", err)
	}
}

// TestNetworkErrors: trouble on the way is never final, what it was stays to be found, and addresses do not.
func TestNetworkErrors(t *testing.T) {
	closed := "127.0.0.1:" + engine.FreePort(t)
	c := config(nil)
	c.BaseURL = "http://" + closed
	_, err := provider(t, c).Refresh(t.Context(), old)
	var op *net.OpError
	if !errors.Is(err, brokerauth.ErrUnavailable) || !errors.As(err, &op) || !strings.Contains(err.Error(), closed) {
		t.Errorf("a closed port: %v", err)
	}
	if strings.Contains(err.Error(), "SSL_CERT_FILE") {
		t.Errorf("a closed port is blamed on a certificate: %v", err)
	}

	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	c.BaseURL = server.URL
	_, err = provider(t, c).Refresh(t.Context(), old)
	var certificate *tls.CertificateVerificationError
	if !errors.Is(err, brokerauth.ErrUnavailable) || !errors.As(err, &certificate) {
		t.Errorf("an unknown certificate: %v", err)
	}
	if hint := brokerError(t, err).Hint; !strings.Contains(hint, "SSL_CERT_FILE") || strings.Contains(hint, "later") {
		t.Errorf("an unknown certificate, which waiting does not make known: %s", hint)
	}

	dns := &net.DNSError{Err: "no such host", Name: "api.example.com", IsNotFound: true}
	for _, inner := range []error{
		dns,
		&url.Error{Op: "Post", URL: "https://api.example.com/?q=1", Err: dns},
		fmt.Errorf("outer: %w", &url.Error{Op: "Post", URL: "https://api.example.com/?q=1", Err: fmt.Errorf("inner: %w", &url.Error{Op: "a", URL: "https://b/?q=1", Err: dns})}),
		fmt.Errorf("sent %s to https://user:pw@proxy.example.com: %w", old.RefreshToken, dns),
	} {
		_, err := provider(t, config(transport(func(*http.Request) (*http.Response, error) { return nil, inner }))).Refresh(t.Context(), old)
		var found *net.DNSError
		if !errors.Is(err, brokerauth.ErrUnavailable) || !errors.As(err, &found) || brokerError(t, err).Hint == "" {
			t.Errorf("%v: %v", inner, err)
		}
		var address *url.Error
		if errors.As(err, &address) || strings.Contains(err.Error(), "q=1") || strings.Contains(err.Error(), "pw@") || strings.Contains(err.Error(), old.RefreshToken) {
			t.Errorf("an address or secret is shown: %v", err)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	date := "Mon, 16 Nov 2026 14:00:00 GMT"
	for header, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "0": 0, "-5": 0, "soon": 0, "99999999999999999999": 0, "9999999999": 24 * time.Hour,
		"Mon, 16 Nov 2026 14:01:30 GMT": 90 * time.Second, "Mon, 16 Nov 2026 13:00:00 GMT": 0, "Wed, 16 Nov 2095 14:00:00 GMT": 24 * time.Hour,
	} {
		for _, status := range []int{429, 503} {
			_, err := provider(t, config(answering(status, "", "Retry-After", header, "Date", date))).Refresh(t.Context(), old)
			if e := brokerError(t, err); e.RetryAfter != want || e.Kind != brokerauth.ErrUnavailable || e.Status != status {
				t.Errorf("%d, Retry-After %q: %v", status, header, err)
			}
		}
	}
	synctest.Test(t, func(t *testing.T) {
		// Without the server's date its own clock has to do.
		at := time.Now().Add(time.Minute).UTC().Format(http.TimeFormat)
		_, err := provider(t, config(answering(429, "", "Retry-After", at))).Refresh(t.Context(), old)
		if e := brokerError(t, err); e.RetryAfter != time.Minute {
			t.Errorf("Retry-After %q: %v", at, e.RetryAfter)
		}
	})
}

// TestShapes: errors in every shape, with the kind that RFC 6749 gives them.
func TestShapes(t *testing.T) {
	login, rejected, passing := brokerauth.ErrLoginRequired, brokerauth.ErrRejected, brokerauth.ErrUnavailable
	for _, test := range []struct {
		status            int
		body              string
		refresh, exchange error // kinds
		code, description string
	}{
		{400, `{"error":"invalid_grant","error_description":"No"}`, login, login, "invalid_grant", "No"},
		{400, "\ufeff\n\n" + `{"error" : "invalid_grant"}`, login, login, "invalid_grant", ""},
		{401, `{"error":"invalid_grant"}`, login, login, "invalid_grant", ""},
		{400, `{"error_code":"invalid_grant","error_description":"Invalid JWT"}`, login, login, "invalid_grant", "Invalid JWT"},
		{400, `error=invalid_grant&error_description=Too+old`, login, login, "invalid_grant", "Too old"},
		{400, `[{"error":"invalid_grant"}]`, login, login, "invalid_grant", ""},
		{400, `{"error":"bad","error_description":"400 Bad Request: \"{\"error\" : \"invalid_grant\",\"error_description\":\"x y\"}\""}`, login, login, "bad", "invalid_grant: x y"},
		{400, `{"error":"bad","error_description":"400: "{"error":"invalid_grant","error_description":"x"}""}`, login, login, "invalid_grant", "x"},
		{400, `{"error":{"code":"invalid_grant","message":"gone"}}`, login, login, "invalid_grant", "gone"},
		{401, `{"error":"invalid_client","error_description":"Unauthorized"}`, rejected, rejected, "invalid_client", "Unauthorized"},
		{400, `{"error":"unauthorized_client"}`, rejected, rejected, "unauthorized_client", ""},
		{400, `{"error":"invalid_request","error_description":"a\u0000b\u001b[31mc\u202e"}`, passing, passing, "invalid_request", "a b [31mc"},
		{400, `{"error":"invalid_scope"}`, passing, passing, "invalid_scope", ""},
		{403, `{"error":"access_denied"}`, passing, passing, "access_denied", ""},
		{401, `{"error":"The access token being passed has expired or is invalid."}`, passing, passing, "", "The access token being passed has expired or is invalid."},
		{401, `{"message":"Nope"}`, passing, passing, "", "Nope"},
		{400, `{"message":"Nope","errors":["one","two"]}`, passing, passing, "", "Nope: one: two"},
		{401, `{"errors":[{"id":"1","status":401,"title":"Unauthorized","detail":"Client not authorized"}]}`, passing, passing, "", "Unauthorized: Client not authorized"},
		{413, `{"fault":{"faultstring":"Body buffer overflow","detail":{"errorcode":"protocol.http.TooBigBody"}}}`, passing, passing, "protocol.http.TooBigBody", "Body buffer overflow"},
		{400, `{"code":4001}`, passing, passing, "4001", ""},
		{400, `{"error":"invalid_grant","status":500}`, passing, passing, "invalid_grant", ""},
		{400, `{"error":"invalid_grant","errors":[{"status":"503"}]}`, passing, passing, "invalid_grant", ""},
		{429, `{"error":"invalid_grant"}`, passing, passing, "invalid_grant", ""},
		{408, `{"error":"invalid_client"}`, passing, passing, "invalid_client", ""},
		{500, `{"error":"invalid_grant"}`, passing, passing, "invalid_grant", ""},
		{403, `<HTML><HEAD><TITLE>Access&nbsp;<b>Denied</b></TITLE></HEAD><BODY><H1>Access Denied</H1>invalid_grant`, passing, passing, "", "Access Denied"},
		{400, `<?xml version="1.0"?><error>invalid_grant</error>`, passing, passing, "", ""},
		{400, `Bad Request`, passing, passing, "", ""},
		{401, `401 Unauthorized`, passing, passing, "", ""},
		{404, ``, passing, passing, "", ""},
		{400, `{{{{{{{{{{}}}}}}}}}}`, passing, passing, "", ""},
		{400, strings.Repeat(`{"error":`, 1000) + strings.Repeat("}", 1000), passing, passing, "", ""},
		{400, `{"error":true,"error_description":7,"errors":{"a":null}}`, passing, passing, "", ""},
		{400, `{"errors":[` + strings.Repeat(`{"code":"a"},`, 4900) + `{}]}`, passing, passing, "a", ""},
		{400, `{"x":"` + strings.Repeat("x", 70<<10) + `","error":"invalid_grant"}`, passing, passing, "", ""},
	} {
		p := provider(t, config(answering(test.status, test.body)))
		_, refreshErr := p.Refresh(t.Context(), old)
		_, exchangeErr := p.Complete(t.Context(), begin(t, p), "c")
		for op, err := range map[string]error{"refresh": refreshErr, "login": exchangeErr} {
			e, kind := brokerError(t, err), test.refresh
			if op == "login" {
				kind = test.exchange
			}
			if e.Op != op || e.Kind != kind || e.Status != test.status || e.Provider != "testbroker" || e.Hint == "" {
				t.Errorf("%d %.100s: %v of %s, want kind %v", test.status, test.body, err, op, kind)
			}
			if got := strings.Join(strings.Fields(e.Description), " "); e.Code != test.code || got != test.description {
				t.Errorf("%d %.100s: code %q, description %q", test.status, test.body, e.Code, e.Description)
			}
		}
	}
}

// TestRules: a rule needs all of its conditions, the first that fits counts, and none makes passing trouble final.
func TestRules(t *testing.T) {
	c := config(nil)
	c.Rules = []authcode.Rule{
		{Op: "login", Contains: "magic", Kind: brokerauth.ErrRejected, Hint: "login"},
		{Status: 418, Code: "teapot", Kind: brokerauth.ErrRejected, Hint: "teapot"},
		{Contains: "MAGIC & words", Kind: brokerauth.ErrLoginRequired, Hint: "words"},
		{Contains: "magic", Kind: brokerauth.ErrUnavailable, Hint: "magic"},
		{Code: "invalid_client", Hint: "only a hint"},
	}
	for _, test := range []struct {
		status int
		body   string
		kind   error
		hint   string
	}{
		{400, `{"error":"x","error_description":"magic"}`, brokerauth.ErrUnavailable, "magic"},
		{400, `{"error":"x","error_description":"Magic \u0026 Words"}`, brokerauth.ErrLoginRequired, "words"},
		{400, `{"error":"x","note":"magic &amp; words"}`, brokerauth.ErrLoginRequired, "words"},
		{418, `{"error":"y","error_description":"{\"error\":\"teapot\"}"}`, brokerauth.ErrRejected, "teapot"},
		{400, `{"error":"teapot magic"}`, brokerauth.ErrUnavailable, "magic"},
		{401, `{"error":"invalid_client"}`, brokerauth.ErrRejected, "only a hint"},
		{503, `{"error":"x","error_description":"magic & words"}`, brokerauth.ErrUnavailable, "words"},
		{200, `<p>magic & words</p>`, brokerauth.ErrUnavailable, "words"},
	} {
		c.Transport = answering(test.status, test.body)
		_, err := provider(t, c).Refresh(t.Context(), old)
		if e := brokerError(t, err); e.Kind != test.kind || e.Hint != test.hint {
			t.Errorf("%d %s: %v, hint %q", test.status, test.body, e.Kind, e.Hint)
		}
	}
}

// TestEnded: the hint of a login's end follows from its clocks.
func TestEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(answering(400, `{"error":"invalid_grant"}`))
		c.EarlyEnd = "the moon"
		p := provider(t, c)
		now := time.Now() // Sat 1 Jan 2000, 00:00 UTC
		for _, test := range []struct {
			since, until time.Time
			says         []string
			never        string
		}{
			{now.Add(-8 * 24 * time.Hour), now.Add(-24 * time.Hour), []string{"7 days", "Fri 24 Dec 00:00 UTC"}, "moon"},
			{time.Time{}, now.Add(-time.Hour), []string{"7 days"}, "UTC"},
			{now.Add(-7 * 24 * time.Hour), now, []string{"7 days"}, "moon"},
			{now.Add(-74 * time.Hour), now.Add(94 * time.Hour), []string{"3 d 2 h", "early", "the moon"}, "7 days"},
			{now.Add(-5 * time.Minute), time.Time{}, []string{"5 min", "the moon"}, "7 days"},
			{now.Add(-5 * time.Second), time.Time{}, []string{"after less than a minute, early"}, "0 min"},
			{time.Time{}, time.Time{}, nil, "moon"},
			{now.Add(time.Hour), now.Add(169 * time.Hour), nil, "moon"},
		} {
			_, err := p.Refresh(t.Context(), &brokerauth.Token{RefreshToken: "R", LoggedInAt: test.since, LoginBy: test.until})
			hint := brokerError(t, err).Hint
			for _, s := range append(test.says, "log in again") {
				if !strings.Contains(hint, s) {
					t.Errorf("since %v until %v: %q does not say %q", test.since, test.until, hint, s)
				}
			}
			if strings.Contains(hint, test.never) {
				t.Errorf("since %v until %v: %q says %q", test.since, test.until, hint, test.never)
			}
		}
	})
}

// secretForms are the ways that a secret may be told.
func secretForms(secret string) []string {
	quoted, _ := json.Marshal(secret)
	return []string{
		secret, url.QueryEscape(secret), url.PathEscape(secret), strings.ToLower(url.QueryEscape(secret)), string(bytes.Trim(quoted, `"`)),
		base64.StdEncoding.EncodeToString([]byte(secret)), base64.URLEncoding.EncodeToString([]byte(secret)),
	}
}

// TestSecrets: a broker that echoes what it was sent, in every form and field, gives nothing away.
func TestSecrets(t *testing.T) {
	const theCode = "C0.b2F1dGgyLmJkYy5zY2h3YWIuY29t.x7Q-k_2@"
	basic := base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(clientID) + ":" + url.QueryEscape(clientSecret)))
	shapes := []string{
		`{"error":%s,"error_description":"x"}`, `{"error":"invalid_grant","error_description":%s}`, `{"error_code":%s}`,
		`{"errors":[{"title":%[1]s,"detail":%[1]s}]}`, `{"message":%s}`, `{"fault":{"faultstring":%s}}`, `[%s]`,
		`{"access_token":"","error":{"code":%[1]s,"message":%[1]s}}`, `{"error":"x","error_description":"{\"error\":\"y\"} "}%s`,
	}
	var own []string // the secrets of the call under way
	check := func(what string, err error) {
		t.Helper()
		texts := fmt.Sprintf("%v\n%+v\n%#v\n%q", err, err, err, err)
		e := brokerError(t, err)
		texts += e.Code + e.Description + e.Hint
		for inner := e.Err; inner != nil; inner = errors.Unwrap(inner) {
			if texts += inner.Error(); inner == errUnderneath {
				break
			}
		}
		for _, secret := range own {
			for _, form := range secretForms(secret) {
				for _, part := range []string{form, form[:len(form)/2], form[len(form)/2:]} {
					if strings.Contains(texts, part) {
						t.Errorf("%s: the error tells %q:\n%s", what, part, texts)
						return
					}
				}
			}
		}
	}
	try := func(what string, rt func(said string) transport) {
		t.Helper()
		for i := 0; ; i++ {
			said := ""
			p := provider(t, config(transport(func(r *http.Request) (*http.Response, error) {
				body, _ := io.ReadAll(r.Body)
				all := []string{string(body), r.Header.Get("Authorization")}
				for _, secret := range own {
					all = append(all, secretForms(secret)...)
				}
				if i < len(all) {
					said = all[i]
				}
				return rt(said)(r)
			})))
			login := begin(t, p)
			own = []string{clientSecret, basic, old.RefreshToken, old.AccessToken}
			_, err := p.Refresh(t.Context(), old)
			check(what, err)
			own = []string{clientSecret, basic, theCode, login.Secret, login.State}
			_, err = p.Complete(t.Context(), login, redirectURL+"?code="+url.QueryEscape(theCode)+"&state="+login.State)
			check(what, err)
			if said == "" {
				return
			}
		}
	}
	try("code", func(said string) transport {
		quoted, _ := json.Marshal(said)
		return answering(400, `{"error":`+string(quoted)+`}`)
	})
	for _, shape := range shapes {
		for _, cut := range []int{0, 9} {
			try(shape, func(said string) transport {
				quoted, _ := json.Marshal("got " + said[:max(0, len(said)-cut)] + ", sorry")
				return answering(400, fmt.Sprintf(shape, quoted))
			})
		}
	}
	try("page", func(said string) transport {
		return answering(500, "<html><title>"+said+"</title><h1>"+said)
	})
	try("location", func(said string) transport {
		return answering(302, "", "Location", "https://"+url.PathEscape(said)+"/?"+said)
	})
	try("network", func(said string) transport {
		return func(*http.Request) (*http.Response, error) {
			return nil, fmt.Errorf("proxy: %w", &url.Error{Op: "Post", URL: said, Err: fmt.Errorf("sent %s: %w", said, errUnderneath)})
		}
	})
}

var errUnderneath = errors.New("broken pipe")

// TestStrangeSecrets: secrets that were never ours are recognised by their looks.
func TestStrangeSecrets(t *testing.T) {
	for text, want := range map[string]string{
		"failed [tokenDigest=Zm9vYmFy, Exception=Failed]":               "failed [tokenDigest=REDACTED, Exception=Failed]",
		"key 4f0c2b7e-91aa-4c55-8e0f-0123456789ab expired":              "key REDACTED expired",
		"got eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJlLWhlcmU=": "got REDACTED",
		"token=abc&x":                                                              "token=REDACTED&x",
		"see https://user:pw@proxy.example.com/":                                   "see https://REDACTED@proxy.example.com/",
		"refresh_token_authentication_error":                                       "refresh_token_authentication_error",
		"keymanagement.service.access_token_expired":                               "keymanagement.service.access_token_expired",
		"AuthorizationCode has expired,expiration=1728437138768,now=1728437166999": "AuthorizationCode has expired,expiration=1728437138768,now=1728437166999",
	} {
		body, _ := json.Marshal(map[string]string{"error": "x", "error_description": text})
		_, err := provider(t, config(answering(400, string(body)))).Refresh(t.Context(), old)
		if got := brokerError(t, err).Description; got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	for _, s := range []string{
		`{"access_token":"A1","refresh_token":"R1","expires_in":900}`, `{"access_token":"A","expires_in":"1e400"}`, `{"access_token":null}`,
		`{"access_token":"A","expires_in":-0.1}`, `{"access_token":"A","scope":"\u0000","token_type":"b"}`,
	} {
		f.Add(200, s)
	}
	for _, s := range []string{
		`{"error":"bad","error_description":"400 Bad Request: \"{\"error\" : \"invalid_grant\"}\""}`, `{"errors":[{"status":"500"}]}`,
		`<html><title>No</title>`, `{{{{}}}}`, `error=invalid_grant`, `{"error":"` + old.RefreshToken + `"}`, `[1,2`, "\ufeff{}",
		`{"error":{"error":{"error":{"error":{"error":{"error":{"error":"deep"}}}}}}}`, `{"message":"` + url.QueryEscape(old.RefreshToken) + `"}`,
	} {
		f.Add(400, s)
	}
	f.Fuzz(func(t *testing.T, status int, body string) {
		p := provider(t, config(answering(status, body)))
		login := begin(t, p)
		const code = "C0.code-of-this-login@"
		for _, op := range []string{"refresh", "login"} {
			var token *brokerauth.Token
			var err error
			secrets := []string{old.RefreshToken}
			if op == "refresh" {
				token, err = p.Refresh(t.Context(), old)
			} else {
				secrets = []string{code, login.Secret, login.State}
				token, err = p.Complete(t.Context(), login, redirectURL+"?code="+url.QueryEscape(code)+"&state="+login.State)
			}
			if err == nil {
				life := token.Expiry.Sub(token.Issued)
				if token.AccessToken == "" || op == "refresh" && token.RefreshToken == "" || status/100 != 2 || life <= 0 || life > 10*365*24*time.Hour ||
					strings.ContainsAny(token.AccessToken+token.RefreshToken+token.TokenType, "\r\n \x00") {
					t.Errorf("%s: %d %q: token %#v", op, status, body, *token)
				}
				continue
			}
			e := brokerError(t, err)
			if e.Kind == nil || e.Hint == "" || e.Op != op {
				t.Errorf("%s: %d %q: %#v", op, status, body, e)
			}
			if (status >= 500 || status == 429 || status == 408) && e.Kind != brokerauth.ErrUnavailable {
				t.Errorf("%s: %d %q is final", op, status, body)
			}
			for _, secret := range secrets {
				for _, form := range secretForms(secret) {
					if strings.Contains(err.Error(), form) {
						t.Errorf("%s: %d %q tells a secret: %v", op, status, body, err)
					}
				}
			}
			if strings.ContainsFunc(e.Code+e.Description+err.Error(), func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }) || len(e.Description) > 400 {
				t.Errorf("%s: %d %q: description %q", op, status, body, e.Description)
			}
		}
	})
}
