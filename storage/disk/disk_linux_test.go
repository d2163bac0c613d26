package disk_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/brokerauth/brokerauth/storage/disk"
)

func mountTmpfs(t *testing.T, dir, options string) {
	t.Helper()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("root cannot mount here, as in most containers: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
}

func remountReadOnly(t *testing.T, dir string) {
	t.Helper()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
}

func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a small disk")
	}
	dir := t.TempDir()
	mountTmpfs(t, dir, "mode=0700,size=64k")
	store := open(t, dir)
	mustSwap(t, store, key, nil, []byte("old"))
	full := make([]byte, 100<<10)
	swapped, err := store.CompareAndSwap(t.Context(), key, []byte("old"), full)
	if swapped || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), dir) {
		t.Errorf("CompareAndSwap on a full disk = %v, %v, want ENOSPC and the file's name", swapped, err)
	}
	mustHold(t, store, key, []byte("old"))
	if left := names(t, dir); len(left) != 1 {
		t.Errorf("after a failed write there are %q", left)
	}
	mustSwap(t, store, key, []byte("old"), []byte("new"))
}

func TestNetworkFileSystem(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a file system of this test's own")
	}
	dir := t.TempDir()
	mountFUSE(t, dir)
	store := open(t, dir)
	if swapped, err := store.CompareAndSwap(t.Context(), key, nil, []byte("a")); swapped || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("CompareAndSwap on FUSE = %v, %v, want errors.ErrUnsupported", swapped, err)
	}
	if _, err := store.SetAside(t.Context(), key); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("SetAside on FUSE: %v, want errors.ErrUnsupported", err)
	}
	allowed, err := disk.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	allowed.AllowNetwork = true
	// This file system lets nobody write: that it was asked is enough.
	if swapped, err := allowed.CompareAndSwap(t.Context(), key, nil, []byte("a")); swapped || !errors.Is(err, syscall.EROFS) {
		t.Errorf("CompareAndSwap on FUSE with AllowNetwork = %v, %v, want EROFS", swapped, err)
	}
}

// mountFUSE mounts an empty folder of this user's by the FUSE protocol (include/uapi/linux/fuse.h), read-only.
func mountFUSE(t *testing.T, dir string) {
	t.Helper()
	fd, err := syscall.Open("/dev/fuse", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("there is no FUSE here: %v", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d", fd, os.Getuid(), os.Getgid())
	if err := syscall.Mount("test", dir, "fuse", syscall.MS_NOSUID|syscall.MS_NODEV, options); err != nil {
		syscall.Close(fd)
		t.Skipf("root cannot mount FUSE here, as in most containers: %v", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		serveFUSE(fd)
	}()
	t.Cleanup(func() {
		// Without the last mount, the server's read ends.
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
			syscall.Unmount(dir, syscall.MNT_DETACH|syscall.MNT_FORCE)
		}
		<-done
		syscall.Close(fd)
	})
}

func serveFUSE(fd int) {
	const lookup, forget, getattr, statfs, initialise, opendir, releasedir, batchForget = 1, 2, 3, 17, 26, 27, 29, 42
	ne := binary.NativeEndian
	request := make([]byte, 1<<17)
	for {
		n, err := syscall.Read(fd, request)
		if err == syscall.EINTR || err == syscall.ENOENT {
			continue
		}
		if err != nil || n < 40 {
			return
		}
		var body []byte
		var errno syscall.Errno
		switch ne.Uint32(request[4:]) {
		case initialise:
			body = make([]byte, 64)
			ne.PutUint32(body, 7)
			ne.PutUint32(body[4:], 31)
			ne.PutUint32(body[20:], 4096) // the largest write
		case getattr:
			body = make([]byte, 104)
			ne.PutUint64(body[16:], 1)
			ne.PutUint32(body[76:], syscall.S_IFDIR|0o700)
			ne.PutUint32(body[80:], 2)
			ne.PutUint32(body[84:], uint32(os.Getuid()))
		case statfs:
			body = make([]byte, 80)
		case opendir:
			body = make([]byte, 16)
		case releasedir:
		case forget, batchForget:
			continue // these take no answer
		case lookup:
			errno = syscall.ENOENT
		default:
			errno = syscall.EROFS
		}
		var reply bytes.Buffer
		binary.Write(&reply, ne, uint32(16+len(body)))
		binary.Write(&reply, ne, -int32(errno))
		reply.Write(request[8:16]) // which request this answers
		reply.Write(body)
		if _, err := syscall.Write(fd, reply.Bytes()); err != nil && err != syscall.ENOENT {
			return
		}
	}
}
