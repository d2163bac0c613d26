package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/brokerauth/brokerauth/conformance/emulator"
)

// terminal returns both ends of a new pseudo-terminal.
func terminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

func TestPrompt(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).with("SCHWAB_APP_KEY", "", "SCHWAB_APP_SECRET", "")
	start := func(p *place, broker string) (person *os.File, screen *buffer, wait func() int) {
		person, program := terminal(t)
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
		cmd := p.command("login", broker)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = program, program, program
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return person, screen, func() int { return exitOf(cmd.Wait()) }
	}
	asks := func(screen *buffer, what string) {
		t.Helper()
		until(t, "it asks for "+what, func() bool { return strings.Contains(screen.String(), what) })
	}

	echoes := func(person *os.File) bool {
		state, err := unix.IoctlGetTermios(int(person.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		return state.Lflag&unix.ECHO != 0
	}

	person, screen, wait := start(p, "schwab")
	asks(screen, "the app key")
	person.WriteString(testKey + "\n")
	asks(screen, "the app's secret")
	person.WriteString(testSecret + "\n")
	if code := wait(); code != 0 {
		t.Fatalf("login: exit code %d\n%s", code, screen)
	}
	until(t, "it says what later runs need", func() bool {
		return strings.Contains(screen.String(), "Later runs need SCHWAB_APP_KEY and SCHWAB_APP_SECRET")
	})
	wantAll(t, screen.String(), testKey, "default.env")
	if strings.Contains(screen.String(), testSecret) {
		t.Error("the secret was echoed")
	}

	// An interrupt leaves a terminal that echoes.
	person, screen, wait = start(p, "schwab")
	asks(screen, "the app key")
	person.WriteString(testKey + "\n")
	asks(screen, "the app's secret")
	if echoes(person) {
		t.Error("the terminal echoes a secret")
	}
	person.WriteString("\x03")
	if code := wait(); code != 130 || !echoes(person) {
		t.Errorf("an interrupt: exit code %d, echo %v\n%s", code, echoes(person), screen)
	}

	// The echo is off before the question can be read: nobody reads it yet.
	person, program := terminal(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	size, err := unix.FcntlInt(w.Fd(), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	cmd := p.with("SCHWAB_APP_KEY", testKey).command("login", "schwab")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = program, program, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	until(t, "the terminal shows nothing", func() bool { return !echoes(person) })
	go io.Copy(io.Discard, r)
	person.WriteString(testSecret + "\n")
	if code := exitOf(cmd.Wait()); code != 0 || !echoes(person) {
		t.Errorf("login: exit code %d, echo %v", code, echoes(person))
	}

	// Two secrets are pasted at once.
	tasty := p.at("tastytrade", emulator.Config{}).with("TASTY_CLIENT_SECRET", "", "TASTY_REFRESH_TOKEN", "")
	person, screen, wait = start(tasty, "tastytrade")
	asks(screen, "the client secret")
	if echoes(person) {
		t.Error("the terminal echoes a secret as it is asked for")
	}
	person.WriteString(testSecret + "\n" + testGrant + "\n")
	if code := wait(); code != 0 || !echoes(person) {
		t.Errorf("login: exit code %d, echo %v\n%s", code, echoes(person), screen)
	}
	wantAll(t, screen.String(), "Create Grant")
	if strings.Contains(screen.String(), testSecret) || strings.Contains(screen.String(), testGrant) {
		t.Error("a secret was echoed")
	}
}
