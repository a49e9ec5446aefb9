package shim

import (
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// TestReapAttached: a process with CAP_SYS_PTRACE can make the first process do what it likes, and
// that is nothing.
func TestReapAttached(t *testing.T) {
	first := startFirst(t)
	waitForComm(t, strconv.Itoa(first), "magikshim") // its first instructions are over
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	step := func(err error) {
		t.Helper()
		if err == nil {
			_, err = unix.Wait4(first, nil, unix.WALL, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	step(unix.PtraceAttach(first))
	var before unix.PtraceRegs
	if err := unix.PtraceGetRegs(first, &before); err != nil {
		t.Fatal(err)
	}
	inject := func(number uintptr, arguments ...uint64) int64 {
		t.Helper()
		regs := before
		regs.Orig_rax, regs.Rax, regs.Rip = ^uint64(0), uint64(number), reapEntry+12 // an instruction syscall
		for i, argument := range []*uint64{&regs.Rdi, &regs.Rsi, &regs.Rdx, &regs.R10, &regs.R8} {
			*argument = 0
			if i < len(arguments) {
				*argument = arguments[i]
			}
		}
		if err := unix.PtraceSetRegs(first, &regs); err != nil {
			t.Fatal(err)
		}
		step(unix.PtraceSingleStep(first))
		if err := unix.PtraceGetRegs(first, &regs); err != nil {
			t.Fatal(err)
		}
		return int64(regs.Rax)
	}
	if got := inject(unix.SYS_PRCTL, unix.PR_SET_NAME, reapName); got != 0 {
		t.Errorf("prctl returns %d: the injection does not work", got)
	}
	for name, call := range map[string][]uint64{
		"read": {unix.SYS_READ}, "write": {unix.SYS_WRITE, 1}, "openat": {unix.SYS_OPENAT}, "open_by_handle_at": {unix.SYS_OPEN_BY_HANDLE_AT}, "socket": {unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM},
		"mount": {unix.SYS_MOUNT}, "setns": {unix.SYS_SETNS}, "unshare": {unix.SYS_UNSHARE}, "execve": {unix.SYS_EXECVE}, "execveat": {unix.SYS_EXECVEAT, ^uint64(99), reapName}, "clone": {unix.SYS_CLONE, uint64(unix.SIGCHLD)},
		"fork": {unix.SYS_FORK}, "memfd_create": {unix.SYS_MEMFD_CREATE, reapName}, "ptrace": {unix.SYS_PTRACE}, "pidfd_open": {unix.SYS_PIDFD_OPEN, 1}, "pidfd_getfd": {unix.SYS_PIDFD_GETFD},
		"prctl of another kind": {unix.SYS_PRCTL, unix.PR_GET_NAME}, "keyctl": {unix.SYS_KEYCTL}, "mmap": {unix.SYS_MMAP, 0, 4096}, "setuid": {unix.SYS_SETUID}, "capset": {unix.SYS_CAPSET}, "exit_group": {unix.SYS_EXIT_GROUP},
		"io_uring_setup": {unix.SYS_IO_URING_SETUP}, "openat of x32": {1<<30 + unix.SYS_OPENAT},
	} {
		if got := inject(uintptr(call[0]), call[1:]...); got != -int64(unix.EPERM) {
			t.Errorf("%s returns %d, want it to be refused", name, got)
		}
	}
	if err := unix.PtraceSetRegs(first, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.PtraceDetach(first); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(first, 0); err != nil {
		t.Error(err)
	}
}
