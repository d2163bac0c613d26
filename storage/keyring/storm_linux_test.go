package keyring_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/providers/schwab"
	"github.com/brokerauth/brokerauth/storage/disk"
	"github.com/brokerauth/brokerauth/storage/keyring"
	"github.com/brokerauth/brokerauth/storage/sealed"
)

// Processes that find one expired token cost the broker one request, in whatever store they share it.
func TestStorm(t *testing.T) {
	if testing.Short() {
		t.Skip("this starts many processes")
	}
	patient := func(service, dir string) brokerauth.Store { // all the processes are one too many for a busy machine's keyring
		store := keyring.NewAt(service, dir)
		keyring.Patient(store)
		return store
	}
	for name, open := range map[string]func(dir string) (brokerauth.Store, error){
		"keyring": func(dir string) (brokerauth.Store, error) { return patient("storm", dir), nil },
		"sealed files, their key in the keyring": func(dir string) (brokerauth.Store, error) {
			files, err := disk.New(filepath.Join(dir, "logins"))
			if err != nil {
				return nil, err
			}
			return sealed.New(files, sealed.KeptIn(patient("storm-key", dir)))
		},
	} {
		t.Run(name, func(t *testing.T) { storm(t, open) })
	}
}

// inStorm is set for the processes of a storm: where they meet, and the broker.
const inStorm = "BROKERAUTH_TEST_STORM"

func storm(t *testing.T, open func(dir string) (brokerauth.Store, error)) {
	session := func(dir, broker string) *brokerauth.Session {
		t.Helper()
		store, err := open(dir)
		if err != nil {
			t.Fatal(err)
		}
		p, err := schwab.New(schwab.Config{AppKey: "key", AppSecret: "emulated.app-secret", CallbackURL: "https://127.0.0.1:8182", BaseURL: broker})
		if err != nil {
			t.Fatal(err)
		}
		s := &brokerauth.Session{Provider: p, Store: store, Observe: func(brokerauth.Event) {}}
		t.Cleanup(func() { s.Close() })
		return s
	}
	if dir, broker, child := strings.Cut(os.Getenv(inStorm), " "); child {
		token, err := session(dir, broker).Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("token", token.AccessToken)
		return
	}
	for range 3 {
		home, _ := startKeyring(t)
		faults := stormed(t, session)
		if len(faults) == 0 {
			return
		}
		if !aborted(t, home) {
			t.Fatal(errors.Join(faults...))
		}
		t.Log("gnome-keyring ended by its own fault: another one is tried")
	}
	t.Fatal("gnome-keyring always ends by its own fault")
}

// stormed lets processes find one expired token at one moment, and returns what is wrong with what came of it.
func stormed(t *testing.T, session func(dir, broker string) *brokerauth.Session) (faults []error) {
	broker := emulator.Schwab(t, emulator.Config{Latency: 50 * time.Millisecond, Rotate: true})
	server := httptest.NewServer(broker)
	defer server.Close()
	dir := t.TempDir()
	s := session(dir, server.URL)
	if err := s.Login(t.Context(), broker.Approve); err != nil {
		return []error{err}
	}
	expireStored(t, s)
	const processes = 32
	said, errs := make([]string, processes), make([]error, processes)
	var all sync.WaitGroup
	for i := range processes {
		all.Go(func() {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$")
			cmd.Env = append(os.Environ(), inStorm+"="+dir+" "+server.URL)
			out, err := cmd.Output()
			said[i], errs[i] = string(out), err
		})
	}
	all.Wait()
	tokens := map[string]int{}
	for i := range said {
		_, token, ok := strings.Cut(said[i], "token ")
		token, _, _ = strings.Cut(token, "\n")
		if errs[i] != nil || !ok {
			faults = append(faults, fmt.Errorf("a process got no token: %v", errs[i]))
		}
		tokens[token]++
	}
	if len(tokens) != 1 {
		faults = append(faults, fmt.Errorf("%d processes got %d different tokens, want the same", processes, len(tokens)))
	}
	refreshes := 0
	for _, r := range broker.Requests() {
		if r.GrantType == "refresh_token" {
			refreshes++
		}
	}
	if refreshes != 1 {
		faults = append(faults, fmt.Errorf("%d refreshes, want 1", refreshes))
	}
	return faults
}

// expireStored makes the stored access token one of half an hour ago.
func expireStored(t *testing.T, s *brokerauth.Session) {
	t.Helper()
	st, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	old, err := s.Store.Load(t.Context(), st.Key)
	if err != nil {
		t.Fatal(err)
	}
	var record map[string]any
	if err := json.Unmarshal(old, &record); err != nil {
		t.Fatal(err)
	}
	token := record["token"].(map[string]any)
	for _, clock := range []string{"issued", "expiry"} {
		at, err := time.Parse(time.RFC3339Nano, token[clock].(string))
		if err != nil {
			t.Fatal(err)
		}
		token[clock] = at.Add(-31 * time.Minute)
	}
	expired, err := json.Marshal(record)
	if err != nil {
		t.Fatal(err)
	}
	if swapped, err := s.Store.CompareAndSwap(t.Context(), st.Key, old, expired); err != nil || !swapped {
		t.Fatal(swapped, err)
	}
}
