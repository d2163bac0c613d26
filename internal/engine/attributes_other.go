//go:build !linux

package engine

import (
	"syscall"
	"testing"
)

func attributes() *syscall.SysProcAttr { return nil }

func own(string) error { return nil }

// SmallDisk reports that no small file system can be mounted here.
func SmallDisk(testing.TB, *Server, int) (dir string, ok bool) { return "", false }
