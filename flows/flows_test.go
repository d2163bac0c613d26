package flows_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/flows"
	"github.com/brokerauth/brokerauth/internal/engine"
)

const state = "qGdGLH0R5dKJ4nB7uV1sXw"

// home gives the test a configuration folder of its own, and fails it if it leaves goroutines behind.
func home(t *testing.T) (config string) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"HOME", "XDG_CONFIG_HOME", "AppData"} {
		t.Setenv(name, dir)
	}
	t.Setenv("SSH_CONNECTION", "")
	config, err := os.UserConfigDir()
	if err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for end := time.Now().Add(30 * time.Second); runtime.NumGoroutine() > before; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				stacks := make([]byte, 1<<20)
				t.Fatalf("%d goroutines, %d before the login:\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
			}
		}
	})
	return filepath.Join(config, "brokerauth")
}

// newLogin begins a login whose redirect address nobody uses; redirect has %d for the port.
func newLogin(t *testing.T, redirect string) *brokerauth.Login {
	t.Helper()
	if strings.Contains(redirect, "[::1]") {
		l, err := net.Listen("tcp", "[::1]:0")
		if err != nil {
			t.Skipf("this computer cannot listen at [::1]: %v", err)
		}
		l.Close()
	}
	port, err := strconv.Atoi(engine.FreePort(t))
	if err != nil {
		t.Fatal(err)
	}
	redirect = fmt.Sprintf(redirect, port)
	return &brokerauth.Login{
		URL:         "https://broker.example/authorize?client_id=app&state=" + state,
		RedirectURL: redirect, State: state, Began: time.Now(),
	}
}

func address(login *brokerauth.Login) string {
	u, err := url.Parse(login.RedirectURL)
	if err != nil {
		panic(err)
	}
	return u.Host
}

func callback(login *brokerauth.Login) string {
	return login.RedirectURL + "?code=C0.abc%40&session=1&state=" + login.State
}

// free fails the test if the login's port is still taken.
func free(t *testing.T, login *brokerauth.Login) {
	t.Helper()
	l, err := net.Listen("tcp", address(login))
	if err != nil {
		t.Errorf("after the login its port is not free: %v", err)
		return
	}
	l.Close()
}

// client is a browser that trusts the certificate in the folder config, and follows no redirects.
func client(t *testing.T, config string) *http.Client {
	t.Helper()
	return browserOf(config)
}

func browserOf(config string) *http.Client {
	roots := x509.NewCertPool()
	if bundle, err := os.ReadFile(filepath.Join(config, "loopback.pem")); err == nil {
		roots.AppendCertsFromPEM(bundle)
	}
	return &http.Client{
		Timeout:       time.Minute,
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func get(t *testing.T, c *http.Client, address string) (*http.Response, string) {
	t.Helper()
	resp, err := c.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// text is what a flow showed so far.
type text struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *text) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *text) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// running is a Browser flow that waits.
type running struct {
	start  string // the address that the browser was opened at
	out    *text
	done   chan error
	finish atomic.Int32 // calls
}

func (r *running) err(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(time.Minute):
		t.Fatal("the flow still waits")
		return nil
	}
}

type finishFunc = func(context.Context, string) error

func saved(context.Context, string) error { return nil }

// noInput is an In that a flow in the background cannot use, so that tests leave the terminal alone.
var noInput = strings.NewReader("")

// run starts a Browser flow and returns when it has opened the browser.
func run(t *testing.T, login *brokerauth.Login, o flows.Options, finish finishFunc) *running {
	t.Helper()
	return runFor(t, time.Minute, login, o, finish)
}

// runFor is run with a limit of its own.
func runFor(t *testing.T, limit time.Duration, login *brokerauth.Login, o flows.Options, finish finishFunc) *running {
	t.Helper()
	r := &running{out: new(text), done: make(chan error, 1)}
	opened := make(chan string, 1)
	o.Out = r.out
	if o.In == nil {
		o.In = noInput
	}
	if o.Open == nil {
		o.Open = func(_ context.Context, address string) error {
			opened <- address
			return nil
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	go func() {
		defer cancel()
		r.done <- flows.Browser(&o)(ctx, login, func(ctx context.Context, callback string) error {
			r.finish.Add(1)
			return finish(ctx, callback)
		})
	}()
	select {
	case r.start = <-opened:
	case err := <-r.done:
		t.Fatalf("the flow ended before it opened a browser: %v", err)
	}
	return r
}

func TestBrowser(t *testing.T) {
	for _, redirect := range []string{
		"https://127.0.0.1:%d", "https://127.0.0.1:%d/", "https://127.0.0.1:%d/call/b%%61ck", "https://[::1]:%d/cb", "https://localhost:%d",
		"http://127.0.0.1:%d/cb", "http://localhost:%d/cb",
	} {
		t.Run(redirect, func(t *testing.T) {
			config := home(t)
			login := newLogin(t, redirect)
			var got string
			mayEnd := make(chan struct{})
			r := run(t, login, flows.Options{}, func(_ context.Context, callback string) error {
				got = callback
				<-mayEnd
				return nil
			})
			c := client(t, config)
			shown := r.out.String()
			if !strings.Contains(shown, r.start) {
				t.Errorf("the browser was opened before the text showed its address:\n%s", shown)
			}
			if strings.Contains(shown, login.URL) {
				t.Errorf("the text offers another computer's browser, from where nothing comes back:\n%s", shown)
			}
			if strings.HasPrefix(redirect, "https:") && !strings.Contains(shown, "starts with https://"+address(login)+"/\n") {
				t.Errorf("the text does not say how the address must begin, up to the slash:\n%s", shown)
			}
			if strings.Contains(r.start, state) {
				t.Errorf("the browser's argument %s holds the state", r.start)
			}
			resp, _ := get(t, c, r.start)
			if resp.StatusCode != http.StatusFound || resp.Header.Get("Location") != login.URL {
				t.Errorf("the opened address answers %s, Location %q, want 302 to %s", resp.Status, resp.Header.Get("Location"), login.URL)
			}
			private(t, resp)

			pages := make(chan string, 1)
			go func() {
				resp, body := get(t, c, callback(login))
				private(t, resp)
				if resp.StatusCode != 200 {
					t.Errorf("the callback answers %s, want 200", resp.Status)
				}
				pages <- body
			}()
			select {
			case page := <-pages:
				t.Errorf("the browser was answered before the login was saved:\n%s", page)
			case <-time.After(50 * time.Millisecond):
			}
			close(mayEnd)
			if page := <-pages; !strings.Contains(page, "You are logged in") {
				t.Errorf("the page does not say that the login is saved:\n%s", page)
			}
			if err := r.err(t); err != nil {
				t.Errorf("the flow: %v", err)
			}
			if want, sent := wholeURL(t, callback(login)), wholeURL(t, got); sent != want {
				t.Errorf("finish got %s, want %s", sent, want)
			}
			free(t, login)
		})
	}
}

// wholeURL spells an address's empty path the way that browsers send it.
func wholeURL(t *testing.T, s string) string {
	u, err := url.Parse(s)
	if err != nil {
		t.Error(err)
		return s
	}
	if u.Path == "" {
		u.Path = "/"
	}
	return u.String()
}

// private checks that a response keeps the code in its address to itself.
func private(t *testing.T, resp *http.Response) {
	t.Helper()
	for name, want := range map[string]string{"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"} {
		if got := resp.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if csp := resp.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") {
		t.Errorf("Content-Security-Policy is %q: it lets the page load from elsewhere", csp)
	}
}

// A page must look like one under its own policy, and on a phone.
func TestPageIsSelfContained(t *testing.T) {
	config := home(t)
	login := newLogin(t, "https://127.0.0.1:%d/cb")
	r := run(t, login, flows.Options{}, saved)
	_, page := get(t, client(t, config), callback(login))
	for _, want := range []string{`name="viewport"`, "light dark", "<!DOCTYPE html>"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %s:\n%s", want, page)
		}
	}
	for _, bad := range []string{"src=", "href=", "url(", "<script", "style="} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %s, which its policy forbids:\n%s", bad, page)
		}
	}
	r.err(t)
}

// Browsers leave the default port out of the Host header, whatever the redirect address says.
func TestDefaultPort(t *testing.T) {
	for _, redirect := range []string{"http://127.0.0.1/cb", "http://127.0.0.1:80/cb"} {
		home(t)
		l, err := net.Listen("tcp", "127.0.0.1:80")
		if err != nil {
			t.Skipf("port 80 cannot be had: %v", err)
		}
		l.Close()
		login := &brokerauth.Login{URL: "https://broker.example/authorize", RedirectURL: redirect, State: state}
		r := run(t, login, flows.Options{}, saved)
		for _, host := range []string{"127.0.0.1", "127.0.0.1:80"} {
			req, _ := http.NewRequest("HEAD", "http://127.0.0.1/elsewhere", nil)
			req.Host = host
			resp, err := client(t, "").Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if resp.Body.Close(); resp.StatusCode != 404 {
				t.Errorf("at %s, Host %s is answered %s, want 404", redirect, host, resp.Status)
			}
		}
		get(t, client(t, ""), callback(login))
		if err := r.err(t); err != nil {
			t.Error(err)
		}
	}
}

func TestBothStacksOfLocalhost(t *testing.T) {
	if l, err := net.Listen("tcp", "[::1]:0"); err != nil {
		t.Skip("this computer has no IPv6")
	} else {
		l.Close()
	}
	config := home(t)
	login := newLogin(t, "https://localhost:%d/cb")
	r := run(t, login, flows.Options{}, saved)
	_, port, _ := net.SplitHostPort(address(login))
	for _, ip := range []string{"127.0.0.1", "::1"} {
		c := client(t, config)
		c.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(ip, port))
		}
		if resp, _ := get(t, c, login.RedirectURL); resp.StatusCode != 400 {
			t.Errorf("localhost on %s answers %s, want 400 without a state", ip, resp.Status)
		}
	}
	get(t, client(t, config), callback(login))
	if err := r.err(t); err != nil {
		t.Error(err)
	}
}

func TestHostileRequests(t *testing.T) {
	config := home(t)
	login := newLogin(t, "https://127.0.0.1:%d/cb")
	host := address(login)
	logged := new(text)
	log.SetOutput(logged)
	defer log.SetOutput(os.Stderr)
	r := runFor(t, 3*time.Minute, login, flows.Options{}, saved)

	// Connections that never say anything, or no TLS, before everything else.
	for _, first := range []string{"", "", "GET " + callback(login) + " HTTP/1.1\r\n\r\n", "\x16\x03\x01\xff\xff"} {
		conn, err := net.Dial("tcp", host)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, first)
	}

	const tooLong = "1 MiB query"
	valid := "/cb?code=C0.abc%40&state=" + state
	for _, test := range []struct{ name, method, target, host, body string }{
		{name: "favicon", target: "/favicon.ico"},
		{name: "root", target: "/"},
		{name: "root with the state", target: "/?code=c&state=" + state},
		{name: "deeper path", target: "/cb/?code=c&state=" + state},
		{name: "other case", target: "/CB?code=c&state=" + state},
		{name: "escaped path", target: "/%63b?code=c&state=" + state},
		{name: "doubled slash", target: "//cb?code=c&state=" + state},
		{name: "dots", target: "/x/../cb?code=c&state=" + state},
		{name: "no query", target: "/cb"},
		{name: "no state", target: "/cb?code=c"},
		{name: "empty state", target: "/cb?code=c&state="},
		{name: "wrong state", target: "/cb?code=c&state=" + strings.ToLower(state)},
		{name: "longer state", target: "/cb?code=c&state=" + state + "A"},
		{name: "shorter state", target: "/cb?code=c&state=" + state[:len(state)-1]},
		{name: "two states", target: "/cb?code=c&state=x&state=" + state},
		{name: "two right states", target: "/cb?code=c&state=" + state + "&state=" + state},
		{name: "forged refusal", target: "/cb?error=access_denied"},
		{name: "forged refusal, wrong state", target: "/cb?error=access_denied&state=x"},
		{name: "damaged query", target: "/cb?%zz;;&state"},
		{name: "HEAD", method: "HEAD", target: valid},
		{name: "POST", method: "POST", target: valid, body: "code=c"},
		{name: "PUT", method: "PUT", target: valid},
		{name: "OPTIONS", method: "OPTIONS", target: valid},
		{name: "made-up method", method: "BREW", target: valid},
		{name: "state in the body", method: "POST", target: "/cb", body: "code=c&state=" + state},
		{name: "rebound name", target: valid, host: "evil.example"},
		{name: "rebound name and port", target: valid, host: "evil.example:" + host[strings.LastIndex(host, ":")+1:]},
		{name: "no port", target: valid, host: "127.0.0.1"},
		{name: "localhost", target: valid, host: "localhost" + host[strings.LastIndex(host, ":"):]},
		{name: "absolute form", target: "https://evil.example" + valid},
		{name: tooLong, target: valid + "&x=" + strings.Repeat("x", 1<<20)},
	} {
		t.Run(test.name, func(t *testing.T) {
			conn, err := tls.Dial("tcp", host, client(t, config).Transport.(*http.Transport).TLSClientConfig)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(time.Minute))
			if test.method == "" {
				test.method = "GET"
			}
			if test.host == "" {
				test.host = host
			}
			// The server may answer, and close, before it has read all.
			go fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s",
				test.method, test.target, test.host, len(test.body), test.body)
			resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: test.method})
			if test.name == tooLong && errors.Is(err, syscall.ECONNRESET) {
				return // net/http leaves half a second to read why, which a busy machine may miss
			}
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			switch resp.StatusCode {
			case 400, 404, 431:
			default:
				t.Errorf("answered %s, want 400, 404 or 431", resp.Status)
			}
			if strings.Contains(string(body), state) || strings.Contains(string(body), login.URL) {
				t.Errorf("the answer gives the state away:\n%s", body)
			}
		})
	}

	// As many as it can be asked by 32 at a time, whom even a slow machine serves.
	var flood sync.WaitGroup
	var sent, refused atomic.Int32
	flooding := client(t, config)
	flooding.Timeout = time.Minute
	for range 32 {
		flood.Go(func() {
			for i := sent.Add(1); i <= 1000; i = sent.Add(1) {
				resp, err := flooding.Get(fmt.Sprintf("%s?code=c&state=%d", login.RedirectURL, i))
				if err != nil {
					t.Errorf("request %d of the flood: %v", i, err)
					return
				}
				resp.Body.Close()
				if resp.StatusCode == http.StatusBadRequest {
					refused.Add(1)
				}
			}
		})
	}
	flood.Wait()
	if n := refused.Load(); n != 1000 {
		t.Errorf("of 1000 requests %d were refused", n)
	}

	if n := r.finish.Load(); n != 0 {
		t.Fatalf("hostile requests finished the login %d times", n)
	}
	resp, page := get(t, client(t, config), callback(login))
	if resp.StatusCode != 200 {
		t.Errorf("the true callback answers %s:\n%s", resp.Status, page)
	}
	if err := r.err(t); err != nil || r.finish.Load() != 1 {
		t.Errorf("the flow: %v, after finish was called %d times", err, r.finish.Load())
	}
	if logged.String() != "" {
		t.Errorf("somebody else's mistakes are logged:\n%s", logged)
	}
	free(t, login)
}

// A connection over which nothing is asked, as browsers keep to be quick, does not delay the end.
func TestSpareConnection(t *testing.T) {
	config := home(t)
	var took time.Duration
	for range 5 { // a busy machine may be as slow without one
		login := newLogin(t, "https://127.0.0.1:%d/cb")
		r := run(t, login, flows.Options{}, saved)
		conn, err := net.Dial("tcp", address(login))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		get(t, client(t, config), callback(login))
		began := time.Now()
		if err := r.err(t); err != nil {
			t.Fatal(err)
		}
		if took = time.Since(began); took < 1500*time.Millisecond {
			return
		}
	}
	t.Errorf("it delays the end by %s", took)
}

// Apps of several brokers may share a port, where each has a path. None takes the answer of another.
func TestCodeAtAnothersPath(t *testing.T) {
	config := home(t)
	login := newLogin(t, "https://127.0.0.1:%d/tastytrade")
	r := run(t, login, flows.Options{}, saved)
	c := client(t, config)
	for path, want := range map[string]int{
		"/schwab?code=C0.abc%40&state=" + login.State: 404, "/schwab?code=C0.abc%40&state=schwabs": 404,
		"/tastytrade?code=C0.abc%40&state=schwabs": 400,
	} {
		resp, page := get(t, c, "https://"+address(login)+path)
		if resp.StatusCode != want || strings.Contains(page, "C0.abc") {
			t.Errorf("another broker's answer at %s is answered %s:\n%s", path, resp.Status, page)
		}
	}
	if n := r.finish.Load(); n != 0 {
		t.Errorf("another broker's code was sent %d times", n)
	}
	get(t, c, callback(login))
	if err := r.err(t); err != nil {
		t.Error(err)
	}
}

func TestSameCallbackTenTimes(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		code int
	}{
		{"saved", nil, 200},
		{"refused", &brokerauth.Error{Provider: "schwab", Op: "login", Status: 400}, 500},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := home(t)
			login := newLogin(t, "https://127.0.0.1:%d/cb")
			r := run(t, login, flows.Options{}, func(context.Context, string) error {
				arrived(t, 10)
				return test.err
			})
			c := client(t, config)
			var mu sync.Mutex
			pages := make(map[string]int)
			var browsers sync.WaitGroup
			for range 10 {
				browsers.Go(func() {
					resp, err := c.Get(callback(login))
					if err != nil {
						t.Error(err)
						return
					}
					defer resp.Body.Close()
					body, err := io.ReadAll(resp.Body)
					if err != nil {
						t.Error(err)
					}
					mu.Lock()
					defer mu.Unlock()
					pages[resp.Status+string(body)]++
					if resp.StatusCode != test.code {
						t.Errorf("answered %s, want %d", resp.Status, test.code)
					}
				})
			}
			browsers.Wait()
			if err := r.err(t); err != test.err {
				t.Errorf("the flow: %v, want %v", err, test.err)
			}
			if len(pages) != 1 || r.finish.Load() != 1 {
				t.Errorf("ten equal callbacks called finish %d times and brought %d pages, want 1 and 1", r.finish.Load(), len(pages))
			}
		})
	}
}

// arrived waits until a flow has read so many callbacks, and answered none of them.
func arrived(t *testing.T, n int) {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		if now := bytes.Count(stacks, []byte("flows.(*server).arrive(")); now >= n {
			return
		} else if time.Now().After(end) {
			t.Errorf("of %d callbacks %d arrived", n, now)
			return
		}
	}
}

// A browser that connected before the login ended gets the page, too. The flow waits for it for a quarter of a second, which a
// busy machine may miss: so one that is answered is enough. Without that wait none is.
func TestLateRequestGetsPage(t *testing.T) {
	config := home(t)
	for tries := 1; ; tries++ {
		login := newLogin(t, "https://127.0.0.1:%d/cb")
		r := run(t, login, flows.Options{}, saved)
		page, err := latePage(t, config, login)
		if err := r.err(t); err != nil || r.finish.Load() != 1 {
			t.Fatalf("the flow: %v, after finish was called %d times", err, r.finish.Load())
		}
		if err == nil {
			if !strings.Contains(page, "You are logged in") {
				t.Errorf("the second request is answered:\n%s", page)
			}
			return
		}
		if tries == 20 {
			t.Fatalf("of %d late requests none is answered: %v", tries, err)
		}
	}
}

// latePage is what a connection gets that asks only after another has ended the login.
func latePage(t *testing.T, config string, login *brokerauth.Login) (string, error) {
	t.Helper()
	c := client(t, config)
	late, err := tls.Dial("tcp", address(login), c.Transport.(*http.Transport).TLSClientConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	get(t, c, callback(login))
	time.Sleep(50 * time.Millisecond)
	fmt.Fprintf(late, "GET /cb?code=C0.abc%%40&state=%s HTTP/1.1\r\nHost: %s\r\n\r\n", state, address(login))
	resp, err := http.ReadResponse(bufio.NewReader(late), nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	return resp.Status + "\n" + string(page), err
}

func TestStartAddressWorksOnce(t *testing.T) {
	config := home(t)
	quickest := time.Hour // of three, as this machine may be busy
	for tries := 0; tries < 3 && quickest > 5*time.Second; tries++ {
		quickest = min(quickest, startTwice(t, config))
	}
	if quickest > 5*time.Second {
		t.Errorf("the person is told that somebody else was first after %s", quickest)
	}
}

// startTwice opens the start address of a login again and again, and returns how long the person is not told.
func startTwice(t *testing.T, config string) (untold time.Duration) {
	t.Helper()
	login := newLogin(t, "https://127.0.0.1:%d/cb")
	r := run(t, login, flows.Options{}, saved)
	c := client(t, config)
	ask := func(method, header string) int {
		req, _ := http.NewRequest(method, r.start, nil)
		if header != "" {
			req.Header.Set("Sec-Purpose", header)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if strings.Contains(resp.Header.Get("Location"), state) && resp.StatusCode != 302 {
			t.Error("the state was given away")
		}
		return resp.StatusCode
	}
	for i, test := range []struct {
		method, header string
		want           int
	}{
		{"HEAD", "", 400}, {"GET", "prefetch;prerender", 400}, {"POST", "", 400}, {"GET", "", 302}, {"GET", "", 404}, {"HEAD", "", 400},
	} {
		if got := ask(test.method, test.header); got != test.want {
			t.Errorf("request %d, %s %s: %d, want %d", i, test.method, test.header, got, test.want)
		}
	}
	for began := time.Now(); !strings.Contains(r.out.String(), "second time"); time.Sleep(time.Millisecond) {
		if untold = time.Since(began); untold > 30*time.Second {
			t.Fatal("the person is not told that somebody else was first")
		}
	}
	get(t, c, callback(login))
	if err := r.err(t); err != nil {
		t.Error(err)
	}
	return untold
}

func TestFailurePage(t *testing.T) {
	config := home(t)
	login := newLogin(t, "https://127.0.0.1:%d/cb")
	refused := &brokerauth.Error{Provider: "schwab", Op: "login", Kind: brokerauth.ErrRejected, Description: "<script>alert(1)</script>", Hint: "compare the secret"}
	r := run(t, login, flows.Options{}, func(context.Context, string) error { return fmt.Errorf("save: %w", refused) })
	resp, page := get(t, client(t, config), callback(login))
	if resp.StatusCode == 200 || strings.Contains(page, "You are logged in") {
		t.Errorf("the page of a failed login, %s, says otherwise:\n%s", resp.Status, page)
	}
	if !strings.Contains(page, "compare the secret") || strings.Contains(page, "<script") {
		t.Errorf("the page does not name the failure, or not escaped:\n%s", page)
	}
	if err := r.err(t); !errors.Is(err, brokerauth.ErrRejected) {
		t.Errorf("the flow: %v, want finish's error", err)
	}
	free(t, login)
}

// What the broker answers to this very login ends it, whatever the error is.
func TestAnswerWithStateEnds(t *testing.T) {
	config := home(t)
	login := newLogin(t, "http://127.0.0.1:%d/cb")
	full := errors.New("the disk is full")
	r := run(t, login, flows.Options{}, func(context.Context, string) error { return full })
	get(t, client(t, config), callback(login))
	if err := r.err(t); err != full {
		t.Errorf("the flow: %v, want %v", err, full)
	}
}

func TestBrokerWithoutState(t *testing.T) {
	config := home(t)
	login := newLogin(t, "http://127.0.0.1:%d/cb")
	login.State = ""
	r := run(t, login, flows.Options{}, func(_ context.Context, callback string) error {
		if !strings.Contains(callback, "code=") {
			return &brokerauth.Error{Provider: "td", Op: "login", Err: errors.New("the address holds no code")}
		}
		return nil
	})
	c := client(t, config)
	for range 2 {
		if resp, page := get(t, c, login.RedirectURL); resp.StatusCode != 500 || !strings.Contains(page, "no code") {
			t.Errorf("a callback without a code answers %s:\n%s", resp.Status, page)
		}
	}
	if n := r.finish.Load(); n != 1 {
		t.Errorf("the same callback called finish %d times, want 1", n)
	}
	if resp, _ := get(t, c, login.RedirectURL+"?code=c"); resp.StatusCode != 200 {
		t.Errorf("the callback answers %s, want 200", resp.Status)
	}
	if err := r.err(t); err != nil {
		t.Error(err)
	}
}

func TestPortInUse(t *testing.T) {
	for name, flow := range map[string]func(*flows.Options) brokerauth.Flow{"Browser": flows.Browser, "Auto": flows.Auto} {
		for _, redirect := range []string{"https://127.0.0.1:%d", "https://localhost:%d"} {
			t.Run(name+" "+redirect, func(t *testing.T) {
				home(t)
				login := newLogin(t, redirect)
				_, port, _ := net.SplitHostPort(address(login))
				taken := "127.0.0.1:" + port
				if strings.Contains(redirect, "localhost") {
					taken = "[::1]:" + port
				}
				l, err := net.Listen("tcp", taken)
				if err != nil {
					t.Skip(err)
				}
				defer l.Close()
				out := new(text)
				quickest := time.Hour // of three, as this machine may be busy
				for range 3 {
					begin := time.Now()
					err = flow(&flows.Options{In: noInput, Out: out, Open: func(context.Context, string) error {
						t.Error("a browser was opened")
						return nil
					}})(t.Context(), login, saved)
					if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), port) || !strings.Contains(err.Error(), "paste") {
						t.Errorf("the flow: %v, want EADDRINUSE, the port and the paste flow", err)
					}
					quickest = min(quickest, time.Since(begin))
				}
				if quickest > time.Second {
					t.Errorf("it took %s to notice", quickest)
				}
				if out.String() != "" {
					t.Errorf("an address was shown that nobody listens at:\n%s", out)
				}
				l.Close()
				free(t, login)
			})
		}
	}
}

func TestRedirectElsewhere(t *testing.T) {
	for _, redirect := range []string{
		"https://example.com/cb", "https://127.0.0.1.example.com", "myapp://callback", "https://0.0.0.0:8182", "https://192.168.1.5:8182",
		"urn:ietf:wg:oauth:2.0:oob", "https://127.0.0.1:0", "", "https://[",
	} {
		home(t)
		login := &brokerauth.Login{URL: "https://broker.example/", RedirectURL: redirect, State: state}
		err := flows.Browser(&flows.Options{In: noInput, Out: io.Discard})(t.Context(), login, saved)
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("Browser at %q: %v, want ErrUnsupported", redirect, err)
		}
		out, got := new(text), ""
		err = flows.Auto(&flows.Options{In: strings.NewReader("thecode\n"), Out: out})(t.Context(), login, func(_ context.Context, callback string) error {
			got = callback
			return nil
		})
		if err != nil || got != "thecode" {
			t.Errorf("Auto at %q: %v, finish got %q: want a paste", redirect, err, got)
		}
		if !strings.Contains(out.String(), login.URL) || !strings.Contains(out.String(), redirect) {
			t.Errorf("Auto at %q does not say where to log in and why to paste:\n%s", redirect, out)
		}
	}
}

// Where the answer is pasted, Auto opens the browser all the same, at an address that no other user can use.
func TestAutoOpensWithoutListening(t *testing.T) {
	home(t)
	for _, test := range []struct{ ssh, hub, why string }{
		{ssh: "192.0.2.1 50000 192.0.2.2 22", why: "login over SSH"}, {hub: "/user/me/", why: "notebook"}, {},
	} {
		t.Setenv("BROWSER", "")
		t.Setenv("SSH_CONNECTION", test.ssh)
		t.Setenv("JUPYTERHUB_SERVICE_PREFIX", test.hub)
		login := &brokerauth.Login{URL: "https://broker.example/?state=" + state, RedirectURL: "https://app.example/cb", State: state}
		in, w := pipe(t)
		out := new(text)
		opened := ""
		o := &flows.Options{In: in, Out: out}
		if test.why == "" {
			o.Open = func(_ context.Context, address string) error {
				opened = address
				for i, want := range []int{302, 404} {
					resp, err := browserOf("").Get(address)
					if err != nil {
						t.Error(err)
						break
					}
					resp.Body.Close()
					if resp.StatusCode != want || i == 0 && resp.Header.Get("Location") != login.URL {
						t.Errorf("the opened address answers %s, Location %q", resp.Status, resp.Header.Get("Location"))
					}
				}
				io.WriteString(w, login.RedirectURL+"?code=c&state="+state+"\n")
				return nil
			}
		} else {
			io.WriteString(w, login.RedirectURL+"?code=c&state="+state+"\n")
		}
		if err := flows.Auto(o)(t.Context(), login, saved); err != nil {
			t.Error(err)
		}
		if strings.Contains(opened, state) || opened == "" && test.why == "" {
			t.Errorf("the browser's argument is %q", opened)
		}
		if !strings.Contains(out.String(), test.why) || !strings.Contains(out.String(), "that is right") || !strings.Contains(out.String(), "30 seconds") {
			t.Errorf("the text does not say what comes, or why no browser:\n%s", out)
		}
		in.Close()
		w.Close()
	}
}

func TestTimeout(t *testing.T) {
	home(t)
	login := newLogin(t, "https://127.0.0.1:%d/cb")
	for name, flow := range map[string]func(*flows.Options) brokerauth.Flow{"Browser": flows.Browser, "Auto": flows.Auto, "Paste": flows.Paste} {
		r, w := pipe(t)
		err := flow(&flows.Options{
			In: r, Out: io.Discard, Open: func(context.Context, string) error { return nil }, Timeout: 30 * time.Millisecond,
		})(t.Context(), login, saved)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), login.RedirectURL) || !strings.Contains(err.Error(), "30ms") {
			t.Errorf("%s: %v, want DeadlineExceeded, the time and the exact redirect address", name, err)
		}
		if strings.Contains(err.Error(), context.DeadlineExceeded.Error()) {
			t.Errorf("%s: %v: the library's own words are enough", name, err)
		}
		w.Close()
		r.Close()
		free(t, login)
	}
}

// A person who pasted in vain learns at the end why, and not that nobody came back.
func TestTimeoutAfterRefusal(t *testing.T) {
	home(t)
	for name, flow := range map[string]func(*flows.Options) brokerauth.Flow{"Browser": flows.Browser, "Auto": flows.Auto, "Paste": flows.Paste} {
		login := newLogin(t, "https://127.0.0.1:%d/cb")
		r, w := pipe(t)
		var err error
		// On a busy machine the time may be over before the paste is read. Then the next login has more.
		for timeout, refused := 100*time.Millisecond, false; !refused && timeout < time.Minute; timeout *= 2 {
			io.WriteString(w, login.RedirectURL+"?code=abc&state=of-another\n")
			err = flow(&flows.Options{
				In: r, Out: io.Discard, Open: func(context.Context, string) error { return nil }, Timeout: timeout,
			})(t.Context(), login, func(context.Context, string) error {
				refused = true
				return &brokerauth.Error{Provider: "broker", Op: "login", Err: errors.New("it belongs to another login")}
			})
		}
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "it belongs to another login") ||
			strings.Contains(err.Error(), "nobody came back") {
			t.Errorf("%s: %v, want DeadlineExceeded, and why the address was refused", name, err)
		}
		w.Close()
		r.Close()
		free(t, login)
	}
}

func TestCancel(t *testing.T) {
	home(t)
	login := newLogin(t, "https://127.0.0.1:%d/cb")
	for name, flow := range map[string]func(*flows.Options) brokerauth.Flow{"Browser": flows.Browser, "Auto": flows.Auto, "Paste": flows.Paste} {
		r, w := pipe(t)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(30*time.Millisecond, cancel)
		o := &flows.Options{In: r, Out: io.Discard, Open: func(ctx context.Context, _ string) error {
			<-ctx.Done()
			return ctx.Err()
		}, Timeout: -1}
		if err := flow(o)(ctx, login, saved); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want Canceled", name, err)
		}
		o.Open = func(context.Context, string) error {
			t.Errorf("%s opened a browser though the context had ended", name)
			return nil
		}
		if err := flow(o)(ctx, login, saved); !errors.Is(err, context.Canceled) {
			t.Errorf("%s with an ended context: %v, want Canceled", name, err)
		}
		// The caller's reader is as it was.
		io.WriteString(w, "next\n")
		if line, err := bufio.NewReader(r).ReadString('\n'); line != "next\n" {
			t.Errorf("%s: the program's next line is %q, %v", name, line, err)
		}
		w.Close()
		r.Close()
		free(t, login)
	}
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if r.SetReadDeadline(time.Time{}) != nil {
		t.Skip("pipes have no deadlines here")
	}
	return r, w
}

func TestBrowserTakesPaste(t *testing.T) {
	home(t)
	login := newLogin(t, "https://127.0.0.1:%d/cb")
	in, w := pipe(t)
	defer in.Close()
	defer w.Close()
	r := run(t, login, flows.Options{In: in}, func(_ context.Context, got string) error {
		if got != callback(login) {
			return &brokerauth.Error{Provider: "schwab", Op: "login", Err: errors.New("that is no callback")}
		}
		return nil
	})
	if !strings.Contains(r.out.String(), login.URL) {
		t.Errorf("the text does not show the address for another computer's browser:\n%s", r.out)
	}
	fmt.Fprintf(w, "\nhello\n%s\nnext\n", callback(login))
	if err := r.err(t); err != nil {
		t.Error(err)
	}
	if !strings.Contains(r.out.String(), "that is no callback") {
		t.Errorf("the failure of the first paste was not shown:\n%s", r.out)
	}
	if line, err := bufio.NewReader(in).ReadString('\n'); line != "next\n" {
		t.Errorf("the program's next line is %q, %v", line, err)
	}
	free(t, login)
}

func TestBrowserLeavesInput(t *testing.T) {
	config := home(t)
	login := newLogin(t, "https://127.0.0.1:%d/cb")
	in, w := pipe(t)
	defer in.Close()
	defer w.Close()
	r := run(t, login, flows.Options{In: in}, saved)
	time.Sleep(20 * time.Millisecond) // the flow reads now
	get(t, client(t, config), callback(login))
	if err := r.err(t); err != nil {
		t.Error(err)
	}
	io.WriteString(w, "next\n")
	if line, err := bufio.NewReader(in).ReadString('\n'); line != "next\n" {
		t.Errorf("after the browser came first, the program's next line is %q, %v", line, err)
	}

	// A reader that cannot be stopped is not begun.
	lines := strings.NewReader("next\n")
	r = run(t, login, flows.Options{In: lines}, saved)
	get(t, client(t, config), callback(login))
	if err := r.err(t); err != nil || lines.Len() != len("next\n") {
		t.Errorf("the flow: %v, %d bytes left of the program's next line", err, lines.Len())
	}
}

// The end of the input is not the end of a login that a browser may still finish.
func TestBrowserOutlivesInput(t *testing.T) {
	config := home(t)
	login := newLogin(t, "https://127.0.0.1:%d/cb")
	in, w := pipe(t)
	defer in.Close()
	w.Close()
	r := run(t, login, flows.Options{In: in}, saved)
	time.Sleep(20 * time.Millisecond)
	get(t, client(t, config), callback(login))
	if err := r.err(t); err != nil {
		t.Error(err)
	}
}

func TestOpenFails(t *testing.T) {
	config := home(t)
	login := newLogin(t, "https://127.0.0.1:%d/cb")
	failed := make(chan struct{})
	out, done := new(text), make(chan error, 1)
	o := &flows.Options{In: noInput, Out: out, Open: func(context.Context, string) error {
		close(failed)
		return errors.New("the screen is dark")
	}}
	go func() { done <- flows.Browser(o)(t.Context(), login, saved) }()
	<-failed
	for end := time.Now().Add(30 * time.Second); !strings.Contains(out.String(), "the screen is dark"); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the failure is not shown:\n%s", out)
		}
	}
	get(t, client(t, config), callback(login))
	if err := <-done; err != nil {
		t.Errorf("the flow: %v", err)
	}
}

// The flow waits for its Open.
func TestOpenEndsFirst(t *testing.T) {
	home(t)
	ctx, cancel := context.WithCancel(t.Context())
	var over atomic.Bool
	o := &flows.Options{In: noInput, Out: io.Discard, Open: func(ctx context.Context, _ string) error {
		cancel()
		<-ctx.Done()
		time.Sleep(50 * time.Millisecond)
		over.Store(true)
		return nil
	}}
	if err := flows.Browser(o)(ctx, newLogin(t, "http://127.0.0.1:%d"), saved); !errors.Is(err, context.Canceled) || !over.Load() {
		t.Errorf("the flow: %v, returned after its Open: %t", err, over.Load())
	}
}

// An Open that does all of the login before it returns must get its pages.
func TestOpenIsTheBrowser(t *testing.T) {
	config := home(t)
	login := newLogin(t, "https://127.0.0.1:%d/cb")
	var page string
	o := &flows.Options{In: noInput, Out: io.Discard, Open: func(ctx context.Context, start string) error {
		req, _ := http.NewRequestWithContext(ctx, "GET", callback(login), nil)
		resp, err := client(t, config).Do(req)
		if err != nil {
			t.Error(err)
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		page = string(body)
		return err
	}}
	if err := flows.Browser(o)(t.Context(), login, saved); err != nil || !strings.Contains(page, "You are logged in") {
		t.Errorf("the flow: %v, page:\n%s", err, page)
	}
}

func TestAutoOverSSH(t *testing.T) {
	config := home(t)
	t.Setenv("SSH_CONNECTION", "192.0.2.1 50000 192.0.2.2 22")
	t.Setenv("BROWSER", "")
	login := newLogin(t, "https://127.0.0.1:%d/cb")
	_, port, _ := net.SplitHostPort(address(login))
	out, done := new(text), make(chan error, 1)
	go func() { done <- flows.Auto(&flows.Options{In: noInput, Out: out})(t.Context(), login, saved) }()
	for end := time.Now().Add(30 * time.Second); !strings.Contains(out.String(), "https://127"); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no address is shown:\n%s", out)
		}
	}
	get(t, client(t, config), callback(login))
	if err := <-done; err != nil {
		t.Error(err)
	}
	if want := "ssh -L " + port + ":127.0.0.1:" + port; !strings.Contains(out.String(), want) {
		t.Errorf("the text has no %q:\n%s", want, out)
	}
	if !strings.Contains(out.String(), login.URL) {
		t.Errorf("the text does not show the address for another computer's browser:\n%s", out)
	}
}

// served is the certificate that a login at the redirect address shows.
func served(t *testing.T, o flows.Options) (*x509.Certificate, string) {
	t.Helper()
	login := newLogin(t, "https://127.0.0.1:%d/cb")
	r := run(t, login, o, saved)
	conn, err := tls.Dial("tcp", address(login), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /cb?code=c&state=%s HTTP/1.1\r\nHost: %s\r\n\r\n", state, address(login))
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := r.err(t); err != nil {
		t.Fatal(err)
	}
	return conn.ConnectionState().PeerCertificates[0], r.out.String()
}

func TestCertificateIsKept(t *testing.T) {
	config := home(t)
	first, out := served(t, flows.Options{})
	if _, ok := first.PublicKey.(*ecdsa.PublicKey); !ok || first.IsCA || !first.BasicConstraintsValid {
		t.Errorf("the certificate is a %T, CA %t: want an ECDSA leaf", first.PublicKey, first.IsCA)
	}
	if life := first.NotAfter.Sub(first.NotBefore); life > 397*24*time.Hour {
		t.Errorf("the certificate lives %s, longer than browsers allow", life)
	}
	for _, host := range []string{"127.0.0.1", "::1", "localhost"} {
		if err := first.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	if first.VerifyHostname("example.com") == nil || len(first.DNSNames)+len(first.IPAddresses) != 3 {
		t.Errorf("the certificate vouches for more than this computer: %v %v", first.DNSNames, first.IPAddresses)
	}
	if !strings.Contains(out, "warn once about this computer's own certificate; go on only if the address starts with https://127.0.0.1:") {
		t.Errorf("the text does not prepare for the browser's warning:\n%s", out)
	}
	if !strings.Contains(out, fingerprint(first)) {
		t.Errorf("the text does not show the fingerprint %s:\n%s", fingerprint(first), out)
	}
	if runtime.GOOS != "windows" {
		for path, want := range map[string]fs.FileMode{config: 0o700, filepath.Join(config, "loopback.pem"): 0o600} {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: mode %v, %v, want %v", path, info.Mode(), err, want)
			}
		}
	}
	if second, _ := served(t, flows.Options{}); !second.Equal(first) {
		t.Error("the second login shows another certificate")
	}
	files, _ := os.ReadDir(config)
	if len(files) != 2 {
		t.Errorf("the folder holds %v, want certificate and lock", files)
	}
}

func fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	parts := make([]string, len(sum))
	for i, b := range sum {
		parts[i] = fmt.Sprintf("%02X", b)
	}
	return strings.Join(parts, ":")
}

func TestCertificateIsRenewed(t *testing.T) {
	config := home(t)
	path := filepath.Join(config, "loopback.pem")
	old, _ := served(t, flows.Options{})
	renewed := func(name string, spoil func()) {
		spoil()
		fresh, _ := served(t, flows.Options{})
		if fresh.Equal(old) {
			t.Errorf("%s: the old certificate is still in use", name)
		}
		old = fresh
	}
	renewed("near its end", func() { writeCertificate(t, path, time.Now().Add(20*24*time.Hour)) })
	if left := time.Until(old.NotAfter); left < 300*24*time.Hour {
		t.Errorf("a certificate near its end is kept: it has %s left", left)
	}
	renewed("damaged", func() { os.WriteFile(path, []byte("-----BEGIN CERTIFICATE-----\n"), 0o600) })
	renewed("missing", func() { os.Remove(path) })
	if runtime.GOOS != "windows" {
		renewed("open to others", func() { os.Chmod(path, 0o644) })
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("after the renewal: %v, %v", info.Mode(), err)
		}
	}
}

// writeCertificate writes one for this computer that ends at the time.
func writeCertificate(t *testing.T, path string, end time.Time) {
	t.Helper()
	pair := makeCertificate(t, end)
	secret, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})
	pem.Encode(&b, &pem.Block{Type: "PRIVATE KEY", Bytes: secret})
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

func makeCertificate(t *testing.T, end time.Time) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: end, BasicConstraintsValid: true,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestCertificateOfTheCaller(t *testing.T) {
	config := home(t)
	own := makeCertificate(t, time.Now().Add(time.Hour))
	got, out := served(t, flows.Options{Certificate: own})
	if !bytes.Equal(got.Raw, own.Certificate[0]) {
		t.Error("the caller's certificate is not shown")
	}
	if strings.Contains(out, "warn") || strings.Contains(out, "fingerprint") {
		t.Errorf("the text speaks of a certificate that is not in use:\n%s", out)
	}
	if _, err := os.Stat(config); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a certificate was made for nothing: %v", err)
	}
}

func TestCertificateCannotBeKept(t *testing.T) {
	dir := home(t)
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // a file where the folder should be
		if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, out := served(t, flows.Options{})
	if !strings.Contains(out, fingerprint(cert)) || !strings.Contains(out, "this login only") {
		t.Errorf("the text does not say that the certificate is not kept:\n%s", out)
	}
}

// Programs that make the certificate at the same time agree on one.
func TestCertificateOfManyPrograms(t *testing.T) {
	home(t)
	var mu sync.Mutex
	certs := make(map[string]bool)
	var programs sync.WaitGroup
	for range 8 {
		login := newLogin(t, "https://127.0.0.1:%d/cb")
		programs.Go(func() {
			err := flows.Browser(&flows.Options{In: noInput, Out: io.Discard, Open: func(context.Context, string) error {
				conn, err := tls.Dial("tcp", address(login), &tls.Config{InsecureSkipVerify: true})
				if err != nil {
					return err
				}
				defer conn.Close()
				mu.Lock()
				certs[string(conn.ConnectionState().PeerCertificates[0].Raw)] = true
				mu.Unlock()
				fmt.Fprintf(conn, "GET /cb?code=c&state=%s HTTP/1.1\r\nHost: %s\r\n\r\n", state, address(login))
				_, err = conn.Read(make([]byte, 1))
				return err
			}})(t.Context(), login, saved)
			if err != nil {
				t.Error(err)
			}
		})
	}
	programs.Wait()
	if len(certs) != 1 {
		t.Errorf("8 logins showed %d certificates, want 1", len(certs))
	}
}
