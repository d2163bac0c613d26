package main

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/brokerauth/brokerauth/conformance/emulator"
)

// start runs the command at a terminal of its own.
func (p *place) start(args ...string) (person *os.File, screen *buffer, wait func() int) {
	p.t.Helper()
	person, program := terminal(p.t.(*testing.T))
	screen = new(buffer)
	go func() {
		for b := make([]byte, 1024); ; {
			n, err := person.Read(b)
			if err != nil {
				return
			}
			screen.Write(b[:n])
		}
	}()
	cmd := p.command(args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = program, program, program
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	return person, screen, func() int { return exitOf(cmd.Wait()) }
}

// silent waits until the terminal shows question and nothing of what is typed.
func silent(t *testing.T, person *os.File, screen *buffer, question string) {
	t.Helper()
	until(t, "it asks for "+question+" without echo", func() bool {
		state, err := unix.IoctlGetTermios(int(person.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(screen.String(), question) && state.Lflag&unix.ECHO == 0
	})
	time.Sleep(20 * time.Millisecond)
}

func TestGrantTyped(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).at("tastytrade", emulator.Config{}).with("TASTY_CLIENT_SECRET", "", "TASTY_REFRESH_TOKEN", "")
	for _, try := range []struct {
		secret string
		code   int
	}{{"wrong", 2}, {testSecret, 0}} {
		person, screen, wait := p.start("login", "tastytrade")
		silent(t, person, screen, "client secret")
		person.WriteString(try.secret + "\n")
		silent(t, person, screen, "refresh token")
		person.WriteString(testGrant + "\n")
		if code := wait(); code != try.code {
			t.Fatalf("exit code %d, want %d\n%s", code, try.code, screen)
		}
		if try.code == 0 {
			until(t, "it says what is needed from now on", func() bool { return strings.Contains(screen.String(), "later runs need no settings") })
		}
		for _, secret := range []string{try.secret + "\r", testSecret, testGrant} {
			if strings.Contains(screen.String(), secret) {
				t.Errorf("the terminal shows what was typed:\n%s", screen)
			}
		}
	}
	p.must(0, "token", "tastytrade")
	wantAll(t, p.must(0, "login", "tastytrade", "--within", "12h").out, "still logged in")
}

// A login is not shown, and stays where it is.
func TestExportToTerminal(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	p.login()
	token := strings.TrimSpace(p.must(0, "token", "schwab").out)
	for _, how := range []string{"--move", "--copy"} {
		_, screen, wait := p.start("export", "schwab", how)
		if code := wait(); code != 2 {
			t.Errorf("export %s: exit code %d", how, code)
		}
		until(t, "it says why", func() bool { return strings.Contains(screen.String(), "terminal") })
		if strings.Contains(screen.String(), token) {
			t.Error("the terminal shows the login")
		}
	}
	p.must(0, "token", "schwab")
}

// The key of an encrypted file may be typed.
func TestFernetTyped(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	file := p.write("sealed.json", fresh(t, "schwabdev-3-encrypted.json", "emulated.a", "emulated.r"), 0o600)
	person, screen, wait := p.start("import", file)
	silent(t, person, screen, "encryption key")
	person.WriteString(testFernet + "\n")
	if code := wait(); code != 0 || strings.Contains(screen.String(), testFernet) {
		t.Errorf("exit code %d\n%s", code, screen)
	}
}
