package engine

import (
	"context"
	"path/filepath"
	"time"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/shim"
)

// pauseDelay is how long a pause unit waits at most for the first containers.
const pauseDelay = time.Second

// latePause is a pause unit that is started behind the first containers of its sandbox. They have
// the namespaces from this process, and their log waits in pipes that it keeps open: nothing of
// theirs waits for the pause process, whose start takes systemd as long as a container's.
type latePause struct {
	decide chan bool     // of size 1: start it now, or never
	done   chan struct{} // closed when the pause process has entered the namespaces, or never will
	err    error         // why it never will; set before done is closed
}

// startPauseBehind has the pause unit started when no container is being started any more.
func (m *Manager) startPauseBehind(s *sandbox) error {
	m.keep(s)
	return m.startPauseLater(s, func(ctx context.Context, late *latePause) error {
		if !m.awaitStarts(s, late) {
			return nil
		}
		return m.startPause(ctx, s)
	})
}

// startPauseLater has start start the pause unit in the background, or not.
func (m *Manager) startPauseLater(s *sandbox, start func(ctx context.Context, late *latePause) error) error {
	late := &latePause{decide: make(chan bool, 1), done: make(chan struct{})}
	s.mu.Lock()
	s.late = late
	s.mu.Unlock()
	started := m.spawn(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(m.ctx), pauseDelay+cleanupTimeout)
		defer cancel()
		late.err = start(ctx, late)
		if job := s.job(s.holders[0]); job != nil && late.err == nil {
			late.err = job.Wait(ctx)
		}
		m.drop(s)
		close(late.done)
		if late.err != nil {
			m.config.Log.Warn("cannot start the pause unit", "pod", s.ref.String(), "error", late.err)
			m.unitChanged(s.names.Pause)
		}
	})
	if !started {
		close(late.done)
		return pod.Errorf(pod.Unavailable, "the runtime class is being closed")
	}
	return nil
}

// awaitStarts returns when the pause unit is to be started; false: it is not.
func (m *Manager) awaitStarts(s *sandbox, late *latePause) bool {
	limit := time.NewTimer(pauseDelay)
	defer limit.Stop()
	for {
		changed := s.watch()
		if s.startsOver() {
			return true
		}
		select {
		case <-changed:
		case start := <-late.decide:
			return start
		case <-limit.C:
			return true
		case <-m.ctx.Done(): // it must be there when this process is not
			return true
		}
	}
}

// startsOver says whether containers were started, and none is being started.
func (s *sandbox) startsOver() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.containers {
		if c.starting {
			return false
		}
	}
	return len(s.containers) > 0
}

// settlePause has a pause unit that is still to come started, or left out. It is needed for as long
// as there are logs that nobody has read.
func (m *Manager) settlePause(ctx context.Context, s *sandbox) {
	s.mu.Lock()
	late := s.late
	s.mu.Unlock()
	if late == nil {
		return
	}
	select {
	case late.decide <- !shim.LogsTaken(filepath.Join(s.dir, logName)):
	default: // somebody else has decided
	}
	select {
	case <-late.done:
	case <-ctx.Done():
	}
}

// pauseToCome says whether the pause process is still to come, or why it never will.
func (s *sandbox) pauseToCome() (bool, error) {
	s.mu.Lock()
	late := s.late
	s.mu.Unlock()
	if late == nil {
		return false, nil
	}
	select {
	case <-late.done:
		return false, late.err
	default:
		return true, nil
	}
}
