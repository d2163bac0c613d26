//go:build unix

package disk_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/storage/disk"
)

func TestModesWhateverTheUmask(t *testing.T) {
	for _, umask := range []int{0, 0o077, 0o277} {
		base := t.TempDir()
		store := open(t, filepath.Join(base, "logins"))
		before := syscall.Umask(umask)
		swapped, err := store.CompareAndSwap(t.Context(), key, nil, []byte("a"))
		if err == nil && swapped {
			_, err = store.SetAside(t.Context(), key)
		}
		if err == nil {
			swapped, err = store.CompareAndSwap(t.Context(), key, nil, []byte("a"))
		}
		syscall.Umask(before)
		if err != nil || !swapped {
			t.Fatalf("umask %#o: %v, %v", umask, swapped, err)
		}
		err = filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
			if err != nil || path == base {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			want := fs.FileMode(0o600)
			if d.IsDir() {
				want = 0o700
			}
			if got := info.Mode().Perm(); got != want && !strings.HasPrefix(d.Name(), ".") || got&0o077 != 0 {
				t.Errorf("umask %#o: %s has mode %#o, want %#o", umask, d.Name(), got, want)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// refused checks that neither reading nor writing goes on, and that the error says which command mends it.
func refused(t *testing.T, store *disk.Store, mend string) {
	t.Helper()
	_, err := store.Load(t.Context(), key)
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), mend) {
		t.Errorf("Load: %v, want fs.ErrPermission and %q", err, mend)
	}
	for _, new := range [][]byte{[]byte("new"), nil} {
		swapped, err := store.CompareAndSwap(t.Context(), key, []byte("a"), new)
		if swapped || !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), mend) {
			t.Errorf("CompareAndSwap: %v, %v, want fs.ErrPermission and %q", swapped, err, mend)
		}
	}
}

func TestOpenToOthers(t *testing.T) {
	dir := t.TempDir()
	store := open(t, dir)
	mustSwap(t, store, key, nil, []byte("a"))
	file := place(store, key)
	for _, c := range []struct {
		path string
		mode fs.FileMode
		ok   bool
	}{
		{file, 0o644, false}, {file, 0o640, false}, {file, 0o602, false}, {file, 0o400, true}, {file, 0o600, true},
		{dir, 0o777, false}, {dir, 0o770, false}, {dir, 0o702, false}, {dir, 0o755, true}, {dir, 0o700, true},
	} {
		if err := os.Chmod(c.path, c.mode); err != nil {
			t.Fatal(err)
		}
		if c.ok {
			mustHold(t, store, key, []byte("a"))
			continue
		}
		mend := `chmod 600 "` + file + `"`
		if c.path == dir {
			mend = `chmod 700 "` + dir + `"`
			if _, err := store.Keys(t.Context()); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("Keys in a folder of mode %#o: %v, want fs.ErrPermission", c.mode, err)
			}
			if _, err := store.SetAside(t.Context(), key); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("SetAside in a folder of mode %#o: %v, want fs.ErrPermission", c.mode, err)
			}
		}
		refused(t, store, mend)
		refused(t, store, "sealed+disk:")
		// What is encrypted may lie where modes do not stick.
		allowed := open(t, dir)
		allowed.AllowOthers = true
		mustHold(t, allowed, key, []byte("a"))
		mustSwap(t, allowed, key, []byte("a"), []byte("a"))
		if c.path == file { // it is another file now, with a mode of its own
			continue
		}
		refused(t, store, mend)
	}
}

func TestNoPlainFile(t *testing.T) {
	for name, put := range map[string]func(file string) error{
		"link to a file here":      func(file string) error { return os.Symlink("target", file) },
		"link to a file elsewhere": func(file string) error { return os.Symlink("/etc/passwd", file) },
		"link to nothing":          func(file string) error { return os.Symlink("nothing", file) },
		"folder":                   func(file string) error { return os.Mkdir(file, 0o700) },
		"pipe":                     func(file string) error { return syscall.Mkfifo(file, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			store := open(t, dir)
			target := filepath.Join(dir, "target")
			if err := os.WriteFile(target, []byte("a"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := put(place(store, key)); err != nil {
				t.Fatal(err)
			}
			refused(t, store, "move it away")
			if got, err := os.ReadFile(target); err != nil || string(got) != "a" {
				t.Errorf("the link's target is %q now, %v", got, err)
			}
		})
	}
}

func TestForeignOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	dir := t.TempDir()
	store := open(t, dir)
	mustSwap(t, store, key, nil, []byte("a"))
	for _, path := range []string{dir, place(store, key)} {
		if err := os.Chown(path, 12345, -1); err != nil {
			t.Fatal(err)
		}
		refused(t, store, "uid 12345")
		if err := os.Chown(path, 0, -1); err != nil {
			t.Fatal(err)
		}
		mustHold(t, store, key, []byte("a"))
	}
}

// After one run as root, the user cannot even open the lock.
func TestLockOfRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	const user = 12345
	// That user gets neither to the test binary nor to t.TempDir.
	dir, err := os.MkdirTemp("", "brokerauth-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	binary, logins := filepath.Join(dir, "test"), filepath.Join(dir, "logins")
	cmd := child(t, "swap", logins)
	self, err := os.ReadFile(cmd.Path)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Chmod(dir, 0o755),
		os.WriteFile(binary, self, 0o755),
		os.Mkdir(logins, 0o700),
		os.Chown(logins, user, user),
		os.WriteFile(filepath.Join(logins, ".lock"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd.Path = binary
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "belongs to uid 0 and not to uid 12345") {
		t.Errorf("CompareAndSwap with a lock file of root's: %v: %s, want whose it is", err, out)
	}
}

func init() { children["grow"] = grow }

// grow writes more than a file may have. The limit is the process's, so this has one of its own.
func grow(store *disk.Store) error {
	signal.Ignore(syscall.SIGXFSZ)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	limit.Cur = 4096
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	swapped, err := store.CompareAndSwap(context.Background(), key, []byte("old"), make([]byte, 8192))
	if swapped || !errors.Is(err, syscall.EFBIG) {
		return fmt.Errorf("CompareAndSwap of more than a file may have = %v, %v, want EFBIG", swapped, err)
	}
	return nil
}

func TestFileTooLarge(t *testing.T) {
	dir := t.TempDir()
	store := open(t, dir)
	mustSwap(t, store, key, nil, []byte("old"))
	if out, err := child(t, "grow", dir).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	mustHold(t, store, key, []byte("old"))
	if left := names(t, dir); len(left) != 1 {
		t.Errorf("after a failed write there are %q", left)
	}
}

func TestStrangeLock(t *testing.T) {
	for name, put := range map[string]func(file, elsewhere string) error{
		"link":   func(file, elsewhere string) error { return os.Symlink(elsewhere, file) },
		"pipe":   func(file, _ string) error { return syscall.Mkfifo(file, 0o600) },
		"folder": func(file, _ string) error { return os.Mkdir(file, 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, elsewhere := t.TempDir(), filepath.Join(t.TempDir(), "elsewhere")
			if err := os.Chmod(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := put(filepath.Join(dir, ".lock"), elsewhere); err != nil {
				t.Fatal(err)
			}
			swapped, err := open(t, dir).CompareAndSwap(t.Context(), key, nil, []byte("new"))
			if swapped || !errors.Is(err, fs.ErrPermission) {
				t.Errorf("CompareAndSwap: %v, %v, want fs.ErrPermission", swapped, err)
			}
			if _, err := os.Lstat(elsewhere); err == nil {
				t.Error("the lock was made where a link led")
			}
		})
	}
}

// A folder that cannot be written serves readers.
func TestReadOnlyFolder(t *testing.T) {
	dir := t.TempDir()
	store := open(t, dir)
	if os.Geteuid() == 0 {
		mountTmpfs(t, dir, "mode=0700")
	}
	mustSwap(t, store, key, nil, []byte("old"))
	want := error(fs.ErrPermission)
	if os.Geteuid() == 0 {
		remountReadOnly(t, dir)
		want = syscall.EROFS
	} else {
		if err := os.Chmod(dir, 0o500); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Chmod(dir, 0o700) })
	}
	mustHold(t, store, key, []byte("old"))
	if keys, err := store.Keys(t.Context()); err != nil || len(keys) != 1 {
		t.Errorf("Keys() = %q, %v, want one", keys, err)
	}
	for _, new := range [][]byte{[]byte("new"), nil} {
		if swapped, err := store.CompareAndSwap(t.Context(), key, []byte("old"), new); swapped || !errors.Is(err, want) {
			t.Errorf("CompareAndSwap: %v, %v, want %v", swapped, err, want)
		}
	}
	swapped, err := store.CompareAndSwap(t.Context(), brokerauth.Key{Provider: "other"}, nil, []byte("new"))
	if swapped || !errors.Is(err, want) {
		t.Errorf("CompareAndSwap of a new record: %v, %v, want %v", swapped, err, want)
	}
}
