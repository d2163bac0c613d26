package memory_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance"
	"github.com/brokerauth/brokerauth/storage/memory"
)

func TestStore(t *testing.T) {
	conformance.TestStore(t, func(t *testing.T, at string) brokerauth.Store { return new(memory.Store) })
}

func TestEmptyRecord(t *testing.T) {
	store, key := new(memory.Store), brokerauth.Key{Provider: "schwab"}
	if swapped, err := store.CompareAndSwap(t.Context(), key, nil, []byte{}); err == nil {
		t.Errorf("CompareAndSwap with an empty record = %v, want an error", swapped)
	}
	if record, err := store.Load(t.Context(), key); err == nil {
		t.Errorf("Load = %q after an empty record was refused", record)
	}
}

func Example() {
	ctx := context.Background()
	var store memory.Store
	key := brokerauth.Key{Provider: "schwab", Profile: "default"}

	swapped, err := store.CompareAndSwap(ctx, key, nil, []byte("a login"))
	fmt.Println(swapped, err)
	swapped, err = store.CompareAndSwap(ctx, key, nil, []byte("another")) // there is one already
	fmt.Println(swapped, err)
	record, err := store.Load(ctx, key)
	fmt.Printf("%s %v\n", record, err)
	// Output:
	// true <nil>
	// false <nil>
	// a login <nil>
}
