package keyring_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance"
	"github.com/brokerauth/brokerauth/storage/keyring"
)

// busConfig is a bus that can start one keyring, which is none: what runs on it is what the test starts.
const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:tmpdir=%[1]s</listen><auth>EXTERNAL</auth><servicedir>%[1]s</servicedir>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy>
</busconfig>`

const gnomeKeyring = `printf pw | gnome-keyring-daemon --foreground --unlock --components=secrets >"$HOME/log" 2>&1`

// startBus starts a bus of the test's own, and start, a shell command of which the last job ends with the bus. It makes
// the bus the test's, and returns the bus's folder, the job's home, and that job's process id.
func startBus(t testing.TB, start string) (dir string, pid int) {
	t.Helper()
	for _, engine := range []string{"dbus-run-session", "gnome-keyring-daemon", "secret-tool"} {
		if _, err := exec.LookPath(engine); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip("there is no gnome-keyring to test with: install gnome-keyring, dbus and libsecret-tools")
		}
	}
	dir, err := os.MkdirTemp("", "bus-") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	config := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, busConfig, dir), 0o600); err != nil {
		t.Fatal(err)
	}
	activated := filepath.Join(dir, "activated")
	service := fmt.Appendf(nil, "[D-BUS Service]\nName=org.freedesktop.secrets\nExec=/usr/bin/touch %s\n", activated)
	if err := os.WriteFile(filepath.Join(dir, "keyring.service"), service, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := os.Stat(activated); err == nil {
			t.Error("a keyring was started through the bus")
		}
	})
	// Whenever this process ends, cat does, and all the rest with it.
	cmd := exec.Command("dbus-run-session", "--config-file="+config, "--", "sh", "-c",
		start+`echo "$DBUS_SESSION_BUS_ADDRESS" "${!:-0}"; cat >/dev/null; test -z "$!" || kill -KILL $!`)
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_RUNTIME_DIR="+dir, "XDG_DATA_HOME="+dir)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	fields := strings.Fields(line)
	if err != nil || len(fields) != 2 {
		t.Fatalf("the bus says %q, %v", line, err)
	}
	if pid, err = strconv.Atoi(fields[1]); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", fields[0])
	return dir, pid
}

// startKeyring starts gnome-keyring and waits until it is ready.
func startKeyring(t testing.TB) (dir string, pid int) {
	t.Helper()
	dir, pid = startBus(t, gnomeKeyring+" & ")
	awaitKeyring(t)
	return dir, pid
}

// startAgain starts another gnome-keyring after the one of the same home has ended.
func startAgain(t testing.TB, home string) {
	t.Helper()
	cmd := exec.Command("sh", "-c", "exec "+gnomeKeyring)
	cmd.Env = append(os.Environ(), "HOME="+home, "XDG_RUNTIME_DIR="+home, "XDG_DATA_HOME="+home)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // the shell has a child
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
	})
	awaitKeyring(t)
}

// aborted reports whether the gnome-keyring of home has ended by its own fault: a first call that it is not ready for,
// of another client than the one under test.
func aborted(t testing.TB, home string) bool {
	t.Helper()
	log, err := os.ReadFile(filepath.Join(home, "log"))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Contains(log, []byte("gkd_secret_service_get_pkcs11_session: assertion 'client' failed"))
}

func awaitKeyring(t testing.TB) {
	t.Helper()
	bus := dial(t)
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		owned := false
		if err := bus.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, "org.freedesktop.secrets").Store(&owned); err != nil {
			t.Fatal(err)
		}
		if owned {
			return
		}
		if time.Now().After(end) {
			t.Fatal("gnome-keyring does not start")
		}
	}
}

func dial(t testing.TB) *dbus.Conn {
	t.Helper()
	conn, err := dbus.Connect(os.Getenv("DBUS_SESSION_BUS_ADDRESS"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// inChild is set for the processes that the conformance suite starts: they use their parent's keyring.
const inChild = "BROKERAUTH_TEST_KEYRING"

func TestStore(t *testing.T) {
	if testing.Short() {
		t.Skip("this takes half a minute; TestStandin is the same without the system's keyring")
	}
	if os.Getenv(inChild) == "" {
		startKeyring(t)
		t.Setenv(inChild, "1")
	}
	conformance.TestStore(t, func(t *testing.T, at string) brokerauth.Store {
		store := keyring.NewAt(filepath.Base(at), at)
		keyring.Patient(store)
		return store
	})
}

// libsecret's own program finds the items, and nothing of ours is left in the keyring after a deletion.
func TestGnomeKeyring(t *testing.T) {
	home, _ := startKeyring(t)
	store := keyring.NewAt("test", t.TempDir())
	keyring.SmallItems(store)
	keyring.Patient(store)
	secretTool := func(args ...string) (out []byte, err error) {
		t.Helper()
		for range 3 {
			out, err = exec.CommandContext(t.Context(), "secret-tool", args...).CombinedOutput()
			if !aborted(t, home) {
				break
			}
			startAgain(t, home)
		}
		return out, err
	}
	lookUp := func(want bool) {
		t.Helper()
		out, err := secretTool("lookup", "service", "test", "username", key.String())
		if found := err == nil && bytes.Contains(out, []byte(secret)); found != want {
			t.Errorf("secret-tool finds %q, %v, want the record: %v", out, err, want)
		}
	}
	lookUp(false)
	mustSwap(t, store, nil, small)
	lookUp(true)
	mustSwap(t, store, small, large)
	mustSwap(t, store, large, other)
	mustHold(t, store, other)
	mustSwap(t, store, other, small)
	lookUp(true)
	mustSwap(t, store, small, nil)
	lookUp(false)
	out, err := secretTool("search", "--all", "service", "test")
	if err != nil || len(out) > 0 {
		t.Errorf("after the deletion the keyring has %q, %v", out, err)
	}
}

func TestGnomeKeyringLocked(t *testing.T) {
	startKeyring(t)
	dir := t.TempDir()
	store := keyring.NewAt("test", dir)
	keyring.Patient(store)
	mustSwap(t, store, nil, small)
	login := []dbus.ObjectPath{"/org/freedesktop/secrets/collection/login"}
	service := dial(t).Object("org.freedesktop.secrets", "/org/freedesktop/secrets")
	service.Call("org.freedesktop.Secret.Service.ReadAlias", 0, "default") // the first call may be lost on gnome-keyring
	if err := service.Call("org.freedesktop.Secret.Service.Lock", 0, login).Err; err != nil {
		t.Fatal(err)
	}
	_, err := store.Load(t.Context(), key)
	wantKinds(t, "Load", err, keyring.ErrLocked, brokerauth.ErrUnavailable)
	_, err = store.Load(t.Context(), brokerauth.Key{Provider: "absent"})
	wantKinds(t, "Load of what may be absent", err, keyring.ErrLocked, brokerauth.ErrUnavailable)
	_, err = store.CompareAndSwap(t.Context(), key, small, other)
	wantKinds(t, "CompareAndSwap", err, keyring.ErrLocked, brokerauth.ErrUnavailable)
	// gnome-keyring would ask here, and dismisses the question itself as there is no screen.
	asking := keyring.NewAt("test", dir)
	asking.Prompt = true
	_, err = asking.Load(t.Context(), key)
	wantKinds(t, "Load with Prompt", err, keyring.ErrLocked, fs.ErrPermission)
}

// After its password was forgotten, an old keyring stays locked beside a new one: nobody can tell what is in it until it is
// deleted, as the error says.
func TestGnomeKeyringForgotten(t *testing.T) {
	startKeyring(t)
	store := keyring.NewAt("test", t.TempDir())
	keyring.Patient(store)
	mustSwap(t, store, nil, small)
	const path, iface = "/org/freedesktop/secrets", "org.freedesktop.Secret."
	conn := dial(t)
	call := func(at dbus.ObjectPath, method string, args []any, results ...any) {
		t.Helper()
		if err := conn.Object("org.freedesktop.secrets", at).Call(method, 0, args...).Store(results...); err != nil {
			t.Fatal(method, err)
		}
	}
	conn.Object("org.freedesktop.secrets", path).Call(iface+"Service.ReadAlias", 0, "default") // the first call may be lost on gnome-keyring
	var output dbus.Variant
	var session, prompt, fresh dbus.ObjectPath
	var locked []dbus.ObjectPath
	const old = dbus.ObjectPath(path + "/collection/login")
	call(path, iface+"Service.OpenSession", []any{"plain", dbus.MakeVariant("")}, &output, &session)
	call(path, iface+"Service.Lock", []any{[]dbus.ObjectPath{old}}, &locked, &prompt)
	password := struct {
		Session           dbus.ObjectPath
		Parameters, Value []byte
		ContentType       string
	}{session, []byte{}, []byte("new"), "text/plain"}
	call(path, "org.gnome.keyring.InternalUnsupportedGuiltRiddenInterface.CreateWithMasterPassword",
		[]any{map[string]dbus.Variant{iface + "Collection.Label": dbus.MakeVariant("new")}, password}, &fresh)
	call(path, iface+"Service.SetAlias", []any{"default", fresh})
	_, err := store.CompareAndSwap(t.Context(), key, nil, other)
	wantKinds(t, "CompareAndSwap", err, keyring.ErrLocked, brokerauth.ErrUnavailable)
	if err == nil || !strings.Contains(err.Error(), "delete it if") {
		t.Errorf("%v, and no word of deleting it", err)
	}
	call(old, iface+"Collection.Delete", nil, &prompt)
	mustSwap(t, store, nil, other)
	mustHold(t, store, other)
}

// A stopped keyring neither hangs its callers nor lets another writer in before it has done what it was asked for.
func TestGnomeKeyringStopped(t *testing.T) {
	_, pid := startKeyring(t)
	dir := t.TempDir()
	store := keyring.NewAt("test", dir)
	first := keyring.NewAt("test", dir)
	keyring.Patient(first)
	mustSwap(t, first, nil, small)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, err := store.CompareAndSwap(t.Context(), key, small, other)
	wantKinds(t, "CompareAndSwap", err, brokerauth.ErrUnavailable, os.ErrDeadlineExceeded)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = keyring.NewAt("test", dir).CompareAndSwap(ctx, key, small, other)
	wantKinds(t, "another's CompareAndSwap", err, context.DeadlineExceeded)
	if took := time.Since(began); took < 2*time.Second { // how much longer depends on the machine: TestHangs knows to the instant
		t.Errorf("it took %v", took)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	patient := keyring.NewAt("test", dir)
	keyring.Patient(patient)
	mustHold(t, patient, small)
	mustSwap(t, patient, small, other)
}

// A keyring that is started anew between two calls is found again, without an error.
func TestGnomeKeyringStartedAnew(t *testing.T) {
	home, pid := startKeyring(t)
	store := keyring.NewAt("test", t.TempDir())
	keyring.Patient(store)
	mustSwap(t, store, nil, small)
	gone := func() bool {
		owned := true
		if err := dial(t).BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, "org.freedesktop.secrets").Store(&owned); err != nil {
			t.Fatal(err)
		}
		return !owned
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for !gone() {
		time.Sleep(time.Millisecond)
	}
	_, err := store.Load(t.Context(), key)
	wantKinds(t, "Load while there is none", err, brokerauth.ErrUnavailable, errors.ErrUnsupported)
	startAgain(t, home)
	mustHold(t, store, small)
	mustSwap(t, store, small, other)
}

func TestNoKeyring(t *testing.T) {
	startBus(t, "")
	store := keyring.NewAt("test", t.TempDir())
	keyring.Patient(store)
	absent := func(what string) {
		t.Helper()
		_, err := store.Load(t.Context(), key)
		wantKinds(t, what+": Load", err, brokerauth.ErrUnavailable, errors.ErrUnsupported)
		_, err = store.CompareAndSwap(t.Context(), key, nil, small)
		wantKinds(t, what+": CompareAndSwap", err, brokerauth.ErrUnavailable, errors.ErrUnsupported)
	}
	absent("a bus without a keyring")

	// None of these may be started.
	dir := t.TempDir()
	started := filepath.Join(dir, "started")
	for _, name := range []string{"dbus-launch", "gnome-keyring-daemon"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\ntouch "+started+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	// Nor may a secret go where this leads.
	host, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	go func() {
		for {
			conn, err := host.Accept()
			if err != nil {
				return
			}
			conn.Close()
			t.Error("it connects to a host")
		}
	}()
	for _, address := range []string{
		"unix:path=" + dir + "/nothing", "autolaunch:", "unixexec:path=" + dir + "/dbus-launch", "nonsense",
		fmt.Sprintf("tcp:host=127.0.0.1,port=%d", host.Addr().(*net.TCPAddr).Port),
	} {
		t.Setenv("DBUS_SESSION_BUS_ADDRESS", address)
		absent(address)
	}
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", "")
	if _, err := os.Stat(fmt.Sprintf("/run/user/%d/bus", os.Getuid())); err != nil { // else it is somebody's desktop
		absent("no address")
	}
	if _, err := os.Stat(started); err == nil {
		t.Error("a program was started")
	}
}

// pretend is a keyring on the bus that behaves as others than gnome-keyring do, and worse.
type pretend struct {
	locked   bool   // and then it finds nothing
	unlock   string // how the dialog to unlock ends: "", which is without one, or "answer", "dismiss", "never"
	confirms bool   // changes are done by a prompt, as KeePassXC does
	refuses  bool   // the user says no to such a prompt
	bare     bool   // there is no default collection
	fail     error  // of every call for a secret
	leaves   bool   // when it is asked for one

	mu      sync.Mutex
	conn    *dbus.Conn
	items   map[dbus.ObjectPath]pretendItem
	waiting map[dbus.ObjectPath]func() // what prompts will do
	known   map[string]bool            // who has called before
	made    int
	shown   int // prompts that were shown
	taken   int // and that were taken back
}

type pretendItem struct {
	attributes map[string]string
	value      []byte
}

type pretendSecret struct {
	Session           dbus.ObjectPath
	Parameters, Value []byte
	ContentType       string
}

func startPretend(t *testing.T, p *pretend) *keyring.Store {
	t.Helper()
	startBus(t, "")
	p.conn, p.items, p.waiting, p.known = dial(t), map[dbus.ObjectPath]pretendItem{}, map[dbus.ObjectPath]func(){}, map[string]bool{}
	const none = dbus.ObjectPath("/")
	path := func(msg dbus.Message) dbus.ObjectPath { return msg.Headers[dbus.FieldPath].Value().(dbus.ObjectPath) }
	next := func(kind string) dbus.ObjectPath {
		p.made++
		return dbus.ObjectPath(fmt.Sprintf("/org/freedesktop/secrets/%s/%d", kind, p.made))
	}
	// change does f, or returns the prompt that will.
	change := func(f func()) dbus.ObjectPath {
		if !p.confirms {
			f()
			return none
		}
		prompt := next("prompt")
		p.waiting[prompt] = f
		return prompt
	}
	export := func(iface string, methods map[string]any) {
		t.Helper()
		if err := p.conn.ExportSubtreeMethodTable(methods, "/org/freedesktop/secrets", iface); err != nil {
			t.Fatal(err)
		}
	}
	failure := func() *dbus.Error {
		if e, ok := errors.AsType[dbus.Error](p.fail); ok {
			return &e
		}
		return nil
	}
	export("org.freedesktop.Secret.Service", map[string]any{
		"OpenSession": func(msg dbus.Message, _ string, _ dbus.Variant) (dbus.Variant, dbus.ObjectPath, *dbus.Error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			if sender, _ := msg.Headers[dbus.FieldSender].Value().(string); !p.known[sender] {
				t.Error("the first call is OpenSession, of which gnome-keyring may die")
			}
			return dbus.MakeVariant(""), "/org/freedesktop/secrets/session/1", nil
		},
		"ReadAlias": func(msg dbus.Message, _ string) (dbus.ObjectPath, *dbus.Error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			sender, _ := msg.Headers[dbus.FieldSender].Value().(string)
			p.known[sender] = true
			if p.bare {
				return none, nil
			}
			return "/org/freedesktop/secrets/collection/Passwords", nil
		},
		"SearchItems": func(attributes map[string]string) ([]dbus.ObjectPath, []dbus.ObjectPath, *dbus.Error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			found := []dbus.ObjectPath{}
			for path, item := range p.items {
				if !p.locked && maps.Equal(item.attributes, attributes) {
					found = append(found, path)
				}
			}
			return found, []dbus.ObjectPath{}, nil
		},
		"Unlock": func(paths []dbus.ObjectPath) ([]dbus.ObjectPath, dbus.ObjectPath, *dbus.Error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.unlock == "" {
				p.locked = false
				return paths, none, nil
			}
			prompt := next("prompt")
			p.waiting[prompt] = func() { p.locked = false }
			return []dbus.ObjectPath{}, prompt, nil
		},
	})
	export("org.freedesktop.DBus.Properties", map[string]any{
		"Get": func(iface, name string) (dbus.Variant, *dbus.Error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			return dbus.MakeVariant(p.locked), nil
		},
	})
	export("org.freedesktop.Secret.Collection", map[string]any{
		"CreateItem": func(properties map[string]dbus.Variant, s pretendSecret, replace bool) (dbus.ObjectPath, dbus.ObjectPath, *dbus.Error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			attributes, _ := properties["org.freedesktop.Secret.Item.Attributes"].Value().(map[string]string)
			item := next("collection/Passwords")
			prompt := change(func() { p.items[item] = pretendItem{attributes, s.Value} })
			if prompt != none {
				return none, prompt, nil
			}
			return item, none, nil
		},
	})
	export("org.freedesktop.Secret.Item", map[string]any{
		"GetSecret": func(msg dbus.Message, session dbus.ObjectPath) (pretendSecret, *dbus.Error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.leaves {
				p.conn.Close()
			}
			return pretendSecret{session, []byte{}, p.items[path(msg)].value, "text/plain"}, failure()
		},
		"SetSecret": func(msg dbus.Message, s pretendSecret) *dbus.Error {
			p.mu.Lock()
			defer p.mu.Unlock()
			item := p.items[path(msg)]
			item.value = s.Value
			p.items[path(msg)] = item
			return failure()
		},
		"Delete": func(msg dbus.Message) (dbus.ObjectPath, *dbus.Error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			return change(func() { delete(p.items, path(msg)) }), nil
		},
	})
	export("org.freedesktop.Secret.Prompt", map[string]any{
		"Prompt": func(msg dbus.Message, window string) *dbus.Error {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.shown++
			dismissed := p.unlock == "dismiss" || p.refuses
			if p.unlock == "never" {
				return nil
			}
			if !dismissed {
				p.waiting[path(msg)]()
			}
			p.conn.Emit(path(msg), "org.freedesktop.Secret.Prompt.Completed", dismissed, dbus.MakeVariant(""))
			return nil
		},
		"Dismiss": func(msg dbus.Message) *dbus.Error {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.taken++
			return nil
		},
	})
	if _, err := p.conn.RequestName("org.freedesktop.secrets", dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	store := keyring.NewAt("test", t.TempDir())
	keyring.Patient(store)
	return store
}

func (p *pretend) counts() [2]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return [2]int{p.shown, p.taken}
}

func (p *pretend) failWith(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail = err
}

func (p *pretend) mustBeEmpty(t *testing.T) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.items) > 0 {
		t.Errorf("after the deletion there are %d items", len(p.items))
	}
}

func TestOtherKeyrings(t *testing.T) {
	t.Run("changes by prompts", func(t *testing.T) {
		p := &pretend{confirms: true}
		store := startPretend(t, p)
		mustSwap(t, store, nil, small)
		mustSwap(t, store, small, other)
		mustHold(t, store, other)
		mustSwap(t, store, other, nil)
		p.mustBeEmpty(t)
	})
	t.Run("the user refuses a change", func(t *testing.T) {
		store := startPretend(t, &pretend{confirms: true, refuses: true})
		_, err := store.CompareAndSwap(t.Context(), key, nil, small)
		wantKinds(t, "CompareAndSwap", err, fs.ErrPermission)
	})
	t.Run("no password", func(t *testing.T) {
		p := &pretend{locked: true}
		store := startPretend(t, p)
		mustSwap(t, store, nil, small)
		if p.counts() != [2]int{} {
			t.Error("a prompt was touched")
		}
	})
	t.Run("locked", func(t *testing.T) {
		p := &pretend{locked: true, unlock: "answer"}
		store := startPretend(t, p)
		_, err := store.Load(t.Context(), key)
		wantKinds(t, "Load", err, keyring.ErrLocked, brokerauth.ErrUnavailable)
		_, err = store.CompareAndSwap(t.Context(), key, nil, small)
		wantKinds(t, "CompareAndSwap", err, keyring.ErrLocked, brokerauth.ErrUnavailable)
		if got, want := p.counts(), [2]int{0, 2}; got != want {
			t.Errorf("prompts shown and taken back: %v, want %v", got, want)
		}
	})
	t.Run("an answered dialog", func(t *testing.T) {
		p := &pretend{locked: true, unlock: "answer"}
		store := startPretend(t, p)
		store.Prompt = true
		mustSwap(t, store, nil, small)
		mustHold(t, store, small)
		if got, want := p.counts(), [2]int{1, 0}; got != want {
			t.Errorf("prompts shown and taken back: %v, want %v", got, want)
		}
	})
	t.Run("a dismissed dialog", func(t *testing.T) {
		store := startPretend(t, &pretend{locked: true, unlock: "dismiss"})
		store.Prompt = true
		_, err := store.Load(t.Context(), key)
		wantKinds(t, "Load", err, keyring.ErrLocked, fs.ErrPermission)
	})
	t.Run("a dialog that nobody answers", func(t *testing.T) {
		p := &pretend{locked: true, unlock: "never"}
		store := startPretend(t, p)
		store.Prompt = true
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			for p.counts()[0] == 0 && ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
			cancel()
		}()
		if _, err := store.Load(ctx, key); !errors.Is(err, context.Canceled) {
			t.Errorf("Load: %v, want context.Canceled", err)
		}
		for end := time.Now().Add(30 * time.Second); p.counts() != [2]int{1, 1}; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("prompts shown and taken back: %v, want one each", p.counts())
			}
		}
	})
	t.Run("no default collection", func(t *testing.T) {
		store := startPretend(t, &pretend{bare: true})
		mustHold(t, store, nil)
		_, err := store.CompareAndSwap(t.Context(), key, nil, small)
		wantKinds(t, "CompareAndSwap", err, brokerauth.ErrUnavailable, errors.ErrUnsupported)
	})
	t.Run("the same item twice", func(t *testing.T) {
		p := &pretend{}
		store := startPretend(t, p)
		mustSwap(t, store, nil, small)
		p.mu.Lock()
		for path, item := range maps.Clone(p.items) {
			p.items[path+"_copy"] = item
		}
		p.mu.Unlock()
		mustSwap(t, store, small, other)
		for range 20 {
			mustHold(t, store, other) // whichever it reads
		}
		mustSwap(t, store, other, nil)
		p.mustBeEmpty(t)
	})
	t.Run("errors that tell secrets", func(t *testing.T) {
		p := &pretend{}
		store := startPretend(t, p)
		mustSwap(t, store, nil, small)
		p.failWith(dbus.Error{Name: "org.freedesktop.DBus.Error.Failed", Body: []any{"cannot keep " + secret}})
		_, err := store.Load(t.Context(), key)
		wantKinds(t, "Load", err, brokerauth.ErrUnavailable)
		p.failWith(dbus.Error{Name: "org.freedesktop.Secret.Error.IsLocked"})
		_, err = store.Load(t.Context(), key)
		wantKinds(t, "Load from what was locked meanwhile", err, keyring.ErrLocked, brokerauth.ErrUnavailable)
	})
	t.Run("it goes away", func(t *testing.T) {
		p := &pretend{}
		store := startPretend(t, p)
		mustSwap(t, store, nil, small)
		p.mu.Lock()
		p.leaves = true
		p.mu.Unlock()
		_, err := store.Load(t.Context(), key)
		wantKinds(t, "Load", err, brokerauth.ErrUnavailable)
	})
}

func BenchmarkGnomeKeyring(b *testing.B) {
	startKeyring(b)
	store := keyring.NewAt("test", b.TempDir())
	records := [2][]byte{bytes.Repeat([]byte("a"), 1024), bytes.Repeat([]byte("b"), 1024)}
	mustSwap(b, store, nil, records[1])
	b.Run("Load", func(b *testing.B) {
		for b.Loop() {
			mustHold(b, store, records[1])
		}
	})
	b.Run("CompareAndSwap", func(b *testing.B) {
		for b.Loop() {
			mustSwap(b, store, records[1], records[0])
			records[0], records[1] = records[1], records[0]
		}
	})
}
