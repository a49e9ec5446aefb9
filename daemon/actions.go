package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/pod"
)

// podJob starts a job for a pod, whose output is the pod's name. Timeout 0: it never times out.
func (d *Daemon) podJob(ctx context.Context, verb string, ref pod.Ref, timeout time.Duration, do func(ctx context.Context, job *job, w *worker) error) (uint32, error) {
	w, err := d.find(ref)
	if err != nil {
		return 0, err
	}
	if verb == "start" || verb == "restart" {
		if err := w.usable(verb); err != nil {
			return 0, err
		}
	}
	return d.jobs.start(ctx, verb, []string{ref.String()}, timeout, func(ctx context.Context, job *job) ([]string, error) {
		if err := do(ctx, job, w); err != nil {
			return nil, err
		}
		return []string{ref.String()}, nil
	})
}

// Start starts a pod as a job, which ends when all its containers have been started.
func (d *Daemon) Start(ctx context.Context, ref pod.Ref) (uint32, error) {
	return d.podJob(ctx, "start", ref, d.config.JobTimeout.Duration, func(ctx context.Context, job *job, w *worker) error {
		return w.waitStarted(ctx, job, w.give(order{desired: pod.DesiredRun, fresh: true}), "start")
	})
}

// usable is a Conflict when the pod can do nothing but end.
func (w *worker) usable(verb string) error {
	switch {
	case w.damaged:
		return pod.Errorf(pod.Conflict, "cannot %s pod %s: its record is damaged (it can be deleted)", verb, w.ref)
	case w.snapshot().Desired == pod.DesiredDelete:
		return pod.Errorf(pod.Conflict, "cannot %s pod %s: it is being deleted", verb, w.ref)
	}
	return nil
}

// waitStarted waits until the order numbered n has been taken and the pod was started.
func (w *worker) waitStarted(ctx context.Context, job *job, n int, verb string) error {
	var failure error
	snap, err := w.wait(ctx, func(s *snapshot) bool {
		job.meets(s.problem)
		if s.taken < n || s.ThenRun {
			return false
		}
		job.progress(s.detail.State, 0)
		failure = nil
		if s.Desired == pod.DesiredRun {
			failure = startFailure(s)
		}
		return s.Desired != pod.DesiredRun || failure != nil || pod.Started(s.Pod, s.Observation)
	})
	switch {
	case err != nil:
		return notYet(w, snap, pod.WaitStarted, err)
	case snap.removed || snap.Desired != pod.DesiredRun:
		return pod.Errorf(pod.Conflict, "cannot %s pod %s: somebody else has stopped or deleted it meanwhile", verb, w.ref)
	}
	return failure
}

// Stop stops a pod as a job; it stays, and can be started again.
func (d *Daemon) Stop(ctx context.Context, ref pod.Ref, o pod.StopOptions) (uint32, error) {
	return d.podJob(ctx, "stop", ref, 0, func(ctx context.Context, job *job, w *worker) error {
		n := w.give(order{desired: pod.DesiredStop, grace: graceOf(o), force: o.Force})
		snap, err := w.wait(ctx, func(s *snapshot) bool {
			job.meets(s.problem)
			return s.taken >= n && (s.Desired == pod.DesiredRun || stopped(s))
		})
		if err == nil && !snap.removed && snap.Desired == pod.DesiredRun {
			err = pod.Errorf(pod.Conflict, "cannot stop pod %s: somebody else has started it meanwhile", ref)
		}
		return err
	})
}

// stopped says whether nothing of the pod runs.
func stopped(s *snapshot) bool {
	return s.Desired == pod.DesiredStop && !s.ThenRun && s.Sandbox.Stage.Absent()
}

// graceOf is the grace period that replaces the manifest's.
func graceOf(o pod.StopOptions) *time.Duration {
	if o.Force {
		zero := time.Duration(0)
		return &zero
	}
	return o.Grace
}

// Restart stops a pod and starts it again, as a job.
func (d *Daemon) Restart(ctx context.Context, ref pod.Ref, o pod.StopOptions) (uint32, error) {
	return d.podJob(ctx, "restart", ref, d.config.JobTimeout.Duration, func(ctx context.Context, job *job, w *worker) error {
		return w.waitStarted(ctx, job, w.give(order{desired: pod.DesiredStop, grace: graceOf(o), thenRun: true}), "restart")
	})
}

// Delete deletes a pod as a job, which ends when nothing is left of it.
func (d *Daemon) Delete(ctx context.Context, ref pod.Ref, o pod.StopOptions) (uint32, error) {
	return d.podJob(ctx, "delete", ref, 0, func(ctx context.Context, job *job, w *worker) error {
		w.give(order{desired: pod.DesiredDelete, grace: graceOf(o), force: o.Force})
		_, err := w.wait(ctx, func(s *snapshot) bool { job.meets(s.problem); return s.removed })
		return err
	})
}

// Kill sends a signal to the first process of a container, or of every running container.
func (d *Daemon) Kill(ctx context.Context, ref pod.Ref, container string, sig syscall.Signal) error {
	w, err := d.meet(ctx, ref)
	if err != nil {
		return err
	}
	snap := w.snapshot()
	if container != "" {
		if _, err := snap.container(container); err != nil {
			return err
		}
		return w.manager.SignalContainer(ctx, w.ref, container, sig)
	}
	running := 0
	var errs []error
	for name, o := range snap.Containers {
		if o.Stage != pod.ContainerRunning && o.Stage != pod.ContainerStopping {
			continue
		}
		running++
		err := w.manager.SignalContainer(ctx, w.ref, name, sig)
		if kind := pod.KindOf(err); kind != pod.Conflict && kind != pod.NotFound { // it has ended meanwhile
			errs = append(errs, err)
		}
	}
	if running == 0 {
		return pod.Errorf(pod.Conflict, "cannot kill pod %s: no container of it runs", ref)
	}
	return errors.Join(errs...)
}

// Get returns everything about one pod.
func (d *Daemon) Get(namespace, name string) (pod.Detail, error) {
	w, err := d.find(pod.Ref{Namespace: namespace, Name: name})
	if err != nil {
		return pod.Detail{}, err
	}
	return w.snapshot().detail, nil
}

// GetByUID returns everything about one pod.
func (d *Daemon) GetByUID(uid types.UID) (pod.Detail, error) {
	d.mu.Lock()
	w := d.byUID[uid]
	d.mu.Unlock()
	if w == nil {
		return pod.Detail{}, pod.Errorf(pod.NotFound, "cannot find the pod with UID %s", uid)
	}
	return w.snapshot().detail, nil
}

// List returns all pods, sorted by namespace and name.
func (d *Daemon) List() []pod.Summary {
	workers := d.workers()
	list := make([]pod.Summary, 0, len(workers))
	for _, w := range workers {
		list = append(list, w.snapshot().detail.Summary)
	}
	return list
}

// GetByPID returns the pod that a process belongs to: the one whose slice its cgroup lies in.
func (d *Daemon) GetByPID(pid int) (pod.Ref, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return pod.Ref{}, pod.Errorf(pod.NotFound, "cannot find the pod of process %d: there is no such process", pid)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return pod.Ref{}, pod.Errorf(pod.NotFound, "cannot find the pod of process %d: it has ended", pid)
	}
	for line := range bytes.Lines(data) {
		_, path, ok := strings.Cut(string(bytes.TrimSpace(line)), "::")
		if !ok {
			continue
		}
		for part := range strings.SplitSeq(path, "/") {
			if w := d.bySlice(part); w != nil {
				return w.ref, nil
			}
		}
	}
	return pod.Ref{}, pod.Errorf(pod.NotFound, "cannot find the pod of process %d: it is in none", pid)
}

// Classes lists the runtime classes.
func (d *Daemon) Classes() []pod.ClassInfo {
	classes := d.registry.Classes()
	for i, c := range classes {
		if text := d.host.unenforced(c.Name); text != "" && c.Available {
			classes[i].Reason += "; " + text
		}
	}
	return classes
}
