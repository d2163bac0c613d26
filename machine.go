package brokerauth

import (
	"errors"
	"os"
	"syscall"
)

// dead reports whether no process of that number lives on this machine. A number that was taken again counts as alive.
func dead(pid int) bool {
	p, err := os.FindProcess(pid)
	if err != nil {
		return false
	}
	defer p.Release()
	err = p.Signal(syscall.Signal(0))
	return errors.Is(err, os.ErrProcessDone) || errors.Is(err, syscall.ESRCH) || zombie(pid)
}
