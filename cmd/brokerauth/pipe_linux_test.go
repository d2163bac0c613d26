package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/brokerauth/brokerauth/conformance/emulator"
)

// piped starts an export whose pipe nobody reads yet, and waits until the login is in there.
func (p *place) piped(args ...string) (cmd *exec.Cmd, r *os.File, said *bytes.Buffer) {
	p.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { r.Close() })
	cmd, said = p.command(args...), new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = w, said
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	w.Close()
	until(p.t, "the login is in the pipe", func() bool {
		n, err := unix.IoctlGetUint32(int(r.Fd()), unix.TIOCINQ)
		return err == nil && n > 0
	})
	return cmd, r, said
}

// A login that the other end of the pipe cannot keep stays where it was, although a pipe takes what nobody reads.
func TestMoveToNowhere(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	p.login()
	export := []string{"export", "schwab", "--move"}
	for _, args := range [][]string{{"import", "-"}, {"import", "-", "--broker", "schwab"}} {
		server := p.elsewhere().with("BROKERAUTH_STORE", "", "DBUS_SESSION_BUS_ADDRESS", noBus)
		cmd, r, said := p.piped(export...)
		var out, errs bytes.Buffer
		take := server.command(args...)
		take.Stdin, take.Stdout, take.Stderr = r, &out, &errs
		taken := server.ended(take.Run(), args, &out, &errs)
		r.Close() // else the pipe would still have a reader
		sent := p.ended(cmd.Wait(), export, new(bytes.Buffer), said)
		if sent.code != 1 || taken.code != 1 {
			t.Errorf("%q: export ends with %d, import with %d", args, sent.code, taken.code)
		}
		wantAll(t, sent.errors, "the login stays here")
		wantAll(t, taken.errors, "--store disk", "no keyring can be reached")
		p.must(0, "status", "schwab")
		p.must(0, "refresh", "schwab")
	}
}

// Nothing takes back what is in a pipe already: whoever interrupts the wait for its reader is told where the login is.
func TestMoveInterrupted(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	p.login()
	for _, how := range []string{"--move", "--copy"} {
		args := []string{"export", "schwab", how}
		cmd, r, said := p.piped(args...)
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		sent := p.ended(cmd.Wait(), args, new(bytes.Buffer), said)
		if sent.code != 130 {
			t.Errorf("%s: exit code %d, want 130", how, sent.code)
		}
		wantAll(t, sent.errors, "interrupted; schwab: the login stays here, and whoever reads the pipe has it, too: ")
		if got, err := io.ReadAll(r); err != nil || len(got) == 0 {
			t.Errorf("%s: the reader gets %d bytes, %v", how, len(got), err)
		}
		p.must(0, "refresh", "schwab")
	}
}
