package native

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// Modules runs single containers of the class's pods: WebAssembly modules of pods that ask for it
// by an annotation. It is the Runtime of another class.
type Modules interface {
	Class() pod.ClassInfo
	// Wants says whether it takes a container.
	Wants(config runtime.ContainerConfig) bool
	// Prepare and Exec are those of an engine.Runtime.
	Prepare(ctx context.Context, s runtime.Sandbox, a runtime.Attempt, config runtime.ContainerConfig) (runtime.Launch, error)
	Exec(ctx context.Context, c runtime.Running, p runtime.Process) (runtime.ExitStatus, error)
}

// Mixed is a [Runtime] that leaves single containers to another one.
type Mixed struct {
	*Runtime
	Modules Modules
}

// Validate refuses pods that ask for modules where they cannot be run.
func (m Mixed) Validate(p *corev1.Pod) field.ErrorList {
	all, some := pod.AskedWasm(p)
	if class := m.Modules.Class(); !class.Available && (all || some) {
		return field.ErrorList{field.Forbidden(field.NewPath("metadata", "annotations"), "WebAssembly is asked for, and cannot be run: "+class.Reason)}
	}
	return m.Runtime.Validate(p)
}

// Prepare leaves it to who wants the container.
func (m Mixed) Prepare(ctx context.Context, s runtime.Sandbox, a runtime.Attempt, config runtime.ContainerConfig) (runtime.Launch, error) {
	if m.Modules.Wants(config) {
		return m.Modules.Prepare(ctx, s, a, config)
	}
	return m.Runtime.Prepare(ctx, s, a, config)
}

// Exec leaves it to who has started the container.
func (m Mixed) Exec(ctx context.Context, c runtime.Running, p runtime.Process) (runtime.ExitStatus, error) {
	if c.Runtime == m.Modules.Class().Name {
		return m.Modules.Exec(ctx, c, p)
	}
	return m.Runtime.Exec(ctx, c, p)
}
