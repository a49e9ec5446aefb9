package microvm

import (
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
	"github.com/magikrun/magikpod/units"
)

const (
	// powerOffTimeout is how long a machine may take to power off in good order, stopTimeout how long until nothing of it is left.
	powerOffTimeout = 10 * time.Second
	stopTimeout     = 20 * time.Second
)

// unit is the VM unit of a machine.
func (l *Launcher) unit(s runtime.Machine, p *corev1.Pod, r *record) ([]units.Property, error) {
	var devices []units.Device
	if l.base.Accel == vmm.AccelKVM {
		devices = append(devices, units.Device{Path: "/dev/kvm", Access: "rw"})
	}
	if l.base.Vsock.Kind == vmm.VsockVhost {
		devices = append(devices, units.Device{Path: "/dev/vhost-vsock", Access: "rw"})
	}
	return units.VMProps(units.VMUnit{
		Pod: p, Names: units.Names(p.Namespace, p.Name), Devices: devices, StopTimeout: stopTimeout,
		Argv: []string{l.config.SupervisorPath, "--config", filepath.Join(s.RunDir, configFile)},
	}), nil
}
