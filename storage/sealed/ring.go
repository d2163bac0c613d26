package sealed

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/brokerauth/brokerauth"
)

// ringKey is where a sealed store keeps its data keys.
var ringKey = brokerauth.Key{Provider: "~sealed"}

type (
	keyID   [8]byte
	dataKey [keySize]byte
)

// The kinds of secret, as slots name them.
const (
	kindKey        = "key"
	kindPassphrase = "argon2id"
	kindKept       = "kept"
)

// OpenedBy reports whether a [Passphrase] opens what is sealed in inner, and whether a key does that [KeptIn] keeps, so
// that a program knows what to ask for; neither if nothing is sealed there yet. If all of it is sealed under a [Key],
// nothing that could be asked for opens it, and the error matches [brokerauth.ErrRejected].
func OpenedBy(ctx context.Context, inner brokerauth.Store) (passphrase, kept bool, err error) {
	s := &store{inner: inner}
	raw, err := inner.Load(ctx, ringKey)
	if errors.Is(err, fs.ErrNotExist) {
		return false, false, nil
	}
	var slots []slot
	if err == nil {
		_, slots, err = parse(raw)
	}
	if err != nil {
		return false, false, s.ringError(err)
	}
	key := false
	for _, sl := range slots {
		passphrase = passphrase || sl.Kind == kindPassphrase
		kept = kept || sl.Kind == kindKept
		key = key || sl.Kind == kindKey
	}
	switch {
	case passphrase || kept:
		return passphrase, kept, nil
	case key:
		return false, false, fmt.Errorf("sealed: the data keys in %s are sealed under a key that a program has, which no passphrase "+
			"and no keyring replaces: use that program, or name another store: %w", s.place(ringKey), brokerauth.ErrRejected)
	}
	return false, false, s.ringError(fmt.Errorf("a newer version of brokerauth sealed them: use that: %w", errors.ErrUnsupported))
}

// ring is a key record, opened.
type ring struct {
	raw   []byte            // the record; nil: there is none
	slots []json.RawMessage // in it
	own   keyID             // the data key to seal with; zero: the first secret has none yet
	keys  map[keyID]dataKey
}

func (r *ring) has(id keyID) bool {
	_, ok := r.keys[id]
	return ok
}

// keyRecord is how data keys are stored. A slot that this version does not know stays as it is.
type keyRecord struct {
	Version int               `json:"v"`
	Slots   []json.RawMessage `json:"slots"` // one for each secret that ever sealed, the oldest first
}

// slot is what one secret opens: the data key that was made for it, and all that were known before, each after its id.
type slot struct {
	Kind    string `json:"kind"`
	Salt    []byte `json:"salt,omitempty"`
	Passes  uint32 `json:"passes,omitempty"`
	KiB     uint32 `json:"kib,omitempty"`
	Threads uint8  `json:"threads,omitempty"`
	Keys    []byte `json:"keys"` // nonce, ciphertext
}

const (
	recordVersion = 1
	maxSlots      = 64
	maxCost       = maxSlots * passes * kib // of all slots for passphrases, each of which may have to be tried
	entrySize     = len(keyID{}) + len(dataKey{})
)

// bearable reports whether a passphrase's parameters neither are weaker than anybody should choose (the floor is the
// OWASP Password Storage Cheat Sheet's) nor cost more than a second or so. They come from a file that may be hostile.
func (sl *slot) bearable() bool {
	return 2 <= sl.Passes && sl.Passes <= 8 && 19<<10 <= sl.KiB && sl.KiB <= 256<<10 &&
		1 <= sl.Threads && sl.Threads <= 16 && 16 <= len(sl.Salt) && len(sl.Salt) <= 64
}

// bound is what is authenticated besides the keys.
func (sl *slot) bound() []byte {
	return fmt.Appendf(nil, "brokerauth sealed %d %s %x %d %d %d", recordVersion, sl.Kind, sl.Salt, sl.Passes, sl.KiB, sl.Threads)
}

// unlock returns the data keys. If grow is set and the first secret has none to seal with, it makes one, unless the
// record is another secret's.
func (s *store) unlock(ctx context.Context, grow bool) (*ring, error) {
	select {
	case s.busy <- struct{}{}:
		defer func() { <-s.busy }()
	case <-ctx.Done():
		return nil, fmt.Errorf("sealed: %w", ctx.Err())
	}
	for {
		raw, err := s.inner.Load(ctx, ringKey)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, s.ringError(err)
		}
		r := s.ring.Load()
		if r == nil || !bytes.Equal(r.raw, raw) {
			if r, err = s.read(ctx, raw); err != nil {
				return nil, err
			}
			s.ring.Store(r)
		}
		if !grow || r.own != (keyID{}) {
			return r, nil
		}
		if r, err = s.grow(ctx, r); err != nil {
			return nil, err
		}
		swapped, err := s.inner.CompareAndSwap(ctx, ringKey, raw, r.raw)
		if err != nil {
			return nil, s.ringError(err)
		}
		if swapped {
			s.ring.Store(r)
			return r, nil
		}
	}
}

// ringError says what kept the data keys from being read. It is never ErrCorrupt: no login is damaged, and none must
// be set aside.
func (s *store) ringError(err error) error {
	if errors.Is(err, brokerauth.ErrCorrupt) {
		return fmt.Errorf("sealed: the data keys in %s are damaged, and without them no login opens: restore them from a backup, "+
			"or delete them and the logins beside them, and log in again: %w (%v)", s.place(ringKey), brokerauth.ErrRejected, err)
	}
	return fmt.Errorf("sealed: the data keys in %s: %w", s.place(ringKey), err)
}

// read opens a key record, nil if there is none, with whatever secrets open it.
func (s *store) read(ctx context.Context, raw []byte) (*ring, error) {
	r := &ring{raw: raw, keys: map[keyID]dataKey{}}
	if last := s.ring.Load(); last != nil {
		// Should the record have been lost, or replaced by an old one, the next one to be made has these again.
		maps.Copy(r.keys, last.keys)
	}
	if raw == nil {
		return r, nil
	}
	var slots []slot
	var err error
	if r.slots, slots, err = parse(raw); err != nil {
		return nil, s.ringError(err)
	}
	opened := false
	for i, secret := range s.secrets {
		for _, sl := range slots {
			if sl.Kind != secret.kind {
				continue
			}
			wrapping, err := secret.wrapping(ctx, &sl)
			if err != nil {
				return nil, fmt.Errorf("sealed: %w", err)
			}
			plain, ok := sl.unwrap(wrapping)
			if !ok {
				continue
			}
			if i == 0 {
				r.own = keyID(plain)
			}
			for ; len(plain) > 0; plain = plain[entrySize:] {
				r.keys[keyID(plain)] = dataKey(plain[len(keyID{}):])
			}
			opened = true
			break
		}
	}
	if !opened {
		return nil, fmt.Errorf("sealed: the secret does not open the data keys in %s: give the one that the logins were "+
			"sealed with, or, if it is lost, delete these keys and the logins beside them, and log in again: %w", s.place(ringKey), brokerauth.ErrRejected)
	}
	return r, nil
}

// parse returns the slots as they are stored, and what this version knows of them, the newest first.
func parse(raw []byte) ([]json.RawMessage, []slot, error) {
	var record keyRecord
	// A json error quotes what it read, so none is passed on.
	if err := json.Unmarshal(raw, &record); err != nil || record.Version < 1 {
		return nil, nil, fmt.Errorf("they cannot be read: %w", brokerauth.ErrCorrupt)
	}
	if record.Version > recordVersion {
		return nil, nil, fmt.Errorf("a newer version of brokerauth wrote them: use that: %w", errors.ErrUnsupported)
	}
	if n := len(record.Slots); n == 0 || n > maxSlots {
		return nil, nil, fmt.Errorf("there are %d: %w", n, brokerauth.ErrCorrupt)
	}
	var slots []slot
	cost := uint32(0) // bearable keeps it from overflowing
	for i := len(record.Slots) - 1; i >= 0; i-- {
		var sl slot
		if err := json.Unmarshal(record.Slots[i], &sl); err != nil {
			return nil, nil, fmt.Errorf("one cannot be read: %w", brokerauth.ErrCorrupt)
		}
		if sl.Kind == kindPassphrase {
			if !sl.bearable() {
				return nil, nil, fmt.Errorf("one asks for %d passes over %d KiB by %d threads and %d bytes of salt, which this "+
					"library never wrote: %w", sl.Passes, sl.KiB, sl.Threads, len(sl.Salt), brokerauth.ErrCorrupt)
			}
			if cost += sl.Passes * sl.KiB; cost > maxCost {
				return nil, nil, fmt.Errorf("all together they ask for more passes over more memory than this library ever wrote: %w",
					brokerauth.ErrCorrupt)
			}
		}
		slots = append(slots, sl)
	}
	return record.Slots, slots, nil
}

// grow returns r with a new data key for the first secret.
func (s *store) grow(ctx context.Context, r *ring) (*ring, error) {
	if len(r.slots) >= maxSlots {
		return nil, fmt.Errorf("sealed: the secret of %s was changed %d times, and no more fit: move the logins to a new store",
			s.place(ringKey), maxSlots)
	}
	secret := s.secrets[0]
	sl := &slot{Kind: secret.kind}
	if err := secret.prepare(ctx, sl); err != nil {
		return nil, fmt.Errorf("sealed: %w", err)
	}
	wrapping, err := secret.wrapping(ctx, sl)
	if err == nil && wrapping == nil {
		err = fmt.Errorf("the key that is kept elsewhere was deleted at once: try again: %w", brokerauth.ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("sealed: %w", err)
	}
	next := &ring{keys: maps.Clone(r.keys)}
	var own dataKey
	rand.Read(next.own[:]) // never fails
	rand.Read(own[:])
	plain := append(next.own[:], own[:]...)
	for id, key := range r.keys {
		plain = append(append(plain, id[:]...), key[:]...)
	}
	next.keys[next.own] = own
	raw, err := sl.wrap(wrapping, plain)
	if err != nil {
		return nil, fmt.Errorf("sealed: %w", err)
	}
	next.slots = append(slices.Clone(r.slots), raw)
	if next.raw, err = json.Marshal(keyRecord{recordVersion, next.slots}); err != nil {
		return nil, fmt.Errorf("sealed: %w", err)
	}
	return next, nil
}

// wrap puts keys into the slot, and returns it as it is stored.
func (sl *slot) wrap(wrapping, keys []byte) ([]byte, error) {
	aead, err := chacha20poly1305.NewX(wrapping)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, nonceSize)
	rand.Read(nonce) // never fails
	sl.Keys = aead.Seal(nonce, nonce, keys, sl.bound())
	return json.Marshal(sl)
}

// unwrap returns the keys in the slot, and whether wrapping opens it. A nil one never does.
func (sl *slot) unwrap(wrapping []byte) (keys []byte, ok bool) {
	aead, err := chacha20poly1305.NewX(wrapping)
	if err != nil || len(sl.Keys) < nonceSize {
		return nil, false
	}
	keys, err = aead.Open(nil, sl.Keys[:nonceSize], sl.Keys[nonceSize:], sl.bound())
	return keys, err == nil && len(keys) > 0 && len(keys)%entrySize == 0
}
