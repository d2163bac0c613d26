//go:build linux

package chromium_test

import (
	"bufio"
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/target"
	"github.com/chromedp/chromedp"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/internal/child"
	"github.com/brokerauth/brokerauth/internal/chromium"
	"github.com/brokerauth/brokerauth/internal/engine"
	"github.com/brokerauth/brokerauth/storage/disk"
	"github.com/brokerauth/brokerauth/storage/memory"
)

// served is "brokerauth serve" over three emulated brokers.
type served struct {
	t       *testing.T
	command string
	store   string // the folder that keeps the logins
	env     []string
	brokers map[string]*emulator.Broker
	lines   chan string // of the answer: addresses
	said    *child.Output
	end     func() // an interrupt, and the end
}

const testGrant = "emulated.grant-of-a-test"

func serve(t *testing.T, extra ...string) *served {
	t.Helper()
	dir := t.TempDir()
	s := &served{t: t, command: chromium.Command(t), brokers: map[string]*emulator.Broker{}, lines: make(chan string, 16), said: new(child.Output)}
	env := map[string]string{
		"HOME": dir, "XDG_CONFIG_HOME": filepath.Join(dir, "config"), "XDG_STATE_HOME": filepath.Join(dir, "state"), "PATH": os.Getenv("PATH"),
		"SCHWAB_APP_KEY": "key", "SCHWAB_APP_SECRET": "secret", "SCHWAB_CALLBACK_URL": "https://127.0.0.1:" + engine.FreePort(t),
		"TD_CLIENT_ID": "key", "TD_CALLBACK_URL": "http://localhost:" + engine.FreePort(t),
	}
	for name, prefix := range map[string]string{"schwab": "SCHWAB", "tdameritrade": "TD", "tastytrade": "TASTY"} {
		config := emulator.Config{}
		if name == "tastytrade" {
			config.Grant = testGrant
		}
		b, err := emulator.New(name, config)
		if err != nil {
			t.Fatal(err)
		}
		server := httptest.NewServer(b)
		t.Cleanup(server.Close)
		s.brokers[name], env[prefix+"_BASE_URL"] = b, server.URL
	}
	for i := 0; i < len(extra); i += 2 {
		env[extra[i]] = extra[i+1]
	}
	for name, value := range env {
		s.env = append(s.env, name+"="+value)
	}
	s.store = filepath.Join(dir, "logins")
	s.env = append(s.env, "BROKERAUTH_STORE=disk:"+s.store)             // of the processes beside it, too
	cmd := exec.Command(s.command, "serve", "--store", "disk:"+s.store) // its end is an interrupt
	cmd.Dir, cmd.Env, cmd.Stderr = dir, s.env, s.said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			s.lines <- lines.Text()
		}
	}()
	s.end = sync.OnceFunc(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		<-read
		if err := cmd.Wait(); err != nil {
			t.Errorf("serve: %v: %s", err, s.said)
		}
	})
	t.Cleanup(s.end)
	return s
}

// newToken is one that a stranger's program got.
func newToken(t *testing.T, b *emulator.Broker) *brokerauth.Token {
	t.Helper()
	session := &brokerauth.Session{Provider: b.Provider(), Store: new(memory.Store)}
	defer session.Close()
	if err := session.Login(t.Context(), b.Approve); err != nil {
		t.Fatal(err)
	}
	token, err := session.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// address is the next one that opens the page.
func (s *served) address() string {
	s.t.Helper()
	select {
	case address := <-s.lines:
		return address
	case <-time.After(time.Minute):
		s.t.Fatalf("no address was printed: %s", s.said)
		return ""
	}
}

// run runs the command beside the page.
func (s *served) run(args ...string) {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), s.command, args...)
	cmd.Env, cmd.Dir = s.env, s.t.TempDir()
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("brokerauth %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// button is one on a broker's card.
func button(broker, do string) string {
	return fmt.Sprintf("article[aria-label=%q] [data-do=%s]", broker, do)
}

func press(t *testing.T, tab context.Context, selector string) {
	t.Helper()
	chromium.Do(t, tab, chromedp.Click(chromedp.CSS(selector)))
}

// waitUntil waits until an expression is true in tab.
func waitUntil(t *testing.T, tab context.Context, expression string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if ask[bool](t, tab, "Boolean("+expression+")") {
			return
		}
	}
	t.Fatalf("it is never true that %s, and the page says:\n%s", expression, chromium.Text(t, tab))
}

func ask[T any](t *testing.T, tab context.Context, expression string) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(tab, time.Minute)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
	return v
}

func state(broker, want string) string {
	return fmt.Sprintf(`document.querySelector('article[aria-label=%q]')?.className === %q`, broker, want)
}

// opens does something that opens a tab, and returns that.
func opens(t *testing.T, tab context.Context, do func()) (opened context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(tab, time.Minute)
	defer cancel()
	ids := chromedp.WaitNewTarget(ctx, func(info *target.Info) bool { return info.Type == "page" })
	do()
	select {
	case id, ok := <-ids:
		if !ok {
			t.Fatal("no page was opened")
		}
		opened, cancel := chromedp.NewContext(tab, chromedp.WithTargetID(id))
		t.Cleanup(cancel)
		// The context of the first call is the tab's life.
		if err := chromedp.Do(opened); err != nil {
			t.Fatal(err)
		}
		return opened
	case <-ctx.Done():
		t.Fatalf("no page was opened, and this one says:\n%s", chromium.Text(t, tab))
		return nil
	}
}

func TestServe(t *testing.T) {
	s := serve(t)
	address := s.address()
	tab := chromium.Start(t)
	chromium.Visit(t, tab, address)
	chromium.Await(t, tab, "schwab")
	base, _, _ := strings.Cut(address, "#")
	if now := chromium.Address(t, tab); now != base {
		t.Errorf("the ticket is still in the address: %s", now)
	}
	chromium.ShootAll(t, tab, "serve-out")

	// Three logins: a page behind a certificate that nobody knows, a page without, and a grant that is typed.
	login := opens(t, tab, func() { press(t, tab, button("schwab", "login")) })
	chromium.Do(t, login, chromedp.Click(chromedp.CSS("#details-button")), chromedp.Click(chromedp.CSS("#proceed-link")))
	chromium.Await(t, login, "is emulated")
	waitUntil(t, tab, state("schwab", "waiting"))
	chromium.ShootAll(t, tab, "serve-waiting")
	chromium.Do(t, login, approve)
	chromium.Await(t, login, "You are logged in")
	waitUntil(t, tab, state("schwab", "live"))

	login = opens(t, tab, func() { press(t, tab, button("tdameritrade", "login")) })
	chromium.Await(t, login, "is emulated")
	chromium.Do(t, login, approve)
	chromium.Await(t, login, "You are logged in")
	waitUntil(t, tab, state("tdameritrade", "live"))

	press(t, tab, "summary")
	press(t, tab, button("tastytrade", "login"))
	card := `article[aria-label="tastytrade"] `
	chromium.ShootAll(t, tab, "serve-grant")
	chromium.Do(t, tab, chromedp.SendKeys(chromedp.CSS(card+"[name=secret]"), "secret"),
		chromedp.SendKeys(chromedp.CSS(card+"[name=grant]"), "emulated.no-such-grant"))
	press(t, tab, card+"form .main")
	waitUntil(t, tab, `document.querySelector('`+card+`.trouble:not([hidden])')`)
	chromium.ShootAll(t, tab, "serve-refused")
	press(t, tab, button("tastytrade", "login"))
	chromium.Do(t, tab, chromedp.SendKeys(chromedp.CSS(card+"[name=secret]"), "secret"),
		chromedp.SendKeys(chromedp.CSS(card+"[name=grant]"), testGrant))
	press(t, tab, card+"form .main")
	waitUntil(t, tab, state("tastytrade", "live"))
	chromium.ShootAll(t, tab, "serve-live")

	// A refresh by another process shows by itself.
	refreshed := `document.querySelector('article[aria-label="schwab"]').dataset.refreshed`
	before := ask[string](t, tab, refreshed)
	s.run("refresh", "schwab")
	waitUntil(t, tab, fmt.Sprintf("%s !== %q", refreshed, before))
	// So does one by the button.
	before = ask[string](t, tab, refreshed)
	press(t, tab, button("schwab", "refresh"))
	waitUntil(t, tab, fmt.Sprintf("%s !== %q", refreshed, before))

	// Nothing that a broker or a program's profile says is more than text.
	const hostile = `<img src=x onerror="document.body.remove()">`
	s.brokers["schwab"].Inject(emulator.Fault{Status: 400, Body: `{"error":"invalid_request","error_description":"<img src=x onerror=\"document.body.remove()\">"}`})
	press(t, tab, button("schwab", "refresh"))
	chromium.Await(t, tab, "<img src=x")
	stranger := emulator.Schwab(t)
	token := newToken(t, stranger)
	store, err := disk.New(s.store)
	if err != nil {
		t.Fatal(err)
	}
	if err := (&brokerauth.Session{Provider: stranger.Provider(), Store: store, Profile: hostile}).Save(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, tab, fmt.Sprintf("document.querySelectorAll('.profile').values().some(el => el.textContent.startsWith(%q))", hostile))
	chromium.ShootAll(t, tab, "serve-hostile")
	if n := ask[int](t, tab, "document.images.length"); n != 0 {
		t.Errorf("the page shows %d images", n)
	}

	// A login dies, and is renewed.
	s.brokers["schwab"].RevokeLogins()
	press(t, tab, button("schwab", "refresh"))
	waitUntil(t, tab, state("schwab", "ended"))
	chromium.Await(t, tab, "log in again")
	chromium.ShootAll(t, tab, "serve-ended")
	login = opens(t, tab, func() { press(t, tab, button("schwab", "login")) })
	chromium.Await(t, login, "is emulated")
	chromium.Do(t, login, approve)
	chromium.Await(t, login, "You are logged in")
	waitUntil(t, tab, state("schwab", "live"))

	// A login that is given up.
	login = opens(t, tab, func() { press(t, tab, button("schwab", "login")) })
	chromium.Await(t, login, "is emulated")
	press(t, tab, button("schwab", "cancel"))
	waitUntil(t, tab, state("schwab", "live"))

	// Logging out asks first.
	press(t, tab, button("tdameritrade", "logout"))
	chromium.ShootAll(t, tab, "serve-sure")
	press(t, tab, "#sure [value=no]")
	press(t, tab, button("tdameritrade", "logout"))
	press(t, tab, "#sure [value=yes]")
	waitUntil(t, tab, state("tdameritrade", "out"))

	// A reload keeps the page open; what opens it is in no cookie.
	chromium.Do(t, tab, chromedp.Reload())
	chromium.Await(t, tab, "Last refresh")
	if cookies := ask[string](t, tab, "document.cookie"); cookies != "" {
		t.Errorf("the page has cookies: %s", cookies)
	}

	// The same address a second time locks both, and a new one is printed.
	other, cancel := chromedp.NewContext(tab)
	defer cancel()
	if err := chromedp.Do(other); err != nil {
		t.Fatal(err)
	}
	chromium.Visit(t, other, address)
	chromium.Await(t, other, "locked")
	chromium.Await(t, tab, "locked")
	chromium.ShootAll(t, other, "serve-locked")
	next := s.address()
	ask[string](t, other, fmt.Sprintf("location.href = %q", next)) // the same page, but for what is behind the #
	chromium.Await(t, other, "Last refresh")
	if text := s.said.String(); !strings.Contains(text, "opened twice") {
		t.Errorf("the terminal says %q", text)
	}
	s.end()
	chromium.Await(t, other, "does not answer")
	for name, b := range s.brokers {
		for _, secret := range b.Secrets() {
			if len(secret) > 8 && strings.Contains(s.said.String(), secret) {
				t.Errorf("the terminal shows a secret of %s", name)
			}
		}
	}
}
