package daemon

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime/runtimetest"
)

// TestJobMeets checks that a job which waits for something reports what, until that is over.
func TestJobMeets(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var failing atomic.Bool
		w.fake.Fault = func(c runtimetest.Call) error {
			if c.Method == "DeleteSandbox" && failing.Load() {
				return pod.Errorf(pod.Unavailable, "the unit is frozen")
			}
			return nil
		}
		ref := w.mustRun(manifest("web"))
		for _, do := range []func() (uint32, error){
			func() (uint32, error) { return w.d.Stop(t.Context(), ref, pod.StopOptions{}) },
			func() (uint32, error) { return w.d.Delete(t.Context(), ref, pod.StopOptions{}) },
		} {
			if _, err := w.job(w.d.Start(t.Context(), ref)); err != nil {
				t.Fatal(err)
			}
			failing.Store(true)
			id, err := do()
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			if job, ok := w.d.Job(id); !ok || job.State != "running" || job.Err == nil || job.Err.Error() != "the unit is frozen" {
				t.Errorf("%+v", job)
			}
			failing.Store(false)
			if job, err := w.job(id, nil); err != nil || job.State != string(pod.JobDone) {
				t.Errorf("%+v", job)
			}
		}
		w.wantNothing()
	})
}
