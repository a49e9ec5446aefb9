// Package mounttree copies a part of the mount tree, and mounts the copy elsewhere: in a jail, or
// in the mount namespace of another process, on a path that a guest may have prepared.
package mounttree

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Tree is a copy of what is mounted at a path and below it, mounted nowhere yet. Close it.
type Tree struct {
	fd   int
	kind uint32 // of its root: S_IFDIR, ...
}

// Clone copies what is at source, a symlink's target; attributes (MOUNT_ATTR_* in mount_setattr(2))
// apply to all mounts of the copy, which is private.
func Clone(source string, attributes uint64) (*Tree, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.AT_RECURSIVE|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open_tree: %w", err)
	}
	t := &Tree{fd: fd}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		t.kind = st.Mode & unix.S_IFMT
		attr := unix.MountAttr{Attr_set: attributes, Propagation: unix.MS_PRIVATE}
		if err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
			err = fmt.Errorf("mount_setattr: %w", err)
		}
	}
	if err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// Path leads to the copy, in this process and in its children. It is not in /proc/self: before a
// child executes a program, os/exec may have put another file in the descriptor's place.
func (t *Tree) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), t.fd) }

// Close lets go of the copy. What is mounted stays.
func (t *Tree) Close() { unix.Close(t.fd) }

// MountAt mounts the copy at a path, which is made when it is missing.
func (t *Tree) MountAt(path string) error {
	point, err := mountPoint(path, t.kind)
	if err != nil {
		return err
	}
	defer unix.Close(point)
	if err := unix.MoveMount(t.fd, "", point, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// mountPoint makes an empty directory or file (kind is S_IFDIR, or anything else) unless there is
// one, and what leads to it, and opens it (O_PATH). The directory may be one that a guest writes
// to: what is there under the name may be a link that leads to the host's files, or a FIFO that
// nobody ever opens. Neither is followed or opened.
func mountPoint(path string, kind uint32) (int, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return -1, err
	}
	parent, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer unix.Close(parent)
	name := filepath.Base(path)
	if kind == unix.S_IFDIR {
		err = unix.Mkdirat(parent, name, 0o755)
	} else {
		kind = unix.S_IFREG
		var made int
		if made, err = unix.Openat(parent, name, unix.O_RDONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644); err == nil {
			unix.Close(made)
		}
	}
	if err != nil && err != unix.EEXIST {
		return -1, &os.PathError{Op: "create", Path: path, Err: err}
	}
	point, err := unix.Openat(parent, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err = unix.Fstat(point, &st); err == nil && st.Mode&unix.S_IFMT != kind {
		err = fmt.Errorf("%s is there already, and is something else", path)
	}
	if err != nil {
		unix.Close(point)
		return -1, err
	}
	return point, nil
}
