package main

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth"
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

// Left to itself the driver talks without TLS to whoever says that they know none. Nobody has to have that who has not
// asked for it, but on this computer.
func TestPlainPostgreSQL(t *testing.T) {
	open := func(name string) error {
		s := &settings{sources: []source{{"a test", func(setting string) string {
			if setting == "BROKERAUTH_STORE" {
				return name
			}
			return ""
		}}}}
		a := new(app)
		_, err := a.openNamed(t.Context(), s, name)
		for _, f := range a.atEnd {
			f()
		}
		return err
	}
	check := func(fit bool, names ...string) {
		t.Helper()
		for _, name := range names {
			if err := open(name); fit && err != nil || !fit && (!isUsage(err) || !strings.Contains(err.Error(), "sslmode=verify-full")) {
				t.Errorf("%s, PGHOST=%s, PGSSLMODE=%s: %v", name, os.Getenv("PGHOST"), os.Getenv("PGSSLMODE"), err)
			}
		}
	}
	for _, name := range []string{"PGHOST", "PGSSLMODE", "PGSERVICE", "PGSSLROOTCERT"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", t.TempDir())
	afar := []string{"postgres://u@db.example/l", "postgresql://u@192.0.2.1/l", "postgres://u@[2001:db8::1]:5432/l", "postgres://u@localhost,db.example/l",
		"postgres:///l?host=db.example", "postgres://u@localhost/l?host=/tmp,db.example"}
	check(false, afar...)
	check(false, "postgres://u@db.example/l?sslmode=", "postgres://u@db.example/l?sslmode=require&sslmode=")
	near := []string{"postgres://u@localhost/l", "postgres://u@127.0.0.1:1/l", "postgres://u@[::1]/l", "postgres:///l?host=/tmp", "postgres://u@localhost,127.0.0.2/l", "postgres:///l"}
	check(true, near...)
	for _, mode := range []string{"disable", "allow", "prefer", "require", "verify-ca", "verify-full"} {
		check(true, "postgres://u@db.example/l?sslmode="+mode)
	}
	t.Setenv("PGSSLMODE", "prefer")
	check(true, append(afar, near...)...)
	check(false, "postgres://u@db.example/l?sslmode=")
	t.Setenv("PGSSLMODE", "")
	services := filepath.Join(t.TempDir(), "services")
	if err := os.WriteFile(services, []byte("[plain]\nhost=db.example\nsslmode=disable\n[safe]\nhost=db.example\nsslmode=verify-full\n[silent]\nhost=db.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PGSERVICEFILE", services)
	check(true, "postgres:///l?service=plain", "postgres:///l?service=safe")
	check(false, "postgres:///l?service=silent", "postgres:///l?service=plain&sslmode=")
	t.Setenv("PGSERVICE", "plain")
	check(true, "postgres:///l")
	t.Setenv("PGSERVICE", "")
	t.Setenv("PGHOST", "db.example")
	check(false, "postgres:///l")

	p := newPlace(t, emulator.Config{}).with("BROKERAUTH_STORE", "postgres://u:emulated.store-password@192.0.2.1/l")
	if r := p.must(2, "token", "schwab"); strings.Contains(r.errors, "emulated.") {
		t.Errorf("a password is shown:\n%s", r.errors)
	}
}

// A database that takes connections and never answers is waited for once, whoever else waits, and as long as each has time.
func TestSilentDatabase(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
		}
	}()
	a := &app{err: io.Discard}
	store, err := a.openPostgreSQL("postgres://u@" + l.Addr().String() + "/l")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, f := range a.atEnd {
			f()
		}
	}()
	ask := func(ctx context.Context) time.Duration {
		began := time.Now()
		if _, err := store.Load(ctx, brokerauth.Key{Provider: "schwab"}); err == nil {
			t.Error("a silent server has a record")
		}
		return time.Since(began)
	}
	var all sync.WaitGroup
	began := time.Now()
	for range 4 {
		all.Go(func() { ask(t.Context()) })
	}
	time.Sleep(50 * time.Millisecond) // until they wait
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if took := ask(ctx); took > 5*time.Second {
		t.Errorf("a call with a context of 100 ms took %v", took)
	}
	if all.Wait(); time.Since(began) > 25*time.Second {
		t.Errorf("four calls at once, of 10 s at the most, took %v", time.Since(began))
	}
}
