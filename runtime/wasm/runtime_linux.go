package wasm

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/magikrun/magikpod/internal/layertree"
	"github.com/magikrun/magikpod/internal/nsfile"
	"github.com/magikrun/magikpod/internal/wasmform"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/oci"
	"github.com/magikrun/magikpod/runtime/onhost"
	"github.com/magikrun/magikpod/runtime/wasm/engine"
	"github.com/magikrun/magikpod/runtime/wasm/jail"
	"github.com/magikrun/magikpod/shim"
	"github.com/magikrun/magikpod/units"
)

// listenVariable names a guest's sockets.
const listenVariable = "MAGIKPOD_LISTEN_FDS"

// firstListener is the descriptor of the first socket: 0 to 2 are the standard ones and 3 is the
// root directory.
const firstListener = 4

// Config is what a [Runtime] is made from.
type Config struct {
	// Program is the path of magikwasm, ShimPath that of magikshim, and Cache the directory for
	// machine code.
	Program, ShimPath, Cache string
	// Wasmtime is the command that runs components, a name or a path; empty: they are refused.
	Wasmtime string
	// PIDsLimit is how many processes and threads a pod may have; 0: [units.DefaultTasksMax].
	PIDsLimit int64
	// Log gets what a crashed compiler has written, at the level debug. Nil: nobody does.
	Log *slog.Logger
}

// Runtime runs modules. It is an engine.Runtime.
type Runtime struct {
	onhost.Base
	config   Config
	class    pod.ClassInfo
	appArmor bool

	quick, slow chan struct{} // hold one for each compiler that runs

	mu        sync.Mutex
	compiling map[string]*compilation // by path of the module
	digests   map[fileKey][sha256.Size]byte
	refused   map[string]error // why a module can never be compiled, by its path
}

// fileKey is a file as long as nobody changes it. Those of images are never changed.
type fileKey struct {
	path             string
	inode            uint64
	size, sec, nanos int64
}

// maxDigests bounds what is remembered.
const maxDigests = 1024

// New makes one. That a program is missing is no error: Class says so.
func New(config Config) *Runtime {
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	r := &Runtime{
		config: config, class: pod.ClassInfo{Name: pod.ClassWasm, Available: true, Reason: "wazero"}, appArmor: onhost.AppArmor(),
		quick: make(chan struct{}, maxCompilers), slow: make(chan struct{}, maxCompilers),
		compiling: map[string]*compilation{}, digests: map[fileKey][sha256.Size]byte{}, refused: map[string]error{},
	}
	if config.Wasmtime != "" {
		r.class.Reason = "wazero; components: " + config.Wasmtime
		if _, err := exec.LookPath(config.Wasmtime); err != nil {
			r.class.Reason = "wazero; no components: " + config.Wasmtime + " is not installed"
		}
	}
	if fi, err := os.Stat(config.Program); err != nil || fi.Mode()&0o111 == 0 {
		r.class.Available, r.class.Reason = false, config.Program+" is not installed (package magikpod)"
	}
	return r
}

// Class says whether the class can be used.
func (r *Runtime) Class() pod.ClassInfo { return r.class }

// PodLimits are those of the slice of a pod.
func (r *Runtime) PodLimits(p *corev1.Pod) units.Limits {
	return units.PodLimits(p).WithTasks(r.config.PIDsLimit)
}

// Prepare finds the module, has it compiled, and makes the configuration that [jail.Run] reads.
func (r *Runtime) Prepare(ctx context.Context, s runtime.Sandbox, a runtime.Attempt, config runtime.ContainerConfig) (runtime.Launch, error) {
	launch, mounts := onhost.Launch(s, a, config)
	in := oci.Input{
		Pod: config.Pod, Container: config.Container, Image: config.Image, Env: config.Env, Mounts: mounts, Hostname: s.Hostname,
		Namespaces: oci.Namespaces{Network: nsfile.Path(s.Namespaces.Network)}, Host: oci.HostFacts{AppArmor: r.appArmor},
	}
	process, err := oci.Process(in)
	if err != nil {
		return runtime.Launch{}, err
	}
	volumes, err := oci.Volumes(in)
	if err != nil {
		return runtime.Launch{}, err
	}
	out := runtime.Launch{
		Runtime: r.class.Name, Argv: onhost.Argv(r.config.ShimPath, a), OwnPID: s.Namespaces.PID == nil && !config.Pod.Spec.HostPID, Jail: true,
	}
	c, err := r.command(ctx, config, process)
	switch {
	case err != nil && ctx.Err() != nil:
		return runtime.Launch{}, pod.Errorf(pod.Unavailable, "cannot run container %q: %w", config.Container.Name, context.Cause(ctx))
	case err != nil:
		out.Refused = err
		return out, nil
	}
	c.Env, c.Cwd, c.UID, c.GID, c.Groups = environment(config.Container, process), process.Cwd, process.User.UID, process.User.GID, process.User.AdditionalGids
	c.Cache, c.Log, c.Status = r.config.Cache, a.Log, shim.StatusStarted
	c.Root, c.Mounts, c.Listen, c.Sysctls = launch.Rootfs.Target, jailMounts(volumes), listeners(config.Container), oci.Sysctls(in.Pod, in.Namespaces.Network != "")
	if sc := config.Container.SecurityContext; sc != nil && sc.ReadOnlyRootFilesystem != nil {
		c.ReadOnlyRoot = *sc.ReadOnlyRootFilesystem
	}
	if limit, ok := config.Container.Resources.Limits[corev1.ResourceMemory]; ok {
		c.MemoryBytes = limit.Value()
	}
	launch.NetNS, launch.IPCNS, launch.UTSNS = nsfile.Path(s.Namespaces.Network), nsfile.Path(s.Namespaces.IPC), nsfile.Path(s.Namespaces.UTS)
	launch.Argv = []string{r.config.Program, "run", "--config", filepath.Join(a.Bundle, onhost.ConfigFile)}
	launch.Env, launch.Notify = []string{"PATH=/usr/bin:/bin"}, true
	out.FiltersCalls = len(c.Wasmtime) == 0
	out.Files = map[string]any{onhost.ConfigFile: c, onhost.LaunchFile: launch}
	return out, nil
}

// command finds what a process is to run, and makes it ready.
func (r *Runtime) command(ctx context.Context, config runtime.ContainerConfig, process *specs.Process) (c jail.Config, err error) {
	if errs := pod.WasmErrors(&config.Pod.Spec, config.Container, field.NewPath("spec").Child("containers").Key(config.Container.Name)); len(errs) > 0 {
		return c, pod.InvalidError(errs) // a pod of another class, of which single containers are modules
	}
	name, entry, _ := strings.Cut(process.Args[0], "#")
	file, component, err := r.findCommand(config.Image.Rootfs, name, process.Cwd, process.Env)
	c = jail.Config{Module: file, Entry: entry, Args: append([]string{name}, process.Args[1:]...)}
	switch {
	case err != nil:
	case !component:
		err = r.compile(ctx, file)
	case entry != "":
		err = pod.Errorf(pod.Unsupported, "it is a WebAssembly component, of which no other function can be called")
	default:
		if c.Wasmtime, err = engine.Files(ctx, r.config.Wasmtime); err != nil {
			err = pod.Errorf(pod.KindOf(err), "it is a WebAssembly component, and what is to run it cannot: %w", err)
		}
	}
	if err != nil {
		return c, pod.Errorf(pod.KindOf(err), "cannot use %s of image %s: %w", name, config.Image.Reference, err)
	}
	return c, nil
}

// Exec refuses every process.
func (r *Runtime) Exec(_ context.Context, c runtime.Running, _ runtime.Process) (runtime.ExitStatus, error) {
	return runtime.ExitStatus{}, pod.Errorf(pod.Unsupported, "a container of the class %s has no second process", c.Runtime)
}

// environment is the container's, with what a guest must know.
func environment(c *corev1.Container, process *specs.Process) []string {
	env := append(process.Env[:len(process.Env):len(process.Env)], "PWD="+process.Cwd)
	var sockets []string
	open := listeners(c)
	for _, port := range c.Ports {
		i := slices.IndexFunc(open, func(l jail.Listener) bool { return l.Port == int(port.ContainerPort) })
		socket := portName(port) + "=" + strconv.Itoa(firstListener+i)
		if !slices.Contains(sockets, socket) {
			sockets = append(sockets, socket)
		}
	}
	if len(sockets) > 0 {
		env = append(env, listenVariable+"="+strings.Join(sockets, ","))
	}
	return env
}

// listeners are the container's ports, in the manifest's order; one that is published more than
// once is one.
func listeners(c *corev1.Container) []jail.Listener {
	var list []jail.Listener
	for _, port := range c.Ports {
		number := int(port.ContainerPort)
		if !slices.ContainsFunc(list, func(l jail.Listener) bool { return l.Port == number }) {
			list = append(list, jail.Listener{Name: portName(port), Port: number})
		}
	}
	return list
}

func portName(port corev1.ContainerPort) string {
	if port.Name == "" {
		return strconv.Itoa(int(port.ContainerPort))
	}
	return port.Name
}

// jailMounts translates mounts of an OCI spec.
func jailMounts(volumes []specs.Mount) []jail.Mount {
	var mounts []jail.Mount
	for _, m := range volumes {
		mount := jail.Mount{Destination: m.Destination}
		if m.Type == "bind" {
			mount.Source = m.Source
		}
		for _, option := range m.Options {
			switch option {
			case "ro":
				mount.ReadOnly = true
			case "rro":
				mount.ReadOnly, mount.Recursive = true, true
			case "rslave":
				mount.Slave = true
			}
		}
		mounts = append(mounts, mount)
	}
	return mounts
}

// findCommand finds the module that a command names, as a shell would: a name without a slash in
// the directories of $PATH.
func (r *Runtime) findCommand(rootfs runtime.Rootfs, name, cwd string, env []string) (file string, component bool, err error) {
	if strings.Contains(name, "/") {
		if !path.IsAbs(name) {
			name = path.Join(cwd, name)
		}
		return r.findModule(rootfs, name)
	}
	search := ""
	for _, e := range env {
		if value, ok := strings.CutPrefix(e, "PATH="); ok {
			search = value
		}
	}
	for _, dir := range append(strings.Split(search, ":"), cwd) { // images of modules alone have no /bin, and name the file
		if !path.IsAbs(dir) {
			continue
		}
		file, component, err := r.findModule(rootfs, path.Join(dir, name))
		if pod.KindOf(err) != pod.NotFound || err == nil {
			return file, component, err
		}
	}
	return "", false, pod.Errorf(pod.NotFound, "there is no such file in the directories of PATH, %s, nor in %s", search, cwd)
}

// PrepareImage compiles the module that an image runs when nothing else is asked for.
func (r *Runtime) PrepareImage(ctx context.Context, image runtime.Image) error {
	argv := append(image.Config.Entrypoint[:len(image.Config.Entrypoint):len(image.Config.Entrypoint)], image.Config.Cmd...)
	if len(argv) == 0 {
		return nil
	}
	name, _, _ := strings.Cut(argv[0], "#")
	file, component, err := r.findCommand(image.Rootfs, name, path.Join("/", image.Config.WorkingDir), image.Config.Env)
	if err != nil || component {
		return nil // it is not for us, or wasmtime compiles it when it runs
	}
	if err := r.compile(ctx, file); err != nil {
		return pod.Errorf(pod.KindOf(err), "cannot compile %s of image %s: %w", name, image.Reference, err)
	}
	return nil
}

// Wants says whether single containers of a pod of another class are for this one: of a pod that
// asks for it smartly those whose command ends in .wasm.
func (r *Runtime) Wants(config runtime.ContainerConfig) bool {
	all, some := pod.AskedWasm(config.Pod)
	if !all && !some {
		return false
	}
	command, err := oci.Command(oci.Input{Pod: config.Pod, Container: config.Container, Image: config.Image, Env: config.Env})
	if err != nil {
		return false // the other class says why
	}
	name, _, _ := strings.Cut(command[0], "#")
	return all || strings.HasSuffix(name, ".wasm")
}

// findModule returns the path on the host of a file of an image, which is a module, or a component
// that can be run.
func (r *Runtime) findModule(rootfs runtime.Rootfs, name string) (file string, component bool, err error) {
	file, err = layertree.Of(rootfs.Dir, rootfs.Layers).Resolve(name)
	if err != nil {
		return "", false, err
	}
	if file == "" {
		return "", false, pod.Errorf(pod.NotFound, "there is no such file")
	}
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return "", false, err
	}
	if fi.Size() > wasmform.MaxModuleBytes {
		return "", false, pod.Errorf(pod.Exhausted, "it has more than %d bytes", wasmform.MaxModuleBytes)
	}
	header := make([]byte, wasmform.HeaderBytes)
	n, _ := f.ReadAt(header, 0) // a short file has a short header
	component = r.config.Wasmtime != "" && wasmform.FormOf(header[:n]) == wasmform.Component
	if !component {
		if err := wasmform.Check(header[:n]); err != nil {
			return "", false, err
		}
	}
	return file, component, nil
}
