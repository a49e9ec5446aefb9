package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/shim"
	"github.com/magikrun/magikpod/volume"
)

// configError is a container that cannot be started as its manifest has it: CreateContainerConfigError.
type configError struct{ err error }

func (e *configError) Error() string { return e.err.Error() }
func (e *configError) Unwrap() error { return e.err }

// started takes in what has become of an attempt at a container.
func (w *worker) started(ctx context.Context, t task, r result) error {
	if t.err != nil {
		return w.startFailed(t, &configError{t.err})
	}
	c, err := pod.FindContainer(&t.pod.Spec, t.Container), r.err
	if r.pulled {
		w.event(corev1.EventTypeNormal, "Pulled", c.Name, fmt.Sprintf("Successfully pulled image %q", c.Image))
	}
	seen := w.observe(ctx)
	if err != nil && ctx.Err() != nil { // something newer is wanted
		return err
	}
	if !seen { // nobody knows what has become of it
		return cmp.Or(err, errUnseen)
	}
	o := w.record.Containers[c.Name]
	if err != nil && o.Attempt == t.Attempt && o.Stage == pod.ContainerRunning {
		w.log.Warn("the container runs, although its start ended with an error", shim.FieldContainer, c.Name, "error", err)
		err = nil
	}
	if err == nil && o.Attempt != t.Attempt {
		err = pod.Errorf(pod.Internal, "the runtime knows nothing of attempt %d", t.Attempt)
	}
	if err != nil {
		return w.startFailed(t, err)
	}
	o.Waiting, o.Image, o.ImageID = nil, r.image.Reference, r.image.ID
	w.record.SetContainer(c.Name, o)
	if t.Attempt > 0 {
		w.d.metrics.observeRestart()
	}
	w.event(corev1.EventTypeNormal, "Started", c.Name, "Started container "+c.Name+because(t.Why))
	return nil
}

var errUnseen = errors.New("the runtime cannot be asked what is true of the pod")

// startFailed records why an attempt could not be made; the container's own start error is in the
// observation already.
func (w *worker) startFailed(t task, err error) error {
	o := w.record.Containers[t.Container]
	if o.Stage != pod.ContainerExited || o.Attempt != t.Attempt || o.Reason != pod.ReasonStartError {
		o.Waiting = waitingOf(err, t.waiting, time.Now())
		w.record.SetContainer(t.Container, o)
	}
	w.event(corev1.EventTypeWarning, "Failed", t.Container, "Failed to start container "+t.Container+": "+err.Error())
	return err
}

// runContainer makes one attempt at a container.
func (w *worker) runContainer(ctx context.Context, t task, c *corev1.Container, img runtime.Image) error {
	p := t.pod
	env, err := pod.ResolveEnv(p, c, w.d.envSources(p, t.ips))
	if err != nil {
		return &configError{err}
	}
	mounts, err := t.sandbox.prepared.Mounts(c)
	if err != nil {
		return &configError{err}
	}
	mounts = volume.JoinMounts(t.sandbox.etc, mounts)
	if path := c.TerminationMessagePath; path != "" {
		m, err := w.d.volumes.TerminationMessage(p.UID, c.Name, t.Attempt, path)
		if err != nil {
			return &configError{err}
		}
		mounts = append(mounts, m)
	}
	vars := make([]runtime.EnvVar, 0, len(env))
	for _, v := range env {
		vars = append(vars, runtime.EnvVar{Name: v.Name, Value: v.Value})
	}
	slot := runtime.NewSlot(w.d.starts[w.manager.Class().Name]) // only so many containers are started at once
	if err := slot.Take(ctx); err != nil {
		return err
	}
	defer slot.Release()
	return w.manager.RunContainer(runtime.WithSlot(ctx, slot), runtime.ContainerConfig{
		Pod: p, Container: c, Attempt: t.Attempt, Image: img, Env: vars, Mounts: mounts, StopAfter: stopAfter(p, c.Name),
	})
}

// stopAfter names the containers that must have ended before the sidecar name is stopped: the
// containers, and the sidecars after it.
func stopAfter(p *corev1.Pod, name string) []string {
	i := slices.IndexFunc(p.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == name })
	if i < 0 || !pod.Sidecar(&p.Spec.InitContainers[i]) {
		return nil
	}
	var later []string
	for _, c := range p.Spec.InitContainers[i+1:] {
		if pod.Sidecar(&c) {
			later = append(later, c.Name)
		}
	}
	for _, c := range p.Spec.Containers {
		later = append(later, c.Name)
	}
	return later
}
