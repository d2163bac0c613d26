package disk_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gofrs/flock"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance"
	"github.com/brokerauth/brokerauth/storage/disk"
)

var key = brokerauth.Key{Provider: "schwab", Identity: "3fa8", Profile: "default"}

// children are what this test binary does, instead of tests, when childJob names it; the folder is childDir.
var children = map[string]func(store *disk.Store) error{
	"count": func(store *disk.Store) error { return count(store, 10) },
	"swap": func(store *disk.Store) error {
		_, err := store.CompareAndSwap(context.Background(), key, nil, []byte("a"))
		return err
	},
}

const childJob, childDir = "BROKERAUTH_TEST_JOB", "BROKERAUTH_TEST_DIR"

func TestMain(m *testing.M) {
	job := os.Getenv(childJob)
	if job == "" {
		os.Exit(m.Run())
	}
	store, err := disk.New(os.Getenv(childDir))
	if err == nil {
		err = children[job](store)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func child(t *testing.T, job, dir string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), childJob+"="+job, childDir+"="+dir, "GORACE=atexit_sleep_ms=0") // else the race detector's second
	return cmd
}

// count adds 1 to the number at key, n times.
func count(store *disk.Store, n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for n > 0 {
		old, err := store.Load(ctx, key)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		number, _ := strconv.Atoi(string(old))
		swapped, err := store.CompareAndSwap(ctx, key, old, []byte(strconv.Itoa(number+1)))
		if err != nil {
			return err
		}
		if swapped {
			n--
		}
	}
	return nil
}

// generation is a record that shows if any of it is missing.
func generation(n int) []byte {
	return fmt.Appendf(nil, "%d %s %d", n, strings.Repeat("x", 100*(n%40)), n)
}

func generationOf(record []byte) (int, error) {
	n := 0
	if _, err := fmt.Sscan(string(record), &n); err != nil || !bytes.Equal(record, generation(n)) {
		return 0, fmt.Errorf("this is no generation: %q", record)
	}
	return n, nil
}

func open(t testing.TB, dir string) *disk.Store {
	t.Helper()
	store, err := disk.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func mustSwap(t testing.TB, store *disk.Store, key brokerauth.Key, old, new []byte) {
	t.Helper()
	if swapped, err := store.CompareAndSwap(t.Context(), key, old, new); err != nil || !swapped {
		t.Fatalf("CompareAndSwap(%s) = %v, %v, want true", key, swapped, err)
	}
}

func mustHold(t testing.TB, store *disk.Store, key brokerauth.Key, want []byte) {
	t.Helper()
	if got, err := store.Load(t.Context(), key); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("Load(%s) = %q, %v, want %q", key, got, err, want)
	}
}

// names lists the folder without what a store keeps in it besides records.
func names(t testing.TB, dir string) []string {
	t.Helper()
	names, err := namesIn(dir)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func namesIn(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if e.Name() != ".lock" && e.Name() != ".gitignore" {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// place is the file that the store names for key.
func place(store *disk.Store, key brokerauth.Key) string {
	return strings.TrimPrefix(store.Where(key), "file ")
}

func TestStore(t *testing.T) {
	conformance.TestStore(t, func(t *testing.T, at string) brokerauth.Store { return open(t, at) })
}

func TestNewTouchesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	store := open(t, dir)
	if _, err := store.Load(t.Context(), key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load without a folder: %v, want fs.ErrNotExist", err)
	}
	if keys, err := store.Keys(t.Context()); err != nil || len(keys) > 0 {
		t.Errorf("Keys without a folder = %v, %v, want none", keys, err)
	}
	if _, err := store.SetAside(t.Context(), key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("SetAside without a folder: %v, want fs.ErrNotExist", err)
	}
	mustSwap(t, store, key, nil, nil)
	if swapped, err := store.CompareAndSwap(t.Context(), key, []byte("old"), nil); err != nil || swapped {
		t.Errorf("deleting what is missing = %v, %v, want false", swapped, err)
	}
	if _, err := os.Stat(filepath.Dir(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reading made the folder: %v", err)
	}
	mustSwap(t, store, key, nil, []byte("x"))
	if got, err := os.ReadFile(filepath.Join(dir, ".gitignore")); err != nil || string(got) != "*\n" {
		t.Errorf(".gitignore in a new folder = %q, %v", got, err)
	}
}

func TestDefaultFolder(t *testing.T) {
	home := t.TempDir()
	for _, name := range []string{"HOME", "XDG_STATE_HOME", "LocalAppData"} {
		t.Setenv(name, "")
	}
	if _, err := disk.New(""); err == nil {
		t.Error("New without any home: no error")
	}
	for _, name := range []string{"HOME", "LocalAppData"} {
		t.Setenv(name, "relative")
	}
	if _, err := disk.New(""); err == nil {
		t.Error("New with a home in the working directory: no error")
	}
	for _, name := range []string{"HOME", "LocalAppData"} {
		t.Setenv(name, home)
	}
	t.Setenv("XDG_STATE_HOME", "relative")
	state := filepath.Join(home, ".local", "state")
	switch runtime.GOOS {
	case "darwin":
		state = filepath.Join(home, "Library", "Application Support")
	case "windows":
		state = home
	}
	check := func(state string) {
		t.Helper()
		store, want := open(t, ""), filepath.Join(state, "brokerauth", "logins", key.String()+".json")
		mustSwap(t, store, key, nil, []byte("x"))
		if _, err := os.Stat(want); err != nil || place(store, key) != want {
			t.Errorf("the record is at %s, want %s: %v", place(store, key), want, err)
		}
	}
	check(state)
	if runtime.GOOS == "linux" {
		other := t.TempDir()
		t.Setenv("XDG_STATE_HOME", other)
		check(other)
	}
}

func TestRelativeFolder(t *testing.T) {
	t.Chdir(t.TempDir())
	store := open(t, "logins")
	mustSwap(t, store, key, nil, []byte("x"))
	t.Chdir(t.TempDir())
	mustHold(t, store, key, []byte("x"))
}

func TestCorrupt(t *testing.T) {
	for _, c := range []struct {
		name    string
		content []byte
	}{
		{"empty", nil},
		{"larger than 1 MiB", make([]byte, 1<<20+1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			store := open(t, dir)
			file := place(store, key)
			if err := os.WriteFile(file, c.content, 0o600); err != nil {
				t.Fatal(err)
			}
			record, err := store.Load(t.Context(), key)
			if !errors.Is(err, brokerauth.ErrCorrupt) || record != nil || !strings.Contains(err.Error(), file) {
				t.Errorf("Load = %d bytes, %v, want ErrCorrupt and the file's name", len(record), err)
			}
			new := []byte("new")
			for _, swap := range [][2][]byte{{nil, new}, {c.content, new}, {[]byte("old"), new}, {nil, nil}, {[]byte{}, nil}} {
				swapped, err := store.CompareAndSwap(t.Context(), key, swap[0], swap[1])
				if !errors.Is(err, brokerauth.ErrCorrupt) || swapped {
					t.Errorf("CompareAndSwap over it = %v, %v, want ErrCorrupt", swapped, err)
				}
			}
			if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, c.content) {
				t.Errorf("the file has %d bytes now, %v", len(got), err)
			}
			where, err := store.SetAside(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(where); err != nil || !bytes.Equal(got, c.content) {
				t.Errorf("set aside it has %d bytes, %v", len(got), err)
			}
			mustSwap(t, store, key, nil, new)
			mustSwap(t, store, key, new, nil)
			if left := names(t, dir); len(left) > 0 {
				t.Errorf("after the deletion there are %q", left)
			}
		})
	}
}

func TestUnfitRecord(t *testing.T) {
	dir := t.TempDir()
	store := open(t, dir)
	for _, record := range [][]byte{{}, make([]byte, 1<<20+1)} {
		if swapped, err := store.CompareAndSwap(t.Context(), key, nil, record); err == nil {
			t.Errorf("CompareAndSwap with %d bytes = %v, want an error", len(record), swapped)
		}
	}
	if left := names(t, dir); len(left) > 0 {
		t.Errorf("there are %q", left)
	}
	largest := make([]byte, 1<<20)
	mustSwap(t, store, key, nil, largest)
	mustHold(t, store, key, largest)
}

// The longest key must have room for everything that is put behind it.
func TestLongestKey(t *testing.T) {
	dir := t.TempDir()
	store := open(t, dir)
	key := brokerauth.Key{Provider: strings.Repeat("x", 64), Identity: strings.Repeat("y", 64)}
	key.Profile = strings.Repeat("é", 18) + "zz"
	if n := len(key.String()); n != 240 {
		t.Fatalf("the key spells %d characters, want the most that are valid", n)
	}
	for range 2 {
		mustSwap(t, store, key, nil, []byte("x"))
		mustHold(t, store, key, []byte("x"))
		if _, err := store.SetAside(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	if left := names(t, dir); len(left) != 2 {
		t.Errorf("set aside twice: %q", left)
	}
	mustSwap(t, store, key, nil, nil)
	if left := names(t, dir); len(left) > 0 {
		t.Errorf("after the deletion there are %q", left)
	}
}

func TestKeysSkipsOtherFiles(t *testing.T) {
	dir := t.TempDir()
	store := open(t, dir)
	mustSwap(t, store, key, nil, []byte("x"))
	for _, name := range []string{
		"notes.json", "Schwab.3fa8.default.json", "schwab.3fa8.other", ".new-x", "schwab.3fa8.other.bad.7", "a.b.c.json~",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if keys, err := store.Keys(t.Context()); err != nil || !slices.Equal(keys, []brokerauth.Key{key}) {
		t.Errorf("Keys() = %q, %v, want %q", keys, err, key)
	}
}

// Deleting one login must not touch another whose key is spelled alike.
func TestDeleteTakesOnlyItsOwn(t *testing.T) {
	dir := t.TempDir()
	store := open(t, dir)
	longer := key
	longer.Profile += "2"
	for _, key := range []brokerauth.Key{key, longer} {
		mustSwap(t, store, key, nil, []byte("bad"))
		if _, err := store.SetAside(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		mustSwap(t, store, key, nil, []byte("good"))
	}
	mustSwap(t, store, key, []byte("good"), nil)
	mustHold(t, store, longer, []byte("good"))
	if left := names(t, dir); len(left) != 2 {
		t.Errorf("of two records and their copies %q are left", left)
	}
}

func TestLockWaitEndsWithContext(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) { // a busy machine has no part in its clock
		store := open(t, dir)
		mustSwap(t, store, key, nil, []byte("a"))
		other := flock.New(filepath.Join(dir, ".lock"))
		if err := other.Lock(); err != nil {
			t.Fatal(err)
		}
		defer other.Unlock()
		const limit = 30 * time.Millisecond
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		began := time.Now()
		// The second call waits for the first one's turn, not for the lock.
		errs := make(chan error)
		for range 2 {
			go func() {
				_, err := store.CompareAndSwap(ctx, key, []byte("a"), []byte("b"))
				errs <- err
			}()
		}
		mustHold(t, store, key, []byte("a"))
		if d := time.Since(began); d != 0 {
			t.Errorf("a reader waited for %v", d)
		}
		for range 2 {
			if err := <-errs; !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("CompareAndSwap while another process holds the lock: %v, want context.DeadlineExceeded", err)
			}
		}
		if d := time.Since(began); d != limit {
			t.Errorf("it waited for %v, want %v", d, limit)
		}
		if _, err := store.SetAside(ctx, key); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("SetAside while another process holds the lock: %v, want context.DeadlineExceeded", err)
		}
		other.Unlock()
		mustSwap(t, store, key, []byte("a"), []byte("b"))
	})
}

// The lock file's content means nothing, and it stays where it is.
func TestLockFileStays(t *testing.T) {
	dir := t.TempDir()
	lock := filepath.Join(dir, ".lock")
	if err := os.WriteFile(lock, []byte("anything"), 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(lock)
	if err != nil {
		t.Fatal(err)
	}
	store := open(t, dir)
	mustSwap(t, store, key, nil, []byte("a"))
	if err := os.Truncate(lock, 0); err != nil {
		t.Fatal(err)
	}
	mustSwap(t, store, key, []byte("a"), nil)
	after, err := os.Stat(lock)
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the lock file was replaced: %v", err)
	}
}

func TestRemovedFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	store := open(t, dir)
	mustSwap(t, store, key, nil, []byte("a"))
	if err := os.RemoveAll(filepath.Dir(dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Load(t.Context(), key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load from a folder that was removed: %v, want fs.ErrNotExist", err)
	}
	mustSwap(t, store, key, nil, []byte("b"))
	mustHold(t, store, key, []byte("b"))
}

// Whoever waits for a lock in a folder that is removed meanwhile must not take it for the lock of the new folder.
func TestFolderReplacedDuringWait(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows does not let go of a folder that is open")
	}
	dir := filepath.Join(t.TempDir(), "logins")
	store := open(t, dir)
	mustSwap(t, store, key, nil, []byte("a"))
	other := flock.New(filepath.Join(dir, ".lock"))
	if err := other.Lock(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		swapped, err := store.CompareAndSwap(t.Context(), key, nil, []byte("b"))
		if err == nil && !swapped {
			err = errors.New("not swapped")
		}
		done <- err
	}()
	time.Sleep(20 * time.Millisecond)
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	if err := other.Unlock(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	mustHold(t, store, key, []byte("b"))
	mustHold(t, open(t, dir+".old"), key, []byte("a"))
}

func TestStaleTempsAreSwept(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, ".new-"+rand.Text())
	for _, sweep := range []func(store *disk.Store){
		func(store *disk.Store) { mustSwap(t, store, key, nil, []byte("a")) },
		func(store *disk.Store) { mustSwap(t, store, key, []byte("a"), nil) },
		func(store *disk.Store) { mustSwap(t, store, brokerauth.Key{Provider: "other"}, nil, nil) },
	} {
		if err := os.WriteFile(stale, []byte("a secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		sweep(open(t, dir))
		if _, err := os.Stat(stale); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("what a killed writer left is still there: %v", err)
		}
	}
}

// What the clock said when something was written makes no difference: it may have been set back since.
func TestClockSetBack(t *testing.T) {
	dir := t.TempDir()
	store := open(t, dir)
	mustSwap(t, store, key, nil, []byte("a"))
	var places []string
	for range 2 {
		where, err := store.SetAside(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		places = append(places, where)
		mustSwap(t, store, key, nil, []byte("b"))
	}
	stale, ahead := filepath.Join(dir, ".new-"+rand.Text()), strconv.FormatInt(time.Now().Add(24*time.Hour).Unix(), 10)
	if err := errors.Join(os.WriteFile(stale, []byte("a secret"), 0o600), os.Rename(places[1], strings.TrimSuffix(place(store, key), ".json")+".bad."+ahead)); err != nil {
		t.Fatal(err)
	}
	for _, name := range append(names(t, dir), ".lock") {
		if err := os.Chtimes(filepath.Join(dir, name), time.Now().Add(24*time.Hour), time.Now().Add(24*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	store = open(t, dir)
	mustHold(t, store, key, []byte("b"))
	mustSwap(t, store, key, []byte("b"), []byte("c"))
	if _, err := os.Stat(stale); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what a killed writer left in the future is still there: %v", err)
	}
	if _, err := store.SetAside(t.Context(), key); err != nil {
		t.Error(err)
	}
	mustSwap(t, store, key, nil, []byte("d"))
	mustHold(t, open(t, dir), key, []byte("d"))
	mustSwap(t, store, key, []byte("d"), nil)
	if left := names(t, dir); len(left) > 0 {
		t.Errorf("after the deletion there are %q", left)
	}
}

func TestManyProcessesCount(t *testing.T) {
	dir := t.TempDir()
	const processes = 16
	var cmds []*exec.Cmd
	for range processes {
		cmd := child(t, "count", dir)
		cmd.Stderr = new(bytes.Buffer)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	for _, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, cmd.Stderr)
		}
	}
	mustHold(t, open(t, dir), key, []byte(strconv.Itoa(processes*10)))
}

// Whenever a writer is killed, the record is the last that it reported, or the one that it was writing.
func TestKilledWriters(t *testing.T) {
	kills := 1000
	if testing.Short() {
		kills = 40
	}
	if n, err := strconv.Atoi(os.Getenv("BROKERAUTH_TEST_KILLS")); err == nil {
		kills = n
	}
	writer := buildWriter(t)
	// While one lane waits for the disk, another goes on. In memory there is nothing to wait for, and the kill may hit
	// each of the other steps of a swap.
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	if dir, err := os.MkdirTemp("/dev/shm", "brokerauth-test-"); err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
		dirs = append(dirs, dir)
	}
	results, errs := make([]killed, len(dirs)), make([]error, len(dirs))
	var lanes sync.WaitGroup
	for i, dir := range dirs {
		lanes.Go(func() { results[i], errs[i] = killWriters(t.Context(), writer, dir, (kills+i)/len(dirs)) })
	}
	lanes.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	var sum killed
	for i, r := range results {
		t.Logf("%s: %+v", dirs[i], r)
		sum.between += r.between
		sum.writing += r.writing
		sum.renamed += r.renamed
	}
	if inside := sum.writing + sum.renamed; inside < kills/10 {
		t.Errorf("of %d writers only %d were killed when they had begun to write and not yet reported: this test proves little", kills, inside)
	}
}

// killed counts writers by what they were at when they were killed.
type killed struct {
	between int // reporting, waiting for the lock, comparing
	writing int // the new file, which lies about
	renamed int // it is in place, and that was not reported yet
}

// killWriters kills n writers in dir, one after the other.
func killWriters(ctx context.Context, writer, dir string, n int) (sum killed, err error) {
	store, err := disk.New(dir)
	if err != nil {
		return sum, err
	}
	record := generation(0)
	if swapped, err := store.CompareAndSwap(ctx, key, nil, record); err != nil || !swapped {
		return sum, fmt.Errorf("the first record: %v, %v", swapped, err)
	}
	for range n {
		saved, err := killOneWriter(ctx, writer, dir)
		if err != nil {
			return sum, err
		}
		if record, err = store.Load(ctx, key); err != nil {
			return sum, fmt.Errorf("after generation %d was saved and the writer killed: %w", saved, err)
		}
		now, err := generationOf(record)
		if err != nil || now != saved && now != saved+1 {
			return sum, fmt.Errorf("after generation %d was saved and the writer killed, the record is of generation %d, %v", saved, now, err)
		}
		there, err := namesIn(dir)
		switch {
		case err != nil:
			return sum, err
		case len(there) > 2:
			return sum, fmt.Errorf("killed writers' files lie about, which the next writer should have swept: %q", there)
		case len(there) == 2:
			sum.writing++
		case now == saved+1:
			sum.renamed++
		default:
			sum.between++
		}
	}
	if swapped, err := store.CompareAndSwap(ctx, key, record, nil); err != nil || !swapped {
		return sum, fmt.Errorf("the deletion: %v, %v", swapped, err)
	}
	if left, err := namesIn(dir); err != nil || len(left) > 0 {
		return sum, fmt.Errorf("after the deletion there are %q, %v", left, err)
	}
	return sum, nil
}

// buildWriter builds the program in testdata/writer.
func buildWriter(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "writer.exe") // only Windows cares what it is called
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, "./testdata/writer")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // it starts sooner without a C library
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the program that is killed: %v: %s", err, out)
	}
	return path
}

// killOneWriter starts a writer, kills it a moment after its first line and returns the last number that it printed.
func killOneWriter(ctx context.Context, writer, dir string) (int, error) {
	cmd := exec.CommandContext(ctx, writer, dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	out := bufio.NewReader(stdout)
	last, err := out.ReadString('\n')
	if err != nil {
		cmd.Wait()
		return 0, fmt.Errorf("a writer did not start: %w: %s", err, &stderr)
	}
	time.Sleep(mathrand.N(5 * time.Millisecond))
	cmd.Process.Kill()
	rest, err := io.ReadAll(out)
	cmd.Wait()
	if err != nil || stderr.Len() > 0 {
		return 0, fmt.Errorf("a writer failed: %v: %s", err, &stderr)
	}
	lines := strings.SplitAfter(last+string(rest), "\n")
	return strconv.Atoi(strings.TrimSpace(lines[len(lines)-2])) // what follows the last newline was cut off
}

// The two benchmarks of one run show what a swap costs beyond the writing that no durable store can do without.
func BenchmarkCompareAndSwap(b *testing.B) {
	store := open(b, b.TempDir())
	records := [2][]byte{bytes.Repeat([]byte("a"), 2048), bytes.Repeat([]byte("b"), 2048)}
	mustSwap(b, store, key, nil, records[1])
	for i := 0; b.Loop(); i++ {
		if swapped, err := store.CompareAndSwap(b.Context(), key, records[(i+1)%2], records[i%2]); err != nil || !swapped {
			b.Fatal(swapped, err)
		}
	}
}

func BenchmarkFloor(b *testing.B) {
	path := b.TempDir()
	record := bytes.Repeat([]byte("a"), 2048)
	floor := func() error {
		f, err := os.CreateTemp(path, "")
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Write(record); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		if err := os.Rename(f.Name(), filepath.Join(path, "record")); err != nil {
			return err
		}
		dir, err := os.Open(path)
		if err != nil {
			return err
		}
		defer dir.Close()
		if runtime.GOOS == "windows" {
			return nil
		}
		return dir.Sync()
	}
	for b.Loop() {
		if err := floor(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLoad(b *testing.B) {
	store := open(b, b.TempDir())
	mustSwap(b, store, key, nil, bytes.Repeat([]byte("a"), 2048))
	for b.Loop() {
		if _, err := store.Load(b.Context(), key); err != nil {
			b.Fatal(err)
		}
	}
}

func Example() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)

	store, err := disk.New(filepath.Join(dir, "logins")) // "" for the user's own folder
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	key := brokerauth.Key{Provider: "schwab", Profile: "default"}
	swapped, err := store.CompareAndSwap(ctx, key, nil, []byte("a login"))
	fmt.Println(swapped, err)
	keys, err := store.Keys(ctx)
	fmt.Println(keys, err)
	// Output:
	// true <nil>
	// [schwab.=.default] <nil>
}
