package sealed

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/brokerauth/brokerauth"
)

// Secret is what opens a sealed store: [Key], [Passphrase] or [KeptIn] makes one. It prints
// without what is secret.
type Secret struct {
	kind  string // of its slots
	fault error  // why it cannot be one
	// What is secret is in funcs: fmt prints all else, even where it stands in an unexported field.
	prepare  func(ctx context.Context, sl *slot) error           // makes a new slot fit for wrapping
	wrapping func(ctx context.Context, sl *slot) ([]byte, error) // the key for a slot of this kind; nil: it has none
}

const keySize = chacha20poly1305.KeySize

// What a passphrase's key costs: RFC 9106, section 4, the second recommended option, for where memory is short.
const (
	passes  = 3
	kib     = 64 << 10
	threads = 4
)

// keptKey is where KeptIn keeps its key.
var keptKey = brokerauth.Key{Provider: "~sealed-key"}

// Key is a secret of the caller's own: 32 random bytes, such as a secret manager makes and keeps. They are not typed by
// anybody: that is a [Passphrase].
func Key(key []byte) *Secret {
	key = bytes.Clone(key)
	s := &Secret{
		kind:     kindKey,
		prepare:  func(context.Context, *slot) error { return nil },
		wrapping: func(context.Context, *slot) ([]byte, error) { return key, nil },
	}
	if len(key) != keySize {
		s.fault = fmt.Errorf("the key has %d bytes, not %d: give random bytes as they are, not as text", len(key), keySize)
	}
	return s
}

// Passphrase is a secret that a person types; every byte counts. Guessing it from a copy of the store costs 64 MiB of
// memory and about a tenth of a second each time, and so does opening the store, once a process: make it long all the
// same, such as six random words.
func Passphrase(passphrase string) *Secret {
	var derived sync.Map // keys by what they depend on: opening a store again costs nothing, even in vain
	s := &Secret{
		kind: kindPassphrase,
		prepare: func(_ context.Context, sl *slot) error {
			sl.Passes, sl.KiB, sl.Threads, sl.Salt = passes, kib, threads, make([]byte, 16)
			rand.Read(sl.Salt) // never fails
			return nil
		},
		wrapping: func(ctx context.Context, sl *slot) ([]byte, error) {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			bound := string(sl.bound())
			key, ok := derived.Load(bound)
			if !ok {
				key = argon2.IDKey([]byte(passphrase), sl.Salt, sl.Passes, sl.KiB, sl.Threads, keySize)
				derived.Store(bound, key)
			}
			return key.([]byte), nil
		},
	}
	if passphrase == "" {
		s.fault = errors.New("the passphrase is empty")
	}
	return s
}

// KeptIn is a random key that is kept in another store, the system's keyring for one, under a key of the library's own,
// and serves all stores that are sealed with it. The first write to a new sealed store makes it if it is missing. The
// sealed store then is as private as that other one, and as available: its errors are passed on.
func KeptIn(store brokerauth.Store) *Secret {
	s := &Secret{
		kind: kindKept,
		prepare: func(ctx context.Context, _ *slot) error {
			key := make([]byte, keySize)
			rand.Read(key) // never fails
			// If there is one already, that one serves.
			if _, err := store.CompareAndSwap(ctx, keptKey, nil, key); err != nil {
				return keptError(err)
			}
			return nil
		},
		wrapping: func(ctx context.Context, _ *slot) ([]byte, error) {
			key, err := store.Load(ctx, keptKey)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil, nil
			case err != nil:
				return nil, keptError(err)
			case len(key) != keySize:
				return nil, keptError(fmt.Errorf("it has %d bytes, not %d: %w", len(key), keySize, brokerauth.ErrCorrupt))
			}
			return key, nil
		},
	}
	if store == nil {
		s.fault = errors.New("there is no store to keep the key in")
	}
	return s
}

// keptError says what kept a key from being read. It is never ErrCorrupt: no login is damaged, and none must be set aside.
func keptError(err error) error {
	if errors.Is(err, brokerauth.ErrCorrupt) {
		return fmt.Errorf("the key that is kept elsewhere is damaged: restore it from a backup, or, if there is none, delete it and all "+
			"data keys and logins that were sealed with it, and log in again: %w (%v)", brokerauth.ErrRejected, err)
	}
	return fmt.Errorf("the key that is kept elsewhere: %w", err)
}

func (s *Secret) validate() error {
	if s == nil || s.kind == "" {
		return errors.New("there is no secret: Key, Passphrase or KeptIn makes one")
	}
	return s.fault
}
