package shim

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// HoldCommand is the argument with which magikshim is [Hold]; those after it are the cgroups.
const HoldCommand = "hold"

// Held is the line on standard output that says that all processes stand still.
const Held = "held"

// holdTimeout bounds how long processes may take to stand still: one in the kernel, as in a file system that does not answer, takes as long as that.
const holdTimeout = 10 * time.Second

// Hold freezes cgroups (version 2) until the end of standard input, which is that of who wants it: nobody's death leaves a container frozen. A cgroup that is gone is none to freeze.
// It returns the exit status.
func Hold(cgroups []string) int {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	defer func() {
		for _, cgroup := range cgroups {
			_ = freeze(cgroup, "0") // gone, then
		}
	}()
	if err := hold(cgroups, time.Now().Add(holdTimeout)); err != nil {
		os.Stderr.WriteString("magikshim hold: " + err.Error() + "\n")
		return ExitFailure
	}
	os.Stdout.WriteString(Held + "\n")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

func hold(cgroups []string, deadline time.Time) error {
	for _, cgroup := range cgroups {
		if err := freeze(cgroup, "1"); err != nil {
			return fmt.Errorf("cannot freeze: %w", err)
		}
	}
	for _, cgroup := range cgroups {
		for pause := 50 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
			events, err := os.ReadFile(cgroup + "/cgroup.events")
			if gone(err) || strings.Contains(string(events), "frozen 1\n") {
				break
			}
			if err != nil {
				return fmt.Errorf("cannot freeze: %w", err)
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("cannot freeze %s: it has processes that do not stand still", cgroup)
			}
			time.Sleep(pause)
		}
	}
	return nil
}

// freeze writes to cgroup.freeze ("Core Interface Files" in the kernel's cgroup-v2). A cgroup that is gone is fine.
func freeze(cgroup, value string) error {
	err := os.WriteFile(cgroup+"/cgroup.freeze", []byte(value), 0)
	if gone(err) {
		return nil
	}
	return err
}

func gone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) }
