// Package testns runs a package's tests in a mount namespace of their own, so that what they mount
// is never seen by the host and is gone when they end, however they end. It is imported by tests
// only.
package testns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inside marks the process that is in its namespace already; fuzz workers inherit it.
const inside = "MAGIKPOD_TEST_MOUNTNS"

// Main is what a TestMain calls: it starts the test binary again in a new, private mount namespace.
// Without root the tests run where they are, and those that call [Mount] are skipped.
func Main(m *testing.M) {
	switch {
	case os.Geteuid() != 0:
		os.Exit(m.Run())
	case os.Getenv(inside) != "":
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			fmt.Fprintln(os.Stderr, "cannot make mounts private:", err)
			os.Exit(2)
		}
		os.Exit(m.Run())
	}
	os.Exit(again())
}

// again runs this binary in a new mount namespace and returns its exit status.
func again() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	// Signals of the terminal and of go test reach the child too, or are passed on.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "cannot start the tests in a mount namespace:", err)
		return 2
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err := cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if code := exit.ExitCode(); code >= 0 {
			return code
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests in a mount namespace:", err)
		return 2
	}
	return 0
}

// Mount mounts a tmpfs with the options on a new directory and returns it. It is unmounted at the
// end of the test.
func Mount(t testing.TB, options string) string {
	t.Helper()
	NeedRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatalf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// NeedRoot skips a test that is not run by root in a namespace of its own.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Getenv(inside) == "" || os.Geteuid() != 0 {
		t.Skip("needs root and a private mount namespace: run the tests as root")
	}
}
