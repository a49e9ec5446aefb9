package native

import (
	"context"
	"errors"
	"path/filepath"
	"syscall"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/probe"
	"github.com/magikrun/magikpod/runtime"
)

// machineName is the directory of a machine below RunDir/pods/UID and StateDir/pods/UID.
const machineName = "vm"

// SandboxManager is a [Manager] with a [SandboxLauncher]: it makes probes and reads what the containers use, too.
type SandboxManager struct{ *Manager }

var (
	_ runtime.PodManager    = (*SandboxManager)(nil)
	_ runtime.ImagePreparer = (*SandboxManager)(nil)
	_ runtime.Prober        = (*SandboxManager)(nil)
	_ runtime.StatsReader   = (*SandboxManager)(nil)
)

// NewSandboxManager is [New] for a config that has Sandboxes.
func NewSandboxManager(ctx context.Context, config Config) (*SandboxManager, error) {
	if config.Sandboxes == nil {
		return nil, pod.Errorf(pod.Internal, "cannot make a runtime class of machines: nothing runs them")
	}
	m, err := New(ctx, config)
	if err != nil {
		return nil, err
	}
	return &SandboxManager{m}, nil
}

// Probe implements [runtime.Prober].
func (m *SandboxManager) Probe(ctx context.Context, ref pod.Ref, container string, p probe.Probe) (bool, string, error) {
	s, _, err := m.running(ref, container)
	if err != nil {
		return false, "", pod.Errorf(pod.KindOf(err), "cannot probe container %q of pod %s: %w", container, ref, err)
	}
	return m.config.Sandboxes.Probe(ctx, m.machine(s), container, p)
}

// ContainerStats implements [runtime.StatsReader].
func (m *SandboxManager) ContainerStats(ctx context.Context, ref pod.Ref) (map[string]pod.ResourceUse, error) {
	s := m.find(ref)
	if s == nil || m.sandboxState(s).Stage != pod.SandboxReady {
		return nil, nil
	}
	return m.config.Sandboxes.Stats(ctx, m.machine(s))
}

// machine names the machine of a sandbox.
func (m *Manager) machine(s *sandbox) runtime.Machine {
	return runtime.Machine{
		Ref: s.ref, RunDir: filepath.Join(s.dir, machineName),
		StateDir: filepath.Join(filepath.Dir(m.layersDir(s.ref.UID)), machineName),
	}
}

// startMachine queues the pause unit and the VM unit.
func (m *Manager) startMachine(ctx context.Context, s *sandbox, config runtime.SandboxConfig) error {
	if err := m.fault("prepare machine"); err != nil {
		return err
	}
	config.Network.NetNS = s.ns.net // kept as long as the sandbox, so that others can find it by its path
	props, err := m.config.Sandboxes.PrepareSandbox(ctx, m.machine(s), config)
	if err != nil {
		return err
	}
	if err := m.startPause(ctx, s, config.Pod, m.config.Sandboxes.PodLimits(config.Pod)); err != nil {
		return err
	}
	if err := m.fault("start VM unit"); err != nil {
		return err
	}
	job, err := m.units.StartTransient(ctx, s.names.VM, props)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.vmJob = job
	s.mu.Unlock()
	return m.fault("after VM unit")
}

// releaseMachine makes systemd forget the VM unit of a sandbox that was stopped, and removes what the machine has left.
func (m *Manager) releaseMachine(ctx context.Context, s *sandbox) error {
	if m.config.Sandboxes == nil {
		return nil
	}
	return errors.Join(m.units.Release(ctx, s.names.VM), m.config.Sandboxes.RemoveSandbox(m.machine(s)))
}

// adoptMachine finds the VM unit that an earlier daemon has started. Without one the sandbox is dead.
func (m *Manager) adoptMachine(ctx context.Context, s *sandbox) error {
	if m.config.Sandboxes == nil {
		return nil
	}
	if _, err := m.units.Track(ctx, s.names.VM); err != nil && pod.KindOf(err) != pod.NotFound {
		return err
	}
	return nil
}

// awaitMachine waits until containers can be run in the machine.
func (m *Manager) awaitMachine(ctx context.Context, s *sandbox) error {
	ctx, done := m.whileMachine(ctx, s)
	defer done()
	s.mu.Lock()
	job, ns := s.vmJob, s.ns
	s.mu.Unlock()
	if job != nil {
		if err := job.Wait(ctx); err != nil {
			return err
		}
	}
	if ns == nil {
		return pod.Errorf(pod.Conflict, "its sandbox is gone")
	}
	err := m.config.Sandboxes.ReadySandbox(ctx, m.machine(s), ns.net)
	if err != nil && errors.Is(context.Cause(ctx), errMachineEnded) {
		return errMachineEnded
	}
	return err
}

var errMachineEnded = pod.Errorf(pod.Unavailable, "the pod's machine has ended")

// whileMachine returns a context that ends with the machine, if the class has one: what waits for an answer from it would wait in vain. done ends it, too.
func (m *Manager) whileMachine(ctx context.Context, s *sandbox) (_ context.Context, done func()) {
	if m.config.Sandboxes == nil {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	m.spawn(func() { m.cancelWithMachine(ctx, s, cancel) })
	return ctx, func() { cancel(nil) }
}

// cancelWithMachine cancels ctx when the machine ends.
func (m *Manager) cancelWithMachine(ctx context.Context, s *sandbox, cancel context.CancelCauseFunc) {
	for {
		changed := s.watch()
		if m.sandboxState(s).Stage == pod.SandboxDead {
			cancel(errMachineEnded)
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		case <-m.ctx.Done():
			return
		}
	}
}

// prepareInMachine is prepare for a container that runs in the pod's machine.
func (m *Manager) prepareInMachine(ctx context.Context, s *sandbox, config runtime.ContainerConfig) (*attempt, error) {
	name := config.Container.Name
	if err := m.awaitMachine(ctx, s); err != nil {
		return nil, pod.Errorf(kindOr(err, pod.Unavailable), "cannot run container %q: %w", name, err)
	}
	a := m.newAttempt(s, config)
	a.record.OwnPID, a.record.Runtime = true, m.class.Name
	var err error
	a.document, a.argv, err = m.config.Sandboxes.PrepareContainer(ctx, m.machine(s), runtime.Attempt{
		ID: a.record.ID, Number: config.Attempt, Bundle: a.bundle, Log: filepath.Join(a.bundle, runtimeLog), StopSignal: syscall.Signal(a.record.Signal),
	}, config)
	switch pod.KindOf(err) {
	case pod.Invalid, pod.NotFound, pod.Unsupported:
		a.refused = err
	default:
		if err != nil {
			return nil, pod.Errorf(pod.KindOf(err), "cannot run container %q: %w", name, err)
		}
	}
	return a, nil
}
