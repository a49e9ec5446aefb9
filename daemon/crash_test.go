package daemon

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
	magikruntime "github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/runtimetest"
)

// inert is a PodManager whose RunContainer succeeds and does nothing.
type inert struct {
	magikruntime.PodManager
	starts int
}

func (d *inert) RunContainer(context.Context, magikruntime.ContainerConfig) error {
	d.starts++
	return nil
}

// TestStartWithoutEffect checks that the daemon does not sync without end when a runtime says that
// it has done something, and has not.
func TestStartWithoutEffect(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ref := w.mustRun(manifest("web"))
		worker, err := w.d.find(ref)
		if err != nil {
			t.Fatal(err)
		}
		manager := &inert{PodManager: w.fake}
		synctest.Wait()
		worker.manager = manager
		w.fake.Exit(ref, "main", 1)
		time.Sleep(time.Minute)
		synctest.Wait()
		if manager.starts == 0 || manager.starts > 10 {
			t.Errorf("%d starts in a minute", manager.starts)
		}
		d := w.get(ref)
		if waiting := d.Pod.Status.ContainerStatuses[0].State.Waiting; waiting == nil || !strings.Contains(waiting.Message, "attempt 1") {
			t.Errorf("the status is %+v", d.Pod.Status.ContainerStatuses[0])
		}
		worker.manager = w.fake
	})
}

// TestRepeatedSteps checks that steps which come again and again are put into backoff, whatever the
// reason.
func TestRepeatedSteps(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		worker, err := w.d.find(w.mustRun(manifest("web")))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		steps := []pod.Step{{Op: pod.OpStopContainer, Container: "main"}}
		for range maxRepeats {
			worker.countRepeats(steps)
		}
		if ready, _ := worker.due(steps, time.Now()); len(ready) != 1 {
			t.Errorf("in backoff after %d times", maxRepeats)
		}
		worker.countRepeats(steps)
		if ready, until := worker.due(steps, time.Now()); len(ready) != 0 || until.IsZero() {
			t.Error("not in backoff")
		}
		worker.countRepeats([]pod.Step{{Op: pod.OpStopContainer, Container: "other"}})
		if worker.repeats != 0 {
			t.Error("another step counts too")
		}
	})
}

// TestNameTakenAgain checks that a run which ends late does not give up the name of a pod that
// somebody else is about to run.
func TestNameTakenAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		first, second := &runJob{d: w.d, pods: []*corev1.Pod{named("web")}}, &runJob{d: w.d, pods: []*corev1.Pod{named("web")}}
		if err := w.d.reserve(first); err != nil {
			t.Fatal(err)
		}
		w.d.unreserve(first) // the pod was admitted, and deleted again
		if err := w.d.reserve(second); err != nil {
			t.Fatal(err)
		}
		w.d.unreserve(first) // the end of the first run
		if err := w.d.reserve(first); pod.KindOf(err) != pod.AlreadyExists {
			t.Errorf("the name is free: %v", err)
		}
	})
}

func named(name string) *corev1.Pod {
	p := new(corev1.Pod)
	p.Namespace, p.Name = "default", name
	return p
}

// TestWaitForTheRemoved checks that whoever waits for a pod's removal hears of it, even when the
// worker's goroutine has ended by then.
func TestWaitForTheRemoved(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ref := w.mustRun(manifest("web"))
		of, err := w.d.find(ref)
		if err != nil {
			t.Fatal(err)
		}
		for range 50 { // select picks one of two ready channels at random
			worker := w.d.newWorker(&record{Pod: of.snapshot().detail.Pod}, w.fake)
			snap, err := worker.wait(t.Context(), func(*snapshot) bool {
				if !worker.removed { // just after the waiter has looked
					worker.removed = true
					worker.publish()
					close(worker.ended)
				}
				return false
			})
			if err != nil || !snap.removed {
				t.Fatalf("%v", err)
			}
		}
	})
}

// TestPowerCut checks that what is written without waiting for the disk cannot cost a pod that was
// committed.
func TestPowerCut(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ref := w.mustRun(manifest("web"))
		w.fake.Exit(ref, "main", 1) // the record changes, and nobody waits for the disk
		w.until(ref, "restarted", func(d pod.Detail) bool { return d.Restarts == 1 && d.State == "Running" })
		newest := filepath.Join(w.config.podStateDir(string(ref.UID)), newestName)
		if err := os.Truncate(newest, 0); err != nil {
			t.Fatal(err)
		}
		torn := filepath.Join(w.config.podStateDir(string(ref.UID)), "."+recordName+".tmp123")
		if err := os.WriteFile(torn, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		w.reboot()
		w.until(ref, "running again", func(d pod.Detail) bool { return d.State == "Running" })
		if _, err := os.Stat(torn); !os.IsNotExist(err) {
			t.Errorf("what was being written when the power was cut is left: %v", err)
		}
		if _, err := w.job(w.d.Delete(t.Context(), ref, pod.StopOptions{})); err != nil {
			t.Fatal(err)
		}
		w.wantNothing()
	})
}

// TestLeftoversOfACrash checks that what a daemon leaves that dies in the middle of a write or a
// removal goes when the next one starts.
func TestLeftoversOfACrash(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for _, path := range []string{
			filepath.Join(w.config.podStateDir("empty"), ""),
			filepath.Join(w.config.podRunDir("torn"), "."+recordName+".tmp123"),
			filepath.Join(w.config.StateDir, "volumes/secrets/default/.db.json.tmp123"),
			filepath.Join(w.config.StateDir, "volumes/configmaps/default/.db.json.tmp123"),
		} {
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(path, "tmp123") {
				if err := os.WriteFile(path, []byte("secret"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		w.crash()
		w.wantNothing()
		if _, err := os.Stat(filepath.Join(w.config.StateDir, "volumes/secrets/default")); err == nil {
			t.Error("an empty directory is left")
		}
	})
}

// TestRuntimeGone checks a pod whose runtime class cannot be used any more, as its OCI runtime was
// uninstalled: it is still there, with all that it has, and can be deleted.
func TestRuntimeGone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ref := w.mustRun("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: b}\n---\n" + manifest("web"))
		w.d.Close()
		w.fake = w.fake.Restart()
		w.fake.Info.Available, w.fake.Info.Reason = false, "no OCI runtime is installed"
		w.start()
		if d := w.get(ref); d.State != "Running" || len(w.net.leaks()) != 1 || w.d.objects.get("configmaps", "default", "c") == nil {
			t.Errorf("the pod is %+v, its networks %v", d.Summary, w.net.leaks())
		}
		if _, err := w.run(manifest("other"), pod.RunOptions{}); pod.KindOf(err) != pod.Invalid {
			t.Errorf("another pod: %v", err)
		}
		if _, err := w.job(w.d.Delete(t.Context(), ref, pod.StopOptions{})); err != nil {
			t.Fatal(err)
		}
		w.wantNothing()
	})
}

// TestStartEndsWhenStarted checks that a start or a restart is done when the containers run, and
// not when their start has begun.
func TestStartEndsWhenStarted(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fake.Behave("main", runtimetest.Behavior{StartDelay: time.Minute})
		ref := w.mustRun(manifest("slow"))
		for what, do := range map[string]func() (uint32, error){
			"start": func() (uint32, error) {
				if _, err := w.job(w.d.Stop(t.Context(), ref, pod.StopOptions{})); err != nil {
					t.Fatal(err)
				}
				return w.d.Start(t.Context(), ref)
			},
			"restart": func() (uint32, error) { return w.d.Restart(t.Context(), ref, pod.StopOptions{}) },
		} {
			began := time.Now()
			if _, err := w.job(do()); err != nil {
				t.Fatal(err)
			}
			if d, took := w.get(ref), time.Since(began); d.State != "Running" || d.Ready != 1 || took < time.Minute {
				t.Errorf("after a %s of %s the pod is %s", what, took, d.State)
			}
		}
	})
}

// TestGoneMeansFree checks that a pod's end is not reported before its name is free: a replacement
// would be taken off the lists together with it.
func TestGoneMeansFree(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		old, err := w.d.find(w.mustRun(manifest("web")))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		ghost := w.d.newWorker(&record{Pod: old.snapshot().detail.Pod}, w.fake)
		ghost.removed = true
		w.d.mu.Lock()
		done := make(chan struct{})
		go func() { w.d.removed(ghost); close(done) }()
		for range 200_000 {
			runtime.Gosched()
		}
		if ghost.snapshot().removed {
			t.Error("the end was reported while the name is taken")
		}
		w.d.mu.Unlock()
		<-done
		if !ghost.snapshot().removed {
			t.Error("the end was never reported")
		}
		w.d.add(old)
	})
}
