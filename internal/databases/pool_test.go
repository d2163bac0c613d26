package databases_test

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/internal/engine"
	"github.com/brokerauth/brokerauth/storage/sqlstore"
)

// TestOneConnection has a thousand Sessions share one connection, which nobody keeps while a broker is asked.
func TestOneConnection(t *testing.T) {
	t.Parallel()
	db, err := openPool("pgx", engine.PostgreSQL(t).URL("postgres"), 1)
	must(t, err)
	defer db.Close()
	store := create(t, db, sqlstore.PostgreSQL)
	b := emulator.Schwab(t, emulator.Config{Rotate: true, Latency: 200 * time.Millisecond})
	first := &brokerauth.Session{Provider: b.Provider(), Store: store, Observe: func(brokerauth.Event) {}}
	defer first.Close()
	must(t, first.Login(t.Context(), b.Approve))
	status, err := first.Status(t.Context())
	must(t, err)
	b.Advance(31 * time.Minute)
	must(t, backdate(t.Context(), store, status.Key, 31*time.Minute))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var all sync.WaitGroup
	for range 1000 {
		all.Go(func() {
			s := &brokerauth.Session{Provider: b.Provider(), Store: store, Observe: func(brokerauth.Event) {}}
			defer s.Close()
			if _, err := s.Token(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := refreshes(b); n != 1 {
		t.Errorf("%d refreshes, want 1", n)
	}
}

// However many loads wait for a connection, a change does not wait behind them.
func TestChangesGoFirst(t *testing.T) {
	t.Parallel()
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			store := e.open(t, e.start(t))
			key := brokerauth.Key{Provider: "p", Identity: "i", Profile: "default"}
			record := []byte("0")
			_, err := store.CompareAndSwap(t.Context(), key, nil, record)
			must(t, err)
			var loads atomic.Int64
			ctx, cancel := context.WithCancel(t.Context())
			var all sync.WaitGroup
			for range 400 {
				all.Go(func() {
					for ctx.Err() == nil {
						if _, err := store.Load(ctx, key); err == nil {
							loads.Add(1)
						}
					}
				})
			}
			var behind []int64
			for i := range 100 {
				before := loads.Load()
				next := []byte(strconv.Itoa(i + 1))
				swapped, err := store.CompareAndSwap(t.Context(), key, record, next)
				if err != nil || !swapped {
					t.Fatal(swapped, err)
				}
				record = next
				behind = append(behind, loads.Load()-before)
			}
			cancel()
			all.Wait()
			slices.Sort(behind)
			t.Logf("of 400 who load all the time, a change lets %d go first, and %d at the most", behind[50], behind[99])
			if behind[50] > 40 {
				t.Errorf("a change waits for %d loads of 400 that wait like it", behind[50])
			}
		})
	}
}
