// Package testutil has what the tests of several packages share. It is imported by tests only.
package testutil

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/magikrun/magikpod/tests/host"
)

// Eventually waits for something that comes true in the end; what says what that is.
func Eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	patience := host.Patience(30 * time.Second)
	for deadline := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// Must ends the test when a step of it that has to work fails.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("a step of the test that must work has failed: %v", err)
	}
}

// OpenFiles counts the open files of this process.
func OpenFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatalf("cannot list the open files of this process: %v", err)
	}
	return len(entries)
}

// WriteFiles makes a directory with files in it, given by their names, such as one that looks like
// a cgroup.
func WriteFiles(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	Must(t, os.MkdirAll(dir, 0o755))
	for name, text := range files {
		Must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
}
