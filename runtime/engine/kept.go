package engine

import (
	"context"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/internal/nsfile"
	"github.com/magikrun/magikpod/internal/rawfd"
	"github.com/magikrun/magikpod/shim"
	"github.com/magikrun/magikpod/units"
)

// FileStore keeps open files for the daemon that comes after this one, should this one be killed, as
// systemd does (sd_pid_notify_with_fds(3), FDSTORE=1).
type FileStore interface {
	// Keep keeps files under a name, beside those that it has, until Drop or a stop of the daemon.
	Keep(name string, files []*os.File) error
	Drop(name string) error
	// Take returns the files that an earlier daemon has kept under a name. They are the caller's, and
	// are kept all the same.
	Take(name string) []*os.File
}

// noFiles is a FileStore that keeps nothing.
type noFiles struct{}

func (noFiles) Keep(string, []*os.File) error { return nil }
func (noFiles) Drop(string) error             { return nil }
func (noFiles) Take(string) []*os.File        { return nil }

// KeptFiles begins the names under which the namespaces of a sandbox are kept; its ID follows.
const KeptFiles = "sandbox-"

// keep has the namespaces outlive this process until the pause process has them.
func (m *Manager) keep(s *sandbox) {
	s.mu.Lock()
	files := slices.DeleteFunc(s.ns.files(), func(f *os.File) bool { return f == nil })
	s.mu.Unlock()
	if err := m.config.Files.Keep(KeptFiles+string(s.ref.UID), files); err != nil {
		m.config.Log.Warn("cannot keep the namespaces of a pod for the next daemon", "pod", s.ref.String(), "error", err)
	}
}

// drop ends what keep has begun. Who has lost systemd leaves it to the next daemon.
func (m *Manager) drop(s *sandbox) {
	if m.lost() {
		return
	}
	if err := m.config.Files.Drop(KeptFiles + string(s.ref.UID)); err != nil {
		m.config.Log.Warn("cannot let go of the namespaces of a pod", "pod", s.ref.String(), "error", err)
	}
}

// kept opens the namespaces that an earlier daemon has kept; nil: it has kept none.
func (m *Manager) kept(s *sandbox) *namespaces {
	files := m.config.Files.Take(KeptFiles + string(s.ref.UID))
	if len(files) == 0 {
		return nil
	}
	ns := &namespaces{}
	for _, f := range files {
		kind := 0
		_ = rawfd.Use(f, func(fd int) (err error) { // what is no namespace has no kind
			kind, err = unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
			return err
		})
		switch kind {
		case unix.CLONE_NEWNET:
			ns.net = f
		case unix.CLONE_NEWIPC:
			ns.ipc = f
		case unix.CLONE_NEWUTS:
			ns.uts = f
		case unix.CLONE_NEWNS:
			ns.mnt = f
		default:
			f.Close()
		}
	}
	return ns
}

// startPauseAgain starts the pause unit of a sandbox whose daemon was killed before the pause process
// had entered the namespaces.
func (m *Manager) startPauseAgain(ctx context.Context, s *sandbox) error {
	var known bool
	for {
		changed := s.watch()
		var state units.State
		if state, known = m.units.State(s.names.Pause); state.Active == units.ActiveActive {
			return nil // it has entered them after all
		}
		if !known || state.Ended() {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	var c shim.PauseConfig
	path := filepath.Join(s.dir, pauseName)
	if err := readRecord(path, &c); err != nil {
		return err
	}
	s.mu.Lock()
	c.Owner, c.NetNS, c.IPCNS, c.UTSNS, c.MountNS = nsfile.Self(), nsfile.Path(s.ns.net), nsfile.Path(s.ns.ipc), nsfile.Path(s.ns.uts), nsfile.Path(s.ns.mnt)
	s.mu.Unlock()
	if err := atomicfile.SaveJSON(path, c); err != nil {
		return err
	}
	if !known {
		return m.startPause(ctx, s)
	}
	// A unit that others name, as the containers' do, cannot be made anew.
	job, err := m.units.StartAgain(ctx, s.names.Pause)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.holders[0].job = job
	s.mu.Unlock()
	return nil
}
