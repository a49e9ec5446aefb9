package engine

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/internal/nsfile"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/shim"
	"github.com/magikrun/magikpod/units"
)

// sandbox is what is known of one pod's sandbox.
type sandbox struct {
	ref   pod.Ref
	names units.PodNames
	unit  func(container string) string // the unit of a container
	dir   string                        // RunDir/pods/UID
	// strays are the units of a pod that could not be adopted and is being removed.
	strays []string

	// mu guards what follows. It is never held while something is waited for.
	mu         sync.Mutex
	record     sandboxRecord
	ns         *namespaces
	holders    []*holder // the pause unit is the first; only their jobs change
	containers map[string]*container
	late       *latePause    // nil: the pause unit does not come behind the containers
	changed    chan struct{} // closed at the next change of one of its units

	entering chan struct{} // holds one while a process enters a PID namespace, see freezeOnlookers
}

// watch returns a channel that is closed at the next change of one of the sandbox's units.
func (s *sandbox) watch() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// wake closes what watch has returned.
func (s *sandbox) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

// sandboxRecord (sandbox.json) is what a later daemon must know of a sandbox.
type sandboxRecord struct {
	Hostname string         `json:"hostname"`
	Host     hostNamespaces `json:"host"`
	SharePID bool           `json:"sharePID,omitempty"`
	// Traced says that there are containers with CAP_SYS_PTRACE.
	Traced bool `json:"traced,omitempty"`
	// NetworkOnly says that the pause process holds no other namespace: the containers are in a VM.
	NetworkOnly bool `json:"networkOnly,omitempty"`
	// PodUID is the pod's UID where it is not the sandbox's ID.
	PodUID types.UID `json:"podUID,omitempty"`
}

// hostNamespaces are the namespaces that the pod shares with the host. With the network goes the
// host's name.
type hostNamespaces struct {
	Network bool `json:"network,omitempty"`
	IPC     bool `json:"ipc,omitempty"`
}

func (m *Manager) newSandbox(ref pod.Ref) *sandbox {
	names := m.config.Layout.Names(ref)
	s := &sandbox{
		ref: ref, names: names, dir: m.runDir(ref.UID), holders: []*holder{{kind: runtime.HolderPause, unit: names.Pause}},
		containers: map[string]*container{}, changed: make(chan struct{}), entering: make(chan struct{}, 1),
	}
	s.unit = func(container string) string { return m.config.Layout.Container(ref, container) }
	for _, kind := range m.kind.Holders {
		s.holders = append(s.holders, &holder{kind: kind, unit: names.VM})
	}
	return s
}

// CreateSandbox implements [runtime.PodManager]. It does not wait for the pause process: the
// namespaces are made here.
func (m *Manager) CreateSandbox(ctx context.Context, config runtime.SandboxConfig) error {
	ref := config.Ref()
	if err := checkRef(ref); err != nil {
		return err
	}
	if !m.class.Available {
		return pod.Errorf(pod.Unsupported, "cannot create sandbox of pod %s: %s", ref, m.class.Reason)
	}
	if m.find(ref) == nil {
		// A daemon before this one may have got half way.
		found, err := m.adopt(ctx, ref)
		if _, statErr := os.Lstat(filepath.Join(m.runDir(ref.UID), containersName)); err == nil && !found && !errors.Is(statErr, os.ErrNotExist) {
			err = m.checkAbsent(ctx, ref) // its record is lost, and not all of it
		}
		if err != nil {
			return pod.Errorf(pod.KindOf(err), "cannot create sandbox of pod %s: %w", ref, err)
		}
	}
	if s := m.find(ref); s != nil {
		switch state := m.sandboxState(s); state.Stage {
		case pod.SandboxReady, pod.SandboxStarting:
			return nil
		}
		if _, err := m.DeleteSandbox(ctx, ref, 0); err != nil {
			return err
		}
	}
	s := m.newSandbox(ref)
	s.record = m.sandboxRecordOf(config)
	if err := m.createSandbox(ctx, s, config); err != nil {
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		err = pod.Errorf(pod.KindOf(err), "cannot create sandbox of pod %s: %w", ref, err)
		if pod.KindOf(err) == pod.AlreadyExists { // what has the name is not ours to stop
			return errors.Join(err, m.removeSandbox(s))
		}
		return errors.Join(err, m.dismantle(cleanup, s))
	}
	return nil
}

// removeSandbox forgets a sandbox and removes its files, and those of its containers at paths.
func (m *Manager) removeSandbox(s *sandbox, paths ...string) error {
	m.forgetSandbox(s)
	if err := removeAll(append(s.files(), paths...)...); err != nil {
		return pod.WithKind(pod.Internal, err)
	}
	_ = os.Remove(s.dir) // others have files in it
	return nil
}

// createSandbox makes a sandbox and queues its units. systemd makes the slices while the namespaces
// are made here.
func (m *Manager) createSandbox(ctx context.Context, s *sandbox, config runtime.SandboxConfig) error {
	if err := m.makeFiles(s); err != nil {
		return err
	}
	slices := make(chan error, 1)
	go func() { slices <- m.startSlices(ctx, s, config.Pod) }()
	others, err := m.prepareSandbox(ctx, s, config)
	if err := cmp.Or(<-slices, err); err != nil {
		return err
	}
	return m.startHolders(ctx, s, config, others)
}

// makeFiles makes the directories of a sandbox, and the record by which a later daemon finds its units.
func (m *Manager) makeFiles(s *sandbox) error {
	if err := m.fault("make sandbox directories"); err != nil {
		return err
	}
	if err := removeAll(s.files()...); err != nil {
		return err
	}
	for _, name := range []string{logName, containersName} {
		if err := os.MkdirAll(filepath.Join(s.dir, name), 0o700); err != nil {
			return err
		}
	}
	if err := m.fault("write sandbox records"); err != nil {
		return err
	}
	return atomicfile.SaveJSON(filepath.Join(s.dir, sandboxName), s.record)
}

// prepareSandbox makes the namespaces of a sandbox and what its pause process reads, and returns its
// holders beside the pause unit.
func (m *Manager) prepareSandbox(ctx context.Context, s *sandbox, config runtime.SandboxConfig) ([]runtime.Holder, error) {
	if err := m.fault("make namespaces"); err != nil {
		return nil, err
	}
	ns, err := makeNamespaces(s.wanted(config))
	if err != nil {
		return nil, pod.Errorf(pod.Internal, "cannot make namespaces: %w", err)
	}
	s.mu.Lock()
	s.ns = ns
	s.mu.Unlock()
	if !s.record.Host.Network {
		if ns.net, err = nsfile.Dup(config.Network.NetNS); err != nil {
			return nil, pod.Errorf(pod.Internal, "cannot keep the network namespace: %w", err)
		}
	}
	if err := atomicfile.SaveJSON(filepath.Join(s.dir, pauseName), m.pauseConfig(s, config)); err != nil {
		return nil, err
	}
	if err := m.fault("prepare sandbox"); err != nil {
		return nil, err
	}
	config.Network.NetNS = ns.net // kept as long as the sandbox, so that others can find it by its path
	return m.runtime.PrepareSandbox(ctx, m.view(s), config)
}

// sandboxRecordOf decides what a sandbox is.
func (m *Manager) sandboxRecordOf(config runtime.SandboxConfig) sandboxRecord {
	record := sandboxRecord{Hostname: config.Network.Hostname, NetworkOnly: m.kind.NetworkOnly}
	if config.Ref().UID != config.Pod.UID {
		record.PodUID = config.Pod.UID
	}
	if !record.NetworkOnly {
		record.Host = hostNamespaces{Network: config.Network.Host, IPC: config.Pod.Spec.HostIPC}
		record.SharePID, record.Traced = sharePID(config.Pod), tracesAny(config.Pod)
	}
	return record
}

// wanted are the namespaces of the sandbox beside the network's.
func (s *sandbox) wanted(config runtime.SandboxConfig) namespacesWanted {
	want := namespacesWanted{none: s.record.NetworkOnly, hostIPC: s.record.Host.IPC, dir: s.dir, tmpfs: config.SharedTmpfs}
	if !s.record.Host.Network {
		want.hostname = s.record.Hostname
	}
	return want
}

// pauseConfig is what the pause process reads.
func (m *Manager) pauseConfig(s *sandbox, config runtime.SandboxConfig) shim.PauseConfig {
	c := shim.PauseConfig{
		Owner: nsfile.Self(), NetNS: nsfile.Path(s.ns.net), IPCNS: nsfile.Path(s.ns.ipc), UTSNS: nsfile.Path(s.ns.uts), MountNS: nsfile.Path(s.ns.mnt),
		SharePID: s.record.SharePID, FIFODir: filepath.Join(s.dir, logName),
		Namespace: s.ref.Namespace, Pod: s.ref.Name, UID: string(config.Pod.UID), Units: map[string]string{},
	}
	if c.SharePID {
		c.PIDFile = filepath.Join(s.dir, pidnsName)
	}
	if config.LogDir != "" {
		c.Driver, c.LogDir = shim.LogFile, config.LogDir
	}
	for container := range pod.AllContainers(&config.Pod.Spec) {
		c.Units[container.Name] = s.unit(container.Name)
	}
	return c
}

// findPodPID opens the pod's PID namespace, which pause has made when its unit is up, if there is
// to be one.
func (m *Manager) findPodPID(ctx context.Context, s *sandbox) error {
	s.mu.Lock()
	ns, job, shared := s.ns, s.holders[0].job, s.record.SharePID
	s.mu.Unlock()
	if !shared || ns == nil {
		return nil
	}
	if job != nil {
		if err := job.Wait(ctx); err != nil {
			return pod.Errorf(pod.Unavailable, "cannot use the pod's PID namespace: %w", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if ns.pid != nil {
		return nil
	}
	data, err := atomicfile.Read(filepath.Join(s.dir, pidnsName), maxRecordBytes)
	if err != nil {
		return pod.Errorf(pod.Unavailable, "cannot use the pod's PID namespace: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 1 {
		return pod.Errorf(pod.Internal, "cannot use the pod's PID namespace: bad PID %q", data)
	}
	if ns.pid, err = os.Open(filepath.Join("/proc", strconv.Itoa(pid), "ns/pid")); err != nil {
		return pod.Errorf(pod.Unavailable, "cannot use the pod's PID namespace: %w", err)
	}
	return nil
}

// sharePID says whether the pod's containers see each other's processes, in a PID namespace of the pod.
func sharePID(p *corev1.Pod) bool {
	return p.Spec.ShareProcessNamespace != nil && *p.Spec.ShareProcessNamespace && !p.Spec.HostPID
}

// files are what CreateSandbox makes below RunDir.
func (s *sandbox) files() []string {
	var paths []string
	for _, name := range []string{containersName, logName, pauseName, sandboxName, pidnsName, shmName, tmpfsName} {
		paths = append(paths, filepath.Join(s.dir, name))
	}
	return paths
}
