package engine

import (
	"testing"
	"time"

	"github.com/magikrun/magikpod/pod"
)

// TestLife takes a pod through its life.
func TestLife(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		p := w.pod("life", "trap 'exit 3' TERM; echo hello; hostname; while :; do sleep 0.1; done")
		w.up(p)
		state := w.state(p)
		c := state.Containers["a"]
		if state.Sandbox.Stage != pod.SandboxReady || c.Stage != pod.ContainerRunning || c.PID <= 1 || c.StartedAt.IsZero() || len(c.ID) != 64 || c.Attempt != 0 {
			t.Fatalf("%+v", state)
		}
		lines := w.journal(p, "a", 2)
		if len(lines) != 2 || lines[0] != "hello" || lines[1] != "life" {
			t.Errorf("journal: %q", lines)
		}
		begin := time.Now()
		last, err := w.DeleteSandbox(t.Context(), pod.RefOf(p), 5*time.Second)
		c = last.Containers["a"]
		if err != nil || last.Sandbox.Stage != pod.SandboxAbsent || c.Stage != pod.ContainerExited || c.ExitCode != 3 || c.Reason != pod.ReasonError || c.StoppedByAdmin {
			t.Fatalf("after %s: %+v, %v", time.Since(begin), last, err)
		}
		if took := time.Since(begin); took > 4*time.Second {
			t.Errorf("the stop took %s", took)
		}
	})
}

// TestShortContainers runs containers that end at once: the exit code of each must be known.
func TestShortContainers(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		attempts := 150
		if testing.Short() {
			attempts = 10
		}
		p := w.pod("short", "exit 7", "true")
		w.create(p)
		for attempt := range attempts {
			for name, code := range map[string]int{"a": 7, "b": 0} {
				w.run(p, name, attempt)
				c := w.await(p, name, pod.ContainerExited)
				if c.ExitCode != code || c.Signal != 0 || c.Attempt != attempt || c.StoppedByAdmin || c.FinishedAt.IsZero() {
					t.Fatalf("attempt %d: %+v, want exit code %d", attempt, c, code)
				}
			}
		}
	})
}
