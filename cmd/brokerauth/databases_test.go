package main

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/internal/engine"
)

// Logins live in a database as in files, move from one to another, and no password is shown or taken from a flag.
func TestDatabaseStores(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).with("BROKERAUTH_STORE", "")
	const word = "emulated.store-password"
	redis := engine.Redis(t, "--requirepass", word)
	postgres := engine.PostgreSQL(t)
	file := "sqlite:" + filepath.Join(p.dir, "private", "logins.db")
	for _, store := range []struct{ name, shown string }{
		{file, file},
		{postgres.URL("postgres"), strings.Replace(postgres.URL("postgres"), ":"+engine.Password+"@", "@", 1)},
		{"redis://default:" + word + "@" + redis.Addr + "/0", "redis://default@" + redis.Addr + "/0"},
		{"sealed+redis://default:" + word + "@" + redis.Addr + "/1", "sealed+redis://default@" + redis.Addr + "/1"},
	} {
		t.Run(strings.SplitN(store.name, ":", 2)[0], func(t *testing.T) {
			p := p.with("BROKERAUTH_STORE", store.name, "BROKERAUTH_PASSPHRASE", "correct horse battery")
			p.t = t
			quiet := func(r result) {
				t.Helper()
				if strings.Contains(r.out+r.errors, word) || strings.Contains(r.out+r.errors, engine.Password) {
					t.Errorf("a password is shown:\n%s%s", r.out, r.errors)
				}
			}
			p.must(3, "token", "schwab")
			quiet(p.login())
			first := p.must(0, "token", "schwab").out
			quiet(p.must(0, "refresh", "schwab"))
			if p.must(0, "token", "schwab").out == first {
				t.Error("a refresh left the token as it was")
			}
			quiet(p.must(0, "status", "schwab", "--json"))
			quiet(p.must(0, "status"))
			// By its name without the password, which the setting has.
			p.must(0, "token", "schwab", "--store", store.shown)
			files := "disk:" + filepath.Join(t.TempDir(), "logins")
			quiet(p.must(0, "store", "move", store.shown, files))
			p.must(3, "token", "schwab")
			quiet(p.must(0, "store", "move", files, store.shown))
			p.must(0, "token", "schwab")
			quiet(p.must(0, "logout", "schwab"))
			p.must(3, "token", "schwab")
			if store.name != store.shown {
				bare := p.with("BROKERAUTH_STORE", "")
				const mistake = "typed-by-mistake"
				named := strings.NewReplacer(word, mistake, engine.Password, mistake).Replace(store.name)
				if r := bare.must(2, "token", "schwab", "--store", named); strings.Contains(r.errors, mistake) {
					t.Errorf("a password is shown:\n%s", r.errors)
				}
				quiet(bare.must(1, "token", "schwab", "--store", store.shown))
				wrong := p.with("BROKERAUTH_STORE", strings.Replace(store.name, "password@", "passwort@", 1))
				quiet(wrong.must(1, "token", "schwab"))
				path := filepath.Join(t.TempDir(), "store")
				if err := os.WriteFile(path, []byte(store.name+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				from := p.with("BROKERAUTH_STORE", "", "BROKERAUTH_STORE_FILE", path)
				quiet(from.login())
				quiet(from.must(0, "logout", "schwab"))
			}
		})
	}

	if info, err := os.Stat(strings.TrimPrefix(file, "sqlite:")); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("the file of the database: %v, %v", info, err)
	}
	for _, open := range []string{filepath.Join(p.dir, "open.db"), filepath.Join(p.dir, "link.db")} {
		if strings.HasSuffix(open, "link.db") {
			if err := os.Symlink(strings.TrimPrefix(file, "sqlite:"), open); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(open, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		p.must(1, "login", "schwab", "--store", "sqlite:"+open)
	}
	shared := filepath.Join(p.dir, "shared")
	if err := os.Mkdir(shared, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(shared, 0o777); err != nil {
		t.Fatal(err)
	}
	p.must(1, "login", "schwab", "--store", "sqlite:"+filepath.Join(shared, "logins.db"))
	if left, err := os.ReadDir(shared); err != nil || len(left) > 0 {
		t.Errorf("a folder that was refused has %v now, %v", left, err)
	}
	for _, bad := range []string{"sqlite:", "sqlite:~/x", "postgres://[", "redis://u@h/nosuch/thing", "postgres://u@h:port/x"} {
		p.must(2, "token", "schwab", "--store", bad)
	}
	away := p.with("BROKERAUTH_STORE", "postgres://u:"+word+"@127.0.0.1:"+engine.FreePort(t)+"/x")
	if r := away.must(1, "token", "schwab"); strings.Contains(r.errors, word) {
		t.Errorf("a password is shown:\n%s", r.errors)
	}
}
