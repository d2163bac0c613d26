package flows

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"html"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/brokerauth/brokerauth"
)

const (
	// holdFor is how long a browser waits for the login's outcome: longer, and it may think the page lost.
	holdFor = 15 * time.Second
	// closeFor bounds the delivery of the last page.
	closeFor = 2 * time.Second
	// lingerFor bounds the wait for connections made at the same time, as by a double click, to ask for that page too.
	lingerFor = 250 * time.Millisecond
)

// server listens at a login's redirect address.
type server struct {
	login    *brokerauth.Login
	redirect *url.URL
	start    string // the path of the one-time address
	doorstep bool   // nothing but that address is served: the answer is pasted
	spent    atomic.Bool
	again    chan struct{} // the start address was opened after it was spent
	arrivals chan arrival

	listeners []net.Listener
	http      *http.Server
	serving   sync.WaitGroup

	visited atomic.Bool   // somebody came to the redirect address
	ended   chan struct{} // closed once the login has ended
	outcome error         // how; read it only after ended

	mu    sync.Mutex
	fresh map[net.Conn]bool // connections that never asked for anything
}

// arrival is a request to the redirect address.
type arrival struct {
	callback string
	proven   bool         // it carries this login's state
	reply    chan<- error // has room for one
}

// listen takes the login's redirect address, or says what stands in the way and what else to do.
func listen(ctx context.Context, login *brokerauth.Login) (*server, error) {
	if err := givenUp(ctx); err != nil {
		return nil, err
	}
	u, err := url.Parse(login.RedirectURL)
	if err != nil {
		return nil, says(errors.ErrUnsupported, "the redirect address cannot be read")
	}
	var hosts []string
	switch host := u.Hostname(); {
	case host == "127.0.0.1" || host == "::1":
		hosts = []string{host}
	case strings.EqualFold(host, "localhost"):
		hosts = []string{"127.0.0.1", "::1"} // a browser takes either
	}
	if hosts == nil || u.Scheme != "http" && u.Scheme != "https" || u.Port() == "0" {
		return nil, says(errors.ErrUnsupported, "the redirect address %s is none of http or https on 127.0.0.1, [::1] or localhost, "+
			"so its answer cannot be caught here: paste it, or register https://127.0.0.1:8182 with the broker", login.RedirectURL)
	}
	s := &server{
		login: login, redirect: u, start: "/" + rand.Text(),
		arrivals: make(chan arrival), again: make(chan struct{}, 1), ended: make(chan struct{}), fresh: make(map[net.Conn]bool),
	}
	for i, host := range hosts {
		var config net.ListenConfig
		l, err := config.Listen(ctx, "tcp", net.JoinHostPort(host, s.port()))
		if err == nil {
			s.listeners = append(s.listeners, l)
			continue
		}
		taken, denied := errors.Is(err, syscall.EADDRINUSE), errors.Is(err, fs.ErrPermission)
		if runtime.GOOS == "windows" {
			// Windows has numbers of its own: WSAEADDRINUSE, WSAEACCES.
			taken, denied = errors.Is(err, syscall.Errno(10048)), errors.Is(err, syscall.Errno(10013))
		}
		if i > 0 && !taken && !denied {
			break // this computer has no IPv6
		}
		for _, l := range s.listeners {
			l.Close()
		}
		switch {
		case taken:
			return nil, says(syscall.EADDRINUSE, "port %s on %s is in use, perhaps by another login that still waits: "+
				"end that program, paste the answer, or register a redirect address with another port", s.port(), host)
		case denied:
			return nil, says(fs.ErrPermission, "this user may not listen on port %s of %s: paste the answer, "+
				"or register a redirect address with another port, such as https://127.0.0.1:8182", s.port(), host)
		}
		return nil, fmt.Errorf("flows: listen at the redirect address %s: %w", login.RedirectURL, err)
	}
	return s, nil
}

// doorstep serves only a one-time address that leads to the login page, from a port that is free.
func doorstep(ctx context.Context, login *brokerauth.Login) (*server, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("flows: listen on this computer: %w", err)
	}
	s := &server{
		login: login, redirect: &url.URL{Scheme: "http", Host: l.Addr().String()}, start: "/" + rand.Text(), doorstep: true,
		arrivals: make(chan arrival), again: make(chan struct{}, 1), ended: make(chan struct{}), fresh: make(map[net.Conn]bool),
		listeners: []net.Listener{l},
	}
	s.serve(nil)
	return s, nil
}

func (s *server) port() string { return port(s.redirect) }

func port(u *url.URL) string {
	if u.Scheme == "http" {
		return cmp.Or(u.Port(), "80")
	}
	return cmp.Or(u.Port(), "443")
}

// bare is host without a port that browsers leave out.
func (s *server) bare(host string) string {
	port := ":443"
	if s.redirect.Scheme == "http" {
		port = ":80"
	}
	return strings.ToLower(strings.TrimSuffix(host, port))
}

func (s *server) origin() string { return s.redirect.Scheme + "://" + s.redirect.Host }

func (s *server) startURL() string { return s.origin() + s.start }

// tunnel is what makes ssh bring this listener to another computer.
func (s *server) tunnel() string {
	host := "127.0.0.1"
	if s.redirect.Hostname() == "::1" {
		host = "[::1]"
	}
	return s.port() + ":" + host + ":" + s.port()
}

// serve answers requests until close, over TLS if cert is not nil.
func (s *server) serve(cert *tls.Certificate) {
	s.http = &http.Server{
		Handler: s,
		// Browsers that balk at the certificate are no news, and a log line might hold an address.
		ErrorLog:          log.New(io.Discard, "", 0),
		ReadHeaderTimeout: 10 * time.Second,
		WriteTimeout:      holdFor + 5*time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ConnState: func(c net.Conn, state http.ConnState) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if state == http.StateNew {
				s.fresh[c] = true
			} else {
				delete(s.fresh, c)
			}
		},
	}
	for _, l := range s.listeners {
		if cert != nil {
			// HTTP/1.1 only: HTTP/2 takes a second longer to close.
			l = tls.NewListener(l, &tls.Config{
				Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
			})
		}
		s.serving.Go(func() { s.http.Serve(l) })
	}
}

// close frees the port and returns when every browser that waits was told the outcome, or too slow to be told.
func (s *server) close(outcome error) {
	s.outcome = outcome
	close(s.ended)
	if s.visited.Load() {
		for end := time.Now().Add(lingerFor); ; {
			time.Sleep(20 * time.Millisecond)
			s.mu.Lock()
			fresh := len(s.fresh)
			s.mu.Unlock()
			if fresh == 0 || time.Now().After(end) {
				break
			}
		}
	}
	for _, l := range s.listeners {
		l.Close()
	}
	s.serving.Wait()
	if s.http == nil {
		return
	}
	// Browsers keep spare connections, for which Shutdown would wait.
	s.mu.Lock()
	for c := range s.fresh {
		c.Close()
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), closeFor)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		s.http.Close()
	}
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, get := r.URL.EscapedPath(), r.Method == http.MethodGet
	state := r.URL.Query()["state"]
	proven := s.login.State != "" && len(state) == 1 && subtle.ConstantTimeCompare([]byte(state[0]), []byte(s.login.State)) == 1
	switch {
	case s.bare(r.Host) != s.bare(s.redirect.Host):
		// A page elsewhere can give 127.0.0.1 a name of its own and read what it says.
		page(w, http.StatusBadRequest, "Not here", "This address is for the browser of the person who logs in.")

	case subtle.ConstantTimeCompare([]byte(path), []byte(s.start)) == 1:
		// A browser that looks ahead, or a program that only looks, has not shown the broker's page to anybody.
		if !get || strings.Contains(r.Header.Get("Sec-Purpose")+r.Header.Get("Purpose"), "prefetch") {
			page(w, http.StatusBadRequest, "Not yet", "Open this address in a browser.")
		} else if s.over() || !s.spent.CompareAndSwap(false, true) {
			select {
			case s.again <- struct{}{}:
			default:
			}
			show(w, http.StatusNotFound, notice{mark: "wait", title: "This address worked once",
				text: "Go on in the page that it opened.",
				next: "If you have not opened it before, another user of this computer has: stop the login and start again."})
		} else {
			headers(w)
			w.Header().Set("Location", s.login.URL)
			w.WriteHeader(http.StatusFound)
		}

	case s.doorstep || path != cmp.Or(s.redirect.EscapedPath(), "/"):
		page(w, http.StatusNotFound, "Nothing is here", "A login waits on this computer, at another address.")

	case !get:
		page(w, http.StatusBadRequest, "Not this way", "Only a browser that comes back from the broker is answered here.")

	case s.login.State != "" && !proven:
		show(w, http.StatusBadRequest, notice{mark: "bad", title: "This page is of another login",
			text: "The login that waits on this computer is another one.",
			next: "Close older tabs of the login page, and log in with the newest address that the program shows."})

	default:
		s.arrive(w, r, proven)
	}
}

// arrive passes a callback on and tells the browser what became of it.
func (s *server) arrive(w http.ResponseWriter, r *http.Request, proven bool) {
	s.visited.Store(true)
	reply := make(chan error, 1)
	arrivals := s.arrivals
	a := arrival{s.origin() + r.URL.RequestURI(), proven, reply}
	late := time.After(holdFor)
	for {
		select {
		case arrivals <- a:
			arrivals = nil
			continue
		case err := <-reply:
			outcome(w, err)
		case <-s.ended:
			outcome(w, s.outcome)
		case <-late:
			page(w, http.StatusAccepted, "Still working", "The broker has not answered yet. Look at the program that you log in to.")
		}
		return
	}
}

func (s *server) over() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// outcome is the page of a login that has ended, or of an address that did not end it.
func outcome(w http.ResponseWriter, err error) {
	if err == nil {
		show(w, http.StatusOK, notice{mark: "good", title: "You are logged in", text: "The login is saved.", next: "You can close this page."})
		return
	}
	n := notice{mark: "bad", title: "The login failed", text: sentence(strings.TrimPrefix(err.Error(), "flows: ")),
		next: "When that is mended, log in again.", small: "The program that you log in to says the same."}
	if e, ok := err.(*brokerauth.Error); ok && e.Hint != "" {
		// What to do first, and what only helps whoever is asked for help last.
		n.text, n.next = sentence(e.Hint), ""
		said := []string{e.Provider}
		if e.Status != 0 {
			said = append(said, fmt.Sprintf("HTTP %d", e.Status))
		}
		said = slices.DeleteFunc(append(said, e.Code, e.Description), func(s string) bool { return s == "" })
		n.small += " (" + strings.Join(said, ": ") + ")"
	}
	show(w, http.StatusInternalServerError, n)
}

// sentence is a hint, which begins like the middle of one.
func sentence(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	return string(unicode.ToUpper(r)) + strings.TrimSuffix(s[n:], ".") + "."
}

// style is of one small page, which is all there is: no picture, font or script comes from anywhere.
const style = `:root{color-scheme:light dark;--ground:#f2f4f7;--page:#fff;--text:#1c2430;--quiet:#5b6675;--good:#12805c;--bad:#b3261e;--wait:#9a6700}` +
	`@media(prefers-color-scheme:dark){:root{--ground:#12161c;--page:#1c222b;--text:#e8ecf2;--quiet:#9aa6b5;--good:#4cc495;--bad:#ff8a80;--wait:#f0b429}}` +
	`html{background:var(--ground)}` +
	`body{font:1.0625rem/1.5 system-ui,sans-serif;color:var(--text);background:var(--page);max-width:30rem;margin:14vh auto;` +
	`padding:2rem;border-radius:.75rem;box-shadow:0 1px 3px #0003;overflow-wrap:anywhere}` +
	`h1{font-size:1.5rem;line-height:1.25;margin:0 0 1rem}p{margin:.75rem 0 0}` +
	`.small{color:var(--quiet);font-size:.875rem;border-top:1px solid #8884;margin-top:1.5rem;padding-top:.75rem}` +
	`.good,.bad,.wait{padding-left:2.5rem;position:relative}` +
	`.good::before,.bad::before,.wait::before{content:"!";position:absolute;left:0;top:0;width:1.75rem;height:1.75rem;` +
	`border-radius:50%;background:var(--bad);color:var(--page);font-size:1.1rem;line-height:1.75rem;text-align:center}` +
	`.good::before{content:"\2713";background:var(--good)}.wait::before{content:"\2026";background:var(--wait)}` +
	`@media(max-width:34rem){body{margin:1rem;padding:1.5rem}}`

// headers keep the code in the page's own address from going elsewhere.
func headers(w http.ResponseWriter) {
	sum := sha256.Sum256([]byte(style))
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+
		"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
}

// notice is what a page says: what happened and what to do next.
type notice struct {
	mark  string // before the title: good, bad or wait
	title string
	text  string
	next  string
	small string // for whoever is asked for help
}

// page tells of a request that is none of the login's, which goes on.
func page(w http.ResponseWriter, status int, title, text string) {
	show(w, status, notice{mark: "wait", title: title, text: text})
}

func show(w http.ResponseWriter, status int, n notice) {
	headers(w)
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprintf(w, `<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>%[2]s</title><style>%[1]s</style></head>
<body><h1 class="%[3]s">%[2]s</h1>
`, style, html.EscapeString(n.title), n.mark)
	for _, text := range []string{n.text, n.next} {
		if text != "" {
			fmt.Fprintf(w, "<p>%s</p>\n", html.EscapeString(text))
		}
	}
	if n.small != "" {
		fmt.Fprintf(w, "<p class=\"small\">%s</p>\n", html.EscapeString(n.small))
	}
	fmt.Fprint(w, "</body></html>\n")
}
