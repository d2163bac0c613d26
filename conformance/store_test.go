package conformance_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gofrs/flock"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance"
	"github.com/brokerauth/brokerauth/storage/memory"
)

// broken is a store in memory with one fault.
type broken struct {
	memory.Store
	load   func(b *broken, ctx context.Context, key brokerauth.Key) ([]byte, error)
	swap   func(b *broken, ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error)
	keys   func(b *broken, ctx context.Context) ([]brokerauth.Key, error)
	mu     sync.Mutex
	record map[brokerauth.Key][]byte
	calls  int
}

func (b *broken) Load(ctx context.Context, key brokerauth.Key) ([]byte, error) {
	if b.load != nil {
		return b.load(b, ctx, key)
	}
	return b.Store.Load(ctx, key)
}

func (b *broken) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	if b.swap != nil {
		return b.swap(b, ctx, key, old, new)
	}
	return b.Store.CompareAndSwap(ctx, key, old, new)
}

func (b *broken) Keys(ctx context.Context) ([]brokerauth.Key, error) {
	if b.keys != nil {
		return b.keys(b, ctx)
	}
	return b.Store.Keys(ctx)
}

// SetAside loses the record, which the contract's caller cannot see.
func (b *broken) SetAside(ctx context.Context, key brokerauth.Key) (string, error) {
	record, err := b.Store.Load(ctx, key)
	if err != nil {
		return "", err
	}
	if _, err := b.Store.CompareAndSwap(ctx, key, record, nil); err != nil {
		return "", err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls++
	return fmt.Sprintf("place %d", b.calls), nil
}

func (b *broken) Where(key brokerauth.Key) string { return "memory" }

// put stores new whatever was there.
func (b *broken) put(ctx context.Context, key brokerauth.Key, new []byte) error {
	for {
		old, err := b.Store.Load(ctx, key)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if swapped, err := b.Store.CompareAndSwap(ctx, key, old, new); swapped || err != nil {
			return err
		}
	}
}

// leaky tells a secret.
type leaky struct{ memory.Store }

func (l *leaky) Where(key brokerauth.Key) string {
	record, _ := l.Load(context.Background(), key)
	return "memory: " + string(record)
}

// stuck says that it set a record aside, and did not.
type stuck struct{ memory.Store }

func (*stuck) SetAside(context.Context, brokerauth.Key) (string, error) { return "nowhere", nil }

type (
	loadFunc = func(b *broken, ctx context.Context, key brokerauth.Key) ([]byte, error)
	swapFunc = func(b *broken, ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error)
)

func one(s brokerauth.Store) func(*testing.T, string) brokerauth.Store {
	return func(*testing.T, string) brokerauth.Store { return s }
}

func badLoad(f loadFunc) func(*testing.T, string) brokerauth.Store { return one(&broken{load: f}) }
func badSwap(f swapFunc) func(*testing.T, string) brokerauth.Store { return one(&broken{swap: f}) }

// breakages are stores that each break the named rule.
var breakages = []struct {
	fault, rule string
	open        func(t *testing.T, at string) brokerauth.Store
}{
	{"missing is nil", "a missing record is ErrNotExist", badLoad(
		func(b *broken, ctx context.Context, key brokerauth.Key) ([]byte, error) {
			record, err := b.Store.Load(ctx, key)
			if errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
			return record, err
		})},
	{"missing is also corrupt", "a missing record is ErrNotExist", badLoad(
		func(b *broken, ctx context.Context, key brokerauth.Key) ([]byte, error) {
			record, err := b.Store.Load(ctx, key)
			if errors.Is(err, fs.ErrNotExist) {
				err = fmt.Errorf("%w: %w", err, brokerauth.ErrCorrupt)
			}
			return record, err
		})},
	{"trims spaces", "a record comes back byte for byte", badLoad(
		func(b *broken, ctx context.Context, key brokerauth.Key) ([]byte, error) {
			record, err := b.Store.Load(ctx, key)
			return bytes.TrimSpace(record), err
		})},
	{"cuts at 64 KiB", "100 KiB fit", badLoad(
		func(b *broken, ctx context.Context, key brokerauth.Key) ([]byte, error) {
			record, err := b.Store.Load(ctx, key)
			return record[:min(len(record), 64<<10)], err
		})},
	{"create overwrites", "old nil creates only what is absent", badSwap(
		func(b *broken, ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
			if old == nil {
				return true, b.put(ctx, key, new)
			}
			return b.Store.CompareAndSwap(ctx, key, old, new)
		})},
	{"old is not looked at", "a record is swapped only if it is old", badSwap(
		func(b *broken, ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
			if record, _ := b.Store.Load(ctx, key); (record == nil) != (old == nil) {
				return false, nil
			}
			return true, b.put(ctx, key, new)
		})},
	{"true and nothing stored", "a record is swapped only if it is old", badSwap(
		func(b *broken, ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
			if old != nil && new != nil {
				record, err := b.Store.Load(ctx, key)
				if errors.Is(err, fs.ErrNotExist) {
					err = nil
				}
				return bytes.Equal(record, old), err
			}
			return b.Store.CompareAndSwap(ctx, key, old, new)
		})},
	{"an error instead of false", "a record is swapped only if it is old", badSwap(
		func(b *broken, ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
			swapped, err := b.Store.CompareAndSwap(ctx, key, old, new)
			if !swapped && err == nil {
				err = errors.New("it has changed")
			}
			return swapped, err
		})},
	{"delete keeps", "new nil deletes", badSwap(
		func(b *broken, ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
			if new == nil && old != nil {
				record, _ := b.Store.Load(ctx, key)
				return bytes.Equal(record, old), nil
			}
			return b.Store.CompareAndSwap(ctx, key, old, new)
		})},
	{"delete of nothing is false", "new nil deletes", badSwap(
		func(b *broken, ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
			if new == nil && old == nil {
				return false, nil
			}
			return b.Store.CompareAndSwap(ctx, key, old, new)
		})},
	{"delete does not compare", "new nil deletes", badSwap(
		func(b *broken, ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
			if new == nil {
				return true, b.put(ctx, key, nil)
			}
			return b.Store.CompareAndSwap(ctx, key, old, new)
		})},
	{"folds case", "keys are kept apart", one(&broken{
		load: func(b *broken, ctx context.Context, key brokerauth.Key) ([]byte, error) {
			key.Profile = strings.ToLower(key.Profile)
			return b.Store.Load(ctx, key)
		},
		swap: func(b *broken, ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
			key.Profile = strings.ToLower(key.Profile)
			return b.Store.CompareAndSwap(ctx, key, old, new)
		}})},
	{"takes any key", "an unfit key is refused", one(&broken{
		load: func(b *broken, ctx context.Context, key brokerauth.Key) ([]byte, error) {
			if key.Validate() != nil {
				return nil, fs.ErrNotExist
			}
			return b.Store.Load(ctx, key)
		}})},
	{"lends its bytes", "bytes are copied in and out", one(&broken{record: map[brokerauth.Key][]byte{},
		load: func(b *broken, ctx context.Context, key brokerauth.Key) ([]byte, error) {
			return b.record[key], nil
		},
		swap: func(b *broken, ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
			b.record[key] = bytes.Clone(new)
			return true, nil
		}})},
	{"keeps the caller's bytes", "bytes are copied in and out", one(&broken{record: map[brokerauth.Key][]byte{},
		load: func(b *broken, ctx context.Context, key brokerauth.Key) ([]byte, error) {
			return bytes.Clone(b.record[key]), nil
		},
		swap: func(b *broken, ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
			b.record[key] = new
			return true, nil
		}})},
	{"keeps a backup", "a deletion leaves no copy", openBackup},
	{"caches what it read", "a handle sees another's change", openCache},
	{"locks per handle", "of many handles one wins", openHandleLock},
	{"locks per handle", "no change is lost among handles", openHandleLock},
	{"deletes its lock file", "no change is lost among processes", openDeletedLock},
	{"writes in place", "a killed process tears and blocks nothing", openInPlace},
	{"stays locked when a process dies", "a killed process tears and blocks nothing", openStuckLock},
	{"saves later", "a killed process tears and blocks nothing", openLazy},
	{"compares, then swaps", "of many writers one wins", badSwap(checkThenAct)},
	{"compares, then swaps", "no change is lost", badSwap(checkThenAct)},
	{"compares, then swaps", "of many handles one wins", badSwap(checkThenAct)},
	{"compares, then swaps", "no change is lost among handles", badSwap(checkThenAct)},
	{"does not lock in a crowd", "of many writers one wins", openCrowdable},
	{"writes in two steps", "a reader sees the old record or the new", badSwap(
		func(b *broken, ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
			if old == nil || new == nil {
				return b.Store.CompareAndSwap(ctx, key, old, new)
			}
			half := new[:len(new)-1]
			swapped, err := b.Store.CompareAndSwap(ctx, key, old, half)
			if swapped {
				time.Sleep(time.Millisecond)
				return b.Store.CompareAndSwap(ctx, key, half, new)
			}
			return swapped, err
		})},
	{"deletes before it writes", "a reader sees the old record or the new", badSwap(
		func(b *broken, ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
			if old == nil || new == nil {
				return b.Store.CompareAndSwap(ctx, key, old, new)
			}
			swapped, err := b.Store.CompareAndSwap(ctx, key, old, nil)
			if swapped {
				time.Sleep(time.Millisecond)
				return b.Store.CompareAndSwap(ctx, key, nil, new)
			}
			return swapped, err
		})},
	{"ignores an ended context", "an ended context is an error", badSwap(
		func(b *broken, ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
			return b.Store.CompareAndSwap(context.WithoutCancel(ctx), key, old, new)
		})},
	{"hides why it gave up", "an ended context is an error", badLoad(
		func(b *broken, ctx context.Context, key brokerauth.Key) ([]byte, error) {
			if ctx.Err() != nil {
				return nil, errors.New("given up")
			}
			return b.Store.Load(ctx, key)
		})},
	{"stays locked when a context ends", "a context that ends in a crowd leaves nothing locked", badSwap(
		func(b *broken, ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
			b.mu.Lock()
			time.Sleep(500 * time.Microsecond)
			if err := ctx.Err(); err != nil {
				return false, err
			}
			b.mu.Unlock()
			return b.Store.CompareAndSwap(ctx, key, old, new)
		})},
	{"waits for ever", "old nil creates only what is absent", badSwap(
		func(b *broken, ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
			b.mu.Lock()
			return b.Store.CompareAndSwap(ctx, key, old, new)
		})},
	{"keeps its swaps to itself", "a record outlives its handle", openForgetful},
	{"shares with this process only", "processes see each other's records", one(new(memory.Store))},
	{"locks within this process only", "of many processes one wins", openUnlocked},
	{"locks within this process only", "no change is lost among processes", openUnlocked},
	{"leaves a goroutine", "no goroutine is left", badLoad(
		func(b *broken, ctx context.Context, key brokerauth.Key) ([]byte, error) {
			go func() { select {} }()
			return b.Store.Load(ctx, key)
		})},
	{"lists unsorted", "Keys lists what is there", one(&broken{
		keys: func(b *broken, ctx context.Context) ([]brokerauth.Key, error) {
			keys, err := b.Store.Keys(ctx)
			slices.Reverse(keys)
			return keys, err
		}})},
	{"lists nothing", "Keys lists what is there", one(&broken{
		keys: func(b *broken, ctx context.Context) ([]brokerauth.Key, error) { return nil, nil }})},
	{"sets nothing aside", "SetAside moves the record away", one(new(stuck))},
	{"tells the record", "Where tells no secret", one(new(leaky))},
}

// openCrowdable opens a store that is slow, and sound while no more than a hundred call it at the same time.
func openCrowdable(t *testing.T, at string) brokerauth.Store {
	var inside atomic.Int32
	return &broken{swap: func(b *broken, ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
		defer inside.Add(-1)
		if inside.Add(1) > 100 {
			return checkThenAct(b, ctx, key, old, new)
		}
		time.Sleep(50 * time.Millisecond)
		return b.Store.CompareAndSwap(ctx, key, old, new)
	}}
}

func checkThenAct(b *broken, ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	record, err := b.Store.Load(ctx, key)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if !bytes.Equal(record, old) {
		return false, nil
	}
	time.Sleep(time.Millisecond)
	return true, b.put(ctx, key, new)
}

// unlocked keeps records in files and locks them within one process only.
type unlocked struct{ dir string }

var unlockedMu sync.Mutex

func openUnlocked(t *testing.T, at string) brokerauth.Store { return unlocked{at} }

func (u unlocked) Load(ctx context.Context, key brokerauth.Key) ([]byte, error) {
	return os.ReadFile(filepath.Join(u.dir, key.String()))
}

func (u unlocked) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	unlockedMu.Lock()
	defer unlockedMu.Unlock()
	record, err := u.Load(ctx, key)
	if err != nil && !errors.Is(err, fs.ErrNotExist) || !bytes.Equal(record, old) {
		return false, nil
	}
	time.Sleep(time.Millisecond) // for another process to come between
	path := filepath.Join(u.dir, key.String())
	if new == nil {
		os.Remove(path)
		return true, nil
	}
	temp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.WriteFile(temp, new, 0o600); err != nil {
		return false, err
	}
	return true, os.Rename(temp, path)
}

// forgetful saves what it creates, but not what it swaps.
type forgetful struct {
	unlocked
	swapped map[brokerauth.Key][]byte
}

func openForgetful(t *testing.T, at string) brokerauth.Store {
	return &forgetful{unlocked{at}, map[brokerauth.Key][]byte{}}
}

func (f *forgetful) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	if old == nil || new == nil {
		return f.unlocked.CompareAndSwap(ctx, key, old, new)
	}
	f.swapped[key] = new
	return true, nil
}

func (f *forgetful) Load(ctx context.Context, key brokerauth.Key) ([]byte, error) {
	if record, ok := f.swapped[key]; ok {
		return record, nil
	}
	return f.unlocked.Load(ctx, key)
}

// files is a sound store in files, but for what its fields change. It cannot tell keys that differ in case apart.
type files struct {
	unlocked
	lock  func() (unlock func(), err error)
	write func(path string, new []byte) error // nil: by a new file and a rename
}

func (f *files) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	unlock, err := f.lock()
	if err != nil {
		return false, err
	}
	defer unlock()
	path := filepath.Join(f.dir, key.String())
	record, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) || !bytes.Equal(record, old) {
		return false, nil
	}
	if new == nil {
		os.Remove(path)
		return true, nil
	}
	if f.write != nil {
		return true, f.write(path, new)
	}
	time.Sleep(time.Millisecond) // for another to come between
	temp, err := os.CreateTemp(f.dir, "new-")
	if err != nil {
		return false, err
	}
	_, err = temp.Write(new)
	return true, errors.Join(err, temp.Close(), os.Rename(temp.Name(), path))
}

// flocked locks a file of the folder, for all processes.
func flocked(dir string) func() (func(), error) {
	return func() (func(), error) {
		held := flock.New(filepath.Join(dir, ".lock"))
		return func() { held.Unlock() }, held.Lock()
	}
}

func openBackup(t *testing.T, at string) brokerauth.Store {
	return &files{unlocked{at}, flocked(at), func(path string, new []byte) error {
		return errors.Join(os.WriteFile(path+".bak", new, 0o600), os.WriteFile(path, new, 0o600))
	}}
}

func openHandleLock(t *testing.T, at string) brokerauth.Store {
	var mu sync.Mutex
	return &files{unlocked{at}, func() (func(), error) { mu.Lock(); return mu.Unlock, nil }, nil}
}

// openDeletedLock opens a store of which a waiter gets the deleted lock while a newcomer makes it anew.
func openDeletedLock(t *testing.T, at string) brokerauth.Store {
	lock := flocked(at)
	return &files{unlocked{at}, func() (func(), error) {
		unlock, err := lock()
		return func() {
			os.Remove(filepath.Join(at, ".lock"))
			unlock()
		}, err
	}, nil}
}

func openInPlace(t *testing.T, at string) brokerauth.Store {
	return &files{unlocked{at}, flocked(at), func(path string, new []byte) error {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		half := len(new) / 2
		f.Write(new[:half])
		time.Sleep(2 * time.Millisecond) // far longer than all else takes, so that a kill comes now
		f.Write(new[half:])
		return f.Close()
	}}
}

// openStuckLock opens a store whose lock is that a file exists.
func openStuckLock(t *testing.T, at string) brokerauth.Store {
	path := filepath.Join(at, ".lock")
	return &files{unlocked{at}, func() (func(), error) {
		for {
			f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o600)
			if err == nil {
				return func() { f.Close(); os.Remove(path) }, nil
			}
			if !errors.Is(err, fs.ErrExist) {
				return nil, err
			}
			time.Sleep(time.Millisecond)
		}
	}, nil}
}

// lazy tells that it has saved before it has.
type lazy struct {
	files
	mu      sync.Mutex
	pending map[brokerauth.Key][]byte
}

func openLazy(t *testing.T, at string) brokerauth.Store {
	l := &lazy{files: files{unlocked{at}, flocked(at), nil}, pending: map[brokerauth.Key][]byte{}}
	go func() {
		for t.Context().Err() == nil {
			time.Sleep(50 * time.Millisecond)
			l.flush()
		}
	}()
	return l
}

func (l *lazy) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, record := range l.pending {
		os.WriteFile(filepath.Join(l.dir, key.String()), record, 0o600)
		delete(l.pending, key)
	}
}

func (l *lazy) Load(ctx context.Context, key brokerauth.Key) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if record, ok := l.pending[key]; ok {
		return record, nil
	}
	return l.files.Load(ctx, key)
}

func (l *lazy) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	if old == nil || new == nil {
		return l.files.CompareAndSwap(ctx, key, old, new)
	}
	record, err := l.Load(ctx, key)
	if err != nil || !bytes.Equal(record, old) {
		return false, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending[key] = new
	return true, nil
}

// cache remembers what it read.
type cache struct {
	files
	seen map[brokerauth.Key][]byte
}

func openCache(t *testing.T, at string) brokerauth.Store {
	return &cache{files{unlocked{at}, flocked(at), nil}, map[brokerauth.Key][]byte{}}
}

func (c *cache) Load(ctx context.Context, key brokerauth.Key) ([]byte, error) {
	if record, ok := c.seen[key]; ok {
		return record, nil
	}
	record, err := c.files.Load(ctx, key)
	if err == nil {
		c.seen[key] = record
	}
	return record, err
}

func (c *cache) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	swapped, err := c.files.CompareAndSwap(ctx, key, old, new)
	if swapped {
		delete(c.seen, key)
	}
	return swapped, err
}

const breakage = "BROKERAUTH_TEST_BREAKAGE"

// TestBreakage runs a suite on one broken store or flow, in a child process of TestStoreFindsBreakages or
// TestFlowFindsBreakages.
func TestBreakage(t *testing.T) {
	name := os.Getenv(breakage)
	if name == "" {
		t.Skip("it is for the child processes of the tests that find breakages")
	}
	for _, b := range breakages {
		if b.fault+": "+b.rule == name {
			conformance.TestStore(t, b.open)
			return
		}
	}
	for _, b := range flowBreakages {
		if b.fault+": "+b.rule == name {
			conformance.TestFlow(t, b.open)
			return
		}
	}
	t.Fatalf("there is no breakage %q", name)
}

func TestStoreFindsBreakages(t *testing.T) {
	for _, b := range breakages {
		timeout := time.Minute
		if b.fault == "waits for ever" || strings.HasPrefix(b.fault, "stays locked") {
			timeout = 12 * time.Second // a hanging call must fail by its name well before
		}
		findsBreakage(t, "TestBreakage", b.fault, b.rule, "", timeout)
	}
}

var atOnce = make(chan struct{}, runtime.GOMAXPROCS(0))

// findsBreakage runs test for a broken implementation in a child process, where it must fail by the name of the rule, and
// say what is wrong.
func findsBreakage(t *testing.T, test, fault, rule, says string, timeout time.Duration) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Run(fault+": "+rule, func(t *testing.T) {
		t.Parallel()
		atOnce <- struct{}{}
		defer func() { <-atOnce }()
		name := strings.ReplaceAll(rule, " ", "_")
		var out []byte
		var err error
		// go test's limit ends a process that the machine lets lie for longer, whatever the suite does: then it gets more.
		for limit := timeout; limit <= time.Minute; limit *= 2 {
			cmd := exec.CommandContext(t.Context(), self, "-test.run=^"+test+"$/^"+regexp.QuoteMeta(name)+"$",
				"-test.count=1", "-test.timeout="+limit.String())
			cmd.Env = append(os.Environ(), breakage+"="+fault+": "+rule, "GORACE=atexit_sleep_ms=0") // else the race detector's second
			if out, err = cmd.CombinedOutput(); !bytes.Contains(out, []byte("panic: test timed out")) {
				break
			}
		}
		if err == nil {
			t.Fatalf("the suite found nothing:\n%s", out)
		}
		if !bytes.Contains(out, []byte("--- FAIL: "+test+"/"+name)) || bytes.Contains(out, []byte("panic:")) {
			t.Errorf("the suite did not name the rule:\n%s", out)
		}
		if !bytes.Contains(out, []byte(says)) {
			t.Errorf("the suite did not say %q:\n%s", says, out)
		}
	})
}

// A rule that no broken store breaks may be one that its check does not enforce.
func TestEveryRuleIsBroken(t *testing.T) {
	var rules []string
	for _, b := range breakages {
		rules = append(rules, b.rule)
	}
	everyRuleIsBroken(t, "TestSound", rules)
}

// everyRuleIsBroken compares the rules that test runs with those that something broken breaks.
func everyRuleIsBroken(t *testing.T, test string, broken []string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^"+test+"$", "-test.v", "-test.count=1")
	cmd.Stdout = &buf
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v:\n%s", err, &buf)
	}
	found := regexp.MustCompile(`(?m)^=== RUN +`+test+`/([^/\n]+)$`).FindAllSubmatch(buf.Bytes(), -1)
	if len(found) == 0 {
		t.Fatalf("no rules in:\n%s", &buf)
	}
	for _, m := range found {
		if rule := strings.ReplaceAll(string(m[1]), "_", " "); !slices.Contains(broken, rule) {
			t.Errorf("nothing broken breaks the rule %q", rule)
		}
	}
}

func TestSound(t *testing.T) {
	conformance.TestStore(t, func(t *testing.T, at string) brokerauth.Store { return new(memory.Store) })
}

// The store that the example makes of two functions keeps the contract; its backend is in memory, a new one each time.
func TestStoreOverMemory(t *testing.T) {
	conformance.TestStore(t, func(t *testing.T, at string) brokerauth.Store {
		b := &bucket{objects: map[string][]byte{}, version: map[string]int{}}
		return Functions{Read: b.read, Write: b.write}
	})
}

func ExampleTestStore() {
	// In a test file of your own:
	//
	//	func TestStore(t *testing.T) { …
	_ = func(t *testing.T) {
		conformance.TestStore(t, func(t *testing.T, at string) brokerauth.Store {
			return new(memory.Store) // or yours, at the place that at names
		})
	}
	// Output:
}
