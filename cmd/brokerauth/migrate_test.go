package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/porting"
)

func TestMigrate(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).with("SCHWAB_BASE_URL", "")
	bare := p.with("SCHWAB_APP_KEY", "", "SCHWAB_APP_SECRET", "", "SCHWAB_CALLBACK_URL", "",
		"TD_CONSUMER_KEY", "OLDKEY@AMER.OAUTHAP", "TD_CALLBACK_URL", "http://localhost:8080", "TD_STORE_TOKENS", "False", "BROKERAUTH_STORE", "")
	r := bare.must(1, "migrate")
	wantAll(t, r.out, "SCHWAB_CALLBACK_URL=https://127.0.0.1:8080", "unset TD_STORE_TOKENS", "SCHWAB_APP_KEY", "accountNumbers")
	wantAll(t, r.errors, "left to do")
	if strings.Contains(r.out, "BROKERAUTH_STORE") {
		t.Errorf("it names a store that no login outlives:\n%s", r.out)
	}
	flagged := bare.with("TD_CONSUMER_KEY", "", "TD_CALLBACK_URL", "", "SCHWAB_APP_KEY", "oldkey")
	r = flagged.must(1, "migrate", "--client-id", "OLDKEY@AMER.OAUTHAP", "--callback", "http://localhost:9000")
	wantAll(t, r.out, "SCHWAB_CALLBACK_URL=https://127.0.0.1:9000", "is TD Ameritrade's consumer key")

	for _, callback := range []string{"bad%zz", "localhost:8080", "https://"} {
		wantAll(t, bare.must(2, "migrate", "--callback", callback).errors, callback, "http://localhost:8080")
	}
	bare.must(1, "migrate", "--callback", "urn:ietf:wg:oauth:2.0:oob")
	wantAll(t, bare.must(1, "migrate", "--callback", "http://localhost:9000, http://127.0.0.1").out, "SCHWAB_CALLBACK_URL=https://127.0.0.1:9000")

	var findings []porting.Finding
	if err := json.Unmarshal([]byte(bare.must(1, "migrate", "--json").out), &findings); err != nil {
		t.Fatal(err)
	}
	todo := 0
	for _, f := range findings {
		if f.Todo != "" {
			todo++
		}
	}
	if todo != 5 || !strings.Contains(r.errors, "5 ") {
		t.Errorf("%d things are left to do, want 5: %s", todo, r.errors)
	}

	// Where nothing of an old program is, that is all it says.
	none := p.with("SCHWAB_APP_KEY", "")
	r = none.must(1, "migrate")
	wantAll(t, r.out, "TD_CONSUMER_KEY", "environment", "default.env", "brokerauth migrate --client-id ID", "porting-td-to-schwab.md")
	if lines := strings.Count(r.out, "\n"); lines > 8 {
		t.Errorf("it says in %d lines that there is nothing:\n%s", lines, r.out)
	}
	p.must(0, "migrate") // all that Schwab needs is set
	if err := json.Unmarshal([]byte(none.must(1, "migrate", "--json").out), &findings); err != nil || len(findings) < 10 {
		t.Errorf("--json leaves out what changes for every program: %d findings, %v", len(findings), err)
	}

	// The settings may stand in a file, and an old token file is one thing more.
	done := p.with("TD_CONSUMER_KEY", "OLDKEY", "SCHWAB_APP_SECRET", "")
	done.write(".env", "SCHWAB_APP_SECRET="+testSecret+"\nTD_CALLBACK_URL=http://localhost:8080\n", 0o600)
	if r := done.must(0, "migrate"); !strings.Contains(r.out, "Nothing is left to do.") || strings.Contains(r.out, "SCHWAB_CALLBACK_URL=") || !strings.Contains(r.errors, ".env") {
		t.Errorf("with all that is new set: %s%s", r.out, r.errors)
	}
	state := done.write("state.json", fresh(t, "pytd.json", "emulated.a", "emulated.r"), 0o600)
	wantAll(t, done.run("migrate", "--state", state).out, "delete the old token file")
	for _, text := range []string{"{", `{"hello":"world"}`} {
		out := done.run("migrate", "--state", done.write("junk.json", text, 0o600)).out
		if wantAll(t, out, "delete the old token file if nothing else uses it"); strings.Contains(out, ": corrupt") || strings.Contains(out, "unsupported operation") {
			t.Errorf("of a file that holds %s it says what is for programs:\n%s", text, out)
		}
	}
	for file, code := range map[string]int{state: 1, state + "x": 2} {
		if r := done.run("migrate", "--state", file); r.code != code {
			t.Errorf("with the old token file %s: exit code %d, want %d", file, r.code, code)
		}
	}
	if n := len(p.broker.Requests()); n != 0 {
		t.Errorf("the broker was asked %d times", n)
	}
	for _, secret := range []string{testSecret, "OLDKEY", testKey, "emulated.r"} {
		if strings.Contains(p.all.String(), secret) {
			t.Errorf("it shows %q", secret)
		}
	}
}
