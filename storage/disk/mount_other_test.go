//go:build unix && !linux

package disk_test

import "testing"

func mountTmpfs(t *testing.T, dir, options string) {
	t.Skip("root may write everywhere, and this test mounts on Linux only")
}

func remountReadOnly(t *testing.T, dir string) {}
