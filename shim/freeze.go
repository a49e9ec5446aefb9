package shim

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/cgroup"
)

// FreezeCommand is the argument with which magikshim is [Freeze]; those after it are its own.
const FreezeCommand = "freeze"

// Frozen is the line on standard output that says that all processes are frozen.
const Frozen = "frozen"

// freezeTimeout bounds how long processes may take to freeze: one in the kernel, as in a file
// system that does not answer, takes as long as that.
const freezeTimeout = 10 * time.Second

// orphanTime is how long they stay frozen after the death of who wanted it: what enters meanwhile
// is another's child, and goes on.
const orphanTime = 5 * time.Second

// Freeze freezes cgroups (version 2) until it reads something on standard input, or, when that ends
// as who wants it has died, for a while: nobody's death leaves a container frozen, and none lets it
// look. A cgroup that is gone is none to freeze. Only one at a time has the lock of dir, any
// directory, so that none thaws what another one needs. It returns the exit status.
func Freeze(dir string, cgroups []string) int {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	deadline := time.Now().Add(freezeTimeout)
	lock, err := lockDir(dir, deadline)
	if err != nil {
		Complain("magikshim freeze", "", err)
		return ExitFailure
	}
	defer lock.Close()
	defer func() {
		for _, dir := range cgroups {
			_ = cgroup.SetFrozen(dir, false)
		}
	}()
	if err := freeze(cgroups, deadline); err != nil {
		Complain("magikshim freeze", "", err)
		return ExitFailure
	}
	os.Stdout.WriteString(Frozen + "\n")
	if n, _ := os.Stdin.Read(make([]byte, 1)); n == 0 {
		time.Sleep(orphanTime)
	}
	return 0
}

// lockDir waits for flock(2) of a directory.
func lockDir(dir string, deadline time.Time) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot lock: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(deadline) {
			f.Close()
			return nil, fmt.Errorf("cannot lock %s: %w", dir, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func freeze(cgroups []string, deadline time.Time) error {
	for _, dir := range cgroups {
		if err := cgroup.SetFrozen(dir, true); err != nil {
			return fmt.Errorf("cannot freeze: %w", err)
		}
	}
	for _, dir := range cgroups {
		for pause := 50 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
			frozen, err := cgroup.Event(dir, "frozen")
			if err != nil {
				return fmt.Errorf("cannot freeze: %w", err)
			}
			if frozen != "0" {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("cannot freeze %s: it has processes that do not freeze", dir)
			}
			time.Sleep(pause)
		}
	}
	return nil
}
