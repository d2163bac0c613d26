package main

import (
	"cmp"
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/brokerauth/brokerauth/conformance/emulator"
)

const testGrant = "emulated.grant-nobody-may-see"

// at returns p's home with another emulated broker in it.
func (p *place) at(name string, config emulator.Config) *place {
	p.t.Helper()
	config.ClientID, config.ClientSecret = cmp.Or(config.ClientID, testKey), testSecret
	if strings.HasPrefix(name, "tastytrade") {
		config.Grant = cmp.Or(config.Grant, testGrant)
	}
	broker, err := emulator.New(name, config)
	if err != nil {
		p.t.Fatal(err)
	}
	before := &gate{broker: broker}
	server := httptest.NewServer(before)
	p.t.Cleanup(server.Close)
	var c *place
	switch name {
	case "schwab":
		c = p.with("SCHWAB_BASE_URL", server.URL)
	case "tdameritrade":
		c = p.with("TD_CLIENT_ID", testKey, "TD_CALLBACK_URL", "http://"+freeAddress(p.t), "TD_BASE_URL", server.URL)
	case "tastytrade":
		c = p.with("TASTY_CLIENT_SECRET", testSecret, "TASTY_REFRESH_TOKEN", config.Grant, "TASTY_BASE_URL", server.URL)
	default:
		c = p.with("TASTY_SANDBOX_CLIENT_SECRET", testSecret, "TASTY_SANDBOX_REFRESH_TOKEN", config.Grant, "TASTY_SANDBOX_BASE_URL", server.URL)
	}
	c.broker, c.gate = broker, before
	p.brokers = append(p.brokers, broker)
	return c
}

// quiet fails the test if a run of p has shown a secret.
func (p *place) quiet() {
	p.t.Helper()
	said := p.all.String()
	for _, secret := range append(p.broker.Secrets(), testSecret, testGrant) {
		if strings.Contains(said, secret) {
			p.t.Errorf("a secret was printed: %.12s…", secret)
		}
	}
}

// stored returns the files of the logins that the disk stores below p's home hold.
func (p *place) stored() (files []string) {
	p.t.Helper()
	filepath.WalkDir(p.dir, func(path string, entry os.DirEntry, err error) error {
		if name := filepath.Base(path); err == nil && entry.Type().IsRegular() && strings.HasSuffix(name, ".json") &&
			strings.Count(name, ".") == 3 && name[0] != '~' {
			files = append(files, path)
		}
		return nil
	})
	return files
}

func TestTDAmeritrade(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).at("tdameritrade", emulator.Config{})
	p.env["BROKERAUTH_LOG"] = "debug"
	wantAll(t, p.must(0, "login", "tdameritrade").out, "log in again by", "in 89 d")
	token := p.must(0, "token", "tdameritrade").out
	p.must(0, "refresh", "tdameritrade")
	if again := p.must(0, "token", "tdameritrade").out; again == token || !strings.HasPrefix(again, "emulated.") {
		t.Errorf("after the refresh the token is %q", again)
	}
	wantAll(t, p.must(0, "status", "tdameritrade").out, "scopes: PlaceTrades AccountAccess MoveMoney")
	p.broker.RevokeLogins()
	if r := p.run("refresh", "tdameritrade"); r.code != 3 || !strings.Contains(r.errors, "run: brokerauth login tdameritrade") {
		t.Errorf("a dead login: exit code %d\n%s", r.code, r.errors)
	}
	p.must(0, "login", "tdameritrade")
	p.must(0, "logout", "tdameritrade")
	p.quiet()

	// The real one is gone, and nobody is asked to log in there.
	real := p.with("TD_BASE_URL", "")
	for _, change := range [][]string{nil, {"TD_CLIENT_ID", "", "TD_CALLBACK_URL", ""}} {
		for _, command := range []string{"login", "token", "refresh", "status"} {
			wantAll(t, real.with(change...).must(2, command, "tdameritrade").errors, "May 2024", "brokerauth migrate", "porting-td-to-schwab.md")
		}
	}
	wantAll(t, real.must(2, "export", "tdameritrade", "--move").errors, "brokerauth migrate")
	wantAll(t, p.with("TD_CLIENT_ID", "", "TD_CALLBACK_URL", "").must(2, "login", "tdameritrade").errors,
		"TD_CLIENT_ID", "TD_CALLBACK_URL", "http://localhost:8080")
	wantAll(t, p.with("TD_CLIENT_ID", testKey+"@OTHER.APP").must(2, "login", "tdameritrade").errors, "@AMER.OAUTHAP")
}

// A grant in the settings needs no login, and no disk.
func TestGrantInSettings(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).at("tastytrade", emulator.Config{})
	for _, args := range [][]string{{"status", "tastytrade"}, {"status"}} {
		wantAll(t, p.must(0, args...).out, "tastytrade: ", "none yet", "never")
	}
	if token := p.must(0, "token", "tastytrade", "--store", "memory").out; !strings.HasPrefix(token, "emulated.") {
		t.Errorf("token prints %q", token)
	}
	first := p.must(0, "token", "tastytrade").out
	if again := p.must(0, "token", "tastytrade").out; again != first || p.calls("refresh_token") != 2 {
		t.Errorf("the first token was not kept: %d calls", p.calls("refresh_token"))
	}
	wantAll(t, p.must(0, "status", "tastytrade").out, "14 min left", "log in again: never", "scopes: read trade openid")
	var status map[string]any
	if err := json.Unmarshal([]byte(p.must(0, "status", "tastytrade", "--json", "--within", "90d").out), &status); err != nil {
		t.Fatal(err)
	}
	if status["logged_in"] != true || status["login_by"] != nil || len(status["scopes"].([]any)) != 3 {
		t.Errorf("status --json: %v", status)
	}
	p.quiet()

	wantAll(t, p.with("TASTY_CLIENT_SECRET", "wrong").must(2, "refresh", "tastytrade").errors, "Client secret mismatch", "ends every grant")
	p.must(0, "refresh", "tastytrade")
	p.broker.RevokeLogins()
	wantAll(t, p.must(2, "refresh", "tastytrade").errors, "Grant revoked", "Create Grant")
	p.must(2, "status", "tastytrade")

	// A grant made anew is a new login, whatever was said of the old one.
	anew := p.at("tastytrade", emulator.Config{Grant: "emulated.another"})
	anew.must(0, "token", "tastytrade")

	bare := p.with("TASTY_CLIENT_SECRET", "", "TASTY_REFRESH_TOKEN", "", "TASTY_USERNAME", "me", "TASTY_PASSWORD", testSecret)
	for command, code := range map[string]int{"token": 3, "refresh": 3, "status": 3, "login": 2} {
		wantAll(t, bare.must(code, command, "tastytrade").errors, "user name and password ended", "Create Grant")
	}
	for _, missing := range []string{"TASTY_CLIENT_SECRET", "TASTY_REFRESH_TOKEN"} {
		wantAll(t, p.with(missing, "").must(2, "token", "tastytrade").errors, "only one of", missing)
	}
	wantAll(t, p.with("TASTY_BASE_URL", "https://api.cert.tastyworks.com").must(2, "token", "tastytrade").errors, "tastytrade-sandbox")
}

func TestGrantInWorkingFile(t *testing.T) {
	t.Parallel()
	set := newPlace(t, emulator.Config{}).at("tastytrade", emulator.Config{})
	p := set.with("TASTY_CLIENT_SECRET", "", "TASTY_REFRESH_TOKEN", "")
	text := "TASTY_CLIENT_SECRET=" + testSecret + "\nTASTY_REFRESH_TOKEN=" + testGrant + "\n"
	p.write(".env", text, 0o600)
	wantAll(t, p.must(0, "token", "tastytrade").errors, "TASTY_CLIENT_SECRET, TASTY_REFRESH_TOKEN taken from .env")
	for _, name := range []string{"TASTY_BASE_URL", "TASTY_SANDBOX_BASE_URL", "TD_BASE_URL"} {
		p.write(".env", text+name+"=https://evil.example\n", 0o600)
		wantAll(t, p.must(2, "token", "tastytrade").errors, name)
	}
	p.quiet()
}

// keepGrant stores tastytrade's grant, as login does with one that is typed.
func (p *place) keepGrant() {
	p.t.Helper()
	p.must(0, "import", p.write("session.json", fresh(p.t, "tastytrade.json", "emulated.old", testGrant), 0o600), "--move")
}

// A grant in the settings is tried by a login, and goes nowhere.
func TestGrantIsNotCopied(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).at("tastytrade", emulator.Config{})
	wantAll(t, p.must(2, "login", "tastytrade", "--store", "memory").errors, "lost")
	wantAll(t, p.must(2, "login", "tastytrade", "--flow", "paste").errors, "--flow")
	p.with("TASTY_CLIENT_SECRET", "wrong").must(2, "login", "tastytrade")
	p.with("TASTY_CLIENT_SECRET", "two words").must(2, "login", "tastytrade")
	for _, missing := range []string{"TASTY_CLIENT_SECRET", "TASTY_REFRESH_TOKEN"} {
		wantAll(t, p.with(missing, "").must(2, "login", "tastytrade").errors, "only one of", missing)
	}
	wantAll(t, p.must(0, "login", "tastytrade").out, "log in again: never", "stay in the settings", "unset TASTY_CLIENT_SECRET and TASTY_REFRESH_TOKEN")
	if n := p.calls("refresh_token"); n != 1 {
		t.Errorf("the grant was tried %d times", n)
	}
	wantAll(t, p.must(0, "login", "tastytrade", "--within", "12h").out, "still logged in")
	if text := p.must(0, "status").out; strings.Count(text, "tastytrade: ") != 1 {
		t.Errorf("there is more than one login:\n%s", text)
	}
	for _, file := range p.stored() {
		if text, err := os.ReadFile(file); err != nil || strings.Contains(string(text), testSecret) {
			t.Errorf("%s holds the client secret: %v", file, err)
		}
	}
	p.with("TASTY_CLIENT_SECRET", "", "TASTY_REFRESH_TOKEN", "").must(3, "token", "tastytrade")
	p.quiet()
}

func TestGrantStored(t *testing.T) {
	t.Parallel()
	home := newPlace(t, emulator.Config{})
	set := home.at("tastytrade", emulator.Config{})
	p := set.with("TASTY_CLIENT_SECRET", "", "TASTY_REFRESH_TOKEN", "")

	wantAll(t, p.must(3, "token", "tastytrade").errors, "run: brokerauth login tastytrade")
	p.must(3, "status", "tastytrade")
	wantAll(t, p.must(2, "login", "tastytrade").errors, "TASTY_CLIENT_SECRET", "TASTY_REFRESH_TOKEN", "terminal")
	wantAll(t, p.must(3, "status").errors, "no login is stored") // nothing that failed was stored

	p.keepGrant()
	token := p.must(0, "token", "tastytrade").out
	if !strings.HasPrefix(token, "emulated.") {
		t.Errorf("token prints %q", token)
	}
	wantAll(t, p.must(0, "status").out, "tastytrade: access: 14 min left; log in again: never", "scopes: read trade openid")
	p.must(0, "refresh", "tastytrade")
	if p.must(0, "token", "tastytrade").out == token {
		t.Error("the refresh left the old token")
	}
	calls := p.calls("refresh_token")
	wantAll(t, p.must(0, "login", "tastytrade", "--within", "12h").out, "still logged in")
	if p.calls("refresh_token") != calls {
		t.Error("a login that works was proved again")
	}

	// It reaches no other address, and neither does the sandbox know it.
	elsewhere := p.at("tastytrade", emulator.Config{})
	elsewhere.env["TASTY_CLIENT_SECRET"], elsewhere.env["TASTY_REFRESH_TOKEN"] = "", ""
	elsewhere.must(3, "token", "tastytrade")
	elsewhere.must(3, "refresh", "tastytrade")
	if n := len(elsewhere.broker.Requests()); n != 0 {
		t.Errorf("the other address got %d requests", n)
	}
	p.must(3, "token", "tastytrade-sandbox")

	p.broker.RevokeLogins()
	wantAll(t, p.must(2, "refresh", "tastytrade").errors, "Grant revoked", "run: brokerauth login tastytrade")
	p.must(2, "status", "tastytrade")
	wantAll(t, p.must(0, "logout", "tastytrade").out, "logged out", "my.tastytrade.com")
	p.must(3, "token", "tastytrade")
	p.quiet()
	set.quiet()
}

// A grant that was mistyped once leaves a record, which asks nobody to log in after it is gone from the settings.
func TestGrantMistyped(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).at("tastytrade", emulator.Config{})
	p.login()
	p.with("TASTY_REFRESH_TOKEN", "emulated.mistyped").must(2, "token", "tastytrade")
	unset := p.with("TASTY_REFRESH_TOKEN", "", "TASTY_CLIENT_SECRET", "", "TASTY_BASE_URL", "")
	wantAll(t, unset.must(0, "status").out, "tastytrade: not logged in", "does not count", "brokerauth logout tastytrade --identity")
	unset.must(3, "status", "tastytrade")
}

// A partner's app logs in on tastytrade's page.
func TestPartner(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).at("tastytrade", emulator.Config{}).with("TASTY_REFRESH_TOKEN", "", "TASTY_CLIENT_ID", testKey,
		"TASTY_CALLBACK_URL", "http://"+freeAddress(t))
	p.must(3, "token", "tastytrade")
	r := p.must(0, "login", "tastytrade")
	wantAll(t, r.out, "tastytrade: logged in", "log in again: never")
	if n := p.calls("authorization_code"); n != 1 {
		t.Errorf("the broker saw %d logins", n)
	}
	p.must(0, "token", "tastytrade")
	wantAll(t, p.must(0, "status").out, "tastytrade: access: ")
	r = p.must(0, "doctor", "tastytrade", "--online")
	wantAll(t, r.out, "accounts 200, quotes 200")
	wantAll(t, p.with("TASTY_REFRESH_TOKEN", testGrant).must(2, "token", "tastytrade").errors, "TASTY_CALLBACK_URL", "TASTY_REFRESH_TOKEN")
	wantAll(t, p.with("TASTY_CLIENT_ID", "").must(2, "login", "tastytrade").errors, "client id")
	p.quiet()
}

func TestSandbox(t *testing.T) {
	t.Parallel()
	live := newPlace(t, emulator.Config{}).at("tastytrade", emulator.Config{})
	both := live.at("tastytrade-sandbox", emulator.Config{Grant: "emulated.sandbox"})
	one, other := both.must(0, "token", "tastytrade").out, both.must(0, "token", "tastytrade-sandbox").out
	if one == other || live.calls("refresh_token") != 1 || both.calls("refresh_token") != 1 {
		t.Errorf("live has seen %d calls, the sandbox %d, want one each", live.calls("refresh_token"), both.calls("refresh_token"))
	}
	wantAll(t, both.must(0, "status").out, "tastytrade: ", "tastytrade-sandbox: ")
}

// pyTD's switch keeps tokens off the disk, or says why it cannot.
func TestStoreTokens(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).at("tdameritrade", emulator.Config{}).with("TD_STORE_TOKENS", "False", "BROKERAUTH_STORE", "")
	for _, command := range []string{"login", "token", "refresh"} {
		for _, broker := range []string{"tdameritrade", "schwab"} {
			wantAll(t, p.must(2, command, broker).errors, "TD_STORE_TOKENS", "--store")
		}
	}
	if n := len(p.broker.Requests()); n != 0 {
		t.Errorf("the broker was asked %d times for a login that could not be kept", n)
	}
	p.must(0, "login", "tdameritrade", "--store", "disk")
	p.with("BROKERAUTH_STORE", "disk").must(0, "token", "tdameritrade")
	p.with("TD_STORE_TOKENS", "True").must(0, "token", "tdameritrade")

	grant := p.at("tastytrade", emulator.Config{})
	r := grant.must(0, "token", "tastytrade")
	wantAll(t, r.errors, "TD_STORE_TOKENS")
	if files := len(grant.stored()); files != 1 { // TD Ameritrade's
		t.Errorf("%d logins are stored, want 1", files)
	}
	wantAll(t, grant.must(2, "login", "tastytrade").errors, "TD_STORE_TOKENS")
}
