package lock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestOneHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	shared := New(path)
	var holders sync.WaitGroup
	inside := make(chan struct{}, 1)
	for i := range 8 {
		l := shared
		if i%2 == 0 {
			l = New(path) // as another process would have it
		}
		holders.Go(func() {
			for range 20 {
				if err := l.Lock(t.Context()); err != nil {
					t.Error(err)
					return
				}
				select {
				case inside <- struct{}{}:
					time.Sleep(50 * time.Microsecond)
					<-inside
				default:
					t.Error("two hold the lock")
				}
				l.Unlock()
			}
		})
	}
	holders.Wait()
}

func TestLockEndsWithContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	holder := New(path)
	if err := holder.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, waiter := range map[string]*File{"goroutine": holder, "process": New(path)} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if err := waiter.Lock(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Lock while another %s holds it: %v, want context.DeadlineExceeded", name, err)
		}
	}
	holder.Unlock()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := holder.Lock(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("Lock with an ended context: %v, want context.Canceled", err)
	}
	if err := holder.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	here, err := os.Stat(path)
	if locked, err2 := holder.Stat(); err != nil || err2 != nil || !os.SameFile(here, locked) {
		t.Errorf("Stat describes another file than the one at the path: %v, %v", err, err2)
	}
	holder.Unlock()
}

func TestErrors(t *testing.T) {
	l := New(filepath.Join(t.TempDir(), "missing", "lock"))
	for range 2 { // the second finds whether the first let go of its turn
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := l.Lock(ctx); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Lock without a folder: %v, want fs.ErrNotExist", err)
		}
	}
	for _, errno := range []syscall.Errno{syscall.ENOLCK, syscall.ENOSYS, syscall.EOPNOTSUPP} {
		if err := typed(errno); !errors.Is(err, errors.ErrUnsupported) || !errors.Is(err, errno) {
			t.Errorf("a file system that says %q: %v, want errors.ErrUnsupported", errno, err)
		}
	}
	if err := typed(syscall.EIO); errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a broken disk: %v, and no errors.ErrUnsupported", err)
	}
}

func Example() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)

	l := New(filepath.Join(dir, "lock"))
	if err := l.Lock(context.Background()); err != nil {
		fmt.Println(err)
		return
	}
	defer l.Unlock()
	fmt.Println("alone")
	// Output: alone
}
