package daemon

import (
	"context"
	"errors"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// task is a step with what only the worker's goroutine may read of the pod.
type task struct {
	pod.Step
	pod     *corev1.Pod
	ips     []netip.Addr
	waiting *pod.Waiting // why the container's last attempt could not be made
	sandbox *sandbox
	force   bool
	err     error // why the step cannot be begun
}

// result is what has become of a step.
type result struct {
	err error
	// Of a sandbox that was made.
	sandbox *sandbox
	ips     []netip.Addr
	// Of a container that was started.
	image  runtime.Image
	pulled bool
	// gone is what was left of a sandbox when the runtime had deleted it.
	gone *pod.RuntimeState
}

// due returns the steps up to the first one that has a backoff, and until when that is.
func (w *worker) due(steps []pod.Step, now time.Time) ([]pod.Step, time.Time) {
	for i, s := range steps {
		if b := w.backoffs[backoffKey{s.Op, s.Container}]; b != nil && b.until.After(now) {
			return steps[:i], b.until
		}
	}
	return steps, time.Time{}
}

// failed puts a step that has just failed into backoff, and remembers why.
func (w *worker) failed(s pod.Step, err error) {
	w.problem = err
	key := backoffKey{s.Op, s.Container}
	b := w.backoffs[key]
	if b == nil {
		b = new(backoff)
		w.backoffs[key] = b
	}
	b.failures++
	b.until = time.Now().Add(pod.Backoff(stepBackoff, b.failures))
}

// act carries out steps, neighbours of one kind at the same time. It returns early when a newer
// order comes.
func (w *worker) act(ctx context.Context, steps []pod.Step) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w.mu.Lock()
	if w.orders != w.taken {
		w.mu.Unlock()
		return
	}
	w.cut = cancel
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.cut = nil
		w.mu.Unlock()
	}()
	for len(steps) > 0 && ctx.Err() == nil {
		n := 1
		for n < len(steps) && steps[n].Op == steps[0].Op && steps[n].Container != "" {
			n++
		}
		if !w.together(ctx, steps[:n]) {
			return
		}
		steps = steps[n:]
	}
}

// together carries out steps of one kind at the same time. Meanwhile the world is watched: what
// happens to other containers shows in the status.
func (w *worker) together(ctx context.Context, steps []pod.Step) (ok bool) {
	type outcome struct {
		task
		result
	}
	outcomes := make(chan outcome, len(steps))
	for _, s := range steps {
		t := w.begin(s)
		go func() { outcomes <- outcome{t, w.carryOut(ctx, t)} }()
	}
	watch := w.wakes
	if op := steps[0].Op; op != pod.OpStartContainer && op != pod.OpStopContainer {
		watch = nil // the runtime is about to forget what it knows: its word comes with the result
	}
	ok = true
	woken := false
	for left := len(steps); left > 0; {
		select {
		case o := <-outcomes:
			left--
			if err := w.apply(ctx, o.task, o.result); err != nil {
				ok = ok && w.record.Force
			}
		case <-watch:
			woken = true
			w.takeCommit()
			w.observe(ctx)
			w.refresh(time.Now())
			w.save()
		}
	}
	if woken {
		w.wake()
	}
	if ok {
		w.problem = nil
	}
	w.refresh(time.Now())
	return ok
}

// begin makes a task of a step, and reports what is about to happen.
func (w *worker) begin(s pod.Step) task {
	w.log.Debug(s.String())
	r := w.record
	t := task{Step: s, pod: r.Pod, ips: r.PodIPs, force: r.Force}
	switch s.Op {
	case pod.OpStartContainer:
		t.waiting = r.Containers[s.Container].Waiting
		t.err = w.ensureSandbox(r.Pod)
		t.sandbox = w.sandbox
	case pod.OpStopContainer:
		w.event(corev1.EventTypeNormal, "Killing", s.Container, "Stopping container "+s.Container+because(s.Why))
	case pod.OpDeleteSandbox:
		for name, o := range r.Containers {
			if o.Stage.Live() {
				w.event(corev1.EventTypeNormal, "Killing", name, "Stopping container "+name+because(s.Why))
			}
		}
	}
	return t
}

// carryOut does what a task says, on a goroutine of its own.
func (w *worker) carryOut(ctx context.Context, t task) (r result) {
	if t.err != nil {
		return result{err: t.err}
	}
	switch t.Op {
	case pod.OpCreateSandbox:
		r.sandbox, r.ips, r.err = w.makeSandbox(ctx, t.pod)
	case pod.OpStartContainer:
		c := pod.FindContainer(&t.pod.Spec, t.Container)
		r.image, r.pulled, r.err = w.d.containerImage(ctx, t.pod, c)
		if r.err == nil {
			r.err = w.runContainer(ctx, t, c, r.image)
		}
	case pod.OpStopContainer:
		r.err = w.manager.StopContainer(ctx, w.ref, t.Container, t.Grace)
	case pod.OpDeleteSandbox:
		var state pod.RuntimeState
		if state, r.err = w.manager.DeleteSandbox(ctx, w.ref, t.Grace); r.err == nil {
			r.gone, r.err = &state, w.d.networks.Teardown(context.WithoutCancel(ctx), w.ref.UID)
		}
	case pod.OpFinish:
	case pod.OpDeletePod:
		r.err = w.deletePod(context.WithoutCancel(ctx), t.force)
	default:
		panic("internal error: unknown step " + string(t.Op))
	}
	return r
}

// apply takes the result of a task into the memory, and reports it. It returns why the steps that
// follow cannot be carried out.
func (w *worker) apply(ctx context.Context, t task, r result) error {
	failed := func(reason, container, text string) error {
		if ctx.Err() == nil || t.Op == pod.OpDeletePod {
			w.failed(t.Step, r.err)
			w.event(corev1.EventTypeWarning, reason, container, text+": "+r.err.Error())
		}
		return r.err
	}
	switch t.Op {
	case pod.OpCreateSandbox:
		if r.err != nil {
			if ctx.Err() == nil {
				w.sandboxErr = r.err
			}
			return failed("FailedCreatePodSandBox", "", "Failed to create pod sandbox")
		}
		w.sandbox, w.sandboxErr, w.record.PodIPs = r.sandbox, nil, r.ips
		delete(w.backoffs, backoffKey{op: t.Op})
		w.observe(ctx)
	case pod.OpStartContainer:
		return w.started(ctx, t, r)
	case pod.OpStopContainer:
		w.observe(ctx)
		if r.err != nil {
			return failed("FailedKillContainer", t.Container, "Cannot stop container "+t.Container)
		}
	case pod.OpDeleteSandbox:
		if r.gone != nil {
			w.adopted = true // nothing is left of what could not be
			w.fold(*r.gone)
		}
		if r.err != nil {
			return failed("FailedKillPod", "", "Cannot remove the pod's sandbox")
		}
		w.sandbox, w.record.PodIPs = nil, nil
		delete(w.backoffs, backoffKey{op: t.Op})
	case pod.OpFinish:
		w.record.Finished = true
		w.event(corev1.EventTypeNormal, "Finished", "", "The pod has finished"+because(t.Why))
	case pod.OpDeletePod:
		if r.err != nil && !t.force {
			return failed("FailedDelete", "", "Cannot remove the pod")
		}
		if r.err != nil {
			w.event(corev1.EventTypeWarning, "FailedDelete", "", "Cannot remove the pod: "+r.err.Error())
		}
		w.removed = true
		w.d.removed(w)
	}
	return nil
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}

// deletePod removes what is left of the pod on disk, and its name.
func (w *worker) deletePod(ctx context.Context, force bool) error {
	err := errors.Join(
		w.manager.Forget(ctx, w.ref),
		w.d.networks.Teardown(ctx, w.ref.UID),
		w.d.volumes.Remove(ctx, w.ref.UID),
		w.d.removeLogs(w.ref),
		w.d.objects.release(w.ref.UID),
	)
	if err == nil || force {
		err = errors.Join(err, w.d.store.remove(w.ref.UID))
	}
	return err
}
