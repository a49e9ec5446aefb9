package volume

import (
	"io/fs"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/pod"
)

// checkInMemory makes the directory dir, unless it is there, and checks that its file system is in
// memory: secrets must never reach a disk.
func checkInMemory(dir string, undo *revert) error {
	if err := undo.mkdirAll(dir); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	if st.Type != unix.TMPFS_MAGIC && st.Type != unix.RAMFS_MAGIC {
		return pod.Errorf(pod.Unsupported, "%s is not on a tmpfs, and a Secret must not be written to a disk", dir)
	}
	return nil
}

// groupOf returns the group that owns a file.
func groupOf(info fs.FileInfo) (int64, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int64(st.Gid), true
}
