package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/netsetup"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/shim"
	"github.com/magikrun/magikpod/volume"
)

// sandbox is what starts of containers need to know of the pod's sandbox.
type sandbox struct {
	prepared *volume.Prepared
	etc      []runtime.Mount
}

// configError is a container that cannot be started as its manifest has it: CreateContainerConfigError.
type configError struct{ err error }

func (e *configError) Error() string { return e.err.Error() }
func (e *configError) Unwrap() error { return e.err }

// ready returns the steps up to the first one that is held back after a failure, and until when that is.
func (w *worker) ready(steps []pod.Step, now time.Time) ([]pod.Step, time.Time) {
	for i, s := range steps {
		if h := w.held[holdKey{s.Op, s.Container}]; h != nil && h.until.After(now) {
			return steps[:i], h.until
		}
	}
	return steps, time.Time{}
}

// failed holds a step back that has just failed, and remembers why.
func (w *worker) failed(s pod.Step, err error) {
	w.problem = err
	key := holdKey{s.Op, s.Container}
	h := w.held[key]
	if h == nil {
		h = new(hold)
		w.held[key] = h
	}
	h.until = time.Now().Add(min(firstHold<<min(h.failures, 16), lastHold))
	h.failures++
}

// act carries out steps, neighbours of one kind at the same time. It returns early when a newer order comes.
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

// together carries out steps of one kind at the same time. Meanwhile the world is watched: what happens to other containers shows in the status.
func (w *worker) together(ctx context.Context, steps []pod.Step) (ok bool) {
	effects := make(chan func() error, len(steps))
	for _, s := range steps {
		effect := w.effect(s)
		go func() { effects <- effect(ctx) }()
	}
	watch := w.wake
	if op := steps[0].Op; op != pod.OpStartContainer && op != pod.OpStopContainer {
		watch = nil // the runtime is about to forget what it knows: its word comes with the effect
	}
	ok = true
	woken := false
	for left := len(steps); left > 0; {
		select {
		case apply := <-effects:
			left--
			if err := apply(); err != nil {
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
		w.nudge()
	}
	if ok {
		w.problem = nil
	}
	w.refresh(time.Now())
	return ok
}

// effect returns what carries out the step on a goroutine of its own; that returns what is to be done with the result on the worker's.
func (w *worker) effect(s pod.Step) func(context.Context) func() error {
	w.log.Debug(s.String())
	switch s.Op {
	case pod.OpCreateSandbox:
		return w.createSandbox(s)
	case pod.OpStartContainer:
		return w.startContainer(s)
	case pod.OpStopContainer:
		return w.stopContainer(s)
	case pod.OpDeleteSandbox:
		return w.deleteSandbox(s)
	case pod.OpFinish:
		return w.finish(s)
	case pod.OpDeletePod:
		return w.deletePod(s)
	}
	panic("internal error: unknown step " + string(s.Op))
}

// cutShort says whether a step ended because something newer is wanted, not because it failed.
func cutShort(ctx context.Context, err error) bool {
	return err != nil && ctx.Err() != nil
}

// createSandbox makes the network namespace, its network and the volumes, and the runtime's sandbox, as far as possible at the same time.
func (w *worker) createSandbox(s pod.Step) func(context.Context) func() error {
	p := w.record.Pod
	return func(ctx context.Context) func() error {
		made, ips, err := w.makeSandbox(ctx, p)
		return func() error {
			if err != nil {
				if !cutShort(ctx, err) {
					w.sandboxErr = err
					w.failed(s, err)
					w.event(corev1.EventTypeWarning, "FailedCreatePodSandBox", "", "Failed to create pod sandbox: "+err.Error())
				}
				return err
			}
			w.sandbox, w.sandboxErr, w.record.PodIPs = made, nil, ips
			delete(w.held, holdKey{op: s.Op})
			w.observe(ctx)
			return nil
		}
	}
}

func (w *worker) makeSandbox(ctx context.Context, p *corev1.Pod) (_ *sandbox, ips []netip.Addr, err error) {
	created := false // the runtime itself undoes what it could not complete, and nothing but that
	defer func() {
		if err != nil {
			w.unmakeSandbox(context.WithoutCancel(ctx), created)
		}
	}()
	hostname, _, err := w.d.hostnameOf(p)
	if err != nil {
		return nil, nil, err
	}
	prepared, err := w.d.volumes.Prepare(ctx, p, w.d.volumeSources(p))
	if err != nil {
		return nil, nil, err
	}
	config := runtime.SandboxConfig{
		Pod: p, SharedTmpfs: prepared.Tmpfs(),
		Network: runtime.Network{Host: p.Spec.HostNetwork, Hostname: hostname},
		LogDir:  w.d.podLogDir(w.ref),
	}
	if p.Spec.HostNetwork {
		if err := w.manager.CreateSandbox(ctx, config); err != nil {
			return nil, nil, err
		}
		created = true
		etc, err := w.etcFiles(p, nil)
		return &sandbox{prepared, etc}, w.d.hostIPs(), err
	}
	want, err := netsetup.NetworkOf(p)
	if err != nil {
		return nil, nil, err
	}
	ns, err := w.d.networks.NewNamespace()
	if err != nil {
		return nil, nil, err
	}
	defer ns.Close()
	config.Network.NetNS = ns
	var result netsetup.Result
	var netErr error
	var wg sync.WaitGroup
	creating, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	wg.Go(func() {
		if result, netErr = w.d.networks.Setup(ctx, want, ns); netErr != nil {
			cancel(netErr) // a machine waits for its network
		}
	})
	err = w.manager.CreateSandbox(creating, config)
	created = err == nil
	wg.Wait()
	if netErr != nil && errors.Is(err, netErr) {
		err = nil // it says nothing else
	}
	if err := errors.Join(err, netErr); err != nil {
		return nil, nil, firstKind(err, netErr)
	}
	etc, err := w.etcFiles(p, result.IPs)
	return &sandbox{prepared, etc}, result.IPs, err
}

// firstKind keeps the kind of the error that has one when two were joined.
func firstKind(joined, other error) error {
	if kind := pod.KindOf(joined); kind == pod.Internal && other != nil {
		return pod.WithKind(pod.KindOf(other), joined)
	}
	return joined
}

// unmakeSandbox removes what a failed makeSandbox has left.
func (w *worker) unmakeSandbox(ctx context.Context, created bool) {
	if created {
		if _, err := w.manager.DeleteSandbox(ctx, w.ref, 0); err != nil {
			w.log.Warn("cannot remove a half made sandbox", "error", err)
		}
	}
	if err := w.d.networks.Teardown(ctx, w.ref.UID); err != nil {
		w.log.Warn("cannot remove a half made network", "error", err)
	}
}

// etcFiles writes /etc/hosts, /etc/hostname and /etc/resolv.conf of the pod, whose addresses do not count in the host's network.
func (w *worker) etcFiles(p *corev1.Pod, ips []netip.Addr) ([]runtime.Mount, error) {
	hostname, fqdn, err := w.d.hostnameOf(p)
	if err != nil {
		return nil, err
	}
	var base []byte
	if p.Spec.HostNetwork {
		base = readBounded("/etc/hosts")
		ips = nil
	}
	return w.d.volumes.EtcFiles(p.UID,
		netsetup.HostsFile(base, ips, hostname, fqdn, p.Spec.HostAliases),
		[]byte(hostname+"\n"),
		netsetup.ResolvConf(p.Spec.DNSPolicy, p.Spec.DNSConfig, hostResolvConf(p.Spec.HostNetwork)))
}

// readBounded reads a small file of the host's; nothing when it cannot.
func readBounded(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	data := make([]byte, 256<<10)
	n := 0
	for n < len(data) {
		got, err := f.Read(data[n:])
		n += got
		if err != nil {
			break
		}
	}
	return data[:n]
}

// startContainer runs one attempt at a container.
func (w *worker) startContainer(s pod.Step) func(context.Context) func() error {
	p, ips, before := w.record.Pod, w.record.PodIPs, w.record.Containers[s.Container].Waiting
	c := pod.FindContainer(&p.Spec, s.Container)
	if err := w.ensureSandbox(p); err != nil {
		return func(context.Context) func() error {
			return func() error { return w.startFailed(s, before, &configError{err}) }
		}
	}
	made := w.sandbox
	return func(ctx context.Context) func() error {
		img, pulled, err := w.d.containerImage(ctx, p, c)
		if err == nil {
			err = w.runContainer(ctx, p, c, s.Attempt, img, made, ips)
		}
		return func() error {
			if pulled {
				w.event(corev1.EventTypeNormal, "Pulled", c.Name, fmt.Sprintf("Successfully pulled image %q", c.Image))
			}
			seen := w.observe(ctx)
			if cutShort(ctx, err) {
				return err
			}
			if !seen { // nobody knows what has become of it
				return cmp.Or(err, errUnseen)
			}
			o := w.record.Containers[c.Name]
			if err != nil && o.Attempt == s.Attempt && o.Stage == pod.ContainerRunning {
				w.log.Warn("the container runs, although its start ended with an error", shim.FieldContainer, c.Name, "error", err)
				err = nil
			}
			if err == nil && o.Attempt != s.Attempt {
				err = pod.Errorf(pod.Internal, "the runtime knows nothing of attempt %d", s.Attempt)
			}
			if err != nil {
				return w.startFailed(s, before, err)
			}
			o.Waiting, o.Image, o.ImageID = nil, img.Reference, img.ID
			w.setContainer(c.Name, o)
			if s.Attempt > 0 {
				w.d.metrics.observeRestart()
			}
			w.event(corev1.EventTypeNormal, "Started", c.Name, "Started container "+c.Name+because(s.Why))
			return nil
		}
	}
}

var errUnseen = errors.New("the runtime cannot be asked what is true of the pod")

// ensureSandbox makes sure that what starts need of the sandbox is known: a daemon that came later has not made it.
func (w *worker) ensureSandbox(p *corev1.Pod) error {
	if w.sandbox != nil {
		return nil
	}
	prepared, err := w.d.volumes.Prepare(w.d.ctx, p, w.d.volumeSources(p))
	if err != nil {
		return err
	}
	etc, err := w.etcFiles(p, w.record.PodIPs)
	if err != nil {
		return err
	}
	w.sandbox = &sandbox{prepared, etc}
	return nil
}

// startFailed records why an attempt could not be made; the container's own start error is in the observation already.
func (w *worker) startFailed(s pod.Step, before *pod.Waiting, err error) error {
	o := w.record.Containers[s.Container]
	if o.Stage != pod.ContainerExited || o.Attempt != s.Attempt || o.Reason != pod.ReasonStartError {
		o.Waiting = waitingOf(err, before, time.Now())
		w.setContainer(s.Container, o)
	}
	w.event(corev1.EventTypeWarning, "Failed", s.Container, "Failed to start container "+s.Container+": "+err.Error())
	return err
}

// setContainer changes the memory of one container; the map that was published stays as it is.
func (w *worker) setContainer(name string, o pod.ContainerObservation) {
	next := make(map[string]pod.ContainerObservation, len(w.record.Containers)+1)
	for k, v := range w.record.Containers {
		next[k] = v
	}
	next[name] = o
	w.record.Containers = next
}

func (w *worker) runContainer(ctx context.Context, p *corev1.Pod, c *corev1.Container, attempt int, img runtime.Image, made *sandbox, ips []netip.Addr) error {
	env, err := pod.ResolveEnv(p, c, w.d.envSources(p, ips))
	if err != nil {
		return &configError{err}
	}
	mounts, err := made.prepared.Mounts(c)
	if err != nil {
		return &configError{err}
	}
	mounts = volume.JoinMounts(made.etc, mounts)
	if path := c.TerminationMessagePath; path != "" {
		m, err := w.d.volumes.TerminationMessage(p.UID, c.Name, attempt, path)
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
		Pod: p, Container: c, Attempt: attempt, Image: img, Env: vars, Mounts: mounts, StopAfter: stopAfter(p, c.Name),
	})
}

// stopAfter names the containers that must have ended before the sidecar name is stopped: the containers, and the sidecars after it.
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

// stopContainer stops one container.
func (w *worker) stopContainer(s pod.Step) func(context.Context) func() error {
	w.event(corev1.EventTypeNormal, "Killing", s.Container, "Stopping container "+s.Container+because(s.Why))
	return func(ctx context.Context) func() error {
		err := w.manager.StopContainer(ctx, w.ref, s.Container, s.Grace)
		return func() error {
			w.observe(ctx)
			if err != nil && !cutShort(ctx, err) {
				w.failed(s, err)
				w.event(corev1.EventTypeWarning, "FailedKillContainer", s.Container, "Cannot stop container "+s.Container+": "+err.Error())
			}
			return err
		}
	}
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}

// deleteSandbox stops everything and removes the sandbox and its network.
func (w *worker) deleteSandbox(s pod.Step) func(context.Context) func() error {
	for name, o := range w.record.Containers {
		if o.Stage.Live() {
			w.event(corev1.EventTypeNormal, "Killing", name, "Stopping container "+name+because(s.Why))
		}
	}
	return func(ctx context.Context) func() error {
		state, err := w.manager.DeleteSandbox(ctx, w.ref, s.Grace)
		var netErr error
		if err == nil {
			netErr = w.d.networks.Teardown(context.WithoutCancel(ctx), w.ref.UID)
		}
		return func() error {
			if err == nil {
				w.adopted = true // nothing is left of what could not be
				w.fold(state)
			}
			if err := errors.Join(err, netErr); err != nil {
				if !cutShort(ctx, err) {
					w.failed(s, err)
					w.event(corev1.EventTypeWarning, "FailedKillPod", "", "Cannot remove the pod's sandbox: "+err.Error())
				}
				return err
			}
			w.sandbox, w.record.PodIPs = nil, nil
			delete(w.held, holdKey{op: s.Op})
			return nil
		}
	}
}

// finish records that the pod has reached its end.
func (w *worker) finish(s pod.Step) func(context.Context) func() error {
	return func(context.Context) func() error {
		return func() error {
			w.record.Finished = true
			w.event(corev1.EventTypeNormal, "Finished", "", "The pod has finished"+because(s.Why))
			return nil
		}
	}
}

// deletePod removes what is left of the pod on disk, and its name.
func (w *worker) deletePod(s pod.Step) func(context.Context) func() error {
	force := w.record.Force
	return func(ctx context.Context) func() error {
		ctx = context.WithoutCancel(ctx)
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
		return func() error {
			if err != nil {
				w.event(corev1.EventTypeWarning, "FailedDelete", "", "Cannot remove the pod: "+err.Error())
				if !force {
					w.failed(s, err)
					return err
				}
			}
			w.removed = true
			w.d.removed(w)
			return nil
		}
	}
}
