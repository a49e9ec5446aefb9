package engine

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/magikrun/magikpod/internal/cgroup"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/probe"
	"github.com/magikrun/magikpod/runtime"
)

// containerUnit implements [runtime.Unit].
type containerUnit struct {
	m    *Manager
	s    *sandbox
	name string
}

// Signal implements [runtime.Unit].
func (u containerUnit) Signal(ctx context.Context, sig syscall.Signal) error {
	return u.m.units.Kill(ctx, u.s.unit(u.name), "main", sig)
}

// MainPID implements [runtime.Unit].
func (u containerUnit) MainPID() int {
	state, _ := u.m.units.State(u.s.unit(u.name))
	return state.MainPID
}

// Unseen implements [runtime.Unit].
func (u containerUnit) Unseen(ctx context.Context, own string) (thaw func(), err error) {
	return u.m.freezeOnlookers(ctx, u.s, u.name, own)
}

// Background implements [runtime.Unit].
func (u containerUnit) Background(do func(ctx context.Context)) {
	u.m.spawn(func() { do(u.m.ctx) })
}

// running finds a container that runs. NotFound: there is none of that name; Conflict: it does not run.
func (m *Manager) running(ref pod.Ref, name string) (runtime.Running, error) {
	s := m.find(ref)
	if s == nil {
		return runtime.Running{}, pod.Errorf(pod.NotFound, "it does not exist")
	}
	state := m.containerState(s, name)
	record := s.recordOf(name)
	switch {
	case record.ID == "":
		return runtime.Running{}, pod.Errorf(pod.NotFound, "it does not exist")
	case state.Stage != pod.ContainerRunning && state.Stage != pod.ContainerStopping:
		return runtime.Running{}, pod.Errorf(pod.Conflict, "it does not run (%s)", state.Stage)
	}
	unit, _ := m.units.State(s.unit(name))
	return runtime.Running{
		Sandbox: m.view(s), Container: name, ID: record.ID, Runtime: record.Runtime, Bundle: filepath.Join(s.dir, containersName, name),
		PID: unit.MainPID, Cgroup: filepath.Join(cgroup.Root(), unit.ControlGroup), Unit: containerUnit{m, s, name},
	}, nil
}

// SignalContainer implements [runtime.PodManager].
func (m *Manager) SignalContainer(ctx context.Context, ref pod.Ref, name string, sig syscall.Signal) error {
	c, err := m.running(ref, name)
	if err == nil {
		err = m.runtime.Signal(ctx, c, sig)
	}
	if err != nil {
		return pod.Errorf(pod.KindOf(err), "cannot signal container %q of pod %s: %w", name, ref, err)
	}
	return nil
}

// Exec implements [runtime.PodManager]. When Timeout or ctx ends the process, all processes that it
// has started end with it.
func (m *Manager) Exec(ctx context.Context, ref pod.Ref, name string, p runtime.Process) (runtime.ExitStatus, error) {
	status, err := m.exec(ctx, ref, name, p)
	if err != nil {
		err = pod.Errorf(pod.KindOf(err), "cannot run a process in container %q of pod %s: %w", name, ref, err)
	}
	return status, err
}

func (m *Manager) exec(ctx context.Context, ref pod.Ref, name string, p runtime.Process) (runtime.ExitStatus, error) {
	c, err := m.running(ref, name)
	if err != nil {
		return runtime.ExitStatus{}, err
	}
	if len(p.Args) == 0 || p.Args[0] == "" {
		return runtime.ExitStatus{}, pod.Errorf(pod.Invalid, "no command specified")
	}
	for _, text := range slices.Concat(p.Args, p.Env, []string{p.WorkingDir, p.User}) {
		if strings.ContainsRune(text, 0) {
			return runtime.ExitStatus{}, pod.Errorf(pod.Invalid, "%q has a NUL byte in it", text)
		}
	}
	if s := m.find(ref); s != nil {
		if unit := m.frozenUnit(s, name); unit != "" {
			return runtime.ExitStatus{}, pod.Errorf(pod.Conflict, "it is frozen (try: systemctl thaw %s, or the slice that was frozen)", unit)
		}
	}
	return m.runtime.Exec(ctx, c, p)
}

// Probe implements [runtime.PodManager].
func (m *Manager) Probe(ctx context.Context, ref pod.Ref, name string, p probe.Probe) (ok bool, message string, err error) {
	c, err := m.running(ref, name)
	if err != nil {
		return false, "", pod.Errorf(pod.KindOf(err), "cannot probe container %q of pod %s: %w", name, ref, err)
	}
	return m.runtime.Probe(ctx, c, p, func(process runtime.Process) (runtime.ExitStatus, error) { return m.Exec(ctx, ref, name, process) })
}

// ContainerStats implements [runtime.PodManager].
func (m *Manager) ContainerStats(ctx context.Context, ref pod.Ref) (map[string]pod.ResourceUse, error) {
	s := m.find(ref)
	if s == nil || m.sandboxState(s).Stage == pod.SandboxDead {
		return nil, nil
	}
	cgroups := map[string]string{}
	for _, name := range s.containerNames() {
		if m.live(s, name) {
			unit, _ := m.units.State(s.unit(name))
			cgroups[name] = unit.ControlGroup
		}
	}
	if len(cgroups) == 0 {
		return nil, nil
	}
	return m.runtime.Stats(ctx, m.view(s), cgroups)
}
