package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// screen is what a person at a terminal reads while a login waits: the text, addresses in bold, and below it how long
// the login still waits.
type screen struct {
	out   io.Writer
	until time.Time
	bold  bool

	mu    sync.Mutex
	shown bool // the last line is the one that counts
	over  chan struct{}
	ended chan struct{}
}

// screen returns where a login that waits for timeout says what it has to, and what ends that. Elsewhere than at a
// terminal it is plain text, and the same once.
func (a *app) screen(timeout time.Duration) (out io.Writer, end func()) {
	stderr := int(os.Stderr.Fd())
	if timeout <= 0 || !term.IsTerminal(stderr) || os.Getenv("TERM") == "dumb" {
		return a.err, func() {}
	}
	s := &screen{
		out: os.Stderr, until: time.Now().Add(timeout), bold: os.Getenv("NO_COLOR") == "",
		over: make(chan struct{}), ended: make(chan struct{}),
	}
	go s.count()
	return s, sync.OnceFunc(func() {
		close(s.over)
		<-s.ended
	})
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	if s.shown {
		b.WriteString("\r\x1b[K")
		s.shown = false
	}
	for line := range strings.Lines(printableText(string(p))) {
		if text := strings.TrimSuffix(line, "\n"); s.bold && strings.HasPrefix(text, "    http") {
			line = "    \x1b[1m" + text[4:] + "\x1b[0m" + line[len(text):]
		}
		b.WriteString(line)
	}
	if _, err := io.WriteString(s.out, b.String()); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (s *screen) count() {
	defer close(s.ended)
	// Rarely until the last minute: whoever marks the address with a mouse is not to be disturbed.
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for said := ""; ; {
		select {
		case <-s.over:
			s.Write(nil)
			return
		case <-tick.C:
		}
		left := max(time.Until(s.until), 0).Round(time.Second)
		text := fmt.Sprintf("%d s", int(left.Seconds()))
		if left > time.Minute {
			left = left.Round(10 * time.Second)
			text = fmt.Sprintf("%d:%02d min", int(left.Minutes()), int(left.Seconds())%60)
		}
		if text == said && s.isShown() {
			continue
		}
		said = text
		s.mu.Lock()
		fmt.Fprintf(s.out, "\r\x1b[KWaiting for you, %s left; Ctrl-C gives up. ", text)
		s.shown = true
		s.mu.Unlock()
	}
}

func (s *screen) isShown() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shown
}
