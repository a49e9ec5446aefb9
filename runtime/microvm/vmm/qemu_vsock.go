package vmm

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
)

// vsockDeviceProgram implements a vsock device outside of QEMU and of the kernel.
const vsockDeviceProgram = "/usr/bin/vhost-device-vsock"

const vsockID = "vsock0"

func (q QEMU) vsock(c *Config, cmd *Command, add func(...string)) {
	switch c.Vsock.Kind {
	case VsockHybrid:
		socket := c.Vsock.Path + ".vhost" // beside the host's
		add("-chardev", fmt.Sprintf("socket,id=vsock,fd=%d", cmd.fd(FDConnect, socket, false)), "-device", "vhost-user-vsock-pci,id="+vsockID+",chardev=vsock")
		gate := c.Vsock.Path + ".gate"
		cmd.Gate = &Gate{
			Path: gate, Ready: fmt.Sprintf("%s_%d", gate, ReadyPort), Started: func(ctx context.Context) (bool, error) { return q.vsockStarted(ctx, c) },
		}
		cmd.Helpers["vsock"] = vsockDevice(c, socket, gate)
	default:
		add("-device", fmt.Sprintf("vhost-vsock-pci,guest-cid=%d,vhostfd=%d", c.Vsock.CID, cmd.fd(FDFile, "/dev/vhost-vsock", false)))
	}
}

// vsockDevice makes both of its sockets itself, so it sees their directory. Until the guest's
// driver is up nobody may connect to the host's: a connection between the setting of the guest's
// memory and that of the queues ends the thread of vhost-device-vsock 0.3 that does all the work
// (its handle_event lets the error of a queue that is not ready go up), and the guest never answers
// again. So it listens at the gate.
func vsockDevice(c *Config, socket, gate string) *Command {
	return &Command{
		Argv:   []string{vsockDeviceProgram, "--guest-cid", fmt.Sprint(c.Vsock.CID), "--socket", socket, "--uds-path", gate},
		Env:    []string{"PATH=/usr/bin", "RUST_LOG=error"},
		Mounts: append(distribution[:len(distribution):len(distribution)], Mount{Source: filepath.Dir(c.Vsock.Path), Writable: true}),
	}
}

// vsockStarted says whether the guest's driver has started the vsock device.
func (QEMU) vsockStarted(ctx context.Context, c *Config) (bool, error) {
	m, err := dialQMP(ctx, c.Control)
	if err != nil {
		return false, err
	}
	defer m.close()
	path := "/machine/peripheral/" + vsockID + "/virtio-backend"
	answer, err := m.execute(ctx, "x-query-virtio-status", map[string]any{"path": path}, nil)
	if err != nil {
		return false, err
	}
	var status struct {
		Started bool `json:"vhost-started"`
	}
	if err := json.Unmarshal(answer, &status); err != nil {
		return false, fmt.Errorf("QEMU's answer to x-query-virtio-status: %w", err)
	}
	return status.Started, nil
}
