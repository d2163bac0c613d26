package databases_test

import (
	"context"
	"sync"
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
