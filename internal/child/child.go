// Package child runs copies of a test's own program beside it, which are told and answer in lines. It serves tests alone.
package child

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
)

// Program is a running child. It ends with the test that started it.
type Program struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// Start runs the test's own program with more in its environment, by which it knows what to be, and waits until it says
// "ready".
func Start(t testing.TB, env ...string) *Program {
	t.Helper()
	p := &Program{Cmd: exec.Command(os.Args[0])}
	p.Env = append(os.Environ(), env...)
	p.Stderr = os.Stderr
	var err error
	if p.in, err = p.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Process.Kill()
		p.Wait()
	})
	if line := p.Line(); line != "ready" {
		t.Fatalf("a child process: %s", line)
	}
	return p
}

// Tell writes a line to the child's standard input.
func (p *Program) Tell(line string) { io.WriteString(p.in, line+"\n") }

// Line is the next of the child's standard output, or why there is none.
func (p *Program) Line() string {
	line, err := p.out.ReadString('\n')
	if err != nil {
		return "error " + err.Error()
	}
	return strings.TrimSuffix(line, "\n")
}

// Output is what a program has written, which can be read while it writes more.
type Output struct {
	mu   sync.Mutex
	text strings.Builder
}

func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}
