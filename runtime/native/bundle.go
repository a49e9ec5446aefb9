package native

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/oci"
	"github.com/magikrun/magikpod/shim"
	"github.com/magikrun/magikpod/units"
)

// attempt is one attempt at a container before it runs: all that is decided, nothing that is done.
type attempt struct {
	config runtime.ContainerConfig
	record attemptRecord
	bundle string // directory
	spec   *specs.Spec
	launch *shim.LaunchConfig // nil: nothing of the container is on this host
	// document is what is written as config.json: spec, or what a Launcher has made of it.
	document any
	// argv is the command of the unit; its last element is the path of its configuration.
	argv []string
	// launcher launches it; nil: the OCI runtime, or a machine.
	launcher Launcher
	// refused is why a launcher cannot launch it: a failed start.
	refused error
}

// prepare decides everything about an attempt, and changes nothing. Errors are Invalid or Unsupported when the manifest, the image or the host is to
// blame; Unavailable when the pause process is not up.
func (m *Manager) prepare(ctx context.Context, s *sandbox, config runtime.ContainerConfig) (*attempt, error) {
	if err := m.holdNamespaces(ctx, s); err != nil {
		return nil, pod.Errorf(pod.KindOf(err), "cannot run container %q: %w", config.Container.Name, err)
	}
	if m.oci == nil && m.config.other() == nil {
		return nil, pod.Errorf(pod.Unsupported, "cannot run container %q: %s", config.Container.Name, m.class.Reason)
	}
	if m.config.Sandboxes != nil {
		return m.prepareInMachine(ctx, s, config)
	}
	pid, err := m.podPID(ctx, s)
	if err != nil {
		return nil, pod.Errorf(pod.KindOf(err), "cannot run container %q: %w", config.Container.Name, err)
	}
	name := config.Container.Name
	a := m.newAttempt(s, config)
	a.record.OwnPID = pid == nil && !config.Pod.Spec.HostPID
	mounts, binds := stageMounts(s.dir, a.bundle, config.Mounts)
	s.mu.Lock()
	ns, sandbox := s.ns, s.record
	s.mu.Unlock()
	if ns == nil {
		return nil, pod.Errorf(pod.Conflict, "cannot run container %q: its sandbox is gone", name)
	}
	in := oci.Input{
		Pod: config.Pod, Container: config.Container, Image: config.Image, Env: config.Env, Mounts: mounts,
		Rootfs: filepath.Join(a.bundle, rootfsName), ShmDir: filepath.Join(s.dir, shmName), Hostname: sandbox.Hostname,
		Namespaces: oci.Namespaces{Network: nsPath(ns.net), IPC: nsPath(ns.ipc), UTS: nsPath(ns.uts), PID: nsPath(pid)},
		Host:       m.facts,
	}
	if m.oci != nil {
		in.CgroupsPath = m.oci.cgroupsPath(units.SlicePath(s.names.Slice) + "/" + s.unit(name))
	}
	if sandbox.Host.IPC {
		in.ShmDir = "/dev/shm"
	}
	if sc := config.Container.SecurityContext; sc != nil && sc.Privileged != nil && *sc.Privileged {
		in.Host.Devices = hostDevices("/dev")
	}
	if a.spec, err = oci.Spec(in); err != nil {
		return nil, err
	}
	a.argv = []string{m.config.ShimPath, "launch", "--config", filepath.Join(a.bundle, launchName)}
	a.launcher = m.launcher(config, a.spec)
	a.record.Runtime = m.runtimeName(a.launcher)
	a.record.Traces = a.launcher == nil && !config.Pod.Spec.HostPID && traces(config.Container)
	a.document, a.launch = a.spec, m.launchConfig(s, a, nsPath(ns.mnt), binds)
	if a.launcher != nil {
		a.launch.NetNS, a.launch.IPCNS, a.launch.UTSNS = nsPath(ns.net), nsPath(ns.ipc), nsPath(ns.uts)
		if a.document, err = a.launcher.Prepare(ctx, config, a.bundle, a.spec, a.launch); err != nil {
			if ctx.Err() != nil {
				return nil, pod.Errorf(pod.Unavailable, "cannot run container %q: %w", name, context.Cause(ctx))
			}
			a.refused = err
		}
	}
	return a, nil
}

// newAttempt is an attempt of which nothing but the record is decided.
func (m *Manager) newAttempt(s *sandbox, config runtime.ContainerConfig) *attempt {
	name := config.Container.Name
	return &attempt{
		config: config,
		bundle: filepath.Join(s.dir, containersName, name),
		record: attemptRecord{
			Container: name, Attempt: config.Attempt, ID: newID(), Grace: grace(config.Pod),
			Signal: int(stopSignal(config.Container, config.Image.Config)), StopAfter: config.StopAfter,
		},
	}
}

// launchConfig is what magikshim launch reads.
func (m *Manager) launchConfig(s *sandbox, a *attempt, mountNS string, binds []shim.Bind) *shim.LaunchConfig {
	log, layers := filepath.Join(a.bundle, runtimeLog), filepath.Join(m.layersDir(s.ref.UID), a.record.Container)
	pidFile := filepath.Join(a.bundle, pidName)
	config := shim.LaunchConfig{
		Owner: m.owner, MountNS: mountNS, Binds: binds, Log: log,
		Rootfs: shim.OverlayConfig{
			LayersDir: a.config.Image.Rootfs.Dir, Lower: a.config.Image.Rootfs.Layers,
			Upper: filepath.Join(layers, "upper"), Work: filepath.Join(layers, "work"), Target: filepath.Join(a.bundle, rootfsName),
		},
	}
	for _, mount := range a.config.Mounts {
		config.Destinations = append(config.Destinations, mount.Destination)
	}
	if a.launcher == nil {
		config.SubCgroup, config.Env, config.PIDFile = m.oci.subCgroup, m.oci.env(), pidFile
		if a.record.Traces { // beside those of execs, see onlookers
			config.FirstCgroup = firstCgroup
		}
		config.Argv, config.Start = m.oci.createArgv(log, a.bundle, pidFile, a.record.ID), m.oci.startArgv(log, a.record.ID)
	}
	return &config
}

// stageMounts gives each volume a place below the bundle that launch binds it to: the OCI runtime sees nothing but such places, so nothing in a
// volume leads it astray. A tmpfs of the container's own stays as it is.
func stageMounts(dir, bundle string, mounts []runtime.Mount) ([]runtime.Mount, []shim.Bind) {
	staged := make([]runtime.Mount, 0, len(mounts))
	var binds []shim.Bind
	for _, mount := range mounts {
		if mount.SharedTmpfs != "" {
			mount.Source = filepath.Join(dir, tmpfsName, mount.SharedTmpfs)
		}
		if mount.Source != "" {
			target := filepath.Join(bundle, mountsName, strconv.Itoa(len(binds)))
			binds = append(binds, shim.Bind{Source: mount.Source, SubPath: mount.SubPath, Target: target, ReadOnly: mount.ReadOnly})
			mount.Source, mount.SubPath, mount.SharedTmpfs = target, "", ""
		}
		staged = append(staged, mount)
	}
	return staged, binds
}

// writeBundle writes the files of an attempt.
func (m *Manager) writeBundle(s *sandbox, a *attempt) error {
	if err := m.fault("write bundle"); err != nil {
		return err
	}
	if err := os.MkdirAll(a.bundle, 0o700); err != nil {
		return pod.WithKind(pod.Internal, err)
	}
	spec, err := json.Marshal(a.document)
	if err == nil {
		err = os.WriteFile(filepath.Join(a.bundle, "config.json"), spec, 0o600)
	}
	if err == nil && a.launch != nil {
		err = saveRecord(filepath.Join(a.bundle, launchName), a.launch)
	}
	if err == nil {
		s.mu.Lock()
		record := *s.containers[a.record.Container].record
		s.mu.Unlock()
		err = saveRecord(filepath.Join(a.bundle, attemptName), record)
	}
	if err != nil {
		return pod.Errorf(pod.Internal, "cannot write bundle: %w", err)
	}
	return nil
}

// grace is the pod's termination grace period; Kubernetes' default is 30 s.
func grace(p *corev1.Pod) time.Duration {
	if p.Spec.TerminationGracePeriodSeconds == nil {
		return 30 * time.Second
	}
	return time.Duration(max(*p.Spec.TerminationGracePeriodSeconds, 0)) * time.Second
}

// parseSignal reads SIGTERM, TERM, RTMIN+3 or 15; 0 when it is none.
func parseSignal(text string) syscall.Signal {
	text = strings.ToUpper(strings.TrimSpace(text))
	if number, err := strconv.Atoi(text); err == nil {
		if number < 1 || number > 64 {
			return 0
		}
		return syscall.Signal(number)
	}
	name := "SIG" + strings.TrimPrefix(text, "SIG")
	for prefix, base := range map[string]int{"SIGRTMIN": 34, "SIGRTMAX": 64} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		offset := 0
		if rest != "" {
			var err error
			if offset, err = strconv.Atoi(rest); err != nil {
				return 0
			}
		}
		if number := base + offset; number >= 34 && number <= 64 {
			return syscall.Signal(number)
		}
		return 0
	}
	if other, ok := signalAliases[name]; ok {
		name = other
	}
	return unix.SignalNum(name)
}

// signalAliases are second names of signals (signal(7)), which manifests and images may use as well.
var signalAliases = map[string]string{"SIGCLD": "SIGCHLD", "SIGIOT": "SIGABRT", "SIGPOLL": "SIGIO"}
