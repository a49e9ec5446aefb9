// Package confine has what jails are made with: magikwasm's, magikvmm's, and that of a pod's first
// process.
package confine

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// EnterRoot makes the current directory, which is a mount point, the root of all processes in this
// thread's mount namespace, and takes the old root away. Its mounts must be private or slave.
func EnterRoot() error {
	// pivot_root(2): with the same directory twice the old root lies over the new one, and is
	// removed from there.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("cannot enter the root file system: pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("cannot leave the host's file system: %w", err)
	}
	return unix.Chdir("/")
}

// LoadFilter filters the system calls of the calling thread, of what it executes and of its
// children, for good; with the flag SECCOMP_FILTER_FLAG_TSYNC those of all threads (seccomp(2)).
// Without CAP_SYS_ADMIN it needs no_new_privs.
func LoadFilter(filter []unix.SockFilter, flags uintptr) error {
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
	switch {
	case errno != 0:
		return fmt.Errorf("seccomp: %w", errno)
	case thread != 0:
		return fmt.Errorf("seccomp: thread %d cannot be filtered", thread)
	}
	return nil
}
