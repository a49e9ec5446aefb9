package engine

import (
	"context"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/shim"
	"github.com/magikrun/magikpod/units"
)

// Observe implements [runtime.PodManager]. It reads what systemd's signals have said already.
// Errors: the pod was not adopted, and that of Adopt is returned again; or (Unavailable) the
// connection to systemd is lost.
func (m *Manager) Observe(_ context.Context, ref pod.Ref) (pod.RuntimeState, error) {
	if m.lost() {
		return pod.RuntimeState{}, pod.Errorf(pod.Unavailable, "cannot observe pod %s: the connection to systemd is lost", ref)
	}
	m.mu.Lock()
	s, err := m.sandboxes[ref.UID], m.unknown[ref.UID]
	m.mu.Unlock()
	if err != nil {
		return pod.RuntimeState{}, err
	}
	state := pod.RuntimeState{Sandbox: pod.SandboxState{Stage: pod.SandboxAbsent}, Containers: map[string]pod.ContainerState{}}
	if s == nil {
		return state, nil
	}
	state.Sandbox = m.sandboxState(s)
	for _, name := range s.containerNames() {
		if c := m.containerState(s, name); c.Stage != pod.ContainerAbsent {
			c.Frozen = c.Stage == pod.ContainerRunning && m.frozenUnit(s, name) != ""
			state.Containers[name] = c
		}
	}
	return state, nil
}

// Frozen implements [runtime.PodManager].
func (m *Manager) Frozen(ref pod.Ref, container string) bool {
	s := m.find(ref)
	return s != nil && m.frozenUnit(s, container) != ""
}

func (s *sandbox) containerNames() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.containers))
	for name := range s.containers {
		names = append(names, name)
	}
	return names
}

// sandboxState is the state of the worst of its holders.
func (m *Manager) sandboxState(s *sandbox) pod.SandboxState {
	worst := pod.SandboxState{Stage: pod.SandboxReady}
	for _, h := range s.holders {
		state := m.holderState(s, h)
		if state.Stage == pod.SandboxDead {
			return state
		}
		if state.Stage != pod.SandboxReady {
			worst = state
		}
	}
	return worst
}

// holderState is what one of the sandbox's own units says.
func (m *Manager) holderState(s *sandbox, h *holder) pod.SandboxState {
	if h == s.holders[0] {
		switch toCome, err := s.pauseToCome(); {
		case toCome: // and nobody waits for it
			return pod.SandboxState{Stage: pod.SandboxReady}
		case err != nil:
			return pod.SandboxState{Stage: pod.SandboxDead, Message: err.Error()}
		}
	}
	job := s.job(h)
	if job != nil {
		select {
		case <-job.Done():
		default:
			return pod.SandboxState{Stage: pod.SandboxStarting}
		}
	}
	state, ok := m.units.State(h.unit)
	if !ok {
		return pod.SandboxState{Stage: pod.SandboxDead, Message: "the " + string(h.kind) + " unit is gone"}
	}
	switch state.Active {
	case "active", "reloading":
		return pod.SandboxState{Stage: pod.SandboxReady}
	case "activating":
		return pod.SandboxState{Stage: pod.SandboxStarting}
	}
	dead := pod.SandboxState{Stage: pod.SandboxDead, StoppedByAdmin: state.StoppedByAdmin}
	if !dead.StoppedByAdmin {
		dead.Message = "the " + string(h.kind) + " process has ended (" + state.Result + ")"
	}
	return dead
}

// containerState is what the latest attempt's unit says.
func (m *Manager) containerState(s *sandbox, name string) pod.ContainerState {
	unit, known := m.units.State(s.unit(name))
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[name]
	switch {
	case c == nil:
		return pod.ContainerState{Stage: pod.ContainerAbsent}
	case c.final != nil:
		return *c.final
	case c.record == nil:
		return pod.ContainerState{Stage: pod.ContainerAbsent}
	case c.record.Failed != nil:
		return *c.record.Failed
	}
	return stateOf(c, unit, known)
}

// frozenUnit is the unit that a container cannot run without and that is frozen; "" when there is
// none. Without pause only its log stops.
func (m *Manager) frozenUnit(s *sandbox, name string) string {
	if unit := s.unit(name); m.units.Frozen(unit) {
		return unit
	}
	for _, h := range s.holders[1:] {
		if m.units.Frozen(h.unit) {
			return h.unit
		}
	}
	return ""
}

// stateOf translates the state of a unit.
func stateOf(c *container, unit units.State, known bool) pod.ContainerState {
	state := pod.ContainerState{Attempt: c.record.Attempt, ID: c.record.ID}
	switch {
	case known && over(unit):
		if neverStarted(unit) {
			if c.record.Previous != nil {
				return *c.record.Previous
			}
			return pod.ContainerState{Stage: pod.ContainerAbsent}
		}
		return ended(c, state, unit)
	case c.starting, known && unit.Active == "activating":
		state.Stage = pod.ContainerStarting
	case !known, unit.Ended():
		state.Stage, state.Reason, state.ExitCode = pod.ContainerExited, pod.ReasonUnknown, 255
		state.Message = "the unit of the container is gone"
		return state
	case c.stopping, unit.Active == "deactivating":
		state.Stage = pod.ContainerStopping
	default:
		state.Stage = pod.ContainerRunning
	}
	if state.Stage != pod.ContainerStarting {
		state.PID, state.StartedAt = unit.MainPID, unit.ExecMainStart
	}
	return state
}

// over says that the unit had a main process, which has ended. While systemd starts a unit it says
// for a moment that it has a main process and is inactive.
func over(unit units.State) bool {
	return (unit.MainEnded() || unit.Ended()) && unit.ExecMainCode != 0 && unit.MainPID == 0
}

// neverStarted says that launch found the pod's namespaces gone: the container is not to blame, and
// the attempt does not count.
func neverStarted(unit units.State) bool {
	return unit.StatusText == "" && unit.ExecMainStatus == shim.ExitTempFail
}

// ended is the state of an attempt whose first process has ended.
func ended(c *container, state pod.ContainerState, unit units.State) pod.ContainerState {
	state.Stage, state.FinishedAt = pod.ContainerExited, unit.ExecMainExit
	state.StoppedByAdmin = unit.StoppedByAdmin
	if c.starting && unit.StatusText != shim.StatusStarted {
		return pod.ContainerState{Stage: pod.ContainerStarting, Attempt: state.Attempt, ID: state.ID}
	}
	if unit.StatusText == "" || unit.StatusText == shim.StatusNotStarted { // without a text the main process was launch
		state.ExitCode, state.Reason, state.Message = startErrorCode, pod.ReasonStartError, "the container could not be started ("+unit.Result+")"
		return state
	}
	state.StartedAt = unit.ExecMainStart
	state.ExitCode, state.Signal = unit.ExitCode()
	switch {
	case unit.Result == "oom-kill", unit.StatusText == shim.StatusOOMKilled:
		state.Reason = pod.ReasonOOMKilled
	case state.ExitCode == 0:
		state.Reason = pod.ReasonCompleted
	default:
		state.Reason = pod.ReasonError
	}
	return state
}

// noteEnd returns the attempt of a unit whose container has just been found to have ended; nil when
// there is none, or its end was noted before.
func (s *sandbox) noteEnd(manager *units.Manager, unit string) *attemptRecord {
	state, ok := manager.State(unit)
	if !ok || !over(state) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, c := range s.containers {
		if c.record != nil && !c.noted && s.unit(name) == unit {
			c.noted = true
			record := *c.record
			return &record
		}
	}
	return nil
}
