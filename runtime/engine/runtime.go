package engine

import (
	"context"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/probe"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/units"
)

// Runtime is what differs between runtime classes. The [Manager] owns units, logs and records, and
// calls these methods; what a call has made is found again by the Sandbox alone, by a later daemon
// too. All methods may be called from any goroutine.
type Runtime interface {
	// Class says what the class is and whether it can be used.
	Class() pod.ClassInfo
	// Validate is that of [runtime.PodManager].
	Validate(p *corev1.Pod) field.ErrorList
	// PrepareImage and ForgetImages are those of [runtime.PodManager]; they change nothing but caches.
	PrepareImage(ctx context.Context, image runtime.Image) error
	ForgetImages(ctx context.Context) error

	// SandboxKind says what sandboxes are made of; it is always the same.
	SandboxKind() runtime.SandboxKind
	// PodLimits are the limits of the pod's slice, in which the sandbox's holders have to fit.
	PodLimits(p *corev1.Pod) units.Limits
	// PrepareSandbox makes the files of a sandbox and returns the holders of its SandboxKind, which
	// may start at once. It is called once for each life of the sandbox; after a call that has
	// failed or was cut off, RemoveSandbox is called. The network namespace of config stays open in
	// this process.
	PrepareSandbox(ctx context.Context, s runtime.Sandbox, config runtime.SandboxConfig) ([]runtime.Holder, error)
	// ReadySandbox returns when containers can be run in the sandbox, whose holders are up. The
	// pod's network is. It is called for each start of a container. Errors are of kind Unavailable
	// when a holder is to blame.
	ReadySandbox(ctx context.Context, s runtime.Sandbox) error
	// RemoveSandbox removes what PrepareSandbox has made below RunDir, and all else that does not
	// outlive the sandbox. It must do so after anything that PrepareSandbox or a crash has left.
	RemoveSandbox(s runtime.Sandbox) error
	// ForgetSandbox removes the rest.
	ForgetSandbox(s runtime.Sandbox) error

	// Prepare decides how an attempt is launched. An error is the call's, and nothing was tried;
	// Launch.Refused blames the container.
	Prepare(ctx context.Context, s runtime.Sandbox, a runtime.Attempt, config runtime.ContainerConfig) (runtime.Launch, error)
	// AwaitCommand waits until the first process of a container that has started has executed the
	// container's command, or has ended. False: it does neither.
	AwaitCommand(pid int) bool
	// Signal sends a signal to a container's first process.
	Signal(ctx context.Context, c runtime.Running, sig syscall.Signal) error
	// Exec is that of [runtime.PodManager].
	Exec(ctx context.Context, c runtime.Running, p runtime.Process) (runtime.ExitStatus, error)
	// Probe is that of [runtime.PodManager]. exec runs a process in the container.
	Probe(ctx context.Context, c runtime.Running, p probe.Probe, exec func(runtime.Process) (runtime.ExitStatus, error)) (ok bool, message string, err error)
	// Stats reads what the containers use that run. cgroups are those of their units, by the
	// containers' names, relative to the root of cgroups.
	Stats(ctx context.Context, s runtime.Sandbox, cgroups map[string]string) (map[string]pod.ResourceUse, error)
}

// Layout says which units a sandbox has. The names of all of them begin with that of its slice, a
// dash after it, because systemd nests slices by their names, and package units reads from a name
// what stops with what. A ref's UID is the sandbox's ID.
type Layout interface {
	// Names are the units of a sandbox but its containers'. Slice is the sandbox's alone: it is
	// stopped with it.
	Names(ref pod.Ref) units.PodNames
	// Container is the unit of a container.
	Container(ref pod.Ref, container string) string
	// Slices are Slice, with the limits, and what else the sandbox's units refer to. They are made
	// first.
	Slices(ref pod.Ref, p *corev1.Pod, limits units.Limits) []units.Aux
}
