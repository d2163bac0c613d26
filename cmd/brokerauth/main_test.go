package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/internal/engine"
	"github.com/brokerauth/brokerauth/internal/hunt"
)

const (
	testKey    = "test-app-key"
	testSecret = "emulated.app-secret-nobody-may-see"
)

// command is a copy of this test under the program's own name, by which it knows to be the program: so a change of the
// program is one of the test, whose results the go command keeps.
var command string

func TestMain(m *testing.M) {
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if strings.TrimSuffix(filepath.Base(self), ".exe") == "brokerauth" {
		main()
	}
	if len(os.Args) == 4 && os.Args[1] == "browse" {
		if err := browse(os.Args[3], os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "brokerauth-test-")
		if err == nil {
			defer os.RemoveAll(dir)
			command = filepath.Join(dir, "brokerauth")
			if runtime.GOOS == "windows" {
				command += ".exe"
			}
			var program []byte
			if program, err = os.ReadFile(self); err == nil {
				err = os.WriteFile(command, program, 0o700)
			}
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// browse plays a browser that accepts the flow's certificate, and a user who presses button.
func browse(address, button string) error {
	// Other users of a computer see the arguments of its programs, and a browser's crash reports have its environment. The
	// marker finds what a pretend broker issues, and the app's secret. A login then fails at once.
	if hunt.Find(strings.Join(append(os.Environ(), os.Args...), "\n"), "emulated.") != nil {
		button = "deny"
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		return err
	}
	client := &http.Client{Jar: jar, Timeout: 5 * time.Minute, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // it dials loopback only
	}}
	forge := button == "forge"
	client.CheckRedirect = func(req *http.Request, _ []*http.Request) error {
		if forge && req.URL.Query().Get("code") != "" {
			q := req.URL.Query()
			q.Set("state", "forged")
			req.URL.RawQuery = q.Encode()
		}
		return nil
	}
	page, err := client.Get(address)
	if err != nil {
		return err
	}
	page.Body.Close()
	if forge {
		button = "approve"
	}
	resp, err := client.PostForm(page.Request.URL.String(), url.Values{"button": {button}})
	if err != nil {
		return err
	}
	io.Copy(io.Discard, resp.Body)
	return resp.Body.Close()
}

// gate stands before a broker, and keeps token calls from it while it is shut.
type gate struct {
	broker http.Handler

	mu      sync.Mutex
	arrived chan struct{} // nil while it is open
	opened  chan struct{}
}

// shut returns what tells of each token call that comes from now on, and what lets all of them go on to the broker.
func (g *gate) shut() (arrived <-chan struct{}, open func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.arrived, g.opened = make(chan struct{}, 16), make(chan struct{})
	opened := g.opened
	return g.arrived, sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		close(opened)
		if g.opened == opened {
			g.arrived, g.opened = nil, nil
		}
	})
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	arrived, opened := g.arrived, g.opened
	g.mu.Unlock()
	if arrived != nil && r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/token") {
		body, err := io.ReadAll(r.Body) // else the server does not see that a client has left
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		arrived <- struct{}{}
		select {
		case <-opened:
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	}
	g.broker.ServeHTTP(w, r)
}

// place is a user's home with an emulated broker to log in to.
type place struct {
	t      testing.TB
	dir    string
	broker *emulator.Broker
	gate   *gate // before the broker
	env    map[string]string

	*heard // shared by all copies
}

// heard is what the hunt for secrets looks at.
type heard struct {
	mu      sync.Mutex
	all     strings.Builder // all that any run has said, but for the answers of token and export
	brokers []*emulator.Broker
	written map[string]bool // files that the test wrote, for others to read perhaps
}

// hunt fails the test if a secret was said, is a file's name or stands in a file that others can read.
func (p *place) hunt() {
	p.t.Helper()
	secrets := []string{testSecret, testGrant}
	for _, b := range p.brokers {
		secrets = append(secrets, b.Secrets()...)
	}
	for _, what := range hunt.Find(p.all.String(), secrets...) {
		p.t.Errorf("the command said %s", what)
	}
	if runtime.GOOS == "windows" {
		return // it has no such modes
	}
	written := func(path string) bool {
		return p.written[path] || strings.HasPrefix(filepath.Base(path), "tokens.db") // Schwabdev's
	}
	for _, what := range hunt.Tree(p.dir, written, secrets...) {
		p.t.Error(what)
	}
}

func newPlace(t testing.TB, config emulator.Config) *place {
	t.Helper()
	config.ClientID, config.ClientSecret = testKey, testSecret
	broker, err := emulator.New("schwab", config)
	if err != nil {
		t.Fatal(err)
	}
	before := &gate{broker: broker}
	server := httptest.NewServer(before)
	t.Cleanup(server.Close)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	kept := &heard{brokers: []*emulator.Broker{broker}, written: make(map[string]bool)}
	p := &place{t: t, dir: dir, broker: broker, gate: before, heard: kept, env: map[string]string{
		"HOME": dir, "XDG_CONFIG_HOME": filepath.Join(dir, "config"), "XDG_STATE_HOME": filepath.Join(dir, "state"),
		"AppData": filepath.Join(dir, "config"), "LocalAppData": filepath.Join(dir, "state"), "SystemRoot": os.Getenv("SystemRoot"),
		"PATH": os.Getenv("PATH"), "TMPDIR": dir, "TEMP": dir,
		"BROKERAUTH_STORE": "disk",              // a test must not look for the user's keyring
		"GORACE":           "atexit_sleep_ms=0", // else the race detector's second at each exit
		"BROWSER":          self + " browse approve %s",
		"SCHWAB_APP_KEY":   testKey, "SCHWAB_APP_SECRET": testSecret,
		"SCHWAB_CALLBACK_URL": "https://" + freeAddress(t), "SCHWAB_BASE_URL": server.URL,
	}}
	t.Cleanup(p.hunt)
	return p
}

func freeAddress(t testing.TB) string {
	t.Helper()
	return "127.0.0.1:" + engine.FreePort(t)
}

// with returns a copy of the place with another environment; an empty value unsets.
func (p *place) with(pairs ...string) *place {
	c := &place{t: p.t, dir: p.dir, broker: p.broker, gate: p.gate, heard: p.heard, env: make(map[string]string)}
	for name, value := range p.env {
		c.env[name] = value
	}
	for i := 0; i < len(pairs); i += 2 {
		c.env[pairs[i]] = pairs[i+1]
	}
	return c
}

func (p *place) command(args ...string) *exec.Cmd {
	p.t.Helper()
	// Anybody on the machine sees the arguments of a program; a pretend broker is told its pretend secrets there.
	if args[0] != "emulate" && strings.Contains(strings.Join(args, " "), "emulated.") {
		p.t.Fatalf("brokerauth %s: has a secret among its arguments", args[0])
	}
	cmd := exec.CommandContext(p.t.Context(), command, args...)
	cmd.Dir = p.dir
	cmd.Env = []string{}
	for name, value := range p.env {
		if value != "" {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	return cmd
}

type result struct {
	code        int
	out, errors string
}

func (p *place) run(args ...string) result {
	p.t.Helper()
	var out, errs bytes.Buffer
	cmd := p.command(args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	return p.ended(cmd.Run(), args, &out, &errs)
}

// runWith runs the command in a way of its own.
func (p *place) runWith(change func(cmd *exec.Cmd), args ...string) result {
	p.t.Helper()
	var out, errs bytes.Buffer
	cmd := p.command(args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	change(cmd)
	return p.ended(cmd.Run(), args, &out, &errs)
}

func (p *place) ended(err error, args []string, out, errs *bytes.Buffer) result {
	p.t.Helper()
	r := result{out: out.String(), errors: errs.String()}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		r.code = exit.ExitCode()
	} else if err != nil {
		p.t.Fatalf("brokerauth %s: %v", strings.Join(args, " "), err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all.WriteString(r.errors)
	if args[0] != "token" && args[0] != "export" { // whose answer is the login
		p.all.WriteString(r.out)
	}
	return r
}

// must runs the command and fails the test unless it exits with code.
func (p *place) must(code int, args ...string) result {
	p.t.Helper()
	r := p.run(args...)
	if r.code != code {
		p.t.Fatalf("brokerauth %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), r.code, code, r.out, r.errors)
	}
	if code != 0 && code != 130 && strings.Count(r.errors, "\n") != 1 {
		p.t.Errorf("brokerauth %s: says what is wrong in %d lines, not one:\n%s", strings.Join(args, " "), strings.Count(r.errors, "\n"), r.errors)
	}
	if code != 0 && strings.Contains(r.out+r.errors, "Usage:") {
		p.t.Errorf("brokerauth %s: a failure prints the usage", strings.Join(args, " "))
	}
	return r
}

func (p *place) login(args ...string) result {
	p.t.Helper()
	r := p.run(append([]string{"login", "schwab"}, args...)...)
	if r.code != 0 {
		p.t.Fatalf("login: exit code %d\n%s%s", r.code, r.out, r.errors)
	}
	return r
}

// calls counts the token calls of a kind that the broker has answered with 200.
func (p *place) calls(grant string) int {
	n := 0
	for _, r := range p.broker.Requests() {
		if r.GrantType == grant && r.Status == http.StatusOK {
			n++
		}
	}
	return n
}

// record is the file of the only stored login.
func (p *place) record() string {
	p.t.Helper()
	var found []string
	filepath.WalkDir(p.dir, func(path string, _ os.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(filepath.Base(path), "schwab.") && strings.HasSuffix(path, ".json") {
			found = append(found, path)
		}
		return nil
	})
	if len(found) != 1 {
		p.t.Fatalf("%d logins are stored, want 1: %q", len(found), found)
	}
	return found[0]
}

// edit changes the token in the only stored login.
func (p *place) edit(change func(token map[string]any)) {
	p.t.Helper()
	text, err := os.ReadFile(p.record())
	if err != nil {
		p.t.Fatal(err)
	}
	var record map[string]any
	if err := json.Unmarshal(text, &record); err != nil {
		p.t.Fatal(err)
	}
	change(record["token"].(map[string]any))
	if text, err = json.Marshal(record); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(p.record(), text, 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) write(name, text string, mode os.FileMode) string {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	p.written[path] = true
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		p.t.Fatal(err)
	}
	return path
}

func wantAll(t testing.TB, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in:\n%s", part, text)
		}
	}
}
