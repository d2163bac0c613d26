package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/flows"
	"github.com/brokerauth/brokerauth/providers/schwab"
	"github.com/brokerauth/brokerauth/providers/tastytrade"
	"github.com/brokerauth/brokerauth/providers/tdameritrade"
	"github.com/brokerauth/brokerauth/storage/disk"
)

const (
	demoKey, demoSecret, demoGrant = "demo-app-key", "demo-app-secret", "emulated.demo-grant"
	demoProcesses                  = 5
	demoWeek                       = 7 * 24 * time.Hour
)

func (a *app) demoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show a login's whole life on emulated brokers",
		Long: "Show a login's whole life on three emulated brokers: login, API call, expiry, refresh, five processes at once, " +
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
		err = d.run(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("demo: %v", err) // without what it wraps: that a login is over, say, is a failure here
		}
		return nil
	})
	return cmd
}

// demo is one run. It takes nothing from the user's settings, store and certificates.
type demo struct {
	*app
	dir      string
	cert     *tls.Certificate // of the emulated brokers, and of the listener that waits for the browser
	tls      bool             // the brokers are served over TLS
	client   *http.Client     // trusts cert alone
	store    brokerauth.Store
	flow     brokerauth.Flow
	callback string // Schwab's

	brokers                []*demoBroker
	schwab, td, tastytrade *demoBroker
}

// demoBroker is an emulated broker, and a program's Session there.
type demoBroker struct {
	name    string
	path    string // of an API call
	pretend *emulator.Broker
	base    string
	session *brokerauth.Session
	seen    map[string]int // of its token calls, those told so far
}

func (d *demo) run(ctx context.Context) error {
	stop, err := d.setUp(ctx)
	defer stop()
	if err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{
		d.login, d.refresh, d.processes, d.seventhDay, d.loginAgain, d.table, d.logout,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	d.say("All as it should be.")
	return nil
}

// setUp serves the brokers and makes the Sessions, until stop is called.
func (d *demo) setUp(ctx context.Context) (stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, stop := range stops {
			stop()
		}
	}
	if d.store, err = disk.New(filepath.Join(d.dir, "logins")); err != nil {
		return stop, err
	}
	if d.cert, err = newCertificate("127.0.0.1"); err != nil {
		return stop, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d.cert.Certificate[0]})
	if err := os.WriteFile(filepath.Join(d.dir, "cert.pem"), text, 0o600); err != nil {
		return stop, err
	}
	// Elsewhere no variable makes the processes that are started trust it.
	d.tls = runtime.GOOS != "windows" && runtime.GOOS != "darwin"
	roots := x509.NewCertPool()
	roots.AddCert(d.cert.Leaf)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}
	d.client = &http.Client{Transport: transport}
	d.flow = flows.Browser(&flows.Options{
		In: new(bytes.Buffer), Out: io.Discard, Certificate: d.cert, Timeout: time.Minute, Open: d.consent,
	})
	free, err := freePorts(ctx, 2)
	if err != nil {
		return stop, err
	}
	d.callback = "https://127.0.0.1:" + free[0]
	d.schwab = &demoBroker{name: "schwab", path: "/trader/v1/accounts/accountNumbers"}
	d.td = &demoBroker{name: "tdameritrade", path: "/v1/accounts"}
	d.tastytrade = &demoBroker{name: "tastytrade", path: "/customers/me/accounts"}
	d.brokers = []*demoBroker{d.schwab, d.td, d.tastytrade}
	for _, b := range d.brokers {
		b.seen = make(map[string]int)
		config := emulator.Config{ClientID: demoKey, ClientSecret: demoSecret, Latency: 200 * time.Millisecond}
		if b == d.tastytrade {
			config.Grant = demoGrant
		}
		if b.pretend, err = emulator.New(b.name, config); err != nil {
			return stop, err
		}
		var cert *tls.Certificate
		if d.tls {
			cert = d.cert
		}
		base, stopOne, err := serve(ctx, "127.0.0.1:0", b.pretend, cert)
		if err != nil {
			return stop, err
		}
		stops = append(stops, stopOne)
		b.base = base
		var p brokerauth.Provider
		switch b {
		case d.schwab:
			p, err = schwab.New(schwab.Config{AppKey: demoKey, AppSecret: demoSecret, CallbackURL: d.callback, BaseURL: base, Transport: transport})
		case d.td:
			p, err = tdameritrade.New(tdameritrade.Config{ClientID: demoKey, CallbackURL: "http://localhost:" + free[1], BaseURL: base, Transport: transport})
		case d.tastytrade:
			p, err = tastytrade.New(tastytrade.Config{ClientSecret: demoSecret, Grant: demoGrant, BaseURL: base, Transport: transport})
		}
		if err != nil {
			return stop, err
		}
		b.session = d.newSession(p)
		stops = append(stops, func() { b.session.Close() })
		d.say("An emulated %s listens at %s.", b.name, base)
	}
	d.say("This program holds a Session at each, over one store.")
	return stop, nil
}

func (d *demo) newSession(p brokerauth.Provider) *brokerauth.Session {
	return &brokerauth.Session{Provider: p, Store: d.store, Observe: func(brokerauth.Event) {}}
}

// freePorts returns ports that nobody listens at, and that Linux, macOS and Windows do not give meanwhile to whoever asks for
// any port: those are above 32767, unless set otherwise.
func freePorts(ctx context.Context, n int) (ports []string, err error) {
	for tries := 1; len(ports) < n; tries++ {
		port := strconv.Itoa(20_000 + rand.IntN(12_000))
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:"+port)
		switch {
		case err == nil:
			defer l.Close() // so that no other is the same
			ports = append(ports, port)
		case tries == 20:
			return nil, err
		}
	}
	return ports, nil
}

// consent plays browser and user: it opens the address, which leads to the broker's login page, and approves there.
func (d *demo) consent(ctx context.Context, address string) error {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: d.client.Transport, Jar: jar}
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

func (d *demo) login(ctx context.Context) error {
	for _, b := range []*demoBroker{d.schwab, d.td} {
		if err := b.session.Login(ctx, d.flow); err != nil {
			return fmt.Errorf("logging in at %s: %w", b.name, err)
		}
		if err := d.call(ctx, b); err != nil {
			return err
		}
		if err := b.count("authorization_code", 1, "at the login"); err != nil {
			return err
		}
	}
	st, err := d.schwab.session.Status(ctx)
	if err != nil {
		return err
	}
	d.say("Logged in at schwab and tdameritrade by the browser flow, where a small HTTP client consented.")
	d.say("Schwab's login is kept in %s. Status says: %s.", st.KeptAs, clocks(st))
	if err := d.call(ctx, d.tastytrade); err != nil {
		return err
	}
	if err := d.tastytrade.count("refresh_token", 1, "for the first token"); err != nil {
		return err
	}
	d.say("All three APIs took their tokens. tastytrade asked nobody to log in: its grant brought the first one.")
	return nil
}

// call makes an API call through the Session's own client.
func (d *demo) call(ctx context.Context, b *demoBroker) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.base+b.path, nil)
	if err != nil {
		return err
	}
	resp, err := b.session.Client(d.client).Do(req)
	if err != nil {
		return fmt.Errorf("calling the API of %s: %w", b.name, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(strings.ToLower(string(body)), "account") {
		return fmt.Errorf("calling the API of %s: it answered %s and no account", b.name, resp.Status)
	}
	return nil
}

func (d *demo) refresh(ctx context.Context) error {
	for _, b := range d.brokers {
		if err := b.expire(ctx); err != nil {
			return err
		}
		if err := d.call(ctx, b); err != nil {
			return err
		}
		if err := b.count("refresh_token", 1, "after the expiry"); err != nil {
			return err
		}
	}
	d.say("The brokers' clocks were put forward until the access tokens were over, and the stored ones dated back by as much.")
	d.say("The clients renewed them by themselves: each broker saw 1 refresh.")
	return nil
}

// expire has the access token just over.
func (b *demoBroker) expire(ctx context.Context) error {
	t, err := b.session.Token(ctx)
	if err != nil {
		return err
	}
	return b.age(ctx, t, time.Until(t.Expiry)+time.Second)
}

// age makes t, which is stored, as old as it will be after so long: by the broker's clock, and by what is stored of it. The
// machine's own clock cannot be moved; and to wait, for tokens that live for seconds, would be a race with slow machines.
func (b *demoBroker) age(ctx context.Context, t *brokerauth.Token, by time.Duration) error {
	aged := t.Clone()
	for _, at := range []*time.Time{&aged.Issued, &aged.Expiry, &aged.LoggedInAt, &aged.LoginBy} {
		if !at.IsZero() {
			*at = at.Add(-by)
		}
	}
	// An older login does not take a later one's place by itself.
	if err := b.session.Logout(ctx); err != nil {
		return err
	}
	if err := b.session.Save(ctx, aged); err != nil {
		return err
	}
	b.pretend.Advance(by)
	return nil
}

// processes has several runs of this program ask for a token at once.
func (d *demo) processes(ctx context.Context) error {
	if err := d.schwab.expire(ctx); err != nil {
		return err
	}
	type result struct {
		token string
		err   error
	}
	results := make(chan result, demoProcesses)
	for range demoProcesses {
		go func() {
			token, err := d.process(ctx)
			results <- result{token, err}
		}()
	}
	tokens := make(map[string]bool)
	var err error
	for range demoProcesses {
		r := <-results
		if r.err != nil {
			err = fmt.Errorf("one of the processes failed: %w", r.err)
		}
		tokens[r.token] = true
	}
	if err != nil {
		return err
	}
	if len(tokens) != 1 {
		return fmt.Errorf("%d processes got %d different tokens, not the same one", demoProcesses, len(tokens))
	}
	if err := d.schwab.count("refresh_token", 1, fmt.Sprintf("for %d processes", demoProcesses)); err != nil {
		return err
	}
	d.say("Schwab's expired again, and %d processes asked for a token at that moment: all got the same one, and the broker saw 1 refresh.", demoProcesses)
	return nil
}

// process returns what another run of this program, as a process of its own, prints when it is asked for Schwab's token.
func (d *demo) process(ctx context.Context) (token string, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, self, "token", "schwab", "--store", "disk:"+filepath.Join(d.dir, "logins"))
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = d.dir, d.environment(), &out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%w: %s", err, strings.TrimSpace(said.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// environment is all that another run of this program may know.
func (d *demo) environment() []string {
	env := []string{
		"SCHWAB_APP_KEY=" + demoKey, "SCHWAB_APP_SECRET=" + demoSecret, "SCHWAB_CALLBACK_URL=" + d.callback, "SCHWAB_BASE_URL=" + d.schwab.base,
		"SSL_CERT_FILE=" + filepath.Join(d.dir, "cert.pem"), "HOME=" + d.dir, "XDG_CONFIG_HOME=" + d.dir, "XDG_STATE_HOME=" + d.dir,
	}
	if runtime.GOOS == "windows" {
		env = append(env, "AppData="+d.dir, "LocalAppData="+d.dir, "SystemRoot="+os.Getenv("SystemRoot"))
	}
	return env
}

func (d *demo) seventhDay(ctx context.Context) error {
	b := d.schwab
	t, err := b.session.Token(ctx)
	if err != nil {
		return err
	}
	if err := b.age(ctx, t, demoWeek+time.Minute); err != nil {
		return err
	}
	if _, err = b.session.Refresh(ctx, nil); !errors.Is(err, brokerauth.ErrLoginRequired) {
		return fmt.Errorf("after seven days a refresh must say that a person has to log in, and it said: %v", err)
	}
	if err := b.count("refresh_token", 1, "after seven days"); err != nil {
		return err
	}
	d.say("For the seventh day schwab's clock was put forward by a week and a minute, and the stored login dated back by as much.")
	d.say("A refresh then says:")
	d.say("    %v", err)
	// Whoever asks from now on is told so, and the broker is left in peace.
	_, refused := d.process(ctx)
	if exit, ok := errors.AsType[*exec.ExitError](refused); !ok || exit.ExitCode() != 3 || !strings.Contains(refused.Error(), "7 days") {
		return fmt.Errorf("another process must hear the same, and exit with 3; it said: %v", refused)
	}
	if err := b.count("refresh_token", 0, "for a login that is known to be over"); err != nil {
		return err
	}
	d.say("Another process is told the same, and the broker was not asked again.")
	return nil
}

func (d *demo) loginAgain(ctx context.Context) error {
	b := d.schwab
	other := d.newSession(b.session.Provider)
	defer other.Close()
	if err := other.Login(ctx, d.flow); err != nil {
		return fmt.Errorf("logging in again: %w", err)
	}
	if err := d.call(ctx, b); err != nil {
		return err
	}
	if err := b.count("authorization_code", 1, "at the second login"); err != nil {
		return err
	}
	if err := b.count("refresh_token", 0, "after the second login"); err != nil {
		return err
	}
	d.say("A person logged in again through a second Session, and the first goes on with that login, without a restart.")
	return nil
}

// table tells what each broker saw of it all.
func (d *demo) table(ctx context.Context) error {
	var out bytes.Buffer
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\tbroker\ta login lasts\tlogins\trefreshes\tAPI calls")
	for _, b := range d.brokers {
		st, err := b.session.Status(ctx)
		if err != nil {
			return err
		}
		if !st.LoggedIn {
			return fmt.Errorf("at %s the login is gone", b.name)
		}
		lasts := "for ever"
		if !st.LoginBy.IsZero() {
			lasts = inWords(st.LoginBy.Sub(st.LoggedInAt))
		}
		calls := 0
		for _, r := range b.pretend.Requests() {
			if r.Path == b.path && r.Status == http.StatusOK {
				calls++
			}
		}
		fmt.Fprintf(w, "\t%s\t%s\t%d\t%d\t%d\n", b.name, lasts, b.seen["authorization_code"], b.seen["refresh_token"], calls)
	}
	w.Flush()
	d.say("What the brokers saw:")
	fmt.Fprint(d.out, out.String())
	return nil
}

func (d *demo) logout(ctx context.Context) error {
	known, before := 0, 0
	for _, b := range d.brokers {
		known += len(b.pretend.Secrets())
		_, found, err := d.search(b.pretend.Secrets())
		if err != nil {
			return err
		}
		if found == 0 { // then the search after the logout would show nothing
			return fmt.Errorf("no secret of %s is in a file while there is a login", b.name)
		}
		before += found
		if err := b.session.Logout(ctx); err != nil {
			return fmt.Errorf("logging out at %s: %w", b.name, err)
		}
	}
	files := 0
	for _, b := range d.brokers {
		var left int
		var err error
		if files, left, err = d.search(b.pretend.Secrets()); err != nil {
			return err
		}
		if left != 0 {
			return fmt.Errorf("after the logout %d secrets of %s are left in the files", left, b.name)
		}
	}
	for _, b := range []*demoBroker{d.schwab, d.td} {
		if _, err := b.session.Token(ctx); !errors.Is(err, brokerauth.ErrLoginRequired) {
			return fmt.Errorf("after the logout there must be no token, and asking %s for one said: %v", b.name, err)
		}
	}
	d.say("Logged out: of the %d secrets that the brokers knew or issued, %d stood in files before, and none is left in the %d files here.",
		known, before, files)
	return nil
}

// search counts the files in the demo's folder, and those of the secrets that stand in any of them.
func (d *demo) search(secrets []string) (files, found int, err error) {
	var all bytes.Buffer
	err = filepath.WalkDir(d.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		files++
		text, err := os.ReadFile(path)
		all.Write(append(text, 0))
		return err
	})
	for _, secret := range secrets {
		if bytes.Contains(all.Bytes(), []byte(secret)) {
			found++
		}
	}
	return files, found, err
}

// count checks how many token calls of a kind the broker has seen since the last count.
func (b *demoBroker) count(grant string, want int, when string) error {
	total := 0
	for _, r := range b.pretend.Requests() {
		if r.GrantType == grant {
			total++
		}
	}
	got := total - b.seen[grant]
	if b.seen[grant] = total; got != want {
		return fmt.Errorf("%s %s saw %d token calls of the kind %s, not %d", when, b.name, got, grant, want)
	}
	return nil
}
