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
	"github.com/magikrun/magikpod/internal/wasmform"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/wasm/engine"
	"github.com/magikrun/magikpod/runtime/wasm/jail"
	"github.com/magikrun/magikpod/shim"
)

// listenVariable tells a guest its sockets.
const listenVariable = "MAGIKPOD_LISTEN_FDS"

// firstListener is the descriptor of the first socket: 0 to 2 are the standard ones and 3 is the root directory.
const firstListener = 4

// Launcher launches containers of the class. It is a native.Launcher.
type Launcher struct {
	program, cache string
	wasmtime       string // runs components; empty: nothing does
	class          pod.ClassInfo

	// Log gets what a crashed compiler has written, at the level debug.
	Log *slog.Logger

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

// NewLauncher makes one. program is the path of magikwasm, cache the directory for machine code; wasmtime is the command that runs components, a name or a path; empty: they are
// refused. That a program is missing is no error: Class says so.
func NewLauncher(program, cache, wasmtime string) *Launcher {
	l := &Launcher{
		program: program, cache: cache, wasmtime: wasmtime, class: pod.ClassInfo{Name: pod.ClassWasm, Available: true, Reason: "wazero"},
		Log: slog.New(slog.DiscardHandler), quick: make(chan struct{}, maxCompilers), slow: make(chan struct{}, maxCompilers),
		compiling: map[string]*compilation{}, digests: map[fileKey][sha256.Size]byte{}, refused: map[string]error{},
	}
	if wasmtime != "" {
		l.class.Reason = "wazero; components: " + wasmtime
		if _, err := exec.LookPath(wasmtime); err != nil {
			l.class.Reason = "wazero; no components: " + wasmtime + " is not installed"
		}
	}
	if fi, err := os.Stat(program); err != nil || fi.Mode()&0o111 == 0 {
		l.class.Available, l.class.Reason = false, program+" is not installed (package magikpod)"
	}
	return l
}

// Validate implements native.Launcher: what no module can have, [pod.Validate] refuses.
func (l *Launcher) Validate(*corev1.Pod) field.ErrorList { return nil }

// Class says whether the class can be used.
func (l *Launcher) Class() pod.ClassInfo { return l.class }

// Prepare finds the module, has it compiled, and makes the configuration that [jail.Run] reads.
func (l *Launcher) Prepare(ctx context.Context, config runtime.ContainerConfig, bundle string, spec *specs.Spec, launch *shim.LaunchConfig) (any, error) {
	if errs := pod.WasmErrors(&config.Pod.Spec, config.Container, field.NewPath("spec").Child("containers").Key(config.Container.Name)); len(errs) > 0 {
		return nil, pod.InvalidError(errs) // a pod of another class, of which single containers are modules
	}
	name, entry, _ := strings.Cut(spec.Process.Args[0], "#")
	file, component, err := l.findCommand(config.Image.Rootfs, name, spec.Process.Cwd, spec.Process.Env)
	var wasmtime []string
	switch {
	case err != nil:
	case !component:
		err = l.compile(ctx, file)
	case entry != "":
		err = pod.Errorf(pod.Unsupported, "it is a WebAssembly component, of which no other function can be called")
	default:
		if wasmtime, err = engine.Files(ctx, l.wasmtime); err != nil {
			err = pod.Errorf(pod.KindOf(err), "it is a WebAssembly component, and what is to run it cannot: %w", err)
		}
	}
	if err != nil {
		return nil, pod.Errorf(pod.KindOf(err), "cannot use %s of image %s: %w", name, config.Image.Reference, err)
	}
	c := jail.Config{
		Wasmtime: wasmtime,
		Module:   file, Entry: entry, Cache: l.cache, Args: append([]string{name}, spec.Process.Args[1:]...), Env: environment(config.Container, spec),
		Root: spec.Root.Path, Cwd: spec.Process.Cwd, ReadOnlyRoot: spec.Root.Readonly, Log: launch.Log, Status: shim.StatusStarted,
		UID: spec.Process.User.UID, GID: spec.Process.User.GID, Groups: spec.Process.User.AdditionalGids, Sysctls: spec.Linux.Sysctl,
		Mounts: volumesOf(config, spec), Listen: listeners(config.Container),
	}
	if limit, ok := config.Container.Resources.Limits[corev1.ResourceMemory]; ok {
		c.MemoryBytes = limit.Value()
	}
	launch.Argv = []string{l.program, "run", "--config", filepath.Join(bundle, "config.json")}
	launch.Env = []string{"PATH=/usr/bin:/bin"}
	launch.Notify = true
	launch.FiltersCalls = len(wasmtime) == 0
	return c, nil
}

// environment is the container's, with what a guest must know.
func environment(c *corev1.Container, spec *specs.Spec) []string {
	env := append(spec.Process.Env[:len(spec.Process.Env):len(spec.Process.Env)], "PWD="+spec.Process.Cwd)
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

// listeners are the container's ports, in the manifest's order; one that is published more than once is one.
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

// volumesOf are the mounts of the spec that are volumes or files of /etc, parents before children; what the kernel shows of itself is not among them.
func volumesOf(config runtime.ContainerConfig, spec *specs.Spec) []jail.Mount {
	wanted := map[string]bool{}
	for _, m := range config.Mounts {
		wanted[path.Clean(m.Destination)] = true
	}
	var mounts []jail.Mount
	for _, m := range spec.Mounts {
		if !wanted[m.Destination] {
			continue
		}
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

// findCommand finds the module that a command names, as a shell would: a name without a slash in the directories of $PATH.
func (l *Launcher) findCommand(rootfs runtime.Rootfs, name, cwd string, env []string) (file string, component bool, err error) {
	if strings.Contains(name, "/") {
		if !path.IsAbs(name) {
			name = path.Join(cwd, name)
		}
		return l.findModule(rootfs, name)
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
		file, component, err := l.findModule(rootfs, path.Join(dir, name))
		if pod.KindOf(err) != pod.NotFound || err == nil {
			return file, component, err
		}
	}
	return "", false, pod.Errorf(pod.NotFound, "there is no such file in the directories of PATH, %s, nor in %s", search, cwd)
}

// PrepareImage compiles the module that an image runs when it is not told what to run.
func (l *Launcher) PrepareImage(ctx context.Context, image runtime.Image) error {
	argv := append(image.Config.Entrypoint[:len(image.Config.Entrypoint):len(image.Config.Entrypoint)], image.Config.Cmd...)
	if len(argv) == 0 {
		return nil
	}
	name, _, _ := strings.Cut(argv[0], "#")
	file, component, err := l.findCommand(image.Rootfs, name, path.Join("/", image.Config.WorkingDir), image.Config.Env)
	if err != nil || component {
		return nil // it is not for us, or wasmtime compiles it when it runs
	}
	if err := l.compile(ctx, file); err != nil {
		return pod.Errorf(pod.KindOf(err), "cannot compile %s of image %s: %w", name, image.Reference, err)
	}
	return nil
}

// Asked implements native.Chooser.
func (l *Launcher) Asked(p *corev1.Pod) (all, some bool) { return pod.AskedWasm(p) }

// Wants implements native.Chooser: of a pod that asks smartly it wants the containers whose command ends in .wasm.
func (l *Launcher) Wants(config runtime.ContainerConfig, spec *specs.Spec) bool {
	all, some := l.Asked(config.Pod)
	name, _, _ := strings.Cut(spec.Process.Args[0], "#")
	return all || some && strings.HasSuffix(name, ".wasm")
}

// findModule returns the path on the host of a file of an image, which is a module, or a component that can be run.
func (l *Launcher) findModule(rootfs runtime.Rootfs, name string) (file string, component bool, err error) {
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
	component = l.wasmtime != "" && wasmform.FormOf(header[:n]) == wasmform.Component
	if !component {
		if err := wasmform.Check(header[:n]); err != nil {
			return "", false, err
		}
	}
	return file, component, nil
}
