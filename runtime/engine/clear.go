package engine

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/magikrun/magikpod/pod"
)

// clear makes room for the next attempt: it removes what the last one has left, of which only the
// observation stays.
func (m *Manager) clear(ctx context.Context, s *sandbox, name string) error {
	if err := m.fault("clear last attempt"); err != nil {
		return err
	}
	state := m.containerState(s, name)
	s.mu.Lock()
	c := s.containers[name]
	if c == nil || c.record == nil {
		s.mu.Unlock()
		return removeAll(filepath.Join(s.dir, containersName, name), filepath.Join(m.layersDir(s.ref.UID), name))
	}
	record := *c.record
	c.final = &state
	s.mu.Unlock()
	return m.removeAttempt(ctx, s, record)
}

// RemoveContainer removes all of a container that does not run, what is known of it too. Conflict:
// it runs. One that does not exist is no error. Nobody needs it who runs the next attempt, or
// deletes the sandbox.
func (m *Manager) RemoveContainer(ctx context.Context, ref pod.Ref, name string) error {
	s := m.find(ref)
	if s == nil {
		return nil
	}
	if m.live(s, name) {
		return pod.Errorf(pod.Conflict, "cannot remove container %q of pod %s: it runs", name, ref)
	}
	if err := m.clear(ctx, s, name); err != nil {
		return pod.Errorf(pod.KindOf(err), "cannot remove container %q of pod %s: %w", name, ref, err)
	}
	m.mu.Lock()
	delete(m.byUnit, s.unit(name))
	m.mu.Unlock()
	s.mu.Lock()
	delete(s.containers, name)
	s.mu.Unlock()
	return nil
}

// removeAttempt removes the unit of an attempt, with all of its processes, what the OCI runtime
// remembers of it, its log pipes (after what is in them was read), its bundle and its writable
// layer.
func (m *Manager) removeAttempt(ctx context.Context, s *sandbox, record attemptRecord) error {
	if err := m.stopAttempt(ctx, s, record); err != nil {
		return err // what may run keeps its files
	}
	return m.removeStopped(ctx, s, record)
}

// removeStopped is removeAttempt once the unit is stopped.
func (m *Manager) removeStopped(ctx context.Context, s *sandbox, record attemptRecord) error {
	m.noteEndOf(s, record)
	return errors.Join(m.units.Release(ctx, s.unit(record.Container)), m.removeFiles(s, record))
}

// stopRetry is how often a stop is asked for again that did not reach systemd, as it does while it
// executes itself anew.
const stopRetry = 100 * time.Millisecond

// stopAttempt stops the unit of an attempt. An error says that it may run.
func (m *Manager) stopAttempt(ctx context.Context, s *sandbox, record attemptRecord) error {
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout) // what cannot be thawed or killed is an error
	defer cancel()
	unit := s.unit(record.Container)
	for {
		state, tracked := m.units.State(unit)
		// One that is not tracked may run all the same: that its start has failed may be all that
		// is known, as no answer came.
		if tracked && state.Ended() {
			return nil
		}
		m.units.ExpectStop(unit)
		if tracked && !state.MainEnded() {
			_ = m.units.Kill(ctx, unit, "all", unixKILL) // it may have just ended
		}
		err := m.units.End(ctx, unit)
		if err == nil || pod.KindOf(err) != pod.Unavailable || m.lost() {
			return err
		}
		select {
		case <-time.After(stopRetry):
		case <-ctx.Done():
			return err
		}
	}
}

// noteEndOf ends the log of an attempt, unless that was done.
func (m *Manager) noteEndOf(s *sandbox, record attemptRecord) {
	s.mu.Lock()
	c := s.containers[record.Container]
	done := c != nil && c.noted
	if c != nil {
		c.noted = true
	}
	s.mu.Unlock()
	if !done {
		m.endLog(s, record)
	}
}

// removeFiles removes what an attempt has below RunDir and StateDir.
func (m *Manager) removeFiles(s *sandbox, record attemptRecord) error {
	return removeAll(
		m.stateDirOf(record), filepath.Join(s.dir, containersName, record.Container), filepath.Join(m.layersDir(s.ref.UID), record.Container))
}

// stateDirOf is what the OCI runtime, perhaps that of an earlier daemon, remembers of the attempt.
// All processes of the container are gone with its unit, and so are its cgroup and its mounts:
// removing the directory is all that is left for `delete` to do.
func (m *Manager) stateDirOf(record attemptRecord) string {
	return filepath.Join(m.config.RunDir, "runtime", record.Runtime, record.ID)
}
