package brokerauth_test

import (
	"net/http"
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

func BenchmarkTransport(b *testing.B) {
	base := still{&http.Response{StatusCode: 200, Body: http.NoBody}}
	run := func(b *testing.B, rt http.RoundTripper) {
		req, _ := http.NewRequest("GET", "https://api.schwabapi.com/trader/v1/accounts/accountNumbers", nil)
		req.Header.Set("Accept", "application/json")
		b.ReportAllocs()
		for b.Loop() {
			if _, err := rt.RoundTrip(req); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("session", func(b *testing.B) {
		run(b, fresh(b).Client(&http.Client{Transport: base}).Transport)
	})
	b.Run("oauth2", func(b *testing.B) {
		run(b, &oauth2.Transport{Base: base, Source: oauth2.ReuseTokenSource(
			&oauth2.Token{AccessToken: "a", Expiry: time.Now().Add(time.Hour)}, nil)})
	})
}
