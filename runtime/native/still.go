package native

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/internal/cgroup"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/shim"
)

// An OCI runtime makes a container's process, and that of an exec, inside of the PID namespace, and only then takes from it what a container may not have: all capabilities, and, of a
// new container's, the host's file system. A container of that namespace with CAP_SYS_PTRACE could take them all in the meantime. So its processes stand still then.

// firstCgroup is the child cgroup for the processes of a container with CAP_SYS_PTRACE that are no exec's.
const firstCgroup = "first"

// holdLimit bounds how long a start or an exec may hold others.
const holdLimit = 30 * time.Second

// traces says whether a container gets CAP_SYS_PTRACE. A privileged one has the host anyway.
func traces(c *corev1.Container) bool {
	sc := c.SecurityContext
	if sc == nil || sc.Capabilities == nil || sc.Privileged != nil && *sc.Privileged {
		return false
	}
	return slices.ContainsFunc(sc.Capabilities.Add, func(name corev1.Capability) bool {
		name = corev1.Capability(strings.TrimPrefix(strings.ToUpper(string(name)), "CAP_"))
		return name == "SYS_PTRACE" || name == "ALL"
	})
}

// tracesAny says whether one of a pod's containers gets it. What has the host's PID namespace has the host anyway.
func tracesAny(p *corev1.Pod) bool {
	if p.Spec.HostPID {
		return false
	}
	for c := range pod.AllContainers(&p.Spec) {
		if traces(c) {
			return true
		}
	}
	return false
}

// holdStill makes the processes stand still that could get hold of one on its way into the PID namespace of a container that runs, or, for "", of the pod, but for those in the cgroup own. They
// go on after letGo, and when this daemon dies. Nobody else enters meanwhile. A nil letGo: there is nobody to hold. Unavailable: ctx is over, or they do not stand still.
func (m *Manager) holdStill(ctx context.Context, s *sandbox, container, own string) (letGo func(), err error) {
	s.mu.Lock()
	c := s.containers[container]
	wanted := s.record.Traced && s.record.SharePID || c != nil && c.record != nil && c.record.Traces
	s.mu.Unlock()
	if !wanted {
		return nil, nil
	}
	turn := runtime.NewSlot(s.entering)
	if err := turn.Take(ctx); err != nil {
		return nil, pod.WithKind(pod.Unavailable, err)
	}
	failed := func(err error) error {
		turn.Release()
		return pod.Errorf(pod.Unavailable, "cannot keep the containers with SYS_PTRACE from looking: %w", err)
	}
	cgroups, err := m.onlookers(s, container, own)
	switch {
	case err != nil:
		return nil, failed(err)
	case len(cgroups) == 0:
		return turn.Release, nil
	}
	release := m.units.KeepFrozen(cgroups) // a stop in the middle kills them as they are, or has them wait
	thaw, err := m.hold(s.dir, cgroups)
	if err != nil {
		release()
		return nil, failed(err)
	}
	return sync.OnceFunc(func() { thaw(); release(); turn.Release() }), nil
}

// onlookers are the cgroups of the containers with CAP_SYS_PTRACE in the same PID namespace. They are children of the units' own ones, which systemctl freezes. With an
// error it is not known who looks on.
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
			return nil, pod.Errorf(pod.Unavailable, "cannot tell the cgroup of container %s", name)
		}
		for _, parent := range []string{unit, filepath.Join(unit, containerCgroup)} {
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

// letGoOfLeft lets go of whom an earlier daemon holds, or has left frozen because its holder was killed with it.
func (m *Manager) letGoOfLeft(s *sandbox) {
	for _, name := range s.containerNames() {
		if letGo, err := m.holdStill(m.ctx, s, name, ""); err != nil && m.ctx.Err() == nil {
			m.config.Log.Warn("cannot tell whether a container stands still", "pod", s.ref.String(), "container", name, "error", err)
		} else if letGo != nil {
			letGo()
		}
	}
}

// hold has magikshim freeze cgroups.
func (m *Manager) hold(dir string, cgroups []string) (thaw func(), err error) {
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

// inRuntime says whether a process is still the OCI runtime, which has files of the host open until it executes the container's command. What has ended is not.
func (r *ociRuntime) inRuntime(pid int) bool {
	exe := "/proc/" + strconv.Itoa(pid) + "/exe"
	now, err := os.Stat(exe)
	if err != nil {
		return false
	}
	if link, _ := os.Readlink(exe); strings.HasPrefix(link, "/memfd:") { // a copy of itself (CVE-2019-5736)
		return true
	}
	program, err := os.Stat(r.path)
	return err == nil && os.SameFile(now, program)
}

// commandTime bounds how long a process that has nothing left to do as the OCI runtime may take to execute the container's command.
const commandTime = 10 * time.Second

// awaitCommand waits until such a process has executed the command, or has ended. False: it does neither.
func (r *ociRuntime) awaitCommand(pid int) bool {
	for begin := time.Now(); pid > 0 && r.inRuntime(pid); time.Sleep(200 * time.Microsecond) {
		if time.Since(begin) > commandTime {
			return false
		}
	}
	return true
}

// letGoWhenEntered waits until the process of an exec is a container's: the OCI runtime has written its PID, and it has executed its command, or has ended.
func (x *execution) letGoWhenEntered(runtimePID int, letGo func()) {
	if letGo == nil {
		return
	}
	defer letGo()
	for begin := time.Now(); time.Since(begin) < holdLimit; time.Sleep(200 * time.Microsecond) {
		if _, err := os.Stat("/proc/" + strconv.Itoa(runtimePID) + "/exe"); err != nil {
			x.awaitCommands()
			return // it has ended
		}
		data, err := os.ReadFile(x.path(pidName))
		if err != nil {
			continue
		}
		if pid, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
			if !x.kind.awaitCommand(pid) {
				break
			}
			return
		}
	}
	x.kill()
	x.awaitCommands()
}

// awaitCommands is awaitCommand for all processes of an exec: what was killed with the OCI runtime may take longer than that to go.
func (x *execution) awaitCommands() {
	pids, err := x.processes()
	for begin := time.Now(); unseen(err) && time.Since(begin) < commandTime; time.Sleep(time.Millisecond) {
		pids, err = x.processes()
	}
	for _, pid := range pids {
		x.kind.awaitCommand(pid)
	}
}
