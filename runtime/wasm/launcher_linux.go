package wasm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/magikrun/magikpod/agent"
	"github.com/magikrun/magikpod/internal/safepath"
	"github.com/magikrun/magikpod/internal/wasmform"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/wasm/engine"
	"github.com/magikrun/magikpod/runtime/wasm/jail"
)

// listenVariable tells a guest its sockets.
const listenVariable = "MAGIKPOD_LISTEN_FDS"

// firstListener is the descriptor of the first socket: 0 to 2 are the standard ones and 3 is the root directory.
const firstListener = 4

// maxCompilers bounds the compilations at the same time: each takes all CPUs that it gets, and, of a hostile module, up to 4 GiB.
const maxCompilers = 2

// compileTimeout bounds the compilation of one module.
const compileTimeout = 10 * time.Minute

// Launcher launches containers of the class. It is a native.Launcher.
type Launcher struct {
	program, cache string
	wasmtime       string // runs components; empty: nothing does
	class          pod.ClassInfo

	compilers chan struct{} // holds one for each that runs

	mu        sync.Mutex
	compiling map[string]*compilation // by path of the module
	digests   map[fileKey][sha256.Size]byte
}

// fileKey is a file as long as nobody changes it. Those of images are never changed.
type fileKey struct {
	path             string
	inode            uint64
	size, sec, nanos int64
}

// maxDigests bounds what is remembered.
const maxDigests = 1024

// compilation is one that several containers may wait for.
type compilation struct {
	done chan struct{}
	err  error
}

// NewLauncher makes one. program is the path of magikwasm, cache the directory for machine code; wasmtime is the command that runs components, a name or a path; empty: they are
// refused. That a program is missing is no error: Class says so.
func NewLauncher(program, cache, wasmtime string) *Launcher {
	l := &Launcher{
		program: program, cache: cache, wasmtime: wasmtime, class: pod.ClassInfo{Name: ClassName, Available: true, Reason: "wazero"},
		compilers: make(chan struct{}, maxCompilers), compiling: map[string]*compilation{}, digests: map[fileKey][sha256.Size]byte{},
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

// Validate implements native.Launcher: it is the function of that name.
func (l *Launcher) Validate(p *corev1.Pod) field.ErrorList { return Validate(p) }

// Class says whether the class can be used.
func (l *Launcher) Class() pod.ClassInfo { return l.class }

// Prepare finds the module, has it compiled, and makes the configuration that [jail.Run] reads.
func (l *Launcher) Prepare(ctx context.Context, config runtime.ContainerConfig, bundle string, spec *specs.Spec, launch *agent.LaunchConfig) (any, error) {
	if errs := validateContainer(config.Pod, config.Container, field.NewPath("spec").Child("containers").Key(config.Container.Name)); len(errs) > 0 {
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
		Root: spec.Root.Path, Cwd: spec.Process.Cwd, ReadOnlyRoot: spec.Root.Readonly, Log: launch.Log, Status: agent.StatusStarted,
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

// Asked implements native.Chooser: it is the function of that name.
func (l *Launcher) Asked(p *corev1.Pod) (all, some bool) { return Asked(p) }

// Wants implements native.Chooser: of a pod that asks smartly it wants the containers whose command ends in .wasm.
func (l *Launcher) Wants(config runtime.ContainerConfig, spec *specs.Spec) bool {
	all, some := l.Asked(config.Pod)
	name, _, _ := strings.Cut(spec.Process.Args[0], "#")
	return all || some && strings.HasSuffix(name, ".wasm")
}

// findModule returns the path on the host of a module in an image: in the uppermost layer that has the path. Symlinks are followed inside a layer.
func (l *Launcher) findModule(rootfs runtime.Rootfs, name string) (file string, component bool, err error) {
	for i := len(rootfs.Layers) - 1; i >= 0; i-- {
		layer := filepath.Join(rootfs.Dir, rootfs.Layers[i])
		found, component, err := l.moduleIn(layer, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return found, component, err
	}
	return "", false, pod.Errorf(pod.NotFound, "there is no such file")
}

// moduleIn checks that a file of a layer is a module, or a component that can be run, and returns its path.
func (l *Launcher) moduleIn(layer, name string) (file string, component bool, err error) {
	root, err := safepath.OpenRoot(layer)
	if err != nil {
		return "", false, err
	}
	defer root.Close()
	f, err := safepath.Open(root, strings.TrimPrefix(name, "/"), os.O_RDONLY|unix.O_NONBLOCK, 0) // a layer may have a FIFO there
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return "", false, err
	}
	if !fi.Mode().IsRegular() {
		return "", false, pod.Errorf(pod.Invalid, "it is no regular file")
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
	file, err = os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	return file, component, err
}

// cached says whether the machine code of a module is in the cache.
func (l *Launcher) cached(file string) bool {
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return false
	}
	key := fileKey{file, st.Ino, st.Size, int64(st.Mtim.Sec), int64(st.Mtim.Nsec)}
	l.mu.Lock()
	sum, known := l.digests[key]
	l.mu.Unlock()
	if !known {
		module, err := jail.ReadModule(file)
		if err != nil {
			return false
		}
		sum = sha256.Sum256(module)
		l.mu.Lock()
		if len(l.digests) >= maxDigests {
			clear(l.digests)
		}
		err = noteSource(l.cache, sum, file)
		if err == nil {
			l.digests[key] = sum
		}
		l.mu.Unlock()
		if err != nil {
			return false
		}
	}
	return engine.Cached(l.cache, sum)
}

// compile fills the cache by a process of its own, once for all containers that wait for the same module.
func (l *Launcher) compile(ctx context.Context, file string) error {
	if l.cached(file) {
		return nil
	}
	l.mu.Lock()
	c := l.compiling[file]
	if c == nil {
		c = &compilation{done: make(chan struct{})}
		l.compiling[file] = c
		go func() {
			c.err = l.runCompiler(file)
			l.mu.Lock()
			delete(l.compiling, file)
			l.mu.Unlock()
			close(c.done)
		}()
	}
	l.mu.Unlock()
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return pod.WithKind(pod.Unavailable, context.Cause(ctx))
	}
}

func (l *Launcher) runCompiler(file string) error {
	ctx, cancel := context.WithTimeout(context.Background(), compileTimeout)
	defer cancel()
	l.compilers <- struct{}{}
	defer func() { <-l.compilers }()
	// The compiler ends with the daemon. The kernel means the thread that has started it, which must not end before.
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, l.program, "compile", "--cache", l.cache, file)
	cmd.Env = []string{}
	cmd.WaitDelay = 10 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr limited
	cmd.Stderr = &stderr
	err := cmd.Run()
	if err == nil {
		return nil
	}
	if text := strings.TrimSpace(stderr.String()); text != "" {
		return pod.Errorf(pod.Invalid, "%s", text)
	}
	return pod.Errorf(pod.Internal, "cannot compile it: %w", err)
}

// limited keeps the first bytes of what is written to it.
type limited struct{ bytes.Buffer }

func (b *limited) Write(p []byte) (int, error) {
	const limit = 4096
	if room := limit - b.Len(); room > 0 {
		_, _ = b.Buffer.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}
