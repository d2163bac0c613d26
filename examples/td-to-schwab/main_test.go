package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/internal/engine"
)

// The test is its own browser.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "browse" {
		if err := browse(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// browse is a user who consents on whatever login page address leads to.
func browse(address string) error {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return err
	}
	client := &http.Client{Jar: jar, Timeout: 5 * time.Minute, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // it dials loopback only
	}}
	page, err := client.Get(address)
	if err != nil {
		return err
	}
	page.Body.Close()
	resp, err := client.PostForm(page.Request.URL.String(), url.Values{"button": {"approve"}})
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// The program runs at both brokers, with one line changed.
func TestBothBrokers(t *testing.T) {
	program, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	const now, was = "app, path, err := newSchwab()", "app, path, err := newTDAmeritrade()"
	if strings.Count(string(program), now) != 1 {
		t.Fatalf("%q is not one line of the program", now)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for broker, line := range map[string]string{"schwab": now, "tdameritrade": was} {
		pretend, err := emulator.New(broker, emulator.Config{})
		if err != nil {
			t.Fatal(err)
		}
		server := httptest.NewServer(pretend)
		defer server.Close()
		dir := t.TempDir()
		source := filepath.Join(dir, "main.go")
		if err := os.WriteFile(source, []byte(strings.Replace(string(program), now, line, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		built := filepath.Join(dir, "program.exe")
		if out, err := exec.Command("go", "build", "-o", built, source).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", broker, err, out)
		}
		for range 2 { // the second run finds the login
			cmd := exec.CommandContext(t.Context(), built)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "BROWSER="+self+" browse %s", "HOME="+dir, "XDG_CONFIG_HOME="+dir, "XDG_STATE_HOME="+dir,
				"AppData="+dir, "LocalAppData="+dir,
				"SCHWAB_APP_KEY=key", "SCHWAB_APP_SECRET=secret", "SCHWAB_CALLBACK_URL=https://127.0.0.1:"+engine.FreePort(t), "SCHWAB_BASE_URL="+server.URL,
				"TD_CLIENT_ID=key", "TD_CALLBACK_URL=http://127.0.0.1:"+engine.FreePort(t), "TD_BASE_URL="+server.URL)
			out, err := cmd.Output()
			if exit, ok := errors.AsType[*exec.ExitError](err); ok {
				t.Fatalf("%s: %v\n%s", broker, err, exit.Stderr)
			}
			if err != nil || !strings.HasPrefix(string(out), "200 OK") || !strings.Contains(string(out), "account") {
				t.Errorf("%s: it prints %q, %v", broker, out, err)
			}
		}
		logins := 0
		for _, r := range pretend.Requests() {
			if r.GrantType == "authorization_code" {
				logins++
			}
		}
		if logins != 1 {
			t.Errorf("%s: %d logins, want 1", broker, logins)
		}
	}
}
