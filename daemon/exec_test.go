package daemon

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/magikrun/magikpod/internal/jobowner"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/runtimetest"
)

// exec runs a process without files.
func (w *world) exec(ctx context.Context, ref pod.Ref, container string, p runtime.Process) (uint32, error) {
	return w.d.Exec(ctx, ref, container, p, runtime.WinSize{}, func(context.Context) {})
}

// TestExecJob checks that a process in a container is a job like others: it has a number, an owner
// and an end, which comes when its files are closed.
func TestExecJob(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ref := w.mustRun(manifest("web"))
		running := w.d.Jobs()
		var finished atomic.Bool
		ctx := jobowner.With(t.Context(), ":1.7")
		id, err := w.d.Exec(ctx, ref, "", runtime.Process{Args: []string{"true"}}, runtime.WinSize{}, func(context.Context) { finished.Store(true) })
		if err != nil || id != pod.FirstExecJob || len(running) != 0 {
			t.Fatalf("exec is job %d, %v; want %d", id, err, pod.FirstExecJob)
		}
		job, err := w.job(id, nil)
		if err != nil || job.State != string(pod.JobDone) || job.ExitStatus == nil || *job.ExitStatus != 0 || job.Owner != ":1.7" || !finished.Load() {
			t.Errorf("the job ended with %+v, %v; want exit status 0, the owner :1.7, and its files closed", job, err)
		}
		if job, err := w.job(w.exec(ctx, ref, "other", runtime.Process{Args: []string{"true"}})); pod.KindOf(err) != pod.NotFound || job.ExitStatus != nil {
			t.Errorf("in a container that is not there: %+v, %v; want NotFound and no exit status", job, err)
		}
	})
}

// TestExecEnds checks how an exec ends whose process does not end by itself: it is cancelled, or
// its client has left.
func TestExecEnds(t *testing.T) {
	for name, end := range map[string]func(w *world, id uint32, leave func()){
		"cancelled":   func(w *world, id uint32, _ func()) { _ = w.d.CancelJob(id) },
		"client left": func(_ *world, _ uint32, leave func()) { leave() },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				ref := w.mustRun(manifest("web"))
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				id, err := w.exec(ctx, ref, "", runtime.Process{Args: []string{"sleep", "1000"}, TTY: true})
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if err := w.d.ResizeTerminal(id, runtime.WinSize{Rows: 24, Cols: 80}); err != nil {
					t.Errorf("the terminal cannot be resized: %v", err)
				}
				if err := w.d.ResizeTerminal(id, runtime.WinSize{}); pod.KindOf(err) != pod.Invalid {
					t.Errorf("a terminal without rows: %v; want Invalid", err)
				}
				end(w, id, leave)
				job, err := w.job(id, nil)
				if job.State != string(pod.JobCanceled) || err == nil || job.ExitStatus != nil {
					t.Errorf("the job ended with %+v, %v; want canceled, with an error and no exit status", job, err)
				}
				if err := w.d.ResizeTerminal(id, runtime.WinSize{Rows: 24, Cols: 80}); pod.KindOf(err) != pod.NotFound {
					t.Errorf("the terminal of an ended exec: %v; want NotFound", err)
				}
			})
		})
	}
}

// TestExecLimit checks that execs have a limit of their own, and that a panic ends one of them and
// not the daemon.
func TestExecLimit(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var bad atomic.Bool
		w.fake.Fault = func(c runtimetest.Call) error {
			if c.Method == "Exec" && bad.Load() {
				panic("bad")
			}
			return nil
		}
		ref := w.mustRun(manifest("web"))
		bad.Store(true)
		if _, err := w.job(w.exec(t.Context(), ref, "", runtime.Process{Args: []string{"true"}})); err == nil || !strings.Contains(err.Error(), "internal error: bad") {
			t.Errorf("a panic ends the exec with %v", err)
		}
		bad.Store(false)
		w.d.jobs.execs.limit = 0
		closed := false
		_, err := w.d.Exec(t.Context(), ref, "", runtime.Process{Args: []string{"true"}}, runtime.WinSize{}, func(context.Context) { closed = true })
		if pod.KindOf(err) != pod.Exhausted || !closed {
			t.Errorf("one exec too many: %v, its files closed: %v; want Exhausted, and closed", err, closed)
		}
		if _, err := w.job(w.d.Stop(t.Context(), ref, pod.StopOptions{})); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
}
