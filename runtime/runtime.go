package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/magikrun/magikpod/internal/podapi"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/probe"
)

// PodManager runs the pods of one runtime class. All methods may be called at any time, in any
// order and from any goroutine, but for one pod no two mutating calls (Create, Run, Signal, Stop,
// Remove, Delete) run at once: the pod's worker makes them.
//
// The life of a pod:
//
//  1. CreateSandbox, once.
//  2. RunContainer for each init container, sidecar and container, when the planner says so.
//  3. StopContainer or a container's own end; RunContainer again with the next Attempt, which also clears what the last attempt left.
//  4. DeleteSandbox, then (for a pod that is deleted) Forget.
//
// Every mutating method is idempotent: repeated after a crash at any point it completes the work.
// Errors carry a [pod.Kind].
type PodManager interface {
	// Class says what this is and whether it can be used on this host.
	Class() pod.ClassInfo

	// Validate returns each field of the pod that this class cannot honour on this host, beyond
	// what [pod.Validate] refuses. It does no IO.
	Validate(p *corev1.Pod) field.ErrorList

	// CreateSandbox makes the sandbox, and returns when containers can be run in it; the units may
	// still be starting behind it.
	CreateSandbox(ctx context.Context, config SandboxConfig) error

	// RunContainer starts one attempt at a container and returns when its process runs, or an error
	// of which nothing but the observation (ReasonStartError) is left. Concurrent calls for
	// different containers of one pod are allowed.
	RunContainer(ctx context.Context, config ContainerConfig) error

	// SignalContainer sends sig to the container's first process.
	SignalContainer(ctx context.Context, ref pod.Ref, container string, sig syscall.Signal) error

	// StopContainer stops the container: its stop signal, grace, SIGKILL; it returns when the
	// container has ended. A container that does not run is no error. Concurrent calls for
	// different containers of one pod are allowed.
	StopContainer(ctx context.Context, ref pod.Ref, container string, grace time.Duration) error

	// DeleteSandbox stops every container at once, with grace, then removes the sandbox: nothing of
	// it is left in the kernel or in systemd. What the containers did (Observe's Exited states)
	// must have been observable until it began; the returned state is the last one: how each
	// container ended.
	DeleteSandbox(ctx context.Context, ref pod.Ref, grace time.Duration) (pod.RuntimeState, error)

	// Forget removes what DeleteSandbox keeps on disk: writable layers, bundles, log pipes.
	Forget(ctx context.Context, ref pod.Ref) error

	// Exec runs a process in a running container and waits for it. NotFound: no such container;
	// Conflict: it does not run. Invalid: the process cannot be run as it was asked for; if that
	// was found out only when it was to be executed, the status says ExitNotFound or
	// ExitNotExecutable, and why is printed on the process's Stderr or terminal, too.
	Exec(ctx context.Context, ref pod.Ref, container string, p Process) (ExitStatus, error)

	// Observe returns what is true now. It asks no remote side when signals have reported it
	// already; cheap enough for each sync. An error says that nobody knows: nothing may be
	// concluded from it.
	Observe(ctx context.Context, ref pod.Ref) (pod.RuntimeState, error)

	// Adopt makes the manager know the pods that an earlier daemon left running, before the first
	// other call for them. Called once for each pod at the start of the daemon, and again after an
	// error: until it has succeeded nothing is known of the pod, and of all other calls only
	// DeleteSandbox may be made. Unavailable: it is worth trying again at once.
	Adopt(ctx context.Context, ref pod.Ref) error

	// Probe makes a probe of a running container once, from where its class makes them. When ok is
	// false, message is what the kubelet says of such a failure. An error means that nothing was
	// learned, as from a container that does not run.
	Probe(ctx context.Context, ref pod.Ref, container string, p probe.Probe) (ok bool, message string, err error)

	// ContainerStats reads what the running containers of a pod use, by their names.
	ContainerStats(ctx context.Context, ref pod.Ref) (map[string]pod.ResourceUse, error)

	// Frozen says whether somebody else has frozen all processes of a container.
	Frozen(ref pod.Ref, container string) bool

	// PrepareImage does the work for an image, such as compiling it, that is better done when the
	// image comes than when its first container starts. It does nothing for an image that this
	// class does not run. An error is no reason to refuse the image: a start returns it again.
	PrepareImage(ctx context.Context, image Image) error
	// ForgetImages removes what was made for images that are gone.
	ForgetImages(ctx context.Context) error

	// Named returns the name of a pod of which nothing is known but the UID, from what was noted
	// for the pod's processes. NotFound: nothing was.
	Named(uid types.UID) (pod.Ref, error)

	// OnChange sets the function that is called, from any goroutine and without blocking, when
	// something about a pod has changed. It is called once, before any other method.
	OnChange(changed func(ref pod.Ref))
}

// SandboxConfig is what a sandbox is made from.
type SandboxConfig struct {
	// ID names the sandbox: it is the UID of the ref in all other calls. Empty: the pod's own UID,
	// for who has one sandbox of a pod at a time.
	ID      types.UID
	Pod     *corev1.Pod // read only, defaults filled in
	Network Network
	// SharedTmpfs are in-memory file systems that several containers mount: emptyDir with medium
	// Memory, by volume name. /dev/shm of the pod is not among them: each class makes it.
	SharedTmpfs []Tmpfs
	// LogDir, when not empty, asks for CRI log files below it instead of the journal.
	LogDir string
}

// Ref names the sandbox in all other calls.
func (c *SandboxConfig) Ref() pod.Ref { return refOf(c.Pod, c.ID) }

func refOf(p *corev1.Pod, id types.UID) pod.Ref {
	ref := pod.RefOf(p)
	if id != "" {
		ref.UID = id
	}
	return ref
}

// Network is how the pod is connected.
type Network struct {
	// Host is true for hostNetwork: the pod uses the host's network namespace and NetNS is nil.
	Host bool
	// NetNS is the pod's network namespace, open; the manager duplicates it if it keeps it.
	NetNS *os.File
	// Its addresses and routes may still be on their way when CreateSandbox is called; RunContainer
	// is only called after they are set.
	Hostname string
}

// Tmpfs is one in-memory file system of a pod.
type Tmpfs struct {
	Name      string      // of the volume
	SizeBytes int64       // 0: the kernel's default (half of the memory)
	Mode      os.FileMode // of its root directory, [os.ModeSticky] and [os.ModeSetgid] included
	GID       int64       // group that owns its root directory: the pod's fsGroup; 0: root
}

// Options returns the mount options that make t: size, mode and gid, as tmpfs(5) wants them.
func (t Tmpfs) Options() string {
	mode := uint32(t.Mode.Perm())
	for _, bit := range []struct {
		mode os.FileMode
		bit  uint32
	}{{os.ModeSticky, 0o1000}, {os.ModeSetgid, 0o2000}, {os.ModeSetuid, 0o4000}} {
		if t.Mode&bit.mode != 0 {
			mode |= bit.bit
		}
	}
	options := fmt.Sprintf("mode=%04o", mode)
	if t.SizeBytes > 0 {
		options += fmt.Sprintf(",size=%d", t.SizeBytes)
	}
	if t.GID != 0 {
		options += fmt.Sprintf(",gid=%d", t.GID)
	}
	return options
}

// ContainerConfig is what one attempt at a container is made from.
type ContainerConfig struct {
	SandboxID types.UID         // SandboxConfig.ID
	Pod       *corev1.Pod       // read only, defaults filled in
	Container *corev1.Container // of Pod: init container, sidecar or container; read only
	Attempt   int
	Image     Image
	// Env is the container's environment from the manifest, references resolved, in order,
	// duplicates allowed (the last wins); the image's own and HOSTNAME are added by the class.
	Env    []EnvVar
	Mounts []Mount
	// LogPath is the log file of the attempt, relative to LogDir and in it; empty:
	// CONTAINER/ATTEMPT.log.
	LogPath string
	// StopAfter names the containers of the pod that must end before this one when all are stopped
	// at once (for a sidecar: the containers and the sidecars after it).
	StopAfter []string
}

// Ref is that of the sandbox.
func (c *ContainerConfig) Ref() pod.Ref { return refOf(c.Pod, c.SandboxID) }

// EnvVar is one variable with its value.
type EnvVar struct{ Name, Value string }

// Mount is a part of a file system that volumes produce and a runtime consumes.
type Mount struct {
	// Source is the host's path of the volume (a directory or a file). Empty for a tmpfs.
	Source string
	// SubPath is a path inside Source, resolved by the consumer so that no symlink leads out of
	// Source (openat2, RESOLVE_IN_ROOT); empty for Source itself. A missing directory is made.
	SubPath string
	// SharedTmpfs names one of SandboxConfig.SharedTmpfs as the source, instead of Source.
	SharedTmpfs string
	Destination string // absolute, in the container
	ReadOnly    bool
	// Propagation is "private", "rslave" (HostToContainer) or "rshared" (Bidirectional).
	Propagation string
}

// Image is an image that is ready to run: its configuration, and its layers unpacked.
type Image struct {
	Reference string // normalised name that it was asked by
	ID        string // sha256:... of the config: imageID of the status
	Config    ImageConfig
	Rootfs    Rootfs
	// Passwd and Group are /etc/passwd and /etc/group as the image has them (bounded; empty when it
	// has none).
	Passwd, Group []byte
}

// ImageConfig is what the OCI image config says about running the image (OCI image-spec, config.md).
type ImageConfig struct {
	User         string
	Env          []string
	Entrypoint   []string
	Cmd          []string
	WorkingDir   string
	StopSignal   string
	Volumes      []string
	Labels       map[string]string
	Architecture string
	OS           string
}

// Rootfs is the read-only part of a container's root file system.
type Rootfs struct {
	Dir    string   // the directory that the layers are in
	Layers []string // directory names relative to Dir, the lowest layer first; short, so that 127 of them fit into one mount option
}

// Process is one extra process in a container.
type Process struct {
	Args       []string
	Env        []string // KEY=VALUE, added to the container's
	WorkingDir string   // empty: the container's
	User       string   // USER[:GROUP], names or numbers; empty: the container's
	TTY        bool
	// Stdin, Stdout and Stderr are handed to the process as they are, which may keep them, and use
	// them in every way that their kind allows (proc(5), /proc/PID/fd): they are pipes made for it,
	// never somebody else's files. With TTY, Stdin is the terminal's other end: the class makes a
	// pseudo-terminal, copies between Stdin/Stdout and it, and applies Resize. Nil means nothing to
	// read, and output that is dropped.
	Stdin, Stdout, Stderr *os.File
	Resize                <-chan WinSize
	// Timeout ends the process with SIGKILL, which is no error: the ExitStatus says so; 0: none.
	// The end of the context kills it too, and is an error of kind Unavailable.
	Timeout time.Duration
}

// WinSize is the size of a terminal, in characters.
type WinSize = podapi.WinSize

// ExitStatus is how a process ended.
type ExitStatus struct {
	Code   int // 128+Signal when killed
	Signal int
}

// The codes of a process that could not be executed, as shells have them.
const (
	ExitNotExecutable = podapi.ExitNotExecutable
	ExitNotFound      = podapi.ExitNotFound
)

// Registry holds the runtime classes of this daemon by name. The zero value is empty and ready.
type Registry struct {
	mu       sync.RWMutex
	managers map[string]PodManager
	order    []string
}

// Add registers m under its class name; a second one of the same name replaces the first.
func (r *Registry) Add(m PodManager) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.managers == nil {
		r.managers = make(map[string]PodManager)
	}
	name := m.Class().Name
	if _, ok := r.managers[name]; !ok {
		r.order = append(r.order, name)
	}
	r.managers[name] = m
}

// All returns the managers of all classes, in the order of registration.
func (r *Registry) All() []PodManager {
	r.mu.RLock()
	defer r.mu.RUnlock()
	all := make([]PodManager, 0, len(r.order))
	for _, name := range r.order {
		all = append(all, r.managers[name])
	}
	return all
}

// PrepareImage has each class do what it wants to do for an image that has just come.
func (r *Registry) PrepareImage(ctx context.Context, image Image) error {
	var errs []error
	for _, m := range r.All() {
		errs = append(errs, m.PrepareImage(ctx, image))
	}
	return errors.Join(errs...)
}

// ForgetImages has each class remove what it has made for images that are gone.
func (r *Registry) ForgetImages(ctx context.Context) error {
	var errs []error
	for _, m := range r.All() {
		errs = append(errs, m.ForgetImages(ctx))
	}
	return errors.Join(errs...)
}

// Get returns the manager of the class. Unsupported: there is none of that name, or it cannot be
// used on this host (the error says why).
func (r *Registry) Get(class string) (PodManager, error) {
	m, err := r.Find(class)
	if err != nil {
		return nil, err
	}
	if info := m.Class(); !info.Available {
		return nil, pod.Errorf(pod.Unsupported, "cannot use runtime class %q: %s", class, info.Reason)
	}
	return m, nil
}

// Find returns the manager of a class, which may be unavailable: pods that it has made before may
// still run. Unsupported: there is none of that name.
func (r *Registry) Find(class string) (PodManager, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	m, ok := r.managers[class]
	if !ok {
		return nil, pod.Errorf(pod.Unsupported, "cannot use runtime class %q: there is no such class (magikpodctl classes lists them)", class)
	}
	return m, nil
}

// Classes lists what is registered, in the order of registration.
func (r *Registry) Classes() []pod.ClassInfo {
	r.mu.RLock()
	defer r.mu.RUnlock()
	infos := make([]pod.ClassInfo, 0, len(r.order))
	for _, name := range r.order {
		infos = append(infos, r.managers[name].Class())
	}
	return infos
}
