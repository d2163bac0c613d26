package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/storage/disk"
	"github.com/brokerauth/brokerauth/storage/keyring"
	"github.com/brokerauth/brokerauth/storage/sealed"
)

// withKeyring starts a gnome-keyring on a bus of its own, and returns the place with that bus and without a named store.
func (p *place) withKeyring() *place {
	p.t.Helper()
	for _, engine := range []string{"dbus-run-session", "gnome-keyring-daemon"} {
		if _, err := exec.LookPath(engine); err != nil {
			if os.Getenv("CI") == "true" {
				p.t.Fatal(err)
			}
			p.t.Skip("there is no gnome-keyring to test with: install gnome-keyring and dbus")
		}
	}
	dir, err := os.MkdirTemp("", "bus-") // a socket's path must be short
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { os.RemoveAll(dir) })
	config := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:tmpdir=%s</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy>
</busconfig>`, dir), 0o600); err != nil {
		p.t.Fatal(err)
	}
	cmd := exec.Command("dbus-run-session", "--config-file="+config, "--", "sh", "-c",
		`printf pw | gnome-keyring-daemon --foreground --unlock --components=secrets >/dev/null 2>&1 & `+
			`for i in $(seq 300); do dbus-send --session --print-reply --dest=org.freedesktop.DBus /org/freedesktop/DBus `+
			`org.freedesktop.DBus.NameHasOwner string:org.freedesktop.secrets | grep -q true && break; sleep 0.1; done; `+
			`echo "$DBUS_SESSION_BUS_ADDRESS"; cat >/dev/null; kill -KILL $!`)
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_RUNTIME_DIR="+dir, "XDG_DATA_HOME="+dir)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
	})
	address := make([]byte, 4096)
	n, err := stdout.Read(address)
	if err != nil {
		p.t.Fatal(err)
	}
	return p.with("BROKERAUTH_STORE", "", "DBUS_SESSION_BUS_ADDRESS", strings.TrimSpace(string(address[:n])))
}

// noBus leads to no keyring, whatever this machine has.
const noBus = "unix:path=/nonexistent/bus"

// Where no keyring is and nobody names a store, the command says so, names a flag, and keeps nothing in plain files.
func TestNoKeyring(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).with("BROKERAUTH_STORE", "", "DBUS_SESSION_BUS_ADDRESS", noBus)
	absent := func(args ...string) string {
		t.Helper()
		text := p.must(1, args...).errors
		wantAll(t, text, "no keyring can be reached", "disk:DIR")
		if strings.Contains(text, "unix") || strings.Contains(text, "unsupported") || len(text) > 200 {
			t.Errorf("brokerauth %s: a person should read of the remedy, and little else:\n%s", strings.Join(args, " "), text)
		}
		return text
	}
	for _, args := range [][]string{{"login", "schwab"}, {"token", "schwab"}, {"status"}, {"status", "schwab"}, {"logout", "schwab"}} {
		text := absent(args...)
		if remedy, fault := strings.Index(text, "--store disk "), strings.Index(text, "no keyring"); remedy < 0 || remedy > fault {
			t.Errorf("brokerauth %s: the remedy does not come first: %s", strings.Join(args, " "), text)
		}
	}
	absent("token", "schwab", "--store", "keyring")
	absent("store", "move", "keyring", "disk")
	if n, files := len(p.broker.Requests()), p.stored(); n != 0 || len(files) != 0 {
		t.Errorf("the broker was asked %d times, and %q stored", n, files)
	}
	// The store that a login went to is found again, from anywhere, and the missing keyring matters no more.
	dir := filepath.Join(p.dir, "logins")
	wantAll(t, p.login("--store", "disk:logins").out, "Kept in file "+dir, "not encrypted")
	p.must(0, "token", "schwab")
	elsewhere := p.command("status", "schwab")
	elsewhere.Dir = t.TempDir()
	if out, err := elsewhere.CombinedOutput(); err != nil {
		t.Errorf("from another folder: %v: %s", err, out)
	}
	wantAll(t, p.must(0, "status").out, "kept in file "+dir)
	p.must(3, "token", "schwab", "--store", "disk")
	p.must(3, "token", "schwab", "--profile", "other", "--store", "disk")
	wantAll(t, p.must(1, "token", "schwab", "--profile", "other").errors, "--store disk:") // it has no store yet
	p.must(0, "logout", "schwab")
	p.must(3, "token", "schwab")
	p.must(0, "login", "schwab") // it stays the profile's
	p.must(0, "token", "schwab")
	absent("store", "move", "disk:"+dir, "keyring")
	p.must(0, "token", "schwab")
}

// Where status looks at all logins, what it cannot say of one names the broker, and the profile once.
func TestStatusNamesBroker(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).at("tdameritrade", emulator.Config{}).at("tastytrade", emulator.Config{}).
		with("BROKERAUTH_STORE", "", "DBUS_SESSION_BUS_ADDRESS", noBus)
	p.login("--store", "disk", "--profile", "bob")
	p.with("BROKERAUTH_PASSPHRASE", "a passphrase").must(0, "login", "tdameritrade", "--store", "sealed+disk:"+filepath.Join(p.dir, "sealed"))
	r := p.run("status", "--within", "8d")
	if r.code != 3 {
		t.Errorf("exit code %d, want 3", r.code)
	}
	for _, want := range []string{"tdameritrade: the store sealed+disk:", "tastytrade: name a store", "schwab, profile bob: the login is over"} {
		if !strings.Contains("\n"+r.errors, "\nbrokerauth: "+want) {
			t.Errorf("no line begins with %q:\n%s", want, r.errors)
		}
	}
}

// A grant in the settings that nobody has stored keeps no other login from being kept.
func TestKeepBesideAGrant(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).at("tastytrade", emulator.Config{}).with("BROKERAUTH_STORE", "", "DBUS_SESSION_BUS_ADDRESS", noBus)
	p.login("--store", "disk")
	out, errs, stop := p.keep()
	until(t, "schwab is kept", func() bool { return strings.Contains(out.String(), "schwab: kept") })
	until(t, "tastytrade's store is asked for", func() bool { return strings.Contains(errs.String(), "name a store") })
	stop()
}

// With a keyring it is the default; a login in it is found where it is in reach, and named where it is not.
func TestKeyringStore(t *testing.T) {
	p := newPlace(t, emulator.Config{}).withKeyring()
	wantAll(t, p.login().out, "Kept in OS keyring, service brokerauth", "encrypted by the system")
	if files := p.stored(); len(files) != 0 {
		t.Errorf("plain files hold %q", files)
	}
	token := p.must(0, "token", "schwab").out
	wantAll(t, p.must(0, "status", "--json").out, `"store":"keyring"`)
	wantAll(t, p.must(0, "refresh", "schwab").out, "refreshed")

	// A program with keyring.New("") finds the command's logins.
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", p.env["DBUS_SESSION_BUS_ADDRESS"])
	store, err := keyring.New("")
	if err != nil {
		t.Fatal(err)
	}
	keys, err := store.Keys(t.Context())
	if err != nil || len(keys) != 1 || keys[0].Provider != "schwab" {
		t.Fatalf("the keyring's keys are %q, %v", keys, err)
	}

	cron := p.with("DBUS_SESSION_BUS_ADDRESS", noBus)
	for _, args := range [][]string{{"token", "schwab"}, {"status", "schwab"}, {"status"}, {"refresh", "schwab"}, {"logout", "schwab"}} {
		text := cron.must(1, args...).errors
		if wantAll(t, text, "brokerauth store move keyring disk:DIR"); strings.Contains(text, "unix") || len(text) > 300 {
			t.Errorf("brokerauth %s: a person should read of the remedy, and little else:\n%s", strings.Join(args, " "), text)
		}
	}
	// To files, and back.
	before, err := store.Load(t.Context(), keys[0])
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(p.dir, "moved")
	wantAll(t, p.must(0, "store", "move", "keyring", "disk:"+dir).out, "schwab: moved", "logged in ")
	if text, err := os.ReadFile(p.record()); err != nil || !bytes.Equal(text, before) || filepath.Dir(p.record()) != dir {
		t.Errorf("what was moved is another: %v", err)
	}
	if _, err := store.Load(t.Context(), keys[0]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the keyring still has it: %v", err)
	}
	if again := cron.must(0, "token", "schwab").out; again == token {
		t.Error("the token is older than the refresh")
	}
	wantAll(t, p.must(0, "store", "move", "keyring", "disk:"+dir).out, "no login")
	p.must(0, "store", "move", "disk:"+dir, "keyring")
	if now, err := store.Load(t.Context(), keys[0]); err != nil || !bytes.Equal(now, before) {
		t.Errorf("back in the keyring it is another: %v", err)
	}
	wantAll(t, cron.must(1, "token", "schwab").errors, "store move")

	// Encrypted files, whose key is in the keyring: without it they are out of reach, and nobody is asked to log in.
	locked := "sealed+disk:" + dir
	wantAll(t, p.must(0, "store", "move", "keyring", locked).out, "schwab: moved")
	if text, err := os.ReadFile(p.record()); err != nil || bytes.Contains(text, []byte("access_token")) || bytes.Contains(text, []byte("emulated.")) {
		t.Errorf("the file is not encrypted: %v", err)
	}
	p.must(0, "token", "schwab")
	wantAll(t, cron.must(1, "token", "schwab").errors, "no keyring can be reached", "store move")
	wantAll(t, cron.keepFails(1), "no keyring can be reached", "store move") // though it can list the files
	wantAll(t, p.must(0, "status").out, "schwab")
	p.must(0, "logout", "schwab")
	wantAll(t, p.login("--store", locked).out, "its key is in the OS keyring")
	p.must(0, "token", "schwab")
	p.must(0, "logout", "schwab")
	p.quiet()
}

// A passphrase seals where no keyring is; it comes from a file, the environment or a person.
func TestSealedStore(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).with("BROKERAUTH_STORE", "", "DBUS_SESSION_BUS_ADDRESS", noBus)
	name := "sealed+disk:" + filepath.Join(p.dir, "logins")
	wantAll(t, p.must(2, "login", "schwab", "--store", name).errors, "BROKERAUTH_PASSPHRASE_FILE")
	const words = "correct horse battery staple"
	set := p.with("BROKERAUTH_PASSPHRASE_FILE", p.write("secret/words", words+"\n", 0o600))
	wantAll(t, set.login("--store", name).out, "encrypted under a passphrase")
	if text, err := os.ReadFile(p.record()); err != nil || bytes.Contains(text, []byte("emulated.")) {
		t.Errorf("the file is not encrypted: %v", err)
	}
	set.must(0, "token", "schwab")
	p.with("BROKERAUTH_PASSPHRASE", words).must(0, "token", "schwab")
	wantAll(t, p.must(2, "token", "schwab").errors, "BROKERAUTH_PASSPHRASE_FILE") // found again, and its passphrase is missing
	before, err := os.ReadFile(p.record())
	if err != nil {
		t.Fatal(err)
	}
	wrong := p.with("BROKERAUTH_PASSPHRASE", "wrong")
	wrong.must(2, "token", "schwab")
	wrong.must(2, "login", "schwab")
	wantAll(t, wrong.keepFails(2), "the secret does not open")
	if after, err := os.ReadFile(p.record()); err != nil || !bytes.Equal(before, after) {
		t.Errorf("a wrong passphrase changed the record: %v", err)
	}
	// Another passphrase by moving, and out of it.
	wantAll(t, set.must(0, "store", "move", name, "disk:"+filepath.Join(p.dir, "plain")).out, "schwab: moved")
	p.must(0, "token", "schwab")
	for _, bad := range []string{"sealed+memory", "sealed+", "sealed+sealed+disk:x"} {
		p.must(2, "token", "schwab", "--store", bad)
	}
	// A passphrase that is lost: what it sealed is deleted, and another one serves.
	set.login("--store", name)
	wantAll(t, wrong.must(2, "login", "schwab").errors, "if it is lost, delete these keys and the logins beside them")
	if err := os.RemoveAll(filepath.Join(p.dir, "logins")); err != nil {
		t.Fatal(err)
	}
	wrong.login("--store", name)
	wrong.must(0, "token", "schwab")
	if said := set.all.String() + p.all.String(); strings.Contains(said, words) {
		t.Error("the passphrase was told")
	}
	set.quiet()
	p.quiet()
}

// A file of secrets that other users can read is told of, once, if this user can mend it: one that is mounted read-only
// was handed over by Docker or the like.
func TestOpenSecretFiles(t *testing.T) {
	p := newPlace(t, emulator.Config{})
	const told = "can be read or written by other users: run: chmod 600"
	secrets := filepath.Join(p.dir, "secrets")
	secret, words := p.write("secrets/app", testSecret, 0o600), p.write("secrets/words", "correct horse battery staple", 0o600)
	store := p.write("secrets/store", "sealed+disk:"+filepath.Join(p.dir, "sealed"), 0o600)
	p = p.with("SCHWAB_APP_SECRET", "", "SCHWAB_APP_SECRET_FILE", secret, "BROKERAUTH_PASSPHRASE_FILE", words,
		"BROKERAUTH_STORE", "", "BROKERAUTH_STORE_FILE", store)
	check := func(want ...string) {
		t.Helper()
		text := p.must(0, "token", "schwab").errors
		wantAll(t, text, want...)
		if n := strings.Count(text, told); n != len(want) {
			t.Errorf("told of %d open files, want %d:\n%s", n, len(want), text)
		}
	}
	p.login()
	check()
	if err := errors.Join(os.Chmod(secret, 0o444), os.Chmod(words, 0o602), os.Chmod(store, 0o640)); err != nil {
		t.Fatal(err)
	}
	check("SCHWAB_APP_SECRET_FILE: "+secret+" "+told, "BROKERAUTH_PASSPHRASE_FILE: "+words+" "+told, "BROKERAUTH_STORE_FILE: "+store+" "+told)
	mount(t, secrets, secrets, "", syscall.MS_BIND, "")
	if err := syscall.Mount("", secrets, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	check()
}

// What a person types at a terminal is the passphrase, and nothing of it shows.
func TestPassphraseTyped(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).with("BROKERAUTH_STORE", "", "DBUS_SESSION_BUS_ADDRESS", noBus)
	name := "sealed+disk:" + filepath.Join(p.dir, "logins")
	const words = "typed by a person"
	if shown, code := p.typing([]string{"login", "schwab", "--store", name}, "passphrase: ", words, "again", words); code != 0 || strings.Contains(shown, words) {
		t.Fatalf("login: exit code %d\n%s", code, shown)
	}
	if shown, code := p.typing([]string{"token", "schwab"}, "passphrase: ", words); code != 0 || strings.Contains(shown, words) {
		t.Fatalf("token: exit code %d\n%s", code, shown)
	}
	if shown, code := p.typing([]string{"token", "schwab"}, "passphrase: ", "another"); code != 2 {
		t.Fatalf("token with another passphrase: exit code %d\n%s", code, shown)
	}
	p.with("BROKERAUTH_PASSPHRASE", words).must(0, "token", "schwab")
	other := "sealed+disk:" + filepath.Join(p.dir, "other")
	if shown, code := p.typing([]string{"login", "schwab", "--store", other}, "passphrase: ", words, "again", "a slip"); code != 2 || !strings.Contains(shown, "differ") {
		t.Fatalf("two passphrases: exit code %d\n%s", code, shown)
	}
}

// What a program has sealed under a key of its own is opened by nothing that a person can type, so nobody is asked.
func TestSealedUnderKey(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).with("BROKERAUTH_STORE", "", "DBUS_SESSION_BUS_ADDRESS", noBus)
	dir := filepath.Join(p.dir, "logins")
	inner, err := disk.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	store, err := sealed.New(inner, sealed.Key(bytes.Repeat([]byte{1}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	record := []byte(`{"v":1,"token":{"access_token":"a","refresh_token":"r"}}`)
	if swapped, err := store.CompareAndSwap(t.Context(), brokerauth.Key{Provider: "schwab", Profile: "default"}, nil, record); !swapped || err != nil {
		t.Fatal(swapped, err)
	}
	name := "sealed+disk:" + dir
	for _, args := range [][]string{{"token", "schwab"}, {"login", "schwab"}, {"status"}} {
		args = append(args, "--store", name)
		for _, p := range []*place{p, p.with("BROKERAUTH_PASSPHRASE", "any")} {
			text := p.must(2, args...).errors
			if wantAll(t, text, dir, "under a key that a program has", "name another store"); strings.Contains(text, "PASSPHRASE") {
				t.Errorf("brokerauth %s: a passphrase would not help:\n%s", args[0], text)
			}
		}
		person, screen, wait := p.start(args...)
		ended := make(chan int, 1)
		go func() { ended <- wait() }()
		until(t, "it says something", func() bool { return strings.Contains(screen.String(), ": ") })
		person.WriteString("any\nany\n") // so that the test ends if it asks
		if code := <-ended; code != 2 || strings.Contains(screen.String(), "passphrase: ") {
			t.Errorf("brokerauth %s, at a terminal: exit code %d\n%s", args[0], code, screen)
		}
	}
	if len(p.broker.Requests()) != 0 {
		t.Error("the broker was asked")
	}
}

// Every login moves with its age; what was interrupted goes on; nothing is removed that did not arrive.
func TestStoreMove(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).at("tdameritrade", emulator.Config{}).with("BROKERAUTH_STORE", "")
	from, to := filepath.Join(p.dir, "from"), filepath.Join(p.dir, "to")
	const profiles = 12
	for i := range profiles {
		p.login("--store", "disk:"+from, "--profile", "p"+strconv.Itoa(i))
	}
	p.must(0, "login", "tdameritrade", "--store", "disk:"+from)
	records := func(dir string) map[string][]byte {
		found := map[string][]byte{}
		files, _ := filepath.Glob(filepath.Join(dir, "[a-z]*.json"))
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			found[filepath.Base(file)] = text
		}
		return found
	}
	all := records(from)
	if len(all) != profiles+1 {
		t.Fatalf("%d logins are stored", len(all))
	}
	// Killed again and again, it loses nothing.
	for delay := time.Duration(0); ; delay += max(3*time.Millisecond, delay/16) { // on a slow machine the start alone takes long
		cmd := p.command("store", "move", "disk:"+from, "disk:"+to)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(delay, func() { cmd.Process.Kill() })
		err := cmd.Wait()
		kill.Stop()
		old, moved := records(from), records(to)
		for name, text := range all {
			if !bytes.Equal(old[name], text) && !bytes.Equal(moved[name], text) {
				t.Fatalf("killed after %v: %s is in neither place", delay, name)
			}
		}
		if err == nil {
			if len(old) != 0 || len(moved) != len(all) {
				t.Fatalf("moved: %d are left and %d arrived, of %d", len(old), len(moved), len(all))
			}
			break
		}
	}
	p.must(0, "token", "schwab", "--profile", "p3")
	p.must(0, "token", "tdameritrade")
	wantAll(t, p.must(0, "status", "schwab", "--profile", "p3").out, "logged in ", to)

	// A login that is in both places in two forms stays in both, and the rest moves.
	p.login("--store", "disk:"+from, "--profile", "p3")
	p.login("--store", "disk:"+from, "--profile", "new")
	r := p.must(1, "store", "move", "disk:"+from, "disk:"+to)
	wantAll(t, r.errors, "p3", "another login")
	if left := records(from); len(left) != 1 || len(records(to)) != len(all)+1 {
		t.Errorf("%d are left", len(left))
	}
	// A name that is misspelt is not taken for a place that is empty, and nothing is made there.
	misspelt := filepath.Join(p.dir, "misspelt")
	for _, name := range []string{"sqlite:", "sealed+sqlite:", "disk:", "sealed+disk:"} {
		wantAll(t, p.must(1, "store", "move", name+misspelt, "disk:"+to).errors, misspelt+" does not exist")
		if _, err := os.Lstat(misspelt); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("moving from %s made it: %v", name, err)
		}
	}
	for _, bad := range [][]string{{"disk:" + from, "disk:" + from}, {"memory", "disk:" + from}, {"disk:" + from, "memory"}, {"disk:" + from}, {"nowhere", "disk"}} {
		p.must(2, append([]string{"store", "move"}, bad...)...)
	}
	p.quiet()
}

// A login that is renewed while it moves arrives renewed, and one that was renewed where it arrived is not put back.
func TestMoveRenewed(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).with("BROKERAUTH_STORE", "")
	from, to := filepath.Join(p.dir, "from"), filepath.Join(p.dir, "to")
	p.login("--store", "disk:"+from)
	old, err := os.ReadFile(p.record())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Base(p.record())
	p.must(0, "store", "move", "disk:"+from, "disk:"+to)
	p.must(0, "refresh", "schwab")
	renewed, err := os.ReadFile(filepath.Join(to, file))
	if err != nil {
		t.Fatal(err)
	}
	// As if the move had been killed before it removed what it had copied.
	p.write("from/"+file, string(old), 0o600)
	wantAll(t, p.must(0, "store", "move", "disk:"+from, "disk:"+to).out, "schwab: moved")
	if now, err := os.ReadFile(p.record()); err != nil || !bytes.Equal(now, renewed) {
		t.Errorf("the renewed login was replaced: %v", err)
	}
}

// What only says that a login was there once, and where it went, gives way to a login, at either end.
func TestStoreMoveOverMark(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).with("BROKERAUTH_STORE", "")
	one, two := "disk:"+filepath.Join(p.dir, "one"), "disk:"+filepath.Join(p.dir, "two")
	p.login("--store", two)
	p.must(0, "export", "schwab", "--move", "--store", two)
	p.login("--store", one)
	token := p.must(0, "token", "schwab").out
	wantAll(t, p.must(0, "store", "move", one, two).out, "schwab: moved")
	if p.must(0, "token", "schwab", "--store", two).out != token {
		t.Error("another login arrived")
	}
	p.login("--store", one)
	p.must(0, "export", "schwab", "--move", "--store", one)
	wantAll(t, p.must(0, "store", "move", one, two).out, "schwab: moved")
	if p.must(0, "token", "schwab", "--store", two).out != token {
		t.Error("a mark took the place of a login")
	}
	wantAll(t, p.must(0, "store", "move", one, two).out, "no login")
	p.quiet()
}

// Two names of one place must not have the only copy removed as if it were the old one; and two places of one kind are two.
func TestStoreMoveToItself(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).with("BROKERAUTH_STORE", "")
	from, link := filepath.Join(p.dir, "from"), filepath.Join(p.dir, "link")
	p.login("--store", "disk:"+from)
	if err := os.Symlink(from, link); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"disk:" + from, "disk:" + link} {
		wantAll(t, p.must(2, "store", "move", "disk:"+from, to).errors, "one place")
		p.must(0, "token", "schwab", "--store", "disk:"+from)
	}
	one, two := "sqlite:"+filepath.Join(p.dir, "one.db"), "sqlite:"+filepath.Join(p.dir, "two.db")
	p.must(0, "store", "move", "disk:"+from, one)
	wantAll(t, p.must(0, "store", "move", one, two).out, "schwab: moved")
	p.must(0, "token", "schwab")
}

// What a shared store holds may be anybody's, and must not make lines of its own.
func TestForgedLines(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{})
	p.login()
	folder := strings.TrimPrefix(filepath.Dir(p.record()), p.dir)
	for key, record := range map[brokerauth.Key]string{
		{Provider: "schwab", Identity: "i", Profile: "a\nforged"}:  `{"v":1,"token":{"access_token":"a","refresh_token":"r"}}`,
		{Provider: "b\nforged", Identity: "i", Profile: "default"}: `{"v":1,"token":{"access_token":"a","refresh_token":"r"}}`,
		{Provider: "schwab", Identity: "i", Profile: "gone"}:       `{"v":1,"moved":{"to":"x\nforged","at":"2026-01-01T00:00:00Z"}}`,
	} {
		p.write(filepath.Join(folder, key.String()+".json"), record, 0o600)
	}
	r := p.run("status")
	for line := range strings.Lines(r.out + r.errors) {
		if strings.HasPrefix(line, "forged") {
			t.Errorf("a record wrote a line of its own:\n%s%s", r.out, r.errors)
			break
		}
	}
	wantAll(t, r.out, "moved to x forged")
}

// Without a home a named folder serves, and nothing else is guessed.
func TestNoHome(t *testing.T) {
	t.Parallel()
	base := newPlace(t, emulator.Config{})
	p := base.with("HOME", "", "XDG_STATE_HOME", "", "XDG_CONFIG_HOME", "", "BROKERAUTH_STORE", "", "DBUS_SESSION_BUS_ADDRESS", noBus)
	dir := "disk:" + filepath.Join(p.dir, "logins")
	wantAll(t, p.must(2, "login", "schwab", "--store", "disk").errors, "HOME")
	r := p.login("--store", dir)
	wantAll(t, r.errors, "name the store again")
	p.must(0, "token", "schwab", "--store", dir)
	p.must(0, "status", "--store", dir)
}

// A store's password is neither noted nor shown.
func TestShownStore(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"disk:/a/b":                  "disk:/a/b",
		"sealed+disk:/a":             "sealed+disk:/a",
		"postgres://u:S3cr3t@h:1/db": "postgres://u@h:1/db",
		"redis://:S3cr3t@h/0":        "redis://h/0",
		"redis://u:S3cr%zz3t@h":      "redis://…",
		// Behind a password there may be the rest of it.
		"postgres://h/db?sslmode=require&password=S3cr3t":    "postgres://h/db?sslmode=require",
		"postgres://h/db?password=abc&S3cr3t=x&user=u":       "postgres://h/db",
		"postgres://h/db?user=u&p%61ssword=abc&b=S3cr3t&a=x": "postgres://h/db?user=u",
		"sealed+redis://h/0?db=1&sentinel_password=a&S3=cr":  "sealed+redis://h/0?db=1",
		// Without the escapes that it needs a password is read as something else.
		"postgres://u@h/db?password=100%S3cr3t":                "postgres://…",
		"postgres://u@h/db?sslmode=require;password=S3cr3t":    "postgres://…",
		"sealed+postgres://u@h/db?password=100%S3cr3t":         "sealed+postgres://…",
		"postgres://h/db?user=u&password=abc&S3cr3t":           "postgres://…",
		"postgres://h/db?S3cr3t&user=u&password=abc":           "postgres://…",
		"redis://h/0?sentinel_password=abc&&S3cr3t&db=1":       "redis://…",
		"redis://h/0?password=abc&=S3cr3t":                     "redis://…",
		"postgres://h/db?password=S3cr3t&":                     "postgres://h/db",
		"postgres://u:12#S3cr3t@h/db":                          "postgres://…",
		"redis://:9/S3cr3t@h:6379/0":                           "redis://…",
		"redis://:12?S3cr3t@h:6379/0":                          "redis://…",
		"postgres://u@h/db?sslmode=require&application_name=a": "postgres://u@h/db?sslmode=require&application_name=a",
		// Of what is no store's name nobody can say what is its password.
		"u:S3cr3t@h/db":                        "…",
		"sealed+u:S3cr3t@h/db":                 "sealed+…",
		"S3cr3t@h":                             "…",
		"u:S3cr3t://x@h/db":                    "…",
		"u://S3cr3t@h/db":                      "u://…",
		"u:S3cr3t://x":                         "u:…",
		"postgres:/u:S3cr3t@h/db":              "…",
		"postgres:u:S3cr3t":                    "postgres:…",
		"host=h pwd=S3cr3t":                    "host=…",
		"sqlite:/a@b/c.db?_pragma=key(S3cr3t)": "sqlite:/a@b/c.db",
		"sqlite:///a.db?_pragma=key('S3cr3t')": "sqlite:///a.db",
		"sealed+sqlite:a.db?_pragma=hexkey('1": "sealed+sqlite:a.db",
		"disk:/a@b/c:d":                        "disk:/a@b/c:d",
		"disk:/a://b":                          "disk:/a://b",
		"keyrings":                             "keyrings",
		"/a/b":                                 "/a/b",
	} {
		if got := shown(name); got != want && !(strings.HasPrefix(name, "redis://:") && !strings.Contains(got, "S3cr3t")) {
			t.Errorf("shown(%q) = %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{
		"postgres://u@h/db?password=100%S3cr3t", "sealed+postgres://u@h/db?password=100%S3cr3t", "postgres://u:12#S3cr3t@h/db",
		"redis://:9/S3cr3t@h:6379/0", "redis://:12?S3cr3t@h:6379/0", "host=h user=u password=S3cr3t",
		"u:S3cr3t@h/db", "sealed+u:S3cr3t@h/db", "u:S3cr3t://x", "sqlite:/a.db?_pragma=key(S3cr3t)", "sqlite:~/a.db?_pragma=key(S3cr3t)",
		"sqlite:///a.db?_pragma=key(S3cr3t)",
	} {
		s := &settings{sources: []source{{"a test", func(setting string) string {
			if setting == "BROKERAUTH_STORE" {
				return name
			}
			return ""
		}}}}
		if store, err := new(app).openNamed(t.Context(), s, name); err == nil || strings.Contains(err.Error()+store.lasting, "S3cr3t") {
			t.Errorf("%s was opened as %q: %v", name, store.lasting, err)
		}
	}
}

// A store is named by what is shown of it, and by nothing with a password of its own.
func TestNamedAsShown(t *testing.T) {
	t.Parallel()
	const set = "postgres://h/db?sslmode=require&password=abc&S3=cr3t"
	s := &settings{sources: []source{{"a test", func(setting string) string { return map[string]string{"BROKERAUTH_STORE": set}[setting] }}}}
	if got, err := s.address(shown(set)); err != nil || got != set {
		t.Errorf("%q, %v", got, err)
	}
	for _, typed := range []string{"postgres://other/db?password=abc", "postgres://other/db?a=1&password=abc&S3=cr3t", "postgres://u:abc@other/db"} {
		if got, err := s.address(typed); !isUsage(err) || strings.Contains(err.Error(), "abc") || strings.Contains(err.Error(), "cr3t") {
			t.Errorf("%q, %v", got, err)
		}
	}
}

// A password in an address that is none, or in what is no address at all, is in nothing that a command prints or makes.
func TestMistakenStoreShowsNoPassword(t *testing.T) {
	t.Parallel()
	base := newPlace(t, emulator.Config{})
	file := "sqlite:" + filepath.Join(base.dir, "logins.db") + "?_pragma=key(S3cr3t)"
	places := []*place{base.with("BROKERAUTH_STORE", "", "BROKERAUTH_STORE_FILE", "postgres://u:S3cr3t@h/db")}
	for _, name := range []string{"u:S3cr3t@h/db", "sealed+u:S3cr3t@h/db", file, "sealed+" + file} {
		places = append(places, base.with("BROKERAUTH_STORE", name))
	}
	for _, p := range places {
		for _, args := range [][]string{{"status"}, {"token", "schwab"}, {"doctor"}, {"login", "schwab"}, {"logout", "schwab"}} {
			if r := p.must(2, args...); strings.Contains(r.out+r.errors, "S3cr3t") {
				t.Errorf("%s shows the password:\n%s%s", args[0], r.out, r.errors)
			}
		}
	}
	for _, names := range [][]string{{file, "disk"}, {"disk", file}, {"u:S3cr3t@h/db", "disk"}} {
		if r := base.run("store", "move", names[0], names[1]); r.code == 0 || strings.Contains(r.out+r.errors, "S3cr3t") {
			t.Errorf("store move shows the password: %d\n%s%s", r.code, r.out, r.errors)
		}
	}
	left, err := filepath.Glob(filepath.Join(base.dir, "logins.db*"))
	if err != nil || len(left) > 0 {
		t.Errorf("it left %q, %v", left, err)
	}
}

// A command whose lock others spoil, or that is another user's, says what is wrong.
func TestNotesSpoiled(t *testing.T) {
	t.Parallel()
	p := newPlace(t, emulator.Config{}).with("BROKERAUTH_STORE", "", "DBUS_SESSION_BUS_ADDRESS", noBus)
	p.login("--store", "disk:"+filepath.Join(p.dir, "logins"))
	notes := filepath.Join(p.env["XDG_STATE_HOME"], "brokerauth", "stores")
	files, err := filepath.Glob(filepath.Join(notes, "~kept-in.*.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the notes are %q, %v", files, err)
	}
	if err := os.Chmod(files[0], 0o644); err != nil {
		t.Fatal(err)
	}
	wantAll(t, p.must(1, "token", "schwab").errors, "chmod 600", "--store")
}

// typing runs the command in a terminal of its own, and answers each question with what follows it.
func (p *place) typing(args []string, dialog ...string) (shown string, code int) {
	p.t.Helper()
	person, screen, wait := p.start(args...)
	for i := 0; i < len(dialog); i += 2 {
		until(p.t.(*testing.T), "it asks for "+dialog[i], func() bool { return strings.Contains(screen.String(), dialog[i]) })
		person.WriteString(dialog[i+1] + "\n")
	}
	code = wait()
	until(p.t.(*testing.T), "all of it is shown", func() bool { return code == 0 || strings.Contains(screen.String(), "brokerauth: ") })
	return screen.String(), code
}
