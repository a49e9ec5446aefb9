package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/shim"
	"github.com/magikrun/magikpod/units"
)

// successor makes the manager of the next daemon, which has adopted nothing, the world's.
func (w *world) successor() {
	w.t.Helper()
	config := w.config
	w.Close()
	_ = config.Units.Close() // a test may have done so
	w.Manager = w.manager(config)
}

// wantAlive fails when the process of a container is another one, or none.
func (w *world) wantAlive(p *corev1.Pod, name string, pid int) {
	w.t.Helper()
	state, err := w.units.Refresh(context.Background(), units.ContainerService(p.Namespace, p.Name, name))
	if err != nil || state.MainPID != pid || syscall.Kill(pid, 0) != nil {
		w.t.Errorf("container %s: %+v, %v; its process was %d", name, state, err, pid)
	}
}

// TestAdoptCut checks an adoption that is cut short: nobody takes the pod for absent, and nothing
// is done to it.
func TestAdoptCut(t *testing.T) {
	onSystemd(t)
	w := newWorld(t, "crun", nil)
	p := w.pod("cut", obeys)
	w.up(p)
	ref, pid := pod.RefOf(p), w.state(p).Containers["a"].PID
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	w.successor()
	if err := w.Adopt(ended, ref); pod.KindOf(err) != pod.Unavailable || !errors.Is(err, context.Canceled) {
		t.Errorf("adopt: %v", err)
	}
	if state, err := w.Observe(t.Context(), ref); pod.KindOf(err) != pod.Unavailable {
		t.Errorf("observed: %+v, %v", state, err)
	}
	if err := w.CreateSandbox(ended, w.sandboxOf(p)); pod.KindOf(err) != pod.Unavailable {
		t.Errorf("create: %v", err)
	}
	if _, err := w.DeleteSandbox(ended, ref, 0); pod.KindOf(err) != pod.Unavailable {
		t.Errorf("delete: %v", err)
	}
	w.wantAlive(p, "a", pid)
	if err := w.Adopt(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if s := w.state(p); s.Sandbox.Stage != pod.SandboxReady || s.Containers["a"].PID != pid {
		t.Errorf("%+v", s)
	}
}

// TestConnectionLost checks a manager that has lost systemd: it knows nothing any more, says so,
// and lets a container be that was just being started.
func TestConnectionLost(t *testing.T) {
	onSystemd(t)
	var w *world
	var losing atomic.Bool
	w = newWorld(t, "crun", func(step string) error {
		if !losing.Load() || step != "wait for container" {
			return nil
		}
		for range 1000 { // it has just come up
			if state, _ := w.units.State(units.ContainerService("native", "lost", "b")); state.StatusText == shim.StatusStarted {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		return errors.Join(w.config.Units.Close(), errors.New("no answer"))
	})
	p := w.pod("lost", obeys, obeys)
	w.create(p)
	w.run(p, "a", 0)
	ref, pid := pod.RefOf(p), w.state(p).Containers["a"].PID
	losing.Store(true)
	if err := w.RunContainer(t.Context(), w.configOf(p, "b", 0)); pod.KindOf(err) != pod.Unavailable {
		t.Errorf("run: %v", err)
	}
	if state, err := w.Observe(t.Context(), ref); pod.KindOf(err) != pod.Unavailable {
		t.Errorf("observed: %+v, %v", state, err)
	}
	if _, err := w.DeleteSandbox(t.Context(), ref, 0); pod.KindOf(err) != pod.Unavailable {
		t.Errorf("delete: %v", err)
	}
	losing.Store(false)
	w.successor()
	if err := w.Adopt(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	w.wantAlive(p, "a", pid)
	if c := w.await(p, "b", pod.ContainerRunning); c.Attempt != 0 {
		t.Errorf("%+v", c)
	}
}

// TestDamaged checks pods that run while what was noted of them is damaged or lost: nobody takes
// them for absent, and they can be deleted.
func TestDamaged(t *testing.T) {
	onSystemd(t)
	for name, damage := range map[string]func(dir string) error{
		"sandbox": func(dir string) error { return os.WriteFile(filepath.Join(dir, sandboxName), []byte("{]"), 0o600) },
		"no record": func(dir string) error {
			return os.Remove(filepath.Join(dir, sandboxName))
		},
		"attempt": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, containersName, "a", attemptName), []byte(`{"container":"b"}`), 0o600)
		},
		"FIFO": func(dir string) error {
			path := filepath.Join(dir, sandboxName)
			return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "crun", nil)
			p := w.pod("damaged", obeys, "exit 3")
			w.up(p)
			w.await(p, "b", pod.ContainerExited) // a failed unit stays until somebody forgets it
			ref, pid := pod.RefOf(p), w.state(p).Containers["a"].PID
			if got, err := w.Named(ref.UID); err != nil || got != ref {
				t.Errorf("its name: %v, %v", got, err)
			}
			if err := damage(w.runDir(p.UID)); err != nil {
				t.Fatal(err)
			}
			w.successor()
			for range 2 {
				if err := w.Adopt(t.Context(), ref); !errors.Is(err, errDamaged) || pod.KindOf(err) != pod.Conflict {
					t.Errorf("adopt: %v", err)
				}
			}
			if state, err := w.Observe(t.Context(), ref); !errors.Is(err, errDamaged) {
				t.Errorf("observed: %+v, %v", state, err)
			}
			if err := w.CreateSandbox(t.Context(), w.sandboxOf(p)); err == nil {
				t.Error("a second sandbox")
			}
			w.wantAlive(p, "a", pid)
			if _, err := w.DeleteSandbox(t.Context(), ref, 0); err != nil {
				t.Fatal(err)
			}
			if state, err := w.Observe(t.Context(), ref); err != nil || state.Sandbox.Stage != pod.SandboxAbsent {
				t.Errorf("observed: %+v, %v", state, err)
			}
			if name != "attempt" {
				return
			}
			if err := removeAll(filepath.Join(w.config.RunDir, "runtime", w.oci)); err != nil { // nobody knows the ID any more
				t.Error(err)
			}
		})
	}
}

// TestNameTaken checks a pod whose name is that of units which no pod has: they are not touched,
// and the error says what they are.
func TestNameTaken(t *testing.T) {
	onSystemd(t)
	w := newWorld(t, "crun", nil)
	p, second := w.pod("taken", obeys), w.pod("taken", obeys)
	w.up(p)
	pid := w.state(p).Containers["a"].PID
	w.successor()
	err := w.CreateSandbox(t.Context(), w.sandboxOf(second))
	if want := "cannot create sandbox of pod native/taken: units of that name run which belong to no pod that magikpod knows " +
		"(systemctl status magikpod-native-taken.slice shows them, systemctl stop ends them)"; pod.KindOf(err) != pod.AlreadyExists || err.Error() != want {
		t.Errorf("%v", err)
	}
	w.wantAlive(p, "a", pid)
	if err := w.Adopt(t.Context(), pod.RefOf(p)); err != nil {
		t.Error(err)
	}
}

// TestStartLost checks a container whose unit runs although systemd's answer to its start was lost:
// it ends before its files go.
func TestStartLost(t *testing.T) {
	onSystemd(t)
	w := newWorld(t, "crun", nil)
	p := w.pod("answer", obeys)
	w.create(p)
	w.run(p, "a", 0)
	unit, record := units.ContainerService(p.Namespace, p.Name, "a"), w.find(pod.RefOf(p)).recordOf("a")
	if err := w.units.Release(t.Context(), unit); err != nil { // as if it had never been tracked
		t.Fatal(err)
	}
	if err := w.removeAttempt(t.Context(), w.find(pod.RefOf(p)), record); err != nil {
		t.Fatal(err)
	}
	if state, err := w.units.Refresh(t.Context(), unit); err != nil || state.MainPID != 0 || !state.Ended() {
		t.Errorf("%+v, %v", state, err)
	}
}
