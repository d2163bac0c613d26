//go:build linux

package chromium_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/flows"
	"github.com/brokerauth/brokerauth/internal/chromium"
	"github.com/brokerauth/brokerauth/internal/engine"
	"github.com/brokerauth/brokerauth/providers/schwab"
	"github.com/brokerauth/brokerauth/storage/memory"
)

// noInput is an In that a flow in the background cannot use, so that tests leave the terminal alone.
var noInput = strings.NewReader("")

// place is an emulated Schwab at an https address, whose certificate authority vouches for, and an app there.
type place struct {
	broker    *emulator.Broker
	authority *chromium.Authority
	client    *http.Client // follows no redirects
	store     *fullStore
	session   *brokerauth.Session
}

// fullStore can be made to take no token.
type fullStore struct {
	memory.Store
	full atomic.Bool
}

func (s *fullStore) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	if s.full.Load() {
		return false, errors.New("no space left on the disk")
	}
	return s.Store.CompareAndSwap(ctx, key, old, new)
}

func newPlace(t *testing.T) *place {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"HOME", "XDG_CONFIG_HOME", "AppData"} {
		t.Setenv(name, dir)
	}
	t.Setenv("SSH_CONNECTION", "")
	p := &place{broker: emulator.Schwab(t), authority: chromium.NewAuthority(t), store: new(fullStore)}
	server := httptest.NewUnstartedServer(p.broker)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{*p.authority.Certificate(t)}}
	server.StartTLS()
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(p.authority.Root())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	t.Cleanup(transport.CloseIdleConnections)
	p.client = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

	callback := "https://127.0.0.1:" + engine.FreePort(t)
	provider, err := schwab.New(schwab.Config{
		AppKey: "browser-test-key", AppSecret: "browser-test-secret", CallbackURL: callback, Transport: transport,
		// A browser forgets what it was told of a host's certificate when it meets a good one there: two hosts, then.
		BaseURL: strings.Replace(server.URL, "127.0.0.1", "localhost", 1),
	})
	if err != nil {
		t.Fatal(err)
	}
	p.session = &brokerauth.Session{Provider: provider, Store: p.store}
	t.Cleanup(func() { p.session.Close() })
	return p
}

// login is one that waits for the browser.
type login struct {
	start string // where the browser is opened
	page  string // the broker's login page
	done  chan error
}

func (p *place) begin(t *testing.T, o flows.Options) *login {
	t.Helper()
	l := &login{done: make(chan error, 1)}
	opened := make(chan string, 1)
	o.In, o.Out = noInput, t.Output()
	o.Open = func(_ context.Context, address string) error {
		opened <- address
		return nil
	}
	flow := flows.Browser(&o)
	go func() {
		l.done <- p.session.Login(context.Background(), func(ctx context.Context, b *brokerauth.Login, finish func(context.Context, string) error) error {
			l.page = b.URL
			return flow(ctx, b, finish)
		})
	}()
	select {
	case l.start = <-opened:
	case err := <-l.done:
		t.Fatalf("the login ended before a browser was opened: %v", err)
	}
	return l
}

func (l *login) err(t *testing.T) error {
	t.Helper()
	select {
	case err := <-l.done:
		return err
	case <-time.After(time.Minute):
		t.Fatal("the login still waits")
		return nil
	}
}

// callback is where the broker sends a user who approves, whose browser has not followed yet.
func (p *place) callback(t *testing.T, l *login) string {
	t.Helper()
	resp, err := p.client.PostForm(l.page, url.Values{"button": {"approve"}})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	address := resp.Header.Get("Location")
	if address == "" {
		t.Fatalf("the emulated broker answers %s to an approval", resp.Status)
	}
	return address
}

var approve, deny = chromedp.Click(chromedp.CSS("button[value=approve]")), chromedp.Click(chromedp.CSS("button[value=deny]"))

// A person meets the browser's warning of the computer's own certificate once, before the broker's page.
func TestLogin(t *testing.T) {
	p := newPlace(t)
	tab := chromium.Start(t, p.authority)
	l := p.begin(t, flows.Options{})
	chromium.VisitWarned(t, tab, l.start)
	chromium.Await(t, tab, "is emulated")
	chromium.Do(t, tab, approve)
	chromium.Await(t, tab, "You are logged in")
	if err := l.err(t); err != nil {
		t.Fatal(err)
	}
	first, err := p.session.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	config, err := os.UserConfigDir()
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(config, "brokerauth", "loopback.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the certificate is not kept for this user alone: %v, %v", info, err)
	}

	// The browser warns of each certificate once: so this is the same.
	l = p.begin(t, flows.Options{})
	chromium.Visit(t, tab, l.start)
	chromium.Await(t, tab, "is emulated")
	chromium.Do(t, tab, approve)
	chromium.Await(t, tab, "You are logged in")
	if err := l.err(t); err != nil {
		t.Fatal(err)
	}
	second, err := p.session.Token(t.Context())
	if err != nil || second.AccessToken == first.AccessToken {
		t.Errorf("after the second login the token is still the first one's, or an error: %v", err)
	}
}

// With a certificate whose authority the browser trusts there is no warning.
func TestTrustedCertificate(t *testing.T) {
	p := newPlace(t)
	tab := chromium.Start(t, p.authority)
	l := p.begin(t, flows.Options{Certificate: p.authority.Certificate(t)})
	chromium.Visit(t, tab, l.start)
	chromium.Do(t, tab, approve)
	chromium.Await(t, tab, "You are logged in")
	if err := l.err(t); err != nil {
		t.Fatal(err)
	}
}

func TestAnswerPages(t *testing.T) {
	p := newPlace(t)
	tab := chromium.Start(t, p.authority)
	own := flows.Options{Certificate: p.authority.Certificate(t)}

	l := p.begin(t, own)
	chromium.Visit(t, tab, l.start)
	chromium.ShootAll(t, tab, "broker")

	chromium.Visit(t, tab, l.start)
	chromium.Await(t, tab, "once")
	chromium.ShootAll(t, tab, "start-again")

	wrong := strings.Replace(p.callback(t, l), "state=", "state=x", 1)
	chromium.Visit(t, tab, wrong)
	chromium.Await(t, tab, "another login")
	chromium.ShootAll(t, tab, "wrong-state")

	chromium.Visit(t, tab, p.callback(t, l))
	chromium.Await(t, tab, "You are logged in")
	chromium.ShootAll(t, tab, "success")
	if err := l.err(t); err != nil {
		t.Error(err)
	}

	l = p.begin(t, own)
	chromium.Visit(t, tab, l.start)
	chromium.Do(t, tab, deny)
	chromium.Await(t, tab, "allow access")
	chromium.ShootAll(t, tab, "denied")
	if err := l.err(t); err == nil {
		t.Error("a denied login went well")
	}

	l = p.begin(t, own)
	late := p.callback(t, l)
	p.broker.Advance(31 * time.Second)
	chromium.Visit(t, tab, late)
	chromium.Await(t, tab, "log in again")
	chromium.ShootAll(t, tab, "expired-code")
	if err := l.err(t); err == nil {
		t.Error("a login with an expired code went well")
	}

	l = p.begin(t, own)
	p.store.full.Store(true)
	chromium.Visit(t, tab, p.callback(t, l))
	chromium.Await(t, tab, "could not be saved")
	chromium.ShootAll(t, tab, "save-failed")
	if err := l.err(t); err == nil {
		t.Error("a login that cannot be saved went well")
	}
}
