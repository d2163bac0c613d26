// Command writer swaps the record at a key for the next generation of it, in the disk store of the folder that its
// argument names, until it is killed. It prints the number of the generation that it found, and of each that is saved.
//
// It is a program of its own, and not the test binary, because a thousand of them are started and killed: without the
// test's packages, and without the race detector, that costs a quarter.
package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/storage/disk"
)

func main() {
	fmt.Fprintln(os.Stderr, write(os.Args[1]))
	os.Exit(1)
}

// write returns why it cannot go on.
func write(dir string) error {
	store, err := disk.New(dir)
	if err != nil {
		return err
	}
	ctx, key := context.Background(), brokerauth.Key{Provider: "schwab", Identity: "3fa8", Profile: "default"}
	old, err := store.Load(ctx, key)
	if err != nil {
		return err
	}
	n := 0
	if _, err := fmt.Sscan(string(old), &n); err != nil {
		return fmt.Errorf("this is no generation: %q", old)
	}
	for {
		fmt.Println(n)
		n++
		// The test knows what each generation looks like.
		new := fmt.Appendf(nil, "%d %s %d", n, strings.Repeat("x", 100*(n%40)), n)
		swapped, err := store.CompareAndSwap(ctx, key, old, new)
		if err != nil || !swapped {
			return fmt.Errorf("generation %d: %v, %v", n, swapped, err)
		}
		old = new
	}
}
