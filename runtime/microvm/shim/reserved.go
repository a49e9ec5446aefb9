package shim

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reserved are the signals that os/signal never delivers: Go's runtime leaves them to C libraries,
// which a static program has none of. The last one is SIGRTMIN.
var reserved = []unix.Signal{32, 33, 34}

// sink is where onSignal writes the number of each reserved signal, one byte.
var sink int32

// handlers returns the addresses of onSignal and, where the kernel needs one, of what ends a
// handler (0 elsewhere).
func handlers() (handler, restorer uintptr)

// The flags of sigaction(2) that are needed, the same on all of Linux. Go runs on stacks that are
// too small for a signal.
const (
	flagRestorer = 0x04000000 // SA_RESTORER
	flagOnStack  = 0x08000000 // SA_ONSTACK
	flagRestart  = 0x10000000 // SA_RESTART
)

// sigaction is what rt_sigaction(2) takes, on amd64 and arm64.
type sigaction struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

// setAction sets what a signal does.
func setAction(sig unix.Signal, action *sigaction) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(action)), 0, unsafe.Sizeof(action.mask), 0, 0)
	if errno != 0 {
		return fmt.Errorf("cannot catch signal %d: %w", int(sig), errno)
	}
	return nil
}

// catchReserved makes the kernel write the reserved signals to the returned pipe, one byte each. It
// is never closed: a process has one.
func catchReserved() (*os.File, error) {
	var fds [2]int
	// Nobody waits in a handler: signals beyond what a pipe has room for are lost, as those are
	// that the kernel has no room for.
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("cannot catch signals: %w", err)
	}
	sink = int32(fds[1])
	action := sigaction{flags: flagOnStack | flagRestart, mask: ^uint64(0)}
	action.handler, action.restorer = handlers()
	if action.restorer != 0 {
		action.flags |= flagRestorer
	}
	var errs []error
	for _, sig := range reserved {
		errs = append(errs, setAction(sig, &action))
	}
	return os.NewFile(uintptr(fds[0]), "signals"), errors.Join(errs...)
}
