package main

import (
	"context"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// taken waits until all that was written to a pipe has been read, but for 15 seconds at the most: the claim that keeps others
// from refreshing the login meanwhile is void after 25. It is an error that whoever should have read it has ended.
func taken(ctx context.Context, pipe *os.File) error {
	fd := int(pipe.Fd())
	for began := time.Now(); time.Since(began) < 15*time.Second; {
		if n, err := unix.IoctlGetUint32(fd, unix.TIOCINQ); err != nil || n == 0 {
			return nil
		}
		ends := []unix.PollFd{{Fd: int32(fd)}}
		if _, err := unix.Poll(ends, 10); err == nil && ends[0].Revents&unix.POLLERR != 0 {
			return &os.PathError{Op: "write", Path: pipe.Name(), Err: syscall.EPIPE}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil // it waits for a person, perhaps
}
