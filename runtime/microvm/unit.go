package microvm

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/runtime/native"
	"github.com/magikrun/magikpod/units"
)

func (l *Launcher) unit(s native.Sandbox, p *corev1.Pod, r *record) ([]units.Property, error) {
	return nil, nil
}
