package microvm

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/agent/client"
	"github.com/magikrun/magikpod/agent/proxy"
	"github.com/magikrun/magikpod/agent/wire"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/microvm/supervise"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// PrepareContainer implements native.SandboxLauncher. The disk with the image is plugged, and the container's directories of the host are shown in the share.
func (l *Launcher) PrepareContainer(ctx context.Context, s runtime.Machine, a runtime.Attempt, config runtime.ContainerConfig) (any, []string, error) {
	if why := noStopSignal(a.StopSignal); why != "" {
		return nil, nil, pod.Errorf(pod.Unsupported, "cannot stop it by its stop signal %s: %s", unix.SignalName(a.StopSignal), why)
	}
	m, err := l.machine(s)
	if err != nil {
		return nil, nil, err
	}
	defer m.mu.Unlock()
	staged, err := stage(config, m.record.Tmpfs)
	if err != nil {
		return nil, nil, err
	}
	spec, err := l.guestSpec(config, staged.spec, m.record.Hostname, m.record.Size)
	if err != nil {
		return nil, nil, err
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, nil, pod.WithKind(pod.Internal, err)
	}
	if err := m.bind(s, staged.shares); err != nil {
		return nil, nil, pod.WithKind(pod.Unavailable, err)
	}
	serial, err := l.plug(ctx, m, config.Image)
	if err != nil {
		return nil, nil, pod.WithKind(kindOr(err, pod.Unavailable), err)
	}
	c := proxy.Config{
		Agent: m.record.address(), Copies: staged.copies, MessageFile: staged.messageFile, Log: a.Log,
		Create: wire.Create{Container: config.Container.Name, ID: a.ID, Attempt: a.Number, Spec: text, Rootfs: wire.Rootfs{Disk: serial}, Mounts: staged.mounts},
	}
	return c, []string{l.config.AgentPath, "proxy", "--config", filepath.Join(a.Bundle, "config.json")}, nil
}

// noStopSignal says why a signal does not reach a container when its unit is stopped; empty: it does. SIGKILL and SIGSTOP are the host's: they meet what stands in for the
// container, and at the end of the grace period at the latest the container is killed with it.
func noStopSignal(sig syscall.Signal) string {
	if proxy.Passed(sig) || sig == unix.SIGKILL || sig == unix.SIGSTOP {
		return ""
	}
	return "the process that stands in for a machine's container cannot pass it on"
}

// plug attaches the disk of an image. It stays until the machine ends: a container that is restarted needs it again.
func (l *Launcher) plug(ctx context.Context, m *machine, image runtime.Image) (serial string, err error) {
	defer l.images.Hold(image.Rootfs)() // until the VMM has opened it
	disk, err := l.images.Image(ctx, image.Rootfs)
	if err != nil {
		return "", err
	}
	if m.disks[disk.Serial] {
		return disk.Serial, nil
	}
	serial, err = supervise.AttachDisk(ctx, &m.record.VMM, vmm.Disk{Path: disk.Path, Serial: disk.Serial, ReadOnly: true})
	if err != nil {
		return "", err
	}
	m.disks[disk.Serial] = true
	return serial, nil
}

// bind shows parts of the host in the share, each once: what is bound stays until the machine ends, also over a restart of the daemon.
func (m *machine) bind(s runtime.Machine, wanted []shared) error {
	file := filepath.Join(s.RunDir, sharesFile)
	if m.shares == nil {
		m.shares = map[string]bool{}
		if err := load(file, &m.shares); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, one := range wanted {
		if m.shares[one.name] {
			continue
		}
		if err := supervise.BindShare(&m.record.VMM, one.name, one.source, one.readOnly); err != nil {
			return err
		}
		m.shares[one.name] = true
		if err := save(file, m.shares); err != nil {
			return err
		}
	}
	return nil
}

// call runs one request to the agent of a machine.
func (l *Launcher) call(s runtime.Machine, do func(*client.Client) error) error {
	m, err := l.machine(s)
	if err != nil {
		return err
	}
	agent := m.record.agent()
	m.mu.Unlock()
	return translate(do(agent))
}

// Signal implements native.SandboxLauncher.
func (l *Launcher) Signal(ctx context.Context, s runtime.Machine, container string, sig syscall.Signal) error {
	return l.call(s, func(c *client.Client) error { return c.Signal(ctx, container, "", sig) })
}

// Probe implements native.SandboxLauncher.
func (l *Launcher) Probe(ctx context.Context, s runtime.Machine, container string, p runtime.Probe) (ok bool, message string, err error) {
	request := wire.Probe{Container: container, Timeout: p.Timeout.Milliseconds(), Exec: p.Exec}
	if h := p.HTTP; h != nil {
		request.HTTP = &wire.HTTPProbe{Scheme: h.Scheme, Host: h.Host, Port: h.Port, Path: h.Path}
		for _, header := range h.Headers {
			request.HTTP.Headers = append(request.HTTP.Headers, wire.Header{Name: header.Name, Value: header.Value})
		}
	}
	if p.TCP != nil {
		request.TCP = &wire.TCPProbe{Host: p.TCP.Host, Port: p.TCP.Port}
	}
	var reply wire.ProbeReply
	err = l.call(s, func(c *client.Client) (err error) { reply, err = c.Probe(ctx, request); return err })
	if err != nil || reply.Success {
		return reply.Success, "", err
	}
	return false, failure(p, reply), nil
}

// failure is what the kubelet says of a probe that has failed.
func failure(p runtime.Probe, reply wire.ProbeReply) string {
	command := `command "` + strings.Join(p.Exec, " ") + `"`
	switch {
	case p.Exec != nil && reply.TimedOut:
		return command + " timed out"
	case p.Exec != nil && strings.TrimSpace(reply.Message) == "":
		return command + " exited with code " + strconv.Itoa(reply.Code)
	case p.HTTP != nil && reply.Code != 0:
		return "HTTP probe failed with statuscode: " + strconv.Itoa(reply.Code)
	}
	return reply.Message
}

// Stats implements native.SandboxLauncher.
func (l *Launcher) Stats(ctx context.Context, s runtime.Machine) (map[string]pod.ResourceUse, error) {
	var reply wire.StatsReply
	if err := l.call(s, func(c *client.Client) (err error) { reply, err = c.Stats(ctx, ""); return err }); err != nil {
		return nil, err
	}
	use := map[string]pod.ResourceUse{}
	for _, c := range reply.Containers {
		use[c.Container] = pod.ResourceUse{CPUNanos: c.CPUUsec * 1000, MemoryBytes: c.MemoryWorkingSet, MemoryLimitBytes: c.MemoryLimit, Processes: c.PIDs}
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
