package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth/conformance/emulator"
)

// examined runs doctor and returns what it finds. Its output is fit to be shown to anybody.
func (p *place) examined(code int, args ...string) []finding {
	p.t.Helper()
	before := len(p.broker.Requests())
	text := p.must(code, append([]string{"doctor"}, args...)...)
	r := p.must(code, append([]string{"doctor", "--json"}, args...)...)
	if !slices.Contains(args, "--online") && len(p.broker.Requests()) != before {
		p.t.Errorf("doctor asked the broker: %v", p.broker.Requests()[before:])
	}
	for _, secret := range append(p.broker.Secrets(), testSecret, testGrant, p.dir) {
		if strings.Contains(text.out+text.errors+r.out+r.errors, secret) {
			p.t.Errorf("doctor %q shows %.12s…:\n%s", args, secret, text.out)
		}
	}
	var findings []finding
	if err := json.Unmarshal([]byte(r.out), &findings); err != nil {
		p.t.Fatal(err)
	}
	for _, f := range findings {
		wantAll(p.t, text.out, f.Found, f.Todo)
		if f.Topic == "" || f.Found == "" || !slices.Contains([]string{"ok", "note", "wrong"}, f.State) || f.State == "wrong" && f.See == "" {
			p.t.Errorf("a finding is not whole: %+v", f)
		}
		checkSee(p.t, f.See)
	}
	return findings
}

// checkSee follows where a finding points, heading included.
func checkSee(t testing.TB, see string) {
	t.Helper()
	if see == "" {
		return
	}
	page, heading, _ := strings.Cut(strings.TrimPrefix(see, docs), "#")
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", page))
	if err != nil {
		t.Error(err)
		return
	}
	for line := range strings.Lines(string(text)) {
		title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " ")
		if ok && strings.HasPrefix(line, "#") && strings.ReplaceAll(strings.ToLower(strings.TrimSpace(title)), " ", "-") == heading {
			return
		}
	}
	if heading != "" {
		t.Errorf("%s: there is no such heading", see)
	}
}

// has fails the test unless a finding of topic and state says all parts.
func has(t testing.TB, findings []finding, topic, state string, parts ...string) {
	t.Helper()
	for _, f := range findings {
		if f.Topic == topic && f.State == state && !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(f.Found+" "+f.Todo, part) }) {
			return
		}
	}
	t.Errorf("no finding of %s is %s and says %q: %+v", topic, state, parts, findings)
}

// hasNone fails the test if anything is wrong.
func hasNone(t testing.TB, findings []finding) {
	t.Helper()
	for _, f := range findings {
		if f.State == "wrong" {
			t.Errorf("%s: %s", f.Topic, f.Found)
		}
	}
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	base := newPlace(t, emulator.Config{})
	bare := base.with("SCHWAB_APP_KEY", "", "SCHWAB_APP_SECRET", "", "SCHWAB_CALLBACK_URL", "", "SCHWAB_BASE_URL", "")

	t.Run("nothing is set up", func(t *testing.T) {
		has(t, bare.examined(2), "settings", "wrong", "no broker")
		findings := bare.examined(2, "schwab")
		has(t, findings, "settings", "wrong", "SCHWAB_APP_KEY", "SCHWAB_APP_SECRET", "SCHWAB_CALLBACK_URL")
	})
	t.Run("all is well", func(t *testing.T) {
		has(t, base.examined(3), "login", "wrong", "brokerauth login schwab")
		base.login()
		findings := base.examined(0)
		hasNone(t, findings)
		has(t, findings, "settings", "ok", "SCHWAB_APP_KEY from the environment", fmt.Sprint(len(testKey)))
		has(t, findings, "settings", "note", "SCHWAB_BASE_URL", base.env["SCHWAB_BASE_URL"])
		has(t, findings, "callback", "ok", base.env["SCHWAB_CALLBACK_URL"])
		has(t, findings, "store", "ok")
		has(t, findings, "login", "ok", "log in again by")
		has(t, findings, "clock", "ok")
		if files := base.stored(); len(files) != 1 {
			t.Errorf("doctor left something in the store: %q", files)
		}
	})
	t.Run("the callback is taken", func(t *testing.T) {
		u, _ := url.Parse(base.env["SCHWAB_CALLBACK_URL"])
		l, err := net.Listen("tcp", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		has(t, base.examined(1, "schwab"), "callback", "wrong", "paste")
	})
	t.Run("callbacks that look odd or cannot work", func(t *testing.T) {
		has(t, base.with("SCHWAB_CALLBACK_URL", "https://127.0.0.1:8182/cb/").examined(0, "schwab"), "callback", "note", "slash")
		has(t, base.with("SCHWAB_CALLBACK_URL", "HTTPS://127.0.0.1:8182").examined(0, "schwab"), "callback", "note", "upper case")
		has(t, base.with("SCHWAB_CALLBACK_URL", "https://trader.example/cb").examined(0, "schwab"), "callback", "note", "pasted")
		has(t, base.with("SCHWAB_CALLBACK_URL", "http://localhost:8182").examined(2, "schwab"), "callback", "wrong", "localhost")
		has(t, base.with("SCHWAB_CALLBACK_URL", testSecret).examined(2, "schwab"), "callback", "wrong")
	})
	t.Run("settings that no website shows", func(t *testing.T) {
		has(t, base.with("SCHWAB_APP_KEY", `"`+testKey+`"`).examined(2, "schwab"), "settings", "wrong", "quotation")
		has(t, base.with("SCHWAB_APP_SECRET", testSecret+" # mine").examined(2, "schwab"), "settings", "wrong", "white space")
		has(t, base.with("SCHWAB_APP_SECRET", "<secret>").examined(2, "schwab"), "settings", "wrong", "example")
		has(t, base.with("SCHWAB_APP_SECRET", testKey).examined(2, "schwab"), "settings", "wrong", "the same")
		live := base.with("SCHWAB_BASE_URL", "")
		has(t, live.examined(3, "schwab"), "settings", "note", "32 or 48")
		has(t, live.with("SCHWAB_APP_KEY", strings.Repeat("k", 48), "SCHWAB_APP_SECRET", strings.Repeat("s", 63)).examined(3, "schwab"), "settings", "note", "63 characters", "16 or 64")
	})
	t.Run("settings and stores that cannot be read", func(t *testing.T) {
		has(t, base.with("BROKERAUTH_STORE", testSecret).examined(2, "schwab"), "store", "wrong")
		has(t, base.with("BROKERAUTH_LOG", "loud").examined(2, "schwab"), "settings", "wrong", "debug")
		has(t, base.with("SCHWAB_APP_SECRET", "", "SCHWAB_APP_SECRET_FILE", filepath.Join(base.dir, "none")).examined(2, "schwab"), "settings", "wrong", "SCHWAB_APP_SECRET_FILE")
		has(t, base.with("https_proxy", "http://user:"+testSecret+"@127.0.0.1:1").examined(0, "schwab"), "proxy", "note")
	})
	t.Run("a record that is damaged", func(t *testing.T) {
		record := base.record()
		text, err := os.ReadFile(record)
		if err != nil {
			t.Fatal(err)
		}
		defer base.write(strings.TrimPrefix(record, base.dir), string(text), 0o600)
		if err := os.WriteFile(record, text[:20], 0o600); err != nil {
			t.Fatal(err)
		}
		has(t, base.examined(1, "schwab"), "login", "wrong", "corrupt", "brokerauth login schwab")
	})
	if runtime.GOOS != "windows" {
		t.Run("a store that is open to others", func(t *testing.T) {
			dir := filepath.Dir(base.record())
			os.Chmod(dir, 0o777)
			defer os.Chmod(dir, 0o700)
			has(t, base.examined(1, "schwab"), "store", "wrong", "chmod 700", "$HOME")
		})
	}
	if runtime.GOOS == "linux" {
		t.Run("no keyring and no other store", func(t *testing.T) {
			p := base.with("BROKERAUTH_STORE", "", "XDG_STATE_HOME", filepath.Join(base.dir, "none"), "DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent/bus")
			findings := p.examined(1, "schwab")
			has(t, findings, "store", "wrong", "no keyring", "--store disk")
			if n := len(slices.DeleteFunc(findings, func(f finding) bool { return f.State != "wrong" })); n != 1 {
				t.Errorf("it says so %d times", n)
			}
		})
	}
	t.Run("a login that has ended", func(t *testing.T) {
		base.broker.RevokeLogins()
		base.run("refresh", "schwab")
		has(t, base.examined(3, "schwab"), "last error", "wrong", "nothing but a new one helps", "HTTP 400", "brokerauth login schwab")
	})
	t.Run("several things", func(t *testing.T) {
		p := base.with("SCHWAB_APP_KEY", "", "BROKERAUTH_STORE", "disk:")
		wantAll(t, p.must(2, "doctor", "schwab").errors, "2 things must be mended: schwab settings, then store")
		u, _ := url.Parse(base.env["SCHWAB_CALLBACK_URL"])
		l, err := net.Listen("tcp", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		r := base.must(3, "doctor", "schwab")
		wantAll(t, r.errors, "2 things must be mended: schwab callback, then schwab last error\n") // to log in is the second
	})
	t.Run("a login that was moved", func(t *testing.T) {
		base.login()
		base.must(0, "export", "schwab", "--move")
		has(t, base.examined(3, "schwab"), "login", "wrong", "moved")
	})
	t.Run("a broker that has ended", func(t *testing.T) {
		p := bare.with("TD_CLIENT_ID", "key", "BROKERAUTH_STORE", "disk:"+filepath.Join(base.dir, "empty"))
		has(t, p.examined(0), "settings", "note", "brokerauth migrate")
		has(t, p.examined(2, "tdameritrade"), "settings", "wrong", "2024")
	})
}

func TestDoctorFiles(t *testing.T) {
	t.Parallel()
	base := newPlace(t, emulator.Config{})
	base.login()
	p := base // its environment comes first, so nobody is told of the file
	text := "SCHWAB_APP_SECRET=" + testSecret + "\n"

	p.write(".env", text, 0o600)
	has(t, p.examined(0, "schwab"), ".env", "ok")
	if runtime.GOOS != "windows" {
		p.write(".env", text, 0o644)
		has(t, p.examined(1, "schwab"), ".env", "wrong", "0644", `chmod 600 "$HOME`)
		p.write(".env", text, 0o600)
	}
	p.write(".env", "SCHWAB_BASE_URL=https://evil.example\n", 0o600)
	has(t, p.examined(2, "schwab"), "settings", "wrong", "SCHWAB_BASE_URL", ".env")
	p.write(".env", text, 0o600)

	if _, err := exec.LookPath("git"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("there is no git here")
	}
	git := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-C", p.dir}, args...)...)
		cmd.Env = append(os.Environ(), "HOME="+p.dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %s: %v\n%s", args, err, out)
		}
	}
	git("init", "-q")
	has(t, p.examined(1, "schwab"), ".env", "wrong", "git would take", ".gitignore")
	p.write(".gitignore", "*.env\n", 0o600)
	has(t, p.examined(0, "schwab"), ".env", "ok")
	git("add", "--force", ".env")
	has(t, p.examined(1, "schwab"), ".env", "wrong", "is in git", "git rm --cached")
	git("rm", "-q", "--cached", ".env")

	// A repository must not have a program of its own run.
	ran := filepath.Join(p.dir, "ran")
	git("config", "core.fsmonitor", "touch "+ran)
	p.examined(0, "schwab")
	if _, err := os.Stat(ran); err == nil {
		t.Error("doctor ran a repository's program")
	}

	// Nor have one fetch what it lacks: here a .gitignore that is in its index alone.
	git("config", "--unset", "core.fsmonitor")
	git("add", ".gitignore")
	git("update-index", "--skip-worktree", ".gitignore")
	for name, value := range map[string]string{
		"core.repositoryFormatVersion": "1", "extensions.partialClone": "origin", "remote.origin.promisor": "true",
		"remote.origin.url": p.dir, "remote.origin.uploadpack": "touch '" + ran + "'; false",
	} {
		git("config", name, value)
	}
	for _, name := range []string{".gitignore", filepath.Join(".git", "objects")} {
		if err := os.RemoveAll(filepath.Join(p.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	p.write(filepath.Join(".git", "objects", "info", "packs"), "", 0o600)
	p.run("doctor", "schwab") // what git makes of it depends on its version
	if _, err := os.Stat(ran); err == nil {
		t.Error("doctor ran a program that a repository names to fetch from")
	}
	p.write(".gitignore", "*.env\n", 0o600)
	p.ownSettings("default", "SCHWAB_CALLBACK_URL="+p.env["SCHWAB_CALLBACK_URL"]+"\n")
	has(t, p.examined(0, "schwab"), "default.env", "ok")
}

func TestDoctorOnline(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	has(t, p.examined(3, "schwab", "--online"), "online", "ok", "can be reached")
	p.login()

	before := len(p.broker.Requests())
	findings := p.examined(0, "schwab", "--online")
	hasNone(t, findings)
	has(t, findings, "online", "ok", "trader 200", "market data 200")
	has(t, findings, "clock", "ok", "agrees")
	if n := len(p.broker.Requests()) - before; n != 4 { // it was examined twice
		t.Errorf("%d requests for two examinations of two products", n)
	}
	refused := emulator.Fault{API: true, Status: 401, Body: `{"errors":[]}`}
	for range 2 {
		// For text and JSON: the trader API answers, the other one refuses.
		p.broker.Inject(emulator.Fault{API: true}, refused, emulator.Fault{API: true}, refused)
	}
	has(t, p.examined(2, "schwab", "--online"), "online", "wrong", "trader 200, market data 401", "lacks market data", "Market Data Production")
	refused.Times = -1
	p.broker.Inject(refused)
	has(t, p.examined(1, "schwab", "--online"), "online", "wrong", "takes this token for nothing", "brokerauth refresh schwab")
	p.broker.Inject(emulator.Fault{API: true, Times: -1, Status: 503})
	has(t, p.examined(4, "schwab", "--online"), "online", "wrong", "503")
	p.broker.Inject(emulator.Fault{API: true, Times: -1, Drop: true})
	has(t, p.examined(4, "schwab", "--online"), "online", "wrong", "cannot be reached")
	p.broker.Inject()
	if n := p.calls("refresh_token"); n != 0 {
		t.Errorf("doctor renewed the token %d times", n)
	}

	p.broker.Advance(330 * time.Second)
	has(t, p.examined(1, "schwab", "--online"), "clock", "wrong", "5 min behind schwab's")
	p.broker.Advance(-660 * time.Second)
	has(t, p.examined(1, "schwab", "--online"), "clock", "wrong", "5 min ahead of schwab's")
}

func TestDoctorGrant(t *testing.T) {
	t.Parallel()
	base := newPlace(t, emulator.Config{}).at("tastytrade", emulator.Config{})
	findings := base.examined(0, "tastytrade", "--online")
	hasNone(t, findings)
	has(t, findings, "login", "ok", "nobody logs in")
	has(t, findings, "online", "ok", "accounts 200", "quotes 200")

	jwt := func(typ, iss string) string {
		part := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
		return part(fmt.Sprintf(`{"typ":%q}`, typ)) + "." + part(fmt.Sprintf(`{"iss":%q}`, iss)) + ".c2ln"
	}
	live := base.with("TASTY_BASE_URL", "")
	has(t, live.with("TASTY_REFRESH_TOKEN", "cut").examined(0, "tastytrade"), "settings", "note", "JWT")
	has(t, live.with("TASTY_REFRESH_TOKEN", jwt("at+jwt", "https://api.tastytrade.com")).examined(2, "tastytrade"), "settings", "wrong", "access token")
	has(t, live.with("TASTY_REFRESH_TOKEN", jwt("rt+jwt", "https://api.cert.tastyworks.com")).examined(2, "tastytrade"), "settings", "wrong", "tastytrade-sandbox")
	hasNone(t, live.with("TASTY_REFRESH_TOKEN", jwt("rt+jwt", "https://api.tastytrade.com")).examined(0, "tastytrade"))
	has(t, live.with("TASTY_REFRESH_TOKEN", "").examined(2, "tastytrade"), "settings", "wrong", "only one of")
}
