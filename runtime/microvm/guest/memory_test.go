package guest_test

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/magikrun/magikpod/internal/guesttest"
	"github.com/magikrun/magikpod/runtime/microvm/client"
)

// TestMemory: what the agent takes of a VM's memory beside its program is bounded, also after much
// has gone through it.
func TestMemory(t *testing.T) {
	m := guesttest.Start(t)
	first := privateMiB(t, m.PID)
	session := m.Run(t, guesttest.Container(t, "a", nil, "/bin/sh", "-c", "yes | head -c 30000000"))
	var output bytes.Buffer
	if exit, err := session.Run(t.Context(), client.IO{Stdout: &output}); err != nil || exit.Code != 0 || output.Len() != 30000000 {
		t.Fatalf("%+v, %v, %d bytes", exit, err, output.Len())
	}
	last := privateMiB(t, m.PID)
	t.Logf("private memory of the agent: %.1f MiB at first, %.1f MiB after a container that has written 30 MB", first, last)
	if !raceDetector && (first > 12 || last > 24) {
		t.Errorf("private memory of the agent: %.1f MiB at first, %.1f MiB after a container that has written 30 MB", first, last)
	}
}

// privateMiB is the memory that is a process' own and has been written to (proc_pid_smaps(5)): its
// heap, its stacks and its variables.
func privateMiB(t *testing.T, pid int) float64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(data), "Private_Dirty:")
	var kib float64
	if _, err := fmt.Sscanf(text, "%f kB", &kib); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
	return kib / 1024
}
