package runtime

import (
	"context"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
)

// SandboxKind says what the sandboxes of a class are made of.
type SandboxKind struct {
	// NetworkOnly says that the pause process holds no namespace but the network's: the containers
	// are not on this host.
	NetworkOnly bool
	// Holders are the units that a sandbox needs beside the pause unit, in the order of their start.
	Holders []HolderKind
}

// HolderKind is one of the units that a sandbox lives in.
type HolderKind string

// The kinds of holders.
const (
	HolderPause HolderKind = "pause" // every sandbox has it
	HolderVM    HolderKind = "VM"
)

// Holder is the command of a unit that holds a sandbox beside the pause unit.
type Holder struct {
	// Argv is the command, which notifies READY=1; Argv[0] is an absolute path.
	Argv []string
	// PowerOff is the time that it takes to end in good order.
	PowerOff time.Duration
}

// Sandbox is a pod's sandbox as its class sees it. The namespaces are open for as long as the call
// that gets it.
type Sandbox struct {
	Ref pod.Ref
	// RunDir goes with the host's boot at the latest, StateDir stays until the sandbox is
	// forgotten. Both are shared with others, by name.
	RunDir, StateDir string
	// ShmDir is /dev/shm of the pod, TmpfsDir has the file systems in memory that its containers
	// share: directories in the pod's mount namespace.
	ShmDir, TmpfsDir string
	Hostname         string
	Namespaces       Namespaces
}

// Namespaces are those of a sandbox, open. Nil is the host's own; of PID it may also mean that each
// container has its own.
type Namespaces struct{ Network, IPC, UTS, Mount, PID *os.File }

// Attempt names one attempt at a container, and the places that it has.
type Attempt struct {
	ID string
	// Bundle is a directory that exists when the unit starts. The container's last error is found
	// in Log, in the form that OCI runtimes have. PIDFile is made as soon as there may be something
	// of the container that is more than the unit's command.
	Bundle, Log, PIDFile string
	// Layer is the directory of the container's writable layer.
	Layer string
	// Cgroup is that of the container's unit, relative to the root of cgroups.
	Cgroup string
	// StopSignal is what the unit's main process gets when the container is to stop.
	StopSignal syscall.Signal
}

// Launch is how an attempt is launched.
type Launch struct {
	// Runtime names what runs the container; it stands in the attempt's record.
	Runtime string
	// Files are written as JSON to the bundle before the unit starts, by their names.
	Files map[string]any
	// Argv is the command of the unit; its last element is the path of one of Files. It notifies
	// READY=1, STATUS=shim.StatusStarted when the container runs, and STATUS=shim.StatusOOMKilled
	// before it ends for that reason.
	Argv []string
	// OwnPID says that the container has a PID namespace of its own, Traces that it gets
	// CAP_SYS_PTRACE, and can look at others in the pod's.
	OwnPID, Traces bool
	// Delegate, Jail, FiltersCalls and InVM are what the unit must be like (units.ContainerUnit).
	Delegate, Jail, FiltersCalls, InVM bool
	// Refused is why the container cannot be launched though its pod can: a failed start.
	Refused error
}

// ContainerCgroup is the child cgroup of a unit that an OCI runtime with cgroups of its own makes
// for the container.
const ContainerCgroup = "container"

// Running is a container that runs, as its class sees it.
type Running struct {
	Sandbox Sandbox
	// Container is its name, ID the attempt's, and Runtime what was Launch.Runtime.
	Container, ID, Runtime string
	Bundle                 string
	PID                    int    // of its first process
	Cgroup                 string // directory of its unit's cgroup
	Unit                   Unit
}

// Unit is what can be done to the unit of a container that runs.
type Unit interface {
	// Signal sends a signal to the main process.
	Signal(ctx context.Context, sig syscall.Signal) error
	// MainPID is the main process now; 0: there is none.
	MainPID() int
	// Unseen freezes the processes of the pod that could seize one that enters the container's PID
	// namespace, but for those in the cgroup own. They run on after thaw; nil: there is nobody to
	// freeze. Unavailable: ctx is over, or they do not freeze.
	Unseen(ctx context.Context, own string) (thaw func(), err error)
	// Background runs do until it returns; ctx ends with the manager, which waits for it.
	Background(do func(ctx context.Context))
}

// Traces says whether a container gets CAP_SYS_PTRACE. What is privileged, or has the host's PID
// namespace, has the host anyway.
func Traces(p *corev1.Pod, c *corev1.Container) bool {
	sc := c.SecurityContext
	if p.Spec.HostPID || sc == nil || sc.Capabilities == nil || sc.Privileged != nil && *sc.Privileged {
		return false
	}
	return slices.ContainsFunc(sc.Capabilities.Add, func(name corev1.Capability) bool {
		name = corev1.Capability(strings.TrimPrefix(strings.ToUpper(string(name)), "CAP_"))
		return name == "SYS_PTRACE" || name == "ALL"
	})
}
