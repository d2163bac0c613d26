package authcode

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/brokerauth/brokerauth"
)

const (
	timeout    = 20 * time.Second // of a token call
	maxAnswer  = 1 << 20          // bytes read of an answer with a token
	maxRefusal = 64 << 10         // and of one without
	maxHeaders = 256 << 10        // bytes read of an answer's headers
	maxLife    = 10 * 365 * 24 * time.Hour
)

// call is one token call.
type call struct {
	*Config
	op      string            // "login" or "refresh"
	old     *brokerauth.Token // what is renewed; zero for a login
	secrets []string          // what must not come back in an error
	began   time.Time
}

// token sends form and returns old renewed by what the broker answers.
func (c *call) token(ctx context.Context, form url.Values) (*brokerauth.Token, error) {
	ctx, cancel := context.WithTimeout(untraced{ctx}, timeout)
	defer cancel()
	c.began = time.Now()
	if c.AuthStyle == oauth2.AuthStyleInParams {
		for name, value := range map[string]string{"client_id": c.ClientID, "client_secret": c.ClientSecret} {
			if value != "" {
				form.Set(name, value)
			}
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.TokenURL, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	req.GetBody = nil // without it net/http cannot send the request a second time
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	if c.Info.UserAgent != "" {
		req.Header.Set("User-Agent", c.Info.UserAgent)
	}
	if c.AuthStyle == oauth2.AuthStyleInHeader {
		// RFC 6749, section 2.3.1, encodes both first. Some brokers' clients do not, which is the same for the letters
		// and digits that keys consist of.
		req.SetBasicAuth(url.QueryEscape(c.ClientID), url.QueryEscape(c.ClientSecret))
	}

	resp, err := c.Transport.RoundTrip(req) // an http.Client would follow redirects
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 {
		// 101 hands over the connection, and reading from that heeds no context.
		failure := c.broken(errors.New("the token endpoint answers in another protocol"))
		failure.Status = resp.StatusCode
		return nil, failure
	}
	most := maxRefusal
	if resp.StatusCode/100 == 2 {
		most = maxAnswer
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, int64(most)))
	var failure *brokerauth.Error
	switch {
	case err != nil:
		if t, err := readToken(body, c.old, c.began, c.AccessLife); err == nil && resp.StatusCode/100 == 2 {
			return t, nil // all of it has come, whatever became of the connection
		}
		failure = c.unreachable(ctx, err)
	case len(body) == maxAnswer:
		failure = c.broken(errors.New("the answer is too long for one with a token"))
	case resp.StatusCode/100 == 3:
		failure = c.redirected(resp)
	case resp.StatusCode/100 != 2:
		failure = c.refused(resp.StatusCode, readAnswer(body))
	default:
		t, err := readToken(body, c.old, c.began, c.AccessLife)
		if err == nil {
			return t, nil
		}
		if failure = c.refused(resp.StatusCode, readAnswer(body)); err != errRefused {
			failure = c.broken(err)
		}
	}
	failure.Status, failure.RetryAfter = resp.StatusCode, retryAfter(resp.Header)
	if failure.RetryAfter == 0 && resp.StatusCode == http.StatusTooManyRequests {
		failure.RetryAfter = c.nextWindow(resp.Header)
	}
	return nil, failure
}

// untraced hides the trace of whoever waits for the token: it would be shown the secrets, and is meant for their own request.
type untraced struct{ context.Context }

func (u untraced) Value(key any) any {
	v := u.Context.Value(key)
	if _, ok := v.(*httptrace.ClientTrace); ok {
		return nil
	}
	return v
}

// errRefused: the body is not a token's but may tell why.
var errRefused = errors.New("refused")

// readToken returns old renewed by body, which a broker sent with a good status, or errRefused.
func readToken(body []byte, old *brokerauth.Token, issued time.Time, life time.Duration) (*brokerauth.Token, error) {
	// Not a struct: a field of an unexpected type must not cost a good grant.
	var fields map[string]json.RawMessage
	if json.Unmarshal(bytes.TrimPrefix(body, []byte("\ufeff")), &fields) != nil || said(fields["error"]) || said(fields["error_code"]) {
		return nil, errRefused
	}
	field := func(name string) (s string) {
		json.Unmarshal(fields[name], &s) // what is no string counts as absent
		return s
	}
	access, refresh, kind := field("access_token"), field("refresh_token"), strings.TrimSpace(field("token_type"))
	switch {
	case access == "":
		return nil, errRefused
	case !visible(access) || !visible(refresh):
		return nil, errors.New("a token holds a character that no token may have")
	case !visible(kind):
		kind = ""
	}
	t := old.Clone()
	t.AccessToken = access
	t.TokenType = cmp.Or(kind, t.TokenType)
	t.RefreshToken = cmp.Or(refresh, t.RefreshToken) // the old one stays good: RFC 6749, section 6
	t.Issued = issued
	t.Expiry = time.Time{}
	if life := lifetime(fields["expires_in"], life); life > 0 {
		t.Expiry = issued.Add(life)
	}
	if scope := field("scope"); scope != "" && visible(strings.ReplaceAll(scope, " ", "")) {
		if t.Extra == nil {
			t.Extra = make(map[string]string)
		}
		t.Extra["scope"] = scope
	}
	return t, nil
}

// said reports whether an answer's error field says anything.
func said(field json.RawMessage) bool {
	switch s := string(bytes.TrimSpace(field)); s {
	case "", "null", `""`, "false", "{}", "[]", "0", `"0"`:
		return false
	}
	return true
}

// lifetime reads expires_in, which brokers send as 1800, "1800" and 1800.0; usual is for one that makes no sense.
func lifetime(expiresIn json.RawMessage, usual time.Duration) time.Duration {
	seconds, err := strconv.ParseFloat(strings.Trim(string(expiresIn), `" `), 64)
	if err != nil || math.IsNaN(seconds) || math.IsInf(seconds, 0) || seconds < 1 {
		return usual
	}
	if seconds > maxLife.Seconds() {
		return maxLife
	}
	return time.Duration(seconds * float64(time.Second))
}

// retryAfter reads both forms of the header. A date counts from the server's own, since clocks differ.
func retryAfter(h http.Header) time.Duration {
	const most = 24 * time.Hour
	s := h.Get("Retry-After")
	wait := time.Duration(0)
	if seconds, err := strconv.ParseUint(s, 10, 64); err == nil {
		wait = time.Duration(min(seconds, uint64(most/time.Second))) * time.Second
	} else if at, err := http.ParseTime(s); err == nil {
		now, err := http.ParseTime(h.Get("Date"))
		if err != nil {
			now = time.Now()
		}
		wait = at.Sub(now)
	}
	return max(0, min(wait, most))
}

// nextWindow is how long it takes until the broker counts requests anew; 0: unknown.
func (c *call) nextWindow(h http.Header) time.Duration {
	if c.RateWindow <= 0 {
		return 0
	}
	now, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		now = time.Now()
	}
	return now.Truncate(c.RateWindow).Add(c.RateWindow).Sub(now)
}

// unreachable is the error for a request that got no whole answer.
func (c *call) unreachable(ctx context.Context, err error) *brokerauth.Error {
	if ctx.Err() != nil {
		err = ctx.Err() // the transport may say less, or something else
	}
	// A transport that is built on an http.Client gives addresses away.
	for inner := (*url.Error)(nil); errors.As(err, &inner); {
		err = inner.Err
	}
	hint, text := "check the network connection"+c.again(), c.scrub(err.Error())
	if errors.Is(err, context.DeadlineExceeded) {
		text = "the broker did not answer in time" // a caller's time may be short, or over
		if waited := time.Since(c.began).Round(time.Second); waited > 0 {
			text = "the broker did not answer within " + strconv.Itoa(int(waited.Seconds())) + " s"
		}
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		hint = "this computer does not trust the certificate: install the CA certificates (ca-certificates), or set " +
			"SSL_CERT_FILE; a proxy may stand in between"
	}
	return &brokerauth.Error{
		Provider: c.Info.Name, Op: c.op, Kind: brokerauth.ErrUnavailable, Err: &quietError{text, err}, Hint: hint,
	}
}

// broken is the error for an answer that should be a token.
func (c *call) broken(err error) *brokerauth.Error {
	return &brokerauth.Error{
		Provider: c.Info.Name, Op: c.op, Kind: brokerauth.ErrUnavailable, Err: err,
		Hint: "something between here and the broker may have changed its answer: check the base URL and proxies" + c.again(),
	}
}

// redirected is the error for an answer that sends the secrets elsewhere.
func (c *call) redirected(resp *http.Response) *brokerauth.Error {
	to := "nowhere"
	if u, err := url.Parse(resp.Header.Get("Location")); err == nil && u.Host != "" {
		to = c.scrub(u.Host)
	} else if err == nil && u.Path != "" {
		to = "another address there"
	}
	return c.broken(fmt.Errorf("the token endpoint redirects to %s, which is never followed", to))
}

// again ends a hint about trouble that passes. A code that was sent may be spent, so a login starts over.
func (c *call) again() string {
	if c.op == "login" {
		return "; try again later, with a new login"
	}
	return "; try again later"
}
