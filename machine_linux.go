package brokerauth

import (
	"bytes"
	"fmt"
	"os"
)

// machine identifies the set of processes that this one can see: this boot and this PID namespace, which containers
// of one host name do not share. Empty: unknown.
func machine() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	space, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return ""
	}
	return fingerprint(string(boot) + space)
}

// zombie reports whether the process is dead but not yet waited for: it still takes signals.
func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// The state follows the program's name, which stands in brackets and may hold any character.
	return bytes.HasPrefix(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" Z"))
}
