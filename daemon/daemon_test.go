package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/runtimetest"
)

// manifest is a pod with the given lines of its spec, indented by two.
func manifest(name string, spec ...string) string {
	if len(spec) == 0 {
		spec = []string{"containers: [{name: main, image: 'localhost/app:1', command: [run]}]"}
	}
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  %s\n", name, strings.Join(spec, "\n  "))
}

func TestLife(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ref := w.mustRun(manifest("web"))
		d := w.get(ref)
		if d.Phase != "Running" || d.State != "Running" || d.Ready != 1 || d.Total != 1 || !slices.Equal(d.IPs, []string{"10.0.0.1"}) {
			t.Errorf("a started pod is %+v", d.Summary)
		}
		if d.Slice != "magikpod-default-web.slice" || d.Pod.Status.HostIP != "192.0.2.10" || d.Pod.Spec.NodeName != "host" {
			t.Errorf("slice %q, host %q, node %q", d.Slice, d.Pod.Status.HostIP, d.Pod.Spec.NodeName)
		}
		if _, err := w.run(manifest("web"), pod.RunOptions{}); pod.KindOf(err) != pod.AlreadyExists {
			t.Errorf("a second pod of that name: %v", err)
		}
		if _, err := w.job(w.d.Stop(t.Context(), ref, pod.StopOptions{})); err != nil {
			t.Errorf("stop: %v", err)
		}
		if d := w.get(ref); d.State != "Stopped" || d.Ready != 0 || len(d.IPs) != 0 {
			t.Errorf("a stopped pod is %+v", d.Summary)
		}
		if _, err := w.job(w.d.Start(t.Context(), ref)); err != nil {
			t.Errorf("start: %v", err)
		}
		if d := w.get(ref); d.State != "Running" || d.Restarts != 1 {
			t.Errorf("a pod that was started again is %+v", d.Summary)
		}
		if _, err := w.job(w.d.Restart(t.Context(), ref, pod.StopOptions{})); err != nil {
			t.Errorf("restart: %v", err)
		}
		if d := w.get(ref); d.State != "Running" || d.Restarts != 2 {
			t.Errorf("a restarted pod is %+v", d.Summary)
		}
		if _, err := w.job(w.d.Delete(t.Context(), ref, pod.StopOptions{})); err != nil {
			t.Errorf("delete: %v", err)
		}
		w.wantNothing()
		if _, err := w.d.Stop(t.Context(), ref, pod.StopOptions{}); pod.KindOf(err) != pod.NotFound {
			t.Errorf("stop of a deleted pod: %v", err)
		}
	})
}

func TestRunWaits(t *testing.T) {
	for _, tt := range []struct {
		name    string
		wait    pod.WaitMode
		spec    []string
		behave  runtimetest.Behavior
		want    pod.JobResult
		phase   string // "": the pod is gone
		message string
	}{
		{"completed", "completed", []string{"restartPolicy: Never", "containers: [{name: main, image: 'localhost/app:1'}]"},
			runtimetest.Behavior{Runs: time.Minute}, pod.JobDone, "Succeeded", ""},
		{"completed badly", "completed", []string{"restartPolicy: Never", "containers: [{name: main, image: 'localhost/app:1'}]"},
			runtimetest.Behavior{Runs: time.Minute, ExitCode: 3}, pod.JobFailed, "Failed", "container main ended with exit code 3 (Error)"},
		{"start error", "started", nil, runtimetest.Behavior{StartError: "no such file"}, pod.JobFailed, "", "no such file"},
		{"image missing", "started", []string{"containers: [{name: main, image: 'localhost/none:1'}]"},
			runtimetest.Behavior{}, pod.JobFailed, "", `container image "localhost/none:1" is not present`},
		{"configMap missing", "started", []string{"containers: [{name: main, image: 'localhost/app:1', envFrom: [{configMapRef: {name: absent}}]}]"},
			runtimetest.Behavior{}, pod.JobFailed, "", "absent"},
		{"never ready", "ready", []string{"containers: [{name: main, image: 'localhost/app:1', readinessProbe: {exec: {command: ['false']}}}]"},
			runtimetest.Behavior{}, pod.JobTimeout, "", "main is not ready"},
		{"ready", "ready", []string{"containers: [{name: main, image: 'localhost/app:1', readinessProbe: {exec: {command: ['true']}}}]"},
			runtimetest.Behavior{}, pod.JobDone, "Running", ""},
		{"none", "none", nil, runtimetest.Behavior{StartDelay: time.Hour}, pod.JobDone, "Pending", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.fake.Behave("main", tt.behave)
				job, err := w.run(manifest("a", tt.spec...), pod.RunOptions{Wait: tt.wait, Timeout: 2 * time.Minute})
				if job.State != string(tt.want) || (err == nil) != (tt.want == pod.JobDone) {
					t.Errorf("the job is %s: %v; want %s", job.State, err, tt.want)
				}
				if tt.message != "" && !strings.Contains(fmt.Sprint(err), tt.message) {
					t.Errorf("the error is %q, without %q", err, tt.message)
				}
				if err != nil && strings.Contains(err.Error(), "\n") {
					t.Errorf("the error has several lines: %q", err)
				}
				if tt.phase == "" {
					w.wantNothing()
					return
				}
				if d, err := w.d.Get("default", "a"); err != nil || d.Phase != tt.phase {
					t.Errorf("the pod is %+v, %v; want phase %s", d.Summary, err, tt.phase)
				}
			})
		})
	}
}

// A run is atomic: whatever step fails first, nothing is left; and the next run succeeds.
func TestRunIsAtomic(t *testing.T) {
	spec := []string{
		"initContainers: [{name: prepare, image: 'localhost/app:1'}, {name: side, image: 'localhost/app:1', restartPolicy: Always}]",
		"containers: [{name: one, image: 'localhost/app:1'}, {name: two, image: 'localhost/app:1'}]",
		"volumes: [{name: data, emptyDir: {}}, {name: config, configMap: {name: settings}}]",
	}
	text := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {a: b}\n---\n" + manifest("a", spec...) + "---\n" + manifest("b")
	broken := errors.New("broken by the test")
	var faults []string
	for _, method := range []string{"CreateSandbox", "RunContainer"} {
		for _, container := range []string{"", "prepare", "side", "one", "two", "main"} {
			if (method == "CreateSandbox") == (container == "") {
				faults = append(faults, method+" "+container)
			}
		}
	}
	faults = append(faults, "namespace", "setup", "commit")
	for _, fault := range faults {
		t.Run(fault, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.fake.Behave("prepare", runtimetest.Behavior{Runs: time.Second})
				var failed atomic.Bool
				w.fake.Fault = func(c runtimetest.Call) error {
					if c.Done == (c.Method == "CreateSandbox") && fault == c.Method+" "+c.Container {
						failed.Store(true)
						return pod.WithKind(pod.Unavailable, broken)
					}
					return nil
				}
				w.net.fault = func(step string) error {
					if step == fault {
						failed.Store(true)
						return pod.WithKind(pod.Unavailable, broken)
					}
					return nil
				}
				if fault == "commit" {
					failed.Store(true)
					w.fake.Behave("main", runtimetest.Behavior{StartDelay: time.Minute})
					go func() {
						time.Sleep(30 * time.Second)
						blockWrites(t, w, "b")
					}()
				}
				_, err := w.run(text, pod.RunOptions{})
				if err == nil || !failed.Load() {
					t.Fatalf("the run has not failed (%v), or not by this fault (%t)", err, failed.Load())
				}
				if fault != "commit" && !strings.Contains(err.Error(), broken.Error()) {
					t.Errorf("the error does not say why: %v", err)
				}
				w.wantNothing()
				w.fake.Fault, w.net.fault = nil, nil
				if _, err := w.run(text, pod.RunOptions{}); err != nil {
					t.Errorf("the next run: %v", err)
				}
			})
		})
	}
}

// blockWrites makes the record of the pod one that cannot be written: its place is taken by a
// directory that is not empty.
func blockWrites(t *testing.T, w *world, name string) {
	d, err := w.d.Get("default", name)
	if err != nil {
		t.Error(err)
		return
	}
	path := filepath.Join(w.config.podStateDir(string(d.UID)), recordName)
	if err := errors.Join(os.RemoveAll(path), os.MkdirAll(filepath.Join(path, "x"), 0o700)); err != nil {
		t.Error(err)
	}
}

func TestBackoff(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fake.Behave("main", runtimetest.Behavior{Runs: time.Second, ExitCode: 1})
		began := time.Now()
		ref := w.mustRun(manifest("crash"))
		d := w.until(ref, "in its third backoff", func(d pod.Detail) bool { return d.Restarts == 3 && d.State == "CrashLoopBackOff" })
		// The first restart at once, then 10 s, then 20 s.
		if took := time.Since(began); took < 34*time.Second || took > 36*time.Second {
			t.Errorf("three restarts took %s", took)
		}
		if cs := d.Pod.Status.ContainerStatuses[0]; cs.LastTerminationState.Terminated == nil || cs.LastTerminationState.Terminated.ExitCode != 1 {
			t.Errorf("the last state is %+v", cs.LastTerminationState)
		}
	})
}

func TestLivenessRestarts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ref := w.mustRun(manifest("sick", "terminationGracePeriodSeconds: 3",
			"containers: [{name: main, image: 'localhost/app:1', livenessProbe: {exec: {command: ['false']}, periodSeconds: 5}}]"))
		d := w.until(ref, "restarted", func(d pod.Detail) bool { return d.Restarts == 1 })
		if got := events(d); !slices.Contains(got, "Unhealthy") || !slices.Contains(got, "Killing") {
			t.Errorf("the events are %q", got)
		}
	})
}

func TestAdminStop(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ref := w.mustRun(manifest("a", "containers: [{name: one, image: 'localhost/app:1'}, {name: two, image: 'localhost/app:1'}]"))
		w.fake.AdminStop(ref, "one", time.Second)
		time.Sleep(20 * time.Minute)
		d := w.get(ref)
		if s := d.Pod.Status.ContainerStatuses; s[0].State.Terminated == nil || s[1].State.Running == nil || d.Restarts != 0 {
			t.Errorf("after systemctl stop of one unit: %+v", s)
		}
		w.fake.AdminStopSandbox(ref, time.Second)
		time.Sleep(20 * time.Minute)
		if d := w.get(ref); d.State != "Stopped" {
			t.Errorf("after systemctl stop of the slice the pod is %s", d.State)
		}
		if _, err := w.job(w.d.Start(t.Context(), ref)); err != nil {
			t.Error(err)
		}
		if d := w.get(ref); d.State != "Running" || d.Ready != 2 {
			t.Errorf("after a start the pod is %+v", d.Summary)
		}
	})
}

func TestNewerDesiredStateCutsShort(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fake.Behave("main", runtimetest.Behavior{IgnoreStop: true})
		ref := w.mustRun(manifest("stubborn", "terminationGracePeriodSeconds: 300", "containers: [{name: main, image: 'localhost/app:1'}]"))
		began := time.Now()
		stop, err := w.d.Stop(t.Context(), ref, pod.StopOptions{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if _, err := w.job(w.d.Delete(t.Context(), ref, pod.StopOptions{Force: true})); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("a forced delete during a stop took %s", took)
		}
		if _, err := w.job(stop, nil); err != nil {
			t.Errorf("the stop that was overtaken: %v", err)
		}
		w.wantNothing()
	})
}

func TestStartDuringStop(t *testing.T) {
	for _, policy := range []string{"Always", "OnFailure", "Never"} {
		t.Run(policy, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.fake.Behave("main", runtimetest.Behavior{StopDelay: 10 * time.Second})
				ref := w.mustRun(manifest("a", "restartPolicy: "+policy, "containers: [{name: main, image: 'localhost/app:1'}]"))
				stop, err := w.d.Stop(t.Context(), ref, pod.StopOptions{})
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				if _, err := w.job(w.d.Start(t.Context(), ref)); err != nil {
					t.Errorf("start: %v", err)
				}
				if d := w.get(ref); d.State != "Running" || d.Restarts != 1 {
					t.Errorf("the pod is %+v", d.Summary)
				}
				if _, err := w.job(stop, nil); pod.KindOf(err) != pod.Conflict {
					t.Errorf("the stop that was overtaken: %v", err)
				}
			})
		})
	}
}

func TestCrash(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.config.BackoffInitial = seconds(1)
		ref := w.mustRun("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {a: b}\n---\n" +
			manifest("a", "containers: [{name: one, image: 'localhost/app:1', env: [{name: A, valueFrom: {configMapKeyRef: {name: settings, key: a}}}]}, {name: two, image: 'localhost/app:1'}]"))
		before := w.get(ref)
		w.d.Close()
		w.fake.Exit(ref, "one", 9) // while nobody looks
		w.fake = w.fake.Restart()
		w.start()
		d := w.until(ref, "restarted", func(d pod.Detail) bool { return d.Restarts == 1 && d.Ready == 2 })
		if s := d.Pod.Status.ContainerStatuses[0].LastTerminationState.Terminated; s == nil || s.ExitCode != 9 {
			t.Errorf("how the container ended meanwhile: %+v", s)
		}
		if d.Pod.Status.ContainerStatuses[1].ContainerID != before.Pod.Status.ContainerStatuses[1].ContainerID {
			t.Error("the other container was touched")
		}
		if len(d.Events) <= len(before.Events) {
			t.Error("the events from before are lost")
		}
		w.crash()
		if _, err := w.job(w.d.Delete(t.Context(), ref, pod.StopOptions{})); err != nil {
			t.Error(err)
		}
		w.wantNothing()
	})
}

// A daemon that dies at any moment of a run or delete leaves what the next one completes.
func TestCrashAnywhere(t *testing.T) {
	for _, at := range []time.Duration{0, time.Millisecond, 500 * time.Millisecond, 1500 * time.Millisecond, 2500 * time.Millisecond} {
		for _, verb := range []string{"run", "delete", "stop"} {
			t.Run(fmt.Sprint(verb, at), func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					w.fake.DelaySandboxes(time.Second)
					w.fake.Behave("main", runtimetest.Behavior{StartDelay: time.Second, StopDelay: 2 * time.Second})
					if verb != "run" {
						ref := w.mustRun(manifest("a"))
						var err error
						if verb == "delete" {
							_, err = w.d.Delete(t.Context(), ref, pod.StopOptions{})
						} else {
							_, err = w.d.Stop(t.Context(), ref, pod.StopOptions{})
						}
						if err != nil {
							t.Fatal(err)
						}
					} else if _, err := w.d.Run(t.Context(), []byte(manifest("a")), pod.RunOptions{}); err != nil {
						t.Fatal(err)
					}
					time.Sleep(at)
					w.crash()
					time.Sleep(time.Minute)
					list := w.d.List()
					if verb == "stop" {
						if len(list) != 1 || list[0].State != "Stopped" && list[0].State != "Running" {
							t.Errorf("the pods are %+v", list)
						}
						return
					}
					// A run that was not committed is undone, a delete is completed; one that was
					// not accepted yet has no effect.
					if len(list) == 1 && list[0].State == "Running" {
						return
					}
					w.wantNothing()
				})
			})
		}
	}
}

func TestReboot(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		always := w.mustRun(manifest("always"))
		never := w.mustRun(manifest("never", "restartPolicy: Never", "containers: [{name: main, image: 'localhost/app:1'}]"))
		stopped := w.mustRun(manifest("stopped"))
		if _, err := w.job(w.d.Stop(t.Context(), stopped, pod.StopOptions{})); err != nil {
			t.Fatal(err)
		}
		w.reboot()
		if d := w.until(always, "running again", func(d pod.Detail) bool { return d.State == "Running" }); d.Restarts != 1 {
			t.Errorf("restarts %d", d.Restarts)
		}
		if d := w.until(never, "failed", func(d pod.Detail) bool { return d.Phase == "Failed" }); d.Pod.Status.ContainerStatuses[0].State.Terminated.ExitCode != 255 {
			t.Errorf("the status is %+v", d.Pod.Status.ContainerStatuses[0])
		}
		if d := w.get(stopped); d.State != "Stopped" {
			t.Errorf("a stopped pod is %s after a reboot", d.State)
		}
	})
}

func TestCorruptRecord(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		kept, lost := w.mustRun(manifest("kept")), w.mustRun(manifest("lost"))
		w.d.Close()
		for _, path := range []string{
			filepath.Join(w.config.podStateDir(string(kept.UID)), recordName),
			filepath.Join(w.config.podStateDir(string(lost.UID)), recordName),
			filepath.Join(w.config.podStateDir(string(lost.UID)), newestName),
			filepath.Join(w.config.podRunDir(string(lost.UID)), recordName),
		} {
			if err := os.WriteFile(path, []byte(`{"version":1,"pod":{`), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		w.fake = w.fake.Restart()
		w.start()
		if list := w.d.List(); len(list) != 2 || list[0].Name != "kept" || list[1].Phase != "Unknown" || list[1].State != reasonDamaged {
			t.Errorf("the pods are %+v", list)
		}
		if aside, _ := filepath.Glob(filepath.Join(w.config.podStateDir(string(lost.UID)), recordName+"*.bad-*")); len(aside) != 2 {
			t.Error("the torn record was not set aside")
		}
		if d := w.get(kept); d.State != "Running" {
			t.Errorf("the pod is %s", d.State)
		}
	})
}

func TestMaxPods(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.d.config.MaxPods = 2
		w.mustRun(manifest("a"))
		w.mustRun(manifest("b"))
		_, err := w.run(manifest("c"), pod.RunOptions{})
		if pod.KindOf(err) != pod.Exhausted {
			t.Errorf("one pod too many: %v", err)
		}
		if _, err := w.run(manifest("b"), pod.RunOptions{Replace: true}); err != nil {
			t.Errorf("a replacement is not one more: %v", err)
		}
	})
}

func TestObjectsGoWithTheirOwners(t *testing.T) {
	config := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {a: b}\n"
	inWorld(t, func(t *testing.T, w *world) {
		one := w.mustRun(config + "---\n" + manifest("one"))
		two := w.mustRun(config + "---\n" + manifest("two"))
		other := strings.Replace(config, "a: b", "a: c", 1)
		if _, err := w.run(other+"---\n"+manifest("three"), pod.RunOptions{}); pod.KindOf(err) != pod.Conflict {
			t.Errorf("other content under the same name: %v", err)
		}
		for _, ref := range []pod.Ref{one, two} {
			if w.d.objects.get("configmaps", "default", "settings") == nil {
				t.Error("the configMap went before its last owner")
			}
			if _, err := w.job(w.d.Delete(t.Context(), ref, pod.StopOptions{})); err != nil {
				t.Fatal(err)
			}
		}
		w.wantNothing()
		if _, err := w.run(config, pod.RunOptions{}); err != nil {
			t.Errorf("a configMap alone: %v", err)
		}
		w.crash()
		if w.d.objects.get("configmaps", "default", "settings") == nil {
			t.Error("a configMap that came alone is gone")
		}
	})
}

func TestPull(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.images.pull = func(ctx context.Context, _ string) error {
			select {
			case <-time.After(5 * time.Second):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		ref := w.mustRun(manifest("a", "containers: [{name: one, image: 'registry.test/x:1'}, {name: two, image: 'registry.test/x:1'}]"))
		if w.images.pulls != 1 {
			t.Errorf("one image was pulled %d times", w.images.pulls)
		}
		if err := w.d.RemoveImage(t.Context(), "registry.test/x:1", false); pod.KindOf(err) != pod.Conflict {
			t.Errorf("removing an image in use: %v", err)
		}
		if d := w.get(ref); !slices.Contains(events(d), "Pulled") {
			t.Errorf("the events are %q", events(d))
		}
		id, err := w.d.PullImage(t.Context(), "registry.test/y:1", pod.PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if err := w.d.CancelJob(id); err != nil {
			t.Error(err)
		}
		if job, err := w.job(id, nil); job.State != string(pod.JobCanceled) {
			t.Errorf("a cancelled pull is %s: %v", job.State, err)
		}
	})
}

// Containers of one class that take long to start do not keep those of another class waiting.
func TestStartsOfClasses(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		slow := runtimetest.New()
		slow.Info.Name = pod.ClassMicroVM
		slow.Behave("main", runtimetest.Behavior{StartDelay: time.Hour})
		w.more = []runtime.PodManager{slow}
		w.crash()
		for i := range maxStarts + 1 {
			text := strings.Replace(manifest(fmt.Sprint("slow-", i)), "spec:", "spec:\n  runtimeClassName: "+pod.ClassMicroVM, 1)
			if _, err := w.run(text, pod.RunOptions{Wait: "none"}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		began := time.Now()
		w.mustRun(manifest("quick"))
		if took := time.Since(began); took > time.Minute {
			t.Errorf("the start took %s", took)
		}
	})
}

func TestCancelRun(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fake.Behave("main", runtimetest.Behavior{StartDelay: time.Hour})
		id, err := w.d.Run(t.Context(), []byte(manifest("slow")), pod.RunOptions{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if err := w.d.CancelJob(id); err != nil {
			t.Fatal(err)
		}
		if job, err := w.job(id, nil); job.State != string(pod.JobCanceled) {
			t.Errorf("the job is %s: %v", job.State, err)
		}
		w.wantNothing()
	})
}

// A full disk stops neither list nor stop nor delete.
func TestFullDisk(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ref := w.mustRun(manifest("a"))
		blockWrites(t, w, "a")
		if _, err := w.job(w.d.Stop(t.Context(), ref, pod.StopOptions{})); err != nil {
			t.Errorf("stop: %v", err)
		}
		if d := w.get(ref); d.State != "Stopped" || !slices.Contains(events(d), "FailedSave") {
			t.Errorf("the pod is %s, its events %q", d.State, events(d))
		}
		if _, err := w.job(w.d.Delete(t.Context(), ref, pod.StopOptions{})); err != nil {
			t.Errorf("delete: %v", err)
		}
		w.wantNothing()
	})
}

func TestInvalidManifest(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for _, text := range []string{"", "a: [", manifest("UPPER"), manifest("a", "containers: []"), manifest("a", "runtimeClassName: pod-none", "containers: [{name: a, image: b}]")} {
			if _, err := w.d.Run(t.Context(), []byte(text), pod.RunOptions{}); pod.KindOf(err) != pod.Invalid {
				t.Errorf("%q: %v", text, err)
			}
			if problems, err := w.d.Validate(t.Context(), []byte(text)); err != nil || len(problems) == 0 {
				t.Errorf("%q: no problem", text)
			}
		}
		w.wantNothing()
	})
}

func TestManyPods(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var docs []string
		for i := range 50 {
			docs = append(docs, manifest(fmt.Sprintf("p%d", i)))
		}
		if _, err := w.run(strings.Join(docs, "---\n"), pod.RunOptions{}); err != nil {
			t.Fatal(err)
		}
		for _, s := range w.d.List() {
			if s.Phase != string(corev1.PodRunning) {
				t.Errorf("%+v", s)
			}
			if _, err := w.d.Delete(t.Context(), s.Ref, pod.StopOptions{}); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Minute)
		w.wantNothing()
	})
}

// TestManyPodsAreValidated: the classes are asked about thousands of pods in no time, and no more
// once the caller has left.
func TestManyPodsAreValidated(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var text strings.Builder
		for i := range 3500 {
			fmt.Fprintf(&text, "---\n{apiVersion: v1, kind: Pod, metadata: {name: p%d}, spec: {containers: [{name: a, image: b}]}}\n", i)
		}
		var before, after goruntime.MemStats
		goruntime.ReadMemStats(&before)
		problems, err := w.d.Validate(t.Context(), []byte(text.String()))
		goruntime.ReadMemStats(&after)
		if mb := (after.TotalAlloc - before.TotalAlloc) >> 20; err != nil || len(problems) > 0 || mb > 300 {
			t.Errorf("%v, %v, %d MB", problems, err, mb)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if problems, err := w.d.Validate(ctx, []byte(text.String())); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, %v after the caller has left", problems, err)
		}
	})
}
