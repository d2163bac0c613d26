package brokerauth_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/storage/memory"
)

// The benchmarks come in pairs: what a Session does, and the floor or the peer that it is measured against.

func fresh(b *testing.B) *brokerauth.Session {
	b.Helper()
	broker := emulator.Schwab(b)
	s := &brokerauth.Session{Provider: broker.Provider(), Store: new(memory.Store)}
	b.Cleanup(func() { s.Close() })
	if err := s.Login(b.Context(), broker.Approve); err != nil {
		b.Fatal(err)
	}
	return s
}

func BenchmarkToken(b *testing.B) {
	b.Run("session", func(b *testing.B) {
		s, ctx := fresh(b), b.Context()
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.Token(ctx); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("floor", func(b *testing.B) {
		// An atomic load and a look at the clock: nothing that keeps a token fresh can do less.
		var p atomic.Pointer[oauth2.Token]
		p.Store(&oauth2.Token{Expiry: time.Now().Add(time.Hour)})
		for b.Loop() {
			if !time.Now().Before(p.Load().Expiry) {
				b.Fatal("expired")
			}
		}
	})
	b.Run("oauth2", func(b *testing.B) {
		source := oauth2.ReuseTokenSource(&oauth2.Token{AccessToken: "a", Expiry: time.Now().Add(time.Hour)}, nil)
		for b.Loop() {
			if _, err := source.Token(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkTokenParallel(b *testing.B) {
	b.Run("session", func(b *testing.B) {
		s, ctx := fresh(b), b.Context()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := s.Token(ctx); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
	b.Run("oauth2", func(b *testing.B) {
		source := oauth2.ReuseTokenSource(&oauth2.Token{AccessToken: "a", Expiry: time.Now().Add(time.Hour)}, nil)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := source.Token(); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
}

// still answers every request with the same response.
type still struct{ resp *http.Response }

func (s still) RoundTrip(*http.Request) (*http.Response, error) { return s.resp, nil }

// BenchmarkTransport signs one request with one token by a Session's transport and by x/oauth2's, in turn, so that what the
// machine does otherwise bears on both: in a program that holds 16 MB, and in one that holds nothing, where the collector
// starts hundreds of times a second and is half of what is measured on either side.
func BenchmarkTransport(b *testing.B) {
	const (
		turn  = 30_000 // requests: some five collections in a program that holds nothing, one in the other
		turns = 10     // of each, so that even one round tells
	)
	base := still{&http.Response{StatusCode: 200, Body: http.NoBody}}
	req, err := http.NewRequest("GET", "https://api.schwabapi.com/trader/v1/accounts/accountNumbers", nil)
	if err != nil {
		b.Fatal(err)
	}
	req.Header.Set("Accept", "application/json")
	run := func(b *testing.B, rt http.RoundTripper) time.Duration {
		began := time.Now()
		for range turn {
			if _, err := rt.RoundTrip(req); err != nil {
				b.Fatal(err)
			}
		}
		return time.Since(began)
	}
	for _, heap := range []struct {
		name string
		size int
	}{{"16MB", 16 << 20}, {"empty", 0}} {
		b.Run(heap.name, func(b *testing.B) {
			held := make([][]byte, heap.size/1024)
			for i := range held {
				held[i] = make([]byte, 1024)
			}
			s := fresh(b)
			token, err := s.Token(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			session := s.Client(&http.Client{Transport: base}).Transport
			peer := &oauth2.Transport{Base: base, Source: oauth2.ReuseTokenSource(
				&oauth2.Token{AccessToken: token.AccessToken, Expiry: token.Expiry}, nil)}
			for range 5 { // until the heap has the size that it keeps
				run(b, session)
				run(b, peer)
			}
			var ours, theirs time.Duration
			for b.Loop() {
				for range turns {
					ours += run(b, session)
					theirs += run(b, peer)
				}
			}
			requests := float64(b.N * turns * turn)
			b.ReportMetric(0, "ns/op") // of all turns of both, which says nothing
			b.ReportMetric(float64(ours)/requests, "ns/request")
			b.ReportMetric(float64(theirs)/requests, "oauth2-ns/request")
			b.ReportMetric(float64(ours)/float64(theirs), "×oauth2")
			b.ReportMetric(testing.AllocsPerRun(1000, func() { _, _ = session.RoundTrip(req) }), "allocs/request")
			runtime.KeepAlive(held)
		})
	}
}

// BenchmarkStorm starts 32 processes that find one expired token, and compares the time until all have a new one with
// what 32 that find a fresh one take and one request of 50 ms.
func BenchmarkStorm(b *testing.B) {
	const processes, latency = 32, 50 * time.Millisecond
	broker := emulator.Schwab(b, emulator.Config{Latency: latency, Rotate: true})
	server := httptest.NewServer(broker)
	defer server.Close()
	dir := b.TempDir()
	s, err := sharedSession(server.URL, dir)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if err := s.Login(b.Context(), broker.Approve); err != nil {
		b.Fatal(err)
	}
	run := func() time.Duration {
		began := time.Now()
		children, said := make([]*exec.Cmd, processes), make([]bytes.Buffer, processes)
		for i := range children {
			c := exec.Command(os.Args[0])
			c.Env = append(os.Environ(), "CHILD_ROLE=token", "CHILD_BROKER="+server.URL, "CHILD_DIR="+dir)
			c.Stdin, c.Stdout = strings.NewReader("go\n"), &said[i]
			if err := c.Start(); err != nil {
				b.Fatal(err)
			}
			children[i] = c
		}
		for i, c := range children {
			if err := c.Wait(); err != nil || !strings.Contains(said[i].String(), "\ntoken ") {
				b.Fatalf("a process said %.40q, %v", said[i].String(), err)
			}
		}
		return time.Since(began)
	}
	var stormed, floor time.Duration
	for b.Loop() {
		floor += run() + latency
		expire(b, s)
		before := refreshes(broker)
		stormed += run()
		if n := refreshes(broker) - before; n != 1 {
			b.Fatalf("%d refreshes, want 1", n)
		}
	}
	b.ReportMetric(1, "requests")
	b.ReportMetric(float64(stormed)/float64(floor), "×floor")
}
