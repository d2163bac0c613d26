package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/porting"
)

// elsewhere returns another home with the same settings.
func (p *place) elsewhere() *place {
	p.t.Helper()
	dir := p.t.TempDir()
	c := p.with("HOME", dir, "XDG_CONFIG_HOME", filepath.Join(dir, "config"), "XDG_STATE_HOME", filepath.Join(dir, "state"),
		"AppData", filepath.Join(dir, "config"), "LocalAppData", filepath.Join(dir, "state"))
	c.dir = dir
	p.t.Cleanup(c.hunt)
	return c
}

// pipe runs "brokerauth from" in p and hands what it writes to "brokerauth to" in other, as a shell does.
func (p *place) pipe(other *place, from, to []string) (sent, taken result) {
	p.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		p.t.Fatal(err)
	}
	var said [2]bytes.Buffer
	var out bytes.Buffer
	export, take := p.command(from...), other.command(to...)
	export.Stdout, export.Stderr = w, &said[0]
	take.Stdin, take.Stdout, take.Stderr = r, &out, &said[1]
	if err := export.Start(); err != nil {
		p.t.Fatal(err)
	}
	if err := take.Start(); err != nil {
		p.t.Fatal(err)
	}
	w.Close()
	r.Close()
	sent = p.ended(export.Wait(), from, new(bytes.Buffer), &said[0])
	taken = other.ended(take.Wait(), to, &out, &said[1])
	return sent, taken
}

func TestMove(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	other := p.elsewhere()
	p.login()
	token := p.must(0, "token", "schwab").out
	var before, after map[string]any
	if err := json.Unmarshal([]byte(p.must(0, "status", "schwab", "--json").out), &before); err != nil {
		t.Fatal(err)
	}

	sent, taken := p.pipe(other, []string{"export", "schwab", "--move"}, []string{"import", "-"})
	if sent.code != 0 || taken.code != 0 || taken.errors != "" {
		t.Fatalf("export: exit code %d, %s\nimport: exit code %d, %s", sent.code, sent.errors, taken.code, taken.errors)
	}
	wantAll(t, sent.errors, "if it never arrived", "brokerauth login schwab")
	if got := other.must(0, "token", "schwab").out; got != token {
		t.Error("the other home has another token")
	}
	if err := json.Unmarshal([]byte(other.must(0, "status", "schwab", "--json").out), &after); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"logged_in_at", "login_by", "access_expires_at"} {
		if before[name] == nil || before[name] != after[name] {
			t.Errorf("%s was %v and is %v", name, before[name], after[name])
		}
	}
	wantAll(t, p.must(3, "token", "schwab").errors, "moved")
	wantAll(t, p.must(3, "status", "schwab").out, "moved", "if it never arrived")
	wantAll(t, p.must(3, "export", "schwab", "--move").errors, "moved")
	if n := p.calls("refresh_token"); n != 0 {
		t.Errorf("the move cost %d refreshes", n)
	}
	for _, file := range p.stored() {
		if text, err := os.ReadFile(file); err != nil || strings.Contains(string(text), strings.TrimSpace(token)) {
			t.Errorf("%s still holds the login: %v", file, err)
		}
	}
	other.must(0, "refresh", "schwab")
	// And back. To hand a login on takes no settings.
	bare := other.with("SCHWAB_APP_KEY", "", "SCHWAB_APP_SECRET", "", "SCHWAB_CALLBACK_URL", "")
	if sent, taken = bare.pipe(p, []string{"export", "schwab", "--move"}, []string{"import", "-"}); sent.code != 0 || taken.code != 0 {
		t.Fatalf("back: %s%s", sent.errors, taken.errors)
	}
	p.must(0, "refresh", "schwab")
	p.quiet()
	other.quiet()
}

func TestMoveGrant(t *testing.T) {
	t.Parallel()
	set := newPlace(t, emulator.Config{}).at("tastytrade", emulator.Config{})
	wantAll(t, set.must(2, "export", "tastytrade", "--move").errors, "settings")
	p := set.with("TASTY_CLIENT_SECRET", "", "TASTY_REFRESH_TOKEN", "")
	p.keepGrant()
	other := p.elsewhere()
	if sent, taken := p.pipe(other, []string{"export", "tastytrade", "--move"}, []string{"import", "-"}); sent.code != 0 || taken.code != 0 {
		t.Fatalf("%s%s", sent.errors, taken.errors)
	}
	other.must(0, "refresh", "tastytrade")
	p.must(3, "token", "tastytrade")
	// What was stored for this address goes to no other.
	sent, taken := other.pipe(p.elsewhere().with("TASTY_BASE_URL", ""), []string{"export", "tastytrade", "--copy"}, []string{"import", "-"})
	if sent.code != 0 || taken.code != 2 {
		t.Errorf("another base URL: export %d, import %d\n%s%s", sent.code, taken.code, sent.errors, taken.errors)
	}
	live, err := porting.Export(brokerauth.Info{Name: "tastytrade"}, &brokerauth.Token{AccessToken: "emulated.live",
		RefreshToken: "emulated.live", Extra: map[string]string{clientSecret: testSecret}})
	if err != nil {
		t.Fatal(err)
	}
	p.must(2, "import", p.write("live.json", string(live), 0o600))
}

func TestExport(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	wantAll(t, p.must(3, "export", "schwab", "--move").errors, "run: brokerauth login schwab")
	p.login()
	for line, want := range map[string]string{
		"export schwab": "--move", "export schwab --move --copy": "--copy", "export --move": "one broker",
		"export schwab --copy --format pickle": "pickle", "export tastytrade --copy --format schwab-py": "schwab-py",
	} {
		if r := p.must(2, strings.Fields(line)...); r.out != "" || !strings.Contains(r.errors, want) {
			t.Errorf("brokerauth %s: %q\n%s", line, r.out, r.errors)
		}
	}

	// A copy leaves the login here.
	duplicate := filepath.Join(p.dir, "copy.json")
	f, err := os.OpenFile(duplicate, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := p.command("export", "schwab", "--copy")
	cmd.Stdout, cmd.Stderr = f, &said
	if err := cmd.Run(); err != nil {
		t.Fatal(err, said.String())
	}
	f.Close()
	wantAll(t, said.String(), "warning", "two places")
	if info, err := os.Stat(duplicate); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("the file that it wrote has mode %v, %v", info.Mode(), err)
	}
	p.must(0, "token", "schwab")
	other := p.elsewhere()
	wantAll(t, other.with("SCHWAB_APP_KEY", "another").must(2, "import", duplicate).errors, "another app")
	wantAll(t, other.with("SCHWAB_BASE_URL", "http://127.0.0.1:1").must(2, "import", duplicate).errors, "base URL")
	other.must(0, "import", duplicate, "--move")
	other.must(0, "refresh", "schwab")

	// So does one that would go nowhere.
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	cmd = p.command("export", "schwab", "--move")
	cmd.Stdout = null
	if err := cmd.Run(); err == nil {
		t.Error("a login was moved to nowhere")
	}
	p.must(0, "token", "schwab")

	// What cannot be written stays.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	for _, how := range []string{"--move", "--copy"} {
		said.Reset()
		cmd = p.command("export", "schwab", how)
		cmd.Stdout, cmd.Stderr = w, &said
		if err := cmd.Run(); err == nil || strings.Count(said.String(), "pipe") > 1 {
			t.Errorf("an export that nobody got: %v, %s", err, said.String())
		}
	}
	w.Close()
	wantAll(t, p.must(0, "status", "schwab").out, "log in again by")
	p.must(0, "token", "schwab")

	// schwab-py's own form keeps the age.
	written := p.run("export", "schwab", "--copy", "--format", "schwab-py").out
	found, err := porting.Read([]byte(written), nil)
	if err != nil || found.Provider != "schwab" || time.Since(found.Token.LoggedInAt) > time.Minute {
		t.Errorf("schwab-py's form reads as %+v, %v", found, err)
	}
	if strings.Contains(p.record(), "copy") {
		t.Error("the copy is in the store")
	}
}
