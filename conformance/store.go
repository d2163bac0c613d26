package conformance

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth"
)

// TestStore checks a [brokerauth.Store]. Each call of open returns a new handle on the store at the place that at
// names: an empty folder of this check's own, whose base name is unique, so that a store elsewhere can use it as a
// prefix. What open acquires, it releases by t.Cleanup.
//
// A store that two handles share must be shared by processes, too. To check that, the test binary runs itself again,
// for the calling test only: that test runs a second time in each child, as far as its call of TestStore. It must call
// TestStore once, and reach the same store from at alone, or from the environment. Of a store that a second handle
// does not see, such as one in memory, these checks are skipped.
//
// Every call, and every crowd of them, gets a minute, or a quarter of what go test's -timeout leaves.
func TestStore(t *testing.T, open func(t *testing.T, at string) brokerauth.Store) {
	t.Helper()
	if job, ok := os.LookupEnv(storeJob); ok {
		runStoreJob(t, open, job)
		return
	}
	for _, c := range []struct {
		rule string
		run  func(*testing.T, *storePlace)
	}{
		{"a missing record is ErrNotExist", missingRecord},
		{"a record comes back byte for byte", roundTrip},
		{"100 KiB fit", largeRecord},
		{"old nil creates only what is absent", createOnlyAbsent},
		{"a record is swapped only if it is old", swapOnlyOld},
		{"new nil deletes", deletes},
		{"a deletion leaves no copy", leavesNoCopy},
		{"keys are kept apart", keysApart},
		{"an unfit key is refused", unfitKey},
		{"bytes are copied in and out", copies},
		{"of many writers one wins", oneWinner},
		{"no change is lost", nothingLost},
		{"a reader sees the old record or the new", wholeRecords},
		{"an ended context is an error", endedContext},
		{"a context that ends in a crowd leaves nothing locked", crowdedContext},
		{"a record outlives its handle", outlivesHandle},
		{"a handle sees another's change", seesChange},
		{"of many handles one wins", oneWinnerOfHandles},
		{"no change is lost among handles", nothingLostAmongHandles},
		{"processes see each other's records", processesShare},
		{"of many processes one wins", oneWinnerOfProcesses},
		{"no change is lost among processes", nothingLostAmongProcesses},
		{"a killed process tears and blocks nothing", survivesKills},
		{"no goroutine is left", noGoroutine},
		{"Keys lists what is there", keysListed},
		{"SetAside moves the record away", setAside},
		{"Where tells no secret", whereTells},
	} {
		name := t.Name()
		t.Run(c.rule, func(t *testing.T) {
			at, err := os.MkdirTemp(t.TempDir(), "brokerauth-")
			if err != nil {
				t.Fatal(err)
			}
			c.run(t, &storePlace{at: at, test: name, open: open})
		})
	}
}

// storePlace is where one check has its store.
type storePlace struct {
	at, test string
	open     func(t *testing.T, at string) brokerauth.Store
}

func (p *storePlace) handle(t *testing.T) *storeHandle {
	t.Helper()
	return &storeHandle{t, p.open(t, p.at)}
}

// handles returns n handles, and skips the check if they do not share a store.
func (p *storePlace) handles(t *testing.T, n int) []*storeHandle {
	t.Helper()
	hs := make([]*storeHandle, n)
	for i := range hs {
		hs[i] = p.handle(t)
	}
	probe := storeKey("probe")
	hs[0].mustSwap(probe, nil, []byte("probe"))
	ctx, cancel := context.WithTimeout(t.Context(), patience(t))
	defer cancel()
	if _, err := hs[1].s.Load(ctx, probe); errors.Is(err, fs.ErrNotExist) {
		t.Skip("a second handle does not see the store's records")
	}
	hs[0].mustSwap(probe, []byte("probe"), nil)
	return hs
}

// storeHandle calls a store, and fails the test when a call hangs or fails.
type storeHandle struct {
	t *testing.T
	s brokerauth.Store
}

// patience is how long one call may take. It leaves time to say which rule was broken before go test gives up.
func patience(t *testing.T) time.Duration {
	d := time.Minute
	if end, ok := t.Deadline(); ok {
		d = min(d, time.Until(end)/4)
	}
	return d
}

// within fails the test if f, which must not use it, takes much longer than its context lasts.
func within(t *testing.T, what string, f func(ctx context.Context)) {
	t.Helper()
	limit := patience(t)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(ctx)
	}()
	select {
	case <-done:
	case <-time.After(limit + limit/2):
		t.Fatalf("%s still runs, though its context ended after %v", what, limit)
	}
}

func (h *storeHandle) load(key brokerauth.Key) (record []byte, err error) {
	h.t.Helper()
	within(h.t, fmt.Sprintf("Load(%s)", key), func(ctx context.Context) { record, err = h.s.Load(ctx, key) })
	if err != nil && record != nil {
		h.t.Errorf("Load(%s) returned a record of %d bytes and the error %v", key, len(record), err)
	}
	return record, err
}

func (h *storeHandle) swap(key brokerauth.Key, old, new []byte) (swapped bool, err error) {
	h.t.Helper()
	within(h.t, fmt.Sprintf("CompareAndSwap(%s)", key), func(ctx context.Context) {
		swapped, err = h.s.CompareAndSwap(ctx, key, old, new)
	})
	if err != nil && swapped {
		h.t.Errorf("CompareAndSwap(%s) returned true and the error %v", key, err)
	}
	return swapped, err
}

func (h *storeHandle) mustSwap(key brokerauth.Key, old, new []byte) {
	h.t.Helper()
	if swapped, err := h.swap(key, old, new); err != nil || !swapped {
		h.t.Fatalf("CompareAndSwap(%s) from %s to %s = %v, %v, want true", key, show(old), show(new), swapped, err)
	}
}

func (h *storeHandle) mustNotSwap(key brokerauth.Key, old, new []byte) {
	h.t.Helper()
	if swapped, err := h.swap(key, old, new); err != nil || swapped {
		h.t.Fatalf("CompareAndSwap(%s) from %s to %s = %v, %v, want false and no error", key, show(old), show(new), swapped, err)
	}
}

func (h *storeHandle) mustHold(key brokerauth.Key, want []byte) {
	h.t.Helper()
	if got, err := h.load(key); err != nil || !bytes.Equal(got, want) {
		h.t.Fatalf("Load(%s) = %s, %v, want %s", key, show(got), err, show(want))
	}
}

func (h *storeHandle) mustMiss(key brokerauth.Key) {
	h.t.Helper()
	if got, err := h.load(key); !errors.Is(err, fs.ErrNotExist) {
		h.t.Fatalf("Load(%s) = %s, %v, want fs.ErrNotExist", key, show(got), err)
	}
}

func show(record []byte) string {
	switch {
	case record == nil:
		return "nil"
	case len(record) > 40:
		return fmt.Sprintf("%q… (%d bytes)", record[:40], len(record))
	}
	return fmt.Sprintf("%q", record)
}

func storeKey(profile string) brokerauth.Key {
	return brokerauth.Key{Provider: "conformance", Identity: "app", Profile: profile}
}

func missingRecord(t *testing.T, p *storePlace) {
	h := p.handle(t)
	h.mustMiss(storeKey("absent"))
	h.mustSwap(storeKey("present"), nil, []byte("x"))
	h.mustMiss(storeKey("absent"))
	if _, err := h.load(storeKey("absent")); errors.Is(err, brokerauth.ErrCorrupt) || errors.Is(err, fs.ErrPermission) ||
		errors.Is(err, brokerauth.ErrUnavailable) {
		t.Errorf("Load of a missing record: %v, which matches other errors than fs.ErrNotExist", err)
	}
}

func roundTrip(t *testing.T, p *storePlace) {
	h := p.handle(t)
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	records := [][]byte{[]byte(`{"a": "b"}`), []byte("\n"), {0}, {0, 0, 0}, []byte("x\r\n\x1a"), []byte(" x "), {0xff, 0xfe}, all}
	for i, record := range records {
		key := storeKey(strconv.Itoa(i))
		h.mustSwap(key, nil, record)
		h.mustHold(key, record)
		h.mustSwap(key, record, []byte("y"))
		h.mustHold(key, []byte("y"))
	}
}

func largeRecord(t *testing.T, p *storePlace) {
	h, key := p.handle(t), storeKey("large")
	a, b := noise(100<<10), noise(100<<10)
	h.mustSwap(key, nil, a)
	h.mustHold(key, a)
	almost := bytes.Clone(a)
	almost[len(almost)-1]++
	h.mustNotSwap(key, almost, b)
	h.mustSwap(key, a, b)
	h.mustHold(key, b)
	h.mustSwap(key, b, []byte("small"))
	h.mustHold(key, []byte("small"))
}

// noise does not compress.
func noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

func createOnlyAbsent(t *testing.T, p *storePlace) {
	h, key := p.handle(t), storeKey("k")
	h.mustSwap(key, nil, []byte("a"))
	h.mustNotSwap(key, nil, []byte("b"))
	h.mustNotSwap(key, nil, []byte("a"))
	h.mustHold(key, []byte("a"))
}

func swapOnlyOld(t *testing.T, p *storePlace) {
	h, key := p.handle(t), storeKey("k")
	h.mustNotSwap(key, []byte("a"), []byte("b"))
	h.mustMiss(key)
	h.mustSwap(key, nil, []byte("one"))
	for _, old := range []string{"on", "one ", "ONE", "two", "one\x00"} {
		h.mustNotSwap(key, []byte(old), []byte("b"))
	}
	h.mustHold(key, []byte("one"))
	h.mustSwap(key, []byte("one"), []byte("two"))
	h.mustHold(key, []byte("two"))
	h.mustNotSwap(key, []byte("one"), []byte("three"))
	h.mustSwap(key, []byte("two"), []byte("two"))
	h.mustHold(key, []byte("two"))
}

func deletes(t *testing.T, p *storePlace) {
	h, key := p.handle(t), storeKey("k")
	h.mustSwap(key, nil, nil)
	h.mustNotSwap(key, []byte("a"), nil)
	h.mustSwap(key, nil, []byte("a"))
	h.mustNotSwap(key, []byte("b"), nil)
	h.mustNotSwap(key, nil, nil)
	h.mustHold(key, []byte("a"))
	h.mustSwap(key, []byte("a"), nil)
	h.mustMiss(key)
	h.mustNotSwap(key, []byte("a"), []byte("b"))
	h.mustSwap(key, nil, []byte("c"))
	h.mustHold(key, []byte("c"))
}

// leavesNoCopy looks through what the store keeps in its place, if it keeps files there.
func leavesNoCopy(t *testing.T, p *storePlace) {
	h, key := p.handle(t), storeKey("k")
	first, second := fmt.Sprintf("first %x", noise(16)), fmt.Sprintf("second %x", noise(16))
	h.mustSwap(key, nil, []byte(first))
	h.mustSwap(key, []byte(first), []byte(second))
	h.mustSwap(key, []byte(second), nil)
	err := filepath.WalkDir(p.at, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if bytes.Contains(text, []byte(first)) || bytes.Contains(text, []byte(second)) {
			t.Errorf("after the deletion %s still holds the record", filepath.Base(path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// awkward are keys that meet on file systems and in databases that fold case, strip spaces or cut names.
func awkward() []brokerauth.Key {
	long := strings.Repeat("p", 63)
	keys := []brokerauth.Key{
		{Provider: "a"}, {Provider: "a", Identity: "b"}, {Provider: "a", Profile: "b"}, {Provider: "a.b"},
		{Provider: "a.b", Profile: "c"}, {Provider: "a", Identity: "b.c"}, {Provider: "a", Identity: "b", Profile: "c"},
		{Provider: "a", Identity: "=", Profile: "c"}, {Provider: "a", Identity: "=62", Profile: "c"}, {Provider: "aux"},
		{Provider: "~own"}, {Provider: "AUX"},
		{Provider: strings.Repeat("x", 64), Identity: strings.Repeat("y", 64), Profile: "z"},
	}
	for _, profile := range []string{
		"case", "Case", "CASE", "aux", "con", "nul.json", "com1", "a:b", "a/b", `a\b`, "..", ".", "/", "*", "%", "_",
		"a%62", "é", "e\u0301", "ß", "SS", "ss", "İ", "i", "日本", "a ", " a", "a.", ".a",
		"a\x00", "a\n", "\xff", "'; --", `"`, "$(x)", "", "default", long + "1", long + "2", long,
	} {
		keys = append(keys, storeKey(profile))
	}
	return keys
}

func keysApart(t *testing.T, p *storePlace) {
	h, keys := p.handle(t), awkward()
	for i, key := range keys {
		h.mustSwap(key, nil, fmt.Appendf(nil, "record %d", i))
	}
	for i, key := range keys {
		h.mustHold(key, fmt.Appendf(nil, "record %d", i))
	}
	for i, key := range keys {
		h.mustSwap(key, fmt.Appendf(nil, "record %d", i), nil)
		h.mustMiss(key)
		if i+1 < len(keys) {
			h.mustHold(keys[i+1], fmt.Appendf(nil, "record %d", i+1))
		}
	}
}

func unfitKey(t *testing.T, p *storePlace) {
	h := p.handle(t)
	for _, key := range []brokerauth.Key{
		{},
		{Identity: "app", Profile: "no provider"},
		storeKey(strings.Repeat("p", 65)),
		{Provider: strings.Repeat("p", 65)},
		{Provider: "conformance", Identity: strings.Repeat("é", 32), Profile: strings.Repeat("é", 32)},
	} {
		if _, err := h.load(key); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Load(%s): %v, want what Key.Validate says", key, err)
		}
		if swapped, err := h.swap(key, nil, []byte("x")); err == nil {
			t.Errorf("CompareAndSwap(%s) = %v, want what Key.Validate says", key, swapped)
		}
	}
}

func copies(t *testing.T, p *storePlace) {
	h, key := p.handle(t), storeKey("k")
	in := []byte("record")
	h.mustSwap(key, nil, in)
	in[0] = '!'
	h.mustHold(key, []byte("record"))
	out, err := h.load(key)
	if err != nil {
		t.Fatal(err)
	}
	out[0] = '!'
	h.mustHold(key, []byte("record"))
	old := []byte("record")
	in = []byte("second")
	h.mustSwap(key, old, in)
	old[0], in[0] = '!', '!'
	h.mustHold(key, []byte("second"))
}

func oneWinner(t *testing.T, p *storePlace) {
	h := p.handle(t)
	findWinners(t, "contested", slices.Repeat([]*storeHandle{h}, 8))
	findWinners(t, "crowded", slices.Repeat([]*storeHandle{h}, 200))
}

func oneWinnerOfHandles(t *testing.T, p *storePlace) {
	findWinners(t, "contested", p.handles(t, 8))
}

// findWinners has everybody create, swap and delete the same record, again and again.
func findWinners(t *testing.T, name string, hs []*storeHandle) {
	t.Helper()
	key := storeKey(name)
	var old []byte
	began := time.Now()
	for round := range 12 {
		// A slow store has done enough after five seconds, if it has created and swapped.
		if round >= 2 && time.Since(began) > 5*time.Second {
			break
		}
		var (
			wins   = make([]bool, len(hs))
			errs   = make([]error, len(hs))
			record = func(i int) []byte {
				if round%4 == 3 {
					return nil
				}
				return fmt.Appendf(nil, "round %d, writer %d", round, i)
			}
		)
		within(t, "CompareAndSwap among others", func(ctx context.Context) {
			var all sync.WaitGroup
			start := make(chan struct{})
			for i, h := range hs {
				all.Go(func() {
					<-start
					wins[i], errs[i] = h.s.CompareAndSwap(ctx, key, old, record(i))
				})
			}
			close(start)
			all.Wait()
		})
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		winner := slices.Index(wins, true)
		if winner < 0 || slices.Contains(wins[winner+1:], true) {
			if record(0) == nil && old == nil {
				continue // to delete nothing succeeds for all
			}
			t.Fatalf("round %d: of %d writers these changed the same record: %v, want exactly one", round, len(hs), wins)
		}
		if old = record(winner); old == nil {
			hs[0].mustMiss(key)
		} else {
			hs[0].mustHold(key, old)
		}
	}
}

const increments = 20

func nothingLost(t *testing.T, p *storePlace) {
	h := p.handle(t)
	countUp(t, slices.Repeat([]*storeHandle{h}, 8))
}

func nothingLostAmongHandles(t *testing.T, p *storePlace) { countUp(t, p.handles(t, 8)) }

func countUp(t *testing.T, hs []*storeHandle) {
	t.Helper()
	key := storeKey("counter")
	errs := make([]error, len(hs))
	within(t, "counting by CompareAndSwap", func(ctx context.Context) {
		var all sync.WaitGroup
		for i, h := range hs {
			all.Go(func() { errs[i] = increment(ctx, h.s, key, increments) })
		}
		all.Wait()
	})
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	hs[0].mustHold(key, []byte(strconv.Itoa(len(hs)*increments)))
}

// increment adds 1 to the number at key, n times.
func increment(ctx context.Context, s brokerauth.Store, key brokerauth.Key, n int) error {
	for n > 0 {
		old, err := s.Load(ctx, key)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		count := 0
		if old != nil {
			if count, err = strconv.Atoi(string(old)); err != nil {
				return err
			}
		}
		swapped, err := s.CompareAndSwap(ctx, key, old, []byte(strconv.Itoa(count+1)))
		if err != nil {
			return err
		}
		if swapped {
			n--
		}
	}
	return nil
}

func wholeRecords(t *testing.T, p *storePlace) {
	writer, other, key := p.handle(t), p.handle(t), storeKey("k")
	records := [][]byte{bytes.Repeat([]byte("a"), 70_000), bytes.Repeat([]byte("b"), 3), bytes.Repeat([]byte("c"), 30_000)}
	writer.mustSwap(key, nil, records[0])
	reader := other
	if _, err := other.load(key); errors.Is(err, fs.ErrNotExist) {
		reader = writer // the store is one handle's own
	}
	var failed error
	within(t, "reading during writes", func(ctx context.Context) {
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		var readers sync.WaitGroup
		var once sync.Once
		for range 2 {
			readers.Go(func() {
				for ctx.Err() == nil {
					got, err := reader.s.Load(ctx, key)
					whole := slices.ContainsFunc(records, func(r []byte) bool { return bytes.Equal(r, got) })
					if err == nil && !whole {
						err = fmt.Errorf("it is none that was written: %s", show(got))
					}
					if err != nil && ctx.Err() == nil {
						once.Do(func() { failed = fmt.Errorf("a Load while the record is being swapped: %w", err) })
						stop()
					}
				}
			})
		}
		// A slow store has done enough after five seconds.
		began := time.Now()
		for i := range 60 {
			if i >= 6 && time.Since(began) > 5*time.Second {
				break
			}
			swapped, err := writer.s.CompareAndSwap(ctx, key, records[i%3], records[(i+1)%3])
			if err == nil && !swapped {
				err = errors.New("it was not swapped")
			}
			if err != nil {
				if ctx.Err() == nil {
					once.Do(func() { failed = fmt.Errorf("a CompareAndSwap while others read: %w", err) })
				}
				break
			}
		}
		stop()
		readers.Wait()
	})
	if failed != nil {
		t.Fatal(failed)
	}
}

func endedContext(t *testing.T, p *storePlace) {
	h, key := p.handle(t), storeKey("k")
	h.mustSwap(key, nil, []byte("a"))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	for _, ctx := range []context.Context{ended, late} {
		var errs [2]error
		within(t, "a call with an ended context", func(context.Context) {
			_, errs[0] = h.s.Load(ctx, key)
			_, errs[1] = h.s.CompareAndSwap(ctx, key, []byte("a"), []byte("b"))
		})
		for i, name := range []string{"Load", "CompareAndSwap"} {
			if !errors.Is(errs[i], ctx.Err()) {
				t.Errorf("%s with an ended context: %v, want %v", name, errs[i], ctx.Err())
			}
		}
	}
}

func crowdedContext(t *testing.T, p *storePlace) {
	h, key := p.handle(t), storeKey("k")
	const crowd = 16
	errs := make([]error, crowd)
	within(t, "CompareAndSwap in a crowd, with short contexts", func(all context.Context) {
		var writers sync.WaitGroup
		for i := range crowd {
			writers.Go(func() {
				for range 5 {
					ctx, cancel := context.WithTimeout(all, rand.N(3*time.Millisecond))
					old, err := h.s.Load(ctx, key)
					if err == nil || errors.Is(err, fs.ErrNotExist) {
						_, err = h.s.CompareAndSwap(ctx, key, old, fmt.Appendf(nil, "writer %d", i))
					}
					if err != nil && ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded) {
						errs[i] = err
					}
					cancel()
				}
			})
		}
		writers.Wait()
	})
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	old, err := h.load(key)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	h.mustSwap(key, old, []byte("after"))
	h.mustHold(key, []byte("after"))
}

func outlivesHandle(t *testing.T, p *storePlace) {
	p.handles(t, 2)
	key := storeKey("k")
	for i := range 3 {
		// The handle ends with its subtest.
		t.Run("handle", func(t *testing.T) {
			h := p.handle(t)
			if i > 0 {
				h.mustHold(key, []byte{byte(i)})
				h.mustSwap(key, []byte{byte(i)}, []byte{byte(i + 1)})
			} else {
				h.mustSwap(key, nil, []byte{1})
			}
		})
	}
}

func seesChange(t *testing.T, p *storePlace) {
	hs, key := p.handles(t, 2), storeKey("k")
	hs[1].mustMiss(key)
	hs[0].mustSwap(key, nil, []byte("one"))
	hs[1].mustHold(key, []byte("one"))
	hs[0].mustSwap(key, []byte("one"), []byte("two"))
	hs[1].mustHold(key, []byte("two"))
	hs[1].mustNotSwap(key, []byte("one"), []byte("three"))
	hs[1].mustSwap(key, []byte("two"), []byte("three"))
	hs[0].mustHold(key, []byte("three"))
	hs[0].mustSwap(key, []byte("three"), nil)
	hs[1].mustMiss(key)
}

func noGoroutine(t *testing.T, p *storePlace) {
	leaveNone(t, func(t *testing.T) {
		h, key := p.handle(t), storeKey("k")
		h.mustSwap(key, nil, []byte("a"))
		h.mustHold(key, []byte("a"))
		countUp(t, slices.Repeat([]*storeHandle{h}, 4))
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		within(t, "a call with an ended context", func(context.Context) {
			h.s.Load(ended, key)
			h.s.CompareAndSwap(ended, key, []byte("a"), nil)
		})
		h.mustSwap(key, []byte("a"), nil)
	})
}

// leaveNone fails the test if a goroutine that began in calls is still there some time after it.
func leaveNone(t *testing.T, calls func(t *testing.T)) {
	// Goroutines inherit the label, so those of tests that run beside this one are none of its business.
	label := strconv.FormatUint(rand.Uint64(), 36)
	pprof.SetGoroutineLabels(pprof.WithLabels(t.Context(), pprof.Labels("brokerauth-conformance", label)))
	t.Run("calls", calls)
	pprof.SetGoroutineLabels(context.Background())
	var left []string
	for end := time.Now().Add(min(patience(t)/2, 10*time.Second)); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		var b bytes.Buffer
		if err := pprof.Lookup("goroutine").WriteTo(&b, 1); err != nil {
			t.Fatal(err)
		}
		left = slices.DeleteFunc(strings.Split(b.String(), "\n\n"), func(s string) bool {
			return !strings.Contains(s, `"brokerauth-conformance":"`+label+`"`)
		})
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("after the last call, and the end of its test, these goroutines run:\n%s", strings.Join(left, "\n\n"))
}

func keysListed(t *testing.T, p *storePlace) {
	h := p.handle(t)
	lister, ok := h.s.(interface {
		Keys(ctx context.Context) ([]brokerauth.Key, error)
	})
	if !ok {
		t.Skip("the store has no method Keys")
	}
	list := func(want []brokerauth.Key) {
		t.Helper()
		var got []brokerauth.Key
		var err error
		within(t, "Keys", func(ctx context.Context) { got, err = lister.Keys(ctx) })
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("Keys() = %q, %v, want %q", got, err, want)
		}
	}
	list(nil)
	keys := awkward()
	for _, key := range keys {
		h.mustSwap(key, nil, []byte("record"))
	}
	slices.SortFunc(keys, func(a, b brokerauth.Key) int { return strings.Compare(a.String(), b.String()) })
	list(keys)
	for _, key := range keys[1:] {
		h.mustSwap(key, []byte("record"), nil)
	}
	list(keys[:1])
}

func setAside(t *testing.T, p *storePlace) {
	h, key, other := p.handle(t), storeKey("k"), storeKey("other")
	mover, ok := h.s.(interface {
		SetAside(ctx context.Context, key brokerauth.Key) (where string, err error)
	})
	if !ok {
		t.Skip("the store has no method SetAside")
	}
	move := func() (where string, err error) {
		t.Helper()
		within(t, "SetAside", func(ctx context.Context) { where, err = mover.SetAside(ctx, key) })
		return where, err
	}
	if _, err := move(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("SetAside of a missing record: %v, want fs.ErrNotExist", err)
	}
	h.mustSwap(other, nil, []byte("other"))
	var places []string
	for range 3 {
		h.mustSwap(key, nil, []byte("unreadable"))
		where, err := move()
		if err != nil || where == "" || slices.Contains(places, where) {
			t.Fatalf("SetAside = %q, %v, want a place that is not among %q", where, err, places)
		}
		places = append(places, where)
		h.mustMiss(key)
		if lister, ok := h.s.(interface {
			Keys(ctx context.Context) ([]brokerauth.Key, error)
		}); ok {
			if keys, err := lister.Keys(t.Context()); err != nil || !slices.Equal(keys, []brokerauth.Key{other}) {
				t.Errorf("Keys() after SetAside = %q, %v, want only %q", keys, err, other)
			}
		}
	}
	h.mustSwap(key, nil, []byte("new"))
	h.mustHold(key, []byte("new"))
	h.mustSwap(key, []byte("new"), nil)
	h.mustSwap(key, nil, nil)
	h.mustMiss(key)
	h.mustHold(other, []byte("other"))
}

func whereTells(t *testing.T, p *storePlace) {
	h, key := p.handle(t), storeKey("k")
	teller, ok := h.s.(interface {
		Where(key brokerauth.Key) string
	})
	if !ok {
		t.Skip("the store has no method Where")
	}
	h.mustSwap(key, nil, []byte("tell-nobody"))
	if where := teller.Where(key); where == "" || strings.Contains(where, "tell-nobody") {
		t.Errorf("Where(%s) = %q, want a place", key, where)
	}
}

// storeJob is the environment variable that tells a child process what to do.
const storeJob = "BROKERAUTH_CONFORMANCE_STORE"

// job is what a child process does with the store: it says that it is ready, waits for a line on its stdin, and says
// how it went.
type job struct {
	At, Do string
	Child  int
}

const (
	jobReady = "conformance child: ready"
	jobDone  = "conformance child: done "
	jobSaved = "conformance child: saved "
)

const contests = 20

func runStoreJob(t *testing.T, open func(t *testing.T, at string) brokerauth.Store, text string) {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		t.Fatalf("%s: %v", storeJob, err)
	}
	h := &storeHandle{t, open(t, j.At)}
	fmt.Println(jobReady)
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		t.Fatalf("waiting for the parent: %v", err)
	}
	result := ""
	switch j.Do {
	case "share":
		h.mustHold(storeKey("parent's"), []byte("from the parent"))
		h.mustSwap(storeKey("parent's"), []byte("from the parent"), []byte("from the child"))
		h.mustSwap(storeKey("child's"), nil, []byte("from the child"))
	case "win":
		wins := 0
		for i := range contests {
			swapped, err := h.swap(storeKey(strconv.Itoa(i)), nil, fmt.Appendf(nil, "child %d", j.Child))
			if err != nil {
				t.Fatal(err)
			}
			if swapped {
				wins++
			}
		}
		result = strconv.Itoa(wins)
	case "count":
		var err error
		within(t, "counting by CompareAndSwap", func(ctx context.Context) {
			err = increment(ctx, h.s, storeKey("counter"), increments)
		})
		if err != nil {
			t.Fatal(err)
		}
	case "churn":
		for { // until it is killed
			old, n, err := h.churned()
			if err != nil {
				t.Fatal(err)
			}
			swapped, err := h.swap(storeKey("churned"), old, churnedRecord(n+1))
			if err != nil {
				t.Fatal(err)
			}
			if swapped {
				fmt.Printf("%s%d\n", jobSaved, n+1)
			}
		}
	default:
		t.Fatalf("%s asks for %q", storeJob, j.Do)
	}
	fmt.Println(jobDone + result)
}

// again is this test binary once more, for the test of that name only, with one more setting in its environment. When
// the test fails, the end of its context kills the child.
func again(t *testing.T, test, setting string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Split(test, "/")
	for i, name := range names {
		names[i] = "^" + regexp.QuoteMeta(name) + "$"
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run="+strings.Join(names, "/"), "-test.count=1",
		"-test.timeout="+(4*patience(t)).String())
	cmd.Env = append(os.Environ(), setting)
	if _, set := os.LookupEnv("GORACE"); !set {
		cmd.Env = append(cmd.Env, "GORACE=atexit_sleep_ms=0") // else the race detector's second at each exit
	}
	return cmd
}

// storeChild is a process that works on the store.
type storeChild struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Scanner
	stderr bytes.Buffer
}

// child starts a process, which waits for the word to go.
func (p *storePlace) child(t *testing.T, do string, number int) *storeChild {
	t.Helper()
	text, err := json.Marshal(job{p.at, do, number})
	if err != nil {
		t.Fatal(err)
	}
	c := &storeChild{cmd: again(t, p.test, storeJob+"="+string(text))}
	c.cmd.Stderr = &c.stderr
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.stdout = bufio.NewScanner(stdout)
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.cmd.Wait() })
	return c
}

// await reads what a child says up to the line that starts with prefix, and returns the rest of that line.
func (c *storeChild) await(t *testing.T, prefix string) string {
	t.Helper()
	var lines []string
	for c.stdout.Scan() {
		if rest, ok := strings.CutPrefix(c.stdout.Text(), prefix); ok {
			return rest
		}
		lines = append(lines, c.stdout.Text())
	}
	t.Fatalf("a child process did not get to %q:\n%s\n%s", prefix, strings.Join(lines, "\n"), c.stderr.Bytes())
	return ""
}

func (c *storeChild) begin(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(c.stdin, "go\n"); err != nil {
		t.Fatal(err)
	}
}

// children runs n processes that do the same at the same time, and returns what they answer.
func (p *storePlace) children(t *testing.T, n int, do string) []string {
	t.Helper()
	kids := make([]*storeChild, n)
	for i := range kids {
		kids[i] = p.child(t, do, i)
	}
	for _, c := range kids {
		c.await(t, jobReady)
	}
	for _, c := range kids {
		c.begin(t)
	}
	results := make([]string, n)
	for i, c := range kids {
		results[i] = c.await(t, jobDone)
		for c.stdout.Scan() {
			// Wait must not close the pipe before the child has written all.
		}
		if err := c.cmd.Wait(); err != nil {
			t.Fatalf("a child process: %v\n%s", err, c.stderr.Bytes())
		}
	}
	return results
}

// churnedRecord is the nth record of a child that churns; a torn one is none.
func churnedRecord(n int) []byte {
	return bytes.Repeat(fmt.Appendf(nil, "%d.", n), 1+(n%3)*2000)
}

// churned returns the record of a child that churned, and its number.
func (h *storeHandle) churned() (record []byte, n int, err error) {
	record, err = h.load(storeKey("churned"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	number, _, _ := bytes.Cut(record, []byte("."))
	if n, err = strconv.Atoi(string(number)); err != nil || !bytes.Equal(record, churnedRecord(n)) {
		return nil, 0, fmt.Errorf("the record is none that was written: %s", show(record))
	}
	return record, n, nil
}

// survivesKills kills processes in the middle of their swaps. What one said it had saved is there, whole, and the next
// one can go on.
func survivesKills(t *testing.T, p *storePlace) {
	h := p.handles(t, 2)[0]
	_, before, err := h.churned()
	if err != nil {
		t.Fatal(err)
	}
	for round := range 10 {
		c := p.child(t, "churn", round)
		c.await(t, jobReady)
		c.begin(t)
		saved := before
		if round > 0 { // the first is killed before it may have saved anything
			if saved, err = strconv.Atoi(c.await(t, jobSaved)); err != nil {
				t.Fatal(err)
			}
		}
		kill := time.AfterFunc(rand.N(30*time.Millisecond), func() { c.cmd.Process.Kill() })
		for c.stdout.Scan() {
			if text, ok := strings.CutPrefix(c.stdout.Text(), jobSaved); ok {
				if n, err := strconv.Atoi(text); err == nil && strings.HasPrefix(string(churnedRecord(n)), text+".") {
					saved = max(saved, n)
				}
			}
		}
		kill.Stop()
		if err := c.cmd.Wait(); err == nil || c.cmd.ProcessState.ExitCode() > 0 {
			t.Fatalf("a child process ended by itself: %v\n%s", err, c.stderr.Bytes())
		}
		record, now, err := h.churned()
		if err != nil {
			t.Fatalf("after a process was killed: %v", err)
		}
		// What it was about to save may be there, too, and what the one before it was, if that came late.
		if now < saved || now > saved+2 {
			t.Fatalf("a killed process had saved record %d, and the store has %d", saved, now)
		}
		h.mustSwap(storeKey("other"), nil, []byte("x"))
		h.mustSwap(storeKey("other"), []byte("x"), nil)
		if before = now; record == nil {
			continue
		}
		if swapped, err := h.swap(storeKey("churned"), record, churnedRecord(now+1)); err != nil {
			t.Fatalf("CompareAndSwap after a process was killed: %v", err)
		} else if swapped {
			before = now + 1
		}
	}
}

func processesShare(t *testing.T, p *storePlace) {
	h := p.handles(t, 2)[0]
	h.mustSwap(storeKey("parent's"), nil, []byte("from the parent"))
	p.children(t, 1, "share")
	h.mustHold(storeKey("parent's"), []byte("from the child"))
	h.mustHold(storeKey("child's"), []byte("from the child"))
}

func oneWinnerOfProcesses(t *testing.T, p *storePlace) {
	p.handles(t, 2)
	sum := 0
	results := p.children(t, 16, "win")
	for _, result := range results {
		n, err := strconv.Atoi(result)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	if sum != contests {
		t.Errorf("%d processes created %d records %v times in all, want each once", len(results), contests, results)
	}
}

func nothingLostAmongProcesses(t *testing.T, p *storePlace) {
	h := p.handles(t, 2)[0]
	n := len(p.children(t, 4, "count"))
	h.mustHold(storeKey("counter"), []byte(strconv.Itoa(n*increments)))
}
