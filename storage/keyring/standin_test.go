package keyring

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// NewAt is New with a lock elsewhere.
func NewAt(service, dir string) *Store { return newStore(service, dir) }

// SmallItems makes s keep records in parts as on Windows.
func SmallItems(s *Store) { s.item = 2560 }

// Patient makes s wait for a keyring that a busy machine slows down.
func Patient(s *Store) { s.quick = time.Minute }

var (
	ErrMissing  = errMissing
	ErrTooLarge = errTooLarge
	ErrAltered  = errAltered
)

// Standin is a keyring in files of a folder, which any number of processes share, and which misbehaves at will.
type Standin struct {
	Dir string
	// Before is called before each operation: "open", "ready", "get", "set" or "delete". The operation fails with its
	// error, or hangs with it.
	Before func(op, name string) error
	// Keep returns what is kept of a value.
	Keep func(name, value string) string
	// KeepDeleted has nothing deleted.
	KeepDeleted bool
	// Give returns what is read of a value.
	Give func(name, value string) string
	// Closed counts the connections that were closed.
	Closed atomic.Int32
}

// Store returns a Store on the stand-in, which has its lock in the same folder.
func (k *Standin) Store() *Store {
	s := newStore("test", k.Dir)
	SmallItems(s)
	s.open = func(context.Context, string, bool) (ring, error) {
		if err := k.before("open", ""); err != nil {
			return nil, err
		}
		return standinRing{k, new(atomic.Int32)}, nil
	}
	return s
}

func (k *Standin) before(op, name string) error {
	if k.Before == nil {
		return nil
	}
	return k.Before(op, name)
}

// File is where an item is.
func (k *Standin) File(name string) string {
	sum := sha256.Sum256([]byte(name)) // names are longer than a file's may be
	return filepath.Join(k.Dir, hex.EncodeToString(sum[:])+".item")
}

// Put changes an item behind the Store's back.
func (k *Standin) Put(name, value string) error {
	temp, err := os.CreateTemp(k.Dir, "new-")
	if err != nil {
		return err
	}
	_, err = temp.WriteString(name + "\n" + value)
	err = errors.Join(err, temp.Close())
	for range 50 {
		if err == nil {
			err = os.Rename(temp.Name(), k.File(name))
		}
		if !errors.Is(err, fs.ErrPermission) {
			break
		}
		err = nil // on Windows somebody reads it
		time.Sleep(time.Millisecond)
	}
	return err
}

// Items returns all items.
func (k *Standin) Items() (map[string]string, error) {
	items := map[string]string{}
	files, err := filepath.Glob(filepath.Join(k.Dir, "*.item"))
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		name, value, _ := strings.Cut(string(text), "\n")
		items[name] = value
	}
	return items, err
}

// standinRing sees to it that only one operation runs at a time.
type standinRing struct {
	k    *Standin
	busy *atomic.Int32
}

func (r standinRing) begin(op, name string) error {
	if r.busy.Add(1) != 1 {
		panic("two operations at a time, or one after the end")
	}
	return r.k.before(op, name)
}

func (r standinRing) ready(context.Context) error {
	defer r.busy.Add(-1)
	return r.begin("ready", "")
}

func (r standinRing) get(name string) (string, error) {
	defer r.busy.Add(-1)
	if err := r.begin("get", name); err != nil {
		return "", err
	}
	text, err := os.ReadFile(r.k.File(name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", errMissing
	}
	_, value, _ := strings.Cut(string(text), "\n")
	if r.k.Give != nil {
		value = r.k.Give(name, value)
	}
	return value, err
}

func (r standinRing) set(name, value string) error {
	defer r.busy.Add(-1)
	if err := r.begin("set", name); err != nil {
		return err
	}
	if r.k.Keep != nil {
		value = r.k.Keep(name, value)
	}
	return r.k.Put(name, value)
}

func (r standinRing) delete(name string) error {
	defer r.busy.Add(-1)
	if err := r.begin("delete", name); err != nil {
		return err
	}
	if r.k.KeepDeleted {
		return nil
	}
	if err := os.Remove(r.k.File(name)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (r standinRing) close() {
	if r.busy.Add(1) != 1 {
		panic("closed while an operation runs, or twice")
	}
	r.k.Closed.Add(1)
}

// PartsOf returns the names that begin with a key's spelling and a dot.
func PartsOf(items map[string]string, key string) []string {
	var names []string
	for name := range items {
		if strings.HasPrefix(name, key+".") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
