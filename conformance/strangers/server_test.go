package strangers

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/providers/authcode"
	"github.com/brokerauth/brokerauth/storage/disk"
)

const (
	// Encoded before Basic, as RFC 6749 has it, or the colon ends the id.
	strictID     = "key:with/every%kind+of&character"
	strictSecret = "emulated.secret:with/every%kind+of&character"
	redirectURL  = "https://127.0.0.1:8182/back"
	accessLife   = 2 * time.Second
)

// strict is the broker that oidc-provider plays.
func strict(issuer, secret string) (*authcode.Provider, error) {
	return authcode.New(authcode.Config{
		Info:       brokerauth.Info{Name: "strict", BaseURL: issuer, Origins: []string{issuer}, Margin: 5 * time.Minute},
		AuthURL:    issuer + "/auth",
		TokenURL:   issuer + "/token",
		AuthStyle:  oauth2.AuthStyleInHeader,
		Issuer:     issuer,
		PKCE:       true,
		Scopes:     []string{"openid", "offline_access", "trade"},
		AuthParams: map[string]string{"prompt": "consent"},

		ClientID:     strictID,
		ClientSecret: secret,
		RedirectURL:  redirectURL,
	})
}

// event is a line that the server says.
type event struct {
	Event, Issuer, Grant, Why string
}

// server is oidc-provider, running.
type server struct {
	issuer string
	began  time.Time

	mu     sync.Mutex
	events []event
}

func startServer(t *testing.T) *server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // the test's own ends before its cleanups
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, node(t), "server.mjs")
	if _, err := os.ReadFile("server.mjs"); err != nil { // a change of it is one of the test
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), "CLIENT_ID="+strictID, "CLIENT_SECRET="+strictSecret, "REDIRECT_URL="+redirectURL,
		fmt.Sprintf("ACCESS_SECONDS=%.0f", accessLife.Seconds()))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &server{}
	listening, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var e event
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				e = event{Event: "broken", Why: lines.Text()}
			}
			if e.Event == "listening" {
				s.issuer = e.Issuer
				close(listening)
				continue
			}
			s.mu.Lock()
			s.events = append(s.events, e)
			s.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		in.Close()
		<-ended
		if err := cmd.Wait(); err != nil {
			t.Errorf("oidc-provider ended with %v\n%s", err, said.String())
		}
	})
	select {
	case <-listening:
	case <-ended:
		t.Fatal("oidc-provider did not start")
	}
	s.began = time.Now()
	return s
}

// count counts events since the nth.
func (s *server) count(from int, like event) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events[from:] {
		if e.Event == like.Event && (like.Grant == "" || e.Grant == like.Grant) {
			n++
		}
	}
	return n
}

func (s *server) now() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.events)
}

// till waits for the server to have said something; its lines come a little after its answers.
func (s *server) till(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			s.mu.Lock()
			defer s.mu.Unlock()
			t.Fatalf("after a minute still not: %s; the server says %+v", what, s.events)
		}
	}
}

var action = regexp.MustCompile(`<form[^>]* action="([^"]*)"`)

// person is a Flow: somebody who logs in on the server's pages and consents.
func person(ctx context.Context, login *brokerauth.Login, finish func(ctx context.Context, callback string) error) error {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return err
	}
	callback := ""
	browser := &http.Client{Jar: jar, Timeout: 20 * time.Second, CheckRedirect: func(req *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(req.URL.String(), redirectURL) {
			callback = req.URL.String()
			return http.ErrUseLastResponse
		}
		return nil
	}}
	resp, err := browser.Get(login.URL)
	for _, form := range []url.Values{{"prompt": {"login"}, "login": {"somebody"}, "password": {"any"}}, {"prompt": {"consent"}}} {
		if err != nil {
			return err
		}
		page, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return err
		}
		next := action.FindSubmatch(page)
		if resp.StatusCode != http.StatusOK || next == nil || !bytes.Contains(page, []byte(form.Get("prompt"))) {
			return fmt.Errorf("the %s page answers HTTP %d", form.Get("prompt"), resp.StatusCode)
		}
		if resp, err = browser.PostForm(string(next[1]), form); err != nil {
			return err
		}
	}
	resp.Body.Close()
	if callback == "" {
		return fmt.Errorf("after the consent the browser is at HTTP %d", resp.StatusCode)
	}
	return finish(ctx, callback)
}

// capture takes the callback instead of finishing.
func capture(t *testing.T, login *brokerauth.Login) (callback string) {
	t.Helper()
	err := person(t.Context(), login, func(_ context.Context, at string) error {
		callback = at
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return callback
}

func fingerprint(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return fmt.Sprintf("%x", sum[:6])
}

// share is a program that shares a login with others. It says each new token that it gets, until its input ends.
func share() {
	p, err := strict(os.Getenv("STRANGERS_ISSUER"), strictSecret)
	if err != nil {
		fmt.Println("failed", err)
		return
	}
	store, err := disk.New(os.Getenv("STRANGERS_STORE"))
	if err != nil {
		fmt.Println("failed", err)
		return
	}
	s := &brokerauth.Session{Provider: p, Store: store}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		io.Copy(io.Discard, os.Stdin)
	}()
	for last := ""; ; {
		t, err := s.Token(context.Background())
		if err != nil {
			fmt.Println("failed", err)
		} else if now := fingerprint(t.AccessToken); now != last {
			fmt.Println("token", now)
			last = now
		}
		select {
		case <-time.After(10 * time.Millisecond):
			continue
		case <-ended:
		}
		if err := s.Close(); err != nil {
			fmt.Println("failed", err)
		}
		return
	}
}

// A server that nobody here wrote, that encodes and compares by the letter, and kills a login at the first reuse of a
// refresh token.
func TestStrictServer(t *testing.T) {
	t.Parallel()
	server := startServer(t)
	p, err := strict(server.issuer, strictSecret)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	store, err := disk.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := &brokerauth.Session{Provider: p, Store: store}
	defer s.Close()
	if err := s.Login(t.Context(), person); err != nil {
		t.Fatal(err)
	}
	resp, err := s.Client(nil).Get(server.issuer + "/me")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("a call with the token answers HTTP %d", resp.StatusCode)
	}
	refreshed, refused, revoked := event{Event: "granted", Grant: "refresh_token"}, event{Event: "refused"}, event{Event: "revoked"}

	// Several processes, several expiries.
	const processes, expiries = 6, 5
	var outputs [processes]bytes.Buffer
	var ends []io.Closer
	var running sync.WaitGroup
	for i := range processes {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), "STRANGERS_ISSUER="+server.issuer, "STRANGERS_STORE="+dir, "GORACE=atexit_sleep_ms=0")
		cmd.Stdout, cmd.Stderr = &outputs[i], &outputs[i]
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, in)
		running.Go(func() { cmd.Wait() })
	}
	server.till(t, "five refreshes", func() bool { return server.count(0, refreshed) >= expiries || server.count(0, refused) > 0 })
	for _, in := range ends {
		in.Close()
	}
	running.Wait()
	took := time.Since(server.began)
	tokens := map[string]bool{}
	for i := range outputs {
		for line := range strings.Lines(outputs[i].String()) {
			kind, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
			if kind != "token" {
				t.Errorf("process %d says %q", i, line)
			}
			tokens[rest] = true
		}
	}
	if n := server.count(0, refused) + server.count(0, revoked); n > 0 {
		t.Fatalf("the server refused or revoked %d times", n)
	}
	// The first token may have been over before a process saw it; each of the others was somebody's.
	server.till(t, "a refresh for each token", func() bool { return server.count(0, refreshed) >= len(tokens)-1 })
	grants := server.count(0, refreshed)
	if len(tokens) != grants && len(tokens) != grants+1 {
		t.Errorf("%d refreshes gave the processes %d different tokens", grants, len(tokens))
	}
	// A token is renewed at four fifths of its life, counted from before it was asked for: not more often than that.
	if most := int(took / (accessLife * 4 / 5)); grants > most {
		t.Errorf("%d refreshes in %s: at most %d expired", grants, took, most)
	}

	t.Run("reuse ends the login", func(t *testing.T) {
		from := server.now()
		old, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		next, err := s.Refresh(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if next.RefreshToken == old.RefreshToken {
			t.Fatal("the server does not rotate")
		}
		if _, err := p.Refresh(t.Context(), old); !errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Errorf("a refresh token was taken twice: %v", err)
		}
		server.till(t, "the family is dead", func() bool { return server.count(from, revoked) > 0 })
		if _, err := s.Refresh(t.Context(), nil); !errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Errorf("the newest refresh token of a dead family: %v", err)
		}
		server.till(t, "both refusals", func() bool { return server.count(from, refused) >= 2 })
		asked := server.now()
		if _, err := s.Token(t.Context()); !errors.Is(err, brokerauth.ErrLoginRequired) {
			time.Sleep(accessLife) // it may still have been valid
			if _, err := s.Token(t.Context()); !errors.Is(err, brokerauth.ErrLoginRequired) {
				t.Errorf("a dead login gives a token: %v", err)
			}
		}
		if n := server.count(asked, refused); n > 0 {
			t.Errorf("the server was asked %d more times", n)
		}
		if err := s.Ensure(t.Context(), person, time.Hour); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Refresh(t.Context(), nil); err != nil {
			t.Error(err)
		}
	})
	begin := func(t *testing.T) *brokerauth.Login {
		login, err := p.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return login
	}
	t.Run("a code twice", func(t *testing.T) {
		login := begin(t)
		callback := capture(t, login)
		token, err := p.Complete(t.Context(), login, callback)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Complete(t.Context(), login, callback); !errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Errorf("a code was taken twice: %v", err)
		}
		if _, err := p.Refresh(t.Context(), token); !errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Errorf("the tokens of a code that came twice: %v", err)
		}
	})
	t.Run("another verifier", func(t *testing.T) {
		login := begin(t)
		callback := capture(t, login)
		login.Secret = oauth2.GenerateVerifier()
		if _, err := p.Complete(t.Context(), login, callback); !errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Errorf("a code with another login's verifier: %v", err)
		}
	})
	t.Run("another issuer", func(t *testing.T) {
		login := begin(t)
		callback := capture(t, login)
		forged := strings.Replace(callback, "iss="+url.QueryEscape(server.issuer), "iss=https%3A%2F%2Fevil.example", 1)
		if forged == callback {
			t.Fatal("the callback has no iss")
		}
		var e *brokerauth.Error
		if _, err := p.Complete(t.Context(), login, forged); !errors.As(err, &e) || e.Kind != nil || e.Status != 0 {
			t.Errorf("a callback of another issuer: %v", err)
		}
		if _, err := p.Complete(t.Context(), login, callback); err != nil {
			t.Errorf("its code was spent: %v", err)
		}
	})
	t.Run("another secret", func(t *testing.T) {
		other, err := strict(server.issuer, "not-the-secret")
		if err != nil {
			t.Fatal(err)
		}
		login := begin(t)
		if _, err := other.Complete(t.Context(), login, capture(t, login)); !errors.Is(err, brokerauth.ErrRejected) {
			t.Errorf("a wrong secret: %v", err)
		}
	})
	if n := server.count(0, event{Event: "broken"}); n > 0 {
		t.Errorf("the server broke: %+v", server.events)
	}
}
