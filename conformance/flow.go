package conformance

import (
	"context"
	"errors"
	"io"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/internal/engine"
)

// FlowUser plays the person whom a flow asks. Both functions return when their context ends.
type FlowUser struct {
	// Page waits for the flow to show the person where to go, goes there, and returns the address of the login page that
	// it leads to. It is called at most once.
	Page func(ctx context.Context) (string, error)
	// Return comes back from the broker: it hands callback to the flow as the person would, by opening it in a browser
	// or by pasting it. It may be called again, and at the same time as the flow ends; what the flow answers is for the
	// person, and no error.
	Return func(ctx context.Context, callback string) error
}

// TestFlow checks a [brokerauth.Flow]. Each call of open returns a new flow, which will be given login, and its user.
// login.RedirectURL is an unused http address on this computer; open may put another in its place, as long as it is the
// same one at each call. What open acquires, it releases by t.Cleanup.
//
// The checks take over os.Stdout, so the calling test must not run in parallel with others. A flow gets a minute for what
// it has to do, or a quarter of what go test's -timeout leaves.
func TestFlow(t *testing.T, open func(t *testing.T, login *brokerauth.Login) (brokerauth.Flow, FlowUser)) {
	t.Helper()
	redirect := "http://127.0.0.1:" + engine.FreePort(t) + "/callback"
	for _, c := range []struct {
		rule string
		run  func(*testing.T, *flowRun)
	}{
		{"it leads to the login page", leadsToPage},
		{"finish gets the callback to the letter", exactCallback},
		{"finish gets the flow's context", finishContext},
		{"the flow waits for finish", waitsForFinish},
		{"a failed finish is no success", failedFinish},
		{"a second address can mend the first", secondAddress},
		{"the end of its context ends it", cancelEnds},
		{"the deadline of its context ends it", deadlineEnds},
		{"an ended context begins nothing", endedContextBegins},
		{"another login can follow", anotherFollows},
		{"the login is only read", loginOnlyRead},
		{"nothing is written to standard output", nothingOnStdout},
		{"no goroutine of a flow is left", noFlowGoroutine},
	} {
		t.Run(c.rule, func(t *testing.T) { c.run(t, &flowRun{t: t, redirect: redirect, open: open}) })
	}
}

// flowRun is one check's.
type flowRun struct {
	t        *testing.T
	redirect string
	open     func(t *testing.T, login *brokerauth.Login) (brokerauth.Flow, FlowUser)
}

const flowState = "qGdGLH0R5dKJ4nB7uV1sXw_fJ3mZ0-Lk9pTc2RyHs8"

// asking is a flow under way.
type asking struct {
	t     *testing.T
	ctx   context.Context
	login *brokerauth.Login
	given brokerauth.Login // what login was before the flow began
	user  FlowUser
	limit time.Duration
	done  chan struct{} // closed when the flow has returned
	err   error         // then
}

type flowFinish = func(ctx context.Context, callback string) error

// begin starts a flow, whose context ends when the check does.
func (f *flowRun) begin(ctx context.Context, finish flowFinish) *asking {
	f.t.Helper()
	login := &brokerauth.Login{
		Key:         brokerauth.Key{Provider: "broker", Identity: "app", Profile: "default"},
		URL:         "https://broker.example/authorize?client_id=app&redirect_uri=" + url.QueryEscape(f.redirect) + "&state=" + flowState,
		RedirectURL: f.redirect, State: flowState, Secret: "verifier", Began: time.Now(),
	}
	flow, user := f.open(f.t, login)
	if flow == nil || user.Page == nil || user.Return == nil {
		f.t.Fatal("open returned no flow, or not all of its user")
	}
	ctx, cancel := context.WithCancel(ctx)
	a := &asking{t: f.t, ctx: ctx, login: login, given: *login, user: user, limit: patience(f.t), done: make(chan struct{})}
	go func() {
		defer close(a.done)
		a.err = flow(ctx, login, finish)
	}()
	f.t.Cleanup(func() {
		cancel()
		select {
		case <-a.done:
		case <-time.After(a.limit): // a check has said so
		}
	})
	return a
}

// callback is where the broker sends the user back to, with more in its query.
func (a *asking) callback(query string) string {
	if strings.Contains(a.login.RedirectURL, "?") {
		return a.login.RedirectURL + "&" + query
	}
	return a.login.RedirectURL + "?" + query
}

// goes has the user go to the login page.
func (a *asking) goes() string {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.ctx, a.limit)
	defer cancel()
	page, err := a.user.Page(ctx)
	if err != nil {
		select {
		case <-a.done:
			a.t.Fatalf("the flow ended before it led anywhere: %v", a.err)
		default:
		}
		a.t.Fatalf("the flow leads to no login page: %v", err)
	}
	return page
}

// returns has the user come back with callback.
func (a *asking) returns(callback string) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.ctx, a.limit)
	defer cancel()
	if err := a.user.Return(ctx, callback); err != nil {
		a.t.Fatalf("the user cannot come back: %v", err)
	}
}

// ends waits for the flow's end.
func (a *asking) ends() error {
	a.t.Helper()
	select {
	case <-a.done:
		return a.err
	case <-time.After(a.limit):
		a.t.Fatalf("the flow still waits after %v", a.limit)
		return nil
	}
}

// plainCallback is one that any flow must take.
const plainCallback = "code=C0.abc%40&state=" + flowState

// logsIn is a login that goes well.
func (f *flowRun) logsIn() *asking {
	f.t.Helper()
	a := f.begin(f.t.Context(), func(context.Context, string) error { return nil })
	a.goes()
	a.returns(a.callback(plainCallback))
	if err := a.ends(); err != nil {
		f.t.Fatalf("finish succeeded, and the flow ended with: %v", err)
	}
	return a
}

func leadsToPage(t *testing.T, f *flowRun) {
	var called atomic.Bool
	a := f.begin(t.Context(), func(context.Context, string) error {
		called.Store(true)
		return nil
	})
	if page := a.goes(); page != a.login.URL {
		t.Errorf("the user was led to\n%s\nwant the login's URL\n%s", page, a.login.URL)
	}
	select {
	case <-a.done:
	case <-time.After(20 * time.Millisecond):
		a.returns(a.callback(plainCallback))
		a.ends()
	}
	if !called.Load() {
		t.Errorf("the flow ended, with %v, though the user was still at the broker", a.err)
	}
}

func exactCallback(t *testing.T, f *flowRun) {
	for _, query := range []string{
		plainCallback,
		"code=C0.b2F1dGgyLmJkYy5zY2h3YWIuY29t.abc-_%40&session=7d&state=" + flowState,
		"state=" + flowState + "&code=a%2Bb%2Fc%3D%3D&scope=read+write%20x&empty=&flag",
		"code=%c3%A9%E2%82%ac&state=" + flowState + "&iss=https%3A%2F%2Fbroker.example",
		"error=access_denied&error_description=the+user+declined&state=" + flowState,
	} {
		var mu sync.Mutex
		var got []string
		a := f.begin(t.Context(), func(_ context.Context, callback string) error {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, callback)
			return nil
		})
		a.goes()
		want := a.callback(query)
		a.returns(want)
		if err := a.ends(); err != nil {
			t.Fatalf("finish succeeded, and the flow ended with: %v", err)
		}
		mu.Lock()
		if len(got) != 1 || got[0] != want {
			t.Errorf("finish got %q, want %q, once", got, want)
		}
		mu.Unlock()
	}
}

func finishContext(t *testing.T, f *flowRun) {
	type key struct{}
	var called atomic.Bool
	seen := make(chan error, 10)
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, true))
	defer cancel()
	a := f.begin(ctx, func(ctx context.Context, _ string) error {
		called.Store(true)
		if ctx.Value(key{}) == nil {
			seen <- errors.New("finish was given a context without the values of the flow's")
			return nil
		}
		cancel()
		select {
		case <-ctx.Done():
			seen <- nil
		case <-time.After(patience(t) / 2):
			seen <- errors.New("finish was given a context that does not end with the flow's")
		}
		return ctx.Err()
	})
	a.goes()
	// The user's own context must not end with the flow's before the callback is there.
	outside, stop := context.WithTimeout(t.Context(), a.limit)
	defer stop()
	if err := a.user.Return(outside, a.callback(plainCallback)); err != nil && ctx.Err() == nil {
		t.Fatalf("the user cannot come back: %v", err)
	}
	a.ends()
	if !called.Load() {
		t.Fatal("finish was not called")
	}
	// The flow's context has ended, and the flow may have before finish has looked at it.
	if err := <-seen; err != nil {
		t.Error(err)
	}
}

func waitsForFinish(t *testing.T, f *flowRun) {
	// A flow that does not wait may be too slow to be caught at it; but it cannot know that finish fails.
	for _, outcome := range []error{nil, errRefused} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		begun, mayEnd := make(chan struct{}), make(chan struct{})
		var once sync.Once
		a := f.begin(ctx, func(context.Context, string) error {
			once.Do(func() { close(begun) })
			<-mayEnd
			return outcome
		})
		a.goes()
		returned := make(chan error, 1)
		go func() { returned <- a.user.Return(a.ctx, a.callback(plainCallback)) }()
		select {
		case <-begun:
		case <-time.After(a.limit):
			close(mayEnd)
			t.Fatal("the user came back, and finish was not called")
		}
		select {
		case <-a.done:
			t.Errorf("the flow ended, with %v, while finish was still saving the login", a.err)
		case <-time.After(50 * time.Millisecond):
		}
		close(mayEnd)
		if outcome != nil {
			a.failed(cancel)
			continue
		}
		if err := <-returned; err != nil {
			t.Errorf("the user cannot come back: %v", err)
		}
		a.ends()
	}
}

var errRefused = &brokerauth.Error{Provider: "broker", Op: "login", Kind: brokerauth.ErrRejected, Status: 401, Hint: "compare the secret"}

// failed checks how a flow ends whose finish has failed with errRefused. It may wait for another address, though none can
// help, until cancel ends its context.
func (a *asking) failed(cancel context.CancelFunc) {
	a.t.Helper()
	select {
	case <-a.done:
	case <-time.After(100 * time.Millisecond):
		cancel()
	}
	if err := a.ends(); !errors.Is(err, brokerauth.ErrRejected) && (a.ctx.Err() == nil || !errors.Is(err, context.Canceled)) {
		a.t.Errorf("finish failed, and the flow ended with %v, want finish's error", err)
	}
}

func failedFinish(t *testing.T, f *flowRun) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	called := make(chan struct{}, 10)
	a := f.begin(ctx, func(context.Context, string) error {
		called <- struct{}{}
		return errRefused
	})
	a.goes()
	a.returns(a.callback(plainCallback))
	select {
	case <-called:
	case <-time.After(a.limit):
		t.Fatal("the user came back, and finish was not called")
	}
	a.failed(cancel)
}

func secondAddress(t *testing.T, f *flowRun) {
	var mu sync.Mutex
	calls := 0
	mistaken := errors.New("that is not the address")
	tried := make(chan struct{}, 10)
	a := f.begin(t.Context(), func(context.Context, string) error {
		mu.Lock()
		defer mu.Unlock()
		defer func() { tried <- struct{}{} }()
		if calls++; calls == 1 {
			return &brokerauth.Error{Provider: "broker", Op: "login", Err: mistaken}
		}
		return nil
	})
	a.goes()
	a.returns(a.callback(plainCallback))
	select {
	case <-tried:
	case <-time.After(a.limit):
		t.Fatal("the user came back, and finish was not called")
	}
	// A flow may take one address only, and be ending: then nobody hears the second.
	second, stop := context.WithTimeout(a.ctx, a.limit)
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		a.user.Return(second, a.callback("code=second&state="+flowState))
	}()
	err := a.ends()
	stop()
	<-heard
	mu.Lock()
	defer mu.Unlock()
	if calls == 1 && !errors.Is(err, mistaken) {
		t.Errorf("finish failed, and the flow ended with %v, want its error", err)
	}
	if calls > 1 && err != nil {
		t.Errorf("the second address finished the login, and the flow ended with: %v", err)
	}
}

// stopped checks how a flow ends after its context has.
func (a *asking) stopped(want error) {
	a.t.Helper()
	select {
	case <-a.done:
		if !errors.Is(a.err, want) {
			a.t.Errorf("the flow ended with %v, want an error that matches %v", a.err, want)
		}
	case <-time.After(a.limit):
		a.t.Fatalf("the flow still waits %v after its context ended", a.limit)
	}
}

func (f *flowRun) uncalled(context.Context, string) error {
	f.t.Error("finish was called, though nobody came back")
	return nil
}

func cancelEnds(t *testing.T, f *flowRun) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a := f.begin(ctx, f.uncalled)
	a.goes()
	cancel()
	a.stopped(context.Canceled)
}

func deadlineEnds(t *testing.T, f *flowRun) {
	// On a busy machine the deadline may come before the flow waits. Then the next has more time.
	for left := 50 * time.Millisecond; ; left *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), left)
		defer cancel()
		a := f.begin(ctx, f.uncalled)
		_, err := a.user.Page(a.ctx)
		a.stopped(context.DeadlineExceeded)
		if err == nil || t.Failed() {
			return
		}
		if left > patience(t)/4 {
			t.Fatalf("the flow led to no login page within %v: %v", left, err)
		}
	}
}

func endedContextBegins(t *testing.T, f *flowRun) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a := f.begin(ctx, f.uncalled)
	a.stopped(context.Canceled)
	user, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if page, err := a.user.Page(user); err == nil {
		t.Errorf("the context had ended before the flow began, which sent the user to %s", page)
	}
}

// What a login holds, such as a port, it gives back, however it ends.
func anotherFollows(t *testing.T, f *flowRun) {
	f.logsIn()
	ctx, cancel := context.WithCancel(t.Context())
	a := f.begin(ctx, f.uncalled)
	a.goes()
	cancel()
	a.stopped(context.Canceled)
	f.logsIn()
}

func loginOnlyRead(t *testing.T, f *flowRun) {
	a := f.begin(t.Context(), func(context.Context, string) error { return nil })
	a.goes()
	a.returns(a.callback(plainCallback))
	if err := a.ends(); err != nil {
		t.Fatalf("finish succeeded, and the flow ended with: %v", err)
	}
	if *a.login != a.given {
		t.Error("the flow changed the login that it was given")
	}
}

func nothingOnStdout(t *testing.T, f *flowRun) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	written := make(chan []byte)
	go func() {
		b, _ := io.ReadAll(r)
		written <- b
	}()
	stdout := os.Stdout
	os.Stdout = w
	func() {
		defer func() { os.Stdout = stdout; w.Close() }() // also when the check fails here
		t.Run("login", func(t *testing.T) {
			f := &flowRun{t: t, redirect: f.redirect, open: f.open}
			f.logsIn()
			ctx, cancel := context.WithCancel(t.Context())
			a := f.begin(ctx, f.uncalled)
			a.goes()
			cancel()
			a.stopped(context.Canceled)
		})
	}()
	if out := <-written; len(out) > 0 {
		t.Errorf("the flow wrote to standard output, where the program's answers go: %q", out)
	}
}

func noFlowGoroutine(t *testing.T, f *flowRun) {
	leaveNone(t, func(t *testing.T) {
		f := &flowRun{t: t, redirect: f.redirect, open: f.open}
		f.logsIn()
		ctx, cancel := context.WithCancel(t.Context())
		a := f.begin(ctx, f.uncalled)
		a.goes()
		cancel()
		a.stopped(context.Canceled)
	})
}
