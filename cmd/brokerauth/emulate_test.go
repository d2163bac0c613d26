//go:build unix

package main

import (
	"bufio"
	"strings"
	"syscall"
	"testing"

	"github.com/brokerauth/brokerauth/conformance/emulator"
)

// emulate runs "emulate" until stop is called, and returns its first n lines.
func (p *place) emulate(n int, args ...string) (lines []string, stop func()) {
	p.t.Helper()
	cmd := p.command(append([]string{"emulate"}, args...)...)
	var said buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	scanner := bufio.NewScanner(out)
	for len(lines) < n && scanner.Scan() {
		lines = append(lines, scanner.Text())
	}
	if len(lines) < n {
		p.t.Fatalf("emulate %q says only %q", args, lines)
	}
	return lines, func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if code := exitOf(cmd.Wait()); code != 0 || said.String() != "" {
			p.t.Errorf("emulate %q: exit code %d, %s", args, code, said.String())
		}
	}
}

// What emulate all prints are settings that work as they stand.
func TestEmulateAll(t *testing.T) {
	t.Parallel()
	for _, flags := range [][]string{{"all"}, {"all", "--tls"}, {"all", "--grant", testGrant},
		{"all", "--client-id", testKey, "--client-secret", testSecret}} {
		user := newPlace(t, emulator.Config{}).with("SCHWAB_APP_KEY", "", "SCHWAB_APP_SECRET", "", "SCHWAB_CALLBACK_URL", "", "SCHWAB_BASE_URL", "")
		n := 10
		switch flags[len(flags)-1] {
		case "--tls", testSecret:
			n = 11
		}
		lines, stop := user.emulate(n, flags...)
		defer stop()
		for _, line := range lines {
			name, value, found := strings.Cut(strings.TrimPrefix(line, "export "), "=")
			if !found || value == "" || !strings.HasPrefix(line, "export ") {
				t.Fatalf("emulate all says %q", line)
			}
			user.env[name] = value
		}
		for _, broker := range []string{"schwab", "tdameritrade"} {
			user.must(0, "login", broker)
		}
		for _, broker := range []string{"schwab", "tdameritrade", "tastytrade"} {
			if token := user.must(0, "token", broker).out; !strings.HasPrefix(token, "emulated.") {
				t.Errorf("the token of %s is %q", broker, token)
			}
		}
	}
}

func TestEmulateTastytrade(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).with("TASTY_CLIENT_SECRET", testSecret)
	lines, stop := p.emulate(2, "tastytrade")
	defer stop()
	grant, found := strings.CutPrefix(lines[1], "TASTY_REFRESH_TOKEN=emulated.")
	if !found {
		t.Fatalf("the grant is told by %q", lines[1])
	}
	p.with("TASTY_BASE_URL", lines[0], "TASTY_REFRESH_TOKEN", "emulated."+grant).must(0, "token", "tastytrade")

	own, stopOwn := p.emulate(1, "tastytrade", "--grant", testGrant)
	defer stopOwn()
	p.with("TASTY_BASE_URL", own[0], "TASTY_REFRESH_TOKEN", testGrant).must(0, "token", "tastytrade")
	p.with("TASTY_BASE_URL", own[0], "TASTY_REFRESH_TOKEN", "emulated."+grant).must(2, "token", "tastytrade")
	p.must(2, "emulate", "schwab", "--grant", testGrant)
}
