package runtimetest

import (
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/magikrun/magikpod/pod"
)

func checkClass(h *suite) {
	info := h.manager.Class()
	if info.Name == "" || !info.Available {
		h.Errorf("the class %+v has no name or is not available", info)
	}
	p := h.newPod(map[string]program{"main": obeys})
	h.pods = nil
	if problems := h.manager.Validate(p.pod); len(problems) > 0 {
		h.Errorf("Validate refuses an ordinary pod: %v", problems)
	}
}

// checkUnknownPod: nothing of a pod is what every stop and removal of it leaves, too.
func checkUnknownPod(h *suite) {
	p := h.newPod(map[string]program{"main": obeys})
	for range 2 {
		if state := p.observe(); state.Sandbox.Stage != pod.SandboxAbsent || len(state.Containers) != 0 {
			h.Errorf("Observe: %+v", state)
		}
		h.none("StopContainer", h.manager.StopContainer(h.ctx, p.ref, "main", longGrace))
		state, err := h.manager.DeleteSandbox(h.ctx, p.ref, longGrace)
		h.none("DeleteSandbox", err)
		if state.Sandbox.Stage != pod.SandboxAbsent || len(state.Containers) != 0 {
			h.Errorf("DeleteSandbox: %+v", state)
		}
		h.none("Forget", h.manager.Forget(h.ctx, p.ref))
	}
	h.kind("SignalContainer", h.manager.SignalContainer(h.ctx, p.ref, "main", syscall.SIGTERM), pod.NotFound)
}

func checkCreateSandboxAgain(h *suite) {
	p := h.newPod(map[string]program{"main": obeys})
	p.create()
	p.create()
	p.awaitReady()
	p.create()
	p.runReady("main", 0)
	before := p.state("main")
	p.create()
	if after := p.state("main"); after != before {
		h.Errorf("CreateSandbox changed a container from %+v to %+v", before, after)
	}
	if state := p.observe(); state.Sandbox.Stage != pod.SandboxReady || len(state.Containers) != 1 {
		h.Errorf("the state is %+v", state)
	}
}

func checkRunWithoutSandbox(h *suite) {
	p := h.newPod(map[string]program{"main": exits(0)})
	h.kind("RunContainer", h.manager.RunContainer(h.ctx, p.containerConfig("main", 0)), pod.Conflict)
	if state := p.observe(); state.Sandbox.Stage != pod.SandboxAbsent || len(state.Containers) != 0 {
		h.Errorf("RunContainer without a sandbox has left %+v", state)
	}
}

// checkRunContainer: when it returns, the process runs and can be observed.
func checkRunContainer(h *suite) {
	p := h.newPod(map[string]program{"main": obeys, "other": obeys})
	p.create()
	before := time.Now()
	p.run("main", 0)
	state := p.state("main")
	if state.Stage != pod.ContainerRunning || state.Attempt != 0 || state.PID <= 0 || state.ID == "" || !state.FinishedAt.IsZero() || state.ExitCode != 0 {
		h.Errorf("the state is %+v; want it running", state)
	}
	if early, late := before.Add(-time.Second), time.Now().Add(time.Second); state.StartedAt.Before(early) || state.StartedAt.After(late) {
		h.Errorf("it started at %v; want a time between %v and %v", state.StartedAt, early, late)
	}
	if h.env.Behave == nil {
		if err := syscall.Kill(state.PID, 0); err != nil {
			h.Errorf("there is no process %d: %v", state.PID, err)
		}
	}
	if other, ok := p.observe().Containers["other"]; ok {
		h.Errorf("a container that was never started is %+v", other)
	}
}

func checkExitCodes(h *suite) {
	codes := map[string]int{"none": 0, "one": 1, "seven": 7, "high": 255}
	programs := map[string]program{}
	for name, code := range codes {
		programs[name] = exits(code)
	}
	p := h.newPod(programs)
	p.create()
	for _, name := range sortedKeys(codes) {
		p.run(name, 0)
	}
	for _, name := range sortedKeys(codes) {
		state := p.awaitExit(name)
		if codes[name] != 255 { // 255-128 is no signal
			p.exited(state, 0, codes[name])
		} else if state.ExitCode != 255 || state.Reason != pod.ReasonError {
			h.Errorf("state %+v; want exit code 255", state)
		}
	}
}

// checkRunSameAttempt: a repeated call starts nothing, neither while the attempt runs nor after it.
func checkRunSameAttempt(h *suite) {
	p := h.newPod(map[string]program{"main": obeys, "short": exits(7)})
	p.create()
	p.runReady("main", 0)
	before := p.state("main")
	p.run("main", 0)
	if after := p.state("main"); after != before {
		h.Errorf("the same attempt was %+v and is %+v", before, after)
	}
	p.run("short", 0)
	before = p.awaitExit("short")
	p.run("short", 0)
	if after := p.state("short"); after != before {
		h.Errorf("the same ended attempt was %+v and is %+v", before, after)
	}
}

func checkNextAttempt(h *suite) {
	p := h.newPod(map[string]program{"main": exits(7)})
	p.create()
	ids := map[string]bool{}
	for attempt := range 3 {
		p.run("main", attempt)
		state := p.awaitExit("main")
		p.exited(state, attempt, 7)
		ids[state.ID] = true
	}
	p.change("main", obeys)
	p.runReady("main", 3)
	state := p.state("main")
	ids[state.ID] = true
	if state.Stage != pod.ContainerRunning || state.Attempt != 3 || !state.FinishedAt.IsZero() || state.Reason != "" {
		h.Errorf("the state is %+v; want attempt 3 running, and nothing of the last one", state)
	}
	if len(ids) != 4 {
		h.Errorf("four attempts have the IDs %v", ids)
	}
}

func checkStartError(h *suite) {
	p := h.newPod(map[string]program{"main": missing})
	p.create()
	if err := h.manager.RunContainer(h.ctx, p.containerConfig("main", 0)); err == nil {
		h.Fatal("RunContainer of a command that does not exist returns no error")
	}
	state := p.state("main")
	if state.Stage != pod.ContainerExited || state.Reason != pod.ReasonStartError || state.ExitCode == 0 || state.Message == "" || state.PID != 0 || state.Attempt != 0 {
		h.Errorf("the state is %+v; want a StartError with a message", state)
	}
	h.kind("Exec", execError(p, "main"), pod.Conflict)
	h.none("StopContainer", h.manager.StopContainer(h.ctx, p.ref, "main", longGrace))
	p.change("main", obeys)
	p.runReady("main", 1)
	if state := p.state("main"); state.Stage != pod.ContainerRunning || state.Attempt != 1 || state.Reason != "" || state.Message != "" {
		h.Errorf("the next attempt is %+v; want it running", state)
	}
}

// checkConcurrentContainers runs and stops several containers at once, and looks at them meanwhile.
func checkConcurrentContainers(h *suite) {
	const n = 4
	programs := map[string]program{}
	for i := range n {
		programs[fmt.Sprintf("c%d", i)] = obeys
	}
	p := h.newPod(programs)
	p.create()
	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
			if _, err := h.manager.Observe(h.ctx, p.ref); err != nil {
				h.Errorf("Observe meanwhile: %v", err)
				return
			}
		}
	})
	each := func(what string, do func(name string) error) {
		var all sync.WaitGroup
		for name := range programs {
			all.Go(func() { h.none(what+" "+name, do(name)) })
		}
		all.Wait()
	}
	each("RunContainer", func(name string) error { return h.manager.RunContainer(h.ctx, p.containerConfig(name, 0)) })
	for name := range programs {
		p.awaitFile(name + ".0.ready")
		if state := p.state(name); state.Stage != pod.ContainerRunning {
			h.Errorf("%s is %+v; want it running", name, state)
		}
	}
	each("StopContainer", func(name string) error { return h.manager.StopContainer(h.ctx, p.ref, name, longGrace) })
	for name := range programs {
		p.exited(p.state(name), 0, h.obeyed())
	}
	close(done)
	watching.Wait()
}

// checkTwoPods: pods with containers of the same names are not mixed up.
func checkTwoPods(h *suite) {
	one, two := h.newPod(map[string]program{"main": obeys}), h.newPod(map[string]program{"main": obeys})
	for _, p := range []*testPod{one, two} {
		p.create()
		p.runReady("main", 0)
	}
	before := two.state("main")
	if before.ID == one.state("main").ID {
		h.Errorf("both have the ID %s", before.ID)
	}
	_, err := h.manager.DeleteSandbox(h.ctx, one.ref, longGrace)
	h.none("DeleteSandbox", err)
	h.none("Forget", h.manager.Forget(h.ctx, one.ref))
	if after := two.state("main"); after != before {
		h.Errorf("the other pod's container was %+v and is %+v", before, after)
	}
	if h.env.Behave == nil {
		if err := syscall.Kill(before.PID, 0); err != nil {
			h.Errorf("the other pod's process: %v", err)
		}
	}
}
