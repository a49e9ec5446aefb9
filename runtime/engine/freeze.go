package engine

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/internal/cgroup"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/shim"
)

// An OCI runtime makes a container's process, and that of an exec, inside of the PID namespace, and
// only then takes from it what a container may not have: all capabilities, and, of a new
// container's, the host's file system. A container of that namespace with CAP_SYS_PTRACE could take
// them all in the meantime. So its processes are frozen then.

// freezeLimit bounds how long a start or an exec may keep others frozen.
const freezeLimit = 30 * time.Second

// tracesAny says whether one of a pod's containers gets CAP_SYS_PTRACE.
func tracesAny(p *corev1.Pod) bool {
	for c := range pod.AllContainers(&p.Spec) {
		if runtime.Traces(p, c) {
			return true
		}
	}
	return false
}

// freezeOnlookers freezes the processes that could seize one on its way into the PID namespace of a
// container that runs, or, for "", of the pod, but for those in the cgroup own. They run on after
// thaw, and when this daemon dies. Nobody else enters meanwhile. A nil thaw: there is nobody to
// freeze. Unavailable: ctx is over, or they do not freeze.
func (m *Manager) freezeOnlookers(ctx context.Context, s *sandbox, container, own string) (thaw func(), err error) {
	s.mu.Lock()
	c := s.containers[container]
	wanted := s.record.Traced && s.record.SharePID || c != nil && c.record != nil && c.record.Traces
	s.mu.Unlock()
	if !wanted {
		return nil, nil
	}
	slot := runtime.NewSlot(s.entering)
	if err := slot.Take(ctx); err != nil {
		return nil, pod.WithKind(pod.Unavailable, err)
	}
	failed := func(err error) error {
		slot.Release()
		return pod.Errorf(pod.Unavailable, "cannot freeze the containers with SYS_PTRACE: %w", err)
	}
	cgroups, err := m.onlookers(s, container, own)
	switch {
	case err != nil:
		return nil, failed(err)
	case len(cgroups) == 0:
		return slot.Release, nil
	}
	release := m.units.KeepFrozen(cgroups) // a stop in the middle kills them as they are, or has them wait
	thawCgroups, err := m.freeze(s.dir, cgroups)
	if err != nil {
		release()
		return nil, failed(err)
	}
	return sync.OnceFunc(func() { thawCgroups(); release(); slot.Release() }), nil
}

// onlookers are the cgroups of the containers with CAP_SYS_PTRACE in the same PID namespace. They
// are children of the units' own ones, which systemctl freezes. With an error it is not known who
// looks on.
func (m *Manager) onlookers(s *sandbox, container, own string) (cgroups []string, err error) {
	s.mu.Lock()
	var traced []string
	for name, c := range s.containers {
		if c.record != nil && c.record.Traces && (s.record.SharePID || name == container) {
			traced = append(traced, name)
		}
	}
	s.mu.Unlock()
	for _, name := range traced {
		unit := m.units.CgroupDir(s.unit(name))
		if unit == "" {
			return nil, pod.Errorf(pod.Unavailable, "cannot find the cgroup of container %s", name)
		}
		for _, parent := range []string{unit, filepath.Join(unit, runtime.ContainerCgroup)} {
			entries, err := os.ReadDir(parent)
			if unseen(err) {
				return nil, pod.WithKind(pod.Unavailable, err)
			}
			for _, entry := range entries {
				if dir := filepath.Join(parent, entry.Name()); entry.IsDir() && (own == "" || dir != own && !strings.HasPrefix(own, dir+"/")) {
					cgroups = append(cgroups, dir)
				}
			}
		}
	}
	return cgroups, nil
}

// thawLeft thaws what an earlier daemon has frozen, or has left frozen because its magikshim was
// killed with it.
func (m *Manager) thawLeft(s *sandbox) {
	for _, name := range s.containerNames() {
		if thaw, err := m.freezeOnlookers(m.ctx, s, name, ""); err != nil && m.ctx.Err() == nil {
			m.config.Log.Warn("cannot find out whether a container is frozen", "pod", s.ref.String(), "container", name, "error", err)
		} else if thaw != nil {
			thaw()
		}
	}
}

// freeze has magikshim freeze cgroups.
func (m *Manager) freeze(dir string, cgroups []string) (thaw func(), err error) {
	cmd := exec.Command(m.config.ShimPath, append([]string{shim.FreezeCommand, dir}, cgroups...)...)
	cmd.Env = []string{"GOMAXPROCS=1"}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	line, _ := bufio.NewReaderSize(stdout, 16).ReadString('\n') // it says why it ends
	thaw = func() {
		_, _ = stdin.Write([]byte("\n"))
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil { // it was killed
			for _, dir := range cgroups {
				_ = cgroup.SetFrozen(dir, false)
			}
		}
	}
	if line != shim.Frozen+"\n" {
		thaw()
		return nil, pod.Errorf(pod.Unavailable, "%s", strings.TrimSpace(stderr.String()))
	}
	return thaw, nil
}
