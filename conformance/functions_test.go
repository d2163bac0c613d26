package conformance_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"

	"github.com/brokerauth/brokerauth"
)

// Functions makes a store of a read and a conditional write, which most backends have: S3 and its likes (If-Match and
// If-None-Match), DynamoDB (a condition), Vault (cas), etcd, Consul. The version is whatever the backend compares:
// an ETag, a number; empty: there must be nothing. Deleting is writing nothing, so that it, too, can be conditional.
type Functions struct {
	Read  func(ctx context.Context, name string) (data []byte, version string, err error)
	Write func(ctx context.Context, name string, data []byte, version string) error
}

// ErrChanged is what Write returns where the version is another: HTTP 412 of S3, ConditionalCheckFailedException of
// DynamoDB.
var ErrChanged = errors.New("somebody else was faster")

func (f Functions) Load(ctx context.Context, key brokerauth.Key) ([]byte, error) {
	if err := errors.Join(ctx.Err(), key.Validate()); err != nil {
		return nil, err
	}
	data, _, err := f.Read(ctx, key.String())
	if err == nil && len(data) == 0 {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", key, err)
	}
	return data, nil
}

func (f Functions) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	if err := errors.Join(ctx.Err(), key.Validate()); err != nil {
		return false, err
	}
	data, version, err := f.Read(ctx, key.String())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("object %s: %w", key, err)
	}
	if len(data) > 0 != (old != nil) || !bytes.Equal(data, old) {
		return false, nil
	}
	err = f.Write(ctx, key.String(), new, version)
	if errors.Is(err, ErrChanged) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("object %s: %w", key, err)
	}
	return true, nil
}

// bucket stands for the backend of the example.
type bucket struct {
	mu      sync.Mutex
	objects map[string][]byte
	version map[string]int
}

func (b *bucket) read(ctx context.Context, name string) ([]byte, string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.version[name] == 0 {
		return nil, "", fs.ErrNotExist
	}
	return bytes.Clone(b.objects[name]), fmt.Sprint(b.version[name]), nil
}

func (b *bucket) write(ctx context.Context, name string, data []byte, version string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now := strings.TrimPrefix(fmt.Sprint(b.version[name]), "0"); now != version {
		return ErrChanged
	}
	b.objects[name], b.version[name] = bytes.Clone(data), b.version[name]+1
	return nil
}

// A store of two functions. Where the backend has no conditional write, as PutSecretValue of AWS
// Secrets Manager and PutParameter of SSM are none, Write has to leave the version out, and this is lost: two processes that renew at one
// moment both believe to have won, both ask the broker, and the later write replaces the earlier one. At a broker whose
// refresh tokens serve once that ends the login. Such a backend is fit for one writer at a time only, such as a Lambda
// function with a reserved concurrency of 1; all others may read.
func ExampleTestStore_functions() {
	b := &bucket{objects: map[string][]byte{}, version: map[string]int{}}
	store := Functions{Read: b.read, Write: b.write}

	ctx, key := context.Background(), brokerauth.Key{Provider: "schwab", Profile: "default"}
	fmt.Println(store.CompareAndSwap(ctx, key, nil, []byte("one")))
	fmt.Println(store.CompareAndSwap(ctx, key, nil, []byte("two")))
	record, err := store.Load(ctx, key)
	fmt.Println(string(record), err)
	// Output:
	// true <nil>
	// false <nil>
	// one <nil>
}
