package emulator_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/storage/memory"
)

// TestOneProgram runs one program at every broker. Only how the provider is made differs, and with a personal grant that
// nobody logs in.
func TestOneProgram(t *testing.T) {
	login := func(b *emulator.Broker) brokerauth.Provider { return b.LoginProvider() }
	for _, test := range []struct {
		name, broker string
		provider     func(*emulator.Broker) brokerauth.Provider
	}{
		{"Schwab", "schwab", login},
		{"TD Ameritrade", "tdameritrade", login},
		{"Tastytrade partner", "tastytrade", login},
		{"Tastytrade partner, sandbox", "tastytrade-sandbox", login},
		{"Tastytrade", "tastytrade", (*emulator.Broker).Provider},
		{"Tastytrade sandbox", "tastytrade-sandbox", (*emulator.Broker).Provider},
	} {
		for _, rotate := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, rotate %t", test.name, rotate), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b, err := emulator.New(test.broker, emulator.Config{Rotate: rotate})
					if err != nil {
						t.Fatal(err)
					}
					trade(t, b, func() brokerauth.Provider { return test.provider(b) })
				})
			})
		}
	}
}

// trade is the program: a login, calls, expiry, refresh, a 401, a dead login, a login again, and a logout.
func trade(t *testing.T, b *emulator.Broker, provider func() brokerauth.Provider) {
	ctx := t.Context()
	store := new(memory.Store)
	// The reply holds no secret, so that it can stand in a test's output.
	b.Handle("GET /hello", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }))
	var told []string
	var s *brokerauth.Session
	open := func() { // as a program does with its settings at its start
		s = &brokerauth.Session{Provider: provider(), Store: store, Observe: func(e brokerauth.Event) {
			told = append(told, fmt.Sprintf("%+v %s", e, e.LogValue()))
		}}
		t.Cleanup(func() { s.Close() })
	}
	open()
	pages, hasPage := s.Provider.(brokerauth.LoginProvider)
	login := func() {
		t.Helper()
		if err := s.Login(ctx, b.Approve); hasPage && err != nil || !hasPage && !errors.Is(err, errors.ErrUnsupported) {
			t.Fatalf("Login: %v", err)
		}
	}
	sent := func() (n int) {
		for _, r := range b.Requests() {
			if r.GrantType == "refresh_token" {
				n++
			}
		}
		return n
	}
	// call makes an API call, and expects so many refreshes with it.
	call := func(what string, refreshes int) {
		t.Helper()
		before := sent()
		resp, err := s.Client(&http.Client{Transport: b}).Get(s.Provider.Info().BaseURL + "/hello")
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 || string(body) != "hello" {
			t.Errorf("%s: HTTP %d, %v", what, resp.StatusCode, err)
		}
		if n := sent() - before; n != refreshes {
			t.Errorf("%s: %d refreshes, want %d", what, n, refreshes)
		}
	}
	final := brokerauth.ErrLoginRequired
	if !hasPage {
		final = brokerauth.ErrRejected // a person must change the settings
	}

	if _, err := s.Token(ctx); hasPage && !errors.Is(err, brokerauth.ErrLoginRequired) || !hasPage && err != nil {
		t.Errorf("Token at first: %v", err)
	}
	login()
	call("call", 0)
	token, err := s.Token(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if hasPage == token.LoggedInAt.IsZero() {
		t.Errorf("logged in at %v", token.LoggedInAt)
	}

	time.Sleep(time.Until(token.Expiry) + time.Second)
	call("call after expiry", 1)
	call("call after that", 0)

	if _, err := s.Refresh(ctx, nil); err != nil {
		t.Errorf("Refresh: %v", err)
	}
	call("call after a refresh", 0)

	time.Sleep(2 * time.Minute) // a token that is younger is not renewed for a 401
	b.Advance(30 * time.Minute)
	call("call with a token that the broker ended", 1)

	b.RevokeLogins()
	token, err = s.Token(ctx)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(token.Expiry) + time.Second)
	for i := range 3 {
		before := sent()
		_, err := s.Token(ctx)
		var e *brokerauth.Error
		if !errors.Is(err, final) || !errors.As(err, &e) || e.Hint == "" {
			t.Errorf("Token of a dead login: %v, want %v with a hint", err, final)
		}
		if n := sent() - before; n > 1 || n == 1 != (i == 0) {
			t.Errorf("try %d of a dead login: %d refreshes", i, n)
		}
		told = append(told, fmt.Sprint(err))
	}

	if hasPage {
		login()
		call("call after a new login", 0)
		if _, err := pages.Refresh(ctx, token); !errors.Is(err, final) {
			t.Errorf("Refresh of the dead login: %v", err)
		}
	} else {
		open() // a new grant stands in the settings
		call("call with a new grant", 1)
	}

	status, err := s.Status(ctx)
	if err != nil || !status.LoggedIn || status.LastError != nil {
		t.Errorf("Status: %+v, %v", status, err)
	}
	if strings.HasPrefix(status.Key.Provider, "tastytrade") && (!status.LoginBy.IsZero() || len(status.Scopes) < 2) {
		t.Errorf("Status: log in by %v, scopes %q", status.LoginBy, status.Scopes)
	}
	if err := s.Logout(ctx); err != nil {
		t.Errorf("Logout: %v", err)
	}
	if status, err := s.Status(ctx); err != nil || status.LoggedIn {
		t.Errorf("Status after the logout: %+v, %v", status, err)
	}
	if hasPage {
		if _, err := s.Token(ctx); !errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Errorf("Token after the logout: %v", err)
		}
	}

	for _, secret := range b.Secrets() {
		if strings.Contains(strings.Join(told, "\n"), secret) {
			t.Errorf("an event or error tells a secret: %s", secret)
		}
	}
}
