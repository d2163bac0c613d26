//go:build unix

package main

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
)

// asGroup has what cmd starts end with it when its context does; and a terminal's interrupt, which is for this program, not
// reach it.
func asGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if errors.Is(err, syscall.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
}
