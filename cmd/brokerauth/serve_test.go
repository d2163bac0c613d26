//go:build unix

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth/conformance/emulator"
)

// served is a page that is served.
type served struct {
	*place
	lines  chan string // of the answer: addresses
	origin string
	said   *buffer
	end    func() // an interrupt, and the end
}

func (p *place) serve(args ...string) *served {
	p.t.Helper()
	s := &served{place: p, lines: make(chan string, 16), said: new(buffer)}
	cmd := p.command(append([]string{"serve"}, args...)...)
	cmd.Stderr = s.said
	out, err := cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			s.lines <- lines.Text()
		}
	}()
	s.end = func() {
		cmd.Process.Signal(syscall.SIGTERM)
		<-read
		if code := exitOf(cmd.Wait()); code != 0 {
			p.t.Errorf("serve: exit code %d, %s", code, s.said)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.all.WriteString(s.said.String())
	}
	return s
}

// ticket is that of the next address.
func (s *served) ticket() string {
	s.t.Helper()
	select {
	case address := <-s.lines:
		u, err := url.Parse(address)
		if err != nil || u.Fragment == "" || u.Path != "/" || u.RawQuery != "" {
			s.t.Fatalf("serve prints %q: %v", address, err)
		}
		s.origin = "http://" + u.Host
		return u.Fragment
	case <-time.After(time.Minute):
		s.t.Fatalf("no address was printed: %s", s.said)
		return ""
	}
}

// ask sends a request as the page's script does, with headers changed; an empty value takes one away, and the header
// Host is the request's.
func (s *served) ask(method, path, secret, body string, header ...string) (int, string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.(*testing.T).Context(), method, s.origin+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	if method != http.MethodGet {
		req.Header.Set("Origin", s.origin)
		req.Header.Set("Content-Type", "application/json")
	}
	if secret != "" {
		req.Header.Set("Authorization", "Bearer "+secret)
	}
	for i := 0; i < len(header); i += 2 {
		switch {
		case header[i] == "Host":
			req.Host = header[i+1]
		case header[i+1] == "":
			req.Header.Del(header[i])
		default:
			req.Header.Set(header[i], header[i+1])
		}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	for name := range resp.Header {
		if strings.HasPrefix(name, "Access-Control-") || name == "Set-Cookie" {
			s.t.Errorf("%s %s answers with %s", method, path, name)
		}
	}
	for name, want := range map[string]string{
		"Content-Security-Policy": "frame-ancestors 'none'", "X-Frame-Options": "DENY", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
	} {
		if !strings.Contains(resp.Header.Get(name), want) {
			s.t.Errorf("%s %s has the %s %q", method, path, name, resp.Header.Get(name))
		}
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	s.heard.mu.Lock()
	s.all.Write(text)
	s.heard.mu.Unlock()
	return resp.StatusCode, string(text)
}

// enter trades a ticket for a secret.
func (s *served) enter(ticket string) (secret string, ok bool) {
	s.t.Helper()
	code, text := s.ask("POST", "/session", "", fmt.Sprintf(`{"ticket":%q}`, ticket))
	var answer struct{ Secret string }
	if code == http.StatusOK {
		if err := json.Unmarshal([]byte(text), &answer); err != nil || len(answer.Secret) < 32 {
			s.t.Fatalf("a ticket brings %v", err)
		}
	}
	return answer.Secret, code == http.StatusOK
}

// open is what a person's browser does: it trades the ticket of the address that serve shows.
func (s *served) open() (secret string) {
	s.t.Helper()
	secret, ok := s.enter(s.ticket())
	if !ok {
		s.t.Fatal("the ticket opens nothing")
	}
	return secret
}

// watch reads the page's stream until it is left.
func (s *served) watch(secret string) (next func() view, leave func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", s.origin+"/events", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+secret)
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		s.t.Fatalf("events: %v, %v", resp, err)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	var last view
	return func() (v view) {
		s.t.Helper()
		defer time.AfterFunc(time.Minute, cancel).Stop() // none takes that long to come
		for lines.Scan() {
			if text, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				s.heard.mu.Lock()
				s.all.WriteString(text)
				s.heard.mu.Unlock()
				if err := json.Unmarshal([]byte(text), &v); err != nil {
					s.t.Fatal(err)
				}
				last = v
				return v
			}
		}
		s.t.Fatalf("the stream ended: %v, after %+v", lines.Err(), last)
		return v
	}, func() { resp.Body.Close() }
}

// await reads the stream until the one login there is in a state.
func (s *served) await(next func() view, state string) cardView {
	s.t.Helper()
	for range 1000 {
		for _, c := range next().Cards {
			if c.Broker == "schwab" && c.State == state {
				return c
			}
		}
	}
	s.t.Fatalf("the login is never %s", state)
	return cardView{}
}

// Whoever is not the page gets nothing and changes nothing: other sites, names that lead here, other ports of this
// computer, other users who have seen the address.
func TestServeStrangers(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	p.login()
	s := p.serve()
	defer s.end()
	ticket := s.ticket()
	trade := fmt.Sprintf(`{"ticket":%q}`, ticket)
	_, port, _ := strings.Cut(strings.TrimPrefix(s.origin, "http://"), ":")

	strange := [][]string{
		{"Host", "evil.example:" + port}, {"Host", "localhost:" + port}, {"Host", "127.0.0.1"}, {"Host", "127.0.0.1:1"}, {"Host", "127.0.0.1:" + port + "."},
		{"Origin", "https://evil.example"}, {"Origin", "null"}, {"Origin", ""}, {"Origin", "http://127.0.0.1:1"}, {"Origin", "http://localhost:" + port},
		{"Origin", "https://127.0.0.1:" + port},
		{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"},
		{"Content-Type", "text/plain"}, {"Content-Type", "application/x-www-form-urlencoded"}, {"Content-Type", ""},
	}
	for _, header := range strange {
		if code, text := s.ask("POST", "/session", "", trade, header...); code == http.StatusOK {
			t.Errorf("with %q a ticket brings %s", header, text)
		}
	}
	for _, path := range []string{"/?ticket=" + ticket, "/session?ticket=" + ticket, "/session"} {
		if code, text := s.ask("GET", path, "", ""); strings.Contains(text, "secret") && code == http.StatusOK && path != "/?ticket="+ticket {
			t.Errorf("GET %s: %d %s", path, code, text)
		}
	}
	if code, _ := s.ask("OPTIONS", "/session", "", "", "Access-Control-Request-Method", "POST", "Origin", "http://127.0.0.1:1"); code < 400 {
		t.Errorf("a preflight is answered %d", code)
	}
	if _, ok := s.enter(ticket[:len(ticket)-1] + "A" + "A"); ok {
		t.Error("a wrong ticket opens the page")
	}

	// After all that the right one still does.
	secret, ok := s.enter(ticket)
	if !ok {
		t.Fatal("the ticket opens nothing")
	}
	next, leave := s.watch(secret)
	defer leave()
	login := s.await(next, "live")
	button := fmt.Sprintf(`{"id":%q}`, login.ID)

	for _, path := range []string{"/refresh", "/logout", "/login", "/cancel"} {
		for _, header := range strange {
			if code, text := s.ask("POST", path, secret, button, header...); code < 400 {
				t.Errorf("%s with %q: %d %s", path, header, code, text)
			}
		}
		for _, wrong := range []string{"", "x", ticket, secret[:len(secret)-1], secret + "A"} {
			if code, _ := s.ask("POST", path, wrong, button); code != http.StatusUnauthorized {
				t.Errorf("%s with a wrong secret: %d", path, code)
			}
		}
		if code, _ := s.ask("POST", path+"?secret="+secret, "", button, "Cookie", "brokerauth="+secret); code != http.StatusUnauthorized {
			t.Errorf("%s takes a secret from elsewhere: %d", path, code)
		}
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE"} {
			if code, _ := s.ask(method, path, secret, ""); code < 400 {
				t.Errorf("%s %s: %d", method, path, code)
			}
		}
		for _, body := range []string{"", "{}", "[", `{"id":"schwab"}`, `{"id":"~probe.=.x"}`, `{"id":"` + strings.Repeat("x", 1<<20) + `"}`} {
			if code, _ := s.ask("POST", path, secret, body); code < 400 {
				t.Errorf("%s with %.30q: %d", path, body, code)
			}
		}
	}
	if code, text := s.ask("GET", "/events", "", ""); code != http.StatusUnauthorized || strings.Contains(text, "schwab") {
		t.Errorf("events without a secret: %d", code)
	}
	if code, text := s.ask("GET", "/", "", "", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Dest", "iframe"); code != http.StatusForbidden {
		t.Errorf("a frame gets %d %s", code, text)
	}
	for _, path := range []string{"/", "/page.js", "/page.css"} {
		if code, text := s.ask("GET", path, "", ""); code != http.StatusOK || strings.Contains(text, "://") {
			t.Errorf("%s: %d, or it names something elsewhere", path, code)
		}
	}
	if n := p.calls("refresh_token"); n != 0 {
		t.Errorf("the broker saw %d refreshes", n)
	}
	p.must(0, "token", "schwab")

	// Somebody else had the address, too: the page is locked at once, and a new address is told.
	if _, ok := s.enter(ticket); ok {
		t.Error("the ticket opens the page twice")
	}
	if code, _ := s.ask("POST", "/refresh", secret, button); code != http.StatusUnauthorized {
		t.Errorf("after the ticket came twice its secret still counts: %d", code)
	}
	if _, ok := s.enter(s.ticket()); !ok {
		t.Error("the new address opens nothing")
	}
	wantAll(t, s.said.String(), "opened twice")
}

// Browsers leave the default port out of Host and Origin, whatever the address says.
func TestServeDefaultPort(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	for _, host := range []string{"127.0.0.2", "[::1]"} { // a test of the flows has 127.0.0.1
		l, err := net.Listen("tcp", host+":80")
		switch {
		case err == nil:
		case os.Getenv("CI") == "true":
			t.Fatal(err)
		default:
			t.Skipf("port 80 cannot be had: %v", err)
		}
		l.Close()
		s := p.serve("--listen", host+":80")
		trade := fmt.Sprintf(`{"ticket":%q}`, s.ticket())
		for _, bad := range [][]string{
			{"Host", host + ":"}, {"Host", host + ":443"}, {"Host", host + ":8080"}, {"Host", host + ":080"}, {"Host", host + ":80:80"}, {"Host", "localhost"}, {"Host", "127.0.0.1"},
			{"Origin", "https://" + host}, {"Origin", "http://" + host + ":"}, {"Origin", "http://" + host + ":443"}, {"Origin", "http://" + host + "/"},
			{"Origin", "http://127.0.0.1"}, {"Origin", "http://localhost"}, {"Origin", host}, {"Origin", ""},
		} {
			if code, text := s.ask("POST", "/session", "", trade, bad...); code != http.StatusForbidden && code != http.StatusMisdirectedRequest {
				t.Errorf("at %s a request with %q is answered %d %s", host, bad, code, text)
			}
		}
		for _, name := range []string{host, host + ":80"} {
			if code, text := s.ask("GET", "/", "", "", "Host", name); code != http.StatusOK {
				t.Errorf("at %s the host %s is answered %d %s", host, name, code, text)
			}
		}
		if code, text := s.ask("POST", "/session", "", trade, "Host", host, "Origin", "http://"+host); code != http.StatusOK {
			t.Errorf("at %s what a browser asks is answered %d %s", host, code, text)
		}
		s.end()
	}
}

// Every user of this computer can connect. Nobody keeps a connection by sending half of a request or by reading nothing;
// the page has its stream for as long as it likes, and a button may take its time.
func TestServeSlow(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	p.login()
	s := p.serve()
	defer s.end()
	secret := s.open()
	next, leave := s.watch(secret)
	defer leave()
	login := s.await(next, "live")

	host := strings.TrimPrefix(s.origin, "http://")
	get, body := "GET /page.js HTTP/1.1\r\nHost: "+host+"\r\n", "Content-Length: 1000\r\n\r\n{"
	var strangers sync.WaitGroup
	defer strangers.Wait()
	for what, sends := range map[string]string{
		"nothing": "", "half a header": get, "a body that does not come": get + body, "a body at another's name": strings.Replace(get, host, "evil.example", 1) + body,
		"half a ticket":               "POST /session HTTP/1.1\r\nHost: " + host + "\r\nOrigin: " + s.origin + "\r\nContent-Type: application/json\r\n" + body,
		"requests, and reads nothing": strings.Repeat(get+"\r\n", 100_000), // whose answers no buffer holds
	} {
		strangers.Go(func() {
			conn, err := net.Dial("tcp", host)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(time.Minute)) // a busy machine is not in time
			_, err = io.WriteString(conn, sends)
			if err == nil {
				_, err = io.Copy(io.Discard, conn)
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("whoever sends %s keeps the connection", what)
			}
		})
	}

	p.broker.Inject(emulator.Fault{Delay: 12 * time.Second})
	if code, text := s.ask("POST", "/refresh", secret, fmt.Sprintf(`{"id":%q}`, login.ID)); code != http.StatusOK {
		t.Errorf("a button at a slow broker: %d %s", code, text)
	}
	again, leaveAgain := s.watch(secret)
	defer leaveAgain()
	s.await(again, "live")
	p.must(0, "logout", "schwab")
	s.await(again, "out")
	s.await(next, "out")
}

// What others do to a login shows within a second or so, and the buttons do what they say.
func TestServeLive(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	s := p.serve()
	defer s.end()
	secret := s.open()
	next, leave := s.watch(secret)
	if c := s.await(next, "out"); c.In {
		t.Errorf("before a login: %+v", c)
	}
	p.login()
	first := s.await(next, "live")
	if first.Access.From.IsZero() || first.Access.Until.Sub(first.Access.From) != 30*time.Minute || first.Login.Until.Sub(first.Login.From) != 7*24*time.Hour {
		t.Errorf("the clocks run from %v to %v, and from %v to %v", first.Access.From, first.Access.Until, first.Login.From, first.Login.Until)
	}
	p.must(0, "refresh", "schwab")
	second := s.await(next, "live")
	for second.Access.From.Equal(first.Access.From) {
		second = s.await(next, "live")
	}
	button := fmt.Sprintf(`{"id":%q}`, first.ID)
	if code, text := s.ask("POST", "/refresh", secret, button); code != http.StatusOK {
		t.Errorf("refresh: %d %s", code, text)
	}
	if n := p.calls("refresh_token"); n != 2 {
		t.Errorf("the broker saw %d refreshes", n)
	}
	p.broker.RevokeLogins()
	if code, text := s.ask("POST", "/refresh", secret, button); code != http.StatusConflict || !strings.Contains(text, "log in again") {
		t.Errorf("refreshing a dead login: %d %s", code, text)
	}
	if ended := s.await(next, "ended"); ended.Remedy == "" {
		t.Errorf("a dead login has no remedy: %+v", ended)
	}
	code, text := s.ask("POST", "/login", secret, button)
	var answer struct{ Open string }
	if err := json.Unmarshal([]byte(text), &answer); err != nil || code != http.StatusOK || answer.Open == "" {
		t.Fatalf("login: %d %s", code, text)
	}
	s.await(next, "waiting")
	if code, _ := s.ask("POST", "/login", secret, button); code != http.StatusConflict {
		t.Errorf("a second login at the same time: %d", code)
	}
	if err := browse(answer.Open, "approve"); err != nil {
		t.Error(err)
	}
	s.await(next, "live")

	// Its port is another program's; then it is given up.
	if code, text = s.ask("POST", "/login", secret, button); code != http.StatusOK {
		t.Fatalf("login: %d %s", code, text)
	}
	s.await(next, "waiting") // else nobody sees it change back
	if r := p.run("login", "schwab", "--timeout", "5s"); r.code != 1 {
		t.Errorf("a login beside the one that waits: exit code %d", r.code)
	}
	if code, _ := s.ask("POST", "/cancel", secret, button); code != http.StatusOK {
		t.Errorf("cancel: %d", code)
	}
	s.await(next, "live")
	if code, text := s.ask("POST", "/logout", secret, button); code != http.StatusOK {
		t.Errorf("logout: %d %s", code, text)
	}
	s.await(next, "out")
	p.must(3, "token", "schwab")

	leave()
	s.ticket() // a way back
}

// A token that could not be saved outlives that its store cannot be looked at, and is saved in the end.
func TestServeStoreAway(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{Rotate: true})
	p.login("--profile", "work") // no login that a page shows whatever is stored
	dir := filepath.Dir(p.record())
	defer os.Chmod(dir, 0o700)
	s := p.serve()
	secret := s.open()
	next, leave := s.watch(secret)
	defer leave()
	login := s.await(next, "live")
	answered := make(chan int)
	sent, answer := p.gate.shut()
	t.Cleanup(answer)
	go func() {
		code, _ := s.ask("POST", "/refresh", secret, fmt.Sprintf(`{"id":%q}`, login.ID))
		answered <- code
	}()
	select {
	case <-sent:
	case <-time.After(time.Minute):
		t.Fatal("a minute later the broker is not asked")
	}
	os.Chmod(dir, 0o777) // which the store refuses
	answer()
	if code := <-answered; code != http.StatusOK {
		t.Fatalf("refresh: %d", code)
	}
	busy := func(c cardView) bool { return c.State == "refreshing" }
	for v := next(); v.Fault == "" || slices.ContainsFunc(v.Cards, busy); v = next() {
	}
	os.Chmod(dir, 0o700)
	for v := next(); v.Fault != ""; v = next() {
	}
	s.end()
	if p.calls("refresh_token") != 1 {
		t.Fatalf("the broker saw %d refreshes", p.calls("refresh_token"))
	}
	p.must(0, "refresh", "schwab", "--profile", "work")
}

func TestServeRefuses(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	for _, listen := range []string{"0.0.0.0:0", ":0", "192.0.2.1:80", "localhost:0", "127.0.0.1", "[::]:0", "x"} {
		wantAll(t, p.must(2, "serve", "--listen", listen).errors, "127.0.0.1:8080")
	}
	p.must(2, "serve", "--store", "memory")
	if os.Geteuid() >= 0 {
		s := p.serve()
		s.ticket()
		p.must(2, "serve", "--listen", strings.TrimPrefix(s.origin, "http://"))
		s.end()
	}
}

// A login whose app's settings cannot work is shown, and what is wrong with them.
func TestServeWrongSettings(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	p.login()
	s := p.with("SCHWAB_CALLBACK_URL", "http://127.0.0.1:8182").serve()
	secret := s.open()
	next, leave := s.watch(secret)
	defer leave()
	for _, c := range next().Cards {
		if c.Broker != "schwab" || !c.In {
			continue
		}
		wantAll(t, c.Note, "cannot work", "https")
		code, answer := s.ask("POST", "/login", secret, fmt.Sprintf(`{"id":%q}`, c.ID))
		if code == http.StatusOK {
			t.Errorf("a login with settings that cannot work: %s", answer)
		}
		wantAll(t, answer, "https")
		s.end()
		return
	}
	t.Error("the login is not shown")
}
