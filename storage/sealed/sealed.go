// Package sealed encrypts the logins of any store.
//
// [New] wraps a [brokerauth.Store]. Everything else stays as it was, so a session does not know:
//
//	inner, err := disk.New("")
//	...
//	store, err := sealed.New(inner, sealed.KeptIn(keyring))
//	...
//	session := &brokerauth.Session{Provider: app, Store: store}
//
// # Which secret
//
// [KeptIn] has a random key made and kept in another store, the system's keyring for one: nobody types anything.
// [Key] is for servers, whose secret manager hands them 32 random bytes. [Passphrase] is for a person who types it.
// Whoever loses the secret has lost the logins: delete all that is in the inner store, and log in again. Nothing does that
// unasked, as the secret may only be mistyped.
//
// # Changing the secret
//
// Give New the new secret and then the old one: what is written from now on is sealed under a new data key, the old
// records still open, and after the first write the new secret opens all of them by itself. (One that served before
// does not open what others have sealed in between.) Where several programs share the store, none is ever shut out if
// each of these steps is taken by all before anybody takes the next: New with the old secret and then the new one; with
// the new one and then the old one; and after a write, with the new one alone.
//
// A secret that somebody else may have learnt opens, together with a copy of the store, what was sealed before the
// change and has not been written since. Log in again to be safe: that makes the broker's old grant worthless, too.
// If they can also write to the inner store, they can forge records there even after the change, as the old data keys go
// on to open: move the logins to a new store then.
//
// # What it keeps from whom
//
// Whoever reads the inner store or its backup learns the spellings of the keys, which name broker and profile, the
// sizes of records, and when they change; nothing else. Whoever writes to it cannot forge a record, and cannot put one
// login's in another's place. But they can delete records, and can put an older one back in its own place: nothing
// here defends against that. It does not protect from programs that run as the same user and can ask for the secret.
//
// # How
//
// Records are sealed by XChaCha20-Poly1305 with a fresh nonce each, under a random data key. The data keys are in the
// same store, in a record of the library's own, encrypted under each secret.
//
// # Errors
//
// A record that the secrets do not open matches [brokerauth.ErrRejected]: it is never overwritten or set aside, as the
// right secret still opens it. So does one that is not sealed at all. A record that is damaged, or was put in another's
// place, matches [brokerauth.ErrCorrupt]; one of a newer version of this package, [errors.ErrUnsupported]. All other
// errors are the inner store's, or those of the store that keeps the secret.
package sealed

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"slices"
	"sync/atomic"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/brokerauth/brokerauth"
)

// The store is given away as one of these, so that it offers what the inner store does and no more.
var (
	_ brokerauth.Store = (*store)(nil)
	_ lister           = withKeys{}
	_ mover            = withSetAside{}
	_ lister           = withBoth{}
	_ mover            = withBoth{}
)

type lister interface {
	Keys(ctx context.Context) ([]brokerauth.Key, error)
}

type mover interface {
	SetAside(ctx context.Context, key brokerauth.Key) (where string, err error)
}

type (
	withKeys     struct{ *store }
	withSetAside struct{ *store }
	withBoth     struct{ withKeys }
)

func (s withKeys) Keys(ctx context.Context) ([]brokerauth.Key, error) { return s.keys(ctx) }

func (s withSetAside) SetAside(ctx context.Context, key brokerauth.Key) (where string, err error) {
	return s.setAside(ctx, key)
}

func (s withBoth) SetAside(ctx context.Context, key brokerauth.Key) (where string, err error) {
	return s.setAside(ctx, key)
}

type store struct {
	inner   brokerauth.Store
	secrets []*Secret            // the first seals
	ring    atomic.Pointer[ring] // the data keys as last seen
	busy    chan struct{}        // holds an element while somebody opens the key record: a passphrase takes memory
}

// New returns a store that keeps its records encrypted in inner. What is written is sealed under secret; also are
// secrets that open other records: older ones before they were changed, or the one to come. New touches nothing: the
// first write makes the data key, and however many processes are first at the same time, they agree on one.
//
// The store has the methods Keys and SetAside if inner has them, and Where. SetAside refuses a record that only the
// right secret is missing for. Keys does not list the record that has the data keys; nobody else may write to it.
//
// A secret that cannot be one is an error.
func New(inner brokerauth.Store, secret *Secret, also ...*Secret) (brokerauth.Store, error) {
	if inner == nil {
		return nil, errors.New("sealed: there is no store to keep records in")
	}
	secrets := append([]*Secret{secret}, also...)
	for _, secret := range secrets {
		if err := secret.validate(); err != nil {
			return nil, fmt.Errorf("sealed: %w", err)
		}
	}
	s := &store{inner: inner, secrets: secrets, busy: make(chan struct{}, 1)}
	_, lists := inner.(lister)
	_, moves := inner.(mover)
	switch {
	case lists && moves:
		return withBoth{withKeys{s}}, nil
	case lists:
		return withKeys{s}, nil
	case moves:
		return withSetAside{s}, nil
	}
	return s, nil
}

// Format prints nothing of the inner store, which may hold a password, past its own methods.
func (s *store) Format(f fmt.State, _ rune) { fmt.Fprint(f, "sealed store") }

func (s *store) Load(ctx context.Context, key brokerauth.Key) ([]byte, error) {
	box, err := s.inner.Load(ctx, key)
	if err != nil {
		return nil, err
	}
	return s.open(ctx, key, box)
}

func (s *store) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	if new != nil && len(new) == 0 {
		return false, errors.New("sealed: a record cannot be empty: give nil to delete it")
	}
	var tried []byte
	for again := false; ; again = true {
		box, err := s.inner.Load(ctx, key)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		if again && bytes.Equal(box, tried) {
			return false, nil // the inner store has seen a change that was undone since
		}
		var record []byte
		if err == nil {
			if record, err = s.open(ctx, key, box); err != nil {
				return false, err
			}
		}
		if (record == nil) != (old == nil) || !bytes.Equal(record, old) {
			return false, nil
		}
		var next []byte
		if new != nil {
			// The key record is read before each write: a record is worth nothing if its key was lost meanwhile.
			r, err := s.unlock(ctx, true)
			if err != nil {
				return false, err
			}
			if next, err = seal(r.own, r.keys[r.own], key, new); err != nil {
				return false, err
			}
		}
		swapped, err := s.inner.CompareAndSwap(ctx, key, box, next)
		if swapped || err != nil {
			return swapped, err
		}
		// Somebody else was faster, and may have sealed the same record anew: only another record is a loss.
		tried = box
	}
}

// Where says where the record is kept, and that it is encrypted.
func (s *store) Where(key brokerauth.Key) string { return s.place(key) + ", encrypted" }

func (s *store) keys(ctx context.Context) ([]brokerauth.Key, error) {
	keys, err := s.inner.(lister).Keys(ctx)
	return slices.DeleteFunc(slices.Clone(keys), func(key brokerauth.Key) bool { return key == ringKey }), err
}

// setAside moves a record that opens, too: what is in it may be unreadable to its Session all the same.
func (s *store) setAside(ctx context.Context, key brokerauth.Key) (where string, err error) {
	if _, err := s.Load(ctx, key); err != nil && !errors.Is(err, brokerauth.ErrCorrupt) {
		return "", err
	}
	return s.inner.(mover).SetAside(ctx, key)
}

// place names a record for people.
func (s *store) place(key brokerauth.Key) string {
	if teller, ok := s.inner.(interface {
		Where(key brokerauth.Key) string
	}); ok {
		return teller.Where(key)
	}
	return "the record " + key.String()
}

// A sealed record is magic, the form's version, the id of the data key, a nonce, the ciphertext, and the CRC-32 of all
// that. What comes before the nonce is authenticated, too, and so is the login's key. The checksum, which every
// version has, tells a damaged record, which a login may set aside, from one that another secret opens, which it may not.
const (
	magic     = "sealed"
	version   = 1
	headSize  = len(magic) + 1 + len(keyID{})
	nonceSize = chacha20poly1305.NonceSizeX
	sumSize   = crc32.Size
)

func seal(id keyID, with dataKey, key brokerauth.Key, record []byte) ([]byte, error) {
	aead, err := chacha20poly1305.NewX(with[:])
	if err != nil {
		return nil, fmt.Errorf("sealed: %w", err)
	}
	box := make([]byte, headSize+nonceSize, headSize+nonceSize+len(record)+aead.Overhead()+sumSize)
	copy(box, magic)
	box[len(magic)] = version
	copy(box[len(magic)+1:], id[:])
	rand.Read(box[headSize:]) // never fails
	box = aead.Seal(box, box[headSize:], record, bound(box[:headSize], key))
	return binary.BigEndian.AppendUint32(box, crc32.ChecksumIEEE(box)), nil
}

// bound is what is authenticated besides the record.
func bound(head []byte, key brokerauth.Key) []byte { return append(bytes.Clone(head), key.String()...) }

// open returns the record in box, which was loaded from key.
func (s *store) open(ctx context.Context, key brokerauth.Key, box []byte) ([]byte, error) {
	fail := func(what string, kind error) error { return fmt.Errorf("sealed: %s: %s: %w", s.place(key), what, kind) }
	body := len(box) - sumSize
	switch {
	case json.Valid(box):
		// Most likely an unsealed store's, in which this login is whole.
		return nil, fail("the record is not encrypted: use the store without encryption, or move the login out of the way",
			brokerauth.ErrRejected)
	case body <= len(magic) || string(box[:len(magic)]) != magic ||
		crc32.ChecksumIEEE(box[:body]) != binary.BigEndian.Uint32(box[body:]):
		return nil, fail("the record is damaged: restore it from a backup, or log in again", brokerauth.ErrCorrupt)
	case box[len(magic)] > version:
		return nil, fail("the record was sealed by a newer version of brokerauth: use that", errors.ErrUnsupported)
	case box[len(magic)] < version || body < headSize+nonceSize:
		return nil, fail("this is no sealed record: restore it from a backup, or log in again", brokerauth.ErrCorrupt)
	}
	id := keyID(box[len(magic)+1 : headSize])
	r := s.ring.Load()
	if r == nil || !r.has(id) {
		var err error
		if r, err = s.unlock(ctx, false); err != nil {
			return nil, err
		}
		if !r.has(id) {
			return nil, fail("the record is sealed under a key that is not among this store's: give the secret that it was sealed "+
				"with, or restore "+s.place(ringKey)+" from a backup, or, if both are lost, delete the record and log in again",
				brokerauth.ErrRejected)
		}
	}
	with := r.keys[id]
	aead, err := chacha20poly1305.NewX(with[:])
	if err != nil {
		return nil, fmt.Errorf("sealed: %w", err)
	}
	record, err := aead.Open(nil, box[headSize:headSize+nonceSize], box[headSize+nonceSize:body], bound(box[:headSize], key))
	if err != nil {
		return nil, fail("the record was changed by somebody, or is another login's: restore it from a backup, or log in again",
			brokerauth.ErrCorrupt)
	}
	return record, nil
}
