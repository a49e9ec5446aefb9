package engine

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"

	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime/crun"
	"github.com/magikrun/magikpod/shim"
)

// errDamaged is in the error of [Manager.Adopt] for a pod whose units run, or may run, while what
// was written down of them is lost: to try again is in vain. DeleteSandbox removes it all the same.
var errDamaged = errors.New("what magikpod has noted of the running pod is damaged (to delete the pod ends it)")

// Adopt implements [runtime.PodManager]. A pod of which nothing runs is known afterwards as one
// without a sandbox, unless records of it are left.
func (m *Manager) Adopt(ctx context.Context, ref pod.Ref) error {
	if err := checkRef(ref); err != nil {
		return err
	}
	found, err := m.adopt(ctx, ref)
	if err == nil && !found {
		err = m.checkAbsent(ctx, ref)
	}
	if err != nil {
		err = pod.Errorf(pod.KindOf(err), "cannot adopt pod %s: %w", ref, err)
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
	state, err := m.units.Refresh(ctx, m.config.Layout.Names(ref).Pause)
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
		// When pause has just died, the sandbox is dead, and no namespace is needed any more. When
		// it has just been started, awaitNamespaces comes back to it.
		s.ns, _ = openNamespaces(pause.MainPID, s.record)
	}
	kept := false
	if s.ns == nil && err == nil {
		s.ns = m.kept(s)
		kept = s.ns != nil
	}
	if err == nil {
		err = m.adoptHolders(ctx, s)
	}
	if err == nil {
		err = m.adoptContainers(ctx, s)
	}
	if err == nil && kept {
		err = m.startPauseLater(s, func(ctx context.Context, _ *latePause) error { return m.startPauseAgain(ctx, s) })
	}
	if err != nil {
		m.forgetSandbox(s)
		return true, err
	}
	m.spawn(func() { m.thawLeft(s) })
	return true, nil
}

// Named implements [runtime.PodManager].
func (m *Manager) Named(uid types.UID) (pod.Ref, error) {
	if err := checkRef(pod.Ref{UID: uid}); err != nil {
		return pod.Ref{}, err
	}
	var c shim.PauseConfig
	err := atomicfile.LoadJSON(filepath.Join(m.runDir(uid), pauseName), maxRecordBytes, &c)
	if err == nil {
		err = errors.Join(pod.ValidateNamespace(c.Namespace), pod.ValidateName(c.Pod))
	}
	if err == nil && c.UID != string(m.podUID(uid)) {
		err = errors.New("what is noted is another pod's")
	}
	if err != nil {
		return pod.Ref{}, pod.Errorf(pod.NotFound, "cannot find the name of pod %s: %w", uid, err)
	}
	return pod.Ref{Namespace: c.Namespace, Name: c.Pod, UID: uid}, nil
}

// podUID is the UID of the pod whose sandbox has an ID, as it was noted.
func (m *Manager) podUID(id types.UID) types.UID {
	var record sandboxRecord
	_ = atomicfile.LoadJSON(filepath.Join(m.runDir(id), sandboxName), maxRecordBytes, &record) // without a record they are the same
	return cmp.Or(record.PodUID, id)
}

// readRecord reads what must be read to adopt a pod. Unavailable: it cannot be read now;
// errDamaged: it never will be.
func readRecord(path string, v any) error {
	err := atomicfile.LoadJSON(path, maxRecordBytes, v)
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

// noteStartError adds the OCI runtime's own error to an attempt that could not be started while
// nobody waited for its start.
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
