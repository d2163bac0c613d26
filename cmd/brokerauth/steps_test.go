package main

import (
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
)

// approved is where the broker sends a user who approves at address.
func approved(t *testing.T, address string) string {
	t.Helper()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.PostForm(address, url.Values{"button": {"approve"}})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	callback := resp.Header.Get("Location")
	if callback == "" {
		t.Fatalf("an approval at %s is answered %s", address, resp.Status)
	}
	return callback
}

// startLogin runs login --start, and returns the address that it prints and the file in which the login waits.
func (p *place) startLogin(args ...string) (address, file string) {
	p.t.Helper()
	r := p.must(0, append([]string{"login", "schwab", "--start"}, args...)...)
	wantAll(p.t, r.errors, "brokerauth login schwab", "--finish -", "30 seconds")
	address = strings.TrimSuffix(r.out, "\n")
	if strings.ContainsAny(address, " \n") || !strings.HasPrefix(address, p.env["SCHWAB_BASE_URL"]) {
		p.t.Fatalf("login --start does not print the login page's address alone:\n%s", r.out)
	}
	filepath.WalkDir(p.dir, func(path string, _ os.DirEntry, err error) error {
		if name := filepath.Base(path); err == nil && strings.Contains(name, "~login") && strings.HasSuffix(name, ".json") {
			file = path
		}
		return nil
	})
	if file == "" {
		p.t.Fatal("the started login is kept nowhere")
	}
	return address, file
}

func (p *place) finish(typed string) result {
	p.t.Helper()
	return p.runWith(func(cmd *exec.Cmd) { cmd.Stdin = strings.NewReader(typed) }, "login", "schwab", "--finish", "-")
}

func TestTwoSteps(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	none := p.finish("")
	if none.code != 2 || !strings.Contains(none.errors, "run: brokerauth login schwab --start") {
		t.Errorf("with no login started: exit code %d\n%s", none.code, none.errors)
	}
	older, _ := p.startLogin()
	address, file := p.startLogin()
	if info, err := os.Stat(file); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("the started login is kept as %v, %v", info.Mode(), err)
	}
	if r := p.run("status"); strings.Contains(r.out+r.errors, "~") {
		t.Errorf("a started login is shown as a login:\n%s%s", r.out, r.errors)
	}
	for _, wrong := range []string{"", "\n", "hello\n", approved(t, older) + "\n", p.env["SCHWAB_CALLBACK_URL"] + "/?state=x\n"} {
		if r := p.finish(wrong); r.code != 1 || strings.Count(r.errors, "\n") != 1 {
			t.Errorf("finished with %.20q: exit code %d\n%s", wrong, r.code, r.errors)
		}
	}
	r := p.finish("\"" + approved(t, address) + "\"\r\n")
	if r.code != 0 || !strings.Contains(r.out, "schwab: logged in: ") || !strings.Contains(r.out, "log in again by") || r.errors != "" {
		t.Fatalf("finished: exit code %d\n%s%s", r.code, r.out, r.errors)
	}
	p.must(0, "token", "schwab")
	if _, err := os.Stat(file); err == nil {
		t.Error("the started login is kept after its end")
	}
	if r := p.finish(approved(t, address)); r.code != 2 {
		t.Errorf("a second finish: exit code %d\n%s", r.code, r.errors)
	}
	if n := p.calls("authorization_code"); n != 1 {
		t.Errorf("%d codes were traded, want 1", n)
	}
	for _, secret := range p.broker.Secrets() {
		if strings.Contains(p.all.String(), secret) {
			t.Errorf("a secret was shown: %.8s…", secret)
		}
	}
}

// Of many that finish a login at once, one sends the code.
func TestFinishedAtOnce(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{Latency: 300 * time.Millisecond})
	address, _ := p.startLogin()
	callback := approved(t, address)
	var runs sync.WaitGroup
	codes := make(chan int, 8)
	for range cap(codes) {
		runs.Go(func() { codes <- p.finish(callback).code })
	}
	runs.Wait()
	close(codes)
	count := map[int]int{}
	for code := range codes {
		count[code]++
	}
	sent := 0
	for _, r := range p.broker.Requests() {
		if r.GrantType == "authorization_code" {
			sent++
		}
	}
	if count[0] != 1 || count[2] != 7 || sent != 1 {
		t.Errorf("exit codes %v and %d codes sent, want one 0, seven 2 and one code", count, sent)
	}
	p.must(0, "token", "schwab")
}

func TestStartedLoginEnds(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	address, file := p.startLogin()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var login brokerauth.Login
	if err := json.Unmarshal(raw, &login); err != nil {
		t.Fatal(err)
	}
	login.Began = login.Began.Add(-61 * time.Minute)
	if raw, err = json.Marshal(login); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := p.finish(approved(t, address)); r.code != 2 || !strings.Contains(r.errors, "waited too long") {
		t.Errorf("after an hour: exit code %d\n%s", r.code, r.errors)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("a login that has waited too long is kept")
	}

	// What the broker has refused is not tried again.
	address, _ = p.startLogin()
	callback := approved(t, address)
	p.broker.Advance(time.Minute)
	if r := p.finish(callback); r.code != 3 || !strings.Contains(r.errors, "30 seconds") {
		t.Errorf("with an old code: exit code %d\n%s", r.code, r.errors)
	}
	if r := p.finish(callback); r.code != 2 {
		t.Errorf("with an old code again: exit code %d\n%s", r.code, r.errors)
	}

	for _, args := range [][]string{
		{"login", "schwab", "--finish", "https://127.0.0.1:8182/?code=C0.typed-by-mistake@&state=x"}, {"login", "schwab", "--start", "--finish", "-"}, {"login", "schwab", "--start", "--flow", "paste"},
		{"login", "tastytrade", "--start"}, {"login", "tastytrade", "--finish", "-"},
	} {
		if r := p.must(2, args...); strings.Contains(r.errors, "code=") {
			t.Errorf("the address is repeated:\n%s", r.errors)
		}
	}
}
