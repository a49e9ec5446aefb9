package native

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Validate implements [runtime.PodManager]: what no pod of the class can have on any host, [pod.Validate] refuses.
func (m *Manager) Validate(p *corev1.Pod) field.ErrorList {
	if other := m.config.other(); other != nil {
		return other.Validate(p)
	}
	if m.config.Chooser == nil {
		return nil
	}
	all, some := m.config.Chooser.Asked(p)
	if class := m.config.Chooser.Class(); !class.Available && (all || some) {
		return field.ErrorList{field.Forbidden(field.NewPath("metadata", "annotations"), "WebAssembly is asked for, and cannot be run: "+class.Reason)}
	}
	return nil
}
