package e2e

import (
	"os"
	"strings"
	"testing"
)

// TestVM runs the scripts that need a kernel of their own, with every cgroup controller (make test-vm).
func TestVM(t *testing.T) {
	inside(t)
	have, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"cpu", "io", "memory", "pids"} {
		switch {
		case strings.Contains(" "+strings.TrimSpace(string(have))+" ", " "+want+" "):
		case os.Getenv("MAGIKPOD_VM") != "":
			t.Fatalf("a test VM has only the controllers %s", have)
		default:
			t.Skipf("this host has no cgroup controller %q, because the computer below has not (try: make test-vm)", want)
		}
	}
	run(t, containers, "testdata/vm/*.txtar", true)
}
