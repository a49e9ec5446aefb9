package microvm

import (
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/units"
)

// powerOffTimeout is how long a machine may take to power off in good order, before it is ended.
const powerOffTimeout = 10 * time.Second

// unit is the VM unit of a machine.
func (l *Launcher) unit(s runtime.Machine, p *corev1.Pod) []units.Property {
	return units.VMProps(units.VMUnit{
		Pod: p, Names: units.Names(p.Namespace, p.Name), PowerOff: powerOffTimeout,
		Argv: []string{l.config.SupervisorPath, "--config", filepath.Join(s.RunDir, configFile)},
	})
}
