package conformance

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth"
)

// Harness is how [TestProvider] gets at a provider. New is enough for most.
type Harness struct {
	// New returns the provider under test, for an app with any settings, the same at each call. All that the provider
	// sends goes through transport, where the check plays the broker.
	New func(transport http.RoundTripper) (brokerauth.Provider, error)
	// Secrets are the settings that nobody may see, such as the app's secret, of 8 characters or more each. What is seen
	// to be sent as one is looked for, too.
	Secrets []string
	// Refusals are the broker's own, as they are on record.
	Refusals []Refusal

	// Callback returns the address to which the broker sends a user back who has consented. nil: login.RedirectURL with
	// the parameters code and state.
	Callback func(login *brokerauth.Login, code string) string
	// Answer spells the answer to r, whose fields are RFC 6749's: access_token, refresh_token, expires_in and so on, of
	// which each may be missing, null or of another type. nil: an object in JSON. Fields of the broker's own are added.
	Answer func(r *http.Request, fields map[string]any) string
}

// Refusal is an answer of the broker's that brings no token, and what the provider must make of it.
type Refusal struct {
	Name   string // of the subtest
	Op     string // "login" or "refresh"; empty: both
	Status int    // HTTP status
	Body   string
	Kind   error    // what the error matches; nil: any of ErrLoginRequired, ErrRejected and ErrUnavailable
	Code   string   // Error.Code; empty: any
	Says   []string // what the error's text must hold
}

// TestProvider checks a [brokerauth.Provider], with a login page or without. No request leaves the process.
//
// What a broker does not have, such as a state or PKCE, is found out, and its checks are skipped. To finish a login in
// another process, and to read all that is printed and logged, the test binary runs itself again, for the calling test
// only: that test runs a second time in a child, as far as its call of TestProvider, of which it must have one.
//
// Some checks run in a testing/synctest bubble, New and the provider's calls with it: a provider must not hand its work to
// goroutines that began elsewhere.
//
// Every call gets a minute, or a quarter of what go test's -timeout leaves.
func TestProvider(t *testing.T, h Harness) {
	t.Helper()
	if file, ok := os.LookupEnv(providerJob); ok {
		h.runJob(t, file)
		return
	}
	for _, secret := range h.Secrets {
		if len(secret) < 8 {
			t.Fatal("a secret of the harness is shorter than 8 characters: it may stand in any text by chance")
		}
	}
	s := &scene{h, t.Name()}
	for _, c := range []struct {
		rule string
		run  func(*testing.T, *scene)
	}{
		{"Info is whole and constant", infoWhole},
		{"Origins are origins", originsSpelled},
		{"a provider claims what it can do", claims},
		{"without a login Refresh mints or asks nobody", refreshOfNothing},

		{"Begin leads to a login page", begins},
		{"each login has a state of its own", ownState},
		{"a challenge is its verifier's", challenge},
		{"a callback completes its login", completes},
		{"a login is completed in another process", completesElsewhere},
		{"a callback is decoded once", decodedOnce},
		{"another login's callback is refused unsent", foreignCallback},
		{"what is no callback is refused unsent", noCallback},
		{"a declined login is told from a wrong address", declined},

		{"a new refresh token replaces the old and none keeps it", refreshTokens},
		{"an answer without an access token is no token", noAccessToken},
		{"a token that no header can carry is an error", unfitTokens},
		{"a life is read however it is spelled", lives},
		{"the content type does not matter", contentTypes},
		{"the old token is not modified", oldUnmodified},
		{"clocks are this machine's and count from the request", clocks},

		{"nothing is sent twice", sentOnce},
		{"a redirect is not followed", redirects},
		{"an answer is read to a bound", bounded},
		{"every answer is closed", closed},
		{"a call ends by itself within 20 seconds", endsByItself},
		{"a context ends its call", contextEnds},
		{"no context is kept", contextsKept},

		{"passing trouble is never final", passingTrouble},
		{"a refusal that nobody knows is not final", unknownRefusals},
		{"RFC 6749's refusals are final", knownRefusals},
		{"every refusal on record has its kind and a hint", refusalsOnRecord},
		{"Retry-After is passed on", retryAfter},
		{"what the broker says is cleaned", cleaned},
		{"no secret is told", secretsKept},

		{"calls run beside each other", besideEachOther},
		{"a call leaves no goroutine", callsLeaveNone},
		{"Elsewhere answers whatever it is asked", elsewhere},
	} {
		t.Run(c.rule, func(t *testing.T) { c.run(t, s) })
	}
}

// scene is a harness and the test that brought it.
type scene struct {
	Harness
	test string
}

// script is how the broker answers a request.
type script func(r *sent) (*http.Response, error)

// sent is a request of the provider's that reached the broker.
type sent struct {
	*http.Request
	at   time.Time
	body string
}

// values returns what a request's body and address say, decoded where they are a form or an object.
func (r *sent) values() (values []string) {
	form, _ := url.ParseQuery(r.body)
	for _, params := range []url.Values{r.URL.Query(), form} {
		for _, v := range params {
			values = append(values, v...)
		}
	}
	var object map[string]any
	if json.Unmarshal([]byte(r.body), &object) == nil {
		for _, v := range object {
			values = append(values, fmt.Sprint(v))
		}
	}
	return append(values, r.body)
}

// says reports whether the request holds value, to the letter, or has it in a header.
func (r *sent) says(value string) bool {
	return value != "" && slices.Contains(r.values(), value) || value != "" && slices.ContainsFunc(r.headers(), func(v string) bool {
		return strings.Contains(v, value) || strings.Contains(v, url.QueryEscape(value))
	})
}

func (r *sent) headers() []string {
	return slices.Concat(slices.Collect(maps.Values(r.Header))...)
}

// stage is the broker that the check plays.
type stage struct {
	h Harness

	mu     sync.Mutex
	script script
	sent   []*sent
	issued int
	open   int      // answers that were not closed
	secret []string // what must not be told of the newest call
	past   []string // and of earlier ones
}

// RoundTrip answers a request as the script has it.
func (s *stage) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		defer r.Body.Close()
		var err error
		if body, err = io.ReadAll(io.LimitReader(r.Body, 1<<20)); err != nil {
			return nil, err
		}
	}
	if err := r.Context().Err(); err != nil {
		return nil, err // nothing leaves the machine
	}
	q := &sent{r, time.Now(), string(body)}
	s.mu.Lock()
	s.sent = append(s.sent, q)
	s.secret = append(s.secret, credentials(q)...)
	script := s.script
	s.mu.Unlock()
	resp, err := script(q)
	if err != nil {
		return nil, err
	}
	resp.Request = r
	s.mu.Lock()
	s.open++
	s.mu.Unlock()
	resp.Body = &answerBody{resp.Body, s, sync.Once{}}
	return resp, nil
}

// credentials are what identifies the client in a request.
func credentials(r *sent) (secrets []string) {
	if _, credential, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok {
		secrets = append(secrets, credential)
	}
	if _, password, ok := r.BasicAuth(); ok {
		secrets = append(secrets, password)
	}
	form, _ := url.ParseQuery(r.body)
	for _, name := range []string{"client_secret", "refresh_token", "code", "code_verifier", "client_assertion", "password"} {
		secrets = append(secrets, form[name]...)
	}
	return secrets
}

// answerBody notes that it was closed.
type answerBody struct {
	io.ReadCloser
	s    *stage
	once sync.Once
}

func (b *answerBody) Close() error {
	b.once.Do(func() {
		b.s.mu.Lock()
		b.s.open--
		b.s.mu.Unlock()
	})
	return b.ReadCloser.Close()
}

// secrets returns what must not be told of the newest call.
func (s *stage) secrets() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Concat(s.h.Secrets, s.secret, []string{theCode})
}

// forget begins with the secrets of the next call.
func (s *stage) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secret, s.past = nil, append(s.past, s.secret...)
}

// absent is a field that an answer does not have.
var absent = new(int)

// life is how long the access tokens of the check live, as most brokers' do.
const life = 30 * time.Minute

// granting is a broker that issues a token, whose answer has these fields instead of the usual.
func (s *stage) granting(instead map[string]any) script {
	return func(r *sent) (*http.Response, error) {
		s.mu.Lock()
		s.issued++
		access, refresh := fmt.Sprintf("conformance-access-%d.A-_", s.issued), fmt.Sprintf("conformance-refresh-%d@B/=", s.issued)
		s.secret = append(s.secret, access, refresh)
		s.mu.Unlock()
		fields := map[string]any{
			"access_token": access, "refresh_token": refresh, "token_type": "Bearer", "expires_in": int(life / time.Second), "scope": "conformance",
		}
		maps.Copy(fields, instead)
		maps.DeleteFunc(fields, func(_ string, v any) bool { return v == any(absent) })
		return reply(http.StatusOK, s.spell(r, fields)), nil
	}
}

func (s *stage) spell(r *sent, fields map[string]any) string {
	if s.h.Answer != nil {
		return s.h.Answer(r.Request, fields)
	}
	body, _ := json.Marshal(fields) // strings, numbers and JSON of the check's own
	return string(body)
}

// reply is an answer in JSON, with further headers.
func reply(status int, body string, header ...string) *http.Response {
	resp := &http.Response{
		Status: fmt.Sprint(status, " ", http.StatusText(status)), StatusCode: status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        http.Header{"Content-Type": {"application/json"}, "Date": {time.Now().UTC().Format(http.TimeFormat)}},
		Body:          io.NopCloser(strings.NewReader(body)),
		ContentLength: int64(len(body)),
	}
	for i := 0; i+1 < len(header); i += 2 {
		resp.Header.Set(header[i], header[i+1])
	}
	return resp
}

// always is a broker that says the same to everything.
func always(status int, body string, header ...string) script {
	return func(*sent) (*http.Response, error) { return reply(status, body, header...), nil }
}

// play is one provider on a stage of its own.
type play struct {
	t      *testing.T
	scene  *scene
	stage  *stage
	p      brokerauth.Provider
	bubble bool // time is fake
}

func (s *scene) play(t *testing.T) *play {
	t.Helper()
	a := &play{t: t, scene: s, stage: &stage{h: s.Harness}}
	a.stage.script = a.stage.granting(nil)
	a.p = a.another()
	return a
}

// another returns one more provider with the same settings, on the same stage.
func (a *play) another() brokerauth.Provider {
	a.t.Helper()
	p, err := a.scene.New(a.stage)
	if err != nil || p == nil {
		a.t.Fatalf("the harness made no provider: %v", err)
	}
	return p
}

// pages returns the provider, and skips the check if that has no login page.
func (a *play) pages() brokerauth.LoginProvider {
	a.t.Helper()
	p, ok := a.p.(brokerauth.LoginProvider)
	if !ok {
		a.t.Skip("the provider has no login page")
	}
	return p
}

// do calls the provider. A call that hangs fails the check.
func (a *play) do(what string, call func(ctx context.Context)) {
	a.t.Helper()
	if a.bubble {
		call(context.Background()) // what waits for ever there, waits for the script, which does not
		return
	}
	within(a.t, what, call)
}

func (a *play) begin() (login *brokerauth.Login) {
	a.t.Helper()
	p := a.pages()
	var err error
	a.do("Begin", func(ctx context.Context) { login, err = p.Begin(ctx) })
	if err != nil || login == nil {
		a.t.Fatalf("Begin = %v, %v, want a login: a provider without a login page has no method Begin", login, err)
	}
	a.stage.mu.Lock()
	defer a.stage.mu.Unlock()
	a.stage.secret = append(a.stage.secret, login.State, login.Secret)
	return login
}

// theCode has the form of codes that clients have damaged by decoding twice, or not at all.
const theCode = "C0.conformance+code/4f1c=.%41b9@"

// callback is where the broker sends the user back to.
func (a *play) callback(login *brokerauth.Login, code string) string {
	if a.scene.Callback != nil {
		return a.scene.Callback(login, code)
	}
	query := "code=" + url.QueryEscape(code)
	if login.State != "" {
		query += "&state=" + url.QueryEscape(login.State)
	}
	return withQuery(login.RedirectURL, query)
}

func withQuery(address, query string) string {
	if strings.Contains(address, "?") {
		return address + "&" + query
	}
	return address + "?" + query
}

func (a *play) complete(login *brokerauth.Login, callback string) (token *brokerauth.Token, err error) {
	a.t.Helper()
	p := a.pages()
	a.do("Complete", func(ctx context.Context) { token, err = p.Complete(ctx, login, callback) })
	return token, err
}

func (a *play) refresh(old *brokerauth.Token) (token *brokerauth.Token, err error) {
	a.t.Helper()
	a.do("Refresh", func(ctx context.Context) { token, err = a.p.Refresh(ctx, old) })
	return token, err
}

// token returns one that the broker has issued: by a login, or for a grant in the settings.
func (a *play) token() *brokerauth.Token {
	a.t.Helper()
	a.perform(a.stage.granting(nil))
	var token *brokerauth.Token
	var err error
	if _, ok := a.p.(brokerauth.LoginProvider); ok {
		login := a.begin()
		token, err = a.complete(login, a.callback(login, theCode))
	} else {
		token, err = a.refresh(nil)
	}
	if err != nil || token == nil || token.AccessToken == "" {
		a.t.Fatalf("the first token: %v, %v, want one with an access token", token, err)
	}
	return token
}

// renewable returns a token that Refresh may renew, and skips the check if the broker issues none.
func (a *play) renewable() *brokerauth.Token {
	a.t.Helper()
	token := a.token()
	if token.RefreshToken == "" {
		a.t.Skip("the provider took no refresh token from an answer that has one: it renews nothing")
	}
	return token
}

// perform makes the broker answer by script from now on, and forgets what it was sent.
func (a *play) perform(s script) {
	a.stage.mu.Lock()
	defer a.stage.mu.Unlock()
	a.stage.script, a.stage.sent = s, nil
}

func (a *play) sent() []*sent {
	a.stage.mu.Lock()
	defer a.stage.mu.Unlock()
	return slices.Clone(a.stage.sent)
}

// outcome is what came of a call that asked the broker.
type outcome struct {
	op     string // "login" or "refresh"
	spent  string // the code or refresh token that was sent
	login  *brokerauth.Login
	old    *brokerauth.Token
	before time.Time // when the call began
	token  *brokerauth.Token
	err    error
	sent   []*sent
}

// each makes a call of each kind that asks the broker, while that answers by script.
func (a *play) each(s script, check func(o outcome)) {
	a.t.Helper()
	for _, op := range []string{"login", "refresh"} {
		if o, ok := a.ask(op, s); ok {
			check(o)
		}
	}
}

// ask makes a call while the broker answers by script; ok is false if the provider has none of that kind.
func (a *play) ask(op string, s script) (o outcome, ok bool) {
	a.t.Helper()
	o = outcome{op: op, spent: theCode}
	a.stage.forget()
	if op == "login" {
		if _, ok := a.p.(brokerauth.LoginProvider); !ok {
			return o, false
		}
		a.perform(a.stage.granting(nil))
		o.login = a.begin()
	} else {
		if o.old = a.token(); o.old.RefreshToken == "" {
			return o, false
		}
		o.spent = o.old.RefreshToken
	}
	a.perform(s)
	o.before = time.Now()
	if op == "login" {
		o.token, o.err = a.complete(o.login, a.callback(o.login, theCode))
	} else {
		o.token, o.err = a.refresh(o.old)
	}
	o.sent = a.sent()
	a.perform(a.stage.granting(nil))
	return o, true
}

// mustIssue fails the check unless o is a token.
func (a *play) mustIssue(what string, o outcome) *brokerauth.Token {
	a.t.Helper()
	if o.err != nil || o.token == nil || o.token.AccessToken == "" {
		a.t.Fatalf("%s: %s = %v, %v, want a token", what, o.op, o.token, o.err)
	}
	return o.token
}

// refused returns the error that o must be: one that says of what broker and call it is, what kind it is, and what to do.
func (a *play) refused(what string, o outcome) *brokerauth.Error {
	a.t.Helper()
	e := a.brokerError(what, o)
	switch {
	case e == nil:
		return nil
	case !slices.Contains([]error{brokerauth.ErrLoginRequired, brokerauth.ErrRejected, brokerauth.ErrUnavailable}, e.Kind):
		a.t.Errorf("%s: %s: the error has the kind %v, want ErrLoginRequired, ErrRejected or ErrUnavailable: %v", what, o.op, e.Kind, e)
	case o.login == nil && e.Kind == brokerauth.ErrLoginRequired && !a.hasPage():
		a.t.Errorf("%s: %s asks for a login, but the provider has no login page: want ErrRejected: %v", what, o.op, e)
	}
	return e
}

func (a *play) hasPage() bool {
	_, ok := a.p.(brokerauth.LoginProvider)
	return ok
}

func (a *play) brokerError(what string, o outcome) *brokerauth.Error {
	a.t.Helper()
	if o.err == nil || o.token != nil {
		a.t.Errorf("%s: %s = %v, %v, want no token and an error", what, o.op, o.token, o.err)
		return nil
	}
	var e *brokerauth.Error
	if !errors.As(o.err, &e) {
		a.t.Errorf("%s: %s: the error %q is no *brokerauth.Error", what, o.op, o.err)
		return nil
	}
	if e.Provider != a.p.Info().Name || e.Op != o.op {
		a.t.Errorf("%s: the error says it is of %q at %q, want %q at %q", what, e.Op, e.Provider, o.op, a.p.Info().Name)
	}
	if e.Hint == "" {
		a.t.Errorf("%s: %s: the error has no hint what to do: %v", what, o.op, e)
	}
	return e
}

// mustBePassing fails the check unless o is an error that asks for nothing but patience.
func (a *play) mustBePassing(what string, o outcome) {
	a.t.Helper()
	if e := a.refused(what, o); e != nil && (e.Kind != brokerauth.ErrUnavailable ||
		errors.Is(o.err, brokerauth.ErrLoginRequired) || errors.Is(o.err, brokerauth.ErrRejected)) {
		a.t.Errorf("%s: %s is final (%v), want ErrUnavailable: %v", what, o.op, e.Kind, e)
	}
}

// mustBeUnsent fails the check unless o says that the address is none, and nothing was sent.
func (a *play) mustBeUnsent(what string, o outcome) {
	a.t.Helper()
	if n := len(a.sent()); n > 0 {
		a.t.Errorf("%s: %d requests were sent, want none: %v", what, n, o.err)
	}
	if e := a.brokerError(what, o); e != nil && (e.Kind != nil || e.Status != 0) {
		a.t.Errorf("%s: the error has the kind %v and the status %d, want neither, so that the user may try another address: %v",
			what, e.Kind, e.Status, e)
	}
	if o.err != nil {
		a.mustTellNothing(what, o.err.Error())
	}
}

// mustTellNothing fails the check if text holds a secret, whatever its form.
func (a *play) mustTellNothing(what, text string) {
	a.t.Helper()
	if form := told(text, a.stage.secrets()); form != "" {
		a.t.Errorf("%s tells a secret, %s:\n%s", what, form, text)
	}
}

// told looks for secrets in text and returns one's form, empty if there is none. Half of a long one is one.
func told(text string, secrets []string) string {
	for _, secret := range secrets {
		if len(secret) < 8 {
			continue // it may stand anywhere by chance
		}
		for _, form := range spellings(secret) {
			parts := []string{form}
			if half := len(form) / 2; half >= 12 {
				parts = append(parts, form[:half], form[half:])
			}
			for _, part := range parts {
				if strings.Contains(text, part) {
					return fmt.Sprintf("%q as %q", secret, part)
				}
			}
		}
	}
	return ""
}

// spellings are the forms in which a secret may be told: as it is, escaped, in base64 wherever it begins, and in hex.
func spellings(secret string) []string {
	quoted, _ := json.Marshal(secret)
	forms := []string{
		secret, string(bytes.Trim(quoted, `"`)), url.QueryEscape(secret), url.PathEscape(secret), strings.ToLower(url.QueryEscape(secret)),
		hex.EncodeToString([]byte(secret)), strings.ToUpper(hex.EncodeToString([]byte(secret))),
	}
	for offset, first := range []int{0, 2, 3} {
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			text := encoding.EncodeToString(append(make([]byte, offset), secret...))
			if (offset+len(secret))%3 != 0 {
				text = text[:len(text)-1] // it depends on what follows
			}
			forms = append(forms, text[first:])
		}
	}
	return forms
}

// providerJob is the environment variable that tells a child process where its task stands.
const providerJob = "BROKERAUTH_CONFORMANCE_PROVIDER"

// task is what a child process does with the provider.
type task struct {
	Do       string
	Login    *brokerauth.Login
	Callback string
	Secrets  []string // what must not have been told, by the child
}

// child runs this test once more in a process of its own, as far as TestProvider, and returns all that it printed.
func (s *scene) child(t *testing.T, j *task) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "task")
	if err := writeTask(file, j); err != nil {
		t.Fatal(err)
	}
	cmd := again(t, s.test, providerJob+"="+file)
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte(jobDone)) {
		t.Fatalf("a child process did not finish: %v\n%s", err, out)
	}
	if err := readTask(file, j); err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func readTask(file string, j *task) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, j)
}

func writeTask(file string, j *task) error {
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

// runJob is the child's part.
func (h Harness) runJob(t *testing.T, file string) {
	j := new(task)
	if err := readTask(file, j); err != nil {
		t.Fatalf("%s: %v", providerJob, err)
	}
	a := (&scene{h, t.Name()}).play(t)
	switch j.Do {
	case "complete":
		token, err := a.complete(j.Login, j.Callback)
		a.mustIssue("a login that another process began", outcome{op: "login", token: token, err: err})
		a.mustExchange(j.Login)
	case "tell":
		slog.SetLogLoggerLevel(slog.LevelDebug)
		a.tellAll()
		a.stage.forget()
		j.Secrets = slices.Compact(slices.Sorted(slices.Values(append(a.stage.past, theCode))))
	default:
		t.Fatalf("%s asks for %q", providerJob, j.Do)
	}
	if err := writeTask(file, j); err != nil {
		t.Fatal(err)
	}
	if !t.Failed() {
		fmt.Println(jobDone)
	}
}
