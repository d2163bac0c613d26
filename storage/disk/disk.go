// Package disk keeps logins in files that only their user can read, for all programs of one user on one host.
//
// Each login is one file in the store's folder. It is replaced as a whole, and a change that was reported is on the
// disk: whenever the power fails or a process is killed, the next reader finds the old record or the new one.
// The secrets in it are not encrypted: whoever becomes this user can read them, and so can whoever holds the disk or
// its backup. Package storage/keyring is for desktops, and storage/sealed encrypts what any store keeps.
//
// # Permissions
//
// Files have mode 0600 in a folder of mode 0700, whatever the umask. A record that other users can read or write, a
// folder that they can write, and either if it belongs to another user or is a symbolic link in a record's place, are
// refused with an error that matches [fs.ErrPermission] and says what to do. Windows has no such modes:
// there the folder must be one that its access list keeps private, as everything in the user's profile is.
//
// # One host
//
// Locks on a network file system may succeed and exclude nobody, and two hosts would then spend each other's tokens.
// On Linux a Store refuses to write to one unless AllowNetwork is set; on other systems it cannot tell, so keep to
// local disks.
package disk

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/internal/lock"
	"github.com/brokerauth/brokerauth/internal/private"
)

const (
	lockName  = ".lock"
	newPrefix = ".new-" // of a file that is being written; it belongs to whoever holds the lock
	ending    = ".json" // of a record; KEY.json
	aside     = ".bad." // between the key and the time of a record that was set aside; the longest key leaves no more room
	maxRecord = 1 << 20 // bytes; a login has one or two thousand
	sweepGap  = time.Minute
)

var _ brokerauth.Store = (*Store)(nil)

// Store keeps records in files of one folder. Any number of Stores, in any number of processes, may share the folder.
type Store struct {
	// AllowNetwork lets the store write to a network file system, where its lock may not work: only one host may use
	// the folder then. Set it before the first use.
	AllowNetwork bool
	// AllowOthers lets the store use a folder and files that other users can reach, as all are on mounts that keep no
	// modes. Set it, before the first use, only where package storage/sealed encrypts what is stored.
	AllowOthers bool

	dir  string
	lock *lock.File // held for one write. One for the folder: a write takes a millisecond, and no login needs two files
	// swept is when the folder was last cleared of what killed writers left. Whoever holds the lock has it.
	swept time.Time
}

// New returns the store in the folder dir, which the first write makes if it is missing; New and Load touch nothing.
//
// An empty dir is the user's own folder, which is the brokerauth command's store disk, too: brokerauth/logins in $XDG_STATE_HOME
// or ~/.local/state, on macOS in ~/Library/Application Support, on Windows in %LocalAppData%. It is an error if these
// are not set.
func New(dir string) (*Store, error) {
	if dir == "" {
		home, err := private.Home()
		if err != nil {
			return nil, fmt.Errorf("disk: %w", err)
		}
		dir = filepath.Join(home, "logins")
	}
	// A program that changes its working directory must not lose its logins.
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	return &Store{dir: dir, lock: lock.New(filepath.Join(dir, lockName))}, nil
}

// Load returns the record at key. It waits for nobody and writes nothing, so it works on a read-only disk.
//
// A missing record is [fs.ErrNotExist]; one that is empty or larger than 1 MiB, as no Store writes it, is
// [brokerauth.ErrCorrupt]; one that is open to others is [fs.ErrPermission].
func (s *Store) Load(ctx context.Context, key brokerauth.Key) ([]byte, error) {
	if err := check(ctx, key); err != nil {
		return nil, err
	}
	root, err := s.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return s.read(root, key)
}

// CompareAndSwap replaces the record at key by new if it still is old, as [brokerauth.Store] says. A new nil deletes
// what SetAside moved away, too. It waits for other writers for as long as ctx lasts.
//
// A new that is empty and not nil, or larger than 1 MiB, is an error. An existing record that Load would not return is
// never overwritten, whatever old is: it is the same error as Load's. On a file system without locks the error matches
// [errors.ErrUnsupported], and on a network file system, too.
func (s *Store) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	if err := check(ctx, key); err != nil {
		return false, err
	}
	switch {
	case new != nil && len(new) == 0:
		return false, errors.New("disk: a record cannot be empty: give nil to delete it")
	case len(new) > maxRecord:
		return false, fmt.Errorf("disk: a record of %d bytes is too large: at most %d fit", len(new), maxRecord)
	}
	root, err := s.acquire(ctx, new != nil)
	if err != nil {
		if new == nil && errors.Is(err, fs.ErrNotExist) {
			return old == nil, nil // without the folder there is nothing to delete
		}
		return false, err
	}
	defer s.release(root)

	record, err := s.read(root, key)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if (record == nil) != (old == nil) || !bytes.Equal(record, old) {
		return false, nil
	}
	if new == nil {
		err = s.remove(root, key)
	} else {
		err = s.write(root, key, new)
	}
	return err == nil, err
}

// Keys returns the keys of all records, sorted by their spelling.
func (s *Store) Keys(ctx context.Context) ([]brokerauth.Key, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	root, err := s.open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer root.Close()
	names, err := s.list(root)
	if err != nil {
		return nil, err
	}
	var keys []brokerauth.Key
	for _, name := range names {
		if spelling, ok := strings.CutSuffix(name, ending); ok {
			// Other files may lie here: the lock, a note of the user's.
			if key, err := brokerauth.ParseKey(spelling); err == nil {
				keys = append(keys, key)
			}
		}
	}
	slices.SortFunc(keys, func(a, b brokerauth.Key) int { return strings.Compare(a.String(), b.String()) })
	return keys, nil
}

// Where names the file of the record at key.
func (s *Store) Where(key brokerauth.Key) string { return "file " + s.path(key.String()+ending) }

// SetAside renames the record at key, so that another can be written, and returns its new path.
// The file stays as it is until the key is deleted.
func (s *Store) SetAside(ctx context.Context, key brokerauth.Key) (where string, err error) {
	if err := check(ctx, key); err != nil {
		return "", err
	}
	root, err := s.acquire(ctx, false)
	if err != nil {
		return "", err
	}
	defer s.release(root)
	name := key.String() + ending
	if _, err := root.Lstat(name); err != nil {
		return "", s.fail(name, err)
	}
	for at := time.Now().Unix(); ; at++ {
		to := key.String() + aside + strconv.FormatInt(at, 10)
		if _, err := root.Lstat(to); err == nil {
			continue // that second has one already
		}
		if err := retry(func() error { return root.Rename(name, to) }); err != nil {
			return "", s.fail(name, err)
		}
		return s.path(to), s.sync(root)
	}
}

// private is private.Check, unless others are allowed.
func (s *Store) private(path string, info fs.FileInfo) error {
	if s.AllowOthers {
		return nil
	}
	err := private.Check(path, info)
	if err != nil && strings.Contains(err.Error(), ": run: chmod ") {
		err = fmt.Errorf("%w (where that changes nothing, as on a mount that keeps no modes, "+noModes+")", err)
	}
	return err
}

// noModes is what to do where other users can read whatever is written.
const noModes = "take another folder, or encrypt: package storage/sealed, or the command's --store sealed+disk:DIR"

func check(ctx context.Context, key brokerauth.Key) error {
	err := ctx.Err()
	if err == nil {
		err = key.Validate()
	}
	if err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	return nil
}

// open opens the folder, which everything then happens in, even if another is put in its place.
// On Windows an os.Root also lets a file be replaced while somebody reads it.
func (s *Store) open() (*os.Root, error) {
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return nil, s.fail("", err)
	}
	info, err := root.Stat(".")
	if err == nil {
		err = s.private(s.dir, info)
	}
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("disk: %w", err)
	}
	return root, nil
}

// acquire opens the folder for a change: it makes the folder if create is set, and locks it.
func (s *Store) acquire(ctx context.Context, create bool) (*os.Root, error) {
	for range 10 {
		root, err := s.open()
		if create && errors.Is(err, fs.ErrNotExist) {
			if err := private.MakeDir(s.dir); err != nil {
				return nil, s.fail("", err)
			}
			if root, err = s.open(); err == nil {
				// A folder inside a repository must not be committed. Without this file the store is none the worse.
				_ = s.writeFile(root, ".gitignore", []byte("*\n"))
			}
		}
		if err == nil || errors.Is(err, fs.ErrPermission) {
			// Many of these keep no modes, either, and mending or allowing that would be of no use.
			if err := s.checkNetwork(); err != nil {
				if root != nil {
					root.Close()
				}
				return nil, err
			}
		}
		if err != nil {
			return nil, err
		}
		// A link would have the lock made elsewhere, and a pipe would never open.
		if info, err := root.Lstat(lockName); err == nil && !info.Mode().IsRegular() {
			root.Close()
			return nil, s.strange(lockName, info)
		}
		switch err := s.lock.Lock(ctx); {
		case err == nil:
			// Somebody may have deleted the folder since, and the lock be on a file that nobody else will find.
			locked, err1 := s.lock.Stat()
			here, err2 := root.Lstat(lockName)
			if err1 == nil && err2 == nil && os.SameFile(locked, here) {
				return root, nil
			}
			s.lock.Unlock()
		case errors.Is(err, fs.ErrPermission):
			// Most often another user, such as root, made the lock file.
			if info, err := root.Lstat(lockName); err == nil {
				if err := s.private(s.path(lockName), info); err != nil {
					root.Close()
					return nil, fmt.Errorf("disk: %w", err)
				}
			}
			fallthrough
		case !errors.Is(err, fs.ErrNotExist):
			root.Close()
			return nil, s.fail(lockName, err)
		}
		root.Close()
	}
	return nil, fmt.Errorf("disk: %s: the folder changes all the time: %w", s.dir, brokerauth.ErrUnavailable)
}

func (s *Store) release(root *os.Root) {
	s.lock.Unlock()
	root.Close()
}

func (s *Store) checkNetwork() error {
	if s.AllowNetwork {
		return nil
	}
	kind, err := networkFS(s.dir)
	if err != nil {
		return s.fail("", err)
	}
	if kind != "" {
		return fmt.Errorf("disk: %s: this is a network file system (%s), where a lock may exclude nobody: use a local folder, "+
			"or set AllowNetwork if this is the only host to use it: %w", s.dir, kind, errors.ErrUnsupported)
	}
	return nil
}

// read returns the record at key, or an error that matches fs.ErrNotExist.
func (s *Store) read(root *os.Root, key brokerauth.Key) (record []byte, err error) {
	name := key.String() + ending
	// Nobody else can write to the folder, so what is checked here is what is opened, or a newer record.
	info, err := root.Lstat(name)
	if err != nil {
		return nil, s.fail(name, err)
	}
	if !info.Mode().IsRegular() {
		return nil, s.strange(name, info)
	}
	if err := s.private(s.path(name), info); err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	err = retry(func() error {
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		record, err = io.ReadAll(io.LimitReader(f, maxRecord+1))
		return err
	})
	switch {
	case err != nil:
		return nil, s.fail(name, err)
	case len(record) == 0:
		return nil, fmt.Errorf("disk: %s: the file is empty: restore it from a backup, or log in again: %w",
			s.path(name), brokerauth.ErrCorrupt)
	case len(record) > maxRecord:
		return nil, fmt.Errorf("disk: %s: the file is larger than %d bytes: restore it from a backup, or log in again: %w",
			s.path(name), maxRecord, brokerauth.ErrCorrupt)
	}
	return record, nil
}

// strange is the error for what stands in a file's place and is none.
func (s *Store) strange(name string, info fs.FileInfo) error {
	return fmt.Errorf("disk: %s: this is no plain file (%s) and nothing that this library made: move it away: %w",
		s.path(name), info.Mode().Type(), fs.ErrPermission)
}

// write puts record at key, so that a reader finds the old record until it finds the new one, which is on the disk then.
func (s *Store) write(root *os.Root, key brokerauth.Key, record []byte) error {
	if time.Since(s.swept) > sweepGap {
		// Listing a folder of thousands at every write would cost more than the write. Failing costs nothing now.
		_ = s.sweep(root, func(name string) bool { return strings.HasPrefix(name, newPrefix) })
		s.swept = time.Now()
	}
	name, temp := key.String()+ending, newPrefix+rand.Text()
	err := s.writeFile(root, temp, record)
	if err == nil {
		err = retry(func() error { return root.Rename(temp, name) })
	}
	if err != nil {
		if err := root.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.swept = time.Time{}
		}
		return s.fail(name, err)
	}
	return s.sync(root)
}

// writeFile makes a file that is on the disk when it returns.
func (s *Store) writeFile(root *os.Root, name string, record []byte) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = f.Chmod(0o600) // the umask may have taken the owner's bits
	if err == nil || errors.Is(err, fs.ErrPermission) || errors.Is(err, errors.ErrUnsupported) {
		// A mount that keeps no modes may refuse to change them, or pretend to. What the file has now decides.
		var info fs.FileInfo
		if info, err = f.Stat(); err == nil && s.private("", info) != nil {
			err = fmt.Errorf("other users can read what is written here (mode %#o), as on a mount that keeps no modes: "+noModes+": %w",
				info.Mode().Perm(), fs.ErrPermission)
		}
	}
	if err == nil {
		_, err = f.Write(record)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// remove deletes the record at key, what was set aside of it, and what killed writers left of any key.
func (s *Store) remove(root *os.Root, key brokerauth.Key) error {
	err := s.sweep(root, func(name string) bool {
		return name == key.String()+ending || strings.HasPrefix(name, key.String()+aside) || strings.HasPrefix(name, newPrefix)
	})
	if err != nil {
		return err
	}
	return s.sync(root)
}

// sweep deletes the files whose names match.
func (s *Store) sweep(root *os.Root, match func(name string) bool) error {
	names, err := s.list(root)
	for _, name := range names {
		if match(name) {
			if e := retry(func() error { return root.Remove(name) }); e != nil && !errors.Is(e, fs.ErrNotExist) {
				err = errors.Join(err, s.fail(name, e))
			}
		}
	}
	return err
}

func (s *Store) list(root *os.Root) ([]string, error) {
	dir, err := root.Open(".")
	if err != nil {
		return nil, s.fail("", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, s.fail("", err)
	}
	return names, nil
}

// sync makes the folder's names durable.
func (s *Store) sync(root *os.Root) error {
	dir, err := root.Open(".")
	if err == nil {
		err = private.Sync(dir)
	}
	if err != nil {
		return s.fail("", err)
	}
	return nil
}

// retry repeats f for up to half a second while it fails because somebody has the file open: on Windows, virus
// scanners and indexers open every file that is new.
func retry(f func() error) error {
	for range 12 {
		if err := f(); err == nil || !inUse(err) {
			return err
		}
		time.Sleep(20*time.Millisecond + mathrand.N(20*time.Millisecond))
	}
	return f()
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

// fail says where err happened. An os.Root knows only the name in the folder.
func (s *Store) fail(name string, err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		err = e.Err
	} else if e, ok := errors.AsType[*os.LinkError](err); ok {
		err = e.Err
	}
	return fmt.Errorf("disk: %s: %w", s.path(name), err)
}
