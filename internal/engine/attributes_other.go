//go:build !linux

package engine

import "syscall"

func attributes() *syscall.SysProcAttr { return nil }

func own(string) error { return nil }
