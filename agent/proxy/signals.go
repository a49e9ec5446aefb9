package proxy

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/agent/client"
)

// signals are those of this process that are the container's.
type signals struct{ caught chan os.Signal }

// maxSignal is the greatest signal of Linux.
const maxSignal = 64

// catchSignals catches all that are passed on. These are not: SIGKILL and SIGSTOP, which cannot be caught; SIGURG, SIGCHLD and SIGPIPE, which Go's runtime
// and this process' own doings cause; 32 to 34, which Go keeps for C libraries (34 is SIGRTMIN, and ends the proxy, and so the container).
func catchSignals() *signals {
	s := &signals{caught: make(chan os.Signal, maxSignal)}
	signal.Ignore(unix.SIGPIPE)
	var list []os.Signal
	for number := unix.Signal(1); number <= maxSignal; number++ {
		switch number {
		case unix.SIGKILL, unix.SIGSTOP, unix.SIGURG, unix.SIGCHLD, unix.SIGPIPE, 32, 33, 34:
		default:
			list = append(list, number)
		}
	}
	signal.Notify(s.caught, list...)
	return s
}

// signalTimeout is how long the machine may take to accept one signal.
const signalTimeout = 10 * time.Second

// forward sends each caught signal to the container, in their order, until ctx ends.
func (s *signals) forward(ctx context.Context, c *client.Client, container string) {
	for {
		select {
		case <-ctx.Done():
			return
		case caught := <-s.caught:
			sending, cancel := context.WithTimeout(ctx, signalTimeout)
			// It fails when the container has ended or the machine has died: the session tells.
			_ = c.Signal(sending, container, caught.(syscall.Signal))
			cancel()
		}
	}
}

// die ends this process by a signal, as a container has ended, and leaves no core.
func die(sig unix.Signal) {
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // a core_pattern with a pipe does not look at the limit
	// os/signal does not give back the signals that Go's runtime turns into panics. All zero: SIG_DFL, no flags.
	var action [4]uint64
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
	_ = unix.Kill(unix.Getpid(), sig)
	time.Sleep(time.Second)
	os.Exit(128 + int(sig)) // a signal that kills nobody
}
