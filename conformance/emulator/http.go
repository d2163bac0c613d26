package emulator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/brokerauth/brokerauth"
)

// Request is one request that reached the broker. It has no query, header or body, hence no secret.
type Request struct {
	Time      time.Time `json:"time"` // by the broker's clock
	Method    string    `json:"method"`
	Path      string    `json:"path"`
	Status    int       `json:"status"`               // of the answer; 0: none yet, or none at all
	GrantType string    `json:"grant_type,omitempty"` // of a token call
}

// Fault is what goes wrong with a call. Its parts combine: a Delay and then a Status, say. The zero Fault is a call
// that goes well, which a sequence of them may need.
type Fault struct {
	API   bool // it meets API calls, not token calls
	Times int  // how many calls it meets; 0: one; negative: every one from now on

	Twice bool          // a copy of the request arrives, and is decided, before it
	Late  bool          // what follows happens after the broker has decided: codes are spent, tokens issued
	Delay time.Duration // a wait
	Hang  bool          // a wait until the client leaves
	Drop  bool          // the connection closes without a byte of an answer

	Status     int    // answers in the broker's stead: 429, 500, 502, 503; 403 is the gateway's "Access Denied"
	RetryAfter string // header of that answer: seconds or an HTTP date
	Body       string // body of that answer; empty: a gateway's usual one. Without a Status it is 200

	Cut bool // the connection breaks in the middle of the answer
}

// Inject lines up faults, in place of those that an earlier call has left; Inject() clears them. A call meets the
// first one in line for its kind, and leaves the line shorter.
func (b *Broker) Inject(faults ...Fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults = slices.Clone(faults)
}

// nextFault takes the fault that the next call meets.
func (b *Broker) nextFault(api bool) Fault {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.faults, func(f Fault) bool { return f.API == api })
	if i < 0 {
		return Fault{}
	}
	f := b.faults[i]
	switch {
	case f.Times > 1:
		b.faults[i].Times--
	case f.Times >= 0:
		b.faults = slices.Delete(b.faults, i, i+1)
	}
	return f
}

var errDropped = fmt.Errorf("emulator: the connection closed without an answer: %w", io.EOF)

// strike is the fault's wait and answer, if it has any.
func (f Fault) strike(ctx context.Context, b *Broker) (*answer, error) {
	if err := wait(ctx, f.Delay); err != nil {
		return nil, err
	}
	switch {
	case f.Hang:
		<-ctx.Done()
		return nil, ctx.Err()
	case f.Drop:
		return nil, errDropped
	case f.Status == 0 && f.Body == "":
		return nil, nil
	}
	a := newAnswer(max(f.Status, http.StatusOK), "application/json", f.Body)
	if f.Body == "" {
		a = b.rules.gateway(f.Status)
	}
	if f.RetryAfter != "" {
		a.header.Set("Retry-After", f.RetryAfter)
	}
	return a, nil
}

func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// answer is a reply that is complete before any of it is sent, so that it can be lost, broken off or replaced.
// It is the ResponseWriter of the caller's handlers.
type answer struct {
	status int
	header http.Header
	body   bytes.Buffer
	cut    bool
}

func newAnswer(status int, contentType, body string) *answer {
	a := &answer{status: status, header: make(http.Header)}
	if contentType != "" {
		a.header.Set("Content-Type", contentType)
	}
	a.body.WriteString(body)
	return a
}

func jsonAnswer(status int, v any) *answer {
	body, _ := json.Marshal(v) // cannot fail: structs and maps of strings and numbers
	return newAnswer(status, "application/json", string(body))
}

func redirectAnswer(location string) *answer {
	a := newAnswer(http.StatusFound, "", "")
	a.header.Set("Location", location)
	return a
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	if a.status == 0 && status >= http.StatusOK {
		a.status = status
	}
}

func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	if a.header.Get("Content-Type") == "" {
		a.header.Set("Content-Type", http.DetectContentType(p))
	}
	return a.body.Write(p)
}

// RoundTrip answers a request to the broker's own addresses, in process and in the caller's goroutine. It serves no
// other address.
func (b *Broker) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		defer req.Body.Close()
	}
	u := req.URL
	if u.Scheme != "https" || u.Port() != "" && u.Port() != "443" || !slices.Contains(b.rules.hosts, u.Hostname()) {
		return nil, fmt.Errorf("emulator: %s://%s is no address of %s: nothing listens there", u.Scheme, u.Host, b.rules.name)
	}
	return b.respond(req)
}

// respond turns a client's request into a server's, and the answer into a client's.
func (b *Broker) respond(req *http.Request) (*http.Response, error) {
	r := req.Clone(req.Context())
	r.Form, r.PostForm, r.MultipartForm = nil, nil, nil // net/http's client ignores them
	r.URL = &url.URL{Path: req.URL.Path, RawPath: req.URL.RawPath, RawQuery: req.URL.RawQuery}
	if r.URL.Path == "" {
		r.URL.Path = "/"
	}
	r.RequestURI = r.URL.RequestURI()
	if r.Host == "" {
		r.Host = req.URL.Host
	}
	if r.Header == nil {
		r.Header = make(http.Header)
	}
	if _, ok := r.Header["User-Agent"]; !ok {
		r.Header.Set("User-Agent", "Go-http-client/1.1") // as net/http sends it
	}
	if r.Body == nil {
		r.Body = http.NoBody
	}
	r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/1.1", 1, 1
	r.RemoteAddr = "127.0.0.1:1"
	a, err := b.serve(r)
	if err == nil {
		err = req.Context().Err()
	}
	if err != nil {
		return nil, err
	}
	resp := &http.Response{
		Status:     fmt.Sprintf("%d %s", a.status, http.StatusText(a.status)),
		StatusCode: a.status,
		Proto:      "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        a.header,
		Body:          http.NoBody,
		ContentLength: int64(a.body.Len()),
		Request:       req,
	}
	if req.Method != http.MethodHead {
		resp.Body = io.NopCloser(&a.body)
		if a.cut {
			a.body.Truncate(a.body.Len() / 2)
			resp.Body = io.NopCloser(io.MultiReader(&a.body, brokenOff{}))
		}
	}
	return resp, nil
}

// brokenOff is what a client reads where the connection broke.
type brokenOff struct{}

func (brokenOff) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// ServeHTTP serves the broker at whatever address the server has. A dropped or cut connection aborts the handler with
// [http.ErrAbortHandler], which closes it.
func (b *Broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a, err := b.serve(r)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	for name, values := range a.header {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Length", strconv.Itoa(a.body.Len()))
	w.WriteHeader(a.status)
	if a.cut {
		w.Write(a.body.Bytes()[:a.body.Len()/2])
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	w.Write(a.body.Bytes())
}

// maxBody is more than any call here needs.
const maxBody = 1 << 20

// serve answers a request with what the broker, a handler of the caller's or a fault says. An error is a connection
// that brings no answer.
func (b *Broker) serve(r *http.Request) (*answer, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, fmt.Errorf("emulator: reading the request: %w", err)
	}
	var f Fault
	if r.URL.Path != b.rules.pagePath {
		f = b.nextFault(!b.tokenCall(r))
	}
	if f.Twice {
		if _, err := b.deliver(r, body, Fault{}); err != nil {
			return nil, err
		}
	}
	return b.deliver(r, body, f)
}

func (b *Broker) tokenCall(r *http.Request) bool {
	return r.Method == http.MethodPost && r.URL.Path == b.rules.tokenPath
}

// deliver is one request's way through the broker, with what f does to it.
func (b *Broker) deliver(r *http.Request, body []byte, f Fault) (a *answer, err error) {
	ctx := r.Context()
	r = r.WithContext(ctx) // a copy: a handler may parse it, and it may be delivered again
	r.Body = io.NopCloser(bytes.NewReader(body))
	grant := ""
	if b.tokenCall(r) {
		b.parse(r, body)
		grant = r.PostForm.Get("grant_type")
	}
	answered := b.record(r, grant)
	defer func() {
		status := 0
		if a != nil && err == nil { // both nil: a handler of the caller's panics
			status = a.status
		}
		answered(status)
	}()
	if b.tokenCall(r) {
		if err := wait(ctx, b.config.Latency); err != nil {
			return nil, err
		}
	}
	if !f.Late {
		a, err = f.strike(ctx, b)
	}
	if a == nil && err == nil {
		a = b.decide(r, len(body))
		if f.Late {
			var instead *answer
			if instead, err = f.strike(ctx, b); instead != nil {
				a = instead
			}
		}
	}
	if err != nil {
		return nil, err
	}
	if a.header.Get("Date") == "" {
		b.mu.Lock()
		a.header.Set("Date", b.now().UTC().Format(http.TimeFormat))
		b.mu.Unlock()
	}
	a.cut = f.Cut
	return a, nil
}

// parse reads a token call's form. What cannot be read is missing.
func (b *Broker) parse(r *http.Request, body []byte) {
	media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if !b.rules.jsonForms || media != "application/json" {
		r.ParseForm()
		return
	}
	var fields map[string]any
	json.Unmarshal(body, &fields)
	r.PostForm = make(url.Values)
	for name, value := range fields {
		if s, ok := value.(string); ok {
			r.PostForm.Set(name, s)
		}
	}
}

// decide is the broker's own answer.
func (b *Broker) decide(r *http.Request, size int) *answer {
	_, pattern := b.handlers.Handler(r)
	switch path := r.URL.Path; {
	case size > maxBody:
		return b.rules.tooBig()
	case path == b.rules.pagePath && (r.Method == http.MethodGet || r.Method == http.MethodPost):
		return b.page(r)
	}
	if refused := b.rules.refuse(r); refused != nil {
		return refused
	}
	switch path := r.URL.Path; {
	case b.tokenCall(r):
		return b.rules.token(b, r)
	case path == b.rules.pagePath || path == b.rules.tokenPath:
		return b.rules.notFound(path)
	case pattern == "" && !slices.ContainsFunc(b.rules.apis, func(api string) bool { return strings.HasPrefix(path, api) }):
		return b.rules.notFound(path)
	}
	header := r.Header.Get("Authorization")
	scheme, token, _ := strings.Cut(header, " ")
	scope, ok := b.admits(token)
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return b.rules.unauthorized(header)
	}
	if pattern == "" {
		if a := b.rules.api(b, r, scope); a != nil {
			return a
		}
		return b.rules.notFound(r.URL.Path)
	}
	a := &answer{header: make(http.Header)}
	b.handlers.ServeHTTP(a, r)
	a.WriteHeader(http.StatusOK)
	return a
}

// record notes a request, and returns what notes its answer.
func (b *Broker) record(r *http.Request, grant string) (answered func(status int)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := len(b.requests)
	b.requests = append(b.requests, Request{Time: b.now().UTC(), Method: r.Method, Path: r.URL.Path, GrantType: grant})
	return func(status int) {
		b.mu.Lock()
		b.requests[i].Status = status
		line := b.requests[i]
		b.mu.Unlock()
		if b.config.Log == nil {
			return
		}
		b.logging.Lock()
		defer b.logging.Unlock()
		json.NewEncoder(b.config.Log).Encode(line) // a log that cannot be written stops no broker
	}
}

// visit plays the user: it opens the login page, presses a button, and hands over where the browser is sent.
func (b *Broker) visit(ctx context.Context, login *brokerauth.Login, button string,
	finish func(ctx context.Context, callback string) error) error {
	open := func(method, body string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, method, login.URL, strings.NewReader(body))
		if err != nil {
			return nil, errors.New("emulator: the login's address is no address") // the parser's error quotes it
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		return b.respond(req)
	}
	resp, err := open(http.MethodGet, "")
	if err == nil && (resp.StatusCode == http.StatusOK || button == "deny") { // AutoApprove asks nobody
		resp, err = open(http.MethodPost, url.Values{"button": {button}}.Encode())
	}
	if err != nil {
		return err
	}
	callback := resp.Header.Get("Location")
	if callback == "" {
		return fmt.Errorf("emulator: the login page of %s answers HTTP %d: compare the app key and the callback URL",
			b.rules.name, resp.StatusCode)
	}
	return finish(ctx, callback)
}
