package main

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/internal/engine"
	"github.com/brokerauth/brokerauth/porting"
	"github.com/brokerauth/brokerauth/storage/memory"
)

const testFernet = "ZW11bGF0ZWQua2V5LmVtdWxhdGVkLmtleS5lbXVsYXQ=" // as the samples' Schwabdev was given

// tokens returns the tokens of the only stored login.
func (p *place) tokens() (access, refresh string) {
	p.t.Helper()
	text, err := os.ReadFile(p.stored()[0])
	if err != nil {
		p.t.Fatal(err)
	}
	var record struct {
		Token struct {
			Access  string `json:"access_token"`
			Refresh string `json:"refresh_token"`
		}
	}
	if err := json.Unmarshal(text, &record); err != nil || record.Token.Refresh == "" {
		p.t.Fatalf("no tokens in the record: %v", err)
	}
	return record.Token.Access, record.Token.Refresh
}

var (
	sampleEpoch = regexp.MustCompile(`\b1[67]\d{8}\b`)
	sampleDay   = regexp.MustCompile(`2026-\d\d-\d\dT`)
)

// fresh returns package porting's sample as it would be of a login two days ago, with these tokens.
func fresh(t testing.TB, name, access, refresh string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "porting", "testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	days := int(time.Since(time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC))/(24*time.Hour)) - 2
	text := sampleEpoch.ReplaceAllStringFunc(string(data), func(s string) string {
		n, _ := strconv.Atoi(s)
		return strconv.Itoa(n + days*24*60*60)
	})
	text = sampleDay.ReplaceAllStringFunc(text, func(s string) string {
		day, _ := time.Parse("2006-01-02T", s)
		return day.AddDate(0, 0, days).Format("2006-01-02T")
	})
	if strings.Contains(text, "enc:") {
		text = regexp.MustCompile(`"access_token": "enc:[^"]*"`).ReplaceAllString(text, `"access_token": "enc:`+encrypt(t, access)+`"`)
		text = regexp.MustCompile(`"refresh_token": "enc:[^"]*"`).ReplaceAllString(text, `"refresh_token": "enc:`+encrypt(t, refresh)+`"`)
	}
	text = strings.ReplaceAll(text, "emulated.access", access)
	text = strings.ReplaceAll(text, "emulated.refresh", refresh)
	return strings.ReplaceAll(text, "emulated.secret", testSecret)
}

// encrypt makes a Fernet token, as github.com/fernet/spec has it.
func encrypt(t testing.TB, text string) string {
	t.Helper()
	key, err := base64.URLEncoding.DecodeString(testFernet)
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(key[16:])
	if err != nil {
		t.Fatal(err)
	}
	iv := bytes.Repeat([]byte{7}, aes.BlockSize)
	pad := aes.BlockSize - len(text)%aes.BlockSize
	plain := append([]byte(text), bytes.Repeat([]byte{byte(pad)}, pad)...)
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(plain, plain)
	token := append(binary.BigEndian.AppendUint64([]byte{0x80}, uint64(time.Now().Unix())), iv...)
	token = append(token, plain...)
	mac := hmac.New(sha256.New, key[:16])
	mac.Write(token)
	return base64.URLEncoding.EncodeToString(mac.Sum(token))
}

func TestImport(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	p.login("--store", "disk:"+filepath.Join(p.dir, "origin"))
	access, refresh := p.tokens()
	n := 0
	for _, test := range []struct {
		name  string
		flags []string
		env   []string
		age   bool // the file says, or is told, when the user logged in
	}{
		{name: "schwab-py.json", age: true},
		{name: "schwab-go.json", age: true},
		{name: "neither.json", flags: []string{"--broker", "schwab"}, age: true},
		{name: "schwabdev-2.json", age: true},
		{name: "schwabdev-2-naive.json", age: true},
		{name: "schwabdev-3.json", age: true},
		{name: "schwabdev-3-encrypted.json", env: []string{fernetKey, testFernet}, age: true},
		{name: "trader.json", age: true},
		{name: "oauth2.json", flags: []string{"--broker", "schwab"}},
		{name: "oauth2.json", flags: []string{"--broker", "schwab", "--logged-in", time.Now().Add(-48 * time.Hour).Format(time.RFC3339)}, age: true},
	} {
		n++
		text := fresh(t, test.name, access, refresh)
		file := p.write(fmt.Sprintf("old/%d.json", n), text, 0o400)
		p := p.with(test.env...)
		store := "disk:" + filepath.Join(p.dir, "new", strconv.Itoa(n))
		args := append([]string{"import", file, "--store", store}, test.flags...)

		wantAll(t, p.must(0, append(args, "--dry-run")...).out, "a login at schwab")
		p.must(3, "status", "schwab", "--store", store)
		wantAll(t, p.must(0, args...).errors, file+" still holds the login")
		if now, err := os.ReadFile(file); err != nil || string(now) != text {
			t.Errorf("%s: the source was changed: %v", test.name, err)
		}
		var status map[string]any
		if err := json.Unmarshal([]byte(p.must(0, "status", "schwab", "--json", "--store", store).out), &status); err != nil {
			t.Fatal(err)
		}
		age, _ := status["age_seconds"].(float64)
		if days := age / 86400; test.age && (days < 1 || days > 4) || !test.age && (status["logged_in_at"] != nil || status["login_by"] != nil) {
			t.Errorf("%s: %v days old, login by %v", test.name, days, status["login_by"])
		}
		wantAll(t, p.must(0, "refresh", "schwab", "--store", store).out, "refreshed")

		moved := "disk:" + filepath.Join(p.dir, "moved", strconv.Itoa(n))
		if runtime.GOOS == "windows" {
			os.Chmod(file, 0o600)
		}
		wantAll(t, p.must(0, append([]string{"import", file, "--move", "--store", moved}, test.flags...)...).out, "Removed "+file)
		if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: after --move: %v", test.name, err)
		}
		p.must(0, "refresh", "schwab", "--store", moved)
		p.quietBut(access, refresh)
	}
	// What is here already is newer.
	file := p.write("old/again.json", fresh(t, "schwab-py.json", access, refresh), 0o600)
	wantAll(t, p.must(1, "import", file, "--move", "--store", "disk:"+filepath.Join(p.dir, "new", "1")).errors,
		"with newer tokens than these: if nothing else uses "+file+", delete it\n")
	if _, err := os.Stat(file); err != nil {
		t.Errorf("the file whose login was not taken is gone: %v", err)
	}
}

// quietBut is quiet, with secrets of an earlier place.
func (p *place) quietBut(secrets ...string) {
	p.t.Helper()
	p.quiet()
	for _, secret := range append(secrets, testFernet) {
		if strings.Contains(p.all.String(), secret) {
			p.t.Errorf("a secret was printed: %.12s…", secret)
		}
	}
}

func TestImportTastytrade(t *testing.T) {
	t.Parallel()
	home := newPlace(t, emulator.Config{})
	for broker, sample := range map[string]string{"tastytrade": "tastytrade.json", "tastytrade-sandbox": "tastytrade-new.json"} {
		p := home.at(broker, emulator.Config{})
		for _, name := range []string{"TASTY_CLIENT_SECRET", "TASTY_REFRESH_TOKEN", "TASTY_SANDBOX_CLIENT_SECRET", "TASTY_SANDBOX_REFRESH_TOKEN"} {
			p.env[name] = ""
		}
		file := p.write(sample, fresh(t, sample, "emulated.old", testGrant), 0o600)
		p.must(0, "import", file, "--move")
		if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after --move: %v", err)
		}
		p.must(0, "refresh", broker)
		junk := p.write(sample, fresh(t, sample, "emulated.junk", "emulated.junk-grant"), 0o600)
		p.must(2, "import", junk) // and the grant that works stays
		p.must(0, "refresh", broker)
		p.must(0, "token", broker)
		p.quiet()
	}
}

// A file that its own program still writes is not removed.
func TestImportWrittenMeanwhile(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).at("tastytrade-sandbox", emulator.Config{})
	p.env["TASTY_SANDBOX_CLIENT_SECRET"], p.env["TASTY_SANDBOX_REFRESH_TOKEN"] = "", ""
	file := p.write("session.json", fresh(t, "tastytrade-new.json", "", testGrant), 0o600)
	sent, answer := p.gate.shut()
	written := make(chan struct{})
	go func() {
		defer close(written)
		select {
		case <-sent:
		case <-t.Context().Done():
		}
		os.WriteFile(file, []byte("{}"), 0o600)
		answer()
	}()
	wantAll(t, p.must(1, "import", file, "--move").errors, "stored", "meanwhile")
	<-written
	if text, err := os.ReadFile(file); err != nil || string(text) != "{}" {
		t.Errorf("the file holds %q, %v", text, err)
	}
	p.must(0, "token", "tastytrade-sandbox")
}

// A login at TD Ameritrade is told of, and neither stored nor removed.
func TestImportTDAmeritrade(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	for _, name := range []string{"tda-api.json", "tda-api-raw.json", "td-ameritrade-python-api.json", "pytd.json", "pytd-empty.json"} {
		file := p.write(name, fresh(t, name, "emulated.a", "emulated.r"), 0o600)
		wantAll(t, p.must(0, "import", file, "--move").out, "tdameritrade", "May 2024", "nothing to move")
		if _, err := os.Stat(file); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	pickle := p.write("tda-api.pickle", fresh(t, "tda-api.pickle", "a", "r"), 0o600)
	wantAll(t, p.must(1, "import", pickle).errors, "pickle", "runs code")
	if files := p.stored(); len(files) != 0 {
		t.Errorf("it stored %q", files)
	}
}

// hostile is an import that must fail, and change nothing.
func (p *place) hostile(code int, file string, flags ...string) string {
	p.t.Helper()
	before, err := os.ReadFile(file)
	if err != nil {
		p.t.Fatal(err)
	}
	r := p.must(code, append([]string{"import", file, "--move"}, flags...)...)
	if after, err := os.ReadFile(file); err != nil || !bytes.Equal(before, after) {
		p.t.Errorf("import %s changed it: %v", file, err)
	}
	if files := p.stored(); len(files) != 0 {
		p.t.Fatalf("import %s stored %q", file, files)
	}
	return r.errors
}

func TestImportHostile(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	good := fresh(t, "schwab-py.json", "emulated.a", "emulated.r")
	for n := 0; n < len(good)-1; n += 23 {
		p.hostile(1, p.write("cut.json", good[:n], 0o600))
	}
	soon, year := time.Now().Add(time.Hour).Unix(), time.Now().AddDate(1, 0, 0).Unix()
	for name, text := range map[string]string{
		"huge":            `{"token": "` + strings.Repeat("x", 2<<20) + `"}`,
		"padded":          good + strings.Repeat(" ", 2<<20),
		"NaN":             strings.Replace(good, `"expires_in": 1800`, `"expires_in": NaN`, 1),
		"infinite":        strings.Replace(good, `"expires_in": 1800`, `"expires_in": 1e999`, 1),
		"future":          regexp.MustCompile(`"creation_timestamp": \d+`).ReplaceAllString(good, fmt.Sprintf(`"creation_timestamp": %d`, soon)),
		"lives long":      regexp.MustCompile(`"expires_at": \d+`).ReplaceAllString(good, fmt.Sprintf(`"expires_at": %d`, year)),
		"milliseconds":    strings.Replace(good, `"creation_timestamp": `, `"creation_timestamp": 1000`, 1),
		"no token":        `{"creation_timestamp": 1, "token": {}}`,
		"no JSON":         "\x00\x01\x02",
		"control":         strings.Replace(good, "emulated.r", `emulated.r\n`, 1),
		"nobody knows":    `{"hello": "world"}`,
		"another's store": `{"v":1,"provider":"schwab","token":{"access_token":"x"}}`,
	} {
		said := p.hostile(1, p.write("hostile.json", text, 0o600))
		if strings.Contains(said, "emulated.r") {
			t.Errorf("%s: the error shows what was read: %s", name, said)
		}
		for _, sentinel := range []error{brokerauth.ErrCorrupt, errors.ErrUnsupported} {
			if strings.HasSuffix(said, ": "+sentinel.Error()+"\n") {
				t.Errorf("%s: the error ends with what is for programs: %s", name, said)
			}
		}
	}
	neither := p.write("neither.json", fresh(t, "neither.json", "emulated.a", "emulated.r"), 0o600)
	wantAll(t, p.hostile(1, neither), "--broker")
	wantAll(t, p.hostile(1, p.write("schwab.json", good, 0o600), "--broker", "tastytrade"), "schwab")

	sealed := p.write("sealed.json", fresh(t, "schwabdev-3-encrypted.json", "emulated.a", "emulated.r"), 0o600)
	wantAll(t, p.hostile(1, sealed), fernetKey)
	other := base64.URLEncoding.EncodeToString(bytes.Repeat([]byte{1}, 32))
	wantAll(t, p.with(fernetKey, other).hostile(1, sealed), "encryption key")
	p.with(fernetKey, "short").hostile(1, sealed)

	link := filepath.Join(p.dir, "link.json")
	if err := os.Symlink(p.write("real.json", good, 0o600), link); err == nil {
		wantAll(t, p.hostile(1, link), "symbolic link")
	} else if runtime.GOOS != "windows" {
		t.Fatal(err)
	}
	wantAll(t, p.must(1, "import", p.dir).errors, "not a plain file")
	wantAll(t, p.must(2, "import", filepath.Join(p.dir, "none.json")).errors, "none.json")

	for line, want := range map[string]string{
		"import --move": "--move", "import - --move": "--move", "import x --broker etrade": "etrade",
		"import x --logged-in yesterday": "yesterday", "import x --logged-in 2999-01-01": "future", "import a b": "",
	} {
		wantAll(t, p.must(2, strings.Fields(line)...).errors, want)
	}
	spent := p.write("spent.json", `{"access_token":"emulated.a","refresh_token":"emulated.r","expiry":"2024-01-01T00:00:00Z"}`, 0o600)
	wantAll(t, p.hostile(2, spent, "--broker", "tastytrade", "--profile", "bob"), "client secret", "run: brokerauth login tastytrade --profile bob\n")

	file := p.write("good.json", good, 0o600)
	wantAll(t, p.with("SCHWAB_APP_SECRET", "").hostile(2, file), "SCHWAB_APP_SECRET")
	wantAll(t, p.hostile(2, file, "--store", "memory"), "lost")
	if n := len(p.broker.Requests()); n != 0 {
		t.Errorf("the broker was asked %d times", n)
	}
}

// tokensDB makes Schwabdev's database, whose newest row is in its write-ahead log alone while the connection is open.
func tokensDB(t *testing.T, path, old, newest string) *sqlite3.Conn {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	db, err := sqlite3.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if err := db.Exec("PRAGMA journal_mode=wal; PRAGMA wal_autocheckpoint=0"); err != nil {
		t.Fatal(err)
	}
	for i, row := range []string{old, newest} {
		var fields []map[string]any
		if err := json.Unmarshal([]byte(row), &fields); err != nil {
			t.Fatal(err)
		}
		if err := db.Exec("CREATE TABLE IF NOT EXISTS schwabdev (access_token_issued TEXT NOT NULL, refresh_token_issued TEXT NOT NULL, " +
			"access_token TEXT NOT NULL, refresh_token TEXT NOT NULL, id_token TEXT NOT NULL, expires_in INTEGER, token_type TEXT, " +
			"scope TEXT); DELETE FROM schwabdev"); err != nil {
			t.Fatal(err)
		}
		insert, _, err := db.Prepare("INSERT INTO schwabdev VALUES (?,?,?,?,?,?,?,?)")
		if err != nil {
			t.Fatal(err)
		}
		for i, name := range []string{"access_token_issued", "refresh_token_issued", "access_token", "refresh_token", "id_token", "", "token_type", "scope"} {
			err = errors.Join(err, insert.BindInt(i+1, 1800))
			if name != "" {
				err = errors.Join(err, insert.BindText(i+1, fields[0][name].(string)))
			}
		}
		if err := errors.Join(err, insert.Exec(), insert.Close()); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := db.Exec("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
				t.Fatal(err)
			}
		}
	}
	return db
}

// files are all below dir, by name, with what they hold.
func files(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() || strings.HasSuffix(path, "-shm") {
			return err
		}
		text, err := os.ReadFile(path)
		all[entry.Name()] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestImportDatabase(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	p.login("--store", "disk:"+filepath.Join(p.dir, "origin"))
	access, refresh := p.tokens()
	for name, sample := range map[string]string{"plain": "schwabdev-3.json", "encrypted": "schwabdev-3-encrypted.json"} {
		p := p.with(fernetKey, testFernet)
		path := filepath.Join(p.dir, name, "tokens.db")
		old, newest := fresh(t, sample, "emulated.old", "emulated.stale"), fresh(t, sample, access, refresh)
		db := tokensDB(t, path, old, newest)
		before := files(t, filepath.Dir(path))
		if len(before[filepath.Base(path)+"-wal"]) == 0 || strings.Contains(before["tokens.db"], refresh) {
			t.Fatal("the newest row is not in the log alone, so this shows nothing")
		}
		store := "disk:" + filepath.Join(p.dir, name, "store")
		wantAll(t, p.must(0, "import", path, "--store", store).out, "Schwabdev 3", "a login at schwab")
		p.must(0, "refresh", "schwab", "--store", store)
		os.RemoveAll(filepath.Join(p.dir, name, "store"))
		after := files(t, filepath.Dir(path))
		if len(after) != len(before) {
			t.Errorf("%s: beside the database are %d files, before %d", name, len(after), len(before))
		}
		for file, text := range before {
			if after[file] != text {
				t.Errorf("%s: %s was changed", name, file)
			}
		}

		// As it lies there after its program was killed.
		killed := filepath.Join(p.dir, name+"-killed")
		for file, text := range before {
			p.write(filepath.Join(name+"-killed", file), text, 0o600)
		}
		p.write(filepath.Join(name+"-killed", "tokens.db-shm"), "stale", 0o600)
		db.Close()
		p.must(0, "import", filepath.Join(killed, "tokens.db"), "--move", "--store", "disk:"+filepath.Join(p.dir, name, "moved"))
		if left, err := os.ReadDir(killed); err != nil || len(left) != 0 {
			t.Errorf("%s: --move left %v, %v", name, left, err)
		}
		p.must(0, "refresh", "schwab", "--store", "disk:"+filepath.Join(p.dir, name, "moved"))
		p.quietBut(access, refresh)
	}
}

func TestImportDatabaseHostile(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	path := filepath.Join(p.dir, "tokens.db")
	row := fresh(t, "schwabdev-3-encrypted.json", "emulated.a", "emulated.r")
	tokensDB(t, path, row, row).Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	wantAll(t, p.hostile(1, path), fernetKey)
	p.with(fernetKey, base64.URLEncoding.EncodeToString(make([]byte, 32))).hostile(1, path)
	sealed := p.with(fernetKey, testFernet)
	for _, n := range []int{16, 50, 100, 1000, 4096, 5000, len(whole) - 1000} {
		sealed.hostile(1, p.write("cut.db", string(whole[:n]), 0o600))
	}
	for name, script := range map[string]string{
		"empty":   "CREATE TABLE schwabdev (access_token TEXT)",
		"others":  "CREATE TABLE other (x TEXT)",
		"a view":  "CREATE VIEW schwabdev AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c) SELECT x FROM c ORDER BY x",
		"columns": "CREATE TABLE schwabdev (x BLOB); INSERT INTO schwabdev VALUES (zeroblob(3000000))",
		"rows":    "CREATE TABLE schwabdev (x INT); INSERT INTO schwabdev VALUES (1),(2)",
	} {
		file := filepath.Join(p.dir, strings.ReplaceAll(name, " ", "")+".db")
		db, err := sqlite3.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(db.Exec(script), db.Close()); err != nil {
			t.Fatal(err)
		}
		sealed.hostile(1, file)
		var cmd *exec.Cmd
		sealed.runWith(func(c *exec.Cmd) { cmd = c }, "import", file)
		if took := cmd.ProcessState.UserTime(); took > 4*time.Second { // of the processor's, whatever else it has to do
			t.Errorf("%s: it took %s", name, took)
		}
	}
	piped := sealed.command("import", "-")
	piped.Stdin = bytes.NewReader(whole)
	if out, err := piped.CombinedOutput(); err == nil || !strings.Contains(string(out), "SQLite") {
		t.Errorf("a database from standard input: %v, %s", err, out)
	}
	if files := p.stored(); len(files) != 0 {
		t.Errorf("it stored %q", files)
	}
}

// A login whose days are over is taken over, as only the broker can tell, and a person is told to log in.
func TestImportEnded(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	ago := time.Now().AddDate(0, 0, -8).Unix()
	file := p.write("token.json", fmt.Sprintf(`{"creation_timestamp": %d, "token": {"access_token": "emulated.a",
		"refresh_token": "emulated.r", "token_type": "Bearer", "scope": "api", "expires_in": 1800, "expires_at": %d}}`, ago, ago+1800), 0o600)
	r := p.must(3, "import", file, "--move", "--logged-in", "2026-01-01")
	wantAll(t, r.errors, "run: brokerauth login schwab")
	wantAll(t, r.out, "has ended", "the file's counts")
}

// What cannot work is found before a login is read that exists nowhere else.
func TestImportPipeFirst(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	bad := "disk:" + filepath.Join(p.write("file", "", 0o600), "logins")
	sealed := "sealed+disk:" + filepath.Join(p.dir, "sealed")
	p.with("BROKERAUTH_PASSPHRASE", "the right one").login("--store", sealed, "--profile", "other")
	for _, test := range []struct {
		p    *place
		code int
		args []string
		want string
	}{
		{p.with("SCHWAB_APP_SECRET", ""), 2, []string{"import", "-", "--broker", "schwab"}, "SCHWAB_APP_SECRET"},
		{p, 2, []string{"import", "-", "--broker", "schwab", "--store", "memory"}, "memory"},
		{p, 2, []string{"import", "-", "--store", "memory"}, "memory"},
		{p, 2, []string{"import", "-", "--store", "nowhere"}, "nowhere"},
		{p, 1, []string{"import", "-", "--broker", "schwab", "--store", bad}, "cannot save a login"},
		{p, 1, []string{"import", "-", "--store", bad}, "cannot save a login"},
		{p, 1, []string{"import", "-", "--broker", "schwab", "--store", "redis://127.0.0.1:" + engine.FreePort(t) + "/0"}, "cannot be reached"},
		{p.with("BROKERAUTH_PASSPHRASE", "a wrong one"), 2, []string{"import", "-", "--broker", "schwab", "--store", sealed}, "sealed with"},
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		// Nothing is ever written to it.
		defer w.Close()
		defer r.Close()
		var out, said bytes.Buffer
		cmd := test.p.command(test.args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = r, &out, &said
		if got := test.p.ended(cmd.Run(), test.args, &out, &said); got.code != test.code || !strings.Contains(got.errors, test.want) {
			t.Errorf("brokerauth %q: exit code %d\n%s", test.args, got.code, got.errors)
		}
	}
}

// Without a file it tells what lies about.
func TestImportList(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	wantAll(t, p.must(0, "import").out, "Nothing lies")
	p.write("tokens.json", fresh(t, "schwabdev-2.json", "emulated.a", "emulated.r"), 0o600)
	p.write(".td_python_api/state.json", fresh(t, "td-ameritrade-python-api.json", "emulated.a", "emulated.r"), 0o600)
	p.write(".tdm/KEY", fresh(t, "pytd.json", "emulated.a", "emulated.r"), 0o600)
	p.write(".tdm/sealed", fresh(t, "schwabdev-3-encrypted.json", "emulated.a", "emulated.r"), 0o600)
	p.write(".tdm/whose", fresh(t, "oauth2.json", "emulated.a", "emulated.r"), 0o600)
	row := fresh(t, "schwabdev-3.json", "emulated.a", "emulated.r")
	tokensDB(t, filepath.Join(p.dir, ".schwabdev", "tokens.db"), row, row)
	if runtime.GOOS == "windows" {
		p.env["USERPROFILE"] = p.dir
	}
	wantAll(t, p.must(0, "import").out, "Schwabdev 2", "Schwabdev 3", "td-ameritrade-python-api", "pyTD", "May 2024",
		fernetKey, "name the broker by --broker")
	if files := p.stored(); len(files) != 0 {
		t.Errorf("it stored %q", files)
	}
}

// A database may come from anywhere: what is damaged in it is an error, and never more. Coverage slows SQLite down too
// much for a fuzz test.
func TestReadDatabaseDamaged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	row := fresh(t, "schwabdev-3.json", "emulated.a", "emulated.r")
	db := tokensDB(t, filepath.Join(dir, "tokens.db"), row, row)
	whole := files(t, dir)
	db.Close()
	random := rand.New(rand.NewPCG(1, 2))
	path, failed := filepath.Join(dir, "damaged.db"), 0
	for range 150 {
		data, log := []byte(whole["tokens.db"]), []byte(whole["tokens.db-wal"])
		for range 20 {
			data[random.IntN(len(data))] = byte(random.Uint32())
			data[16+random.IntN(200)] = byte(random.Uint32())
		}
		log[random.IntN(len(log))]++
		if err := errors.Join(os.WriteFile(path, data, 0o600), os.WriteFile(path+"-wal", log, 0o600)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // however busy the machine: none is read for ever
		rows, _, err := readDatabase(ctx, path)
		if ctx.Err() != nil {
			t.Errorf("a damaged database takes a minute: %v", err)
		}
		cancel()
		if err != nil {
			failed++
		} else if !json.Valid(rows) {
			t.Errorf("it reads as %q", rows)
		}
	}
	if failed == 0 {
		t.Error("no damage was seen")
	}
}

// schwab-py may have a login for a while and give it back, although its file counts whole seconds.
func TestImportBack(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	p.login()
	text := p.must(0, "export", "schwab", "--copy", "--format", "schwab-py").out
	p.write("token.json", text, 0o600)
	if said := p.must(1, "import", "token.json").errors; said != "brokerauth: schwab: this login is stored already: if nothing else uses token.json, delete it\n" {
		t.Errorf("of what is stored already it says: %s", said)
	}
	wantAll(t, p.must(0, "import", "token.json", "--move").out, "schwab: stored already: ", "Removed token.json")
	if _, err := os.Lstat(filepath.Join(p.dir, "token.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after --move: %v", err)
	}

	var file struct {
		Created int64          `json:"creation_timestamp"`
		Token   map[string]any `json:"token"`
	}
	if err := json.Unmarshal([]byte(text), &file); err != nil {
		t.Fatal(err)
	}
	file.Token["expires_at"] = time.Now().Add(31 * time.Minute).Unix() // as after a refresh over there
	raw, _ := json.Marshal(file)
	p.write("token.json", string(raw), 0o600)
	wantAll(t, p.must(0, "import", "token.json", "--move").out, "imported", "Removed token.json")
	p.must(0, "refresh", "schwab")
}

// sibling is a store in which another process renews a login as soon as it is saved.
type sibling struct {
	memory.Store
	renew func()
}

func (s *sibling) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	swapped, err := s.Store.CompareAndSwap(ctx, key, old, new)
	if renew := s.renew; renew != nil && swapped {
		s.renew = nil
		renew()
	}
	return swapped, err
}

func TestImportRenewedMeanwhile(t *testing.T) {
	t.Parallel()
	broker := emulator.Schwab(t, emulator.Config{Rotate: true})
	ctx := t.Context()
	first := &brokerauth.Session{Provider: broker.Provider(), Store: new(memory.Store)}
	if err := first.Login(ctx, broker.Approve); err != nil {
		t.Fatal(err)
	}
	token, err := first.Token(ctx)
	if err != nil {
		t.Fatal(err)
	}
	token = token.Clone()
	token.Expiry = token.Expiry.Add(-time.Minute) // it is a while ago

	store := new(sibling)
	store.renew = func() {
		s := &brokerauth.Session{Provider: broker.Provider(), Store: &store.Store}
		if _, err := s.Refresh(ctx, nil); err != nil {
			t.Error(err)
		}
	}
	s := &brokerauth.Session{Provider: broker.Provider(), Store: store}
	if err := new(app).take(ctx, s, &porting.Found{Provider: "schwab", Token: token}); err != nil {
		t.Errorf("a login that a sibling renewed at once: %v", err)
	}
}
