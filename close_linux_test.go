package brokerauth_test

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
)

// open counts this process's sockets, and its files in dir.
func openFiles(t *testing.T, dir string) (n int) {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	must(t, err)
	for _, link := range links {
		to, err := os.Readlink(link)
		if err == nil && (strings.HasPrefix(to, "socket:") || strings.HasPrefix(to, dir)) {
			n++
		}
	}
	return n
}

// Sessions that refreshed, called the API, were watched and kept over real HTTP and real files leave no goroutine, socket
// or lock behind once they are closed, though a refresh was under way.
func TestCloseLeavesNothing(t *testing.T) {
	b, first, baseURL, dir := served(t, emulator.Config{Latency: 200 * time.Millisecond})
	must(t, first.Close())
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	settle := func(goroutines, files int) (int, int) {
		end := time.Now().Add(10 * time.Second)
		for time.Now().Before(end) && (runtime.NumGoroutine() > goroutines || openFiles(t, dir) > files) {
			time.Sleep(20 * time.Millisecond)
		}
		return runtime.NumGoroutine(), openFiles(t, dir)
	}
	time.Sleep(100 * time.Millisecond)
	goroutines, files := runtime.NumGoroutine(), openFiles(t, dir)
	for range 5 {
		s, err := sharedSession(baseURL, dir)
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		_, stop := keep(t, s)
		c := watch(ctx, s)
		base := &http.Client{Transport: &http.Transport{}}
		resp, err := s.Client(base).Get(baseURL + "/trader/v1/accounts/accountNumbers")
		must(t, err)
		resp.Body.Close()
		before := refreshes(b)
		left, leave := context.WithCancel(ctx)
		go s.Refresh(left, nil)
		asks(t, b, before+1)
		leave() // nobody waits for it any more
		must(t, s.Close())
		stop()
		cancel()
		for range c {
		}
		base.CloseIdleConnections()
		other, err := sharedSession(baseURL, dir)
		must(t, err)
		// It was saved, and no claim or lock is in the way.
		st, err := other.Status(t.Context())
		if err != nil || !st.Refreshing.IsZero() {
			t.Errorf("after Close: %+v, %v", st, err)
		}
		var token *brokerauth.Token
		if token, err = other.Token(t.Context()); err != nil || refreshes(b) != before+1 {
			t.Errorf("after Close: %v, %v, %d requests", token, err, refreshes(b)-before)
		}
		must(t, other.Close())
	}
	if g, f := settle(goroutines, files); g > goroutines || f > files {
		stacks := make([]byte, 1<<16)
		t.Errorf("%d goroutines and %d sockets and files, before %d and %d\n%s", g, f, goroutines, files, stacks[:runtime.Stack(stacks, true)])
	}
}
