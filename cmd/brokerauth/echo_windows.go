package main

import (
	"os"

	"golang.org/x/sys/windows"
)

// hush has the terminal show nothing of what is typed.
func hush(f *os.File) error {
	var mode uint32
	if err := windows.GetConsoleMode(windows.Handle(f.Fd()), &mode); err != nil {
		return err
	}
	return windows.SetConsoleMode(windows.Handle(f.Fd()), mode&^windows.ENABLE_ECHO_INPUT)
}
