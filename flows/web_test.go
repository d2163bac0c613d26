package flows_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/flows"
	"github.com/brokerauth/brokerauth/providers/schwab"
	"github.com/brokerauth/brokerauth/providers/tdameritrade"
	"github.com/brokerauth/brokerauth/storage/disk"
	"github.com/brokerauth/brokerauth/storage/memory"
)

// site is a web app: one https address, behind which a proxy that cuts off the prefix /app passes each request to one
// of several hosts. They share a folder, keys and nothing else.
type site struct {
	t      *testing.T
	url    string // https://127.0.0.1:PORT/app
	tls    *http.Transport
	dir    string
	keys   [][]byte
	hosts  []*host
	next   atomic.Int32 // which host answers
	schwab *emulator.Broker
	td     *emulator.Broker
	bases  map[string]string // of the brokers' own servers
	said   *logged
}

type host struct {
	server *httptest.Server
	stop   func()
}

// logged is what the library told slog.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func newSite(t *testing.T, hosts int) *site {
	s := &site{t: t, dir: t.TempDir(), keys: [][]byte{bytes.Repeat([]byte{7}, 32)}, bases: map[string]string{}, said: new(logged)}
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(s.said, nil)))
	t.Cleanup(func() { slog.SetDefault(before) })
	s.schwab, s.td = emulator.Schwab(t), emulator.TDAmeritrade(t)
	for name, b := range map[string]*emulator.Broker{"schwab": s.schwab, "td": s.td} {
		server := httptest.NewServer(b)
		t.Cleanup(server.Close)
		s.bases[name] = server.URL
	}
	front := httptest.NewTLSServer(http.StripPrefix("/app", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u, err := url.Parse(s.hosts[s.next.Load()].server.URL)
		if err != nil {
			panic(err)
		}
		(&httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(u)
			p.Out.Host = p.In.Host
		}}).ServeHTTP(w, r)
	})))
	t.Cleanup(front.Close)
	s.url = front.URL + "/app"
	s.tls = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: front.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}}
	t.Cleanup(s.tls.CloseIdleConnections)
	for range hosts {
		s.hosts = append(s.hosts, s.host())
	}
	t.Cleanup(func() {
		for _, h := range s.hosts {
			h.stop()
		}
	})
	return s
}

// host starts one, which takes its users' word for who they are.
func (s *site) host() *host {
	store, err := disk.New(s.dir)
	if err != nil {
		s.t.Fatal(err)
	}
	var mu sync.Mutex
	sessions := map[string]*brokerauth.Session{}
	providers := map[string]brokerauth.Provider{}
	if providers["schwab"], err = schwab.New(schwab.Config{
		AppKey: "app", AppSecret: "secret", CallbackURL: s.url + "/schwab/callback", BaseURL: s.bases["schwab"]}); err != nil {
		s.t.Fatal(err)
	}
	if providers["td"], err = tdameritrade.New(tdameritrade.Config{
		ClientID: "app", CallbackURL: s.url + "/td/callback", BaseURL: s.bases["td"]}); err != nil {
		s.t.Fatal(err)
	}
	mux := http.NewServeMux()
	for name, p := range providers {
		mux.Handle("/"+name+"/", &flows.Web{Keys: s.keys, Session: func(r *http.Request) (*brokerauth.Session, error) {
			if r.URL.RawQuery != "" && strings.HasSuffix(r.URL.Path, "/callback") || strings.Contains(r.RequestURI, "?") && strings.HasSuffix(r.URL.Path, "/callback") {
				s.t.Error("the app was shown the callback's query")
			}
			user, err := r.Cookie("user")
			if err != nil {
				return nil, err
			}
			mu.Lock()
			defer mu.Unlock()
			key := name + " " + user.Value
			if sessions[key] == nil {
				sessions[key] = &brokerauth.Session{Provider: p, Store: store, Profile: user.Value, Observe: func(brokerauth.Event) {}}
			}
			return sessions[key], nil
		}})
	}
	h := &host{server: httptest.NewServer(mux)}
	h.stop = sync.OnceFunc(func() {
		h.server.Close()
		for _, session := range sessions {
			session.Close()
		}
	})
	return h
}

// visitor is a user's browser.
type visitor struct {
	*site
	client *http.Client
}

func (s *site) visitor(user string) *visitor {
	jar, err := cookiejar.New(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	u, err := url.Parse(s.url)
	if err != nil {
		s.t.Fatal(err)
	}
	if user != "" {
		jar.SetCookies(u, []*http.Cookie{{Name: "user", Value: user, Path: "/", Secure: true}})
	}
	return &visitor{s, &http.Client{Jar: jar, Transport: s.tls, Timeout: time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// do sends a request as a browser does, and returns the answer with its body.
func (v *visitor) do(method, address string, header ...string) (*http.Response, string) {
	v.t.Helper()
	req, err := http.NewRequestWithContext(v.t.Context(), method, address, nil)
	if err != nil {
		v.t.Fatal(err)
	}
	req.Header.Set("Accept", "text/html")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := v.client.Do(req)
	if err != nil {
		v.t.Error(err)
		return &http.Response{Header: http.Header{}}, ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		v.t.Error(err)
	}
	if strings.HasPrefix(address, v.url) && resp.Header.Get("Cache-Control") != "no-store" {
		v.t.Errorf("%s %s may be cached", method, req.URL.Path)
	}
	return resp, string(body)
}

// start begins a login and consents, and returns the address that the broker sends the browser to.
func (v *visitor) start(broker string) (callback string) {
	v.t.Helper()
	resp, body := v.do("GET", v.url+"/"+broker+"/start", "Sec-Fetch-Site", "same-origin", "Sec-Fetch-Dest", "document")
	page := resp.Header.Get("Location")
	if resp.StatusCode != http.StatusSeeOther || !strings.HasPrefix(page, v.bases[broker]) {
		v.t.Fatalf("start: %d to %q: %s", resp.StatusCode, page, body)
	}
	return v.consent(page, "approve")
}

func (v *visitor) consent(page, button string) (callback string) {
	v.t.Helper()
	resp, err := v.client.PostForm(page, url.Values{"button": {button}})
	if err != nil {
		v.t.Fatal(err)
	}
	resp.Body.Close()
	callback = resp.Header.Get("Location")
	if !strings.HasPrefix(callback, v.url) {
		v.t.Fatalf("the broker's page answers %d", resp.StatusCode)
	}
	return callback
}

// come opens a callback, and returns where it leads, relative, and the page there.
func (v *visitor) come(callback string) (to, page string) {
	v.t.Helper()
	resp, body := v.do("GET", callback, "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Dest", "document")
	to = resp.Header.Get("Location")
	if resp.StatusCode != http.StatusSeeOther || strings.Contains(to, "code=") || strings.Contains(body, "code=") {
		v.t.Fatalf("callback: %d to %q: %s", resp.StatusCode, to, body)
	}
	if got := resp.Header.Get("Referrer-Policy"); got != "no-referrer" {
		v.t.Errorf("the callback's Referrer-Policy is %q", got)
	}
	base, _ := url.Parse(callback)
	next, err := base.Parse(to)
	if err != nil {
		v.t.Fatal(err)
	}
	_, page = v.do("GET", next.String())
	return to, page
}

// status is a program's look at it.
func (v *visitor) status(broker string) (in bool) {
	v.t.Helper()
	_, body := v.do("GET", v.url+"/"+broker+"/", "Accept", "application/json")
	var st struct {
		LoggedIn bool    `json:"logged_in"`
		KeptAs   *string `json:"kept_as"`
	}
	if err := json.Unmarshal([]byte(body), &st); err != nil {
		v.t.Fatalf("%v: %s", err, body)
	}
	if st.KeptAs != nil {
		v.t.Errorf("the status tells users where the server keeps it: %s", body)
	}
	return st.LoggedIn
}

// exchanges counts what a broker saw.
func exchanges(b *emulator.Broker, grant string) (n int) {
	for _, r := range b.Requests() {
		if r.GrantType == grant {
			n++
		}
	}
	return n
}

func TestWebFinishesOnAnyHost(t *testing.T) {
	s := newSite(t, 2)
	alice := s.visitor("alice")
	if alice.status("schwab") {
		t.Fatal("alice is logged in before she logs in")
	}
	callback := alice.start("schwab")
	s.next.Store(1)
	to, page := alice.come(callback)
	if to != "status" || !strings.Contains(page, "Logged in") || strings.Contains(page, "alert") {
		t.Errorf("the other host leads to %q: %s", to, page)
	}
	for i := range s.hosts {
		s.next.Store(int32(i))
		if !alice.status("schwab") {
			t.Errorf("host %d does not know of the login", i)
		}
	}
	if s.visitor("bob").status("schwab") || alice.status("td") {
		t.Error("somebody else, or somewhere else, is logged in, too")
	}
	if n := exchanges(s.schwab, "authorization_code"); n != 1 {
		t.Errorf("%d exchanges", n)
	}
}

func TestWebSurvivesRestart(t *testing.T) {
	s := newSite(t, 1)
	alice := s.visitor("alice")
	callback := alice.start("schwab")
	s.hosts[0].stop()
	// Meanwhile a key was added at the front.
	s.keys = append([][]byte{bytes.Repeat([]byte{8}, 32)}, s.keys...)
	s.hosts[0] = s.host()
	if to, page := alice.come(callback); to != "status" || !strings.Contains(page, "Logged in") {
		t.Errorf("after a restart the callback leads to %q: %s", to, page)
	}
	// And the old one is gone.
	bob := s.visitor("bob")
	s.keys = s.keys[1:]
	s.hosts[0].stop()
	s.hosts[0] = s.host()
	callback = bob.start("schwab")
	s.keys = [][]byte{bytes.Repeat([]byte{8}, 32)}
	s.hosts[0].stop()
	s.hosts[0] = s.host()
	if to, _ := bob.come(callback); to != "status?other" || bob.status("schwab") {
		t.Errorf("a cookie under a key that is gone leads to %q", to)
	}
}

func TestWebReplay(t *testing.T) {
	s := newSite(t, 2)
	alice := s.visitor("alice")
	u, err := url.Parse(s.url)
	if err != nil {
		t.Fatal(err)
	}
	callback := alice.start("schwab")
	stolen := alice.client.Jar.Cookies(u)
	if to, _ := alice.come(callback); to != "status" {
		t.Fatalf("the callback leads to %q", to)
	}
	if len(alice.client.Jar.Cookies(u)) != 1 { // the app's own
		t.Errorf("after the login the browser keeps %d cookies", len(alice.client.Jar.Cookies(u)))
	}
	if to, page := alice.come(callback); to != "status?other" || !strings.Contains(page, "Logged in") {
		t.Errorf("the same address again leads to %q: %s", to, page)
	}
	// Whoever has the cookie, too, gets the same answer on each host, and the broker sees the code no more.
	for i := range s.hosts {
		s.next.Store(int32(i))
		again := s.visitor("")
		again.client.Jar.SetCookies(u, stolen)
		if to, _ := again.come(callback); to != "status" {
			t.Errorf("with the cookie of before, host %d leads to %q", i, to)
		}
	}
	if n := exchanges(s.schwab, "authorization_code"); n != 1 {
		t.Errorf("%d exchanges", n)
	}
}

func TestWebParallelCallbacks(t *testing.T) {
	for _, fate := range []string{"taken", "refused"} {
		t.Run(fate, func(t *testing.T) {
			s := newSite(t, 2)
			alice := s.visitor("alice")
			callback := alice.start("schwab")
			want := "Logged in"
			fault := emulator.Fault{Delay: 300 * time.Millisecond}
			if fate == "refused" {
				want, fault.Status, fault.Body = `role="alert"`, 400, `{"error":"invalid_grant","error_description":"code expired"}`
			}
			s.schwab.Inject(fault)
			u, _ := url.Parse(s.url)
			cookies := alice.client.Jar.Cookies(u)
			var all sync.WaitGroup
			pages := make([]string, 10)
			for i := range pages {
				all.Go(func() {
					tab := s.visitor("") // each sees the cookies as they were
					tab.client.Jar.SetCookies(u, cookies)
					s.next.Store(int32(i % 2))
					_, pages[i] = tab.come(callback)
				})
			}
			all.Wait()
			for _, page := range pages {
				if !strings.Contains(page, want) || page != pages[0] {
					t.Errorf("of ten requests one got %s\nand another %s", pages[0], page)
				}
			}
			if n := exchanges(s.schwab, "authorization_code"); n != 1 {
				t.Errorf("%d exchanges", n)
			}
		})
	}
}

func TestWebForeignCallbacks(t *testing.T) {
	s := newSite(t, 1)
	alice, mallory := s.visitor("alice"), s.visitor("mallory")
	u, _ := url.Parse(s.url)

	// Mallory's code in Alice's browser would have her use his account.
	planted := mallory.start("schwab")
	if to, page := alice.come(planted); to != "status?other" || !strings.Contains(page, "Nobody is logged in") {
		t.Errorf("a stranger's callback leads to %q: %s", to, page)
	}
	// So it is with his cookie beside hers, as a shared computer has it.
	mine := alice.start("schwab")
	for _, c := range mallory.client.Jar.Cookies(u) {
		if c.Name != "user" {
			alice.client.Jar.SetCookies(u, []*http.Cookie{c})
		}
	}
	if to, _ := alice.come(planted); to != "status?other" {
		t.Errorf("a stranger's callback with his cookie leads to %q", to)
	}
	// His cookie under the name of hers does not open.
	for _, his := range mallory.client.Jar.Cookies(u) {
		for _, hers := range alice.client.Jar.Cookies(u) {
			if his.Name == "user" || hers.Name == "user" || his.Name == hers.Name {
				continue
			}
			tab := s.visitor("alice")
			tab.client.Jar.SetCookies(u, []*http.Cookie{{Name: hers.Name, Value: his.Value, Path: "/"}})
			if to, _ := tab.come(planted); to != "status?other" {
				t.Errorf("a stranger's cookie under another name leads to %q", to)
			}
		}
	}
	// Wrong, missing and doubled states, and a forged refusal, end nothing.
	base, _, _ := strings.Cut(mine, "?")
	for _, query := range []string{
		"", "code=C0.x", "code=C0.x&state=", "code=C0.x&state=wrong", "error=access_denied", "error=access_denied&state=wrong",
		strings.Split(mine, "?")[1] + "&state=wrong", "%zz", strings.Repeat("a", 60<<10),
	} {
		if to, _ := alice.come(base + "?" + query); to != "status?other" {
			t.Errorf("%.40q leads to %q", query, to)
		}
	}
	for _, method := range []string{"HEAD", "POST", "OPTIONS"} {
		if resp, _ := alice.do(method, mine); resp.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s to the callback: %d", method, resp.StatusCode)
		}
	}
	// Nor does one broker's answer at the other's place.
	if to, _ := alice.come(strings.Replace(mine, "/schwab/", "/td/", 1)); to != "status?other" {
		t.Errorf("schwab's callback at TD's place leads to %q", to)
	}
	td := alice.start("td")
	if to, _ := alice.come(strings.Replace(td, "/td/", "/schwab/", 1)); to != "status?other" {
		t.Errorf("TD's callback at schwab's place leads to %q", to)
	}
	if n := exchanges(s.schwab, "authorization_code") + exchanges(s.td, "authorization_code"); n != 0 {
		t.Errorf("%d exchanges so far", n)
	}
	// After all that both logins still wait.
	for name, callback := range map[string]string{"schwab": mine, "td": td} {
		if to, page := alice.come(callback); to != "status" || !alice.status(name) {
			t.Errorf("%s: the right callback leads to %q: %s", name, to, page)
		}
	}
	for _, b := range []*emulator.Broker{s.schwab, s.td} {
		for _, secret := range b.Secrets() {
			if strings.Contains(s.said.String(), secret) {
				t.Error("the log holds a secret")
			}
		}
	}
}

func TestWebCookie(t *testing.T) {
	s := newSite(t, 1)
	alice := s.visitor("alice")
	resp, _ := alice.do("GET", s.url+"/td/start")
	cookies := resp.Cookies()
	if len(cookies) != 1 {
		t.Fatalf("%d cookies", len(cookies))
	}
	c := cookies[0]
	if !strings.HasPrefix(c.Name, "__Host-") || !c.Secure || !c.HttpOnly || c.Path != "/" || c.Domain != "" ||
		c.SameSite != http.SameSiteLaxMode || c.MaxAge <= 0 || len(c.Name)+len(c.Value) >= 4096 {
		t.Errorf("the cookie is %d bytes: %s", len(c.Name)+len(c.Value), resp.Header.Get("Set-Cookie"))
	}
	page, err := url.Parse(resp.Header.Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	if state := page.Query().Get("state"); strings.Contains(c.Value, state) {
		t.Error("the cookie shows the state")
	}
	// One bit of it changed, and it is none.
	callback := alice.consent(page.String(), "approve")
	u, _ := url.Parse(s.url)
	for _, i := range []int{0, len(c.Value) / 2} {
		changed := *c
		swap := byte('A')
		if c.Value[i] == 'A' {
			swap = 'B'
		}
		changed.Value = c.Value[:i] + string(swap) + c.Value[i+1:]
		tab := s.visitor("alice")
		tab.client.Jar.SetCookies(u, []*http.Cookie{&changed})
		if to, _ := tab.come(callback); to != "status?other" {
			t.Errorf("a changed cookie leads to %q", to)
		}
	}
}

func TestWebDenied(t *testing.T) {
	s := newSite(t, 1)
	alice := s.visitor("alice")
	resp, _ := alice.do("GET", s.url+"/schwab/start")
	callback := alice.consent(resp.Header.Get("Location"), "deny")
	if to, page := alice.come(callback); to != "status" || !strings.Contains(page, "declined") {
		t.Errorf("a refusal leads to %q: %s", to, page)
	}
	if _, page := alice.do("GET", s.url+"/schwab/status"); strings.Contains(page, "declined") {
		t.Error("the refusal is told twice")
	}
	if to, _ := alice.come(alice.start("schwab")); to != "status" || !alice.status("schwab") {
		t.Errorf("the next try leads to %q", to)
	}
}

func TestWebCrossSite(t *testing.T) {
	s := newSite(t, 1)
	alice := s.visitor("alice")
	alice.come(alice.start("schwab"))
	origin := strings.TrimSuffix(s.url, "/app")
	for _, action := range []string{"refresh", "disconnect"} {
		for _, header := range [][]string{
			{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Sec-Fetch-Site", "cross-site", "Origin", origin},
			{"Origin", "https://evil.example"}, {"Origin", "null"}, {"Origin", "https://127.0.0.1:1"},
		} {
			if resp, _ := alice.do("POST", s.url+"/schwab/"+action, header...); resp.StatusCode != http.StatusForbidden {
				t.Errorf("%s with %q: %d", action, header, resp.StatusCode)
			}
		}
		if resp, _ := alice.do("GET", s.url+"/schwab/"+action); resp.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("GET %s: %d", action, resp.StatusCode)
		}
	}
	// Another site's link shows a page; its image, frame or prefetch nothing. None begins a login.
	for _, header := range [][]string{
		{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Dest", "document"}, {"Sec-Fetch-Site", "same-site", "Sec-Fetch-Dest", "document"},
		{"Sec-Fetch-Site", "same-origin", "Sec-Fetch-Dest", "image"}, {"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Dest", "iframe"},
		{"Sec-Fetch-Site", "same-origin", "Sec-Fetch-Dest", "document", "Sec-Purpose", "prefetch;prerender"},
	} {
		if resp, _ := alice.do("GET", s.url+"/schwab/start", header...); resp.Header.Get("Location") != "" || len(resp.Cookies()) != 0 {
			t.Errorf("start with %q begins a login", header)
		}
	}
	// No header says where a redirect leads.
	resp, _ := alice.do("GET", s.url+"/schwab/start", "X-Forwarded-Host", "evil.example", "X-Forwarded-Prefix", "//evil.example",
		"Forwarded", "host=evil.example", "X-Original-URL", "/evil")
	if to := resp.Header.Get("Location"); !strings.HasPrefix(to, s.bases["schwab"]) || strings.Contains(to, "evil") {
		t.Errorf("start leads to %q", to)
	}
	if resp, _ := alice.do("GET", s.url+"/schwab/status"); !strings.Contains(resp.Header.Get("Content-Security-Policy"), "frame-ancestors 'none'") {
		t.Error("the page can be framed")
	}
	if resp, _ := s.visitor("").do("GET", s.url+"/schwab/status"); resp.StatusCode != http.StatusForbidden {
		t.Errorf("a user whom the app does not know: %d", resp.StatusCode)
	}
	if !alice.status("schwab") {
		t.Error("the login is gone")
	}
}

func TestWebRefreshAndDisconnect(t *testing.T) {
	s := newSite(t, 2)
	alice := s.visitor("alice")
	alice.come(alice.start("schwab"))
	same := []string{"Sec-Fetch-Site", "same-origin", "Origin", strings.TrimSuffix(s.url, "/app")}
	// The token is new, and who clicks on and on does not reach the broker.
	for range 3 {
		resp, _ := alice.do("POST", s.url+"/schwab/refresh", append(same, "Accept", "application/json")...)
		if resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("refreshing a new token: %d", resp.StatusCode)
		}
	}
	if n := exchanges(s.schwab, "refresh_token"); n != 0 {
		t.Errorf("%d refreshes", n)
	}
	age(t, s, "alice", 10*time.Minute)
	resp, _ := alice.do("POST", s.url+"/schwab/refresh", same...)
	if resp.StatusCode != http.StatusSeeOther || resp.Header.Get("Location") != "status" {
		t.Errorf("refresh: %d to %q", resp.StatusCode, resp.Header.Get("Location"))
	}
	if n := exchanges(s.schwab, "refresh_token"); n != 1 {
		t.Errorf("%d refreshes", n)
	}
	// A login that the broker has ended says so, and asks no more.
	s.schwab.RevokeLogins()
	age(t, s, "alice", 10*time.Minute)
	for range 2 {
		resp, body := alice.do("POST", s.url+"/schwab/refresh", append(same, "Accept", "application/json")...)
		if resp.StatusCode != http.StatusConflict || !strings.Contains(body, "log in again") {
			t.Errorf("refreshing a dead login: %d %s", resp.StatusCode, body)
		}
	}
	if n := exchanges(s.schwab, "refresh_token"); n != 2 {
		t.Errorf("%d refreshes", n)
	}
	s.next.Store(1)
	if _, page := alice.do("GET", s.url+"/schwab/status"); !strings.Contains(page, "has ended") {
		t.Errorf("the other host's page: %s", page)
	}
	resp, _ = alice.do("POST", s.url+"/schwab/disconnect", same...)
	if resp.StatusCode != http.StatusSeeOther || alice.status("schwab") {
		t.Errorf("disconnect: %d, logged in: %v", resp.StatusCode, alice.status("schwab"))
	}
}

// age makes the stored token of a user older, in the record that all hosts share.
func age(t *testing.T, s *site, user string, d time.Duration) {
	t.Helper()
	store, err := disk.New(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	p, err := schwab.New(schwab.Config{AppKey: "app", AppSecret: "secret", CallbackURL: s.url + "/schwab/callback", BaseURL: s.bases["schwab"]})
	if err != nil {
		t.Fatal(err)
	}
	info := p.Info()
	key := brokerauth.Key{Provider: info.Name, Identity: info.Identity, Profile: user}
	raw, err := store.Load(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	var rec map[string]any
	if err := json.Unmarshal(raw, &rec); err != nil {
		t.Fatal(err)
	}
	token := rec["token"].(map[string]any)
	for _, name := range []string{"issued", "expiry", "logged_in_at", "login_by"} {
		at, err := time.Parse(time.RFC3339Nano, token[name].(string))
		if err != nil {
			t.Fatalf("%v in %v", err, slices.Sorted(maps.Keys(token)))
		}
		token[name] = at.Add(-d).Format(time.RFC3339Nano)
	}
	aged, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	if swapped, err := store.CompareAndSwap(t.Context(), key, raw, aged); err != nil || !swapped {
		t.Fatal(swapped, err)
	}
	for i := range s.hosts { // they have it in memory
		s.hosts[i].stop()
		s.hosts[i] = s.host()
	}
}

// full is a store that takes nothing.
type full struct{ brokerauth.Store }

func (full) CompareAndSwap(context.Context, brokerauth.Key, []byte, []byte) (bool, error) {
	return false, errors.New("no space left in /srv/logins")
}

func TestWebFaults(t *testing.T) {
	s := newSite(t, 0)
	store, err := disk.New(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	p := func(callback string) brokerauth.Provider {
		p, err := tdameritrade.New(tdameritrade.Config{ClientID: "app", CallbackURL: callback, BaseURL: s.bases["td"]})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	good := p("https://app.example/td/callback")
	for name, web := range map[string]*flows.Web{
		"no keys": {Session: func(*http.Request) (*brokerauth.Session, error) {
			return &brokerauth.Session{Provider: good, Store: store}, nil
		}},
		"a short key": {Keys: [][]byte{make([]byte, 16)}, Session: func(*http.Request) (*brokerauth.Session, error) {
			return &brokerauth.Session{Provider: good, Store: store}, nil
		}},
		"no Session":  {Keys: s.keys},
		"no Provider": {Keys: s.keys, Session: func(*http.Request) (*brokerauth.Session, error) { return new(brokerauth.Session), nil }},
		"another route": {Keys: s.keys, Session: func(*http.Request) (*brokerauth.Session, error) {
			return &brokerauth.Session{Provider: p("https://app.example/td/status"), Store: store}, nil
		}},
		"a full store": {Keys: s.keys, Session: func(*http.Request) (*brokerauth.Session, error) {
			return &brokerauth.Session{Provider: good, Store: full{store}}, nil
		}},
		"a grant": {Keys: s.keys, Session: func(*http.Request) (*brokerauth.Session, error) {
			return &brokerauth.Session{Provider: emulator.Tastytrade(t).Provider(), Store: store}, nil
		}},
	} {
		w := httptest.NewRecorder()
		web.ServeHTTP(w, httptest.NewRequest("GET", "https://app.example/td/start", nil))
		if w.Code != http.StatusInternalServerError || w.Header().Get("Location") != "" || strings.Contains(w.Body.String(), "/srv") {
			t.Errorf("%s: %d to %q: %s", name, w.Code, w.Header().Get("Location"), w.Body)
		}
	}
	if !strings.Contains(s.said.String(), "/srv/logins") {
		t.Error("the log does not say what is wrong with the store")
	}
}

func TestWebOverHTTP(t *testing.T) {
	broker := httptest.NewServer(emulator.TDAmeritrade(t))
	defer broker.Close()
	store, err := disk.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var web *flows.Web
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { web.ServeHTTP(w, r) }))
	defer app.Close()
	p, err := tdameritrade.New(tdameritrade.Config{ClientID: "app", CallbackURL: app.URL + "/callback", BaseURL: broker.URL})
	if err != nil {
		t.Fatal(err)
	}
	session := &brokerauth.Session{Provider: p, Store: store}
	defer session.Close()
	web = &flows.Web{Keys: [][]byte{make([]byte, 32)}, After: "/done", Session: func(*http.Request) (*brokerauth.Session, error) { return session, nil }}
	jar, _ := cookiejar.New(nil)
	client := &http.Client{Jar: jar, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if r.URL.Path == "/done" {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	page, err := client.Get(app.URL + "/start")
	if err != nil {
		t.Fatal(err)
	}
	page.Body.Close()
	done, err := client.PostForm(page.Request.URL.String(), url.Values{"button": {"approve"}})
	if err != nil {
		t.Fatal(err)
	}
	done.Body.Close()
	if done.Header.Get("Location") != "/done" {
		t.Errorf("the login leads to %d %q", done.StatusCode, done.Header.Get("Location"))
	}
	if st, err := session.Status(t.Context()); err != nil || !st.LoggedIn {
		t.Errorf("%v, %v", st.LoggedIn, err)
	}
}

// A user may be long at the broker, but not for ever. The redirect address was registered long ago, and has no path.
func TestWebWaitsNotForEver(t *testing.T) {
	for _, wait := range []time.Duration{14 * time.Minute, 16 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			broker := emulator.Schwab(t)
			session := &brokerauth.Session{Provider: broker.Provider(), Store: new(memory.Store)}
			defer session.Close()
			web := &flows.Web{Keys: [][]byte{make([]byte, 32)}, Session: func(*http.Request) (*brokerauth.Session, error) { return session, nil }}
			visit := func(address string, cookies []*http.Cookie) *http.Response {
				r := httptest.NewRequest("GET", address, nil)
				for _, c := range cookies {
					r.AddCookie(c)
				}
				w := httptest.NewRecorder()
				web.ServeHTTP(w, r)
				return w.Result()
			}
			begun := visit("https://127.0.0.1:8182/start", nil)
			time.Sleep(wait)
			var callback string
			login := &brokerauth.Login{URL: begun.Header.Get("Location")}
			err := broker.Approve(t.Context(), login, func(_ context.Context, address string) error {
				callback = address
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			// At another place the right answer is none.
			if to := visit(strings.Replace(callback, "/?", "/callback?", 1), begun.Cookies()).Header.Get("Location"); to != "status?other" {
				t.Errorf("another path leads to %q", to)
			}
			want := "status"
			if wait > 15*time.Minute {
				want = "status?other"
			}
			if to := visit(callback, begun.Cookies()).Header.Get("Location"); to != want {
				t.Errorf("after %s the callback leads to %q, want %q", wait, to, want)
			}
		})
	}
}
