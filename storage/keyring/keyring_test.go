package keyring_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/gofrs/flock"
	gokeyring "github.com/zalando/go-keyring"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance"
	"github.com/brokerauth/brokerauth/storage/keyring"
)

var key = brokerauth.Key{Provider: "schwab", Identity: "3fa8", Profile: "default"}

// The secret stands in every record, and may stand in no error.
const secret = "S3cr3t"

var (
	small = []byte(`{"token": "` + secret + `<&>"}`)
	large = bytes.Repeat([]byte(secret+"\xff"), 1000)
	other = bytes.Repeat([]byte(secret+"!"), 2000)
)

func mustSwap(t testing.TB, store brokerauth.Store, old, new []byte) {
	t.Helper()
	if swapped, err := store.CompareAndSwap(t.Context(), key, old, new); err != nil || !swapped {
		t.Fatalf("CompareAndSwap = %v, %v, want true", swapped, err)
	}
}

func mustHold(t testing.TB, store brokerauth.Store, want []byte) {
	t.Helper()
	got, err := store.Load(t.Context(), key)
	if want == nil {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("Load = %d bytes, %v, want fs.ErrNotExist", len(got), err)
		}
		return
	}
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("Load = %d bytes, %v, want %d bytes", len(got), err, len(want))
	}
}

func mustBeEmpty(t testing.TB, k *keyring.Standin) {
	t.Helper()
	items, err := k.Items()
	if err != nil {
		t.Fatal(err)
	}
	for name := range items {
		t.Errorf("after the deletion there is still %s", name)
	}
}

// wantKinds checks an error of the store's.
func wantKinds(t testing.TB, what string, err error, kinds ...error) {
	t.Helper()
	for _, kind := range []error{
		keyring.ErrLocked, brokerauth.ErrUnavailable, brokerauth.ErrCorrupt, fs.ErrPermission, fs.ErrNotExist,
		errors.ErrUnsupported, os.ErrDeadlineExceeded, keyring.ErrTooLarge, keyring.ErrAltered, context.DeadlineExceeded,
	} {
		if want := slices.Contains(kinds, kind); errors.Is(err, kind) != want {
			t.Errorf("%s: %v, which matches %q: %v, want %v", what, err, kind, !want, want)
		}
	}
	if err != nil && strings.Contains(err.Error(), secret) {
		t.Errorf("%s tells a secret: %v", what, err)
	}
}

func TestStandin(t *testing.T) {
	conformance.TestStore(t, func(t *testing.T, at string) brokerauth.Store {
		return (&keyring.Standin{Dir: at}).Store()
	})
}

// Records of all sizes around the limit, in text and not, replace each other.
func TestSizes(t *testing.T) {
	k := &keyring.Standin{Dir: t.TempDir()}
	store := k.Store()
	var records [][]byte
	for _, n := range []int{1, 1800, 1919, 1920, 1921, 2400, 2450, 2500, 2559, 2560, 2561, 3840, 3841, 5120, 20_000} {
		for _, c := range []string{"x", `"`, "\xff", "é", "\x00"} {
			records = append(records, bytes.Repeat([]byte(c), n/len(c)+1))
		}
	}
	var old []byte
	for i := range records {
		new := records[(i*37)%len(records)]
		mustSwap(t, store, old, new)
		mustHold(t, store, new)
		items, err := k.Items()
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range items {
			if len(value) > 2560 {
				t.Fatalf("the item %s has %d bytes, and 2560 fit", name, len(value))
			}
		}
		old = new
	}
	mustSwap(t, store, old, nil)
	mustBeEmpty(t, k)
}

// A record of the usual size is one item, read once and written once, over one connection, which does not stay.
func TestSmallRecordIsOneItem(t *testing.T) {
	k := &keyring.Standin{Dir: t.TempDir()}
	record := bytes.Repeat([]byte(`"`), 1000)
	mustSwap(t, (&keyring.Standin{Dir: k.Dir}).Store(), nil, record)
	synctest.Test(t, func(t *testing.T) {
		store := k.Store()
		var calls []string
		k.Before = func(op, name string) error {
			calls = append(calls, op)
			return nil
		}
		want := func(want string, closed int32) {
			t.Helper()
			synctest.Wait()
			if got, n := strings.Join(calls, " "), k.Closed.Load(); got != want || n != closed {
				t.Errorf("the keyring is called %q and %d connections were closed, want %q and %d", got, n, want, closed)
			}
			calls = nil
		}
		mustHold(t, store, record)
		mustSwap(t, store, record, small)
		want("open get ready get set get", 0)
		time.Sleep(400 * time.Millisecond)
		mustHold(t, store, small)
		time.Sleep(400 * time.Millisecond)
		mustHold(t, store, small)
		want("ready get ready get", 0)
		time.Sleep(time.Second)
		want("", 1)
		mustHold(t, store, small)
		time.Sleep(time.Second)
		want("open get", 2)

		// A connection that was lost is made anew, once, before anything is asked.
		mustHold(t, store, small)
		calls = nil
		k.Before = func(op, name string) error {
			calls = append(calls, op)
			if op == "ready" {
				return dbus.ErrClosed
			}
			return nil
		}
		mustSwap(t, store, small, record)
		want("ready open get set get", 3)
		// If it is lost later, what was asked may have been done, and is not done again.
		k.Before = func(op, name string) error {
			calls = append(calls, op)
			if op == "set" {
				return dbus.ErrClosed
			}
			return nil
		}
		_, err := store.CompareAndSwap(t.Context(), key, record, small)
		wantKinds(t, "CompareAndSwap", err, brokerauth.ErrUnavailable)
		want("ready get set", 3)
	})
}

// Whenever a change ends midway, the record is the old or the new one, whole, and nothing is left after a deletion.
func TestEndedAtEveryStep(t *testing.T) {
	for _, c := range []struct{ old, new []byte }{
		{nil, small}, {nil, large}, {small, other}, {large, small}, {large, other}, {other, large}, {small, nil}, {large, nil}, {nil, nil},
	} {
		t.Run(fmt.Sprintf("%d to %d bytes", len(c.old), len(c.new)), func(t *testing.T) {
			for step := 0; ; step++ {
				k := &keyring.Standin{Dir: t.TempDir()}
				store := k.Store()
				mustSwap(t, store, nil, other)
				mustSwap(t, store, other, large) // so there are parts to be swept
				if c.old == nil {
					mustSwap(t, store, large, []byte("bad"))
					if _, err := store.SetAside(t.Context(), key); err != nil {
						t.Fatal(err)
					}
				} else if !bytes.Equal(c.old, large) {
					mustSwap(t, store, large, c.old)
				}
				calls := 0
				k.Before = func(op, name string) error {
					if calls++; calls > step {
						return errors.New("killed")
					}
					return nil
				}
				swapped, err := store.CompareAndSwap(t.Context(), key, c.old, c.new)
				k.Before = nil
				if err == nil {
					if !swapped || step < 4 {
						t.Fatalf("CompareAndSwap with %d calls = %v", step, swapped)
					}
					mustHold(t, store, c.new)
					break
				}
				now, err := store.Load(t.Context(), key)
				switch {
				case errors.Is(err, fs.ErrNotExist) && (c.old == nil || c.new == nil):
				case err != nil:
					t.Fatalf("ended before call %d: %v", step, err)
				case !bytes.Equal(now, c.old) && !bytes.Equal(now, c.new):
					t.Fatalf("ended before call %d: the record is neither the old nor the new one", step)
				}
				if step%2 == 0 {
					mustSwap(t, store, now, other)
					now = other
				}
				if keys, err := store.Keys(t.Context()); err != nil || len(keys) == 1 != (now != nil) {
					t.Fatalf("ended before call %d: Keys() = %q, %v, of a record of %d bytes", step, keys, err, len(now))
				}
				mustSwap(t, store, now, nil)
				mustBeEmpty(t, k)
				if t.Failed() {
					t.Fatalf("it ended before call %d", step)
				}
			}
		})
	}
}

func TestDoesNotKeepWhatItIsGiven(t *testing.T) {
	tiny, medium := []byte("old"), bytes.Repeat([]byte(secret), 50)
	truncate := func(_, value string) string { return value[:min(len(value), 128)] }
	parts := func(name, value string) string {
		if strings.Count(name, ".") == 4 {
			return value[1:]
		}
		return value
	}
	nothing := func(_, _ string) string { return "" }
	echo := func(_, value string) string { return "password: " + value }
	for _, c := range []struct {
		name       string
		keep       func(name, value string) string
		old, new   []byte
		stillThere bool // the old record
	}{
		{"truncates", truncate, tiny, medium, true},
		{"truncates", truncate, tiny, other, true},
		{"truncates", truncate, nil, medium, true},
		{"truncates parts", parts, nil, large, true},
		{"truncates parts", parts, tiny, large, true},
		{"truncates parts", parts, other, large, true},
		{"keeps nothing", nothing, nil, medium, true},
		{"keeps nothing", nothing, tiny, medium, false},
		{"echoes", echo, nil, medium, true},
		{"echoes", echo, large, medium, false},
	} {
		k := &keyring.Standin{Dir: t.TempDir()}
		store := k.Store()
		if c.old != nil {
			mustSwap(t, store, nil, c.old)
		}
		k.Keep = c.keep
		what := fmt.Sprintf("%s: CompareAndSwap of %d bytes by %d", c.name, len(c.old), len(c.new))
		swapped, err := store.CompareAndSwap(t.Context(), key, c.old, c.new)
		if swapped {
			t.Errorf("%s = true", what)
		}
		wantKinds(t, what, err, keyring.ErrAltered)
		k.Keep = nil
		if c.stillThere {
			mustHold(t, store, c.old)
		} else if _, err := store.Load(t.Context(), key); !errors.Is(err, brokerauth.ErrCorrupt) {
			t.Errorf("%s, then Load: %v, want ErrCorrupt", what, err)
		}
	}
	// One that gives back more than it was given is not believed, either.
	k := &keyring.Standin{Dir: t.TempDir(), Give: echo}
	_, err := k.Store().CompareAndSwap(t.Context(), key, nil, small)
	wantKinds(t, "CompareAndSwap where reading echoes", err, keyring.ErrAltered)
	// Nor is one that says it deletes.
	k = &keyring.Standin{Dir: t.TempDir()}
	store := k.Store()
	mustSwap(t, store, nil, small)
	k.KeepDeleted = true
	_, err = store.CompareAndSwap(t.Context(), key, small, nil)
	wantKinds(t, "CompareAndSwap where nothing is deleted", err, keyring.ErrAltered)
}

func exit(t *testing.T, status string) error {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("there is no sh")
	}
	err := exec.Command("sh", "-c", "exit "+status).Run()
	if err == nil {
		t.Fatal("no error")
	}
	return err
}

// What the systems' keyrings say when they refuse, in the forms in which it comes.
func TestRefusals(t *testing.T) {
	bus := func(name string) error { return dbus.Error{Name: name, Body: []any{"cannot store " + secret}} }
	unavailable := brokerauth.ErrUnavailable
	for _, c := range []struct {
		name  string
		err   error
		kinds []error
	}{
		{"locked (Linux)", bus("org.freedesktop.Secret.Error.IsLocked"), []error{keyring.ErrLocked, unavailable}},
		{"none (Linux)", bus("org.freedesktop.DBus.Error.ServiceUnknown"), []error{unavailable, errors.ErrUnsupported}},
		{"died (Linux)", bus("org.freedesktop.DBus.Error.NoReply"), []error{unavailable}},
		{"denied (Linux)", bus("org.freedesktop.DBus.Error.AccessDenied"), []error{fs.ErrPermission}},
		{"too large (Linux)", bus("org.freedesktop.DBus.Error.LimitsExceeded"), []error{keyring.ErrTooLarge}},
		{"unknown (Linux)", bus("org.freedesktop.DBus.Error.Failed"), []error{unavailable}},
		{"a name that is none", bus("cannot store " + secret), []error{unavailable}},
		{"bus closed", dbus.ErrClosed, []error{unavailable}},
		{"too large", gokeyring.ErrSetDataTooBig, []error{keyring.ErrTooLarge}},
		{"no keyring for this system", gokeyring.ErrUnsupportedPlatform, []error{unavailable, errors.ErrUnsupported}},
		{"no security(1)", &fs.PathError{Op: "fork/exec", Path: "/usr/bin/security", Err: syscall.ENOENT}, []error{unavailable, errors.ErrUnsupported}},
		{"locked (macOS)", exit(t, "36"), []error{keyring.ErrLocked, unavailable}},
		{"dismissed (macOS)", exit(t, "128"), []error{keyring.ErrLocked, fs.ErrPermission}},
		{"denied (macOS)", exit(t, "51"), []error{fs.ErrPermission}},
		{"none (macOS)", exit(t, "53"), []error{unavailable, errors.ErrUnsupported}},
		{"unknown (macOS)", exit(t, "1"), []error{unavailable}},
		{"no logon session (Windows)", syscall.Errno(1312), []error{unavailable, errors.ErrUnsupported}},
		{"too large (Windows)", syscall.Errno(1783), []error{keyring.ErrTooLarge}},
		{"dismissed (Windows)", syscall.Errno(1223), []error{keyring.ErrLocked, fs.ErrPermission}},
		{"denied (Windows)", syscall.EACCES, []error{fs.ErrPermission}},
		{"another (Windows)", syscall.EINVAL, []error{unavailable}},
		{"anything", errors.New("cannot store " + secret), []error{unavailable}},
	} {
		for _, op := range []string{"open", "get", "set"} {
			k := &keyring.Standin{Dir: t.TempDir()}
			mustSwap(t, k.Store(), nil, small)
			store := k.Store()
			k.Before = func(now, _ string) error {
				if now == op {
					return c.err
				}
				return nil
			}
			swapped, err := store.CompareAndSwap(t.Context(), key, small, other)
			if swapped {
				t.Errorf("%s: CompareAndSwap = true", c.name)
			}
			wantKinds(t, c.name+": CompareAndSwap", err, c.kinds...)
			if op != "set" {
				_, err = store.Load(t.Context(), key)
				wantKinds(t, c.name+": Load", err, c.kinds...)
				_, err = store.Keys(t.Context())
				wantKinds(t, c.name+": Keys", err, c.kinds...)
			}
			k.Before = nil
			mustHold(t, store, small)
		}
	}
}

// A keyring that hangs is given up in time, holds up one goroutine however often it is called, and keeps the lock
// until it is back.
func TestHangs(t *testing.T) {
	for _, op := range []string{"open", "get", "set"} {
		for _, prompt := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, prompt %v", op, prompt), func(t *testing.T) {
				k := &keyring.Standin{Dir: t.TempDir()}
				mustSwap(t, k.Store(), nil, small)
				synctest.Test(t, func(t *testing.T) {
					store, limit := k.Store(), 3*time.Second
					if store.Prompt = prompt; prompt {
						limit = 63 * time.Second
					}
					back, hanging := make(chan struct{}), new(atomic.Int32)
					k.Before = func(now, _ string) error {
						if now == op {
							hanging.Add(1)
							<-back
						}
						return nil
					}
					began := time.Now()
					_, err := store.CompareAndSwap(t.Context(), key, small, other)
					wantKinds(t, "CompareAndSwap", err, brokerauth.ErrUnavailable, os.ErrDeadlineExceeded)
					if d := time.Since(began); d != limit {
						t.Errorf("it took %v, want %v", d, limit)
					}
					began = time.Now()
					var all sync.WaitGroup
					for range 10 {
						all.Go(func() {
							_, err := store.Load(t.Context(), key)
							wantKinds(t, "Load", err, brokerauth.ErrUnavailable, os.ErrDeadlineExceeded)
						})
						all.Go(func() {
							_, err := store.CompareAndSwap(t.Context(), key, small, other)
							wantKinds(t, "CompareAndSwap after it", err, brokerauth.ErrUnavailable, os.ErrDeadlineExceeded)
						})
					}
					all.Wait()
					if d := time.Since(began); d != limit || hanging.Load() != 1 {
						t.Errorf("20 more took %v and %d calls hang, want %v and 1", d, hanging.Load(), limit)
					}

					// The other Store's keyring works: only the lock keeps it from the record.
					well := (&keyring.Standin{Dir: k.Dir}).Store()
					mustHold(t, well, small)
					ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
					defer cancel()
					_, err = well.CompareAndSwap(ctx, key, small, other)
					wantKinds(t, "another's CompareAndSwap", err, context.DeadlineExceeded)

					close(back)
					synctest.Wait()
					now, err := well.Load(t.Context(), key)
					if err != nil {
						t.Fatal(err)
					}
					mustSwap(t, well, now, other)
					mustHold(t, store, other)
				})
			})
		}
	}
}

// Slow is not hung: whoever waits for its turn waits as long as there is progress.
func TestSlow(t *testing.T) {
	k := &keyring.Standin{Dir: t.TempDir()}
	mustSwap(t, k.Store(), nil, small)
	synctest.Test(t, func(t *testing.T) {
		k.Before = func(string, string) error {
			time.Sleep(2 * time.Second)
			return nil
		}
		store := k.Store()
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				if _, err := store.Load(t.Context(), key); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	})
}

// When the caller goes, what it asked for may still be done, and nobody else writes before.
func TestContextEndsDuringWrite(t *testing.T) {
	k := &keyring.Standin{Dir: t.TempDir()}
	mustSwap(t, k.Store(), nil, small)
	synctest.Test(t, func(t *testing.T) {
		store := k.Store()
		k.Before = func(op, _ string) error {
			if op == "set" {
				time.Sleep(2 * time.Second)
			}
			return nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := store.CompareAndSwap(ctx, key, small, []byte("late"))
		wantKinds(t, "CompareAndSwap", err, context.DeadlineExceeded)
		began := time.Now()
		well := (&keyring.Standin{Dir: k.Dir}).Store()
		if swapped, err := well.CompareAndSwap(t.Context(), key, small, other); err != nil || swapped {
			t.Errorf("CompareAndSwap from what was replaced late = %v, %v, want false", swapped, err)
		}
		if d := time.Since(began); d < time.Second {
			t.Errorf("it waited for %v only", d)
		}
		mustHold(t, store, []byte("late"))
	})
}

// A reader whose parts are deleted while it reads finds the newest record.
func TestReaderIsOvertaken(t *testing.T) {
	k := &keyring.Standin{Dir: t.TempDir()}
	writer := (&keyring.Standin{Dir: k.Dir}).Store()
	mustSwap(t, writer, nil, large)
	for _, newest := range [][]byte{other, small, nil} {
		now, err := writer.Load(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		overtaken := false
		k.Before = func(op, name string) error {
			if op != "get" || name == key.String() || overtaken {
				return nil
			}
			overtaken = true
			mustSwap(t, writer, now, large)
			mustSwap(t, writer, large, large)
			mustSwap(t, writer, large, newest)
			return nil
		}
		mustHold(t, k.Store(), newest)
		if !overtaken {
			t.Error("the reader read no parts")
		}
		if newest != nil {
			mustSwap(t, writer, newest, large)
		}
	}
	// One that is overtaken once, though, need not start again.
	k = &keyring.Standin{Dir: t.TempDir()}
	writer = (&keyring.Standin{Dir: k.Dir}).Store()
	mustSwap(t, writer, nil, large)
	heads, swapped := 0, false
	k.Before = func(op, name string) error {
		if name == key.String() {
			heads++
		} else if op == "get" && !swapped {
			swapped = true
			mustSwap(t, writer, large, other)
		}
		return nil
	}
	mustHold(t, k.Store(), large)
	if heads != 1 || !swapped {
		t.Errorf("the reader began %d times, want once", heads)
	}
}

func TestCorrupt(t *testing.T) {
	newer := `{"v":2,"text":"x"}`
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, k *keyring.Standin)
		kind  error
	}{
		{"empty", put(""), brokerauth.ErrCorrupt},
		{"no JSON", put(secret), brokerauth.ErrCorrupt},
		{"no version", put(`{"text":"x"}`), brokerauth.ErrCorrupt},
		{"another's path", put(`{"v":1,"parts":{"id":"../../../etc/pass","count":1}}`), brokerauth.ErrCorrupt},
		{"endless parts", put(`{"v":1,"parts":{"id":"aaaaaaaaaaaaaaaa","count":2000000000}}`), brokerauth.ErrCorrupt},
		{"no parts", put(`{"v":1,"parts":{"id":"aaaaaaaaaaaaaaaa","count":3}}`), brokerauth.ErrCorrupt},
		{"a part is missing", func(t *testing.T, k *keyring.Standin) { spoilPart(t, k, "") }, brokerauth.ErrCorrupt},
		{"a part is of another record", func(t *testing.T, k *keyring.Standin) { spoilPart(t, k, strings.Repeat("AAAA", 640)) }, brokerauth.ErrCorrupt},
		{"newer", put(newer), errors.ErrUnsupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := &keyring.Standin{Dir: t.TempDir()}
			store := k.Store()
			mustSwap(t, store, nil, large)
			c.spoil(t, k)
			before, err := k.Items()
			if err != nil {
				t.Fatal(err)
			}
			_, err = store.Load(t.Context(), key)
			wantKinds(t, "Load", err, c.kind)
			for _, swap := range [][2][]byte{{nil, small}, {large, small}, {nil, nil}} {
				swapped, err := store.CompareAndSwap(t.Context(), key, swap[0], swap[1])
				wantKinds(t, "CompareAndSwap", err, c.kind)
				if swapped {
					t.Error("CompareAndSwap over it = true")
				}
			}
			if keys, err := store.Keys(t.Context()); err != nil || !slices.Equal(keys, []brokerauth.Key{key}) {
				t.Errorf("Keys() = %q, %v, want %q", keys, err, key)
			}
			if after, err := k.Items(); err != nil || len(after) != len(before) || after[key.String()] != before[key.String()] {
				t.Errorf("the keyring was changed: %v", err)
			}
			where, err := store.SetAside(t.Context(), key)
			if c.kind != brokerauth.ErrCorrupt {
				wantKinds(t, "SetAside", err, c.kind)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			after, err := k.Items()
			if err != nil {
				t.Fatal(err)
			}
			if name := where[strings.LastIndex(where, " ")+1:]; after[name] != before[key.String()] {
				t.Errorf("set aside, at %s, it is %d bytes long and was %d", where, len(after[name]), len(before[key.String()]))
			}
			mustSwap(t, store, nil, small)
			mustSwap(t, store, small, nil)
			if strings.HasPrefix(c.name, "a part") {
				mustBeEmpty(t, k)
			}
			mustHold(t, store, nil)
		})
	}
}

func put(value string) func(*testing.T, *keyring.Standin) {
	return func(t *testing.T, k *keyring.Standin) {
		if err := k.Put(key.String(), value); err != nil {
			t.Fatal(err)
		}
	}
}

// spoilPart replaces the second part, or deletes it.
func spoilPart(t *testing.T, k *keyring.Standin, value string) {
	items, err := k.Items()
	if err != nil {
		t.Fatal(err)
	}
	names := keyring.PartsOf(items, key.String())
	if len(names) < 2 {
		t.Fatalf("there are only the parts %q", names)
	}
	if value == "" {
		err = os.Remove(k.File(names[1]))
	} else {
		err = k.Put(names[1], value)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// An index that somebody spoilt must not keep anybody from logging in.
func TestCorruptIndex(t *testing.T) {
	k := &keyring.Standin{Dir: t.TempDir()}
	store := k.Store()
	if err := k.Put(".index", secret); err != nil {
		t.Fatal(err)
	}
	_, err := store.Keys(t.Context())
	wantKinds(t, "Keys", err, brokerauth.ErrCorrupt)
	mustSwap(t, store, nil, small)
	if keys, err := store.Keys(t.Context()); err != nil || len(keys) != 1 {
		t.Errorf("Keys() = %q, %v, want one", keys, err)
	}
	mustSwap(t, store, small, nil)
	mustBeEmpty(t, k)
}

func TestUnfitRecord(t *testing.T) {
	k := &keyring.Standin{Dir: t.TempDir()}
	store := k.Store()
	for _, record := range [][]byte{{}, make([]byte, 1<<20+1)} {
		if swapped, err := store.CompareAndSwap(t.Context(), key, nil, record); err == nil {
			t.Errorf("CompareAndSwap with %d bytes = %v, want an error", len(record), swapped)
		}
	}
	mustBeEmpty(t, k)
}

func TestNew(t *testing.T) {
	for _, name := range []string{"a/b", "..\\x", "Upper", "a b", strings.Repeat("x", 65), "ü", "a\x00", "a:b"} {
		if _, err := keyring.New(name); err == nil {
			t.Errorf("New(%q): no error", name)
		}
	}
	standard, err := keyring.New("")
	if err != nil {
		t.Fatal(err)
	}
	named, err := keyring.New("brokerauth")
	if err != nil {
		t.Fatal(err)
	}
	if a, b := standard.Where(key), named.Where(key); a != b {
		t.Errorf(`New("") is at %q and New("brokerauth") at %q`, a, b)
	}
}

func TestLockFile(t *testing.T) {
	dir := t.TempDir()
	k := &keyring.Standin{Dir: dir}
	store := k.Store()
	mustSwap(t, store, nil, small)
	locks, err := filepath.Glob(filepath.Join(dir, "*.lock"))
	if err != nil || len(locks) != 1 {
		t.Fatalf("the locks are %q, %v, want one", locks, err)
	}
	held := flock.New(locks[0])
	if err := held.Lock(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	mustHold(t, store, small) // readers do not wait
	_, err = store.CompareAndSwap(ctx, key, small, other)
	wantKinds(t, "CompareAndSwap of what another process has locked", err, context.DeadlineExceeded)
	if err := held.Unlock(); err != nil {
		t.Fatal(err)
	}
	mustSwap(t, store, small, other)

	if runtime.GOOS == "windows" {
		return
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	_, err = store.CompareAndSwap(t.Context(), key, other, small)
	wantKinds(t, "CompareAndSwap with a lock in a folder that all can write", err, fs.ErrPermission)
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	if err := errors.Join(os.Remove(locks[0]), os.Symlink(elsewhere, locks[0])); err != nil {
		t.Fatal(err)
	}
	_, err = store.CompareAndSwap(t.Context(), key, other, small)
	wantKinds(t, "CompareAndSwap with a lock that is a link", err, fs.ErrPermission)
	if _, err := os.Stat(elsewhere); err == nil {
		t.Error("the lock was made where a link led")
	}
	mustHold(t, store, other)
}

// Whatever an item holds, it is a record or an error that says so.
func FuzzItem(f *testing.F) {
	for _, seed := range []string{
		"", "{}", `{"v":1}`, `{"v":1,"text":"a"}`, `{"v":1,"data":"YQ=="}`, `{"v":2}`, `{"v":1,"text":"a","data":"YQ=="}`,
		`{"v":1,"parts":{"id":"aaaaaaaaaaaaaaaa","count":1,"sum":"x"}}`, `{"v":1,"stale":[{"id":"aaaaaaaaaaaaaaaa","count":2}]}`,
		`{"v":1,"parts":{"id":"aaaaaaaaaaaaaaaa","count":9999999999}}`, `["schwab.3fa8.default"]`,
	} {
		f.Add(seed, "YQ==", seed)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, item, part, index string) {
		k := &keyring.Standin{Dir: dir}
		for name, value := range map[string]string{key.String(): item, key.String() + ".aaaaaaaaaaaaaaaa.0": part, ".index": index} {
			if err := k.Put(name, value); err != nil {
				t.Fatal(err)
			}
		}
		store := k.Store()
		record, err := store.Load(t.Context(), key)
		for _, kind := range []error{fs.ErrNotExist, brokerauth.ErrCorrupt, errors.ErrUnsupported} {
			if errors.Is(err, kind) {
				err = nil
			}
		}
		if err != nil {
			t.Errorf("Load: %v", err)
		}
		if _, err := store.Keys(t.Context()); err != nil && !errors.Is(err, brokerauth.ErrCorrupt) && !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("Keys: %v", err)
		}
		if record != nil {
			if len(record) == 0 {
				t.Error("Load returned an empty record")
			}
			if swapped, err := store.CompareAndSwap(t.Context(), key, record, small); err == nil && !swapped {
				t.Error("what Load returned is not what CompareAndSwap compares with")
			}
		}
	})
}

func Example() {
	store, err := keyring.New("example") // "" for the brokerauth command's
	if err != nil {
		fmt.Println(err)
		return
	}
	// In a program that somebody sits at, the keyring may ask to be unlocked.
	store.Prompt = true

	session := &brokerauth.Session{Store: store}
	defer session.Close()
	fmt.Println(store.Where(brokerauth.Key{Provider: "schwab", Profile: "default"}))
	// Output: OS keyring, service example, name schwab.=.default
}
