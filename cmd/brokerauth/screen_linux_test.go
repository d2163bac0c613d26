package main

import (
	"strings"
	"testing"

	"github.com/brokerauth/brokerauth/conformance/emulator"
)

// At a terminal a login counts down the time that is left and shows its address in bold; elsewhere it is plain text.
func TestScreen(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		env   []string
		bold  bool
		count bool
	}{
		{[]string{"TERM", "xterm-256color"}, true, true},
		{[]string{"TERM", "xterm-256color", "NO_COLOR", "1"}, false, true},
		{[]string{"TERM", "dumb"}, false, false},
	} {
		p := newPlace(t, emulator.Config{}).with(test.env...)
		person, screen, wait := p.start("login", "schwab", "--browser", "none", "--timeout", "90s")
		until(t, "it shows where to log in", func() bool { // all of it: a terminal's lines come in pieces
			_, rest, found := strings.Cut(screen.String(), "/v1/oauth/authorize")
			return found && strings.Contains(rest, "\n")
		})
		var address string
		until(t, "it counts down", func() bool {
			return !test.count || strings.Contains(screen.String(), "s left; Ctrl-C gives up") || strings.Contains(screen.String(), "min left; Ctrl-C gives up")
		})
		for line := range strings.Lines(screen.String()) {
			if strings.HasPrefix(line, "    ") && strings.Contains(line, "/v1/oauth/authorize") {
				address = strings.TrimRight(strings.TrimSpace(line), "\r\n")
			}
		}
		if bold := strings.HasPrefix(address, "\x1b[1m") && strings.HasSuffix(address, "\x1b[0m"); bold != test.bold {
			t.Errorf("%q: the address is shown as %q", test.env, address)
		}
		if !test.count && strings.Contains(screen.String(), "\x1b") {
			t.Errorf("%q: the text is not plain: %q", test.env, screen)
		}
		address = strings.TrimSuffix(strings.TrimPrefix(address, "\x1b[1m"), "\x1b[0m")
		person.WriteString(approved(t, address) + "\n")
		if code := wait(); code != 0 {
			t.Errorf("%q: exit code %d\n%s", test.env, code, screen)
		}
		until(t, "it says when the next login is due", func() bool { return strings.Contains(screen.String(), "log in again by") })
		if text := screen.String(); test.count && strings.Contains(text[strings.LastIndex(text, "\x1b[K"):], "Ctrl-C") {
			t.Errorf("%q: the count is left behind: %q", test.env, text)
		}
	}
	p := newPlace(t, emulator.Config{}).with("TERM", "xterm-256color")
	r := p.run("login", "schwab")
	if r.code != 0 || strings.Contains(r.out+r.errors, "\x1b") || strings.Contains(r.errors, "Ctrl-C") {
		t.Errorf("with its output piped: exit code %d\n%s%s", r.code, r.out, r.errors)
	}
}
