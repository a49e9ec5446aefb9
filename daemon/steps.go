package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
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

// apply takes the result of a task into the memory, and reports it. It returns why the steps that follow cannot be carried out.
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

// makeSandbox makes the network namespace, its network and the volumes, and the runtime's sandbox, as far as possible at the same time.
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
			cancel(netErr) // a VM waits for its network
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
	data, _ := io.ReadAll(io.LimitReader(f, 256<<10)) // what could be read
	return data
}

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
