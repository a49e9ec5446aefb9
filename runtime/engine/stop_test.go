package engine

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"

	"github.com/magikrun/magikpod/units"
)

// runs says whether a process with this command line exists.
func runs(cmdline string) bool {
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range paths {
		if data, err := os.ReadFile(path); err == nil && string(data) == cmdline {
			return true
		}
	}
	return false
}

const (
	obeys   = "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done"
	ignores = "trap '' TERM; echo up; while :; do sleep 0.05; done"
)

// TestStop checks the stop signal and both kinds of grace: the unit's own, and another one.
func TestStop(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		p := w.pod("stop", obeys, obeys, ignores, ignores, ignores)
		w.create(p)
		for name, tc := range map[string]struct {
			grace     time.Duration
			code      int
			low, high time.Duration
		}{
			"a": {5 * time.Second, 9, 0, 4 * time.Second},
			"b": {4 * time.Second, 9, 0, 3500 * time.Millisecond},
			"c": {5 * time.Second, 137, 4900 * time.Millisecond, time.Minute},
			"d": {time.Second, 137, 900 * time.Millisecond, 4500 * time.Millisecond},
			"e": {0, 137, 0, 4 * time.Second},
		} {
			w.run(p, name, 0)
			w.journal(p, name, 1) // the trap is set
			begin := time.Now()
			if err := w.StopContainer(t.Context(), pod.RefOf(p), name, tc.grace); err != nil {
				t.Fatal(err)
			}
			took := time.Since(begin)
			c := w.state(p).Containers[name]
			if c.Stage != pod.ContainerExited || c.ExitCode != tc.code || c.StoppedByAdmin || took < tc.low || took > tc.high {
				t.Errorf("%s: after %s %+v", name, took, c)
			}
			if err := w.StopContainer(t.Context(), pod.RefOf(p), name, 0); err != nil {
				t.Errorf("second stop: %v", err)
			}
		}
		w.run(p, "a", 1)
		if c := w.state(p).Containers["a"]; c.Stage != pod.ContainerRunning || c.Attempt != 1 {
			t.Errorf("%+v", c)
		}
	})
}

// TestDeleteByHand checks that a pod is deleted with another grace period than its own: all at
// once, but for the sidecar's order.
func TestDeleteByHand(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		p := w.pod("byhand", ignores, ignores, "trap 'exit 4' TERM; echo up; while :; do sleep 0.05; done")
		w.create(p)
		for _, name := range []string{"a", "b", "c"} {
			config := w.configOf(p, name, 0)
			if name == "c" {
				config.StopAfter = []string{"a"}
			}
			if err := w.RunContainer(t.Context(), config); err != nil {
				t.Fatal(err)
			}
			w.journal(p, name, 1)
		}
		begin := time.Now()
		state, err := w.DeleteSandbox(t.Context(), pod.RefOf(p), time.Second)
		if took := time.Since(begin); err != nil || took < 900*time.Millisecond || took > 4500*time.Millisecond {
			t.Errorf("after %s: %v", took, err)
		}
		for name, code := range map[string]int{"a": 137, "b": 137} {
			if c := state.Containers[name]; c.Stage != pod.ContainerExited || c.ExitCode != code {
				t.Errorf("%s: %+v", name, c)
			}
		}
		if again, err := w.DeleteSandbox(t.Context(), pod.RefOf(p), time.Second); err != nil || again.Sandbox.Stage != pod.SandboxAbsent {
			t.Errorf("again: %+v, %v", again, err)
		}
	})
}

// TestSignal checks that a signal reaches the first process.
func TestSignal(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		p := w.pod("signal", "trap 'echo got; exit 5' USR1; echo up; while :; do sleep 0.05; done")
		w.up(p)
		w.journal(p, "a", 1)
		if err := w.SignalContainer(t.Context(), pod.RefOf(p), "a", syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		if c := w.await(p, "a", pod.ContainerExited); c.ExitCode != 5 {
			t.Errorf("%+v", c)
		}
		for name, kind := range map[string]pod.Kind{"a": pod.Conflict, "x": pod.NotFound} {
			if err := w.SignalContainer(t.Context(), pod.RefOf(p), name, syscall.SIGUSR1); pod.KindOf(err) != kind {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// TestAdminStop checks that what an administrator does with systemctl is distinguished from what
// magikpod does.
func TestAdminStop(t *testing.T) {
	onSystemd(t)
	w := newWorld(t, "crun", nil)
	p := w.pod("admin", obeys, obeys)
	w.up(p)
	systemctl := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("systemctl", args...).CombinedOutput(); err != nil {
			t.Fatalf("systemctl %q: %v: %s", args, err, out)
		}
	}
	w.journal(p, "a", 1)
	systemctl("stop", units.ContainerService(p.Namespace, p.Name, "a"))
	if c := w.await(p, "a", pod.ContainerExited); !c.StoppedByAdmin || c.ExitCode != 9 {
		t.Errorf("%+v", c)
	}
	if s := w.state(p).Sandbox; s.Stage != pod.SandboxReady || s.StoppedByAdmin {
		t.Errorf("%+v", s)
	}
	systemctl("stop", units.Names(p.Namespace, p.Name).Slice)
	w.await(p, "b", pod.ContainerExited)
	for range 500 {
		if w.state(p).Sandbox.Stage == pod.SandboxDead {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if s := w.state(p).Sandbox; s.Stage != pod.SandboxDead || !s.StoppedByAdmin {
		t.Errorf("%+v", s)
	}
	// What is dead gives way.
	w.up(p)
	if s := w.state(p); s.Sandbox.Stage != pod.SandboxReady || s.Containers["b"].Stage != pod.ContainerRunning {
		t.Errorf("%+v", s)
	}
}

// TestPauseKilled checks that a dead pause process is a dead sandbox, and takes its containers along.
func TestPauseKilled(t *testing.T) {
	onSystemd(t)
	w := newWorld(t, "crun", nil)
	p := w.pod("paused", "sleep 1000")
	w.up(p)
	if err := w.units.Kill(t.Context(), units.Names(p.Namespace, p.Name).Pause, "main", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for range 500 {
		if w.state(p).Sandbox.Stage == pod.SandboxDead {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if s := w.state(p).Sandbox; s.Stage != pod.SandboxDead || s.StoppedByAdmin || s.Message == "" {
		t.Errorf("%+v", s)
	}
	if c := w.state(p).Containers["a"]; c.StoppedByAdmin {
		t.Errorf("%+v", c)
	}
}

// TestFaults makes each step fail in turn: nothing may be left, and the same call succeeds afterwards.
func TestFaults(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		broken := errors.New("broken by the test")
		var mu sync.Mutex // the pause unit is started behind
		var seen []string
		record := func(step string) error {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, step)
			return nil
		}
		steps := func() []string {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(seen)
		}
		breakAt := func(n int) func(string) error {
			var left atomic.Int64
			left.Store(int64(n))
			return func(step string) error {
				if left.Add(-1) != -1 {
					return nil
				}
				_ = record(step)
				return broken
			}
		}
		p := w.pod("faults", "sleep 1000")
		ref := pod.RefOf(p)
		calls := map[string]func() error{
			"create": func() error { return w.CreateSandbox(context.Background(), w.sandboxOf(p)) },
			"run":    func() error { return w.RunContainer(context.Background(), w.configOf(p, "a", 0)) },
			"delete": func() error { _, err := w.DeleteSandbox(context.Background(), ref, 0); return err },
			"forget": func() error { return w.Forget(context.Background(), ref) },
		}
		for _, name := range []string{"create", "run", "delete", "forget"} {
			call := calls[name]
			for n := 0; ; n++ {
				mu.Lock()
				seen = nil
				mu.Unlock()
				w.faults.set(breakAt(n))
				err := call()
				if err == nil {
					break
				}
				if !errors.Is(err, broken) {
					t.Fatalf("%s, step %d %q: %v", name, n, steps(), err)
				}
				w.faults.set(record)
				switch name {
				case "create":
					if left := w.leftovers(); left != "" {
						t.Fatalf("step %q: something is left:\n%s", steps(), left)
					}
				case "run":
					if list, err := w.units.List(t.Context(), units.ContainerService(p.Namespace, p.Name, "a")); err != nil || len(list) > 0 {
						t.Errorf("step %q: units %v are left (%v)", steps(), list, err)
					}
					state := w.state(p)
					if c, ok := state.Containers["a"]; ok && c.Reason != pod.ReasonStartError || runs("sleep\x001000\x00") {
						t.Errorf("step %q: %+v", steps(), c)
					}
					if err := w.RunContainer(t.Context(), w.configOf(p, "a", 0)); state.Containers["a"].Stage == "" && err != nil {
						t.Errorf("step %q: again: %v", steps(), err)
					}
					if err := w.StopContainer(t.Context(), ref, "a", 0); err != nil {
						t.Error(err)
					}
					reset(t, w, p)
				}
			}
			w.faults.set(nil)
		}
	})
}

// reset brings a pod back to where it has a sandbox and no attempt was made.
func reset(t *testing.T, w *world, p *corev1.Pod) {
	t.Helper()
	w.faults.set(nil)
	if _, err := w.DeleteSandbox(t.Context(), pod.RefOf(p), 0); err != nil {
		t.Fatal(err)
	}
	w.create(p)
}
