package daemon

import (
	"context"
	"sync"

	"github.com/magikrun/magikpod/internal/jobowner"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// execSize passes the size of an exec's window on without waiting: a newer size replaces one that
// was not applied yet.
type execSize struct {
	tty bool

	mu    sync.Mutex
	sizes chan runtime.WinSize // of size 1
}

func (e *execSize) set(size runtime.WinSize) {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.sizes:
	default:
	}
	e.sizes <- size
}

// Exec runs a process in a container, the first one when container is "", as a job that ends with
// the process. The end of ctx kills the process. finish is called once: when the process has ended,
// before its end is reported, or before Exec returns an error.
func (d *Daemon) Exec(ctx context.Context, ref pod.Ref, container string, p runtime.Process, size runtime.WinSize, finish func(context.Context)) (uint32, error) {
	window := &execSize{tty: p.TTY, sizes: make(chan runtime.WinSize, 1)}
	if size.Rows > 0 && size.Cols > 0 {
		window.set(size)
	}
	p.Resize = window.sizes
	one := &job{exec: window, info: pod.JobInfo{Kind: "exec", Objects: []string{ref.String()}, Owner: jobowner.Of(ctx), State: "running"}}
	id, err := d.jobs.run(one, 0, func(jobCtx context.Context, job *job) ([]string, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(jobCtx, cancel)()
		status, err := d.exec(ctx, ref, container, p)
		if ctx.Err() != nil { // the client has left
			job.cancel(errCanceled)
		}
		finish(ctx) // who waits for the end of the output gets it first
		if err == nil || status.Code == runtime.ExitNotExecutable || status.Code == runtime.ExitNotFound {
			job.exited(status.Code)
		}
		return nil, err
	})
	if err != nil {
		finish(ctx)
	}
	return id, err
}

// exec runs the process. A panic does not end the daemon.
func (d *Daemon) exec(ctx context.Context, ref pod.Ref, container string, p runtime.Process) (status runtime.ExitStatus, err error) {
	defer func() {
		if v := recover(); v != nil {
			d.log.Error("internal error in exec", "pod", ref.String(), "panic", v)
			err = pod.Errorf(pod.Internal, "cannot exec: internal error: %v", v)
		}
	}()
	w, err := d.meet(ctx, ref)
	if err != nil {
		return status, err
	}
	if container, err = w.snapshot().container(container); err != nil {
		return status, err
	}
	status, err = w.manager.Exec(ctx, w.ref, container, p)
	if pod.KindOf(err) == pod.NotFound { // the manifest has it, the runtime has not
		err = pod.Errorf(pod.Conflict, "cannot run a process in container %q of pod %s: it does not run", container, ref)
	}
	return status, err
}

// exited records the exit status of an exec's process.
func (one *job) exited(code int) {
	one.mu.Lock()
	defer one.mu.Unlock()
	one.info.ExitStatus = &code
}

// ResizeTerminal changes the size of the terminal of an exec that runs. NotFound: there is no such
// exec; Conflict: it has no terminal.
func (d *Daemon) ResizeTerminal(id uint32, size runtime.WinSize) error {
	one, ok := d.jobs.get(id)
	switch {
	case !ok || one.exec == nil:
		return pod.Errorf(pod.NotFound, "cannot resize the terminal of job %d: no running exec of yours has that number", id)
	case !one.exec.tty:
		return pod.Errorf(pod.Conflict, "cannot resize the terminal of job %d: it has none", id)
	case size.Rows == 0 || size.Cols == 0:
		return pod.Errorf(pod.Invalid, "cannot resize the terminal to %d rows and %d columns", size.Rows, size.Cols)
	}
	one.exec.set(size)
	return nil
}
