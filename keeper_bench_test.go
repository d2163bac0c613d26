package brokerauth_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/storage/memory"
)

// BenchmarkKeeper measures what 100,000 Sessions of one Keeper hold in memory, beyond their tokens and the store, and how
// many requests they make in the busiest second, against the mean.
func BenchmarkKeeper(b *testing.B) {
	const n = 100_000
	p, store := &mint{life: 30 * time.Minute}, new(memory.Store)
	herd(b, n, p, store)
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	before := heap()
	tokens := make([]*brokerauth.Token, n)
	for i := range tokens {
		now := time.Now().UTC()
		tokens[i] = &brokerauth.Token{AccessToken: fmt.Sprintf("emulated.%064d", i), RefreshToken: fmt.Sprint("emulated.", "r"),
			Issued: now, Expiry: now, LoggedInAt: now, LoginBy: now}
	}
	token := (heap() - before) / n
	runtime.KeepAlive(tokens)
	tokens = nil
	for b.Loop() {
		before := heap()
		var k brokerauth.Keeper
		sessions := make([]*brokerauth.Session, n)
		for i := range sessions {
			sessions[i] = &brokerauth.Session{Provider: p, Store: store, Profile: fmt.Sprint("p", i), Observe: func(brokerauth.Event) {}}
			k.Add(sessions[i])
		}
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan bool)
		go func() {
			k.Run(ctx)
			close(done)
		}()
		for _, s := range sessions { // each has its token once the Keeper has looked at it, or now
			if _, err := s.Token(ctx); err != nil {
				b.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		held := heap() - before
		cancel()
		<-done
		for _, s := range sessions {
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(held/n-token, "B/session")
		b.ReportMetric(token, "B/token")
		b.ReportMetric(spread(b), "peak/mean")
		runtime.KeepAlive(sessions)
	}
}

// spread lets 100,000 Sessions whose tokens were issued at one moment renew them for five minutes. That is a test, in a
// process of its own: a benchmark has no clock to turn.
func spread(b *testing.B) float64 {
	b.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKeeperSpreadsAHerd$", "-test.v")
	cmd.Env = append(os.Environ(), "HERD=large")
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	var requests, peak int
	var mean float64
	_, said, _ := strings.Cut(string(out), "run 0: ")
	if _, err := fmt.Sscanf(said, "%d requests, %f a second, at most %d", &requests, &mean, &peak); err != nil || mean == 0 {
		b.Fatalf("%v\n%s", err, out)
	}
	return float64(peak) / mean
}
