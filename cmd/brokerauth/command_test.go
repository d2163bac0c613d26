package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/providers/schwab"
	"github.com/brokerauth/brokerauth/storage/disk"
)

// A login's whole life, at the loudest log.
func TestJourney(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	p.env["BROKERAUTH_LOG"] = "debug"
	if r := p.run("status", "schwab"); r.code != 3 || !strings.Contains(r.out, "not logged in") {
		t.Errorf("status before the login: exit code %d, %q", r.code, r.out)
	}
	r := p.login()
	wantAll(t, r.out, "access: 29 min left", "log in again by", filepath.Base(p.record()), "Earlier logins")
	wantAll(t, r.errors, `msg="brokerauth: login"`)

	token := p.must(0, "token", "schwab").out
	if !strings.HasPrefix(token, "emulated.I0.") || strings.Count(token, "\n") != 1 || !strings.HasSuffix(token, "\n") {
		t.Errorf("token prints %q", token)
	}
	if got := p.must(0, "token", "schwab", "--header").out; got != "Authorization: Bearer "+token {
		t.Errorf("token --header prints %q", got)
	}
	var fields map[string]string
	if err := json.Unmarshal([]byte(p.must(0, "token", "schwab", "--json").out), &fields); err != nil {
		t.Fatal(err)
	}
	expires, err := time.Parse(time.RFC3339, fields["expires_at"])
	if left := time.Until(expires); err != nil || fields["access_token"]+"\n" != token || fields["token_type"] != "Bearer" ||
		left < 28*time.Minute || left > 30*time.Minute {
		t.Errorf("token --json: %v, %v left, %v", slices.Sorted(maps.Keys(fields)), left, err)
	}

	wantAll(t, p.must(0, "status", "schwab").out, "schwab: access: ", "log in again by ", "in 6 d 23 h", time.Now().Local().Format("MST"))
	var status map[string]any
	if err := json.Unmarshal([]byte(p.must(0, "status", "schwab", "--json").out), &status); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"broker", "profile", "store", "kept_as", "logged_in_at", "age_seconds", "access_expires_at",
		"login_by", "scopes", "last_error"} {
		if _, ok := status[name]; !ok {
			t.Errorf("status --json lacks %s", name)
		}
	}
	if status["broker"] != "schwab" || status["profile"] != "default" || status["store"] != "disk" {
		t.Errorf("status --json: %v", status)
	}

	wantAll(t, p.must(0, "refresh", "schwab").out, "refreshed")
	if after := p.must(0, "token", "schwab").out; after == token {
		t.Error("refresh left the old token")
	}
	if n := p.calls("refresh_token"); n != 1 {
		t.Errorf("the broker saw %d refreshes, want 1", n)
	}

	record := p.record()
	wantAll(t, p.must(0, "logout", "schwab").out, record)
	if _, err := os.Stat(record); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the logout: %v", err)
	}
	wantAll(t, p.must(0, "logout", "schwab").out, "nothing was stored")
	r = p.must(3, "token", "schwab")
	wantAll(t, r.errors, "run: brokerauth login schwab\n")
	if strings.Contains(r.errors, "log in first") {
		t.Errorf("it says twice what to do: %s", r.errors)
	}

	said := p.all.String()
	if !strings.Contains(said, "kind=refreshed") {
		t.Error("the log does not tell of the refresh, so it shows nothing")
	}
	for _, secret := range p.broker.Secrets() {
		if strings.Contains(said, secret) {
			t.Errorf("a secret was printed: %.12s…", secret)
		}
	}
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	taken := strings.TrimPrefix(p.env["SCHWAB_BASE_URL"], "http://")
	for _, test := range []struct {
		line string
		want []string
	}{
		{"frobnicate", []string{"frobnicate", "see: brokerauth --help"}},
		{"lgin schwab", []string{"lgin", "did you mean login?", "see: brokerauth --help"}},
		{"help frobnicate", []string{`unknown command "frobnicate" for "brokerauth": see: brokerauth --help`}},
		{"help lgin", []string{"lgin", "did you mean login?", "see: brokerauth --help"}},
		{"help store moove", []string{`unknown command "moove" for "brokerauth store": see: brokerauth store --help`}},
		{"completion frobnicate", []string{`unknown command "frobnicate" for "brokerauth completion": see: brokerauth completion --help`}},
		{"help --frobnicate", []string{"--frobnicate", "see: brokerauth help --help"}},
		{"token", []string{"one broker", "schwab", "see: brokerauth token --help"}},
		{"store moove", []string{"moove", "see: brokerauth store --help"}},
		{"store move --fast", []string{"--fast", "see: brokerauth store move --help"}},
		{"token schwab extra", []string{"one broker"}},
		{"token schwab --frobnicate", []string{"--frobnicate"}},
		{"token etrade", []string{"etrade", "schwab"}},
		{"status etrade", []string{"etrade"}},
		{"status schwab tastytrade", []string{"one broker", "see: brokerauth status --help"}},
		{"import one two", []string{"one file"}},
		{"logout etrade", []string{"etrade"}},
		{"emulate etrade", []string{"etrade"}},
		{"token schwab --header --json", []string{"--header or --json"}},
		{"token schwab --for soon", []string{"soon", "12h"}},
		{"status schwab --within -2d", []string{"negative"}},
		{"login schwab --timeout -1s", []string{"negative"}},
		{"login schwab --flow telepathy", []string{"telepathy", "paste"}},
		{"login schwab --store memory", []string{"memory", "lost"}},
		{"status --store memory", []string{"memory"}},
		{"status schwab --store memory", []string{"memory"}},
		{"logout schwab --store memory", []string{"memory"}},
		{"logout schwab --store memory --identity 0", []string{"memory"}},
		{"logout schwab --identity 0", []string{"status"}},
		{"logout schwab --identity=", []string{"empty"}},
		{"login schwab --browser nosuch", []string{"--browser", "nosuch"}},
		{"token schwab --store cloud", []string{"cloud", "disk:DIR"}},
		{"token schwab --store disk:", []string{"disk:DIR"}},
		{"token schwab --store disk:~/logins", []string{"~"}},
		{"token schwab --profile ../x", []string{"../x"}},
		{"emulate schwab --listen nowhere", []string{"nowhere"}},
		{"emulate schwab --listen 0.0.0.0:0", []string{"--client-id"}},
		{"emulate schwab --listen :0 --client-id a --client-secret b --auto-approve", []string{"--auto-approve"}},
		{"emulate schwab --access-ttl 1500ms", []string{"seconds"}},
		{"emulate schwab --listen " + taken, []string{"--listen " + taken, "127.0.0.1:0"}},
		{"serve --listen " + taken, []string{"--listen " + taken, "127.0.0.1:0"}},
	} {
		r := p.must(2, strings.Fields(test.line)...)
		if r.out != "" {
			t.Errorf("brokerauth %s: the answer is not empty: %s", test.line, r.out)
		}
		wantAll(t, r.errors, test.want...)
		if n := strings.Count(r.errors, "../x"); n > 1 {
			t.Errorf("brokerauth %s: it says so %d times: %s", test.line, n, r.errors)
		}
	}
	if len(p.broker.Requests()) > 0 {
		t.Error("the broker was asked")
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	help := p.must(0, "--help").out
	for _, b := range brokers() {
		wantAll(t, help, b.name, b.prefix+baseURL)
		for _, s := range b.settings {
			wantAll(t, help, s.name)
		}
	}
	wantAll(t, help, "BROKERAUTH_STORE", "BROKERAUTH_LOG", "BROWSER", "_FILE", ".env", "PROFILE.env", "  4  ", "  130  ")
	for _, args := range [][]string{{"help", "token"}, {"help", "token", "schwab"}, {"help", "store", "move"}, {"help", "help"}, {"help", "completion", "bash"}} {
		wantAll(t, p.must(0, args...).out, "Usage:\n  brokerauth "+strings.TrimSuffix(strings.Join(args[1:], " "), " schwab"))
	}
	if got := p.must(0, "help").out; got != help {
		t.Errorf("help says another thing than --help:\n%s", got)
	}
	wantAll(t, p.must(0, "--version").out, "brokerauth version "+version())
	for _, command := range []string{"emulate", "login", "status", "token"} {
		if help := p.must(0, command, "--help").out; strings.Contains(help, "(default 0") {
			t.Errorf("%s --help tells of a default that is none:\n%s", command, help)
		}
	}
}

// ownSettings writes the file of settings of a profile.
func (p *place) ownSettings(profile, text string) {
	p.t.Helper()
	config, err := filepath.Rel(p.dir, p.env["XDG_CONFIG_HOME"])
	if err != nil {
		p.t.Fatal(err)
	}
	if runtime.GOOS == "darwin" {
		config = filepath.Join("Library", "Application Support")
	}
	p.write(filepath.Join(config, "brokerauth", profile+".env"), text, 0o600)
}

// What leads a login elsewhere may stand in a profile's own file, as its documentation says.
func TestOwnSettings(t *testing.T) {
	t.Parallel()
	base := newPlace(t, emulator.Config{})
	base.ownSettings("default", "BROWSER="+base.env["BROWSER"]+"\nBROKERAUTH_LOG=debug\n")
	p := base.with("BROWSER", "")
	r := p.login("--flow", "browser")
	wantAll(t, r.errors, `msg="brokerauth: login"`)

	base.ownSettings("default", "BROWSER=/nonexistent/browser\n")
	base.login("--flow", "browser") // the environment comes first
	base.ownSettings("paper", "BROWSER="+base.env["BROWSER"]+"\n")
	base.with("BROWSER", "/nonexistent/browser").login("--profile", "paper", "--flow", "browser")

	for _, command := range []string{"token", "status", "login", "logout"} {
		wantAll(t, base.with("BROKERAUTH_LOG", "verbose").must(2, command, "schwab").errors, "BROKERAUTH_LOG", "verbose", "debug")
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	base := newPlace(t, emulator.Config{})
	bare := base.with("SCHWAB_APP_KEY", "", "SCHWAB_APP_SECRET", "", "SCHWAB_CALLBACK_URL", "")

	t.Run("all that is missing is named at once", func(t *testing.T) {
		for _, command := range []string{"token", "refresh", "login"} {
			wantAll(t, bare.must(2, command, "schwab").errors, "SCHWAB_APP_KEY", "SCHWAB_APP_SECRET", "SCHWAB_CALLBACK_URL",
				"https://127.0.0.1:8182", filepath.Join("brokerauth", "default.env"))
		}
	})
	t.Run("with all that is wrong", func(t *testing.T) {
		r := bare.with("SCHWAB_CALLBACK_URL", "http://localhost:1", "SCHWAB_BASE_URL", "ftp://x").must(2, "login", "schwab")
		wantAll(t, r.errors, "SCHWAB_APP_KEY", "callback URL", "base URL")
	})
	t.Run("callbacks that cannot work", func(t *testing.T) {
		for _, callback := range []string{"127.0.0.1:8182", "http://127.0.0.1:8182", "https://localhost:8182", "https://127.0.0.1:8182/#x"} {
			wantAll(t, base.with("SCHWAB_CALLBACK_URL", callback).must(2, "token", "schwab").errors, "callback")
		}
		for _, callback := range []string{" https://127.0.0.1:8182", "https://127.0.0.1:8182 ", "https://127.0.0.1:8182\r"} {
			r := base.with("SCHWAB_CALLBACK_URL", callback).must(2, "token", "schwab")
			if wantAll(t, r.errors, "callback", "has a space at its"); strings.Contains(r.errors, "not an address") {
				t.Errorf("%q: %s", callback, r.errors)
			}
		}
	})
	t.Run("the store", func(t *testing.T) {
		dir := filepath.Join(base.dir, "elsewhere")
		p := base.with("BROKERAUTH_STORE", "disk:"+dir)
		p.login()
		if filepath.Dir(base.record()) != dir {
			t.Errorf("the login is kept at %s", base.record())
		}
		p.must(3, "token", "schwab", "--store", "disk") // a flag comes first
		if r := base.must(0, "status", "--json", "--store", "disk:"+dir); !strings.Contains(r.out, `"store":"disk:`+dir) && runtime.GOOS != "windows" {
			t.Errorf("status --json: %s", r.out)
		}
	})
	t.Run("files hold secrets", func(t *testing.T) {
		secret := base.write("run/secret", testSecret+"\n", 0o400)
		p := base.with("SCHWAB_APP_SECRET", "", "SCHWAB_APP_SECRET_FILE", secret)
		wantAll(t, p.must(3, "token", "schwab").errors, "brokerauth login schwab")
		wantAll(t, base.with("SCHWAB_APP_SECRET_FILE", secret).must(2, "token", "schwab").errors, "SCHWAB_APP_SECRET_FILE")
		wantAll(t, p.with("SCHWAB_APP_SECRET_FILE", secret+"x").must(2, "token", "schwab").errors, "SCHWAB_APP_SECRET_FILE")
		empty := base.write("run/empty", "\n", 0o400)
		wantAll(t, p.with("SCHWAB_APP_SECRET_FILE", empty).must(2, "token", "schwab").errors, "SCHWAB_APP_SECRET_FILE", "empty")
	})
}

func TestWorkingFile(t *testing.T) {
	t.Parallel()
	good := "# an app\nexport SCHWAB_APP_KEY=\"" + testKey + "\"\nSCHWAB_APP_SECRET='" + testSecret + "' # mine\nDATABASE_URL=postgres://x\nnot a line\n"
	base := newPlace(t, emulator.Config{})
	p := base.with("SCHWAB_APP_KEY", "", "SCHWAB_APP_SECRET", "")

	p.write(".env", good, 0o600)
	r := p.run("login", "schwab")
	if r.code != 0 || strings.Count(r.errors, "brokerauth: SCHWAB_APP_KEY, SCHWAB_APP_SECRET taken from .env") != 1 {
		t.Fatalf("login: exit code %d\n%s", r.code, r.errors)
	}
	if strings.Contains(r.errors, testSecret) || strings.Contains(r.errors, "chmod") {
		t.Errorf("login says:\n%s", r.errors)
	}
	if r := base.must(0, "token", "schwab"); strings.Contains(r.errors, ".env") {
		t.Errorf("a file that gave nothing is told of: %s", r.errors)
	}
	if runtime.GOOS != "windows" {
		p.write(".env", good, 0o644)
		wantAll(t, p.must(0, "token", "schwab").errors, "chmod 600 .env")
	}
	p.write(".env", strings.ReplaceAll(good, testKey, "other"), 0o600)
	base.must(0, "token", "schwab") // the environment counts first

	for _, line := range []string{
		"SCHWAB_BASE_URL=https://evil.example", "BROWSER=/tmp/evil", "BROKERAUTH_STORE=disk:/tmp/evil", "BROKERAUTH_LOG=debug",
		"HTTPS_PROXY=http://evil.example", "https_proxy=http://evil.example", "SCHWAB_APP_SECRET_FILE=/etc/passwd",
		"SCHWAB_CALLBACK_URL=https://evil.example/cb", "SCHWAB_CALLBACK_URL=https://127.0.0.1.evil.example:8182",
	} {
		name, value, _ := strings.Cut(line, "=")
		p.write(".env", good+line+"\n", 0o600)
		for _, args := range [][]string{{"login", "schwab"}, {"token", "schwab"}, {"status", "schwab"}, {"status"}} {
			r := base.must(2, args...)
			wantAll(t, r.errors, name, filepath.Join(p.dir, ".env"))
			if isProxy(name) && strings.Contains(r.errors, "default.env") {
				t.Errorf("it sends to a file that nobody asks for proxies: %s", r.errors)
			}
			if strings.Contains(r.errors, value) || strings.Contains(r.errors, testSecret) {
				t.Errorf("the error shows a value: %s", r.errors)
			}
		}
	}
	p.write(".env", "\x1b]0;owned\a\x1b[2J_PROXY=1\n", 0o600)
	if r = base.must(2, "token", "schwab"); strings.ContainsAny(r.errors, "\x1b\a") {
		t.Errorf("a name speaks to the terminal: %q", r.errors)
	}
	p.write(".env", "SCHWAB_APP_SECRET=\"half-a-secret\n", 0o600)
	r = base.must(2, "token", "schwab")
	wantAll(t, r.errors, "line 1", "SCHWAB_APP_SECRET")
	if strings.Contains(r.errors, "half-a-secret") {
		t.Errorf("the error shows a value: %s", r.errors)
	}
	os.Remove(filepath.Join(p.dir, ".env"))
	if err := os.Mkdir(filepath.Join(p.dir, ".env"), 0o700); err != nil {
		t.Fatal(err)
	}
	base.must(0, "token", "schwab") // a folder of that name is none of ours
}

func TestProfiles(t *testing.T) {
	t.Parallel()
	base := newPlace(t, emulator.Config{})
	bare := base.with("SCHWAB_APP_KEY", "", "SCHWAB_APP_SECRET", "", "SCHWAB_CALLBACK_URL", "", "SCHWAB_BASE_URL", "")
	text := "SCHWAB_APP_KEY=" + testKey + "\nSCHWAB_APP_SECRET=" + testSecret + "\nSCHWAB_CALLBACK_URL=" + base.env["SCHWAB_CALLBACK_URL"] +
		"\nSCHWAB_BASE_URL=" + base.env["SCHWAB_BASE_URL"] + "\n"
	config, err := filepath.Rel(base.dir, base.env["XDG_CONFIG_HOME"])
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS == "darwin" {
		config = filepath.Join("Library", "Application Support")
	}
	paper := filepath.Join(config, "brokerauth", "paper.env")
	base.write(paper, text, 0o600)

	// Its own file comes before the environment, and needs none.
	bare.login("--profile", "paper")
	wrong := base.with("SCHWAB_APP_KEY", "wrong", "SCHWAB_BASE_URL", "http://127.0.0.1:1")
	wrong.must(0, "token", "schwab", "--profile", "paper")
	wantAll(t, wrong.must(0, "status", "--profile", "paper").out, "profile paper")
	// All that the store holds is told, by whose settings ever, and the profile of an error too.
	wantAll(t, base.must(0, "status").out, "profile paper")
	wantAll(t, base.must(3, "token", "schwab", "--profile", "other").errors, "other", "brokerauth login schwab --profile other")

	if runtime.GOOS != "windows" {
		for _, mode := range []os.FileMode{0o640, 0o604, 0o620} {
			base.write(paper, text, mode)
			wantAll(t, base.must(2, "token", "schwab", "--profile", "paper").errors, "paper.env", "chmod 600")
		}
		base.must(3, "token", "schwab") // it is not that profile's
	}
	// Without a name the profile is default, whose file comes last.
	base.write(filepath.Join(config, "brokerauth", "default.env"), text, 0o600)
	bare.login()
	wantAll(t, wrong.must(3, "token", "schwab").errors, "login required")
}

func TestRecords(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	p.login()
	path := p.record()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"half-written": string(whole[:len(whole)/2]), "empty": "", "nonsense": "\x00\x01"} {
		put(text)
		said := p.must(1, "token", "schwab").errors
		if wantAll(t, said, path, "log in"); strings.HasSuffix(said, ": corrupt\n") {
			t.Errorf("%s: it ends with what is for programs: %s", name, said)
		}
		p.must(1, "status", "schwab")
		var status map[string]any
		r := p.must(1, "status", "schwab", "--json")
		if err := json.Unmarshal([]byte(r.out), &status); err != nil || !strings.Contains(r.out, "corrupt") {
			t.Errorf("%s: status --json: %s", name, r.out)
		}
		if in, ok := status["logged_in"]; !ok || in != nil {
			t.Errorf("%s: status --json: logged_in is %v, want null: nobody knows", name, in)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("%s: the record was changed", name)
		}
	}
	put("nonsense")
	wantAll(t, p.login().errors, "warning")
	p.must(0, "token", "schwab")
	aside, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*.bad.*"))
	if err != nil || len(aside) != 1 {
		t.Fatalf("set aside: %q, %v", aside, err)
	}
	p.must(0, "logout", "schwab")
	if _, err := os.Stat(aside[0]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the logout %s is there: %v", aside[0], err)
	}

	put(strings.Replace(string(whole), `"v":1`, `"v":99`, 1))
	for _, command := range []string{"token", "login"} {
		r := p.run(command, "schwab", "--store", "disk")
		if r.code != 1 || !strings.Contains(r.errors, "upgrade") {
			t.Errorf("%s with a newer version's record: exit code %d\n%s", command, r.code, r.errors)
		}
	}
	if runtime.GOOS != "windows" {
		put(string(whole))
		os.Chmod(path, 0o644)
		wantAll(t, p.must(1, "token", "schwab").errors, "chmod 600")
		os.Chmod(path, 0o600)
		dir := filepath.Dir(path)
		os.Chmod(dir, 0o777)
		n := len(p.broker.Requests())
		wantAll(t, p.must(1, "login", "schwab").errors, "chmod 700", "nobody was asked")
		if len(p.broker.Requests()) != n {
			t.Error("somebody was asked to log in although the login could not be kept")
		}
		os.Chmod(dir, 0o500)
		defer os.Chmod(dir, 0o700)
		p.must(0, "token", "schwab") // reading needs no writing
		if os.Geteuid() != 0 {       // whom no mode stops
			p.must(1, "refresh", "schwab")
			p.must(1, "logout", "schwab")
		}
	}
}

func TestBrokerSays(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	p.login()

	// Another secret is a refusal that a person must mend.
	wantAll(t, p.with("SCHWAB_APP_SECRET", "wrong").must(2, "refresh", "schwab").errors, "rejected", "app secret")

	// A refusal for a reason that passes leaves the valid token in use.
	p.broker.Inject(emulator.Fault{Status: 503, Times: -1})
	p.must(4, "refresh", "schwab")
	p.must(0, "token", "schwab")
	p.broker.Inject()

	// A dead login.
	p.broker.RevokeLogins()
	wantAll(t, p.must(3, "refresh", "schwab").errors, "login required", "run: brokerauth login schwab\n")
	r := p.must(3, "status", "schwab")
	wantAll(t, r.out, "last error", "HTTP 400", "the login has ended")
	if strings.Contains(r.out, "log in again by") {
		t.Errorf("a login that has ended still lasts:\n%s", r.out)
	}
	wantAll(t, r.errors, "run: brokerauth login schwab\n")
	if strings.Contains(r.errors, "HTTP 400") {
		t.Errorf("what the broker said is told twice:\n%s%s", r.out, r.errors)
	}
	wantAll(t, p.must(3, "status", "--store", "disk").errors, "run: brokerauth login schwab --store disk\n")
	p.login()
	p.must(0, "status", "schwab")
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{AccessTTL: time.Second})
	p.login()
	p.broker.Inject(emulator.Fault{Drop: true, Times: -1})
	time.Sleep(1100 * time.Millisecond)
	p.must(4, "token", "schwab")
	p.must(0, "status", "schwab")
	p.broker.Inject()
	p.must(0, "refresh", "schwab") // a person may ask at once
}

func TestDenied(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	p.login()
	before := p.must(0, "token", "schwab").out
	denied := p.with("BROWSER", strings.Replace(p.env["BROWSER"], "approve", "deny", 1))
	r := denied.run("login", "schwab", "--flow", "browser")
	if r.code != 3 || !strings.Contains(r.errors, "declined") {
		t.Errorf("a declined consent: exit code %d\n%s", r.code, r.errors)
	}
	const still = "the login that is stored still works: to log in anew, run: brokerauth login schwab\n"
	if wantAll(t, r.errors, still); strings.Contains(r.errors, "login required") {
		t.Errorf("nobody must log in, and it says: %s", r.errors)
	}
	r = denied.run("login", "schwab", "--flow", "browser", "--profile", "new")
	if r.code != 3 || strings.Contains(r.errors, "still works") {
		t.Errorf("a declined consent, of a profile without a login: exit code %d\n%s", r.code, r.errors)
	}
	p.broker.Inject(emulator.Fault{Status: 400, Body: `{"error":"invalid_grant"}`})
	if r = p.run("login", "schwab"); r.code != 3 || !strings.Contains(r.errors, still) {
		t.Errorf("a code that is too old: exit code %d\n%s", r.code, r.errors)
	}
	forged := p.with("BROWSER", strings.Replace(p.env["BROWSER"], "approve", "forge", 1))
	r = forged.run("login", "schwab", "--flow", "browser", "--timeout", "2s")
	if r.code != 1 || p.calls("authorization_code") != 1 || strings.Contains(r.errors, "context deadline") {
		t.Errorf("a wrong state: exit code %d, %d codes exchanged, want 1\n%s", r.code, p.calls("authorization_code"), r.errors)
	}
	wantAll(t, r.errors, "Ready For Use", "4001", "assertion_rejected")
	if after := p.must(0, "token", "schwab").out; after != before {
		t.Error("the login that was stored is gone")
	}
}

func TestStatusWithin(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	r := p.must(3, "status")
	wantAll(t, r.errors, "brokerauth login BROKER")
	if got := p.must(3, "status", "--json").out; got != "[]\n" {
		t.Errorf("status --json without logins: %q", got)
	}
	p.login()
	p.must(0, "status", "schwab", "--within", "6.9d")
	r = p.must(3, "status", "schwab", "--within", "7d1h")
	wantAll(t, r.errors, "the login is over by ", ", within 7 d 1 h: run: brokerauth login schwab\n")
	if strings.Contains(r.errors, "login required") {
		t.Errorf("nobody must log in today: %s", r.errors)
	}
	p.must(3, "status", "--within", "8d")

	// A login that lives long enough is left alone.
	p.edit(func(token map[string]any) {
		token["logged_in_at"], token["login_by"] = time.Now().Add(-24*time.Hour), time.Now().Add(6*24*time.Hour)
	})
	for _, test := range []struct {
		within string
		logins int
	}{{"12h", 1}, {"6.5d", 2}} {
		r := p.login("--within", test.within)
		if n := p.calls("authorization_code"); n != test.logins {
			t.Errorf("login --within %s: %d logins, want %d\n%s", test.within, n, test.logins, r.errors)
		}
	}

	p.edit(func(token map[string]any) { token["login_by"] = time.Now().Add(-time.Minute) })
	r = p.must(3, "status", "schwab", "--within", "1h")
	wantAll(t, r.errors, "the login was over by ", ": login required: run: brokerauth login schwab\n")
	synctest.Test(t, func(t *testing.T) {
		if text := clocks(brokerauth.Status{AccessExpiresAt: time.Now().Add(-500 * time.Millisecond)}); !strings.HasPrefix(text, "access: expired just now; ") {
			t.Errorf("half a second after the end: %s", text)
		}
	})
	p.login()

	// No login lives that long, and whoever asks for one would be sent to log in by each run.
	for _, within := range []string{"7d", "8d"} {
		wantAll(t, p.must(2, "login", "schwab", "--within", within).errors, "schwab's logins live 7 d", within[:1]+" d\n")
	}

	// The app's settings are not needed to look, or to delete.
	bare := p.with("SCHWAB_APP_KEY", "", "SCHWAB_APP_SECRET", "", "SCHWAB_CALLBACK_URL", "")
	for _, args := range [][]string{{"status"}, {"status", "schwab"}} {
		wantAll(t, bare.must(0, args...).out, "…, whose settings are not here): access: ") // it may be an emulated broker's
	}
	if out := p.must(0, "status").out; strings.Contains(out, "…") {
		t.Errorf("an identity is told where the settings name it: %s", out)
	}
	bare.must(3, "status", "schwab", "--profile", "other")
	var many []map[string]any
	if err := json.Unmarshal([]byte(bare.must(0, "status", "--json").out), &many); err != nil || len(many) != 1 || many[0]["broker"] != "schwab" {
		t.Errorf("status --json: %v, %v", many, err)
	}
	wantAll(t, bare.must(0, "logout", "schwab").out, "logged out")
	p.must(3, "status", "schwab")
}

func TestTokenFor(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{AccessTTL: 10 * time.Minute})
	p.login()
	first := p.must(0, "token", "schwab", "--for", "1s").out
	wantAll(t, p.must(2, "token", "schwab", "--for", "10m").errors, "10m", "9m")
	if n := p.calls("refresh_token"); n != 0 {
		t.Fatalf("%d refreshes, want none", n)
	}
	p.edit(func(token map[string]any) { // of the ten minutes, five are over
		token["issued"], token["expiry"] = time.Now().Add(-5*time.Minute), time.Now().Add(5*time.Minute)
	})
	second := p.must(0, "token", "schwab", "--for", "6m").out
	if n := p.calls("refresh_token"); n != 1 || second == first {
		t.Errorf("%d refreshes, want 1", n)
	}
	p.must(0, "token", "schwab", "--for", "6m")
	if n := p.calls("refresh_token"); n != 1 {
		t.Errorf("%d refreshes for a token that lives long enough, want 1", n)
	}
	for range 9 { // of an hour's worth of them
		p.edit(func(token map[string]any) {
			token["issued"], token["expiry"] = time.Now().Add(-5*time.Minute), time.Now().Add(5*time.Minute)
		})
		p.must(0, "token", "schwab", "--for", "6m")
	}
}

// A login at one address is none at another: no token reaches it, and the record stays as it is.
func TestAnotherBaseURL(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	p.login()
	path := p.record()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := emulator.New("schwab", emulator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(stranger)
	defer server.Close()
	other := p.with("SCHWAB_BASE_URL", server.URL)
	for _, command := range []string{"token", "refresh", "status"} {
		other.must(3, command, "schwab")
	}
	other.must(0, "logout", "schwab")
	if n := len(stranger.Requests()); n != 0 {
		t.Errorf("the other address got %d requests", n)
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("the record was changed: %v", err)
	}
}

// Schwab keeps one login of an app, so that of an earlier profile has ended, whatever its clock says.
func TestEarlierProfile(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	p.login()
	if out := p.must(0, "status").out; strings.Contains(out, "later login") {
		t.Errorf("of one login: %s", out)
	}
	time.Sleep(10 * time.Millisecond)
	p.login("--profile", "bob")
	const ended = "  a later login of this app (profile bob, "
	for _, args := range [][]string{{"status"}, {"status", "schwab"}, {"status", "--profile", "default"}} {
		out := p.must(0, args...).out
		if wantAll(t, out, ended, ") has probably ended it\n"); strings.Count(out, "a later login") != 1 {
			t.Errorf("brokerauth %s:\n%s", strings.Join(args, " "), out)
		}
	}
	if out := p.must(0, "status", "schwab", "--profile", "bob").out; strings.Contains(out, "later login") {
		t.Errorf("of the later login: %s", out)
	}
	p.must(3, "refresh", "schwab")
	if out := p.run("status", "schwab").out; strings.Contains(out, "later login") { // the broker has said so
		t.Errorf("of a login that has ended: %s", out)
	}
}

// A dead login of another app does not count where the settings name one, and can be deleted as the command says.
func TestOtherIdentity(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	second, err := emulator.New("schwab", emulator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(second)
	defer server.Close()
	other := p.with("SCHWAB_BASE_URL", server.URL)
	bare := p.with("SCHWAB_APP_KEY", "", "SCHWAB_APP_SECRET", "", "SCHWAB_CALLBACK_URL", "", "SCHWAB_BASE_URL", "")

	p.login()
	wantAll(t, other.must(3, "status").errors, "run: brokerauth login") // of what it names nothing is stored
	other.login()
	p.broker.RevokeLogins()
	p.must(3, "refresh", "schwab")

	identity := make(map[string]string) // by how a login is
	var many []map[string]any
	if err := json.Unmarshal([]byte(other.must(0, "status", "--json").out), &many); err != nil || len(many) != 2 {
		t.Fatalf("status --json: %v, %v", many, err)
	}
	for _, one := range many {
		how := "live"
		if one["last_error"] != nil {
			how = "dead"
		}
		identity[how], _ = one["identity"].(string)
	}
	if len(identity["live"]) < 8 || len(identity["dead"]) < 8 || identity["live"] == identity["dead"] {
		t.Fatalf("identities: %v", identity)
	}
	dead, live := identity["dead"][:8], identity["live"][:8]

	out := other.must(0, "status").out
	wantAll(t, out, "schwab (another app, grant or base URL, "+dead, "brokerauth logout schwab --identity "+dead)
	if strings.Count(out, "another app") != 1 || !strings.Contains(out, "schwab ("+live) {
		t.Errorf("which of them is the settings' own does not show:\n%s", out)
	}
	other.must(0, "status", "schwab")
	p.must(3, "status") // its own is the dead one

	// Without settings nobody knows which is in use, so both count.
	for _, args := range [][]string{{"status"}, {"status", "schwab"}} {
		r := bare.must(3, args...)
		wantAll(t, r.out, "schwab ("+dead, "schwab ("+live)
		if strings.Contains(r.errors, "brokerauth login") {
			t.Errorf("brokerauth %s: a login does not end that: %s", strings.Join(args, " "), r.errors)
		}
		wantAll(t, r.errors, "run: brokerauth logout schwab --identity "+dead+"\n")
	}
	wantAll(t, bare.must(2, "logout", "schwab").errors, "--identity", dead, live)
	// A program that reads an object gets one, or an error that says what to set.
	r := bare.must(2, "status", "schwab", "--json")
	if wantAll(t, r.errors, dead, live, "SCHWAB_APP_KEY", "SCHWAB_BASE_URL"); r.out != "" {
		t.Errorf("status schwab --json prints %s", r.out)
	}
	// The key and the base URL tell which is meant, though nothing else is set, as in another project's .env.
	half := other.with("SCHWAB_APP_SECRET", "", "SCHWAB_CALLBACK_URL", "")
	var one map[string]any
	if err := json.Unmarshal([]byte(half.must(0, "status", "schwab", "--json").out), &one); err != nil || one["identity"] != identity["live"] {
		t.Errorf("status schwab --json: %v, %v", one, err)
	}
	out = half.must(0, "status").out
	wantAll(t, out, "schwab (another app, grant or base URL, "+dead, "schwab ("+live+"…):")
	stranger := half.with("SCHWAB_APP_KEY", "of-another-app")
	wantAll(t, stranger.must(3, "status", "schwab").out, "schwab: not logged in")
	wantAll(t, stranger.must(3, "status").out, "schwab (another app, grant or base URL, "+live)
	bare.must(2, "logout", "schwab", "--identity", live, "--profile", "paper")

	wantAll(t, other.must(0, "logout", "schwab", "--identity", dead).out, "logged out", dead)
	bare.must(0, "status")
	other.must(0, "token", "schwab")
	p.must(3, "token", "schwab")
	bare.must(0, "logout", "schwab")
	bare.must(3, "status")
}

// A program's own broker has no name here, and its login can be deleted all the same.
func TestUnknownBroker(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	p.login()
	path := p.record()
	own := brokerauth.Key{Provider: "my broker", Identity: "", Profile: "default"}
	if err := os.Rename(path, filepath.Join(filepath.Dir(path), own.String()+".json")); err != nil {
		t.Fatal(err)
	}
	wantAll(t, p.must(0, "status").out, "my broker")
	r := p.must(3, "status", "--within", "8d")
	wantAll(t, r.errors, "run: brokerauth logout 'my broker' --identity =\n")
	p.must(0, "logout", "my broker", "--identity", "=")
	p.must(3, "status")
}

// A program with disk.New("") and the command share one login.
func TestSharedWithPrograms(t *testing.T) {
	p := newPlace(t, emulator.Config{})
	for _, name := range []string{"HOME", "XDG_STATE_HOME", "LocalAppData"} {
		t.Setenv(name, p.env[name])
	}
	store, err := disk.New("")
	if err != nil {
		t.Fatal(err)
	}
	app, err := schwab.New(schwab.Config{
		AppKey: testKey, AppSecret: testSecret, CallbackURL: p.env["SCHWAB_CALLBACK_URL"], BaseURL: p.env["SCHWAB_BASE_URL"],
	})
	if err != nil {
		t.Fatal(err)
	}
	program := &brokerauth.Session{Provider: app, Store: store}
	defer program.Close()
	if _, err := program.Token(t.Context()); !errors.Is(err, brokerauth.ErrLoginRequired) {
		t.Fatalf("before the login: %v", err)
	}
	p.login()
	token, err := program.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := p.must(0, "token", "schwab").out; got != token.AccessToken+"\n" {
		t.Error("command and program have different tokens")
	}
	renewed, err := program.Refresh(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := p.must(0, "token", "schwab").out; got != renewed.AccessToken+"\n" {
		t.Error("the command has not taken the program's new token")
	}
	p.must(0, "logout", "schwab")
	other := &brokerauth.Session{Provider: app, Store: store}
	defer other.Close()
	if _, err := other.Token(t.Context()); !errors.Is(err, brokerauth.ErrLoginRequired) {
		t.Errorf("after the command's logout: %v", err)
	}
}

func TestDemo(t *testing.T) {
	p := newPlace(t, emulator.Config{})
	// Nothing of the user's may matter, and nothing may be touched.
	p.env["SCHWAB_BASE_URL"], p.env["BROKERAUTH_STORE"], p.env["BROWSER"] = "http://127.0.0.1:1", "memory", "/nowhere"
	p.env["SCHWAB_APP_KEY"] = "of the user"
	p.write(".env", "SCHWAB_BASE_URL=http://127.0.0.1:1\n", 0o600)
	r := p.must(0, "demo") // .ci/run holds it to 15 seconds, where nothing else runs
	wantAll(t, strings.Join(strings.Fields(r.out), " "), "5 processes", "broker saw 1 refresh", "the 7 days of this login are over",
		"dated back", "Another process is told the same", "stood in files before",
		"schwab 7 d 2 3 3 tdameritrade 90 d 1 1 2 tastytrade for ever 0 2 2", "All as it should be.")
	if r.errors != "" {
		t.Errorf("it complains:\n%s", r.errors)
	}
	left, err := os.ReadDir(p.dir)
	if err != nil || len(left) != 1 || left[0].Name() != ".env" {
		t.Errorf("it left %v, %v", left, err)
	}
}

// That no keyring is here hides nothing else that went wrong, nor whose login it was wanted for.
func TestAbout(t *testing.T) {
	t.Parallel()
	absent := unreachable{error: fmt.Errorf("keyring: %w", errors.ErrUnsupported), name: "keyring"}
	for _, c := range []struct {
		who  string
		err  error
		want string
	}{
		{"schwab", fmt.Errorf("it stays in disk: %w", absent), "schwab: " + noNamedKeyring},
		{"schwab", fmt.Errorf("schwab: loading the login: %w", absent), "schwab: " + noNamedKeyring},
		{"", about("schwab", absent), "schwab: " + noNamedKeyring},
		{"schwab", errors.Join(absent, errors.New("the disk is full")), "schwab: " + noNamedKeyring + "; the disk is full"},
	} {
		if got := forPeople(about(c.who, c.err)); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// A provider's advice is completed for its own broker, once.
func TestInFull(t *testing.T) {
	t.Parallel()
	a := &app{broker: "tastytrade", profile: "bob"}
	const bare, full = "run: brokerauth login tastytrade", "run: brokerauth login tastytrade --profile bob"
	for text, want := range map[string]string{
		bare: full, bare + "; see x": full + "; see x", bare + ": or " + bare: full + ": or " + full,
		full: full, bare + "-sandbox": bare + "-sandbox", "run: brokerauth login schwab": "run: brokerauth login schwab",
	} {
		if got := a.inFull(text); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
}

// What programs alone find in an error is not told to people, nor taken for a part of a command line to run.
func TestForPeople(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("brokerauth: schwab: loading the login: sqlstore: the database ended: %w", brokerauth.ErrUnavailable), "schwab: loading the login: the database ended"},
		{fmt.Errorf("disk: f: this file is open: run: chmod 600 \"/a b\": %w (or seal it)", fs.ErrPermission), `f: this file is open: run: chmod 600 "/a b" (or seal it)`},
		{fmt.Errorf("written by a newer version: %w: upgrade", errors.ErrUnsupported), "written by a newer version: upgrade"},
		{errors.Join(errors.New("one"), fmt.Errorf("open /x: %w", fs.ErrPermission)), "one; open /x: permission denied"},
		{brokerauth.ErrUnavailable, "unavailable"},
		{&brokerauth.Error{Provider: "schwab", Op: "refresh", Kind: brokerauth.ErrUnavailable, Hint: "try again later"}, "schwab: refresh: unavailable: try again later"},
	} {
		if got := forPeople(c.err); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
