//go:build unix

package flows

import (
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// openTerminal opens the controlling terminal.
func openTerminal() (*input, error) {
	fd, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	t := &terminal{fd: fd, stop: int(r.Fd())}
	in := &input{
		Reader: t, terminal: true,
		interrupt: func() { w.Close() },
		done: func() {
			w.Close()
			r.Close()
			unix.Close(fd)
		},
	}
	if max(t.fd, t.stop) >= unix.FD_SETSIZE {
		in.close()
		return nil, errors.New("too many open files to watch the terminal")
	}
	return in, nil
}

// terminal reads the terminal until stop becomes readable.
// It asks select, as deadlines and poll do not work on /dev/tty everywhere: macOS is the exception.
type terminal struct{ fd, stop int }

func (t *terminal) Read(p []byte) (int, error) {
	for {
		var set unix.FdSet
		set.Set(t.stop)
		set.Set(t.fd)
		_, err := unix.Select(max(t.fd, t.stop)+1, &set, nil, nil, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case set.IsSet(t.stop):
			return 0, os.ErrClosed
		}
		if front, err := unix.IoctlGetInt(t.fd, unix.TIOCGPGRP); err == nil && front != unix.Getpgrp() {
			// This program is in the background: the line is for another, and reading it would stop this one.
			set.Zero()
			set.Set(t.stop)
			pause := unix.NsecToTimeval(int64(200 * time.Millisecond))
			unix.Select(t.stop+1, &set, nil, nil, &pause)
			continue
		}
		switch n, err := unix.Read(t.fd, p); {
		case err == unix.EAGAIN || err == unix.EINTR:
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// detach takes the terminal away from a child, so that a text browser cannot have it and Ctrl-C does not end a browser.
func detach() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }
