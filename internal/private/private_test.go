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
