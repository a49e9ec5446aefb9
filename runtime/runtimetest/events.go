package runtimetest

import (
	"slices"
	"syscall"
	"time"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// What happens to pods without the daemon's doing, and what can be asked about them.

// Behave says what the containers of that name do, in all pods: the first attempt as attempts[0]
// says and so on, the later ones as the last of them.
func (f *Fake) Behave(container string, attempts ...Behavior) {
	f.world.with(func() { f.world.behaviors[container] = slices.Clone(attempts) })
}

// DelaySandboxes makes new sandboxes stay Starting for that long.
func (f *Fake) DelaySandboxes(d time.Duration) {
	f.world.with(func() { f.world.sandboxDelay = d })
}

// Exit ends a running container with that code, as if its process had decided to; 128+N: as if
// signal N had killed it. It returns false when the container does not run.
func (f *Fake) Exit(ref pod.Ref, container string, code int) bool {
	return f.world.event(ref, container, func(p *fakePod, c *fakeContainer) { f.world.exit(p, c, code, "") })
}

// OOMKill ends a running container as the kernel does that is out of memory.
func (f *Fake) OOMKill(ref pod.Ref, container string) bool {
	return f.world.event(ref, container, func(p *fakePod, c *fakeContainer) {
		f.world.exit(p, c, 128+int(syscall.SIGKILL), pod.ReasonOOMKilled)
	})
}

// AdminStop is systemctl stop of the container's unit: it returns when the stop has begun.
func (f *Fake) AdminStop(ref pod.Ref, container string, grace time.Duration) bool {
	return f.world.event(ref, container, func(p *fakePod, c *fakeContainer) {
		c.state.StoppedByAdmin = true
		f.world.terminate(p, c, grace)
	})
}

// event does something to a running container.
func (w *world) event(ref pod.Ref, name string, do func(*fakePod, *fakeContainer)) (ok bool) {
	w.with(func() {
		if p, c := w.find(ref, name); c.running("", name) == nil {
			do(p, c)
			ok = true
		}
	})
	return ok
}

// KillSandbox ends the pause process. Containers that share its PID namespace die with it, others
// run on. It returns false when there is no sandbox.
func (f *Fake) KillSandbox(ref pod.Ref) (ok bool) {
	w := f.world
	w.with(func() {
		p := w.pods[ref.UID]
		if ok = p != nil && (p.sandbox.Stage == pod.SandboxReady || p.sandbox.Stage == pod.SandboxStarting); !ok {
			return
		}
		p.sandbox = pod.SandboxState{Stage: pod.SandboxDead, Message: "the pause process was killed by signal 9"}
		share := p.config.Pod.Spec.ShareProcessNamespace
		for _, c := range p.containers {
			switch {
			case c.state.Stage == pod.ContainerStarting:
				w.failStart(p, c, "the sandbox has died")
			case share != nil && *share:
				w.deliver(p, c, syscall.SIGKILL)
			}
		}
		w.touch(p)
	})
	return ok
}

// AdminStopSandbox is systemctl stop of the pod's slice: everything in it is stopped, with grace.
func (f *Fake) AdminStopSandbox(ref pod.Ref, grace time.Duration) (ok bool) {
	w := f.world
	w.with(func() {
		p := w.pods[ref.UID]
		if ok = p != nil && p.sandbox.Stage != pod.SandboxAbsent; !ok {
			return
		}
		p.sandbox = pod.SandboxState{Stage: pod.SandboxDead, StoppedByAdmin: true, Message: "the pod's slice was stopped"}
		for _, c := range p.containers {
			if c.state.Stage.Live() {
				c.state.StoppedByAdmin = true
				w.terminate(p, c, grace)
			}
		}
		w.touch(p)
	})
	return ok
}

// Reboot ends everything at once without a trace; files stay. Nobody is notified: the daemon ends
// with the host ([Fake.Restart]).
func (f *Fake) Reboot() {
	w := f.world
	w.with(func() {
		for _, p := range w.pods {
			w.clear(p)
		}
		w.dirty = nil
	})
}

// Sandbox returns what the pod's sandbox was made from.
func (f *Fake) Sandbox(ref pod.Ref) (config runtime.SandboxConfig, ok bool) {
	f.world.with(func() {
		if p := f.world.pods[ref.UID]; p != nil && p.sandbox.Stage != pod.SandboxAbsent {
			config, ok = p.config, true
		}
	})
	return config, ok
}

// Signals returns the signals that the latest attempt at the container has got.
func (f *Fake) Signals(ref pod.Ref, container string) (signals []syscall.Signal) {
	f.world.with(func() {
		if _, c := f.world.find(ref, container); c != nil {
			signals = slices.Clone(c.signals)
		}
	})
	return signals
}

// Leaks lists what exists of pods, one line each, in a fixed order. It is empty when every pod was
// deleted and forgotten.
func (f *Fake) Leaks() (leaks []string) {
	w := f.world
	w.with(func() {
		for _, ref := range w.refs() {
			p := w.pods[ref.UID]
			if p.sandbox.Stage != pod.SandboxAbsent {
				leaks = append(leaks, "sandbox of "+ref.String())
			}
			first := len(leaks)
			for name := range p.containers {
				leaks = append(leaks, "container "+name+" of "+ref.String())
			}
			slices.Sort(leaks[first:])
			if p.files {
				leaks = append(leaks, "files of "+ref.String())
			}
		}
	})
	return leaks
}
