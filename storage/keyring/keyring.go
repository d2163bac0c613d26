// Package keyring keeps logins in the operating system's keyring: the Secret Service of Linux desktops (GNOME Keyring,
// KWallet, KeePassXC), the macOS Keychain, the Windows Credential Manager.
//
// The system encrypts what is in it, and opens it when its user logs in to the desktop. That is also its limit: in cron,
// in services and over SSH it is often locked or not running at all. A Store then says which, and never keeps a login
// in a plain file instead: package storage/disk is for that, by choice.
//
// # Asking the user
//
// On Linux no call shows a dialog that asks for the keyring's password unless [Store.Prompt] is set, and none
// starts a keyring, or a bus to reach one. macOS decides by itself to ask, for instance when its keychain is locked.
// A keyring that does not answer within three seconds is an error, which matches [os.ErrDeadlineExceeded]; with Prompt
// it has a minute more, since somebody may be typing. A write that is given up may still come to pass, so until
// the keyring has answered, or this process has ended, no other process that uses this package can change a record.
// Half a second after its last call a Store lets go of its connection to the keyring, and no goroutine is left.
//
// # Items
//
// A record is one item of the keyring; its name is the key's spelling. Where a record is larger than an item may be
// (2,560 bytes, on Linux 64 KiB), it is in several, and a reader still sees the old record or the new
// one. One more item, ".index", lists the names of all records, as keyrings cannot.
//
// Programs that use one service name share its logins, and take turns by a lock in the user's home folder as the
// account names it: brokerauth in ~/.local/state, in ~/Library/Application Support on macOS, in ~\AppData\Local on
// Windows. No variable of the environment moves it. Do not delete it.
package keyring

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/internal/lock"
	"github.com/brokerauth/brokerauth/internal/private"
)

const (
	indexName = ".index" // no key is spelled so
	aside     = ".bad."  // between the key and the time of a record that was set aside
	maxRecord = 1 << 20  // bytes; a login has one or two thousand

	// quick is long for a keyring that nobody has to unlock: an item takes it a few milliseconds.
	quick = 3 * time.Second
	// person is for reading a dialog and typing a password.
	person = time.Minute
	// idle is how long a connection is kept for the next call: a refresh makes several.
	idle = time.Second / 2
)

var _ brokerauth.Store = (*Store)(nil)

// Store keeps records in the keyring under one service name. Any number of Stores, in any number of processes of one
// user, may share it.
//
// What keeps it from the keyring is told apart: [ErrLocked], which also matches [brokerauth.ErrUnavailable], or
// [fs.ErrPermission] if the user dismissed the dialog; [errors.ErrUnsupported] and ErrUnavailable where none is running;
// [os.ErrDeadlineExceeded] and ErrUnavailable if it does not answer; [fs.ErrPermission] if it denies access.
type Store struct {
	// Prompt lets calls ask the user to unlock the keyring. Set it, before the first use, only where a person waits:
	// a dialog that nobody sees blocks for a minute.
	Prompt bool

	service string
	dir     string     // of the lock
	lock    *lock.File // held while the keyring is changed
	// turn is held by the one who talks to the keyring. So a keyring that hangs holds up one goroutine, however often
	// it is called.
	turn  chan struct{}
	hung  atomic.Bool // whoever has the turn was given up, and still waits for the keyring
	open  func(ctx context.Context, service string, prompt bool) (ring, error)
	item  int           // the most bytes of an item
	quick time.Duration // how long one call may take that waits for no person
	// kept is the connection of the last visit, for one that comes soon, and timer ends that. Both go with the turn.
	kept  ring
	timer *time.Timer
}

// ring is a connection to the system's keyring. Its methods may take for ever; those that ask a person give up when the
// context ends that it was opened with, or readied with last. Only one is called at a time.
type ring interface {
	ready(ctx context.Context) error // that it still leads to the keyring it was opened on; else another must be opened
	get(name string) (string, error) // errMissing
	set(name, value string) error
	delete(name string) error // of a missing one: nil
	close()                   // never blocks
}

// New returns the store of the given service name, which is 1 to 64 of the characters a to z, 0 to 9, "-", "_" and ".".
// An empty one is where the brokerauth command keeps its logins. It is an error if the user has no home folder, where
// the lock belongs. New touches nothing, and does not look for a keyring.
func New(service string) (*Store, error) {
	if service == "" {
		service = "brokerauth"
	}
	if len(service) > 64 || strings.Trim(service, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
		return nil, fmt.Errorf("keyring: the service name %q does not fit: take up to 64 of a-z, 0-9, \"-\", \"_\" and \".\"", service)
	}
	dir, err := private.AccountHome()
	if err != nil {
		return nil, fmt.Errorf("keyring: %w", err)
	}
	return newStore(service, dir), nil
}

func newStore(service, dir string) *Store {
	return &Store{
		service: service, dir: dir, lock: lock.New(lockPath(service, dir)), turn: make(chan struct{}, 1), open: openRing,
		item: maxItem, quick: quick,
	}
}

func lockPath(service, dir string) string { return filepath.Join(dir, "keyring-"+service+".lock") }

// Load returns the record at key. It waits for no writer of another process.
//
// A missing record is [fs.ErrNotExist]; one that was changed by other programs, so that it cannot be read, is
// [brokerauth.ErrCorrupt]; one of a newer version of this package is [errors.ErrUnsupported].
func (s *Store) Load(ctx context.Context, key brokerauth.Key) (record []byte, err error) {
	err = s.visit(ctx, &key, false, func(v *visit) error {
		_, _, record, err = v.load(key.String())
		if err == nil && record == nil {
			err = fs.ErrNotExist
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return record, nil
}

// CompareAndSwap replaces the record at key by new if it still is old, as [brokerauth.Store] says. A new nil deletes
// what SetAside moved away, too. What it wrote it reads back. It waits for other writers for as long as ctx lasts.
//
// A new that is empty and not nil, or larger than 1 MiB, is an error. An existing record that Load would not return is
// never overwritten, whatever old is: it is the same error as Load's.
func (s *Store) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (swapped bool, err error) {
	switch {
	case new != nil && len(new) == 0:
		return false, errors.New("keyring: a record cannot be empty: give nil to delete it")
	case len(new) > maxRecord:
		return false, fmt.Errorf("keyring: a record of %d bytes is too large: at most %d fit", len(new), maxRecord)
	}
	err = s.visit(ctx, &key, true, func(v *visit) error {
		raw, h, record, err := v.load(key.String())
		if err != nil {
			return err
		}
		if (record == nil) != (old == nil) || !bytes.Equal(record, old) {
			return nil
		}
		swapped = true
		if new == nil {
			return v.forget(key.String(), h)
		}
		if old == nil {
			// First the index: a killed process must not leave a record that nobody knows of.
			if err := v.index(func(names []string) []string { return append(names, key.String()) }); err != nil {
				return err
			}
		}
		return v.save(key.String(), raw, h, new)
	})
	return swapped && err == nil, err
}

// Keys returns the keys of all records, sorted by their spelling.
func (s *Store) Keys(ctx context.Context) (keys []brokerauth.Key, err error) {
	err = s.visit(ctx, nil, false, func(v *visit) error {
		names, err := v.names()
		if err != nil {
			return err
		}
		for _, name := range names {
			key, err := brokerauth.ParseKey(name)
			if err != nil {
				continue // it was set aside
			}
			// The index may know more than there is, if a process was killed between the two.
			_, h, err := v.head(name)
			if err != nil && !errors.Is(err, brokerauth.ErrCorrupt) && !errors.Is(err, errors.ErrUnsupported) {
				return err
			}
			if err != nil || !h.empty() {
				keys = append(keys, key)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return keys, nil
}

// Where names the keyring's item of the record at key.
func (s *Store) Where(key brokerauth.Key) string {
	return fmt.Sprintf("OS keyring, service %s, name %s", s.service, key)
}

// SetAside moves the record at key to another item, so that another can be written, and returns its new place.
// It stays as it is until the key is deleted.
func (s *Store) SetAside(ctx context.Context, key brokerauth.Key) (where string, err error) {
	err = s.visit(ctx, &key, true, func(v *visit) error {
		name := key.String()
		raw, h, err := v.head(name)
		if err == nil && h.empty() {
			return fs.ErrNotExist
		}
		if err != nil && !errors.Is(err, brokerauth.ErrCorrupt) {
			return err
		}
		names, err := v.names()
		if err != nil && !errors.Is(err, brokerauth.ErrCorrupt) {
			return err
		}
		at := time.Now().Unix()
		for slices.Contains(names, name+aside+strconv.FormatInt(at, 10)) {
			at++
		}
		to := name + aside + strconv.FormatInt(at, 10)
		if err := v.index(func(names []string) []string { return append(names, to) }); err != nil {
			return err
		}
		if err := v.set(to, raw); err != nil {
			return err
		}
		where = fmt.Sprintf("OS keyring, service %s, name %s", s.service, to)
		return v.delete(name)
	})
	if err != nil {
		return "", err
	}
	return where, nil
}

// visit is one method's time with the keyring.
type visit struct {
	*Store
	ctx  context.Context
	ring ring
	late <-chan error // of the call that was given up and has yet to return; nil: there is none
}

// visit calls f with the turn, and with the lock if f changes the keyring. Errors are told with their place: the record
// at key, or the index if that is nil.
func (s *Store) visit(ctx context.Context, key *brokerauth.Key, change bool, f func(*visit) error) (err error) {
	name := indexName
	if key != nil {
		if err := key.Validate(); err != nil {
			return fmt.Errorf("keyring: %w", err)
		}
		name = key.String()
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("keyring: service %s, name %s: %w", s.service, name, err)
		}
	}()
	if err := ctx.Err(); err != nil {
		return err
	}
	unlock := func() {}
	if change {
		if s.hung.Load() {
			// The lock may not be free for as long as the keyring hangs.
			if err := s.enter(ctx); err != nil {
				return err
			}
			<-s.turn
		}
		if err := s.acquire(ctx); err != nil {
			return err
		}
		unlock = s.lock.Unlock
	}
	if err := s.enter(ctx); err != nil {
		unlock()
		return err
	}
	v := &visit{Store: s, ctx: ctx}
	defer func() {
		if v.late == nil {
			if s.kept = v.ring; s.kept != nil {
				s.timer = time.AfterFunc(idle, s.letGo)
			}
			<-s.turn
			unlock()
			return
		}
		// What was asked for may still happen, and nothing else may before.
		s.hung.Store(true)
		go func() {
			<-v.late
			s.hung.Store(false)
			if v.ring != nil {
				v.ring.close()
			}
			<-s.turn
			unlock()
		}()
	}()
	if err := v.begin(); err != nil {
		return err
	}
	return f(v)
}

// begin takes the connection of the visit before, or makes one. A write is never repeated on it: it is seen to before
// the visit's first call.
func (v *visit) begin() error {
	if v.kept != nil {
		v.timer.Stop()
		v.ring, v.kept = v.kept, nil
		if err := v.call(func() error { return v.ring.ready(v.ctx) }); err == nil || v.late != nil {
			return err
		}
		v.ring.close()
		v.ring = nil
	}
	return v.call(func() (err error) { v.ring, err = v.open(v.ctx, v.service, v.Prompt); return err })
}

// letGo closes the connection that is kept, unless somebody has the turn, who will keep it anew.
func (s *Store) letGo() {
	select {
	case s.turn <- struct{}{}:
		if s.kept != nil {
			s.kept.close()
			s.kept = nil
		}
		<-s.turn
	default:
	}
}

// acquire takes the lock, and makes its folder if that is missing.
func (s *Store) acquire(ctx context.Context) error {
	path := lockPath(s.service, s.dir)
	for range 10 {
		if err := private.MakeDir(s.dir); err != nil {
			return err
		}
		info, err := os.Stat(s.dir)
		if err == nil {
			err = private.Check(s.dir, info)
		}
		if err != nil {
			return err
		}
		// A link would have the lock made elsewhere, and a pipe would never open.
		if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
			return fmt.Errorf("%s: this is no plain file (%s), as the lock is: move it away: %w", path, info.Mode().Type(), fs.ErrPermission)
		}
		if err := s.lock.Lock(ctx); err != nil {
			return err
		}
		// Somebody may have deleted the folder since, and the lock be on a file that nobody else will find.
		locked, err1 := s.lock.Stat()
		here, err2 := os.Lstat(path)
		if err1 == nil && err2 == nil && os.SameFile(locked, here) {
			return nil
		}
		s.lock.Unlock()
	}
	return fmt.Errorf("%s: the folder changes all the time: %w", s.dir, brokerauth.ErrUnavailable)
}

// patience is how long one call may take.
func (s *Store) patience() time.Duration {
	if s.Prompt {
		return person + s.quick
	}
	return s.quick
}

// enter waits for the turn, for as long as there is progress: whoever has it is given up in time.
func (s *Store) enter(ctx context.Context) error {
	for {
		select {
		case s.turn <- struct{}{}:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(s.patience()):
			if s.hung.Load() {
				return errSilent
			}
		}
	}
}

// call calls f, and gives it up when it takes too long or the visit's context ends. Then f still runs, and the visit
// must end.
func (v *visit) call(f func() error) error {
	if err := v.ctx.Err(); err != nil {
		return err
	}
	back := make(chan error, 1)
	go func() { back <- f() }()
	timer := time.NewTimer(v.patience())
	defer timer.Stop()
	select {
	case err := <-back:
		return explain(err)
	case <-v.ctx.Done():
		v.late = back
		return v.ctx.Err()
	case <-timer.C:
		v.late = back
		return errSilent
	}
}

// get returns an item, and whether there is one.
func (v *visit) get(name string) (value string, ok bool, err error) {
	var got string // not a result: a call that was given up may write it at any time
	err = v.call(func() (err error) { got, err = v.ring.get(name); return err })
	if errors.Is(err, errMissing) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	return got, true, nil
}

// set writes an item and reads it back.
func (v *visit) set(name, value string) error {
	if err := v.call(func() error { return v.ring.set(name, value) }); err != nil {
		return err
	}
	got, ok, err := v.get(name)
	if err == nil && (!ok || got != value) {
		err = errAltered
	}
	return err
}

// delete deletes an item and sees that it is gone.
func (v *visit) delete(name string) error {
	if err := v.call(func() error { return v.ring.delete(name) }); err != nil {
		return err
	}
	_, ok, err := v.get(name)
	if err == nil && ok {
		err = errAltered
	}
	return err
}
