package runtimetest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// world is what service manager and kernel are to a real class: it outlives the daemon.
type world struct {
	mu           sync.Mutex
	listener     *Fake
	pods         map[types.UID]*fakePod
	behaviors    map[string][]Behavior // by container, then by attempt
	sandboxDelay time.Duration
	lastPID      int
	dirty        []pod.Ref // to be reported when mu is free
}

// fakePod is what exists of one pod.
type fakePod struct {
	ref        pod.Ref
	sandbox    pod.SandboxState
	config     runtime.SandboxConfig
	containers map[string]*fakeContainer
	files      bool          // what Forget removes
	changed    chan struct{} // closed and replaced at every change
}

// with runs do with the world to itself, then reports what has changed.
func (w *world) with(do func()) {
	w.mu.Lock()
	do()
	dirty := w.dirty
	w.dirty = nil
	listener := w.listener
	w.mu.Unlock()
	for _, ref := range dirty {
		listener.notify(ref)
	}
}

// after is with, later.
func (w *world) after(d time.Duration, do func()) *time.Timer {
	return time.AfterFunc(d, func() { w.with(do) })
}

// touch marks the pod as changed.
func (w *world) touch(p *fakePod) {
	close(p.changed)
	p.changed = make(chan struct{})
	w.dirty = append(w.dirty, p.ref)
}

// exists says whether the kernel holds something of the pod: files alone need no adoption.
func (w *world) exists(uid types.UID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.pods[uid]
	return p != nil && p.sandbox.Stage != pod.SandboxAbsent
}

func (w *world) createSandbox(ref pod.Ref, config runtime.SandboxConfig) (err error) {
	w.with(func() {
		p := w.pods[ref.UID]
		if p == nil {
			p = &fakePod{ref: ref, containers: map[string]*fakeContainer{}, changed: make(chan struct{})}
			p.sandbox.Stage = pod.SandboxAbsent
			w.pods[ref.UID] = p
		}
		switch p.sandbox.Stage {
		case pod.SandboxDead:
			err = pod.Errorf(pod.Conflict, "cannot create sandbox: a dead one is there")
			return
		case pod.SandboxReady, pod.SandboxStarting:
			return
		}
		p.files, p.config = true, config
		p.sandbox = pod.SandboxState{Stage: pod.SandboxReady}
		if w.sandboxDelay > 0 {
			p.sandbox.Stage = pod.SandboxStarting
			w.after(w.sandboxDelay, func() {
				if p.sandbox.Stage == pod.SandboxStarting {
					p.sandbox.Stage = pod.SandboxReady
					w.touch(p)
				}
			})
		}
		w.touch(p)
	})
	return err
}

// await waits until done, which is called with the world to itself, returns true.
func (w *world) await(ctx context.Context, p *fakePod, done func() bool) error {
	for {
		var over bool
		var changed chan struct{}
		w.with(func() {
			changed = p.changed // of before: done may change something itself
			over = done()
		})
		if over {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return pod.Errorf(pod.Unavailable, "%w", context.Cause(ctx))
		}
	}
}

func (w *world) run(ctx context.Context, ref pod.Ref, config runtime.ContainerConfig) error {
	name := config.Container.Name
	fail := func(kind pod.Kind, format string, args ...any) error {
		return pod.Errorf(kind, "cannot start container %q: %w", name, fmt.Errorf(format, args...))
	}
	var p *fakePod
	w.with(func() { p = w.pods[ref.UID] })
	if p == nil {
		return fail(pod.Conflict, "the pod has no sandbox")
	}
	if err := w.await(ctx, p, func() bool { return p.sandbox.Stage != pod.SandboxStarting }); err != nil {
		return fail(pod.Unavailable, "%w", err)
	}
	var old, c *fakeContainer
	var err error
	w.with(func() {
		old = p.containers[name]
		switch {
		case p.sandbox.Stage != pod.SandboxReady:
			err = fail(pod.Conflict, "the sandbox is %s", p.sandbox.Stage)
		case old != nil && old.state.Attempt > config.Attempt:
			err = fail(pod.Conflict, "attempt %d was made already", old.state.Attempt)
		case old != nil && old.state.Attempt == config.Attempt:
			c = old // made already, and perhaps failed
		case old != nil && old.state.Stage.Live():
			err = fail(pod.Conflict, "attempt %d is %s", old.state.Attempt, old.state.Stage)
		default:
			c = w.start(p, config)
		}
	})
	if err != nil {
		return err
	}
	if err := w.await(ctx, p, func() bool { return c.state.Stage != pod.ContainerStarting }); err != nil {
		w.with(func() {
			if p.containers[name] == c && c.state.Stage == pod.ContainerStarting {
				c.halt()
				delete(p.containers, name)
				if old != nil && old != c {
					p.containers[name] = old
				}
				w.touch(p)
			}
		})
		return fail(pod.Unavailable, "%w", err)
	}
	var state pod.ContainerState
	w.with(func() { state = c.state })
	if state.Reason == pod.ReasonStartError {
		return fail(pod.Internal, "%s", state.Message)
	}
	return nil
}

func (w *world) signal(ref pod.Ref, name string, sig syscall.Signal) (err error) {
	w.with(func() {
		p, c := w.find(ref, name)
		if err = c.running("signal", name); err == nil {
			w.deliver(p, c, sig)
		}
	})
	return err
}

// find returns the container, or nil.
func (w *world) find(ref pod.Ref, name string) (*fakePod, *fakeContainer) {
	p := w.pods[ref.UID]
	if p == nil {
		return nil, nil
	}
	return p, p.containers[name]
}

func (w *world) stop(ctx context.Context, ref pod.Ref, name string, grace time.Duration) error {
	var p *fakePod
	var c *fakeContainer
	w.with(func() {
		if p, c = w.find(ref, name); c != nil {
			w.terminate(p, c, grace)
		}
	})
	if c == nil {
		return nil
	}
	if err := w.await(ctx, p, func() bool { return !c.state.Stage.Live() }); err != nil {
		return pod.Errorf(pod.Unavailable, "cannot stop container %q: %w", name, err)
	}
	return nil
}

func (w *world) deleteSandbox(ctx context.Context, ref pod.Ref, grace time.Duration) (pod.RuntimeState, error) {
	state := pod.RuntimeState{Sandbox: pod.SandboxState{Stage: pod.SandboxAbsent}, Containers: map[string]pod.ContainerState{}}
	var p *fakePod
	w.with(func() { p = w.pods[ref.UID] })
	if p == nil {
		return state, nil
	}
	err := w.await(ctx, p, func() bool {
		live := false
		for _, c := range p.containers {
			if !c.state.Stage.Live() {
				continue
			}
			live = true
			if !slices.ContainsFunc(c.stopAfter, func(name string) bool {
				first := p.containers[name]
				return first != nil && first.state.Stage.Live()
			}) {
				w.terminate(p, c, grace)
			}
		}
		return !live
	})
	if err != nil {
		return pod.RuntimeState{}, pod.Errorf(pod.Unavailable, "cannot delete sandbox: %w", err)
	}
	w.with(func() {
		for name, c := range p.containers {
			state.Containers[name] = c.state
		}
		w.clear(p)
	})
	return state, nil
}

// clear removes what runs or ran of the pod; its files stay.
func (w *world) clear(p *fakePod) {
	for _, c := range p.containers {
		c.halt()
	}
	p.containers = map[string]*fakeContainer{}
	p.sandbox, p.config = pod.SandboxState{Stage: pod.SandboxAbsent}, runtime.SandboxConfig{}
	w.touch(p)
}

func (w *world) forget(ref pod.Ref) (err error) {
	w.with(func() {
		p := w.pods[ref.UID]
		if p == nil {
			return
		}
		if p.sandbox.Stage != pod.SandboxAbsent {
			err = pod.Errorf(pod.Conflict, "cannot forget the pod: its sandbox is %s", p.sandbox.Stage)
			return
		}
		delete(w.pods, ref.UID)
	})
	return err
}

func (w *world) observe(ref pod.Ref) pod.RuntimeState {
	state := pod.RuntimeState{Sandbox: pod.SandboxState{Stage: pod.SandboxAbsent}, Containers: map[string]pod.ContainerState{}}
	w.with(func() {
		if p := w.pods[ref.UID]; p != nil {
			state.Sandbox = p.sandbox
			for name, c := range p.containers {
				state.Containers[name] = c.state
			}
		}
	})
	return state
}

// refs returns the pods of which something exists, in the order of their names.
func (w *world) refs() []pod.Ref {
	var refs []pod.Ref
	for p := range maps.Values(w.pods) {
		refs = append(refs, p.ref)
	}
	slices.SortFunc(refs, func(a, b pod.Ref) int { return cmp.Compare(a.String()+string(a.UID), b.String()+string(b.UID)) })
	return refs
}
