package runtimetest

import (
	"reflect"
	"strings"
	"syscall"
	"time"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/probe"
)

// checkObserveIsSteady: looking changes nothing, and what has not changed looks the same.
func checkObserveIsSteady(h *suite) {
	p := h.newPod(map[string]program{"runs": obeys, "ended": exits(7)})
	p.create()
	p.awaitReady()
	p.runReady("runs", 0)
	p.run("ended", 0)
	p.awaitExit("ended")
	first := p.observe()
	for range 20 {
		if again := p.observe(); !reflect.DeepEqual(first, again) {
			h.Fatalf("first %+v, then %+v", first, again)
		}
	}
	// The answer is the caller's own.
	first.Containers["runs"] = pod.ContainerState{}
	if state := p.state("runs"); state.Stage != pod.ContainerRunning {
		h.Errorf("changing an answer changed the next one: %+v", state)
	}
}

func checkOnChange(h *suite) {
	p, other := h.newPod(map[string]program{"main": obeys}), h.newPod(map[string]program{"main": obeys})
	other.create()
	p.create()
	p.awaitReady()
	p.runReady("main", 0)
	seen := h.changesOf(p.ref)
	if seen == 0 {
		h.Error("nothing was reported about a sandbox and a container that were started")
	}
	h.none("SignalContainer", h.manager.SignalContainer(h.ctx, p.ref, "main", syscall.SIGTERM))
	p.await("a report of the end", func() bool { return h.changesOf(p.ref) > seen })
	p.awaitExit("main")
	h.mu.Lock()
	defer h.mu.Unlock()
	for ref := range h.changes {
		if ref != p.ref && ref != other.ref {
			h.Errorf("something was reported about %+v, which is no pod", ref)
		}
	}
}

// checkProbe: a failure has the kubelet's words, and of a container that does not run nothing is
// learned.
func checkProbe(h *suite) {
	p := h.newPod(map[string]program{"runs": obeys, "ended": exits(7)})
	closed := probe.Probe{TCP: &probe.TCP{Host: "127.0.0.1", Port: 1}, Timeout: time.Minute}
	_, _, err := h.manager.Probe(h.ctx, p.ref, "runs", closed)
	h.kind("Probe without a sandbox", err, pod.NotFound)
	p.create()
	p.awaitReady()
	p.runReady("runs", 0)
	p.run("ended", 0)
	p.awaitExit("ended")
	_, _, err = h.manager.Probe(h.ctx, p.ref, "ended", closed)
	h.kind("Probe of a container that has ended", err, pod.Conflict)
	if ok, message, err := h.manager.Probe(h.ctx, p.ref, "runs", closed); ok || err != nil || !strings.Contains(message, "connection refused") {
		h.Errorf("Probe of a closed port: %t, %q, %v", ok, message, err)
	}
}

// checkFigures: those who run are in the figures, nobody is frozen, and the pod's name is known by
// its UID.
func checkFigures(h *suite) {
	p := h.newPod(map[string]program{"runs": obeys, "ended": exits(7)})
	if _, err := h.manager.Named(p.ref.UID); pod.KindOf(err) != pod.NotFound {
		h.Errorf("the name of a pod that does not exist: %v", err)
	}
	p.create()
	p.awaitReady()
	p.runReady("runs", 0)
	p.run("ended", 0)
	p.awaitExit("ended")
	use, err := h.manager.ContainerStats(h.ctx, p.ref)
	if _, ok := use["runs"]; err != nil || !ok || len(use) != 1 {
		h.Errorf("ContainerStats: %v, %v; want those of the container that runs", use, err)
	}
	if h.manager.Frozen(p.ref, "runs") {
		h.Error("a container is said to be frozen")
	}
	if ref, err := h.manager.Named(p.ref.UID); err != nil || ref != p.ref {
		h.Errorf("Named: %+v, %v, want %+v", ref, err, p.ref)
	}
}

// restart goes on with the next manager, which adopts the pods.
func (h *suite) restart() {
	h.Helper()
	if h.env.Restart == nil {
		h.Skip("this Env cannot restart its manager")
	}
	h.use(h.env.Restart(h.t))
	for _, p := range h.pods {
		if err := h.manager.Adopt(h.ctx, p.ref); err != nil {
			h.Fatalf("Adopt: %v", err)
		}
	}
}

// checkAdopt: a second manager sees what the first one has left running, what ended meanwhile, and
// can do all with it.
func checkAdopt(h *suite) {
	p := h.newPod(map[string]program{"runs": obeys, "stubborn": stubborn, "ended": exits(7)})
	p.create()
	p.awaitReady()
	p.runReady("runs", 2)
	p.runReady("stubborn", 0)
	p.run("ended", 1)
	p.awaitExit("ended")
	before := p.observe()
	h.restart()
	p.await("the adopted sandbox", func() bool { return p.observe().Sandbox.Stage == pod.SandboxReady })
	after := p.observe()
	for name, want := range before.Containers {
		got := after.Containers[name]
		if !got.StartedAt.Equal(want.StartedAt) || !got.FinishedAt.Equal(want.FinishedAt) {
			h.Errorf("%s was %+v and is adopted as %+v", name, want, got)
		}
		got.StartedAt, got.FinishedAt = want.StartedAt, want.FinishedAt // time.Time compares places too
		if got != want {
			h.Errorf("%s was %+v and is adopted as %+v", name, want, got)
		}
	}
	p.create()
	p.run("runs", 2)
	if state := p.state("runs"); state.PID != before.Containers["runs"].PID {
		h.Errorf("a repeated RunContainer of the adopted attempt started another process: %+v", state)
	}
	if h.env.Modules {
		h.kind("Exec", execError(p, "runs"), pod.Unsupported)
	} else if status, err := p.manager.Exec(h.ctx, p.ref, "runs", trueProcess()); err != nil || status.Code != 0 {
		h.Errorf("Exec: %+v, %v", status, err)
	}
	seen := h.changesOf(p.ref)
	h.none("SignalContainer", h.manager.SignalContainer(h.ctx, p.ref, "stubborn", syscall.SIGKILL))
	p.exited(p.awaitExit("stubborn"), 0, 137)
	p.await("a report of the end", func() bool { return h.changesOf(p.ref) > seen })
	h.none("StopContainer", h.manager.StopContainer(h.ctx, p.ref, "runs", longGrace))
	p.exited(p.state("runs"), 2, h.obeyed())
	p.runReady("runs", 3)
	state, err := h.manager.DeleteSandbox(h.ctx, p.ref, longGrace)
	h.none("DeleteSandbox", err)
	p.exited(state.Containers["runs"], 3, h.obeyed())
	p.exited(state.Containers["ended"], 1, 7)
}

func checkAdoptUnknownPod(h *suite) {
	p := h.newPod(map[string]program{"main": obeys})
	h.restart()
	if state := p.observe(); state.Sandbox.Stage != pod.SandboxAbsent || len(state.Containers) != 0 {
		h.Errorf("the state is %+v", state)
	}
	p.create()
	p.runReady("main", 0)
}
