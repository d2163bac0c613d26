package disk

import "golang.org/x/sys/unix"

// networkFS names the network file system that dir is on; empty: it is on none. FUSE counts as one: it may be sshfs or
// a disk of this host, and the kernel does not say.
func networkFS(dir string) (string, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return "", err
	}
	switch uint32(stat.Type) { // its width and sign differ by architecture
	case unix.NFS_SUPER_MAGIC:
		return "NFS", nil
	case unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC:
		return "SMB", nil
	case unix.FUSE_SUPER_MAGIC:
		return "FUSE, such as sshfs", nil
	case unix.V9FS_MAGIC:
		return "9P", nil
	case unix.AFS_SUPER_MAGIC, unix.AFS_FS_MAGIC:
		return "AFS", nil
	case unix.CEPH_SUPER_MAGIC:
		return "Ceph", nil
	case unix.CODA_SUPER_MAGIC:
		return "Coda", nil
	case unix.NCP_SUPER_MAGIC:
		return "NCP", nil
	case unix.OCFS2_SUPER_MAGIC:
		return "OCFS2", nil
	case 0x0bd00bd0:
		return "Lustre", nil
	}
	return "", nil
}
