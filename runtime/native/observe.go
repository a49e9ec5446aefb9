package native

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime/crun"
	"github.com/magikrun/magikpod/shim"
	"github.com/magikrun/magikpod/units"
)

// Observe implements [runtime.PodManager]. It reads what systemd's signals have told already. Errors: the pod was not adopted, and that of Adopt is
// told again; or (Unavailable) the connection to systemd is lost.
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

// Frozen implements [runtime.Freezer].
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

// sandboxState is what the pause unit tells, and the VM unit where there is one: the sandbox is as well as the worse of them.
func (m *Manager) sandboxState(s *sandbox) pod.SandboxState {
	pauseJob, vmJob := s.jobs()
	pause := m.holderState(s.names.Pause, pauseJob, "pause")
	if m.config.Sandboxes == nil || pause.Stage == pod.SandboxDead {
		return pause
	}
	vm := m.holderState(s.names.VM, vmJob, "VM")
	if vm.Stage == pod.SandboxDead || pause.Stage == pod.SandboxReady {
		return vm
	}
	return pause
}

// holderState is what one of the sandbox's own units tells. job is its start job, when this manager has made it.
func (m *Manager) holderState(unit string, job *units.Job, what string) pod.SandboxState {
	if job != nil {
		select {
		case <-job.Done():
		default:
			return pod.SandboxState{Stage: pod.SandboxStarting}
		}
	}
	state, ok := m.units.State(unit)
	if !ok {
		return pod.SandboxState{Stage: pod.SandboxDead, Message: "the " + what + " unit is gone"}
	}
	switch state.Active {
	case "active", "reloading":
		return pod.SandboxState{Stage: pod.SandboxReady}
	case "activating":
		return pod.SandboxState{Stage: pod.SandboxStarting}
	}
	dead := pod.SandboxState{Stage: pod.SandboxDead, StoppedByAdmin: state.StoppedByAdmin}
	if !dead.StoppedByAdmin {
		dead.Message = "the " + what + " process has ended (" + state.Result + ")"
	}
	return dead
}

// containerState is what the latest attempt's unit tells.
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

// frozenUnit is the unit that a container cannot run without and that is frozen; "" when there is none.
func (m *Manager) frozenUnit(s *sandbox, name string) string {
	for _, unit := range []string{s.unit(name), s.names.VM} {
		if (unit != s.names.VM || m.config.Sandboxes != nil) && m.units.Frozen(unit) {
			return unit
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

// over says that the unit had a main process, which has ended. While systemd starts a unit it tells for a moment that it has a main process and is
// inactive.
func over(unit units.State) bool {
	return (unit.MainEnded() || unit.Ended()) && unit.ExecMainCode != 0 && unit.MainPID == 0
}

// neverStarted says that launch found the pod's namespaces gone: the container is not to blame, and the attempt does not count.
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

// noteEnd returns the attempt of a unit whose container has just been found to have ended; nil when there is none, or its end was noted before.
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

// errDamaged is in the error of [Manager.Adopt] for a pod whose units run, or may run, while what was written down of them is lost: to try again is in
// vain. DeleteSandbox removes it all the same.
var errDamaged = errors.New("what magikpod has noted of the running pod is damaged (to delete the pod ends it)")

// Adopt implements [runtime.PodManager]. A pod of which nothing runs is known afterwards as one without a sandbox, unless records of it are left.
func (m *Manager) Adopt(ctx context.Context, ref pod.Ref) error {
	if err := checkRef(ref); err != nil {
		return err
	}
	found, err := m.adopt(ctx, ref)
	if err == nil && !found {
		err = m.checkAbsent(ctx, ref)
	}
	if err != nil {
		err = pod.Errorf(kindOr(err, pod.Internal), "cannot adopt pod %s: %w", ref, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.unknown, ref.UID)
	if err != nil {
		m.unknown[ref.UID] = err
	}
	return err
}

// checkAbsent is an error when the pause unit of a pod runs that has no record.
func (m *Manager) checkAbsent(ctx context.Context, ref pod.Ref) error {
	state, err := m.units.Refresh(ctx, units.Names(ref.Namespace, ref.Name).Pause)
	if err == nil && state.Load != "not-found" && !state.Ended() {
		err = pod.Errorf(pod.Conflict, "%w: it has no %s", errDamaged, sandboxName)
	}
	return err
}

// adopt is Adopt for a pod that has a record. found is false when it has none.
func (m *Manager) adopt(ctx context.Context, ref pod.Ref) (found bool, err error) {
	s := m.newSandbox(ref)
	err = readRecord(filepath.Join(s.dir, sandboxName), &s.record)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	m.remember(s)
	pause, err := m.units.Track(ctx, s.names.Pause)
	switch {
	case pod.KindOf(err) == pod.NotFound:
		err = nil
	case err == nil && pause.MainPID > 0:
		// When pause has just died, the sandbox is dead, and no namespace is needed any more. When it has just been started, holdNamespaces
		// comes back to it.
		s.ns, _ = openNamespaces(pause.MainPID, s.record)
	}
	if err == nil {
		err = m.adoptMachine(ctx, s)
	}
	if err == nil {
		err = m.adoptContainers(ctx, s)
	}
	if err != nil {
		m.forgetSandbox(s)
		return true, err
	}
	m.spawn(func() { m.letGoOfLeft(s) })
	return true, nil
}

// Named implements [runtime.Namer].
func (m *Manager) Named(uid types.UID) (pod.Ref, error) {
	if err := checkRef(pod.Ref{UID: uid}); err != nil {
		return pod.Ref{}, err
	}
	var c shim.PauseConfig
	err := loadRecord(filepath.Join(m.runDir(uid), pauseName), &c)
	if err == nil {
		err = errors.Join(pod.ValidateNamespace(c.Namespace), pod.ValidateName(c.Pod))
	}
	if err == nil && c.UID != string(uid) {
		err = errors.New("what is noted is another pod's")
	}
	if err != nil {
		return pod.Ref{}, pod.Errorf(pod.NotFound, "cannot tell the name of pod %s: %w", uid, err)
	}
	return pod.Ref{Namespace: c.Namespace, Name: c.Pod, UID: uid}, nil
}

// readRecord is loadRecord for what must be read to adopt a pod. Unavailable: it cannot be read now; errDamaged: it never will be.
func readRecord(path string, v any) error {
	err := loadRecord(path, v)
	switch {
	case err == nil, errors.Is(err, os.ErrNotExist):
		return err
	case atomicfile.Damaged(err):
		return pod.Errorf(pod.Conflict, "%w: %w", errDamaged, err)
	}
	return pod.WithKind(pod.Unavailable, err)
}

func (m *Manager) adoptContainers(ctx context.Context, s *sandbox) error {
	entries, err := os.ReadDir(filepath.Join(s.dir, containersName))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		name, bundle := entry.Name(), filepath.Join(s.dir, containersName, entry.Name())
		record := &attemptRecord{}
		err := readRecord(filepath.Join(bundle, attemptName), record)
		if errors.Is(err, os.ErrNotExist) {
			continue // it never got as far as to have a unit
		}
		if err == nil && record.Container != name {
			err = pod.Errorf(pod.Conflict, "%w: the record of container %q is another's", errDamaged, name)
		}
		if err != nil {
			return err
		}
		unit := s.unit(name)
		s.mu.Lock()
		s.containers[name] = &container{record: record}
		s.mu.Unlock()
		m.rememberUnit(unit, s)
		_, err = m.units.Track(ctx, unit)
		if err != nil && pod.KindOf(err) != pod.NotFound {
			return err
		}
		if err != nil && record.Failed == nil && !created(bundle) {
			// The daemon died before it had made the unit: the attempt does not count.
			s.mu.Lock()
			s.containers[name] = &container{final: record.Previous}
			s.mu.Unlock()
			continue
		}
		if end := s.noteEnd(m.units, unit); end != nil {
			m.spawn(func() { m.afterEnd(s, *end) })
		}
		m.noteStartError(s, *record)
	}
	return nil
}

// created says whether the OCI runtime has, or may have, created the container of a bundle.
func created(bundle string) bool {
	_, err := os.Stat(filepath.Join(bundle, pidName))
	return !errors.Is(err, os.ErrNotExist)
}

// noteStartError adds the OCI runtime's own error to an attempt that could not be started while nobody waited for its start.
func (m *Manager) noteStartError(s *sandbox, record attemptRecord) {
	state := m.containerState(s, record.Container)
	text := crun.LastLogError(filepath.Join(s.dir, containersName, record.Container, runtimeLog))
	if text == "" || state.Reason != pod.ReasonStartError || state.Attempt != record.Attempt {
		return
	}
	state.Message = text
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.containers[record.Container]; c.record != nil && c.record.ID == record.ID && !c.starting {
		failed := *c.record
		failed.Failed = &state
		c.record = &failed
	}
}
