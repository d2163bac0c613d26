//go:build unix

package brokerauth_test

import (
	"syscall"
	"testing"
)

const canStop = true

func stopProcess(t *testing.T, p *process) {
	t.Helper()
	must(t, p.Process.Signal(syscall.SIGSTOP))
}

func continueProcess(t *testing.T, p *process) {
	t.Helper()
	must(t, p.Process.Signal(syscall.SIGCONT))
}
