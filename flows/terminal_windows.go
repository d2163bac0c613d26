package flows

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// openTerminal opens the console.
func openTerminal() (*input, error) {
	f, err := os.OpenFile("CONIN$", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &input{Reader: f, terminal: true, interrupt: func() { pressEnter(f) }, done: func() { f.Close() }}, nil
}

// pressEnter ends a read of the console, which nothing else can: closing it waits for the read.
func pressEnter(console *os.File) {
	type keyEvent struct { // INPUT_RECORD with a KEY_EVENT_RECORD
		eventType  uint16
		_          uint16
		keyDown    int32
		repeat     uint16
		virtualKey uint16
		scanCode   uint16
		char       uint16
		state      uint32
	}
	enter := keyEvent{eventType: 1, keyDown: 1, repeat: 1, virtualKey: 0x0D, scanCode: 0x1C, char: '\r'}
	var written uint32
	windows.NewLazySystemDLL("kernel32.dll").NewProc("WriteConsoleInputW").Call(
		console.Fd(), uintptr(unsafe.Pointer(&enter)), 1, uintptr(unsafe.Pointer(&written)))
}

// detach keeps a child from the console.
func detach() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: windows.DETACHED_PROCESS}
}
