package native

import (
	"context"
	"os"
	"syscall"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/probe"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/units"
)

// SandboxLauncher runs the containers of a pod in a virtual machine. A class that does so is a [SandboxManager] with a SandboxLauncher: it has units,
// logs, stop and adoption in common with this one, but nothing of a container on the host except the main process of its unit, which stands in
// for it.
//
//	pause unit       the pod's network namespace, and the logs
//	VM unit          the machine: the containers' units need it
//	container units  a command for each, which starts the container in the machine and ends as that does
//
// The manager owns the units and calls these methods; what a call has made is found again by the Machine alone, by a later daemon too.
type SandboxLauncher interface {
	class
	// ForgetImages is that of [Launcher].
	ForgetImages(ctx context.Context) error
	// PodLimits are the limits of the pod's slice, in which the machine has to fit.
	PodLimits(p *corev1.Pod) units.Limits
	// PrepareSandbox makes the files of a machine and returns the properties of its unit. The machine may start at once. It is called once for each life
	// of the sandbox; after a call that has failed or was cut off, RemoveSandbox is called. The network namespace of config stays open in this process.
	PrepareSandbox(ctx context.Context, s runtime.Machine, config runtime.SandboxConfig) ([]units.Property, error)
	// ReadySandbox returns when containers can be run in the machine, whose unit is up. The pod's network is. It is called for each start of a container.
	// Errors are of kind Unavailable when the machine is to blame.
	ReadySandbox(ctx context.Context, s runtime.Machine, network *os.File) error
	// RemoveSandbox removes what PrepareSandbox has made below RunDir, and all else that does not outlive the machine. It must do so after
	// anything that PrepareSandbox or a crash has left.
	RemoveSandbox(s runtime.Machine) error
	// ForgetSandbox removes the rest.
	ForgetSandbox(s runtime.Machine) error

	// PrepareContainer decides how an attempt is launched: the unit runs argv, whose last element is the path of a file in a.Bundle; document is written
	// to config.json there. The command tells READY=1, then STATUS=[shim.StatusStarted], when the container runs, and STATUS=[shim.StatusOOMKilled] before
	// it ends for that reason. Signals are meant for the container. If it ends before it has started, the last error in a.Log, in the form
	// that OCI runtimes have, says why. Errors of the kinds Invalid, NotFound and Unsupported blame the container: a failed start.
	PrepareContainer(ctx context.Context, s runtime.Machine, a runtime.Attempt, config runtime.ContainerConfig) (document any, argv []string, err error)
	// Signal sends a signal to a container's first process.
	Signal(ctx context.Context, s runtime.Machine, container string, sig syscall.Signal) error
	// Exec is that of [runtime.PodManager], for a container that runs.
	Exec(ctx context.Context, s runtime.Machine, container string, p runtime.Process) (runtime.ExitStatus, error)
	// Probe is that of [runtime.Prober], for a container that runs.
	Probe(ctx context.Context, s runtime.Machine, container string, p probe.Probe) (ok bool, message string, err error)
	// Stats reads what the running containers use.
	Stats(ctx context.Context, s runtime.Machine) (map[string]pod.ResourceUse, error)
}
