//go:build unix

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/internal/child"
)

// until waits for something that another process does, keep's next scan among them.
func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after two minutes still not: %s", what)
		}
	}
}

type buffer = child.Output

func exitOf(err error) int {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		return -2
	}
	return 0
}

// hangups has children of this test be ended by a hangup although it may run under nohup: they inherit that it is ignored,
// but not that it is handled.
func hangups(t *testing.T) {
	handled := make(chan os.Signal, 1)
	signal.Notify(handled, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(handled) })
}

func TestInterruptedLogin(t *testing.T) {
	t.Parallel()
	hangups(t)
	p := newPlace(t, emulator.Config{})
	p.login()
	before, err := os.ReadFile(p.record())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} {
		var said buffer
		cmd := p.command("login", "schwab", "--flow", "browser", "--browser", "none", "--timeout", "0")
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		until(t, "the login shows its address", func() bool { return strings.Contains(said.String(), "Log in at:") })
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		if code := exitOf(cmd.Wait()); code != 130 {
			t.Errorf("%v: exit code %d, want 130\n%s", s, code, said.String())
		}
		// Whoever gives up has met a page that says little.
		wantAll(t, said.String(), "Access Denied", "4001", "Session rejected", "assertion_rejected", "401", "Ready For Use", "500")
		l, err := net.Listen("tcp", strings.TrimPrefix(p.env["SCHWAB_CALLBACK_URL"], "https://"))
		if err != nil {
			t.Fatalf("%v: the port is not free: %v", s, err)
		}
		l.Close()
	}
	if after, err := os.ReadFile(p.record()); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the stored login was changed: %v", err)
	}
	p.must(0, "token", "schwab")
}

// underWay starts the command and returns when it has sent a token call, which the broker answers after answer was called.
func underWay(t *testing.T, p *place, said io.Writer, args ...string) (cmd *exec.Cmd, answer func()) {
	t.Helper()
	sent, answer := p.gate.shut()
	t.Cleanup(answer)
	cmd = p.command(args...)
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-sent:
	case <-time.After(time.Minute):
		t.Fatalf("brokerauth %s: a minute later it has sent no token call", strings.Join(args, " "))
	}
	return cmd, answer
}

// The broker has answered by the time that an interrupted refresh ends, and what it issued is there for all others.
// timeout(1) sends its signal twice, and so does a terminal that closes.
func TestInterruptedRefresh(t *testing.T) {
	t.Parallel()
	hangups(t)
	for name, signals := range map[string][]os.Signal{
		"an interrupt":      {os.Interrupt},
		"a timeout":         {syscall.SIGTERM, syscall.SIGTERM},
		"a closed terminal": {syscall.SIGHUP, syscall.SIGHUP},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t, emulator.Config{Rotate: true})
			p.login()
			before := p.must(0, "token", "schwab").out
			var said buffer
			cmd, answer := underWay(t, p, &said, "refresh", "schwab")
			for _, s := range signals {
				cmd.Process.Signal(s)
				time.Sleep(5 * time.Millisecond) // or two of one kind are one
			}
			until(t, "it says that it waits", func() bool { return strings.Contains(said.String(), "to save it") })
			answer()
			if code := exitOf(cmd.Wait()); code != 130 {
				t.Errorf("exit code %d, want 130", code)
			}
			wantAll(t, said.String(), "to save it", "interrupted; the new token was saved\n")
			if n := p.calls("refresh_token"); n != 1 {
				t.Fatalf("the broker answered %d refreshes, want 1", n)
			}
			if after := p.must(0, "token", "schwab").out; after == before {
				t.Error("the new token was not saved")
			}
			// The refresh token was kept, too: the broker takes an old one for theft.
			p.must(0, "refresh", "schwab")
		})
	}
}

func TestSecondInterrupt(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	p.login()
	var said buffer
	cmd, _ := underWay(t, p, &said, "refresh", "schwab")
	cmd.Process.Signal(os.Interrupt)
	until(t, "it says that it waits", func() bool { return strings.Contains(said.String(), "again") })
	cmd.Process.Signal(os.Interrupt)
	if code := exitOf(cmd.Wait()); code != 130 {
		t.Errorf("exit code %d, want 130", code)
	}
	// Had it gone on waiting, it would tell that the broker did not answer.
	if !strings.HasSuffix(said.String(), "interrupt again to end at once\n") {
		t.Errorf("after a second interrupt it says more:\n%s", said.String())
	}
}

// That a token cannot be saved is told, and once.
func TestUnsaved(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	p.login()
	dir := filepath.Dir(p.record())
	defer os.Chmod(dir, 0o700)
	for _, test := range []struct {
		command   string
		interrupt bool
		code      int
	}{{"refresh", false, 1}, {"refresh", true, 130}, {"login", false, 1}} {
		os.Chmod(dir, 0o700)
		var said buffer
		cmd, answer := underWay(t, p, &said, test.command, "schwab", "--store", "disk")
		os.Chmod(dir, 0o777) // which the store refuses
		if test.interrupt {
			cmd.Process.Signal(os.Interrupt)
			until(t, "it says that it waits", func() bool { return strings.Contains(said.String(), "to save it") })
		}
		answer()
		if got := exitOf(cmd.Wait()); got != test.code || strings.Contains(said.String(), "was saved") || strings.Count(said.String(), "could not be saved") != 1 {
			t.Errorf("%s, interrupted %v: exit code %d, want %d\n%s", test.command, test.interrupt, got, test.code, said.String())
		}
	}
}

// Whoever reads what the command says may go away: no token is lost by that.
func TestReaderGone(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{Rotate: true})
	p.login()
	broken := func() *os.File {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		t.Cleanup(func() { w.Close() })
		return w
	}
	last := p.must(0, "token", "schwab").out
	for _, test := range []struct {
		name        string
		out, errors *os.File
		code        int
	}{
		{"standard error", nil, broken(), 0},
		{"standard output", broken(), nil, 1},
		{"both", broken(), broken(), 1},
	} {
		cmd := p.with("BROKERAUTH_LOG", "debug").command("refresh", "schwab")
		if test.out != nil {
			cmd.Stdout = test.out
		}
		if test.errors != nil {
			cmd.Stderr = test.errors
		}
		if code := exitOf(cmd.Run()); code != test.code {
			t.Errorf("%s: exit code %d, want %d", test.name, code, test.code)
		}
		now := p.must(0, "token", "schwab").out
		if now == last {
			t.Errorf("%s: the new token was not saved", test.name)
		}
		last = now
	}
	cmd := p.command("token", "schwab")
	cmd.Stdout = broken()
	if code := exitOf(cmd.Run()); code != 1 {
		t.Errorf("a token that nobody got: exit code %d, want 1", code)
	}
}

// What a flow cannot do is told in the command's words.
func TestNoFlow(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	far := p.with("SCHWAB_CALLBACK_URL", "https://app.example.com/back")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	busy := p.with("SCHWAB_CALLBACK_URL", "https://"+taken.Addr().String())
	noTerminal := func(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }
	for _, test := range []struct {
		place      *place
		flow, want string
		code       int
	}{
		{p, "paste", "leave --flow paste out", 2},
		{far, "paste", "leave --flow paste out", 2},
		{far, "auto", "https://127.0.0.1:8182", 2},
		{far, "browser", "give --flow paste", 2},
		{busy, "auto", "give --flow paste", 1},
		{busy, "browser", "give --flow paste", 1},
	} {
		r := test.place.runWith(noTerminal, "login", "schwab", "--flow", test.flow)
		if r.code != test.code || !strings.Contains(r.errors, test.want) || strings.Contains(r.errors, "Options") {
			t.Errorf("--flow %s at %s: exit code %d, want %d and %q\n%s", test.flow, test.place.env["SCHWAB_CALLBACK_URL"],
				r.code, test.code, test.want, r.errors)
		}
		for _, said := range []string{"file does not exist", "unsupported operation", "address already in use"} {
			if strings.Contains(r.errors, said) {
				t.Errorf("--flow %s: %q says less than what stands before it: %s", test.flow, said, r.errors)
			}
		}
	}
}

// A store that takes nothing is told before anybody is asked, with what to do.
func TestStoreFull(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	full := func(cmd *exec.Cmd) {
		cmd.Args = append([]string{"sh", "-c", `ulimit -f 0; exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
		cmd.Path = "/bin/sh"
	}
	r := p.runWith(full, "login", "schwab")
	wantAll(t, r.errors, "nobody was asked", filepath.Join(p.dir, "state"), "--store disk:DIR")
	if r.code != 1 || strings.Contains(r.errors, "probe") || len(p.broker.Requests()) > 0 {
		t.Errorf("exit code %d, %d requests\n%s", r.code, len(p.broker.Requests()), r.errors)
	}
}

func TestEmulate(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	logFile := filepath.Join(p.dir, "requests")
	for _, flags := range [][]string{
		{"--auto-approve"},
		{"--tls", "--auto-approve", "--rotate", "--access-ttl", "60s", "--login-ttl", "1d", "--latency", "10ms",
			"--client-id", testKey, "--client-secret", testSecret, "--log", logFile},
	} {
		cmd := p.command(append([]string{"emulate", "schwab"}, flags...)...)
		var said buffer
		cmd.Stderr = &said
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		next := func() string {
			if !lines.Scan() {
				t.Fatalf("emulate %q ended: %s", flags, said.String())
			}
			return lines.Text()
		}
		base := next()
		if u, err := url.Parse(base); err != nil || u.Hostname() != "127.0.0.1" || u.Path != "" {
			t.Fatalf("the first line is %q", base)
		}
		user := p.with("SCHWAB_BASE_URL", base)
		if strings.HasPrefix(base, "https:") {
			cert := next()
			user.env["SSL_CERT_FILE"] = cert
			defer func() {
				if _, err := os.Stat(filepath.Dir(cert)); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the certificate is left behind: %v", err)
				}
			}()
		}
		user.login()
		wantAll(t, user.must(0, "token", "schwab").out, "emulated.")
		cmd.Process.Signal(syscall.SIGTERM)
		if code := exitOf(cmd.Wait()); code != 0 || said.String() != "" {
			t.Errorf("emulate: exit code %d\n%s", code, said.String())
		}
	}
	text, err := os.ReadFile(logFile)
	if err != nil {
		t.Fatal(err)
	}
	exchanges := 0
	for line := range strings.Lines(string(text)) {
		var r struct {
			Time   time.Time
			Method string
			Path   string
			Status int
			Grant  string `json:"grant_type"`
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil || r.Time.IsZero() || r.Method == "" || r.Path == "" || r.Status == 0 {
			t.Errorf("the log has %q: %v", line, err)
		}
		if r.Grant == "authorization_code" {
			exchanges++
		}
	}
	if exchanges != 1 {
		t.Errorf("the log has %d exchanges, want 1:\n%s", exchanges, text)
	}
}

// BenchmarkColdStart compares "token" from a warm store with a program that does nothing, by the medians of their runs. What
// lies between shows where the time goes: a program that imports net/http and uses nothing of it, one that prints the token
// by the library alone, and the command as it is built where there is no C compiler.
func BenchmarkColdStart(b *testing.B) {
	sources := map[string]string{
		"empty": "package main\n\nfunc main() {}\n",
		"http":  "package main\n\nimport \"net/http\"\n\nvar Client http.Client\n\nfunc main() {}\n",
		"library": `package main

import (
	"context"
	"fmt"
	"os"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/providers/schwab"
	"github.com/brokerauth/brokerauth/storage/disk"
)

func main() {
	app, err := schwab.New(schwab.Config{AppKey: os.Getenv("SCHWAB_APP_KEY"), AppSecret: os.Getenv("SCHWAB_APP_SECRET"),
		CallbackURL: os.Getenv("SCHWAB_CALLBACK_URL"), BaseURL: os.Getenv("SCHWAB_BASE_URL")})
	if err != nil {
		panic(err)
	}
	store, err := disk.New("")
	if err != nil {
		panic(err)
	}
	session := &brokerauth.Session{Provider: app, Store: store}
	defer session.Close()
	token, err := session.Token(context.Background())
	if err != nil {
		panic(err)
	}
	fmt.Println(token.AccessToken)
}
`,
	}
	dir := b.TempDir()
	build := func(name, source string, env ...string) string {
		program := filepath.Join(dir, name)
		cmd := exec.Command("go", "build", "-o", program, source)
		cmd.Env = append(os.Environ(), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
		return program
	}
	programs := map[string]string{"": build("brokerauth", "."), "static": build("static", ".", "CGO_ENABLED=0")}
	for name, text := range sources {
		source := filepath.Join(dir, name+".go")
		if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
		programs[name] = build(name, source)
	}
	p := newPlace(b, emulator.Config{})
	p.login()
	took := make(map[string][]time.Duration)
	for b.Loop() {
		for name, program := range programs {
			cmd := p.command("token", "schwab")
			cmd.Path = program
			began := time.Now()
			if err := cmd.Run(); err != nil {
				b.Fatalf("%s: %v", name, err)
			}
			took[name] = append(took[name], time.Since(began))
		}
	}
	median := func(name string) float64 {
		slices.Sort(took[name])
		return float64(took[name][len(took[name])/2])
	}
	for name := range programs {
		if name != "empty" {
			b.ReportMetric(median(name)/median("empty"), name+"×empty")
		}
	}
}
