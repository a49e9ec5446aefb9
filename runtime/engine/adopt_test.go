package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/onhost"
	"github.com/magikrun/magikpod/shim"
	"github.com/magikrun/magikpod/units"
)

// nextDaemon makes a second manager that has adopted the pod, as after a kill -9 of the daemon, and
// makes it the world's.
func (w *world) nextDaemon(ref pod.Ref) {
	w.t.Helper()
	config := w.config
	w.Close()
	if err := config.Units.Close(); err != nil {
		w.t.Log(err)
	}
	w.Manager = w.manager(config)
	if err := w.Adopt(w.t.Context(), ref); err != nil {
		w.t.Fatal(err)
	}
}

// TestAdopt checks that a later daemon knows what the one before it knew, and can go on.
func TestAdopt(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		p := w.pod("adopt", obeys, "exit 6", "true", "sleep 15; exit 8")
		p.Spec.Containers[2].Command = []string{"no-such-command"}
		w.create(p)
		w.run(p, "a", 3)
		w.run(p, "b", 1)
		w.run(p, "d", 2)
		if err := w.RunContainer(t.Context(), w.configOf(p, "c", 4)); err == nil {
			t.Fatal("no error")
		}
		w.await(p, "b", pod.ContainerExited)
		before := w.state(p)
		w.nextDaemon(pod.RefOf(p))
		after := w.state(p)
		for name, was := range before.Containers {
			is := after.Containers[name]
			if !is.FinishedAt.Equal(was.FinishedAt) || !is.StartedAt.Equal(was.StartedAt) {
				t.Errorf("%s: %+v was %+v", name, is, was)
			}
			is.FinishedAt, is.StartedAt = was.FinishedAt, was.StartedAt
			if is != was {
				t.Errorf("%s: %+v was %+v", name, is, was)
			}
		}
		if len(after.Containers) != 4 || after.Sandbox != before.Sandbox {
			t.Errorf("%+v", after)
		}
		// It is notified of what happens from now on, can exec, stop and run more.
		if c := w.await(p, "d", pod.ContainerExited); c.ExitCode != 8 || c.Attempt != 2 {
			t.Errorf("%+v", c)
		}
		if out, _, status, err := w.execute(t, pod.RefOf(p), runtime.Process{Args: []string{"hostname"}}); err != nil || status.Code != 0 || out != "adopt\n" {
			t.Errorf("%q, %+v, %v", out, status, err)
		}
		w.run(p, "b", 2)
		if c := w.await(p, "b", pod.ContainerExited); c.ExitCode != 6 || c.Attempt != 2 {
			t.Errorf("%+v", c)
		}
		w.journal(p, "a", 1)
		if err := w.StopContainer(t.Context(), pod.RefOf(p), "a", 5*time.Second); err != nil {
			t.Fatal(err)
		}
		if c := w.state(p).Containers["a"]; c.ExitCode != 9 || c.StoppedByAdmin {
			t.Errorf("%+v", c)
		}
	})
}

// TestAdoptNothing checks pods of which nothing, or nothing but records is left.
func TestAdoptNothing(t *testing.T) {
	onSystemd(t)
	w := newWorld(t, "crun", nil)
	p := w.pod("nothing", "sleep 1000")
	if err := w.Adopt(t.Context(), pod.RefOf(p)); err != nil {
		t.Fatal(err)
	}
	if s := w.state(p); s.Sandbox.Stage != pod.SandboxAbsent || len(s.Containers) > 0 {
		t.Errorf("%+v", s)
	}
	w.up(p)
	// The units go while no daemon is there.
	ref, slice := pod.RefOf(p), units.Names(p.Namespace, p.Name).Slice
	w.forgetSandbox(w.find(ref))
	job, err := w.units.Stop(t.Context(), slice)
	if err == nil {
		err = job.Wait(t.Context())
	}
	for _, unit := range []string{units.ContainerService(p.Namespace, p.Name, "a"), units.Names(p.Namespace, p.Name).Pause, slice} {
		err = errors.Join(err, w.units.Release(t.Context(), unit))
	}
	if err != nil {
		t.Fatal(err)
	}
	w.nextDaemon(ref)
	if s := w.state(p); s.Sandbox.Stage != pod.SandboxDead || s.Containers["a"].Reason != pod.ReasonUnknown || s.Containers["a"].ExitCode != 255 {
		t.Errorf("%+v", s)
	}
	w.up(p)
	if s := w.state(p); s.Sandbox.Stage != pod.SandboxReady || s.Containers["a"].Stage != pod.ContainerRunning {
		t.Errorf("%+v", s)
	}
}

// ofAnother is a Runtime whose launches are another process's.
type ofAnother struct{ Runtime }

func (r ofAnother) Prepare(ctx context.Context, s runtime.Sandbox, a runtime.Attempt, config runtime.ContainerConfig) (runtime.Launch, error) {
	launch, err := r.Runtime.Prepare(ctx, s, a, config)
	if err == nil {
		c := launch.Files[onhost.LaunchFile].(shim.LaunchConfig)
		c.Owner.StartTime++
		launch.Files[onhost.LaunchFile] = c
	}
	return launch, err
}

// TestNamespacesGone checks a container that was started for a daemon which has died: it never
// began, and what was before stays.
func TestNamespacesGone(t *testing.T) {
	onSystemd(t)
	w := newWorld(t, "crun", nil)
	p := w.pod("gone", "exit 4")
	w.up(p)
	w.await(p, "a", pod.ContainerExited)
	sound := w.runtime
	w.runtime = ofAnother{sound}
	err := w.RunContainer(t.Context(), w.configOf(p, "a", 1))
	if pod.KindOf(err) != pod.Unavailable {
		t.Errorf("%v", err)
	}
	w.runtime = sound
	if c := w.state(p).Containers["a"]; c.Stage != pod.ContainerExited || c.Attempt != 0 || c.ExitCode != 4 {
		t.Errorf("%+v", c)
	}
	w.run(p, "a", 1)
	if c := w.await(p, "a", pod.ContainerExited); c.Attempt != 1 || c.ExitCode != 4 {
		t.Errorf("%+v", c)
	}
}

// TestDaemonDiesBeforeTheStart checks what a daemon leaves that dies at different moments before
// the OCI runtime has begun: the attempt never was, what was before stays, and the next daemon
// makes it.
func TestDaemonDiesBeforeTheStart(t *testing.T) {
	onSystemd(t)
	for name, die := range map[string]func(*world, *sandbox, *attempt) error{
		"bundle written": func(w *world, s *sandbox, a *attempt) error { return w.writeBundle(s, a) },
		"unit made": func(w *world, s *sandbox, a *attempt) error {
			if w.start(t.Context(), s, a) == nil {
				return errors.New("the container of a daemon that is gone was started")
			}
			return nil
		},
	} {
		for _, previous := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, previous attempt %t", name, previous), func(t *testing.T) {
				w := newWorld(t, "crun", nil)
				p := w.pod("early", "exit 4")
				w.create(p)
				w.entered(p)
				if previous {
					w.run(p, "a", 0)
					w.await(p, "a", pod.ContainerExited)
				}
				s := w.find(pod.RefOf(p))
				w.runtime = ofAnother{w.runtime} // one that is gone
				a, err := w.prepare(t.Context(), s, w.configOf(p, "a", 1))
				if err == nil {
					err = w.clear(t.Context(), s, "a")
				}
				if err != nil {
					t.Fatal(err)
				}
				s.begin(a.record)
				if err := die(w, s, a); err != nil {
					t.Fatal(err)
				}
				w.nextDaemon(pod.RefOf(p))
				c, known := w.state(p).Containers["a"]
				if known != previous || previous && (c.Attempt != 0 || c.ExitCode != 4 || c.Stage != pod.ContainerExited) {
					t.Errorf("%+v", c)
				}
				w.run(p, "a", 1)
				if c := w.await(p, "a", pod.ContainerExited); c.Attempt != 1 || c.ExitCode != 4 || c.Reason != pod.ReasonError {
					t.Errorf("%+v", c)
				}
			})
		}
	}
}

// entered waits until the pause process is in the pod's namespaces.
func (w *world) entered(p *corev1.Pod) {
	w.t.Helper()
	s := w.find(pod.RefOf(p))
	s.mu.Lock()
	made := s.ns
	s.ns = nil // as a daemon has it that comes while the pause process is just being started
	s.mu.Unlock()
	defer made.close()
	if err := w.awaitNamespaces(w.t.Context(), s); err != nil {
		w.t.Fatal(err)
	}
	for what, pair := range map[string][2]*os.File{"mount": {made.mnt, s.ns.mnt}, "network": {made.net, s.ns.net}, "UTS": {made.uts, s.ns.uts}, "IPC": {made.ipc, s.ns.ipc}} {
		want, err := pair[0].Stat()
		if err != nil {
			w.t.Fatal(err)
		}
		if got, err := pair[1].Stat(); err != nil || !os.SameFile(want, got) {
			w.t.Errorf("the %s namespace is not the pod's: %v", what, err)
		}
	}
}

// TestAdoptAtOnce checks a daemon that adopts a pod while its pause process is just being started:
// it must not take the host's namespaces for the pod's.
func TestAdoptAtOnce(t *testing.T) {
	onSystemd(t)
	w := newWorld(t, "crun", nil)
	for range 10 {
		p := w.pod("once", "sleep 1000")
		w.create(p)
		w.entered(p)
		w.run(p, "a", 0)
		if _, err := w.DeleteSandbox(t.Context(), pod.RefOf(p), 0); err != nil {
			t.Fatal(err)
		}
		if err := w.awaitNamespaces(t.Context(), w.newSandbox(pod.RefOf(p))); pod.KindOf(err) != pod.Conflict {
			t.Errorf("namespaces of a sandbox that is gone: %v", err)
		}
	}
}

// TestLaunchKilled kills magikshim launch at different moments: either the container runs, or there
// is an error and nothing is left.
func TestLaunchKilled(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		p := w.pod("killed", "sleep 1000")
		w.create(p)
		failed := 0
		for attempt := range 12 {
			done := make(chan struct{})
			go func() {
				defer close(done)
				config := filepath.Join(w.runDir(p.UID), containersName, "a", onhost.LaunchFile)
				for begin := time.Now(); time.Since(begin) < 10*time.Second; {
					paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
					for _, path := range paths {
						data, _ := os.ReadFile(path)
						if strings.HasSuffix(string(data), "\x00launch\x00--config\x00"+config+"\x00") {
							time.Sleep(time.Duration(attempt) * 4 * time.Millisecond)
							var pid int
							fmt.Sscanf(path, "/proc/%d/", &pid)
							_ = unix.Kill(pid, syscall.SIGKILL) // it may have ended
							return
						}
					}
				}
			}()
			err := w.RunContainer(t.Context(), w.configOf(p, "a", attempt))
			<-done
			c := w.state(p).Containers["a"]
			if err != nil {
				failed++
				if c.Stage != pod.ContainerExited || c.Reason != pod.ReasonStartError || c.Attempt != attempt || runs("sleep\x001000\x00") {
					t.Errorf("attempt %d: %v, %+v", attempt, err, c)
				}
			} else if c.Stage != pod.ContainerRunning {
				t.Errorf("attempt %d: %+v", attempt, c)
			}
		}
		if failed == 0 {
			t.Error("no attempt has failed")
		}
		w.run(p, "a", 100)
		w.await(p, "a", pod.ContainerRunning)
	})
}

// TestNoLeaks makes and deletes a pod many times; the daemon must have as many descriptors as before.
func TestNoLeaks(t *testing.T) {
	eachRuntime(t, func(t *testing.T, w *world) {
		descriptors := func() int {
			entries, err := os.ReadDir("/proc/self/fd")
			if err != nil {
				t.Fatal(err)
			}
			return len(entries)
		}
		rounds := 50
		if testing.Short() {
			rounds = 5
		}
		before := 0
		network := networkNamespace(t)
		for i := range rounds {
			p := w.pod("leaks", "sleep 1000", "exit 1")
			w.pods = nil
			if err := w.CreateSandbox(t.Context(), runtime.SandboxConfig{Pod: p, Network: runtime.Network{NetNS: network, Hostname: "leaks"}}); err != nil {
				t.Fatal(err)
			}
			w.run(p, "a", 0)
			w.run(p, "b", 0)
			if _, err := w.Exec(t.Context(), pod.RefOf(p), "a", runtime.Process{Args: []string{"true"}}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.DeleteSandbox(t.Context(), pod.RefOf(p), 0); err != nil {
				t.Fatal(err)
			}
			if err := w.Forget(t.Context(), pod.RefOf(p)); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				before = descriptors()
			}
		}
		for i := 0; descriptors() > before+2; i++ { // what goes on in the background ends by itself
			if i == 500 {
				t.Fatalf("%d descriptors, and %d after the first round", descriptors(), before)
			}
			time.Sleep(10 * time.Millisecond)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.sandboxes) > 0 || len(w.byUnit) > 0 {
			t.Errorf("%v, %v", w.sandboxes, w.byUnit)
		}
	})
}
