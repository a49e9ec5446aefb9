package engine

import (
	"context"
	"errors"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/shim"
	"github.com/magikrun/magikpod/units"
)

// holder is one of the units that a sandbox lives in, and is as well as the worst of.
type holder struct {
	kind runtime.HolderKind
	unit string
	job  *units.Job // of its start; nil when another daemon has started it. The sandbox's lock guards it.
}

// job is the start job of a holder, when this manager has made it.
func (s *sandbox) job(h *holder) *units.Job {
	s.mu.Lock()
	defer s.mu.Unlock()
	return h.job
}

// view is what the Runtime sees of a sandbox. pid is the pod's PID namespace, if it is known and
// has one.
func (m *Manager) view(s *sandbox) runtime.Sandbox {
	v := runtime.Sandbox{
		Ref: s.ref, RunDir: s.dir, StateDir: filepath.Dir(m.layersDir(s.ref.UID)),
		ShmDir: filepath.Join(s.dir, shmName), TmpfsDir: filepath.Join(s.dir, tmpfsName),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v.Hostname = s.record.Hostname
	if s.record.Host.IPC {
		v.ShmDir = "/dev/shm"
	}
	if s.ns != nil {
		v.Namespaces = runtime.Namespaces{Network: s.ns.net, IPC: s.ns.ipc, UTS: s.ns.uts, Mount: s.ns.mnt, PID: s.ns.pid}
	}
	return v
}

// startHolders queues the pause unit, now or behind the containers, and the others.
func (m *Manager) startHolders(ctx context.Context, s *sandbox, config runtime.SandboxConfig, others []runtime.Holder) error {
	if len(others) == 0 && !s.record.SharePID {
		return m.startPauseBehind(s)
	}
	if err := m.startPause(ctx, s); err != nil {
		return err
	}
	for i, other := range others {
		h := s.holders[1+i]
		if err := m.fault("start " + string(h.kind) + " unit"); err != nil {
			return err
		}
		props := units.VMProps(units.VMUnit{Pod: config.Pod, Names: s.names, Argv: other.Argv, PowerOff: other.PowerOff})
		if err := m.startHolder(ctx, s, h, props); err != nil {
			return err
		}
	}
	return nil
}

// startSlices queues the slices.
func (m *Manager) startSlices(ctx context.Context, s *sandbox, p *corev1.Pod) error {
	if err := m.fault("start slices"); err != nil {
		return err
	}
	m.remember(s)
	slices := m.config.Layout.Slices(s.ref, p, m.runtime.PodLimits(p))
	_, err := m.units.StartTransient(ctx, slices[0].Name, slices[0].Props, slices[1:]...)
	if pod.KindOf(err) == pod.AlreadyExists {
		return pod.Errorf(pod.AlreadyExists, "units of that name run which belong to no pod that magikpod knows (systemctl status %s shows them, systemctl stop ends them)", s.names.Slice)
	}
	return err
}

// startPause queues the pause unit.
func (m *Manager) startPause(ctx context.Context, s *sandbox) error {
	if err := m.fault("start pause unit"); err != nil {
		return err
	}
	return m.startHolder(ctx, s, s.holders[0], units.PauseProps(units.PauseUnit{
		Namespace: s.ref.Namespace, Pod: s.ref.Name, Names: s.names, Notify: !s.record.NetworkOnly, StopSignal: shim.StopSignal,
		Argv: []string{m.config.ShimPath, "pause", "--config", filepath.Join(s.dir, pauseName)},
	}))
}

func (m *Manager) startHolder(ctx context.Context, s *sandbox, h *holder, props []units.Property) error {
	job, err := m.units.StartTransient(ctx, h.unit, props)
	if err != nil {
		return err
	}
	s.mu.Lock()
	h.job = job
	s.mu.Unlock()
	return m.fault("after " + string(h.kind) + " unit")
}

// releaseHolders makes systemd forget the holders of a sandbox that was stopped, and removes what
// they have left.
func (m *Manager) releaseHolders(ctx context.Context, s *sandbox) error {
	var errs []error
	for _, h := range s.holders[1:] {
		errs = append(errs, m.units.Release(ctx, h.unit))
	}
	return errors.Join(append(errs, m.runtime.RemoveSandbox(m.view(s)), m.units.Release(ctx, s.names.Pause))...)
}

// adoptHolders finds the units beside pause that an earlier daemon has started. Without one of them
// the sandbox is dead.
func (m *Manager) adoptHolders(ctx context.Context, s *sandbox) error {
	for _, h := range s.holders[1:] {
		if _, err := m.units.Track(ctx, h.unit); err != nil && pod.KindOf(err) != pod.NotFound {
			return err
		}
	}
	return nil
}

// awaitReady waits until containers can be run in the sandbox. It does not wait for the pause process.
func (m *Manager) awaitReady(ctx context.Context, s *sandbox) error {
	ctx, done := m.whileHeld(ctx, s)
	defer done()
	for _, h := range s.holders[1:] {
		if job := s.job(h); job != nil {
			if err := job.Wait(ctx); err != nil {
				return err
			}
		}
	}
	s.mu.Lock()
	gone := s.ns == nil
	s.mu.Unlock()
	if gone {
		return pod.Errorf(pod.Conflict, "its sandbox is gone")
	}
	err := m.runtime.ReadySandbox(ctx, m.view(s))
	if err != nil && errors.Is(context.Cause(ctx), errHolderEnded) {
		return errHolderEnded
	}
	return err
}

var errHolderEnded = pod.Errorf(pod.Unavailable, "the pod's VM has ended")

// whileHeld returns a context that ends with the sandbox's holders: what waits for an answer from
// one would wait in vain. done ends it, too. With pause alone nobody waits for anything but units,
// which systemd ends with it.
func (m *Manager) whileHeld(ctx context.Context, s *sandbox) (_ context.Context, done func()) {
	if len(s.holders) == 1 {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	m.spawn(func() { m.cancelWithHolders(ctx, s, cancel) })
	return ctx, func() { cancel(nil) }
}

// cancelWithHolders cancels ctx when the sandbox dies.
func (m *Manager) cancelWithHolders(ctx context.Context, s *sandbox, cancel context.CancelCauseFunc) {
	for {
		changed := s.watch()
		if m.sandboxState(s).Stage == pod.SandboxDead {
			cancel(errHolderEnded)
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
