// Package lock lets one holder at a time, among all goroutines and processes of a host, change what lies beside a file.
package lock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/gofrs/flock"
)

// File is an exclusive lock on a file that serves nothing else. Whoever dies while holding it frees it.
//
// The first Lock makes the file. Its content means nothing, and it must never be deleted: a waiter that holds the
// deleted file and a newcomer that makes it anew would both have the lock.
type File struct {
	path string
	turn chan struct{} // the OS lock tells processes apart, this one goroutines; only the one with the turn asks the OS
	held *flock.Flock  // belongs to whoever has the turn
}

// New returns the lock on the file at path. Its folder must exist when Lock is called.
func New(path string) *File {
	return &File{path: path, turn: make(chan struct{}, 1)}
}

// Lock waits until nobody else holds the lock. An error matches ctx's if that ended first, errors.ErrUnsupported where
// the file system has no locks, or says why the file cannot be opened.
func (l *File) Lock(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("another goroutine holds the lock: %w", ctx.Err())
	}
	held := flock.New(l.path, flock.SetPermissions(0o600))
	// A lock call that waits cannot be cancelled, so this one asks again and again: soon at first, as the holder
	// only writes a file, and at random, lest many processes keep meeting.
	for step := 500 * time.Microsecond; ; step = min(2*step, 4*time.Millisecond) {
		ok, err := held.TryLock()
		if ok {
			l.held = held
			return nil
		}
		if err != nil {
			<-l.turn
			return typed(err)
		}
		select {
		case <-time.After(step/2 + rand.N(step/2)):
		case <-ctx.Done():
			<-l.turn
			return fmt.Errorf("another process holds the lock: %w", ctx.Err())
		}
	}
}

// Unlock lets the next one in. The holder calls it once, from any goroutine.
func (l *File) Unlock() {
	// There is nothing to do about an error: the file is closed then by the garbage collector, which unlocks it too.
	_ = l.held.Unlock()
	l.held = nil
	<-l.turn
}

// Stat describes the locked file, which is no longer the one at its path if the folder was replaced meanwhile.
// It is for the holder.
func (l *File) Stat() (fs.FileInfo, error) { return l.held.Stat() }

// typed makes err match errors.ErrUnsupported if it means that.
func typed(err error) error {
	// The standard library knows all of them but NFS's without a lock service.
	if errors.Is(err, syscall.ENOLCK) {
		return fmt.Errorf("%w: %w", err, errors.ErrUnsupported)
	}
	return err
}
