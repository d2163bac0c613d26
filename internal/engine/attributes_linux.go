package engine

import (
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// attributes has a server end with this process, however that ends, and run as somebody else than root: PostgreSQL
// refuses that.
func attributes() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if uid, gid, ok := servant(); ok {
		a.Credential = &syscall.Credential{Uid: uid, Gid: gid}
	}
	return a
}

func own(path string) error {
	if uid, gid, ok := servant(); ok {
		return os.Chown(path, int(uid), int(gid))
	}
	return nil
}

// servant is whom root's servers run as.
func servant() (uid, gid uint32, ok bool) {
	if os.Geteuid() != 0 {
		return 0, 0, false
	}
	for _, name := range []string{"postgres", "nobody"} {
		if u, err := user.Lookup(name); err == nil {
			uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
			gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
			if err1 == nil && err2 == nil {
				return uint32(uid), uint32(gid), true
			}
		}
	}
	return 0, 0, false
}
