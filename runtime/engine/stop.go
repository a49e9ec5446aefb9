package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/shim"
	"github.com/magikrun/magikpod/units"
)

// StopContainer implements [runtime.PodManager].
func (m *Manager) StopContainer(ctx context.Context, ref pod.Ref, name string, grace time.Duration) error {
	s := m.find(ref)
	if s == nil || !m.live(s, name) {
		return nil
	}
	s.setStopping(name, true)
	defer s.setStopping(name, false)
	unit := s.unit(name)
	m.units.ExpectStop(unit)
	// Frozen it would not see the signal.
	if err := m.units.Thaw(ctx, unit); err != nil {
		return pod.Errorf(pod.KindOf(err), "cannot stop container %q of pod %s: %w", name, ref, err)
	}
	insisting := false
	if record := s.recordOf(name); record.Grace != grace {
		insisting = true
		// A unit's TimeoutStopSec= cannot be changed while it runs: with another grace period the
		// signals are ours.
		if err := m.endByHand(ctx, s, record, grace); err != nil {
			return pod.Errorf(pod.KindOf(err), "cannot stop container %q of pod %s: %w", name, ref, err)
		}
	}
	job, err := m.units.Stop(ctx, unit)
	switch {
	case err != nil:
	case insisting:
		err = m.insist(ctx, s, job, name)
	default:
		err = job.Wait(ctx)
	}
	if err != nil && m.live(s, name) {
		return pod.Errorf(pod.KindOf(err), "cannot stop container %q of pod %s: %w", name, ref, err)
	}
	return nil
}

// live says whether something of the latest attempt may still run.
func (m *Manager) live(s *sandbox, name string) bool { return m.containerState(s, name).Stage.Live() }

func (s *sandbox) setStopping(name string, stopping bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.containers[name]; c != nil {
		c.stopping = stopping
	}
}

// recordOf is the latest attempt at a container that has one.
func (s *sandbox) recordOf(name string) attemptRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.containers[name]; c != nil && c.record != nil {
		return *c.record
	}
	return attemptRecord{}
}

// endByHand sends the stop signal, waits for at most grace, and sends SIGKILL to all that is left.
func (m *Manager) endByHand(ctx context.Context, s *sandbox, record attemptRecord, grace time.Duration) error {
	unit := s.unit(record.Container)
	if grace > 0 {
		if err := m.units.Kill(ctx, unit, "main", syscall.Signal(record.Signal)); err != nil && !m.mainEnded(unit) {
			return err
		}
		deadline, cancel := context.WithTimeout(ctx, grace)
		m.awaitMainEnd(deadline, s, unit)
		cancel()
	}
	if err := ctx.Err(); err != nil {
		return pod.WithKind(pod.Unavailable, context.Cause(ctx))
	}
	if err := m.units.Kill(ctx, unit, "all", unixKILL); err != nil && !m.mainEnded(unit) {
		return err
	}
	return nil
}

func (m *Manager) mainEnded(unit string) bool {
	state, ok := m.units.State(unit)
	return !ok || (state.MainEnded() || state.Ended()) && state.MainPID == 0
}

// awaitMainEnd waits until the first process of a unit has ended, or ctx.
func (m *Manager) awaitMainEnd(ctx context.Context, s *sandbox, unit string) {
	for {
		changed := s.watch()
		if m.mainEnded(unit) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// DeleteSandbox implements [runtime.PodManager].
func (m *Manager) DeleteSandbox(ctx context.Context, ref pod.Ref, grace time.Duration) (pod.RuntimeState, error) {
	state := pod.RuntimeState{Sandbox: pod.SandboxState{Stage: pod.SandboxAbsent}, Containers: map[string]pod.ContainerState{}}
	if err := m.deleteSandbox(ctx, ref, grace, state.Containers); err != nil {
		return state, pod.Errorf(pod.KindOf(err), "cannot delete sandbox of pod %s: %w", ref, err)
	}
	return state, nil
}

// deleteSandbox notes how the containers have ended.
func (m *Manager) deleteSandbox(ctx context.Context, ref pod.Ref, grace time.Duration, ended map[string]pod.ContainerState) error {
	s := m.find(ref)
	if s == nil {
		// Also of a pod that this manager does not know nothing is left.
		if _, err := m.adopt(ctx, ref); err != nil && !errors.Is(err, errDamaged) {
			return err
		}
		if s = m.find(ref); s == nil {
			s = m.newSandbox(ref)
			if err := m.findStrays(ctx, s); err != nil {
				return err
			}
		}
	}
	if err := m.stopAll(ctx, s, grace); err != nil {
		return err
	}
	for _, name := range s.containerNames() {
		if c := m.containerState(s, name); c.Stage != pod.ContainerAbsent {
			ended[name] = c
		}
	}
	if err := m.units.Emptied(ctx, s.names.Slice); err != nil {
		return m.dismantle(ctx, s) // which stops it once more
	}
	return m.dismantleEmpty(ctx, s)
}

// findStrays finds what there is of a pod that could not be adopted.
func (m *Manager) findStrays(ctx context.Context, s *sandbox) (err error) {
	if s.strays, err = m.units.List(ctx, strings.TrimSuffix(s.names.Slice, ".slice")+"-*"); err != nil {
		return err
	}
	entries, _ := os.ReadDir(filepath.Join(s.dir, containersName)) // all of it goes
	for _, entry := range entries {
		record := &attemptRecord{}
		if atomicfile.LoadJSON(filepath.Join(s.dir, containersName, entry.Name(), attemptName), maxRecordBytes, record) == nil && record.Container == entry.Name() {
			s.containers[record.Container] = &container{record: record}
		}
	}
	return nil
}

// stopAll ends every container, in the order of StopAfter, and the pause process.
func (m *Manager) stopAll(ctx context.Context, s *sandbox, grace time.Duration) error {
	if err := m.fault("stop pod"); err != nil {
		return err
	}
	for _, h := range s.holders {
		m.units.ExpectStop(h.unit)
	}
	m.units.ExpectStop(s.names.Slice)
	byHand := false
	for _, name := range s.containerNames() {
		m.units.ExpectStop(s.unit(name))
		if m.live(s, name) {
			s.setStopping(name, true)
			byHand = byHand || s.recordOf(name).Grace != grace
		}
	}
	// Before anything waits for the pause process or for a container.
	if err := m.units.Thaw(ctx, s.names.Slice); err != nil {
		return err
	}
	if byHand {
		m.endAllByHand(ctx, s, grace)
		if err := ctx.Err(); err != nil {
			return pod.WithKind(pod.Unavailable, context.Cause(ctx))
		}
	}
	m.settlePause(ctx, s)
	m.awaitLogs(ctx, s)
	job, err := m.units.Stop(ctx, s.names.Slice)
	switch {
	case err != nil:
		return err
	case byHand:
		return m.insist(ctx, s, job, s.containerNames()...)
	}
	return job.Wait(ctx)
}

// logsTakenTime bounds the wait for a pause process that is just starting.
const logsTakenTime = 5 * time.Second

// awaitLogs waits until the pause process reads all logs: a SIGTERM before it can handle one would
// end it, and with it what short containers have written.
func (m *Manager) awaitLogs(ctx context.Context, s *sandbox) {
	for end := time.Now().Add(logsTakenTime); time.Now().Before(end) && ctx.Err() == nil && !shim.LogsTaken(filepath.Join(s.dir, logName)); {
		if m.holderState(s, s.holders[0]).Stage == pod.SandboxDead {
			return
		}
		time.Sleep(5 * time.Millisecond) // the mode of a FIFO changes without an event that costs less
	}
}

// insistEvery is how often a SIGKILL is repeated.
const insistEvery = 500 * time.Millisecond

// insist waits for the stop of containers whose grace period is over, and kills what still runs:
// systemd, which sends its own stop signal first, would give them the grace period of the manifest,
// and a container that was just being started may have come up after the SIGKILL.
func (m *Manager) insist(ctx context.Context, s *sandbox, job *units.Job, names ...string) error {
	done := make(chan error, 1)
	go func() { done <- job.Wait(ctx) }() // ends with ctx at the latest
	again := time.NewTicker(insistEvery)
	defer again.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-again.C:
			for _, name := range names {
				if m.live(s, name) {
					_ = m.units.Kill(ctx, s.unit(name), "all", unixKILL) // it may have just ended; the next round shows it
				}
			}
		}
	}
}

// endAllByHand ends the containers within grace, all at once but for those that others must end before.
func (m *Manager) endAllByHand(ctx context.Context, s *sandbox, grace time.Duration) {
	deadline, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	var ending sync.WaitGroup
	for _, name := range s.containerNames() {
		ending.Go(func() {
			record := s.recordOf(name)
			for _, before := range record.StopAfter {
				m.awaitMainEnd(deadline, s, s.unit(before))
			}
			if !m.live(s, name) {
				return
			}
			end, _ := deadline.Deadline()
			_ = m.endByHand(ctx, s, record, time.Until(end)) // the slice's stop ends what this has not
		})
	}
	ending.Wait()
}

// dismantle removes a sandbox that was stopped, or that was not made completely: from systemd, from
// the kernel, and below RunDir. The writable layers stay.
func (m *Manager) dismantle(ctx context.Context, s *sandbox) error {
	m.settlePause(ctx, s)
	if err := m.units.End(ctx, s.names.Slice); err != nil {
		return err
	}
	return m.dismantleEmpty(ctx, s)
}

// dismantleEmpty is dismantle once nothing of the sandbox runs.
func (m *Manager) dismantleEmpty(ctx context.Context, s *sandbox) error {
	if err := m.fault("release units"); err != nil {
		return err
	}
	var errs []error
	var paths []string
	for _, name := range s.containerNames() {
		errs = append(errs, m.units.Release(ctx, s.unit(name)))
		if record := s.recordOf(name); record.ID != "" {
			paths = append(paths, m.stateDirOf(record))
		}
	}
	for _, unit := range s.strays {
		errs = append(errs, m.units.Release(ctx, unit))
	}
	errs = append(errs, m.releaseHolders(ctx, s), m.units.Release(ctx, s.names.Slice))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := m.fault("remove sandbox files"); err != nil {
		return err
	}
	return m.removeSandbox(s, paths...)
}

// Forget implements [runtime.PodManager].
func (m *Manager) Forget(_ context.Context, ref pod.Ref) error {
	if err := checkRef(ref); err != nil {
		return err
	}
	if err := m.fault("remove layers"); err != nil {
		return err
	}
	if m.find(ref) != nil {
		return pod.Errorf(pod.Conflict, "cannot forget pod %s: its sandbox exists", ref)
	}
	s := m.newSandbox(ref)
	if err := m.runtime.ForgetSandbox(m.view(s)); err != nil {
		return pod.Errorf(pod.KindOf(err), "cannot forget pod %s: %w", ref, err)
	}
	layers := m.layersDir(ref.UID)
	if err := removeAll(append(s.files(), layers)...); err != nil {
		return pod.Errorf(pod.Internal, "cannot forget pod %s: %w", ref, err)
	}
	_ = os.Remove(m.runDir(ref.UID)) // others may have files in them
	_ = os.Remove(filepath.Dir(layers))
	return nil
}
