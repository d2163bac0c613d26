//go:build darwin || linux

package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// hush has the terminal show nothing of what is typed.
func hush(f *os.File) error {
	state, err := unix.IoctlGetTermios(int(f.Fd()), getTermios)
	if err != nil {
		return err
	}
	state.Lflag &^= unix.ECHO
	return unix.IoctlSetTermios(int(f.Fd()), setTermios, state)
}
