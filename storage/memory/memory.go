// Package memory keeps logins in memory: for tests, and for programs whose login may end with them.
//
// A store lives as long as the process and is shared within it only. Where nothing can be written, it also serves
// brokers whose grant stands in the settings; elsewhere a person would have to log in at every start.
package memory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/brokerauth/brokerauth"
)

var _ brokerauth.Store = (*Store)(nil)

// Store keeps records in memory. Its zero value is empty and ready; do not copy it after first use.
type Store struct {
	mu      sync.Mutex
	records map[brokerauth.Key][]byte
}

// Format prints no record, whatever the verb.
func (s *Store) Format(f fmt.State, _ rune) { fmt.Fprint(f, "memory store") }

// Load returns a copy of the record at key; a missing one is nil, fs.ErrNotExist.
func (s *Store) Load(ctx context.Context, key brokerauth.Key) ([]byte, error) {
	if err := check(ctx, key); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	record, ok := s.records[key]
	if !ok {
		return nil, fmt.Errorf("memory: no login %s: %w", key, fs.ErrNotExist)
	}
	return bytes.Clone(record), nil
}

// CompareAndSwap replaces the record at key by a copy of new if it still is old, as [brokerauth.Store] says.
// A new that is empty and not nil is an error, as no login is empty.
func (s *Store) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	if err := check(ctx, key); err != nil {
		return false, err
	}
	if new != nil && len(new) == 0 {
		return false, errors.New("memory: a record cannot be empty: give nil to delete it")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	record := s.records[key]
	if (record == nil) != (old == nil) || !bytes.Equal(record, old) {
		return false, nil
	}
	if new == nil {
		delete(s.records, key)
		return true, nil
	}
	if s.records == nil {
		s.records = make(map[brokerauth.Key][]byte)
	}
	s.records[key] = bytes.Clone(new)
	return true, nil
}

// Keys returns the keys of all records, sorted by their spelling.
func (s *Store) Keys(ctx context.Context) ([]brokerauth.Key, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("memory: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Keys(s.records), func(a, b brokerauth.Key) int {
		return strings.Compare(a.String(), b.String())
	}), nil
}

// Where says that the record is in memory.
func (s *Store) Where(brokerauth.Key) string { return "memory of this process" }

func check(ctx context.Context, key brokerauth.Key) error {
	err := ctx.Err()
	if err == nil {
		err = key.Validate()
	}
	if err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	return nil
}
