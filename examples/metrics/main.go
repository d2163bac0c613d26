// Command metrics hangs counters on a Session: how often it was refreshed, by this process or another, how long that took,
// and what failed, to be scraped at /debug/vars. An emulated Schwab whose tokens live for two seconds makes them move.
//
//	go run ./examples/metrics
//
// and then, in another terminal:
//
//	curl -s http://127.0.0.1:8080/debug/vars
package main

import (
	"context"
	"expvar"
	"log"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/storage/memory"
)

// metrics counts events. Its Observe serves any number of Sessions: an expvar.Map is safe for concurrent use.
type metrics struct {
	events expvar.Map // by kind
	errors expvar.Map // of those with an error, by broker
	millis expvar.Map // time spent, by kind
}

func (m *metrics) Observe(e brokerauth.Event) {
	m.events.Add(e.Kind, 1)
	m.millis.Add(e.Kind, e.Took.Milliseconds())
	if e.Err != nil {
		m.errors.Add(e.Key.Provider, 1)
	}
}

// loginBy shows how long each login has to live, in seconds, as of now: it reads the store, and asks no broker.
func loginBy(sessions ...*brokerauth.Session) expvar.Func {
	return func() any {
		left := map[string]float64{}
		for _, s := range sessions {
			st, err := s.Status(context.Background())
			if err == nil && !st.LoginBy.IsZero() {
				left[st.Key.String()] = time.Until(st.LoginBy).Seconds()
			}
		}
		return left
	}
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	all := new(expvar.Map)
	expvar.Publish("brokerauth", all)
	if err := run(ctx, "127.0.0.1:8080", all); err != nil {
		log.Fatal(err)
	}
}

// run keeps a login fresh and serves what is counted, until ctx ends.
func run(ctx context.Context, address string, all *expvar.Map) error {
	broker, err := emulator.New("schwab", emulator.Config{AccessTTL: 2 * time.Second})
	if err != nil {
		return err
	}
	var m metrics
	session := &brokerauth.Session{Provider: broker.Provider(), Store: new(memory.Store), Observe: m.Observe}
	defer session.Close()
	if err := session.Login(ctx, broker.Approve); err != nil {
		return err
	}
	all.Set("events", &m.events)
	all.Set("errors", &m.errors)
	all.Set("milliseconds", &m.millis)
	all.Set("login_seconds_left", loginBy(session))
	var keeper brokerauth.Keeper
	keeper.Add(session)
	mux := http.NewServeMux()
	mux.Handle("/debug/vars", expvar.Handler())
	server := &http.Server{Addr: address, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		keeper.Run(ctx)
		server.Close()
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		return err
	}
	<-done
	return nil
}
