package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/ownthread"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// The main thread is kept for the main goroutine: a namespace that is unshared on it would become the process's.
func init() { goruntime.LockOSThread() }

// shmSize is the size of a pod's /dev/shm in bytes, as in all CRI runtimes.
const shmSize = 64 << 20

// namespaces are the open namespaces of a pod. A nil file: the pod is in the host's.
type namespaces struct {
	net, ipc, uts, mnt *os.File
	// pid is the pod's PID namespace, which the pause process makes; nil while it is not known or
	// when there is none.
	pid *os.File
}

// namespacesWanted says what to make.
type namespacesWanted struct {
	none     bool
	hostIPC  bool
	hostname string // set in a new UTS namespace; empty: stay in the host's
	dir      string // of the pod below RunDir; shm and tmpfs/VOLUME lie in it
	tmpfs    []runtime.Tmpfs
}

// makeNamespaces makes the pod's mount namespace with its shared file systems, and its IPC and UTS
// namespaces. On an error nothing is left.
func makeNamespaces(want namespacesWanted) (*namespaces, error) {
	if want.none {
		return &namespaces{}, nil
	}
	ns := &namespaces{}
	if err := ownthread.Run(func() error { return ns.make(want) }); err != nil {
		ns.close() // and its mounts with it
		return nil, err
	}
	return ns, nil
}

// make is the work of makeNamespaces on the thrown-away thread.
func (ns *namespaces) make(want namespacesWanted) error {
	flags := unix.CLONE_FS | unix.CLONE_NEWNS
	if !want.hostIPC {
		flags |= unix.CLONE_NEWIPC
	}
	if want.hostname != "" {
		flags |= unix.CLONE_NEWUTS
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if want.hostname != "" {
		if err := unix.Sethostname([]byte(want.hostname)); err != nil {
			return fmt.Errorf("set host name %q: %w", want.hostname, err)
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts slave: %w", err)
	}
	if err := mountShared(want); err != nil {
		return err
	}
	var errs []error
	open := func(name string) *os.File {
		f, err := os.Open("/proc/thread-self/ns/" + name)
		errs = append(errs, err)
		return f
	}
	ns.mnt = open("mnt")
	if flags&unix.CLONE_NEWIPC != 0 {
		ns.ipc = open("ipc")
	}
	if flags&unix.CLONE_NEWUTS != 0 {
		ns.uts = open("uts")
	}
	return errors.Join(errs...)
}

// mountShared mounts the file systems in memory that the pod's containers share.
func mountShared(want namespacesWanted) error {
	if !want.hostIPC {
		shm := runtime.Tmpfs{SizeBytes: shmSize, Mode: os.ModeSticky | 0o777}
		if err := mountTmpfs(filepath.Join(want.dir, shmName), unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NODEV, shm); err != nil {
			return err
		}
	}
	for _, t := range want.tmpfs {
		if t.Mode == 0 {
			t.Mode = os.ModeSticky | 0o777
		}
		if err := mountTmpfs(filepath.Join(want.dir, tmpfsName, t.Name), unix.MS_NOSUID|unix.MS_NODEV, t); err != nil {
			return err
		}
	}
	return nil
}

func mountTmpfs(target string, flags uintptr, t runtime.Tmpfs) error {
	if err := os.MkdirAll(target, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", target, "tmpfs", flags, t.Options()); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", target, err)
	}
	return nil
}

// errNotEntered: a process is not in the pod's namespaces yet.
var errNotEntered = errors.New("the pause process has not entered the pod's namespaces yet")

// openNamespaces opens the namespaces of a process that is in those of the pod. errNotEntered: it
// is still in one of the host's.
func openNamespaces(pid int, record sandboxRecord) (*namespaces, error) {
	ns := &namespaces{}
	var errs []error
	open := func(name string) *os.File {
		f, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "ns", name))
		if err == nil && isOurs(f, name) {
			err = errNotEntered
		}
		errs = append(errs, err)
		return f
	}
	if !record.Host.Network {
		ns.net = open("net")
	}
	if !record.NetworkOnly {
		ns.mnt = open("mnt")
		if !record.Host.Network {
			ns.uts = open("uts")
		}
		if !record.Host.IPC {
			ns.ipc = open("ipc")
		}
	}
	if err := errors.Join(errs...); err != nil {
		ns.close()
		return nil, err
	}
	return ns, nil
}

// isOurs says whether an open namespace is the one that this process is in.
func isOurs(f *os.File, name string) bool {
	theirs, err := f.Stat()
	if err != nil {
		return false
	}
	ours, err := os.Stat("/proc/self/ns/" + name)
	return err == nil && os.SameFile(theirs, ours)
}

// enterTimeout is how long a pause process may take to enter the namespaces.
const enterTimeout = 30 * time.Second

// awaitNamespaces makes sure that the pod's namespaces are open. A manager that has adopted a pod
// whose pause process was just being started waits here until that has entered them. Conflict: the
// sandbox is gone; Unavailable: it takes too long.
func (m *Manager) awaitNamespaces(ctx context.Context, s *sandbox) error {
	ctx, cancel := context.WithTimeout(ctx, enterTimeout)
	defer cancel()
	for {
		s.mu.Lock()
		open, record := s.ns != nil, s.record
		s.mu.Unlock()
		if open {
			return nil
		}
		if stage := m.sandboxState(s).Stage; stage != pod.SandboxReady && stage != pod.SandboxStarting || m.find(s.ref) != s {
			return pod.Errorf(pod.Conflict, "its sandbox is gone")
		}
		if pause, _ := m.units.State(s.names.Pause); pause.MainPID > 0 {
			if ns, err := openNamespaces(pause.MainPID, record); err == nil {
				s.keep(ns)
				return nil
			}
		}
		select { // nothing reports when a process enters a namespace
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return pod.WithKind(pod.Unavailable, errNotEntered)
		}
	}
}

// keep stores the pod's namespaces, unless somebody else has opened them meanwhile.
func (s *sandbox) keep(ns *namespaces) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ns != nil {
		ns.close()
		return
	}
	s.ns = ns
}

// files are the open namespaces, or nil, in an order of theirs.
func (ns *namespaces) files() []*os.File { return []*os.File{ns.net, ns.ipc, ns.uts, ns.mnt, ns.pid} }

// close forgets the namespaces; they live on for as long as a process is in them. A nil receiver is
// fine.
func (ns *namespaces) close() {
	if ns == nil {
		return
	}
	for _, f := range ns.files() {
		if f != nil {
			f.Close()
		}
	}
}
