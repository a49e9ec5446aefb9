package onhost

import (
	"context"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/magikrun/magikpod/internal/cgroup"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/probe"
	"github.com/magikrun/magikpod/runtime"
)

// Base is embedded in a class's Runtime (package engine).
type Base struct{}

// Validate refuses nothing that [pod.Validate] accepts.
func (Base) Validate(*corev1.Pod) field.ErrorList { return nil }

// PrepareImage does nothing: the layers are all that a container needs.
func (Base) PrepareImage(context.Context, runtime.Image) error { return nil }

// ForgetImages does nothing.
func (Base) ForgetImages(context.Context) error { return nil }

// SandboxKind returns the zero value: pause holds all namespaces, and nobody else is needed.
func (Base) SandboxKind() runtime.SandboxKind { return runtime.SandboxKind{} }

// PrepareSandbox does nothing.
func (Base) PrepareSandbox(context.Context, runtime.Sandbox, runtime.SandboxConfig) ([]runtime.Holder, error) {
	return nil, nil
}

// ReadySandbox does nothing: containers can be run from the beginning.
func (Base) ReadySandbox(context.Context, runtime.Sandbox) error { return nil }

// RemoveSandbox does nothing.
func (Base) RemoveSandbox(runtime.Sandbox) error { return nil }

// ForgetSandbox does nothing.
func (Base) ForgetSandbox(runtime.Sandbox) error { return nil }

// AwaitCommand does nothing: nothing runs in the container but its own command.
func (Base) AwaitCommand(int) bool { return true }

// Signal sends a signal to the unit's main process, which is the container's first.
func (Base) Signal(ctx context.Context, c runtime.Running, sig syscall.Signal) error {
	return c.Unit.Signal(ctx, sig)
}

// Probe makes a probe from here.
func (Base) Probe(ctx context.Context, _ runtime.Running, p probe.Probe, exec func(runtime.Process) (runtime.ExitStatus, error)) (bool, string, error) {
	return runtime.MakeProbe(ctx, p, exec)
}

// Stats reads the cgroups of containers, given by their names, relative to the root of cgroups. One
// that does not exist is left out.
func (Base) Stats(_ context.Context, _ runtime.Sandbox, cgroups map[string]string) (map[string]pod.ResourceUse, error) {
	all := make(map[string]pod.ResourceUse, len(cgroups))
	for name, group := range cgroups {
		use, ok, err := Usage(cgroup.Root(), group)
		if err != nil {
			return nil, err
		}
		if ok {
			all[name] = use
		}
	}
	return all, nil
}
