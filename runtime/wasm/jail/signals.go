//go:build linux

package jail

import (
	"fmt"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ours are the signals that Go's runtime needs: faults, which are traps of the guest among others,
// its own, and those that a broken pipe and children bring. SIGKILL and SIGSTOP are nobody's.
var ours = []syscall.Signal{
	unix.SIGSEGV, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGTRAP, unix.SIGPROF, unix.SIGURG, unix.SIGPIPE, unix.SIGCHLD, unix.SIGKILL, unix.SIGSTOP,
}

// kernelAction is struct sigaction of the kernel (rt_sigaction(2)).
type kernelAction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// defaultSignals gives signals back their default actions (signal(7)), which end the process, by
// the kernel itself: Go's runtime swallows some of them, writes its stacks for others, and can do
// nothing at all while the guest computes on its only CPU. A guest has no handlers.
func defaultSignals(*Config) error {
	for sig := syscall.Signal(1); sig <= 64; sig++ {
		if slices.Contains(ours, sig) {
			continue
		}
		var action kernelAction
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, unsafe.Sizeof(action.mask), 0, 0)
		if errno != 0 {
			return fmt.Errorf("cannot reset signal %d: %w", int(sig), errno)
		}
	}
	return nil
}
