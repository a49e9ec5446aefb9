package daemon

import (
	"context"
	"reflect"
	"strings"
	"time"

	"github.com/magikrun/magikpod/pod"
)

// standing is how far a worker is with its pod.
type standing struct {
	taken      int   // orders that were taken into account
	sandboxErr error // why the sandbox could not be made, until it could
	commitErr  error // why the pod could not be committed
	problem    error // why the last step has failed, which is tried again
	removed    bool  // nothing follows
}

// snapshot is an immutable picture of a pod: what readers get without waiting for the worker. Its
// record has no serial.
type snapshot struct {
	record
	standing
	detail pod.Detail
}

// snapshot returns the newest picture.
func (w *worker) snapshot() *snapshot { return w.picture.Load() }

// wait returns the first snapshot for which done says true. Other ends: ctx, or the worker's own
// (the last snapshot is returned then).
func (w *worker) wait(ctx context.Context, done func(*snapshot) bool) (*snapshot, error) {
	for {
		w.mu.Lock()
		next := w.watchers
		w.mu.Unlock()
		snap := w.snapshot()
		if done(snap) || snap.removed {
			return snap, nil
		}
		select {
		case <-next:
		case <-w.ended:
			if snap = w.snapshot(); done(snap) || snap.removed {
				return snap, nil
			}
			return snap, pod.Errorf(pod.Unavailable, "cannot wait for pod %s: the daemon is ending", w.ref)
		case <-ctx.Done():
			return w.snapshot(), context.Cause(ctx)
		}
	}
}

// refresh computes the status and publishes it when something has changed.
func (w *worker) refresh(now time.Time) {
	if w.damaged {
		w.publish()
		return
	}
	status := pod.StatusOf(w.record.Pod, w.record.Observation, w.record.Pod.Status, now)
	if !reflect.DeepEqual(status, w.record.Pod.Status) {
		p := *w.record.Pod // the pod that was handed out is not modified
		p.Status = status
		w.record.Pod = &p
	}
	w.publish()
}

// publish makes a new picture and wakes who waits for it.
func (w *worker) publish() {
	r := *w.record
	r.Serial = 0
	ready, total, restarts := pod.ReadyCount(r.Pod, r.Observation)
	next := &snapshot{record: r, standing: w.standing, detail: pod.Detail{
		Summary: pod.Summary{
			Ref: w.ref, Phase: string(r.Pod.Status.Phase), State: pod.DisplayState(r.Pod, r.Observation), Class: pod.ClassOf(r.Pod),
			Ready: ready, Total: total, Restarts: restarts, IPs: texts(r.PodIPs), Created: r.Pod.CreationTimestamp.Time,
			Slice: w.d.sliceOf(w.ref),
		},
		Pod: r.Pod, Events: r.Events,
	}}
	old := w.picture.Load()
	if old != nil && reflect.DeepEqual(old, next) {
		return
	}
	w.picture.Store(next)
	w.mu.Lock()
	close(w.watchers)
	w.watchers = make(chan struct{})
	w.mu.Unlock()
	if old == nil || next.removed {
		return
	}
	if !reflect.DeepEqual(old.detail, next.detail) {
		w.d.notices.report(pod.Notice{Kind: pod.NoticePodChanged, Ref: w.ref})
	}
}

// container finds a container; "": the one that a command means which names none
// (kubectl.kubernetes.io/default-container, else the first).
func (s *snapshot) container(name string) (string, error) {
	annotated := s.Pod.Annotations["kubectl.kubernetes.io/default-container"]
	switch {
	case name != "":
	case annotated != "" && pod.FindContainer(&s.Pod.Spec, annotated) != nil:
		name = annotated
	case len(s.Pod.Spec.Containers) > 0: // else its record is damaged
		name = s.Pod.Spec.Containers[0].Name
	}
	if pod.FindContainer(&s.Pod.Spec, name) == nil {
		return "", pod.Errorf(pod.NotFound, "cannot find container %q in pod %s: it has %s", name, s.detail.Ref, strings.Join(containerNames(s.Pod), ", "))
	}
	return name, nil
}
