package runtimetest

import (
	"syscall"
	"time"

	"github.com/magikrun/magikpod/pod"
)

func checkSignal(h *suite) {
	p := h.newPod(map[string]program{"main": obeys, "victim": stubborn, "short": exits(0), "never": obeys})
	p.create()
	p.runReady("main", 0)
	p.runReady("victim", 0)
	sig, code := syscall.SIGINT, 3
	if h.env.Modules {
		code = 128 + int(sig)
	}
	h.none("SignalContainer", h.manager.SignalContainer(h.ctx, p.ref, "main", sig))
	p.exited(p.awaitExit("main"), 0, code)
	if state := p.state("victim"); state.Stage != pod.ContainerRunning {
		h.Errorf("the other container is %+v", state)
	}
	h.none("SignalContainer", h.manager.SignalContainer(h.ctx, p.ref, "victim", syscall.SIGKILL))
	p.exited(p.awaitExit("victim"), 0, 128+int(syscall.SIGKILL))
	p.run("short", 0)
	p.awaitExit("short")
	h.kind("SignalContainer to one that has ended", h.manager.SignalContainer(h.ctx, p.ref, "short", syscall.SIGTERM), pod.Conflict)
	h.kind("SignalContainer to one that was never started", h.manager.SignalContainer(h.ctx, p.ref, "never", syscall.SIGTERM), pod.NotFound)
}

// timed runs a stop, and complains when it took less than least or so long that nothing but the end
// of longGrace can have ended it.
func (p *testPod) timed(what string, least time.Duration, stop func() error) {
	p.Helper()
	start := time.Now()
	p.none(what, stop())
	if took := time.Since(start); took < least || took > longGrace*3/4 {
		p.Errorf("%s took %v; want at least %v, and far less than %v", what, took, least, longGrace)
	}
}

func checkStopObeyed(h *suite) {
	p := h.newPod(map[string]program{"main": obeys, "slow": slow})
	p.create()
	p.runReady("main", 0)
	p.runReady("slow", 0)
	p.timed("StopContainer", 0, func() error { return h.manager.StopContainer(h.ctx, p.ref, "main", longGrace) })
	p.exited(p.state("main"), 0, h.obeyed())
	least := 900 * time.Millisecond
	if h.env.Modules {
		least = 0
	}
	p.timed("StopContainer of a slow one", least, func() error { return h.manager.StopContainer(h.ctx, p.ref, "slow", longGrace) })
	p.exited(p.state("slow"), 0, h.obeyed())
}

func checkStopKills(h *suite) {
	p := h.newPod(map[string]program{"main": stubborn})
	p.create()
	p.runReady("main", 0)
	pid := p.state("main").PID
	p.timed("StopContainer", shortGrace*9/10, func() error { return h.manager.StopContainer(h.ctx, p.ref, "main", shortGrace) })
	p.exited(p.state("main"), 0, 128+int(syscall.SIGKILL))
	p.gone(pid)
}

// gone complains when the process still runs.
func (p *testPod) gone(pid int) {
	p.Helper()
	if p.env.Behave != nil {
		return
	}
	p.await("the end of the process", func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
}

func checkStopAtOnce(h *suite) {
	p := h.newPod(map[string]program{"main": stubborn})
	p.create()
	p.runReady("main", 0)
	p.timed("StopContainer", 0, func() error { return h.manager.StopContainer(h.ctx, p.ref, "main", 0) })
	p.exited(p.state("main"), 0, 128+int(syscall.SIGKILL))
}

func checkStopNotRunning(h *suite) {
	p := h.newPod(map[string]program{"main": exits(7), "obeys": obeys, "never": obeys})
	p.create()
	p.run("main", 0)
	before := p.awaitExit("main")
	p.runReady("obeys", 0)
	for range 2 {
		h.none("StopContainer of one that has ended", h.manager.StopContainer(h.ctx, p.ref, "main", longGrace))
		h.none("StopContainer of one that was never started", h.manager.StopContainer(h.ctx, p.ref, "never", longGrace))
		h.none("StopContainer", h.manager.StopContainer(h.ctx, p.ref, "obeys", longGrace))
		p.exited(p.state("obeys"), 0, h.obeyed())
	}
	if after := p.state("main"); after != before {
		h.Errorf("a stop changed %+v to %+v", before, after)
	}
	if state, ok := p.observe().Containers["never"]; ok {
		h.Errorf("one that was never started is %+v", state)
	}
}

// checkDeleteSandbox: it ends all containers within one grace period and reports how each ended.
func checkDeleteSandbox(h *suite) {
	p := h.newPod(map[string]program{"ended": exits(7), "failed": missing, "obeys": obeys, "stubborn": stubborn, "stubborn2": stubborn, "never": obeys})
	p.create()
	p.run("ended", 0)
	p.awaitExit("ended")
	if err := h.manager.RunContainer(h.ctx, p.containerConfig("failed", 0)); err == nil {
		h.Error("RunContainer of a command that does not exist returns no error")
	}
	for _, name := range []string{"obeys", "stubborn", "stubborn2"} {
		p.runReady(name, 0)
	}
	pids := []int{p.state("obeys").PID, p.state("stubborn").PID}
	start := time.Now()
	state, err := h.manager.DeleteSandbox(h.ctx, p.ref, 3*shortGrace)
	if err != nil {
		h.Fatalf("DeleteSandbox: %v", err)
	}
	if took := time.Since(start); took < 3*shortGrace*9/10 && !h.env.Modules {
		h.Errorf("DeleteSandbox took %v; the grace period is %v", took, 3*shortGrace)
	}
	if state.Sandbox.Stage != pod.SandboxAbsent || len(state.Containers) != 5 {
		h.Errorf("the last state is %+v", state)
	}
	for name, code := range map[string]int{"ended": 7, "obeys": h.obeyed(), "stubborn": h.insisted(), "stubborn2": h.insisted()} {
		p.exited(state.Containers[name], 0, code)
	}
	if failed := state.Containers["failed"]; failed.Reason != pod.ReasonStartError {
		h.Errorf("what was never started is %+v", failed)
	}
	one, two := state.Containers["stubborn"].FinishedAt, state.Containers["stubborn2"].FinishedAt
	if apart := one.Sub(two).Abs(); apart > 2*shortGrace {
		h.Errorf("two containers ended %v apart: not at once", apart)
	}
	for _, pid := range pids {
		p.gone(pid)
	}
	if state := p.observe(); state.Sandbox.Stage != pod.SandboxAbsent || len(state.Containers) != 0 {
		h.Errorf("afterwards the state is %+v", state)
	}
	_, err = h.manager.DeleteSandbox(h.ctx, p.ref, longGrace)
	h.none("DeleteSandbox again", err)
}

// checkDeleteInOrder: a sidecar runs until the containers that it serves have ended.
func checkDeleteInOrder(h *suite) {
	p := h.newPod(map[string]program{"main": slow, "sidecar": obeys})
	p.create()
	sidecar := p.containerConfig("sidecar", 0)
	sidecar.StopAfter = []string{"main"}
	if err := h.manager.RunContainer(h.ctx, sidecar); err != nil {
		h.Fatalf("RunContainer: %v", err)
	}
	p.awaitFile("sidecar.0.ready")
	p.runReady("main", 0)
	state, err := h.manager.DeleteSandbox(h.ctx, p.ref, longGrace)
	if err != nil {
		h.Fatalf("DeleteSandbox: %v", err)
	}
	p.exited(state.Containers["main"], 0, h.obeyed())
	p.exited(state.Containers["sidecar"], 0, h.obeyed())
	if main, sidecar := state.Containers["main"].FinishedAt, state.Containers["sidecar"].FinishedAt; sidecar.Before(main) {
		h.Errorf("the sidecar ended at %v, before main did at %v", sidecar, main)
	}
}

func checkSandboxAfterDelete(h *suite) {
	p := h.newPod(map[string]program{"main": obeys})
	for attempt := range 2 {
		p.create()
		p.runReady("main", attempt)
		if state := p.observe(); state.Sandbox.Stage != pod.SandboxReady || state.Containers["main"].Attempt != attempt {
			h.Errorf("the state is %+v", state)
		}
		state, err := h.manager.DeleteSandbox(h.ctx, p.ref, longGrace)
		h.none("DeleteSandbox", err)
		p.exited(state.Containers["main"], attempt, h.obeyed())
	}
	if state := p.observe(); state.Sandbox.Stage != pod.SandboxAbsent || len(state.Containers) != 0 {
		h.Errorf("the state is %+v", state)
	}
}

// checkForget: nothing is left, which clean looks at, and it can be repeated.
func checkForget(h *suite) {
	p := h.newPod(map[string]program{"main": obeys})
	p.create()
	p.runReady("main", 0)
	_, err := h.manager.DeleteSandbox(h.ctx, p.ref, longGrace)
	h.none("DeleteSandbox", err)
	for range 2 {
		h.none("Forget", h.manager.Forget(h.ctx, p.ref))
	}
	if h.env.Leaks != nil {
		if left := h.env.Leaks(); len(left) > 0 {
			h.Errorf("Forget has left %v", left)
		}
	}
}
