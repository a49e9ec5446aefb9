package engine

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/magikrun/magikpod/internal/cgroup"
	"github.com/magikrun/magikpod/internal/testhang"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/units"
)

// leftUnits are the units that systemd does not unload.
func (w *world) leftUnits(pattern string) string {
	w.t.Helper()
	for range 500 {
		list, err := w.units.List(w.t.Context(), pattern)
		if err != nil {
			w.t.Fatal(err)
		}
		if len(list) == 0 {
			return ""
		}
		time.Sleep(10 * time.Millisecond)
	}
	list, _ := w.units.List(w.t.Context(), pattern)
	return strings.Join(list, " ")
}

func freeze(t *testing.T, unit string) {
	t.Helper()
	if out, err := exec.Command("systemctl", "freeze", unit).CombinedOutput(); err != nil {
		t.Fatalf("systemctl freeze %s: %v: %s", unit, err, out)
	}
}

// TestFrozen: what is frozen ends as if it were not, by stop and delete, within its own grace
// period or another one, and also when another daemon does it.
func TestFrozen(t *testing.T) {
	onSystemd(t)
	w := newWorld(t, "", nil)
	p := w.pod("frozen", obeys, obeys)
	names := units.Names(p.Namespace, p.Name)
	a := units.ContainerService(p.Namespace, p.Name, "a")
	attempt := 0
	up := func() {
		t.Helper()
		w.create(p)
		for _, c := range p.Spec.Containers {
			w.run(p, c.Name, attempt)
			w.journal(p, c.Name, attempt+1) // the trap is set
		}
		attempt++
	}
	up()
	freeze(t, a)
	if c := w.state(p).Containers; !c["a"].Frozen || c["b"].Frozen {
		t.Errorf("%+v", c)
	}
	if _, err := w.Exec(t.Context(), pod.RefOf(p), "a", runtime.Process{Args: []string{"true"}}); pod.KindOf(err) != pod.Conflict || !strings.Contains(err.Error(), "frozen") {
		t.Errorf("exec: %v", err)
	}
	// Killed while it is frozen, it can be started again.
	if err := w.SignalContainer(t.Context(), pod.RefOf(p), "a", unixKILL); err != nil {
		t.Fatal(err)
	}
	if c := w.await(p, "a", pod.ContainerExited); c.Signal != 9 {
		t.Errorf("%+v", c)
	}
	w.run(p, "a", 1)
	attempt = 2
	w.journal(p, "a", 2)
	for _, grace := range []time.Duration{5 * time.Second, 4 * time.Second} {
		freeze(t, a)
		if err := w.StopContainer(t.Context(), pod.RefOf(p), "a", grace); err != nil {
			t.Fatal(err)
		}
		if c := w.state(p).Containers["a"]; c.Stage != pod.ContainerExited || c.ExitCode != 9 {
			t.Errorf("stopped in %s: %+v", grace, c)
		}
		w.run(p, "a", attempt)
		attempt++
		w.journal(p, "a", attempt)
	}
	for i, unit := range []string{a, names.Pause, names.Slice, "magikpod-native.slice", "magikpod.slice"} {
		freeze(t, unit)
		m := w.Manager
		if i%2 == 1 {
			m = w.manager(w.config) // a daemon that finds it frozen
			if err := m.Adopt(t.Context(), pod.RefOf(p)); err != nil {
				t.Fatal(err)
			}
		}
		state, err := m.DeleteSandbox(t.Context(), pod.RefOf(p), time.Duration(5-i%3)*time.Second)
		if err != nil {
			t.Fatalf("%s: %v", unit, err)
		}
		for _, c := range []string{"a", "b"} {
			if state.Containers[c].ExitCode != 9 {
				t.Errorf("%s: %+v", unit, state.Containers[c])
			}
		}
		if m != w.Manager {
			if _, err := w.DeleteSandbox(t.Context(), pod.RefOf(p), 0); err != nil {
				t.Error(err)
			}
		}
		if left := w.leftUnits("magikpod-native-frozen*.service"); left != "" {
			t.Errorf("%s: %s are left", unit, left)
		}
		attempt += 10
		w.create(p)
		for _, c := range p.Spec.Containers {
			w.run(p, c.Name, attempt)
		}
		time.Sleep(300 * time.Millisecond) // for the traps
	}
}

// TestProcessThatStays: while a process of a pod is left, the pod is not forgotten, and the error
// names it.
func TestProcessThatStays(t *testing.T) {
	onSystemd(t)
	w := newWorld(t, "", nil)
	p := w.pod("stays", "sleep 1000")
	w.up(p)
	dir, asked, release := testhang.Dir(t)
	cmd := exec.Command("/bin/sh", "-c", "read x <"+dir+"/file")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if asked.Load() {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	stray := filepath.Join(cgroup.Root(), units.SlicePath(units.Names(p.Namespace, p.Name).Slice), "stray")
	if err := os.Mkdir(stray, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(stray, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	_, err := w.DeleteSandbox(t.Context(), pod.RefOf(p), 0)
	if pod.KindOf(err) != pod.Unavailable || !strings.Contains(err.Error(), "process "+strconv.Itoa(cmd.Process.Pid)) || !strings.Contains(err.Error(), "hangs in the kernel") {
		t.Errorf("delete with a process that stays: %v", err)
	}
	if w.find(pod.RefOf(p)) == nil {
		t.Error("the pod was forgotten")
	}
	release()
	_ = cmd.Wait()
	if _, err := w.DeleteSandbox(t.Context(), pod.RefOf(p), 0); err != nil {
		t.Error(err)
	}
	_ = os.Remove(stray)
}
