package sealed_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/providers/schwab"
	"github.com/brokerauth/brokerauth/storage/disk"
	"github.com/brokerauth/brokerauth/storage/memory"
	"github.com/brokerauth/brokerauth/storage/sealed"
)

var (
	key      = brokerauth.Key{Provider: "schwab", Identity: "3fa8", Profile: "default"}
	otherKey = brokerauth.Key{Provider: "schwab", Identity: "3fa8", Profile: "other"}
	ownKey   = brokerauth.Key{Provider: "~sealed"} // where the data keys are
)

const childDir, childName = "BROKERAUTH_TEST_DIR", "BROKERAUTH_TEST_NAME"

// TestMain is also what the child processes run: their environment says so.
func TestMain(m *testing.M) {
	dir := os.Getenv(childDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	if err := firstRun(dir, os.Getenv(childName)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// firstRun is a program that was never run before, and saves a login.
func firstRun(dir, name string) error {
	inner, err := disk.New(filepath.Join(dir, "logins"))
	if err != nil {
		return err
	}
	keys, err := disk.New(filepath.Join(dir, "keys"))
	if err != nil {
		return err
	}
	store, err := sealed.New(inner, sealed.KeptIn(keys))
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	swapped, err := store.CompareAndSwap(ctx, brokerauth.Key{Provider: "schwab", Profile: name}, nil, []byte("login of "+name))
	if err == nil && !swapped {
		err = errors.New("not saved")
	}
	return err
}

// secret is a caller's own key, the same in every process.
func secret(n byte) *sealed.Secret { return sealed.Key(bytes.Repeat([]byte{n}, 32)) }

func open(t testing.TB, inner brokerauth.Store, secret *sealed.Secret, also ...*sealed.Secret) brokerauth.Store {
	t.Helper()
	store, err := sealed.New(inner, secret, also...)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func openDisk(t testing.TB, dir string) *disk.Store {
	t.Helper()
	store, err := disk.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func mustSwap(t testing.TB, store brokerauth.Store, key brokerauth.Key, old, new string) {
	t.Helper()
	bytesOf := func(s string) []byte {
		if s == "" {
			return nil
		}
		return []byte(s)
	}
	if swapped, err := store.CompareAndSwap(t.Context(), key, bytesOf(old), bytesOf(new)); err != nil || !swapped {
		t.Fatalf("CompareAndSwap(%s) = %v, %v, want true", key, swapped, err)
	}
}

func mustHold(t testing.TB, store brokerauth.Store, key brokerauth.Key, want string) {
	t.Helper()
	if got, err := store.Load(t.Context(), key); err != nil || string(got) != want {
		t.Fatalf("Load(%s) = %q, %v, want %q", key, got, err, want)
	}
}

// mustRefuse checks that nothing reads or changes the record at key, and how that is said.
func mustRefuse(t testing.TB, store, inner brokerauth.Store, key brokerauth.Key, want error) {
	t.Helper()
	ctx := t.Context()
	before := raw(t, inner, key)
	_, loadErr := store.Load(ctx, key)
	_, createErr := store.CompareAndSwap(ctx, key, nil, []byte("new"))
	_, swapErr := store.CompareAndSwap(ctx, key, before, []byte("new"))
	_, deleteErr := store.CompareAndSwap(ctx, key, before, nil)
	for name, err := range map[string]error{"Load": loadErr, "creating": createErr, "swapping": swapErr, "deleting": deleteErr} {
		checkKind(t, name, err, want)
	}
	if want != brokerauth.ErrCorrupt {
		if mover, ok := store.(interface {
			SetAside(ctx context.Context, key brokerauth.Key) (string, error)
		}); ok {
			_, err := mover.SetAside(ctx, key)
			checkKind(t, "SetAside", err, want)
		}
	}
	if after := raw(t, inner, key); !bytes.Equal(before, after) {
		t.Errorf("the record was changed")
	}
}

// checkKind checks that err matches want, and nothing else that a program acts on.
func checkKind(t testing.TB, what string, err, want error) {
	t.Helper()
	for _, kind := range []error{brokerauth.ErrRejected, brokerauth.ErrCorrupt, brokerauth.ErrUnavailable, brokerauth.ErrLoginRequired,
		fs.ErrNotExist, fs.ErrPermission, errors.ErrUnsupported} {
		if errors.Is(err, kind) != (kind == want) {
			t.Errorf("%s: %v, want %v alone", what, err, want)
		}
	}
}

func raw(t testing.TB, inner brokerauth.Store, key brokerauth.Key) []byte {
	t.Helper()
	box, err := inner.Load(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return box
}

// put writes to the inner store what somebody else may have put there.
func put(t testing.TB, inner brokerauth.Store, key brokerauth.Key, box []byte) {
	t.Helper()
	old, err := inner.Load(t.Context(), key)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if swapped, err := inner.CompareAndSwap(t.Context(), key, old, box); err != nil || !swapped {
		t.Fatal(swapped, err)
	}
}

func TestStoreOverMemory(t *testing.T) {
	conformance.TestStore(t, func(t *testing.T, at string) brokerauth.Store { return open(t, new(memory.Store), secret(1)) })
}

func TestStoreOverDisk(t *testing.T) {
	conformance.TestStore(t, func(t *testing.T, at string) brokerauth.Store { return open(t, openDisk(t, at), secret(1)) })
}

func TestBadSecrets(t *testing.T) {
	good := secret(1)
	for name, bad := range map[string]*sealed.Secret{
		"nil": nil, "zero": {}, "short key": sealed.Key(make([]byte, 31)), "hex": sealed.Key(make([]byte, 64)),
		"no passphrase": sealed.Passphrase(""), "no store": sealed.KeptIn(nil),
	} {
		if _, err := sealed.New(new(memory.Store), bad); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := sealed.New(new(memory.Store), good, bad); err == nil {
			t.Errorf("%s, second: no error", name)
		}
	}
	if _, err := sealed.New(nil, good); err == nil {
		t.Error("no inner store: no error")
	}
}

func TestNothingReadable(t *testing.T) {
	dir := t.TempDir()
	inner := openDisk(t, dir)
	store := open(t, inner, sealed.KeptIn(new(memory.Store)))
	mustSwap(t, store, key, "", "a secret that is long enough to find")
	first := raw(t, inner, key)
	mustSwap(t, store, key, "a secret that is long enough to find", "a secret that is long enough to find")
	second := raw(t, inner, key)
	for name, record := range map[string][]byte{"first": first, "second": second, "keys": raw(t, inner, ownKey)} {
		if bytes.Contains(record, []byte("secret")) {
			t.Errorf("the %s record shows its secret", name)
		}
	}
	// A nonce that is used twice would give both records away.
	for i := range len(first) - 16 {
		if part := first[i : i+16]; i >= 15 && bytes.Contains(second, part) {
			t.Fatalf("two records share bytes %d to %d", i, i+16)
		}
	}
	where := store.(interface {
		Where(key brokerauth.Key) string
	}).Where(key)
	if file := filepath.Join(dir, key.String()+".json"); !strings.Contains(where, file) {
		t.Errorf("Where = %q, want %s in it", where, file)
	}
}

// database is a store that has a password, and leaves it out when it prints.
type database struct {
	brokerauth.Store
	password string
}

func (database) Format(f fmt.State, _ rune) { fmt.Fprint(f, "database") }

func TestSecretsDoNotPrint(t *testing.T) {
	const passphrase = "correct horse"
	secrets := []*sealed.Secret{sealed.Passphrase(passphrase), sealed.Key([]byte(strings.Repeat("k", 32)))}
	store := open(t, database{new(memory.Store), passphrase}, secrets[0], secrets[1])
	plain := open(t, new(memory.Store), secrets[0], secrets[1])
	mustSwap(t, plain, key, "", "record") // what is derived stays as secret
	held := struct {
		s *sealed.Secret
		b brokerauth.Store
	}{secrets[0], plain}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		text := fmt.Sprintf(verb+verb+verb+verb, secrets, *secrets[0], store, held)
		for _, leak := range []string{passphrase, fmt.Sprintf("%x", passphrase), "kkkk", "6b6b6b", "99 111 114", "107 107 107", "0x6b, 0x6b"} {
			if strings.Contains(text, leak) {
				t.Errorf("%s prints a secret: %s", verb, text)
			}
		}
	}
}

func TestWrongSecret(t *testing.T) {
	for name, c := range map[string]struct{ right, wrong *sealed.Secret }{
		"key":        {secret(1), secret(2)},
		"passphrase": {sealed.Passphrase("right"), sealed.Passphrase("wrong")},
		"kept":       {sealed.KeptIn(new(memory.Store)), sealed.KeptIn(new(memory.Store))},
		"kind":       {secret(1), sealed.KeptIn(new(memory.Store))},
	} {
		t.Run(name, func(t *testing.T) {
			inner := openDisk(t, t.TempDir())
			mustSwap(t, open(t, inner, c.right), key, "", "record")
			keys := raw(t, inner, ownKey)

			store := open(t, inner, c.wrong)
			mustRefuse(t, store, inner, key, brokerauth.ErrRejected)
			// A new login must not begin a second life under a mistyped passphrase.
			_, err := store.CompareAndSwap(t.Context(), otherKey, nil, []byte("other"))
			checkKind(t, "a new record", err, brokerauth.ErrRejected)
			if !bytes.Equal(raw(t, inner, ownKey), keys) {
				t.Error("a wrong secret changed the data keys")
			}
			mustHold(t, open(t, inner, c.right), key, "record")
			mustHold(t, open(t, inner, c.wrong, c.right), key, "record")
		})
	}
}

// Where the secret or the data keys are lost, the error says what there is left to do, and that does it.
func TestLostSecret(t *testing.T) {
	for name, lose := range map[string]func(inner *memory.Store){
		"the secret": func(*memory.Store) {},
		"whole keys": func(inner *memory.Store) { put(t, inner, ownKey, raw(t, inner, ownKey)[1:]) },
		"the record's key": func(inner *memory.Store) {
			other := new(memory.Store)
			mustSwap(t, open(t, other, secret(2)), key, "", "other")
			put(t, inner, ownKey, raw(t, other, ownKey))
		},
	} {
		t.Run(name, func(t *testing.T) {
			inner := new(memory.Store)
			mustSwap(t, open(t, inner, secret(1)), key, "", "record")
			lose(inner)
			store := open(t, inner, secret(2))
			_, err := store.Load(t.Context(), key)
			if checkKind(t, "Load", err, brokerauth.ErrRejected); !strings.Contains(err.Error(), "delete") {
				t.Errorf("Load: %v, and no word of what to do", err)
			}
			put(t, inner, key, nil)
			if !strings.Contains(err.Error(), "delete the record") {
				put(t, inner, ownKey, nil)
			}
			mustSwap(t, store, key, "", "new")
			mustHold(t, open(t, inner, secret(2)), key, "new")
		})
	}
}

func TestSecretDoesNotComeBack(t *testing.T) {
	inner, keys := new(memory.Store), new(memory.Store)
	mustSwap(t, open(t, inner, sealed.KeptIn(keys)), key, "", "record")
	kept, err := keys.Keys(t.Context())
	if err != nil || len(kept) != 1 || !strings.HasPrefix(kept[0].Provider, "~") {
		t.Fatalf("keys kept: %v, %v, want one of the library's own", kept, err)
	}
	was := raw(t, keys, kept[0])

	put(t, keys, kept[0], was[:31])
	mustRefuse(t, open(t, inner, sealed.KeptIn(keys)), inner, key, brokerauth.ErrRejected)
	put(t, keys, kept[0], nil)
	mustRefuse(t, open(t, inner, sealed.KeptIn(keys)), inner, key, brokerauth.ErrRejected)
	if kept, err := keys.Keys(t.Context()); err != nil || len(kept) > 0 {
		t.Errorf("a key was made that opens nothing: %v, %v", kept, err)
	}
	put(t, keys, kept[0], was)
	mustHold(t, open(t, inner, sealed.KeptIn(keys)), key, "record")
}

// failing is a store that cannot be reached, or is denied.
type failing struct {
	brokerauth.Store
	err error
}

func (s failing) Load(context.Context, brokerauth.Key) ([]byte, error) {
	return nil, fmt.Errorf("keyring: %w", s.err)
}

func (s failing) CompareAndSwap(context.Context, brokerauth.Key, []byte, []byte) (bool, error) {
	return false, fmt.Errorf("keyring: %w", s.err)
}

func TestKeyStoreFails(t *testing.T) {
	inner, keys := new(memory.Store), new(memory.Store)
	mustSwap(t, open(t, inner, sealed.KeptIn(keys)), key, "", "record")
	for _, kind := range []error{brokerauth.ErrUnavailable, fs.ErrPermission, errors.ErrUnsupported} {
		mustRefuse(t, open(t, inner, sealed.KeptIn(failing{nil, kind})), inner, key, kind)
		_, err := open(t, new(memory.Store), sealed.KeptIn(failing{nil, kind})).CompareAndSwap(t.Context(), key, nil, []byte("x"))
		checkKind(t, "a first run", err, kind)
	}
	damaged := open(t, inner, sealed.KeptIn(failing{nil, brokerauth.ErrCorrupt}))
	mustRefuse(t, damaged, inner, key, brokerauth.ErrRejected)
	if _, err := damaged.Load(t.Context(), key); !strings.Contains(err.Error(), "backup") || !strings.Contains(err.Error(), "log in again") {
		t.Errorf("it does not say what to do: %v", err)
	}

	// A keyring that was locked when it was first asked serves once it is not.
	switched := &switching{failing{nil, brokerauth.ErrUnavailable}}
	store := open(t, inner, sealed.KeptIn(switched))
	mustRefuse(t, store, inner, key, brokerauth.ErrUnavailable)
	switched.Store = keys
	mustHold(t, store, key, "record")
}

type switching struct{ brokerauth.Store }

func TestDamage(t *testing.T) {
	inner := openDisk(t, t.TempDir())
	store := open(t, inner, secret(1))
	mustSwap(t, store, key, "", "record")
	whole := raw(t, inner, key)
	check := func(what string, box []byte) {
		t.Helper()
		put(t, inner, key, box)
		if got, err := store.Load(t.Context(), key); !errors.Is(err, brokerauth.ErrCorrupt) || errors.Is(err, brokerauth.ErrRejected) || got != nil {
			t.Errorf("%s: Load = %q, %v, want ErrCorrupt", what, got, err)
		}
	}
	for i := range whole {
		for _, bit := range []byte{1, 8, 128} {
			box := bytes.Clone(whole)
			box[i] ^= bit
			check(fmt.Sprintf("byte %d xor %d", i, bit), box)
		}
		if i > 0 {
			check(fmt.Sprintf("cut to %d", i), whole[:i])
		}
	}
	check("longer", append(bytes.Clone(whole), 0))
	mustRefuse(t, store, inner, key, brokerauth.ErrCorrupt)
	where, err := store.(interface {
		SetAside(ctx context.Context, key brokerauth.Key) (string, error)
	}).SetAside(t.Context(), key)
	if err != nil || where == "" {
		t.Errorf("SetAside of a damaged record = %q, %v", where, err)
	}
	mustSwap(t, store, key, "", "new")
	mustHold(t, store, key, "new")
}

func TestDamagedKeysAreNoDamagedLogin(t *testing.T) {
	dir := t.TempDir()
	inner := openDisk(t, dir)
	mustSwap(t, open(t, inner, secret(1)), key, "", "record")
	file := filepath.Join(dir, ownKey.String()+".json")
	was := raw(t, inner, ownKey)
	for _, now := range [][]byte{nil, was[:len(was)/2], []byte("{}")} {
		if err := os.WriteFile(file, now, 0o600); err != nil {
			t.Fatal(err)
		}
		mustRefuse(t, open(t, inner, secret(1)), inner, key, brokerauth.ErrRejected)
		_, err := open(t, inner, secret(1)).CompareAndSwap(t.Context(), otherKey, nil, []byte("other"))
		checkKind(t, "a new record", err, brokerauth.ErrRejected)
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, now) {
			t.Errorf("damaged keys were overwritten: %v", err)
		}
	}
	if err := os.WriteFile(file, was, 0o600); err != nil {
		t.Fatal(err)
	}
	mustHold(t, open(t, inner, secret(1)), key, "record")
}

func TestRecordsCannotBeExchanged(t *testing.T) {
	inner := new(memory.Store)
	store := open(t, inner, secret(1))
	mustSwap(t, store, key, "", "mine")
	mustSwap(t, store, otherKey, "", "hers")
	put(t, inner, key, raw(t, inner, otherKey))
	mustRefuse(t, store, inner, key, brokerauth.ErrCorrupt)
	mustHold(t, store, otherKey, "hers")
}

func TestUnsealedAndNewerRecords(t *testing.T) {
	inner := openDisk(t, t.TempDir())
	store := open(t, inner, secret(1))
	mustSwap(t, store, key, "", "record")
	put(t, inner, otherKey, []byte(`{"v":1,"provider":"schwab"}`))
	mustRefuse(t, store, inner, otherKey, brokerauth.ErrRejected)

	newer := sum(append(raw(t, inner, key)[:6:6], "\x02something new"...))
	put(t, inner, otherKey, newer)
	mustRefuse(t, store, inner, otherKey, errors.ErrUnsupported)
	put(t, inner, otherKey, sum([]byte("sealed\x01")))
	mustRefuse(t, store, inner, otherKey, brokerauth.ErrCorrupt)
}

func TestOwnRecord(t *testing.T) {
	inner := new(memory.Store)
	store := open(t, inner, secret(1))
	if _, err := store.Load(t.Context(), key); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if keys, _ := inner.Keys(t.Context()); len(keys) > 0 {
		t.Errorf("reading wrote %v", keys)
	}
	mustSwap(t, store, key, "", "record")
	lister := store.(interface {
		Keys(ctx context.Context) ([]brokerauth.Key, error)
	})
	if keys, err := lister.Keys(t.Context()); err != nil || !slices.Equal(keys, []brokerauth.Key{key}) {
		t.Errorf("Keys = %v, %v, want the login alone", keys, err)
	}
	mustRefuse(t, store, inner, ownKey, brokerauth.ErrRejected)

	inner = new(memory.Store)
	if swapped, err := open(t, inner, secret(1)).CompareAndSwap(t.Context(), ownKey, nil, []byte("x")); err == nil {
		t.Errorf("writing in the data keys' place = %v, want an error", swapped)
	}
	mustSwap(t, open(t, inner, secret(1)), key, "", "record")
}

func TestOffersWhatTheInnerStoreDoes(t *testing.T) {
	offers := func(store brokerauth.Store) (offers [2]bool) {
		_, offers[0] = store.(interface {
			Keys(ctx context.Context) ([]brokerauth.Key, error)
		})
		_, offers[1] = store.(interface {
			SetAside(ctx context.Context, key brokerauth.Key) (string, error)
		})
		return offers
	}
	folder := openDisk(t, t.TempDir())
	for _, inner := range []brokerauth.Store{
		folder, new(memory.Store), struct{ brokerauth.Store }{folder},
		struct {
			brokerauth.Store
			aside
		}{folder, folder},
	} {
		if got, want := offers(open(t, inner, secret(1))), offers(inner); got != want {
			t.Errorf("over %T, Keys and SetAside: %v, want %v", inner, got, want)
		}
	}
}

type aside interface {
	SetAside(ctx context.Context, key brokerauth.Key) (string, error)
}

func TestChangingTheSecret(t *testing.T) {
	before, after := secret(1), secret(2)
	inner := new(memory.Store)
	mustSwap(t, open(t, inner, before), key, "", "idle")
	mustSwap(t, open(t, inner, before), otherKey, "", "0")
	// Each step of the way, while a program of the step before still runs.
	steps := [][]*sealed.Secret{{before}, {before, after}, {after, before}, {after}}
	running := open(t, inner, before)
	for i, step := range steps {
		next := open(t, inner, step[0], step[1:]...)
		for n, store := range []brokerauth.Store{running, next, running, next} {
			mustHold(t, store, key, "idle")
			old, err := store.Load(t.Context(), otherKey)
			if err != nil {
				t.Fatalf("step %d, program %d: %v", i, n, err)
			}
			mustSwap(t, store, otherKey, string(old), fmt.Sprint(i, n))
		}
		running = next
	}
	// The idle login is still sealed as ever, and opens for the new secret alone. The old one opens nothing new.
	mustHold(t, open(t, inner, after), key, "idle")
	mustHold(t, open(t, inner, before), key, "idle")
	mustRefuse(t, open(t, inner, before), inner, otherKey, brokerauth.ErrRejected)
	if n := slots(t, inner); n != 2 {
		t.Errorf("there are %d data keys, want 2", n)
	}
}

func TestLostKeysComeBack(t *testing.T) {
	inner := new(memory.Store)
	store := open(t, inner, secret(1))
	mustSwap(t, store, key, "", "record")
	put(t, inner, ownKey, nil)
	mustRefuse(t, open(t, inner, secret(2)), inner, key, brokerauth.ErrRejected)
	// The program that still knows the key saves a login, and with it the key of all.
	mustSwap(t, store, otherKey, "", "other")
	for _, store := range []brokerauth.Store{store, open(t, inner, secret(1))} {
		mustHold(t, store, key, "record")
		mustHold(t, store, otherKey, "other")
	}
}

func slots(t testing.TB, inner brokerauth.Store) int {
	t.Helper()
	var record struct{ Slots []json.RawMessage }
	if err := json.Unmarshal(raw(t, inner, ownKey), &record); err != nil {
		t.Fatal(err)
	}
	return len(record.Slots)
}

// resealing has somebody else seal the same record anew just before each of the next swaps.
type resealing struct {
	brokerauth.Store
	before func()
}

func (s *resealing) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	if before := s.before; before != nil && key != ownKey {
		s.before = nil
		before()
	}
	return s.Store.CompareAndSwap(ctx, key, old, new)
}

func TestSameRecordSealedAnew(t *testing.T) {
	inner := &resealing{Store: new(memory.Store)}
	store, other := open(t, inner, secret(1)), open(t, inner.Store, secret(1))
	mustSwap(t, store, key, "", "record")
	inner.before = func() { mustSwap(t, other, key, "record", "record") }
	mustSwap(t, store, key, "record", "new")
	inner.before = func() { mustSwap(t, other, key, "new", "newer") }
	if swapped, err := store.CompareAndSwap(t.Context(), key, []byte("new"), []byte("mine")); err != nil || swapped {
		t.Errorf("CompareAndSwap after another's = %v, %v, want false", swapped, err)
	}
	mustHold(t, store, key, "newer")
}

func TestFirstRuns(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const programs = 32
	dir := t.TempDir()
	type child struct {
		*exec.Cmd
		stdin  io.WriteCloser
		stderr bytes.Buffer
	}
	var children []*child
	for i := range programs {
		c := &child{Cmd: exec.CommandContext(t.Context(), self)}
		c.Env = append(os.Environ(), childDir+"="+dir, fmt.Sprintf("%s=%d", childName, i))
		c.Stderr = &c.stderr
		stdout, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if c.stdin, err = c.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		children = append(children, c)
		if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "ready\n" {
			t.Fatalf("program %d: %q, %v\n%s", i, line, err, c.stderr.Bytes())
		}
	}
	for _, c := range children {
		if _, err := io.WriteString(c.stdin, "go\n"); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range children {
		if err := c.Wait(); err != nil {
			t.Fatalf("program %d: %v\n%s", i, err, c.stderr.Bytes())
		}
	}
	inner, keys := openDisk(t, filepath.Join(dir, "logins")), openDisk(t, filepath.Join(dir, "keys"))
	store := open(t, inner, sealed.KeptIn(keys))
	for i := range programs {
		name := fmt.Sprint(i)
		mustHold(t, store, brokerauth.Key{Provider: "schwab", Profile: name}, "login of "+name)
	}
	if n := slots(t, inner); n != 1 {
		t.Errorf("%d programs made %d data keys, want 1", programs, n)
	}
}

func TestPassphrase(t *testing.T) {
	const passphrase = "correct horse battery staple"
	saved := brokerauth.Key{Provider: "schwab", Profile: "1"}
	inner := new(memory.Store)
	store := open(t, inner, sealed.Passphrase(passphrase))
	// Whoever is first in a process opens the keys for all.
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			key := brokerauth.Key{Provider: "schwab", Profile: fmt.Sprint(i)}
			if swapped, err := store.CompareAndSwap(t.Context(), key, nil, []byte("record")); err != nil || !swapped {
				t.Errorf("CompareAndSwap = %v, %v", swapped, err)
			}
		})
	}
	all.Wait()
	if n := slots(t, inner); n != 1 {
		t.Errorf("there are %d data keys, want 1", n)
	}
	record := raw(t, inner, ownKey)
	for name, change := range map[string][2]string{
		"much memory":   {`"kib":65536`, `"kib":4194304`},
		"most memory":   {`"kib":65536`, `"kib":4294967295`},
		"little memory": {`"kib":65536`, `"kib":8`},
		"many passes":   {`"passes":3`, `"passes":1000000`},
		"no pass":       {`"passes":3`, `"passes":0`},
		"many threads":  {`"threads":4`, `"threads":255`},
		"no thread":     {`"threads":4`, `"threads":0`},
		"no salt":       {`"salt":"`, `"salt":"","was":"`},
	} {
		t.Run(name, func(t *testing.T) {
			changed := bytes.Replace(record, []byte(change[0]), []byte(change[1]), 1)
			if bytes.Equal(changed, record) {
				t.Fatalf("no %s in the key record", change[0])
			}
			put(t, inner, ownKey, changed)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			mustRefuse(t, open(t, inner, sealed.Passphrase(passphrase)), inner, saved, brokerauth.ErrRejected) // many passes take hours
			runtime.ReadMemStats(&after)
			if bytes := after.TotalAlloc - before.TotalAlloc; bytes > 32<<20 {
				t.Errorf("it took %d MiB, though no such thing was ever written", bytes>>20)
			}
		})
	}
	// Within the bounds they are still authenticated.
	put(t, inner, ownKey, bytes.Replace(record, []byte(`"kib":65536`), []byte(`"kib":19456`), 1))
	_, err := open(t, inner, sealed.Passphrase(passphrase)).Load(t.Context(), saved)
	checkKind(t, "changed parameters", err, brokerauth.ErrRejected)
}

// As many passphrases as there can be open; a record that costs more than these is none of ours, though each slot may be.
func TestCostOfAllPassphrases(t *testing.T) {
	const own = `{"kind":"argon2id","salt":"qDtxXFIJbAV98Dihz7GPdg==","passes":3,"kib":65536,"threads":4,"keys":"AAAA"}`
	record := func(slots ...string) []byte { return []byte(`{"v":1,"slots":[` + strings.Join(slots, ",") + `]}`) }
	inner := new(memory.Store)
	all := slices.Repeat([]string{own}, 64)
	put(t, inner, ownKey, record(all...))
	if passphrase, _, err := sealed.OpenedBy(t.Context(), inner); !passphrase || err != nil {
		t.Errorf("64 passphrases: %v, %v", passphrase, err)
	}
	all[63] = strings.Replace(own, `"passes":3`, `"passes":4`, 1)
	dear := strings.NewReplacer(`"passes":3`, `"passes":8`, `"kib":65536`, `"kib":262144`).Replace(own)
	for name, slots := range map[string][]string{"64, one of them dearer": all, "7 as dear as may be": slices.Repeat([]string{dear}, 7)} {
		put(t, inner, ownKey, record(slots...))
		_, _, err := sealed.OpenedBy(t.Context(), inner)
		checkKind(t, name, err, brokerauth.ErrRejected)
	}
}

func TestContextEndsWhileAnotherOpensTheKeys(t *testing.T) {
	inner := new(memory.Store)
	mustSwap(t, open(t, inner, sealed.KeptIn(new(memory.Store))), key, "", "record")
	slow := &hanging{entered: make(chan struct{}, 1)}
	store := open(t, inner, sealed.KeptIn(slow))
	first, cancelFirst := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := store.Load(first, key)
		done <- err
	}()
	<-slow.entered
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := store.Load(ctx, key); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Load = %v, want the context's error", err)
	}
	cancelFirst()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the first Load = %v, want the context's error", err)
	}
}

// hanging is a keyring that waits for a person.
type hanging struct {
	memory.Store
	entered chan struct{}
}

func (s *hanging) Load(ctx context.Context, _ brokerauth.Key) ([]byte, error) {
	s.entered <- struct{}{}
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestSession(t *testing.T) {
	b := emulator.Schwab(t)
	dir := t.TempDir()
	session := func(secret *sealed.Secret) *brokerauth.Session {
		p, err := schwab.New(schwab.Config{
			AppKey: "key", AppSecret: "emulated.app-secret", CallbackURL: "https://127.0.0.1:8182", Transport: b,
		})
		if err != nil {
			t.Fatal(err)
		}
		s := &brokerauth.Session{Provider: p, Store: open(t, openDisk(t, dir), secret), Observe: func(brokerauth.Event) {}}
		t.Cleanup(func() { s.Close() })
		return s
	}
	if err := session(secret(1)).Login(t.Context(), b.Approve); err != nil {
		t.Fatal(err)
	}
	token, err := session(secret(1)).Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(files) != 2 {
		t.Fatalf("files: %v, %v, want the login's and the data keys'", files, err)
	}
	before := map[string][]byte{}
	for _, file := range files {
		if before[file], err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(before[file], []byte(token.AccessToken)) || bytes.Contains(before[file], []byte(token.RefreshToken)) {
			t.Errorf("%s shows the token", file)
		}
	}
	wrong := session(secret(2))
	_, tokenErr := wrong.Token(t.Context())
	checkKind(t, "Token under a wrong secret", tokenErr, brokerauth.ErrRejected)
	checkKind(t, "Login under a wrong secret", wrong.Login(t.Context(), func(context.Context, *brokerauth.Login,
		func(context.Context, string) error) error {
		t.Error("a person was asked to log in, though nothing could be saved")
		return errors.New("no")
	}), brokerauth.ErrRejected)
	checkKind(t, "Logout under a wrong secret", wrong.Logout(t.Context()), brokerauth.ErrRejected)
	for file, was := range before {
		if now, err := os.ReadFile(file); err != nil || !bytes.Equal(now, was) {
			t.Errorf("a wrong secret changed %s: %v", file, err)
		}
	}
}

// A record that opens, but in which there is no login, is in nobody's way.
func TestLoginOverWhatIsNone(t *testing.T) {
	b := emulator.Schwab(t)
	s := &brokerauth.Session{Provider: b.Provider(), Store: open(t, openDisk(t, t.TempDir()), secret(1)), Observe: func(brokerauth.Event) {}}
	defer s.Close()
	status, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustSwap(t, s.Store, status.Key, "", "no login")
	if _, err := s.Token(t.Context()); !errors.Is(err, brokerauth.ErrCorrupt) {
		t.Errorf("Token: %v, want ErrCorrupt", err)
	}
	if err := s.Login(t.Context(), b.Approve); err != nil {
		t.Errorf("Login: %v", err)
	}
}

// sum appends the checksum that every sealed record ends with.
func sum(box []byte) []byte {
	return binary.BigEndian.AppendUint32(slices.Clip(box), crc32.ChecksumIEEE(box))
}

// What the first version wrote: a login under secret(1), which came after the passphrase that another is sealed with.
const (
	goldenKeys = `{"v":1,"slots":[{"kind":"argon2id","salt":"qDtxXFIJbAV98Dihz7GPdg==","passes":3,"kib":65536,"threads":4,` +
		`"keys":"+FemPqkdrNpii4IsykQuxVSA8KIodYIvwjieWERZ0ePVkVSKW2WZwy6MA8wj+vgFLVf7YA+e/6dHU0QFrYkQG6X1y4wHPU+m+BmN66bijcA="},` +
		`{"kind":"key","keys":"SjGNob6lPqgMmy2C5Ae6R7kCRPcjItzRojR0ki4XNkiDEDve2krz3jRyhpL2BQ4lMa7c8lshjP5aZ+nJe7AKXTg1DF3UI7adyOvZ` +
		`dAaGeezIWQjvsjqS9fdkQVqFOf0Vxpcul+F959szW3kUKF7SKuCCF/jW7314"}]}`
	goldenPassphrase = "correct horse"
	goldenRecord     = "7365616c65640112a91f0af43cc6f262fbf8dd581b7b745cf78cdcb8aad1845b2160d91baee82f29215ac6ca80157943cf7e8d1303" +
		"91b035d4a9f294b533514548" // "record", of key
	goldenOther = "7365616c65640166c25567f07bc664eeff8c4085b1d6a0b93fcb00b26d24a01fff511a6cd420e06ab3dd0b0e7e96b3b9b0ae18e060" +
		"5456500ac0c9cf9ac9c3a2" // "older", of otherKey
)

func golden(t testing.TB) *memory.Store {
	t.Helper()
	inner := new(memory.Store)
	put(t, inner, ownKey, []byte(goldenKeys))
	put(t, inner, key, fromHex(t, goldenRecord))
	put(t, inner, otherKey, fromHex(t, goldenOther))
	return inner
}

func fromHex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFirstVersionStillOpens(t *testing.T) {
	inner := golden(t)
	store := open(t, inner, secret(1))
	mustHold(t, store, key, "record")
	mustHold(t, store, otherKey, "older")
	mustHold(t, open(t, inner, sealed.Passphrase(goldenPassphrase)), otherKey, "older")

	// A slot of a kind that only a later version knows is nobody's business, and stays.
	later := strings.Replace(goldenKeys, `[{`, `[{"kind":"later","by":{"whom":1}},{`, 1)
	put(t, inner, ownKey, []byte(later))
	mustSwap(t, open(t, inner, secret(2), secret(1)), key, "record", "new")
	if now := raw(t, inner, ownKey); !bytes.Contains(now, []byte(`{"kind":"later","by":{"whom":1}}`)) {
		t.Errorf("a slot of another kind was changed: %s", now)
	}
	newer := strings.Replace(goldenKeys, `"v":1`, `"v":2`, 1)
	put(t, inner, ownKey, []byte(newer))
	mustRefuse(t, open(t, inner, secret(1)), inner, otherKey, errors.ErrUnsupported)
	_, err := open(t, inner, secret(1)).CompareAndSwap(t.Context(), brokerauth.Key{Provider: "schwab"}, nil, []byte("x"))
	checkKind(t, "a new record under a newer version's keys", err, errors.ErrUnsupported)
	if now := raw(t, inner, ownKey); string(now) != newer {
		t.Error("a newer version's keys were overwritten")
	}
}

// What OpenedBy cannot name is an error: a person who was asked would type in vain, and type twice what looks new.
func TestOpenedByNeither(t *testing.T) {
	inner := openDisk(t, t.TempDir())
	mustSwap(t, open(t, inner, secret(1)), key, "", "record")
	passphrase, kept, err := sealed.OpenedBy(t.Context(), inner)
	if checkKind(t, "all under a Key", err, brokerauth.ErrRejected); passphrase || kept {
		t.Errorf("all under a Key: passphrase %v, kept %v", passphrase, kept)
	}
	mustSwap(t, open(t, inner, sealed.KeptIn(new(memory.Store)), secret(1)), key, "record", "new")
	if passphrase, kept, err = sealed.OpenedBy(t.Context(), inner); passphrase || !kept || err != nil {
		t.Errorf("some under a Key: passphrase %v, kept %v, %v", passphrase, kept, err)
	}
	put(t, inner, ownKey, []byte(`{"v":1,"slots":[{"kind":"later"}]}`))
	_, _, err = sealed.OpenedBy(t.Context(), inner)
	checkKind(t, "all under what only a later version knows", err, errors.ErrUnsupported)
}

func TestSecretChangesEnd(t *testing.T) {
	inner := golden(t)
	var many []string
	for range 64 {
		many = append(many, `{"kind":"later"}`)
	}
	full := strings.Replace(goldenKeys, `[{"kind":"argon2id"`, `[`+strings.Join(many[2:], ",")+`,{"kind":"argon2id"`, 1)
	put(t, inner, ownKey, []byte(full))
	store := open(t, inner, secret(2), secret(1))
	mustHold(t, store, key, "record")
	if swapped, err := store.CompareAndSwap(t.Context(), key, []byte("record"), []byte("new")); err == nil {
		t.Errorf("the 65th secret: %v, want an error", swapped)
	}
	mustHold(t, store, key, "record")
	mustSwap(t, open(t, inner, secret(1), secret(2)), key, "record", "new")

	put(t, inner, ownKey, []byte(strings.Replace(full, `[`, `[{"kind":"later"},`, 1)))
	mustRefuse(t, open(t, inner, secret(1)), inner, key, brokerauth.ErrRejected)
}

// FuzzRecord puts bytes from outside in a record's place, with and without a right checksum.
func FuzzRecord(f *testing.F) {
	inner, whole := golden(f), fromHex(f, goldenRecord)
	store := open(f, inner, secret(1))
	body := whole[:len(whole)-4]
	f.Add(whole, false)
	f.Add(fromHex(f, goldenOther), false)
	f.Add([]byte(`{"v":1}`), false)
	for _, n := range []int{0, 1, 6, 7, 14, 15, 38, 39, len(body) - 1, len(body)} {
		f.Add(body[:n], true)
		f.Add(body[:n], false)
	}
	f.Add([]byte("sealed\x00"), true)
	f.Add([]byte("sealed\x02"), true)
	f.Add(bytes.Replace(body, body[7:15], []byte("otherkey"), 1), true)
	f.Fuzz(func(t *testing.T, box []byte, summed bool) {
		if summed {
			box = sum(box)
		}
		if len(box) == 0 {
			return
		}
		put(t, inner, key, box)
		got, err := store.Load(t.Context(), key)
		switch {
		case bytes.Equal(box, whole):
			if err != nil || string(got) != "record" {
				t.Errorf("the true record = %q, %v", got, err)
			}
		case err == nil:
			t.Errorf("a forged record opens: %q", got)
		case !errors.Is(err, brokerauth.ErrCorrupt) && !errors.Is(err, brokerauth.ErrRejected) && !errors.Is(err, errors.ErrUnsupported):
			t.Errorf("%q: %v", box, err)
		}
	})
}

// FuzzKeys puts bytes from outside in the place of the data keys.
func FuzzKeys(f *testing.F) {
	box := fromHex(f, goldenRecord)
	f.Add([]byte(goldenKeys))
	for _, text := range []string{
		"{", "{}", "null", `{"v":1}`, `{"v":2}`, `{"v":1,"slots":[]}`, `{"v":1,"slots":[null]}`, `{"v":1,"slots":[{"kind":"key"}]}`,
		`{"v":1,"slots":[{"kind":"key","keys":"AAAA"}]}`, `{"v":1,"slots":[{"kind":"argon2id","kib":4294967295}]}`,
		`{"v":1,"slots":[{"kind":"later","keys":7}]}`, `{"v":1,"slots":[{"kind":"later"}]}`, `{"v":-1,"slots":[1]}`,
		`{"v":1,"slots":[` + strings.Repeat("{},", 64) + `{}]}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, record []byte) {
		if len(record) == 0 {
			return
		}
		inner := new(memory.Store)
		put(t, inner, key, box)
		put(t, inner, ownKey, record)
		store := open(t, inner, secret(1))
		got, err := store.Load(t.Context(), key)
		if err == nil {
			if string(got) != "record" {
				t.Errorf("Load = %q", got)
			}
			return
		}
		if !errors.Is(err, brokerauth.ErrRejected) && !errors.Is(err, errors.ErrUnsupported) || errors.Is(err, brokerauth.ErrCorrupt) {
			t.Errorf("Load: %v, want ErrRejected or ErrUnsupported", err)
		}
		if swapped, err := store.CompareAndSwap(t.Context(), otherKey, nil, []byte("x")); err == nil {
			t.Errorf("CompareAndSwap = %v under data keys that do not open", swapped)
		}
		if !bytes.Equal(raw(t, inner, ownKey), record) {
			t.Error("the data keys were overwritten")
		}
	})
}

func Example() {
	ctx := context.Background()
	var inner, keyring memory.Store // a disk store and the system's keyring, say
	store, err := sealed.New(&inner, sealed.KeptIn(&keyring))
	if err != nil {
		fmt.Println(err)
		return
	}
	key := brokerauth.Key{Provider: "schwab", Profile: "default"}
	_, err = store.CompareAndSwap(ctx, key, nil, []byte("a login"))
	fmt.Println(err)
	record, err := store.Load(ctx, key)
	fmt.Printf("%s %v\n", record, err)

	kept, _ := inner.Load(ctx, key)
	fmt.Println(strings.Contains(string(kept), "login"))
	// Output:
	// <nil>
	// a login <nil>
	// false
}

func ExampleNew_change() {
	ctx := context.Background()
	var inner, keyring memory.Store
	key := brokerauth.Key{Provider: "schwab", Profile: "default"}
	before, after := sealed.KeptIn(&keyring), sealed.Passphrase("unhurried walnut plumber orbit caramel vivid")
	save := func(old, new string, secret *sealed.Secret, also ...*sealed.Secret) {
		store, err := sealed.New(&inner, secret, also...)
		if err == nil {
			var was []byte
			if old != "" {
				was = []byte(old)
			}
			_, err = store.CompareAndSwap(ctx, key, was, []byte(new))
		}
		fmt.Println(err)
	}
	save("", "a login", before)
	save("a login", "a newer login", after, before) // opens under either, and is sealed under the new one
	save("a newer login", "the newest login", after)
	passphrase, kept, err := sealed.OpenedBy(ctx, &inner) // the old secret opens what it did
	fmt.Println(passphrase, kept, err)
	// Output:
	// <nil>
	// <nil>
	// <nil>
	// true true <nil>
}

// A program that asks a person only where it must.
func ExampleOpenedBy() {
	ctx := context.Background()
	var inner, keyring memory.Store
	passphrase, kept, err := sealed.OpenedBy(ctx, &inner)
	fmt.Println("nothing is sealed yet:", passphrase, kept, err)

	store, err := sealed.New(&inner, sealed.KeptIn(&keyring))
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = store.CompareAndSwap(ctx, brokerauth.Key{Provider: "schwab", Profile: "default"}, nil, []byte("a login"))
	fmt.Println(err)
	passphrase, kept, err = sealed.OpenedBy(ctx, &inner)
	fmt.Println("the keyring opens it:", passphrase, kept, err)
	// Output:
	// nothing is sealed yet: false false <nil>
	// <nil>
	// the keyring opens it: false true <nil>
}

// Bytes that a secret manager keeps for all hosts.
func ExampleKey() {
	key := make([]byte, 32)
	rand.Read(key) // never fails; the manager's, in a program
	var inner memory.Store
	store, err := sealed.New(&inner, sealed.Key(key))
	if err != nil {
		fmt.Println(err)
		return
	}
	session := &brokerauth.Session{Store: store}
	defer session.Close()
	_, err = sealed.New(&inner, sealed.Key([]byte("typed by somebody")))
	fmt.Println(err)
	// Output: sealed: the key has 17 bytes, not 32: give random bytes as they are, not as text
}
