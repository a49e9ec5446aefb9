package microvm

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/internal/nsfile"
	"github.com/magikrun/magikpod/internal/safepath"
	"github.com/magikrun/magikpod/netsetup"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/microvm/client"
	"github.com/magikrun/magikpod/runtime/microvm/disks"
	"github.com/magikrun/magikpod/runtime/microvm/supervise"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
	"github.com/magikrun/magikpod/runtime/oci"
	"github.com/magikrun/magikpod/units"
)

const (
	// tapName is the machine's end of the network, in the pod's namespace.
	tapName = "mvm0"
	// scratchSerial names the scratch disk, the only one from the start, and shareTag is how the machine finds what the host shares with it.
	scratchSerial = "scratch"
	shareTag      = "host"

	// The files of a machine in its RunDir and, the scratch disk and the directory with copies of the host's files, in its StateDir.
	configFile  = "vmm.json"
	recordFile  = "machine.json"
	disksFile   = "disks.json"
	sharesFile  = "shares.json"
	scratchFile = "scratch.img"
	copiesDir   = "copies"

	maxRecordBytes = 1 << 20
)

const (
	// linkTimeout is how long the making of the pod's eth0 may take, which goes on at the same time as that of the machine.
	linkTimeout = 30 * time.Second
	// bootTimeout is how long a machine may take from its start to the agent's first answer; emulated ones are slow, and a host may be busy. That one has ended is
	// seen at once: only one that hangs is waited for. (With KVM, but emulated itself, on a host at a load of 9 a machine has taken more than a minute.)
	bootTimeout         = 2 * time.Minute
	bootEmulatedTimeout = 5 * time.Minute
	// A guest that does not answer its supervisor for that long hangs.
	watchdog         = time.Minute
	watchdogEmulated = 5 * time.Minute
)

// record (machine.json) is what a later daemon must know of a machine.
type record struct {
	Hostname string                   `json:"hostname"`
	SharePID bool                     `json:"sharePID,omitempty"`
	Sysctls  map[string]string        `json:"sysctls,omitempty"`
	Tmpfs    map[string]runtime.Tmpfs `json:"tmpfs,omitempty"`
	Size     size                     `json:"size"`
	VMM      supervise.Config         `json:"vmm"`
}

// machine is what is known of one machine.
type machine struct {
	record *record // never changes
	// mu makes what is done to it one after the other, which may take minutes, and guards what follows.
	mu     sync.Mutex
	ready  bool                 // the agent has been told what the machine is
	disks  map[string]vmm.Place // where the images are, by serial number; nil: not read yet
	shares map[string]bool      // names that are bound into the share; nil: not read yet
}

// lookUp returns what is known of the machine of a sandbox, read from its files if need be.
func (l *Launcher) lookUp(s runtime.Machine) (*machine, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m := l.machines[s.RunDir]; m != nil {
		return m, nil
	}
	m := &machine{record: &record{}}
	if err := load(filepath.Join(s.RunDir, recordFile), m.record); err != nil {
		return nil, pod.Errorf(pod.Unavailable, "cannot find the pod's machine: %w", err)
	}
	l.machines[s.RunDir] = m
	return m, nil
}

// machine is lookUp, and the machine is locked.
func (l *Launcher) machine(s runtime.Machine) (*machine, error) {
	m, err := l.lookUp(s)
	if err == nil {
		m.mu.Lock()
	}
	return m, err
}

// agent speaks to the agent of a machine.
func (r *record) agent() *client.Client { return client.New(r.address().Dialer()) }

func (r *record) address() client.Address {
	switch v := r.VMM.VM.Vsock; v.Kind {
	case vmm.VsockVhost:
		return client.Address{CID: v.CID}
	case vmm.VsockPort:
		return client.Address{Path: v.Path, Direct: true}
	default:
		return client.Address{Path: v.Path}
	}
}

// PrepareSandbox implements native.SandboxLauncher.
func (l *Launcher) PrepareSandbox(ctx context.Context, s runtime.Machine, config runtime.SandboxConfig) ([]units.Property, error) {
	if config.Network.NetNS == nil {
		return nil, pod.Errorf(pod.Unsupported, "a machine has no part in the host's network")
	}
	if err := l.checkNeeds(); err != nil { // it may have been removed since the class was asked
		return nil, err
	}
	for _, dir := range []string{s.RunDir, s.StateDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, pod.WithKind(pod.Internal, err)
		}
	}
	l.forget(s)
	guest, err := l.PrepareGuest(ctx)
	if err != nil {
		return nil, err
	}
	scratch := filepath.Join(s.StateDir, scratchFile)
	if err := disks.MakeScratch(ctx, scratch, l.config.ScratchBytes); err != nil {
		return nil, pod.WithKind(pod.Unavailable, err)
	}
	waiting, cancel := context.WithTimeout(ctx, linkTimeout)
	defer cancel()
	link, err := netsetup.AwaitPodLink(waiting, config.Network.NetNS)
	if err != nil {
		return nil, err
	}
	r := l.recordOf(s, config)
	vm := &r.VMM.VM
	vm.Kernel, vm.Initrd = guest.Kernel, guest.Initrd
	vm.Disks = []vmm.Disk{{Path: scratch, Serial: scratchSerial}}
	vm.NIC = &vmm.NIC{Tap: tapName, MAC: link.MAC.String(), MTU: link.MTU}
	if err := save(filepath.Join(s.RunDir, recordFile), r); err != nil {
		return nil, err
	}
	if err := save(filepath.Join(s.RunDir, configFile), r.VMM); err != nil {
		return nil, err
	}
	l.forget(s) // somebody may have asked for the machine before this one
	return l.unit(s, config.Pod), nil
}

// recordOf decides what a machine is.
func (l *Launcher) recordOf(s runtime.Machine, config runtime.SandboxConfig) *record {
	p := config.Pod
	r := &record{
		Hostname: config.Network.Hostname, Sysctls: oci.Sysctls(p, true), Tmpfs: map[string]runtime.Tmpfs{}, Size: l.sizeOf(p),
		SharePID: p.Spec.ShareProcessNamespace != nil && *p.Spec.ShareProcessNamespace,
	}
	for _, t := range config.SharedTmpfs {
		r.Tmpfs[t.Name] = t
	}
	cid := newCID()
	vm := l.base
	vm.CPUs, vm.MemoryMiB = r.Size.CPUs, r.Size.MemoryMiB
	vm.Vsock.CID = cid
	if l.share != "" && (needsShare(p) || l.manyImages(p)) {
		vm.Share = &vmm.Share{Tag: shareTag, Daemon: l.share}
	}
	start, _ := nsfile.StartTime(os.Getpid()) // 0 is not checked
	r.VMM = supervise.Config{
		Owner: nsfile.Owner{PID: os.Getpid(), StartTime: start},
		NetNS: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), config.Network.NetNS.Fd()),
		UID:   supervise.UserOf(cid), GID: supervise.UserOf(cid), Dir: s.RunDir, VM: vm, PowerOffMillis: int(powerOffTimeout.Milliseconds()),
		WatchdogMillis: int(watchdog.Milliseconds()),
	}
	if l.emulated() {
		r.VMM.WatchdogMillis = int(watchdogEmulated.Milliseconds())
	}
	r.VMM.SetPaths()
	return r
}

// newCID is a context ID that no other machine of this host has, but for a chance of one in some billions. The three lowest and the highest mean other things.
func newCID() uint32 {
	var data [4]byte
	_, _ = rand.Read(data[:]) // never fails (crypto/rand)
	return 3 + binary.LittleEndian.Uint32(data[:])%(1<<31)
}

// ReadySandbox implements native.SandboxLauncher. The first call connects the machine to the pod's network, waits for the agent, and tells it what the
// machine is.
func (l *Launcher) ReadySandbox(ctx context.Context, s runtime.Machine, network *os.File) error {
	m, err := l.machine(s)
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	if m.ready {
		return nil
	}
	link, err := netsetup.Redirect(network, tapName)
	if err != nil {
		return err
	}
	limit := bootTimeout
	if l.emulated() {
		limit = bootEmulatedTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it has not answered within %s", limit))
	defer cancel()
	agent := m.record.agent()
	pong, err := agent.WaitReady(ctx)
	if err == nil && !pong.Configured {
		var c wire.Configure
		if c, err = m.record.configure(link); err == nil {
			err = agent.Configure(ctx, c)
		}
	}
	if err != nil {
		return pod.Errorf(pod.Unavailable, "cannot use the pod's machine: %w", err)
	}
	m.ready = true
	return nil
}

// configure is what the agent is told of the machine.
func (r *record) configure(link netsetup.PodLink) (wire.Configure, error) {
	network := &wire.Network{MAC: link.MAC.String(), MTU: link.MTU}
	for _, a := range link.Addresses {
		network.Addresses = append(network.Addresses, a.String())
	}
	for _, gw := range link.Gateways {
		network.Routes = append(network.Routes, wire.Route{Via: gw.String()})
	}
	vm := &r.VMM.VM
	scratch, err := vmm.GuestSerial(vm, vm.Disks[0])
	return wire.Configure{
		Hostname: r.Hostname, Time: time.Now(), Network: network, Scratch: scratch, Shares: vmm.ShareTags(vm), SharePID: r.SharePID, Sysctls: r.Sysctls,
	}, err
}

// RemoveSandbox implements native.SandboxLauncher.
func (l *Launcher) RemoveSandbox(s runtime.Machine) error {
	l.forget(s)
	return errors.Join(remove(s.RunDir), remove(filepath.Join(s.StateDir, copiesDir)))
}

// ForgetSandbox implements native.SandboxLauncher.
func (l *Launcher) ForgetSandbox(s runtime.Machine) error {
	l.forget(s)
	if err := remove(s.StateDir); err != nil {
		return err
	}
	_ = os.Remove(filepath.Dir(s.StateDir)) // others may have files in it
	return nil
}

// forget removes what is known of a machine.
func (l *Launcher) forget(s runtime.Machine) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.machines, s.RunDir)
}

func remove(dir string) error {
	if err := safepath.RemoveAll(context.Background(), dir); err != nil {
		return pod.Errorf(pod.Internal, "cannot remove what a machine has left: %w", err)
	}
	return nil
}

// save writes v as JSON, atomically but not durably: what it tells does not outlive the machine's boot.
func save(path string, v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		err = atomicfile.WriteNoSync(path, data, 0o600)
	}
	if err != nil {
		return pod.Errorf(pod.Internal, "cannot write %s: %w", path, err)
	}
	return nil
}

// load reads what save has written.
func load(path string, v any) error {
	data, err := atomicfile.Read(path, maxRecordBytes)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}
