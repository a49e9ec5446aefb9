package ownthread

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRun: what a function does to its thread is not seen by others, its error comes back, and it
// is never on the main thread.
func TestRun(t *testing.T) {
	own := errors.New("own")
	before, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		err := Run(func() error {
			if unix.Gettid() == unix.Getpid() {
				t.Error("it runs on the main thread")
			}
			return errors.Join(unix.Unshare(unix.CLONE_FS), unix.Chdir("/proc"), own)
		})
		if !errors.Is(err, own) {
			t.Fatalf("got %v, want the function's error", err)
		}
	}
	if after, err := unix.Getwd(); err != nil || after != before {
		t.Errorf("the working directory is %s, %v; it was %s", after, err, before)
	}
}
