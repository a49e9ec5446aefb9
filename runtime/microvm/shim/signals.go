package shim

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/runtime/microvm/client"
)

// signals are those of this process that are the container's.
type signals struct{ caught chan os.Signal }

// maxSignal is the greatest signal of Linux.
const maxSignal = 64

// catchSignals catches all that are passed on. These are not: SIGKILL and SIGSTOP, which cannot be
// caught; SIGURG and SIGPIPE, which Go's runtime and this process' own doings cause, and which
// cannot be distinguished from those that somebody sends.
func catchSignals() (*signals, error) {
	s := &signals{caught: make(chan os.Signal, maxSignal)}
	signal.Ignore(unix.SIGPIPE)
	list := make([]os.Signal, 0, maxSignal)
	for number := unix.Signal(1); number <= maxSignal; number++ {
		if Passed(number) && !slices.Contains(reserved, number) {
			list = append(list, number)
		}
	}
	signal.Notify(s.caught, list...)
	more, err := catchReserved()
	if err != nil {
		return nil, err
	}
	go s.pass(more)
	return s, nil
}

// Passed says whether the proxy passes a signal on to its container.
func Passed(sig syscall.Signal) bool {
	switch sig {
	case unix.SIGKILL, unix.SIGSTOP, unix.SIGURG, unix.SIGPIPE:
		return false
	}
	return sig >= 1 && sig <= maxSignal
}

// pass adds the signals whose numbers come from a pipe, for as long as the process lives.
func (s *signals) pass(from *os.File) {
	buffer := make([]byte, maxSignal)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return // a pipe that nobody closes has no end
		}
		for _, number := range buffer[:n] {
			s.caught <- unix.Signal(number)
		}
	}
}

// signalTimeout is how long the VM may take to accept one signal.
const signalTimeout = 10 * time.Second

// forward sends each caught signal to the container, in their order, until ctx ends. A later
// attempt at it gets none of them.
func (s *signals) forward(ctx context.Context, c *client.Client, container, id string) {
	for {
		select {
		case <-ctx.Done():
			return
		case caught := <-s.caught:
			sending, cancel := context.WithTimeout(ctx, signalTimeout)
			// It fails when the container has ended or the VM has died: the session reports it.
			_ = c.Signal(sending, container, id, caught.(syscall.Signal))
			cancel()
		}
	}
}

// die ends this process by a signal, as a container has ended, and leaves no core.
func die(sig unix.Signal) {
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // a core_pattern with a pipe does not look at the limit
	// os/signal gives back neither the signals that Go's runtime turns into panics nor the reserved
	// ones.
	_ = setAction(sig, &sigaction{})
	_ = unix.Kill(unix.Getpid(), sig)
	time.Sleep(time.Second)
	os.Exit(128 + int(sig)) // a signal that kills nobody
}
