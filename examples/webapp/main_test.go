package main

import (
	"context"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"
	"time"
)

// visitor is a browser.
type visitor struct {
	t *testing.T
	*http.Client
}

func newVisitor(t *testing.T) visitor {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return visitor{t, &http.Client{Jar: jar, Timeout: 30 * time.Second}}
}

func (v visitor) read(resp *http.Response, err error) (address, body string) {
	v.t.Helper()
	if err != nil {
		v.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		v.t.Fatal(err)
	}
	return resp.Request.URL.String(), string(text)
}

func TestTwoUsersTwoBrokers(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan string, 1), make(chan error, 1)
	go func() {
		done <- run(ctx, "127.0.0.1:0", func(url string) { ready <- url })
		close(ready)
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	home, ok := <-ready
	if !ok {
		return
	}

	alice, bob := newVisitor(t), newVisitor(t)
	for name, v := range map[string]visitor{"alice": alice, "bob": bob} {
		if _, page := v.read(v.PostForm(home+"/signin", url.Values{"user": {name}})); !strings.Contains(page, "You are "+name) {
			t.Fatalf("after signing in: %s", page)
		}
	}
	for i, broker := range []string{"tastytrade", "tdameritrade"} {
		login, page := alice.read(alice.Get(home + "/" + broker + "/start"))
		if !strings.Contains(page, "emulated") {
			t.Fatalf("%s: start leads to %s: %s", broker, login, page)
		}
		end, page := alice.read(alice.PostForm(login, url.Values{"button": {"approve"}}))
		if end != home+"/" || strings.Count(page, "HTTP 200 OK") != i+1 {
			t.Errorf("%s: after the login, %s: %s", broker, end, page)
		}
	}
	if _, page := bob.read(bob.Get(home + "/")); strings.Count(page, "log in first") != 2 {
		t.Errorf("bob sees %s", page)
	}
	alice.read(alice.PostForm(home+"/tastytrade/disconnect", nil))
	if _, page := alice.read(alice.Get(home + "/")); strings.Count(page, "log in first") != 1 || strings.Count(page, "HTTP 200 OK") != 1 {
		t.Errorf("after disconnecting one broker alice sees %s", page)
	}
}
