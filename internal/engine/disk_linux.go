package engine

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// SmallDisk mounts a file system of so many bytes that s may write to. It reports false where this user may not.
func SmallDisk(t testing.TB, s *Server, bytes int) (dir string, ok bool) {
	t.Helper()
	dir = filepath.Join(s.Dir, "disk")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+strconv.Itoa(bytes)); err != nil {
		return "", false
	}
	t.Cleanup(func() {
		s.Stop()
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	if err := own(dir); err != nil {
		t.Fatal(err)
	}
	return dir, true
}
