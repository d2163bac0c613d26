package private_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/brokerauth/brokerauth/internal/private"
)

// Package storage/disk tests the rest: whose folder it is, and where.
func TestCheck(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no modes")
	}
	dir := filepath.Join(t.TempDir(), "a", "b")
	for range 2 {
		if err := private.MakeDir(dir); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path    string
		mode    fs.FileMode
		private bool
	}{
		{file, 0o600, true}, {file, 0o700, true}, {file, 0o604, false}, {file, 0o620, false},
		{dir, 0o700, true}, {dir, 0o755, true}, {dir, 0o720, false}, {dir, 0o702, false},
	} {
		if err := os.Chmod(c.path, c.mode); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(c.path)
		if err != nil {
			t.Fatal(err)
		}
		if err := private.Check(c.path, info); errors.Is(err, fs.ErrPermission) == c.private {
			t.Errorf("Check of a path of mode %v: %v, want private: %v", info.Mode(), err, c.private)
		}
	}
}

// A command that is offered is run: it must not close the system's /tmp, or take from others what is theirs.
func TestCheckOffersNoHarm(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no modes")
	}
	offered := func(path string) string {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		err = private.Check(path, info)
		if !errors.Is(err, fs.ErrPermission) {
			t.Fatalf("Check(%s) = %v, want fs.ErrPermission", path, err)
		}
		return err.Error()
	}
	dir := t.TempDir()
	for mode, harmful := range map[fs.FileMode]bool{
		0o777: false, 0o775: false, 0o777 | fs.ModeSticky: true, 0o775 | fs.ModeSetgid: true,
	} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(dir); err != nil || info.Mode()&fs.ModeSetgid != mode&fs.ModeSetgid {
			t.Logf("not tried: a folder of mode %v", mode) // macOS keeps this bit from those who are not in the folder's group
			continue
		}
		text := offered(dir)
		if strings.Contains(text, "run: chmod 700") == harmful || strings.Contains(text, "use another folder") != harmful {
			t.Errorf("of a folder of mode %v: %s", mode, text)
		}
	}
	// /tmp has the sticky bit here, and may have none in a container's image.
	if info, err := os.Stat("/tmp"); err == nil && info.Mode().Perm() == 0o777 {
		if text := offered("/tmp"); strings.Contains(text, "run: ") {
			t.Error(text)
		}
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		plain, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := private.Check("/tmp", plain); err == nil || strings.Contains(err.Error(), "run: ") {
			t.Errorf("Check of a /tmp without the sticky bit: %v", err)
		}
	}
	if os.Geteuid() != 0 {
		return // only root can give files away
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, dir} {
		if err := os.Chown(path, 12345, -1); err != nil {
			t.Fatal(err)
		}
		if text := offered(path); strings.Contains(text, "run: ") || strings.Contains(text, "chown") || !strings.Contains(text, "uid 12345") {
			t.Error(text)
		}
	}
}

// Cron, services and desktops set these differently, or not at all.
func TestAccountHomeAsksNoVariable(t *testing.T) {
	elsewhere := t.TempDir()
	for _, name := range []string{"HOME", "USERPROFILE", "LocalAppData", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"} {
		t.Setenv(name, elsewhere)
	}
	dir, err := private.AccountHome()
	if err != nil {
		t.Fatal(err)
	}
	if !filepath.IsAbs(dir) || filepath.Base(dir) != "brokerauth" || strings.HasPrefix(dir, elsewhere) {
		t.Errorf("AccountHome() = %q, want a folder that the environment does not name", dir)
	}
}

func Example() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)

	dir = filepath.Join(dir, "mine")
	if err := private.MakeDir(dir); err != nil {
		fmt.Println(err)
		return
	}
	info, err := os.Stat(dir)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(private.Check(dir, info))
	// Output: <nil>
}
