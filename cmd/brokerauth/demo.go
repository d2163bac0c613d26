package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/flows"
	"github.com/brokerauth/brokerauth/providers/schwab"
	"github.com/brokerauth/brokerauth/storage/disk"
)

const (
	demoKey, demoSecret = "demo-app-key", "demo-app-secret"
	demoAccessTTL       = 3 * time.Second
	demoProcesses       = 5
)

func (a *app) demoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show a login's whole life on an emulated broker",
		Long: "Show a login's whole life on an emulated broker: login, API call, expiry, refresh, five processes at once, " +
			"the seventh day, a new login, logout. It needs no account, browser or network, keeps everything in a temporary " +
			"folder and ends with 1 if anything is not as it should be.",
		Args: cobra.NoArgs,
	}
	cmd.RunE = a.action(func(ctx context.Context, _ []string) error {
		dir, err := os.MkdirTemp("", "brokerauth-demo-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		d := &demo{app: a, dir: dir}
		if err := d.run(ctx); err != nil {
			return fmt.Errorf("demo: %w", err)
		}
		return nil
	})
	return cmd
}

// demo is one run. It takes nothing from the user's settings, store and certificates.
type demo struct {
	*app
	dir      string
	base     string // of the emulated broker
	callback string
	broker   *emulator.Broker
	provider brokerauth.Provider
	store    brokerauth.Store
	flow     brokerauth.Flow
	seen     map[string]int // of the broker's token calls, those told so far
}

func (d *demo) run(ctx context.Context) error {
	if err := d.setUp(ctx); err != nil {
		return err
	}
	var stop func()
	var err error
	if d.base, stop, err = serve(ctx, "127.0.0.1:0", d.broker, nil); err != nil {
		return err
	}
	defer stop()
	d.provider, err = schwab.New(schwab.Config{AppKey: demoKey, AppSecret: demoSecret, CallbackURL: d.callback, BaseURL: d.base})
	if err != nil {
		return err
	}
	session := &brokerauth.Session{Provider: d.provider, Store: d.store, Observe: func(brokerauth.Event) {}}
	defer session.Close()

	d.say("An emulated Schwab listens at %s. Its access tokens live %s, its logins 7 days.", d.base, inWords(demoAccessTTL))
	for _, step := range []func(context.Context, *brokerauth.Session) error{
		d.login, d.refresh, d.processes, d.seventhDay, d.loginAgain, d.logout,
	} {
		if err := step(ctx, session); err != nil {
			return err
		}
	}
	d.say("All as it should be.")
	return nil
}

func (d *demo) setUp(ctx context.Context) (err error) {
	d.seen = make(map[string]int)
	if d.store, err = disk.New(filepath.Join(d.dir, "logins")); err != nil {
		return err
	}
	d.broker, err = emulator.New("schwab", emulator.Config{
		ClientID: demoKey, ClientSecret: demoSecret, AccessTTL: demoAccessTTL, Latency: 200 * time.Millisecond,
	})
	if err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	d.callback = "https://" + l.Addr().String()
	l.Close()
	cert, err := newCertificate("127.0.0.1")
	if err != nil {
		return err
	}
	d.flow = flows.Browser(&flows.Options{
		In: new(bytes.Buffer), Out: io.Discard, Certificate: cert, Timeout: 10 * time.Second,
		Open: func(ctx context.Context, address string) error { return consent(ctx, address, cert.Leaf) },
	})
	return nil
}

// consent plays browser and user: it opens the address, which leads to the broker's login page, and approves there.
// It trusts the flow's own certificate and no other.
func consent(ctx context.Context, address string, trusted *x509.Certificate) error {
	roots := x509.NewCertPool()
	roots.AddCert(trusted)
	jar, err := cookiejar.New(nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Jar: jar}
	visit := func(method, address string, form url.Values) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, method, address, strings.NewReader(form.Encode()))
		if err != nil {
			return nil, errors.New("the address cannot be read") // the parser's error would show it
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, err := client.Do(req)
		if err != nil {
			if u, ok := errors.AsType[*url.Error](err); ok {
				err = u.Err // without the address, which may hold a code
			}
			return nil, err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
		return resp, err
	}
	page, err := visit(http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	_, err = visit(http.MethodPost, page.Request.URL.String(), url.Values{"button": {"approve"}})
	return err
}

func (d *demo) login(ctx context.Context, s *brokerauth.Session) error {
	if err := s.Login(ctx, d.flow); err != nil {
		return fmt.Errorf("logging in: %w", err)
	}
	if err := d.count("authorization_code", 1, "at the login"); err != nil {
		return err
	}
	st, err := s.Status(ctx)
	if err != nil {
		return err
	}
	d.say("Logged in by the browser flow, where a small HTTP client consented: 1 code was exchanged.")
	d.say("The login is kept in %s.", st.KeptAs)
	d.say("Status says: %s.", clocks(st))
	return d.call(ctx, s, "The API took the token")
}

// call makes an API call through the Session's own client.
func (d *demo) call(ctx context.Context, s *brokerauth.Session, what string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.base+"/trader/v1/accounts/accountNumbers", nil)
	if err != nil {
		return err
	}
	resp, err := s.Client(nil).Do(req)
	if err != nil {
		return fmt.Errorf("calling the API: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), "accountNumber") {
		return fmt.Errorf("calling the API: it answered %s and no account", resp.Status)
	}
	d.say("%s: GET /trader/v1/accounts/accountNumbers answered %s.", what, resp.Status)
	return nil
}

func (d *demo) refresh(ctx context.Context, s *brokerauth.Session) error {
	if err := d.expire(ctx, s); err != nil {
		return err
	}
	if err := d.call(ctx, s, "The access token expired, and the client renewed it by itself"); err != nil {
		return err
	}
	if err := d.count("refresh_token", 1, "after the expiry"); err != nil {
		return err
	}
	d.say("The broker saw 1 refresh.")
	return nil
}

// expire waits until the access token has just expired.
func (d *demo) expire(ctx context.Context, s *brokerauth.Session) error {
	st, err := s.Status(ctx)
	if err != nil {
		return err
	}
	timer := time.NewTimer(time.Until(st.AccessExpiresAt) + 20*time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// processes has several runs of this program ask for a token at once.
func (d *demo) processes(ctx context.Context, s *brokerauth.Session) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := d.expire(ctx, s); err != nil {
		return err
	}
	type result struct {
		out []byte
		err error
	}
	results := make(chan result, demoProcesses)
	for range demoProcesses {
		go func() {
			var out, said bytes.Buffer
			cmd := exec.CommandContext(ctx, self, "token", "schwab", "--store", "disk:"+filepath.Join(d.dir, "logins"))
			cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = d.dir, d.environment(), &out, &said
			err := cmd.Run()
			if err != nil {
				err = fmt.Errorf("%w: %s", err, strings.TrimSpace(said.String()))
			}
			results <- result{out.Bytes(), err}
		}()
	}
	tokens := make(map[string]bool)
	for range demoProcesses {
		r := <-results
		if r.err != nil {
			err = fmt.Errorf("one of the processes failed: %w", r.err)
		}
		tokens[string(r.out)] = true
	}
	if err != nil {
		return err
	}
	if len(tokens) != 1 {
		return fmt.Errorf("%d processes got %d different tokens, not the same one", demoProcesses, len(tokens))
	}
	if err := d.count("refresh_token", 1, fmt.Sprintf("for %d processes", demoProcesses)); err != nil {
		return err
	}
	d.say("It expired again, and %d processes asked for a token at that moment: all got the same one, and the broker saw 1 refresh.", demoProcesses)
	return nil
}

// environment is all that another run of this program may know.
func (d *demo) environment() []string {
	env := []string{
		"SCHWAB_APP_KEY=" + demoKey, "SCHWAB_APP_SECRET=" + demoSecret, "SCHWAB_CALLBACK_URL=" + d.callback, "SCHWAB_BASE_URL=" + d.base,
		"HOME=" + d.dir, "XDG_CONFIG_HOME=" + d.dir, "XDG_STATE_HOME=" + d.dir,
	}
	if runtime.GOOS == "windows" {
		env = append(env, "AppData="+d.dir, "LocalAppData="+d.dir, "SystemRoot="+os.Getenv("SystemRoot"))
	}
	return env
}

func (d *demo) seventhDay(ctx context.Context, s *brokerauth.Session) error {
	d.broker.Advance(7*24*time.Hour + time.Minute)
	_, err := s.Refresh(ctx, nil)
	if !errors.Is(err, brokerauth.ErrLoginRequired) {
		return fmt.Errorf("after seven days a refresh must say that a person has to log in, and it said: %v", err)
	}
	if err := d.count("refresh_token", 1, "after seven days"); err != nil {
		return err
	}
	d.say("Seven days later, by the broker's clock alone, which this computer therefore calls early, a refresh says:")
	d.say("    %v", err)
	// Whoever asks from now on is told so, and the broker is left in peace.
	other := &brokerauth.Session{Provider: d.provider, Store: d.store, Observe: func(brokerauth.Event) {}}
	defer other.Close()
	if err := d.expire(ctx, s); err != nil {
		return err
	}
	if _, err := other.Token(ctx); !errors.Is(err, brokerauth.ErrLoginRequired) {
		return fmt.Errorf("another program must hear the same, and it heard: %v", err)
	}
	if err := d.count("refresh_token", 0, "for a login that is known to be over"); err != nil {
		return err
	}
	d.say("Another program is told the same, and the broker was not asked again.")
	return nil
}

func (d *demo) loginAgain(ctx context.Context, s *brokerauth.Session) error {
	other := &brokerauth.Session{Provider: d.provider, Store: d.store, Observe: func(brokerauth.Event) {}}
	defer other.Close()
	if err := other.Login(ctx, d.flow); err != nil {
		return fmt.Errorf("logging in again: %w", err)
	}
	if err := d.call(ctx, s, "A person logged in again, and the first program goes on without a restart"); err != nil {
		return err
	}
	if err := d.count("authorization_code", 1, "at the second login"); err != nil {
		return err
	}
	return d.count("refresh_token", 0, "after the second login")
}

func (d *demo) logout(ctx context.Context, s *brokerauth.Session) error {
	if err := s.Logout(ctx); err != nil {
		return fmt.Errorf("logging out: %w", err)
	}
	secrets, files := d.broker.Secrets(), 0
	err := filepath.WalkDir(d.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		files++
		text, err := os.ReadFile(path)
		for _, secret := range secrets {
			if bytes.Contains(text, []byte(secret)) {
				return fmt.Errorf("%s still holds a secret after the logout", filepath.Base(path))
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	if _, err := s.Token(ctx); !errors.Is(err, brokerauth.ErrLoginRequired) {
		return fmt.Errorf("after the logout there must be no token, and asking for one said: %v", err)
	}
	d.say("Logged out: of the %d secrets that the broker knew or issued, none is left in the %d files here.", len(secrets), files)
	return nil
}

// count checks how many token calls of a kind the broker has seen since the last count.
func (d *demo) count(grant string, want int, when string) error {
	total := 0
	for _, r := range d.broker.Requests() {
		if r.GrantType == grant {
			total++
		}
	}
	got := total - d.seen[grant]
	if d.seen[grant] = total; got != want {
		return fmt.Errorf("%s the broker saw %d token calls of the kind %s, not %d", when, got, grant, want)
	}
	return nil
}
