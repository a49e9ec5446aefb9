package microvm

import (
	"context"
	"crypto/rand"
	"encoding/binary"
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
	"github.com/magikrun/magikpod/runtime/microvm/attach"
	"github.com/magikrun/magikpod/runtime/microvm/client"
	"github.com/magikrun/magikpod/runtime/microvm/disks"
	"github.com/magikrun/magikpod/runtime/microvm/supervise"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
	"github.com/magikrun/magikpod/runtime/oci"
)

const (
	// tapName is the VM's end of the network, in the pod's namespace.
	tapName = "mvm0"
	// scratchSerial names the scratch disk, the only one from the start, and shareTag is how the VM
	// finds what the host shares with it.
	scratchSerial = "scratch"
	shareTag      = "host"

	// dirName is the VM's directory in the sandbox's RunDir and StateDir.
	dirName = "vm"
	// The files of a VM in its RunDir and, the scratch disk and the directory with copies of the
	// host's files, in its StateDir.
	configFile  = "vmm.json"
	recordFile  = "machine.json"
	disksFile   = "disks.json"
	sharesFile  = "shares.json"
	scratchFile = "scratch.img"
	copiesDir   = "copies"

	maxRecordBytes = 1 << 20
)

const (
	// linkTimeout is how long the making of the pod's eth0 may take, which goes on at the same time
	// as that of the VM.
	linkTimeout = 30 * time.Second
	// bootTimeout is how long a VM may take from its start to the agent's first answer; emulated
	// ones are slow, and a host may be busy. That one has ended is seen at once: only one that
	// hangs is waited for. (With KVM, but emulated itself, on a host at a load of 9 a VM has taken
	// more than a minute.)
	bootTimeout         = 2 * time.Minute
	bootEmulatedTimeout = 5 * time.Minute
	// A guest that does not answer its supervisor for that long hangs.
	watchdog         = time.Minute
	watchdogEmulated = 5 * time.Minute
)

// powerOffTimeout is how long a VM may take to power off in good order, before it is ended.
const powerOffTimeout = 10 * time.Second

func runDir(s runtime.Sandbox) string   { return filepath.Join(s.RunDir, dirName) }
func stateDir(s runtime.Sandbox) string { return filepath.Join(s.StateDir, dirName) }

// SandboxKind implements engine.Runtime: the containers' namespaces are in the VM, and pause holds
// the network's.
func (r *Runtime) SandboxKind() runtime.SandboxKind {
	return runtime.SandboxKind{NetworkOnly: true, Holders: []runtime.HolderKind{runtime.HolderVM}}
}

// record (machine.json) is what a later daemon must know of a VM.
type record struct {
	Hostname string                   `json:"hostname"`
	SharePID bool                     `json:"sharePID,omitempty"`
	Sysctls  map[string]string        `json:"sysctls,omitempty"`
	Tmpfs    map[string]runtime.Tmpfs `json:"tmpfs,omitempty"`
	Size     size                     `json:"size"`
	VMM      supervise.Config         `json:"vmm"`
}

// vm is what is known of one VM.
type vm struct {
	record *record // never changes
	// mu makes what is done to it one after the other, which may take minutes, and guards what follows.
	mu     sync.Mutex
	ready  bool                 // the agent knows what the VM is
	disks  map[string]vmm.Place // where the images are, by serial number; nil: not read yet
	shares map[string]bool      // names that are bound into the share; nil: not read yet
}

// lookUp returns what is known of the VM of a sandbox, read from its files if need be.
func (r *Runtime) lookUp(s runtime.Sandbox) (*vm, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.vms[runDir(s)]; m != nil {
		return m, nil
	}
	m := &vm{record: &record{}}
	if err := load(filepath.Join(runDir(s), recordFile), m.record); err != nil {
		return nil, pod.Errorf(pod.Unavailable, "cannot find the pod's VM: %w", err)
	}
	r.vms[runDir(s)] = m
	return m, nil
}

// vm is lookUp, and the VM is locked.
func (r *Runtime) vm(s runtime.Sandbox) (*vm, error) {
	m, err := r.lookUp(s)
	if err == nil {
		m.mu.Lock()
	}
	return m, err
}

// agent speaks to the agent of a VM.
func (r *record) agent() *client.Client { return client.New(r.address().Dialer()) }

func (r *record) address() client.Address {
	if v := r.VMM.VM.Vsock; v.Kind == vmm.VsockVhost {
		return client.Address{CID: v.CID}
	}
	return client.Address{Path: r.VMM.VM.Vsock.Path}
}

// running is the VM, to attach something to.
func (r *record) running() attach.VM { return attach.VM{Config: &r.VMM.VM, State: r.VMM.ReadState} }

// PrepareSandbox implements engine.Runtime.
func (r *Runtime) PrepareSandbox(ctx context.Context, s runtime.Sandbox, config runtime.SandboxConfig) ([]runtime.Holder, error) {
	if config.Network.NetNS == nil {
		return nil, pod.Errorf(pod.Unsupported, "a VM has no part in the host's network")
	}
	if err := r.checkNeeds(); err != nil { // it may have been removed since the class was asked
		return nil, err
	}
	for _, dir := range []string{runDir(s), stateDir(s)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, pod.WithKind(pod.Internal, err)
		}
	}
	r.forget(s)
	guest, err := r.PrepareGuest(ctx)
	if err != nil {
		return nil, err
	}
	scratch := filepath.Join(stateDir(s), scratchFile)
	if err := disks.MakeScratch(ctx, scratch, r.config.ScratchBytes); err != nil {
		return nil, pod.WithKind(pod.Unavailable, err)
	}
	waiting, cancel := context.WithTimeout(ctx, linkTimeout)
	defer cancel()
	link, err := netsetup.AwaitPodLink(waiting, config.Network.NetNS)
	if err != nil {
		return nil, err
	}
	rec := r.recordOf(s, config)
	vm := &rec.VMM.VM
	vm.Kernel, vm.Initrd = guest.Kernel, guest.Initrd
	vm.Disks = []vmm.Disk{{Path: scratch, Serial: scratchSerial}}
	vm.NIC = &vmm.NIC{Tap: tapName, MAC: link.MAC.String(), MTU: link.MTU}
	if err := save(filepath.Join(runDir(s), recordFile), rec); err != nil {
		return nil, err
	}
	if err := save(filepath.Join(runDir(s), configFile), rec.VMM); err != nil {
		return nil, err
	}
	r.forget(s) // somebody may have asked for the VM before this one
	argv := []string{r.config.SupervisorPath, "--config", filepath.Join(runDir(s), configFile)}
	return []runtime.Holder{{Argv: argv, PowerOff: powerOffTimeout}}, nil
}

// recordOf decides what a VM is.
func (r *Runtime) recordOf(s runtime.Sandbox, config runtime.SandboxConfig) *record {
	p := config.Pod
	rec := &record{
		Hostname: config.Network.Hostname, Sysctls: oci.Sysctls(p, true), Tmpfs: map[string]runtime.Tmpfs{}, Size: r.sizeOf(p),
		SharePID: p.Spec.ShareProcessNamespace != nil && *p.Spec.ShareProcessNamespace,
	}
	for _, t := range config.SharedTmpfs {
		rec.Tmpfs[t.Name] = t
	}
	cid := newCID()
	vm := r.base
	vm.CPUs, vm.MemoryMiB = rec.Size.CPUs, rec.Size.MemoryMiB
	vm.Vsock.CID = cid
	if r.share != "" && (needsShare(p) || r.manyImages(p)) {
		vm.Share = &vmm.Share{Tag: shareTag, Daemon: r.share}
	}
	rec.VMM = supervise.Config{
		Owner: nsfile.Self(), NetNS: nsfile.Path(config.Network.NetNS),
		UID: supervise.UserOf(cid), GID: supervise.UserOf(cid), Dir: runDir(s), VM: vm, PowerOffMillis: int(powerOffTimeout.Milliseconds()),
		WatchdogMillis: int(watchdog.Milliseconds()),
	}
	if r.emulated() {
		rec.VMM.WatchdogMillis = int(watchdogEmulated.Milliseconds())
	}
	rec.VMM.SetPaths()
	return rec
}

// newCID is a context ID that no other VM of this host has, but for a chance of one in some
// billions. The three lowest and the highest mean other things.
func newCID() uint32 {
	var data [4]byte
	_, _ = rand.Read(data[:]) // never fails (crypto/rand)
	return 3 + binary.LittleEndian.Uint32(data[:])%(1<<31)
}

// ReadySandbox implements engine.Runtime. The first call connects the VM to the pod's network,
// waits for the agent, and configures it.
func (r *Runtime) ReadySandbox(ctx context.Context, s runtime.Sandbox) error {
	m, err := r.vm(s)
	if err != nil {
		return err
	}
	defer m.mu.Unlock()
	if m.ready {
		return nil
	}
	link, err := netsetup.Redirect(s.Namespaces.Network, tapName)
	if err != nil {
		return err
	}
	limit := bootTimeout
	if r.emulated() {
		limit = bootEmulatedTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it has not answered within %s", limit))
	defer cancel()
	agent := m.record.agent()
	pong, err := agent.WaitReady(ctx)
	if err == nil && !pong.Configured {
		err = agent.Configure(ctx, m.record.configure(link))
	}
	if err != nil {
		return pod.Errorf(pod.Unavailable, "cannot use the pod's VM: %w", err)
	}
	m.ready = true
	return nil
}

// configure is what the agent is sent about the VM.
func (r *record) configure(link netsetup.PodLink) wire.Configure {
	network := &wire.Network{MAC: link.MAC.String(), MTU: link.MTU}
	for _, a := range link.Addresses {
		network.Addresses = append(network.Addresses, a.String())
	}
	for _, gw := range link.Gateways {
		network.Routes = append(network.Routes, wire.Route{Via: gw.String()})
	}
	var shares []string
	if share := r.VMM.VM.Share; share != nil {
		shares = append(shares, share.Tag)
	}
	return wire.Configure{
		Hostname: r.Hostname, Time: time.Now(), Network: network, Scratch: scratchSerial, Shares: shares, SharePID: r.SharePID, Sysctls: r.Sysctls,
	}
}

// RemoveSandbox implements engine.Runtime.
func (r *Runtime) RemoveSandbox(s runtime.Sandbox) error {
	r.forget(s)
	return errors.Join(remove(runDir(s)), remove(filepath.Join(stateDir(s), copiesDir)))
}

// ForgetSandbox implements engine.Runtime.
func (r *Runtime) ForgetSandbox(s runtime.Sandbox) error {
	r.forget(s)
	return remove(stateDir(s))
}

// forget removes what is known of a VM.
func (r *Runtime) forget(s runtime.Sandbox) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.vms, runDir(s))
}

func remove(dir string) error {
	if err := safepath.RemoveAll(context.Background(), dir); err != nil {
		return pod.Errorf(pod.Internal, "cannot remove what a VM has left: %w", err)
	}
	return nil
}

// save writes v as JSON: what it says does not outlive the host's boot.
func save(path string, v any) error {
	if err := atomicfile.SaveJSON(path, v); err != nil {
		return pod.Errorf(pod.Internal, "cannot write %s: %w", path, err)
	}
	return nil
}

// load reads what save has written.
func load(path string, v any) error { return atomicfile.LoadJSON(path, maxRecordBytes, v) }
