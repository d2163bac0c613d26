// Package engine starts the servers that tests run against: PostgreSQL, pgbouncer and Redis, on loopback, in folders
// of their own. Each ends with the test that started it, by its process id, and with the process that did.
package engine

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Server is a running server. Stop and Start are for one goroutine.
type Server struct {
	Addr string // host and port on loopback
	Port string
	Dir  string // its data, and log.txt

	t     testing.TB
	path  string
	args  []string
	ready func(s *Server) error
	end   syscall.Signal // in order
	crash syscall.Signal
	cmd   *exec.Cmd
	ended chan struct{}
}

// find returns the path of a server's program. Where there is none, the test is skipped, and in CI it fails.
func find(t testing.TB, program, pattern, from string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if found, _ := filepath.Glob(pattern); err != nil && len(found) > 0 {
		path, err = found[len(found)-1], nil
	}
	switch {
	case err == nil:
		return path
	case os.Getenv("CI") != "":
		t.Fatalf("%s is missing: install %s", program, from)
	default:
		t.Skipf("%s is missing: install %s to run this test", program, from)
	}
	return ""
}

// folder makes one that the server's user owns.
func folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "brokerauth-engine-")
	if err == nil {
		err = own(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// FreePort returns a port of loopback that nobody listens at, that Linux, macOS and Windows do not give to whoever asks for
// any port (those are above 32767, unless set otherwise), and that until the test's end no other call returns, in whatever
// process: a UDP socket with its number says that it is spoken for.
func FreePort(t testing.TB) string {
	t.Helper()
	for tries := 1; ; tries++ {
		port := strconv.Itoa(20_000 + rand.IntN(12_000))
		held, err := net.ListenPacket("udp", "127.0.0.1:"+port)
		if err == nil {
			var l net.Listener
			if l, err = net.Listen("tcp", "127.0.0.1:"+port); err == nil {
				l.Close()
				t.Cleanup(func() { held.Close() })
				return port
			}
			held.Close()
		}
		if tries == 20 {
			t.Fatal(err)
		}
	}
}

// launch starts a server whose arguments name a free port, and another if somebody else was faster.
func launch(t testing.TB, s Server, args func(port string) []string) *Server {
	t.Helper()
	for tries := 1; ; tries++ {
		s.t, s.Port = t, FreePort(t)
		s.Addr, s.args = "127.0.0.1:"+s.Port, args(s.Port)
		err := s.start()
		if err == nil {
			t.Cleanup(s.Kill)
			return &s
		}
		s.Kill()
		if tries == 5 {
			t.Fatal(err)
		}
	}
}

func (s *Server) start() error {
	log, err := os.OpenFile(filepath.Join(s.Dir, "log.txt"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd = exec.Command(s.path, s.args...)
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = s.Dir, log, log
	s.cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "PG") || strings.HasPrefix(v, "LD_PRELOAD=") })
	s.cmd.SysProcAttr = attributes()
	if err := s.cmd.Start(); err != nil {
		return err
	}
	ended, cmd := make(chan struct{}), s.cmd
	s.ended = ended
	go func() {
		cmd.Wait()
		close(ended)
	}()
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		err := s.ready(s)
		if err == nil {
			return nil
		}
		select {
		case <-ended:
			err = fmt.Errorf("it ended at once: %w", err)
		default:
			if time.Since(began) < time.Minute {
				continue
			}
		}
		text, _ := os.ReadFile(filepath.Join(s.Dir, "log.txt"))
		return fmt.Errorf("starting %s: %w\n%s", filepath.Base(s.path), err, text)
	}
}

// Start starts a server again that was stopped or killed.
func (s *Server) Start() {
	s.t.Helper()
	if err := s.start(); err != nil {
		s.t.Fatal(err)
	}
}

// Stop ends the server as its administrator would, at once and in order.
func (s *Server) Stop() { s.signal(s.end) }

// Kill ends the server as a crash would.
func (s *Server) Kill() { s.signal(s.crash) }

func (s *Server) signal(sig syscall.Signal) {
	if s.cmd == nil || s.cmd.Process == nil {
		return
	}
	s.cmd.Process.Signal(sig)
	select {
	case <-s.ended:
	case <-time.After(time.Minute):
		s.t.Errorf("%s still runs a minute after signal %d", filepath.Base(s.path), sig)
	}
}
