package microvm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/probe"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/microvm/client"
	"github.com/magikrun/magikpod/runtime/microvm/disks"
	"github.com/magikrun/magikpod/runtime/microvm/probes"
	vmshim "github.com/magikrun/magikpod/runtime/microvm/shim"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// Prepare implements engine.Runtime. The image is given to the VM, and the container's directories
// of the host are shown in the share.
func (r *Runtime) Prepare(ctx context.Context, s runtime.Sandbox, a runtime.Attempt, config runtime.ContainerConfig) (runtime.Launch, error) {
	launch := runtime.Launch{
		Runtime: r.class.Name, OwnPID: true, InVM: true, Argv: []string{r.config.ShimPath, "proxy", "--config", filepath.Join(a.Bundle, proxyFile)},
	}
	proxy, err := r.prepare(ctx, s, a, config)
	switch pod.KindOf(err) {
	case pod.Invalid, pod.NotFound, pod.Unsupported:
		launch.Refused = err
	default:
		if err != nil {
			return launch, pod.Errorf(pod.KindOf(err), "cannot run container %q: %w", config.Container.Name, err)
		}
	}
	launch.Files = map[string]any{proxyFile: proxy}
	return launch, nil
}

// proxyFile is what magikshim proxy reads.
const proxyFile = "config.json"

func (r *Runtime) prepare(ctx context.Context, s runtime.Sandbox, a runtime.Attempt, config runtime.ContainerConfig) (c vmshim.Config, err error) {
	if why := noStopSignal(a.StopSignal); why != "" {
		return c, pod.Errorf(pod.Unsupported, "cannot stop it by its stop signal %s: %s", unix.SignalName(a.StopSignal), why)
	}
	m, err := r.vm(s)
	if err != nil {
		return c, err
	}
	defer m.mu.Unlock()
	staged, err := stage(config, m.record.Tmpfs, m.record.VMM.VM.Share != nil)
	if err != nil {
		return c, err
	}
	spec, err := r.guestSpec(config, staged.spec, m.record.Hostname, m.record.Size)
	if err != nil {
		return c, err
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return c, pod.WithKind(pod.Internal, err)
	}
	if err := m.bind(s, staged.shares); err != nil {
		return c, pod.WithKind(pod.Unavailable, err)
	}
	if err := m.attachCopies(ctx, s, staged); err != nil {
		return c, pod.WithKind(pod.KindOr(err, pod.Unavailable), err)
	}
	place, err := r.attachImage(ctx, m, s, config.Image)
	if err != nil {
		return c, pod.WithKind(pod.KindOr(err, pod.Unavailable), err)
	}
	return vmshim.Config{
		Agent: m.record.address(), Copies: staged.copies, MessageFile: staged.messageFile, Log: a.Log,
		Create: wire.Create{Container: config.Container.Name, ID: a.ID, Spec: text, Rootfs: wire.Image(place), Mounts: staged.mounts},
	}, nil
}

// noStopSignal says why a signal does not reach a container when its unit is stopped; empty: it
// does. SIGKILL and SIGSTOP are the host's: they meet what stands in for the container, and at the
// end of the grace period at the latest the container is killed with it.
func noStopSignal(sig syscall.Signal) string {
	if vmshim.Passed(sig) || sig == unix.SIGKILL || sig == unix.SIGSTOP {
		return ""
	}
	return "the process that stands in for a VM's container cannot pass it on"
}

// attachImage gives the VM the image of a container.
func (r *Runtime) attachImage(ctx context.Context, m *vm, s runtime.Sandbox, image runtime.Image) (vmm.Place, error) {
	defer r.images.Keep(image.Rootfs)() // until the VMM has opened it
	disk, err := r.images.Image(ctx, image.Rootfs)
	if err != nil {
		return vmm.Place{}, err
	}
	return m.attachDisk(ctx, s, vmm.Disk{Path: disk.Path, Serial: disk.Serial, ReadOnly: true})
}

// attachDisk gives the VM an image: as a disk, or as a file in the share when all of its places for
// disks are taken. It stays until the VM ends, since a container that is restarted needs it again,
// and where it is outlives the daemon.
func (m *vm) attachDisk(ctx context.Context, s runtime.Sandbox, d vmm.Disk) (place vmm.Place, err error) {
	file := filepath.Join(runDir(s), disksFile)
	if err := m.loadDisks(file); err != nil {
		return place, err
	}
	if place, ok := m.disks[d.Serial]; ok {
		return place, nil
	}
	if m.record.VMM.VM.Share != nil && m.full() {
		place, err = m.record.running().ShareDisk(d)
	} else {
		place, err = m.record.running().Disk(ctx, d)
	}
	if err != nil {
		return place, err
	}
	m.disks[d.Serial] = place
	return place, save(file, m.disks)
}

// loadDisks reads where the VM's disks are, once.
func (m *vm) loadDisks(file string) error {
	if m.disks != nil {
		return nil
	}
	m.disks = map[string]vmm.Place{}
	if err := load(file, &m.disks); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.disks = nil
		return err
	}
	return nil
}

// maxCopy bounds what of the host is copied for a volume.
const maxCopy = 1 << 30

// attachCopies makes the images of the host's directories and files that the container mounts, and
// gives them to the VM, each once in its life: it is as the host was when the first container with
// that volume was started.
func (m *vm) attachCopies(ctx context.Context, s runtime.Sandbox, staged *staged) error {
	places := map[string]wire.Image{}
	for _, one := range staged.copied {
		sum := sha256.Sum256([]byte(one.name))
		d := vmm.Disk{Path: filepath.Join(stateDir(s), copiesDir, one.name), Serial: "host-" + hex.EncodeToString(sum[:6]), ReadOnly: true}
		if err := m.loadDisks(filepath.Join(runDir(s), disksFile)); err != nil {
			return err
		}
		if _, ok := m.disks[d.Serial]; !ok {
			if err := copyHost(ctx, d.Path, one.source); err != nil {
				return err
			}
		}
		place, err := m.attachDisk(ctx, s, d)
		if err != nil {
			return err
		}
		places[one.name] = wire.Image(place)
	}
	for i, name := range staged.images {
		place := places[name]
		staged.mounts[i].Image = &place
	}
	return nil
}

// copyHost makes an image of a part of the host. A VM that has an earlier one of that name open,
// given to it by a daemon that died then, keeps that.
func copyHost(ctx context.Context, path, source string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return pod.WithKind(pod.Internal, err)
	}
	if err := disks.WriteDirectory(ctx, path+".new", source, maxCopy); err != nil {
		return pod.WithKind(pod.Unsupported, err)
	}
	// The VMM may be given its path, and is not root.
	return pod.WithKind(pod.Internal, errors.Join(os.Chmod(path+".new", 0o444), os.Rename(path+".new", path)))
}

// full says whether all of the VM's places for disks are taken.
func (m *vm) full() bool {
	vm := &m.record.VMM.VM
	taken := len(vm.Disks)
	for _, place := range m.disks {
		if place.Disk != "" {
			taken++
		}
	}
	driver, err := vmm.Find(vm.Driver)
	return err == nil && taken >= driver.Can(vm).MaxDisks
}

// bind shows parts of the host in the share, each once: what is bound stays until the VM ends, also
// over a restart of the daemon.
func (m *vm) bind(s runtime.Sandbox, wanted []shared) error {
	file := filepath.Join(runDir(s), sharesFile)
	if m.shares == nil {
		m.shares = map[string]bool{}
		if err := load(file, &m.shares); err != nil && !errors.Is(err, fs.ErrNotExist) {
			m.shares = nil
			return err
		}
	}
	for _, one := range wanted {
		if m.shares[one.name] {
			continue
		}
		if err := m.record.running().Share(one.name, one.source, one.readOnly); err != nil {
			return err
		}
		m.shares[one.name] = true
		if err := save(file, m.shares); err != nil {
			return err
		}
	}
	return nil
}

// call runs one request to the agent of a VM.
func (r *Runtime) call(s runtime.Sandbox, do func(*client.Client) error) error {
	m, err := r.lookUp(s) // not locked: a VM that is being given an image answers all the same
	if err != nil {
		return err
	}
	return translate(do(m.record.agent()))
}

// Signal implements engine.Runtime.
func (r *Runtime) Signal(ctx context.Context, c runtime.Running, sig syscall.Signal) error {
	return r.call(c.Sandbox, func(agent *client.Client) error { return agent.Signal(ctx, c.Container, "", sig) })
}

// Probe implements engine.Runtime: the agent makes it, where the container is.
func (r *Runtime) Probe(ctx context.Context, c runtime.Running, p probe.Probe, _ func(runtime.Process) (runtime.ExitStatus, error)) (ok bool, message string, err error) {
	err = r.call(c.Sandbox, func(agent *client.Client) error {
		reply, err := agent.Probe(ctx, probes.Request(c.Container, p))
		ok, message = p.Verdict(probes.Outcome(reply))
		return err
	})
	if err != nil {
		return false, "", err
	}
	return ok, message, nil
}

// AwaitCommand implements engine.Runtime: nothing of a container is on the host that could be seen.
func (r *Runtime) AwaitCommand(int) bool { return true }

// Stats implements engine.Runtime.
func (r *Runtime) Stats(ctx context.Context, s runtime.Sandbox, running map[string]string) (map[string]pod.ResourceUse, error) {
	var reply wire.StatsReply
	if err := r.call(s, func(c *client.Client) (err error) { reply, err = c.Stats(ctx); return err }); err != nil {
		return nil, err
	}
	use := map[string]pod.ResourceUse{}
	for _, c := range reply.Containers { // those that have ended too
		if _, ok := running[c.Container]; ok {
			use[c.Container] = pod.ResourceUse{CPUNanos: new(c.CPUUsec * 1000), MemoryBytes: new(c.MemoryWorkingSet), MemoryLimitBytes: c.MemoryLimit, Processes: new(c.PIDs)}
		}
	}
	return use, nil
}

// translate gives an error of the agent, or of the way to it, a kind.
func translate(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*wire.Error](err); !ok {
		return pod.WithKind(pod.Unavailable, err)
	}
	kind := pod.Internal
	switch wire.CodeOf(err) {
	case wire.CodeContainerNotFound:
		kind = pod.NotFound
	case wire.CodeContainerNotRunning:
		kind = pod.Conflict
	case wire.CodeExecFailed, wire.CodeInvalidRequest:
		kind = pod.Invalid
	case wire.CodeTimeout:
		kind = pod.Unavailable
	}
	return pod.WithKind(kind, err)
}
