package disk_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/brokerauth/brokerauth/storage/disk"
	"github.com/brokerauth/brokerauth/storage/sealed"
)

func mountTmpfs(t *testing.T, dir, options string) {
	t.Helper()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
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

// On a mount that keeps no modes, others can read whatever is written: that is for encrypted logins only.
func TestMountWithoutModes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a file system of this test's own")
	}
	for name, mount := range map[string]func(dir string) []string{
		"NTFS, where a change of modes does nothing": func(dir string) []string {
			image := filepath.Join(t.TempDir(), "image")
			if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 4<<20)); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.CommandContext(t.Context(), engine(t, "mkntfs"), "-F", "-Q", image).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			return []string{"ntfs-3g", "-o", "no_detach,umask=000", image, dir}
		},
		"one where a change of modes is refused": func(dir string) []string {
			return []string{"bindfs", "-f", "-p", "a=rwX", "--chmod-deny", t.TempDir(), dir}
		},
		"one where folders are private and files are not": func(dir string) []string {
			return []string{"bindfs", "-f", "-p", "u=rwX,og=r", "--chmod-ignore", t.TempDir(), dir}
		},
	} {
		t.Run(name, func(t *testing.T) {
			mounted := t.TempDir()
			serveMount(t, mounted, mount(mounted))
			dir := filepath.Join(mounted, "logins")
			store := open(t, dir)
			// A process serves each of these, as few test machines' kernels know a disk of this kind; so they may be of
			// another host, and that is what a person should hear of first.
			if swapped, err := store.CompareAndSwap(t.Context(), key, nil, []byte("a")); swapped || !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("CompareAndSwap without AllowNetwork = %v, %v, want errors.ErrUnsupported", swapped, err)
			}
			store.AllowNetwork = true
			for range 2 {
				swapped, err := store.CompareAndSwap(t.Context(), key, nil, []byte("a"))
				if swapped || !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "sealed+disk:") {
					t.Errorf("CompareAndSwap = %v, %v, want fs.ErrPermission and a store that encrypts", swapped, err)
				}
			}
			if left := names(t, dir); len(left) > 0 {
				t.Errorf("what was refused left %q", left)
			}

			files := open(t, dir)
			files.AllowNetwork, files.AllowOthers = true, true
			allowed, err := sealed.New(files, sealed.Key(bytes.Repeat([]byte{1}, 32)))
			if err != nil {
				t.Fatal(err)
			}
			for _, step := range [][2][]byte{{nil, []byte("a")}, {[]byte("a"), []byte("b")}} {
				if swapped, err := allowed.CompareAndSwap(t.Context(), key, step[0], step[1]); err != nil || !swapped {
					t.Fatalf("CompareAndSwap with AllowOthers = %v, %v, want true", swapped, err)
				}
			}
			if got, err := allowed.Load(t.Context(), key); err != nil || string(got) != "b" {
				t.Errorf("Load with AllowOthers = %q, %v, want what was stored", got, err)
			}
			if _, err := store.Load(t.Context(), key); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "sealed+disk:") {
				t.Errorf("Load without AllowOthers: %v, want fs.ErrPermission and a store that encrypts", err)
			}
			if swapped, err := allowed.CompareAndSwap(t.Context(), key, []byte("b"), nil); err != nil || !swapped {
				t.Fatalf("deletion with AllowOthers = %v, %v, want true", swapped, err)
			}
		})
	}
}

// engine finds a program that is not on every machine.
func engine(t *testing.T, program string) (path string) {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("there is no disk without modes to test with: install ntfs-3g and bindfs")
	}
	return path
}

// serveMount runs a command that serves the file system on dir until it is unmounted, which is at the end of the test.
func serveMount(t *testing.T, dir string, command []string) {
	t.Helper()
	before, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.Command(engine(t, command[0]), command[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for now := before; os.SameFile(before, now); {
		select {
		case err := <-ended:
			t.Skipf("root cannot mount FUSE here, as in most containers: %v: %s", err, &out)
		case <-time.After(5 * time.Millisecond):
		}
		if now, err = os.Stat(dir); err != nil {
			now = before
		}
	}
	t.Cleanup(func() {
		if !unmount(t, dir) {
			cmd.Process.Kill()
		}
		<-ended
	})
}

func TestNetworkFileSystem(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a file system of this test's own")
	}
	dir := t.TempDir()
	mountFUSE(t, dir, 0)
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

// A file system without locks is told of: to go on without one would be to lose logins.
func TestFileSystemWithoutLocks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a file system of this test's own")
	}
	for _, errno := range []syscall.Errno{syscall.ENOLCK, syscall.EOPNOTSUPP, syscall.ENOSYS} {
		t.Run(errno.Error(), func(t *testing.T) {
			dir := t.TempDir()
			mountFUSE(t, dir, errno)
			store := open(t, dir)
			store.AllowNetwork = true
			swapped, err := store.CompareAndSwap(t.Context(), key, nil, []byte("a"))
			if swapped || !errors.Is(err, errors.ErrUnsupported) || !errors.Is(err, errno) || !strings.Contains(err.Error(), filepath.Join(dir, ".lock")) {
				t.Errorf("CompareAndSwap where locks fail by %q = %v, %v, want errors.ErrUnsupported and the lock's name", errno, swapped, err)
			}
			if _, err := store.SetAside(t.Context(), key); !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("SetAside where locks fail by %q: %v, want errors.ErrUnsupported", errno, err)
			}
		})
	}
}

// mountFUSE mounts a folder of this user's by the FUSE protocol (include/uapi/linux/fuse.h), read-only. It is empty or,
// with unlockable, has a lock file, to lock which fails so.
func mountFUSE(t *testing.T, dir string, unlockable syscall.Errno) {
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
		serveFUSE(fd, unlockable)
	}()
	t.Cleanup(func() {
		unmount(t, dir) // without the last mount, the server's read ends
		<-done
		syscall.Close(fd)
	})
}

// unmount waits for whoever looks through folders of temporary files.
func unmount(t *testing.T, dir string) (ok bool) {
	t.Helper()
	err := syscall.Unmount(dir, 0)
	for end := time.Now().Add(30 * time.Second); errors.Is(err, syscall.EBUSY) && time.Now().Before(end); err = syscall.Unmount(dir, 0) {
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Errorf("unmount: %v", err)
		syscall.Unmount(dir, syscall.MNT_DETACH|syscall.MNT_FORCE)
	}
	return err == nil
}

func serveFUSE(fd int, unlockable syscall.Errno) {
	const (
		lookup, forget, getattr, openFile, statfs, release, flush = 1, 2, 3, 14, 17, 18, 25
		initialise, opendir, releasedir, setLock, waitLock        = 26, 27, 29, 32, 33
		batchForget                                               = 42

		folder, lock = 1, 2 // the inodes
		sendLocks    = 1<<1 | 1<<10
	)
	ne := binary.NativeEndian
	attributes := func(inode uint64) []byte {
		attr := make([]byte, 88)
		ne.PutUint64(attr, inode)
		if ne.PutUint32(attr[60:], syscall.S_IFREG|0o600); inode == folder {
			ne.PutUint32(attr[60:], syscall.S_IFDIR|0o700)
		}
		ne.PutUint32(attr[64:], 2)
		ne.PutUint32(attr[68:], uint32(os.Getuid()))
		return attr
	}
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
			if ne.PutUint32(body[20:], 4096); unlockable != 0 { // the largest write
				ne.PutUint32(body[12:], sendLocks)
			}
		case getattr:
			body = append(make([]byte, 16), attributes(ne.Uint64(request[16:]))...)
		case statfs:
			body = make([]byte, 80)
		case opendir, openFile:
			body = make([]byte, 16)
		case release, releasedir, flush:
		case setLock, waitLock:
			errno = unlockable
		case forget, batchForget:
			continue // these take no answer
		case lookup:
			if errno = syscall.ENOENT; unlockable != 0 && string(bytes.TrimRight(request[40:n], "\x00")) == ".lock" {
				errno = 0
				body = append(make([]byte, 40), attributes(lock)...)
				ne.PutUint64(body, lock)
			}
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
