package wasm_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/internal/safepath"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/engine"
	"github.com/magikrun/magikpod/runtime/wasm"
	"github.com/magikrun/magikpod/runtime/wasm/jail"
	"github.com/magikrun/magikpod/shim"
	"github.com/magikrun/magikpod/tests/testwasm"
	"github.com/magikrun/magikpod/units"
)

// cacheDir is one cache for all tests of this process.
var cacheDir string

// The test binary is magikshim and magikwasm when it is called like them.
func TestMain(m *testing.M) {
	args := os.Args[1:]
	switch {
	case len(args) == 3 && args[0] == "pause":
		os.Exit(shim.Pause(args[2]))
	case len(args) == 3 && args[0] == "launch":
		os.Exit(shim.Launch(args[2]))
	case len(args) == 3 && args[0] == "run":
		os.Exit(jail.Run(args[2]))
	case len(args) == 4 && args[0] == "compile":
		crash(args[3])
		os.Exit(jail.Compile(args[2], args[3]))
	case len(args) > 3 && args[0] == "run" && args[1] == "-C":
		os.Exit(standIn(args))
	case len(args) == 1 && args[0] == shim.ReapCommand:
		os.Exit(shim.Reap())
	}
	dir, err := os.MkdirTemp("", "wasm-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	cacheDir = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// world is a manager of the class on a real systemd.
type world struct {
	t          *testing.T
	manager    *engine.Manager
	config     engine.Config
	image      runtime.Image
	run, state string
	pods       []*corev1.Pod
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if comm, _ := os.ReadFile("/proc/1/comm"); strings.TrimSpace(string(comm)) != "systemd" || os.Geteuid() != 0 {
		t.Skip(`needs root, and PID 1 to be systemd (try: make host-test PKG=./runtime/wasm)`)
	}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_GETPID, 0, 0, 0); errno == syscall.ENOTSUP {
		t.Skip("a program with cgo cannot drop privileges in all threads; magikwasm has none (try: CGO_ENABLED=0)")
	}
	w := &world{t: t}
	var err error
	if w.run, err = os.MkdirTemp("/run", "magikpod-test-"); err != nil {
		t.Fatal(err)
	}
	w.state = filepath.Join("/var/lib/magikpod", filepath.Base(w.run))
	layer := filepath.Join(w.state, "layers", "wasm")
	if err := os.MkdirAll(layer, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, dir := range []string{w.run, w.state} {
			if err := safepath.RemoveAll(context.Background(), dir); err != nil {
				t.Error(err)
			}
		}
	})
	for name, data := range map[string][]byte{
		"guest.wasm": testwasm.Guest(t), "trap.wasm": testwasm.Trap(), "component.wasm": testwasm.Component(), "library.wasm": testwasm.Function("other"),
		"import.wasm": testwasm.Import("wasi_snapshot_preview1", "fd_fly"), "huge.wasm": testwasm.Memory(2000), "script": []byte("#!/bin/sh\nexit 0\n"),
		"preview1.wasm": testwasm.Preview1(t), "bin/busybox": testwasm.Busybox(t),
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(layer, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(layer, name), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range testwasm.Applets {
		if err := os.Symlink("busybox", filepath.Join(layer, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	w.image = runtime.Image{
		Reference: "example.com/guest:1", ID: "sha256:" + strings.Repeat("a", 64), Config: runtime.ImageConfig{Entrypoint: []string{"/guest.wasm"}},
		Rootfs: runtime.Rootfs{Dir: filepath.Dir(layer), Layers: []string{"wasm"}},
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w.config = engine.Config{Layout: units.PodLayout{}, RunDir: w.run, StateDir: w.state, ShimPath: program, Runtime: wasm.New(wasm.Config{Program: program, ShimPath: program, Cache: cacheDir})}
	w.start()
	t.Cleanup(w.close)
	return w
}

// start makes a manager as a daemon does.
func (w *world) start() {
	w.t.Helper()
	var err error
	if w.config.Units, err = units.Connect(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	if w.manager, err = engine.New(context.Background(), w.config); err != nil {
		w.t.Fatal(err)
	}
	w.manager.OnChange(func(pod.Ref) {})
}

// restart is what a restart of the daemon does.
func (w *world) restart() {
	w.manager.Close()
	w.config.Units.Close()
	w.start()
}

// close deletes all pods; then nothing may be left.
func (w *world) close() {
	ctx := context.Background()
	for _, p := range w.pods {
		if _, err := w.manager.DeleteSandbox(ctx, pod.RefOf(p), 0); err != nil {
			w.t.Error(err)
		}
		if err := w.manager.Forget(ctx, pod.RefOf(p)); err != nil {
			w.t.Error(err)
		}
	}
	if left := w.left(); len(left) > 0 {
		w.t.Errorf("left on the host: %v", left)
	}
	w.manager.Close()
	w.config.Units.Close()
}

// pod makes a pod whose containers a, b, ... run commands of the guest.
func (w *world) pod(commands ...string) *corev1.Pod {
	grace := int64(30)
	uid := fmt.Sprintf("3a%06x-0000-4000-8000-%012x", os.Getpid()&0xffffff, time.Now().UnixNano()&0xffffffffffff)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "wasm", Name: fmt.Sprintf("p%d", len(w.pods)), UID: types.UID(uid)},
		Spec:       corev1.PodSpec{TerminationGracePeriodSeconds: &grace},
	}
	for i, command := range commands {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: string(rune('a' + i)), Args: strings.Fields(command)})
	}
	w.pods = append(w.pods, p)
	return p
}

func (w *world) create(p *corev1.Pod, ns *os.File, tmpfs ...runtime.Tmpfs) {
	w.t.Helper()
	config := runtime.SandboxConfig{
		Pod: p, Network: runtime.Network{Host: ns == nil, NetNS: ns, Hostname: p.Name}, LogDir: filepath.Join(w.run, "logs", string(p.UID)), SharedTmpfs: tmpfs,
	}
	if err := w.manager.CreateSandbox(w.t.Context(), config); err != nil {
		w.t.Fatal(err)
	}
}

// attempt runs a container.
func (w *world) attempt(p *corev1.Pod, i, attempt int, mounts ...runtime.Mount) error {
	c := &p.Spec.Containers[i]
	env := []runtime.EnvVar{{Name: "ATTEMPT", Value: strconv.Itoa(attempt)}}
	return w.manager.RunContainer(w.t.Context(), runtime.ContainerConfig{Pod: p, Container: c, Attempt: attempt, Image: w.image, Env: env, Mounts: mounts})
}

func (w *world) await(p *corev1.Pod, name string, stage pod.ContainerStage) pod.ContainerState {
	w.t.Helper()
	var last pod.ContainerState
	for range 3000 {
		state, err := w.manager.Observe(w.t.Context(), pod.RefOf(p))
		if err != nil {
			w.t.Fatal(err)
		}
		if last = state.Containers[name]; last.Stage == stage {
			return last
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Fatalf("container %s is %+v, and not %s; its log: %s", name, last, stage, w.log(p, name, 0))
	return last
}

// result runs a container to its end in a pod of its own.
func (w *world) result(change func(*corev1.Pod), command string, mounts ...runtime.Mount) (pod.ContainerState, string) {
	w.t.Helper()
	p := w.pod(command)
	if change != nil {
		change(p)
	}
	w.create(p, nil)
	if err := w.attempt(p, 0, 0, mounts...); err != nil {
		w.t.Fatal(err)
	}
	state := w.await(p, "a", pod.ContainerExited)
	return state, w.log(p, "a", 0)
}

// log is what a container has written, when it has ended.
func (w *world) log(p *corev1.Pod, name string, attempt int) string {
	last := ""
	for range 30 {
		var text strings.Builder
		data, _ := os.ReadFile(filepath.Join(w.run, "logs", string(p.UID), name, strconv.Itoa(attempt)+".log"))
		for line := range strings.Lines(string(data)) {
			if parts := strings.SplitN(line, " ", 4); len(parts) == 4 {
				text.WriteString(parts[3])
			}
		}
		if text.Len() > 0 && text.String() == last {
			break // nothing has come for a while
		}
		last = text.String()
		time.Sleep(100 * time.Millisecond)
	}
	return last
}

func TestExitCodes(t *testing.T) {
	w := newWorld(t)
	for command, code := range map[string]int{"exit 0": 0, "exit 42": 42, "exit 255": 255} {
		if state, log := w.result(nil, command); state.ExitCode != code || state.StartedAt.IsZero() || state.FinishedAt.Before(state.StartedAt) {
			t.Errorf("%s: %+v, log %q", command, state, log)
		}
	}
	state, log := w.result(func(p *corev1.Pod) { p.Spec.Containers[0].Command = []string{"/trap.wasm"} }, "")
	if state.ExitCode != 134 || state.Reason != pod.ReasonError || !strings.Contains(log, "unreachable") {
		t.Errorf("a trap: %+v, log %q", state, log)
	}
}

// TestStartErrors: what can never run is a failed start, before anything of it runs, with the reason.
func TestStartErrors(t *testing.T) {
	w := newWorld(t)
	for program, text := range map[string]string{
		"/missing.wasm": "no such file", "/component.wasm": "component", "/script": "no WebAssembly",
		"/import.wasm": "fd_fly", "/library.wasm": "no function _start", "/guest.wasm#missing": "no function missing", "/huge.wasm": "memory",
	} {
		p := w.pod("")
		p.Spec.Containers[0].Command = []string{program}
		p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("100Mi")}
		w.create(p, nil)
		err := w.attempt(p, 0, 0)
		state := w.await(p, "a", pod.ContainerExited)
		if err == nil || !strings.Contains(err.Error(), text) || state.Reason != pod.ReasonStartError || !strings.Contains(state.Message, text) {
			t.Errorf("%s: %v, %+v", program, err, state)
		}
	}
}

func TestEnvironment(t *testing.T) {
	w := newWorld(t)
	_, log := w.result(func(p *corev1.Pod) {
		p.Spec.Containers[0].WorkingDir = "/work"
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 18123}, {Name: "again", ContainerPort: 18123}, {ContainerPort: 18124}}
	}, "args -- env")
	for _, want := range []string{"/guest.wasm|args|--|env\n", "ATTEMPT=0\n", "HOSTNAME=p0\n", "PWD=/work\n", "MAGIKPOD_LISTEN_FDS=http=4,again=4,18124=5\n"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in %q", want, log)
		}
	}
}

func TestVolumes(t *testing.T) {
	w := newWorld(t)
	volume, other := t.TempDir(), t.TempDir()
	for _, dir := range []string{volume, other} {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(other, "in"), []byte("data\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	mounts := []runtime.Mount{
		{Source: volume, Destination: "/data"}, {Source: other, Destination: "/ro", ReadOnly: true}, {Source: other + "/in", Destination: "/etc/file", ReadOnly: true},
		{Destination: "/tmpfs"},
	}
	_, log := w.result(nil, "read /ro/in -- read /etc/file -- write /data/out x -- write /tmpfs/f y -- read /tmpfs/f -- write /own z -- read /own", mounts...)
	data, err := os.ReadFile(volume + "/out")
	if err != nil || string(data) != "x" || !strings.HasPrefix(log, "data\ndata\n") || !strings.Contains(log, "yz") {
		t.Errorf("file %q, %v; log %q", data, err, log)
	}
	for _, command := range []string{"write /ro/new x", "append /ro/in x", "append /etc/file x"} {
		if state, log := w.result(nil, command, mounts...); state.ExitCode != 1 || !strings.Contains(log, "ead-only") {
			t.Errorf("%s: %+v, log %q", command, state, log)
		}
	}
	yes := true
	readOnly := func(p *corev1.Pod) {
		p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{ReadOnlyRootFilesystem: &yes}
	}
	if state, log := w.result(readOnly, "write /new x", mounts...); state.ExitCode != 1 || !strings.Contains(log, "ead-only") {
		t.Errorf("a read-only root: %+v, log %q", state, log)
	}
	if state, log := w.result(readOnly, "write /data/more x", mounts...); state.ExitCode != 0 {
		t.Errorf("a volume in a read-only root: %+v, log %q", state, log)
	}
}

// TestNoDevices: what is a device in the image is none to a module, whatever the unit's device
// rules are.
func TestNoDevices(t *testing.T) {
	w := newWorld(t)
	device := filepath.Join(w.state, "layers", "wasm", "null")
	if err := errors.Join(unix.Mknod(device, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), os.Chmod(device, 0o666)); err != nil {
		t.Fatal(err)
	}
	if state, log := w.result(nil, "read /null"); state.ExitCode != 1 || !strings.Contains(log, "null") {
		t.Errorf("a device of the image: %+v, log %q", state, log)
	}
}

// TestFindsModule: a module is found as the container sees its image, through all layers.
func TestFindsModule(t *testing.T) {
	w := newWorld(t)
	layers := filepath.Join(w.state, "layers")
	upper := filepath.Join(layers, "upper")
	if err := errors.Join(os.MkdirAll(filepath.Join(upper, "sub"), 0o755), os.Symlink("../guest.wasm", filepath.Join(upper, "sub", "link")),
		os.MkdirAll(filepath.Join(layers, "wasm", "sub"), 0o755), os.WriteFile(filepath.Join(layers, "wasm", "sub", "hidden.wasm"), testwasm.Trap(), 0o644),
		unix.Setxattr(filepath.Join(upper, "sub"), "trusted.overlay.opaque", []byte("y"), 0), unix.Mknod(filepath.Join(upper, "trap.wasm"), unix.S_IFCHR, 0)); err != nil {
		t.Fatal(err)
	}
	w.image.Rootfs.Layers = append(w.image.Rootfs.Layers, "upper")
	link := func(p *corev1.Pod) { p.Spec.Containers[0].Command = []string{"/sub/link"} }
	if state, log := w.result(link, "echo found"); state.ExitCode != 0 || log != "found\n" {
		t.Errorf("a link to a lower layer: %+v, log %q", state, log)
	}
	for _, gone := range []string{"/sub/hidden.wasm", "/trap.wasm"} {
		p := w.pod("")
		p.Spec.Containers[0].Command = []string{gone}
		w.create(p, nil)
		if err := w.attempt(p, 0, 0); pod.KindOf(err) != pod.NotFound {
			t.Errorf("%s, which an upper layer has removed: %v", gone, err)
		}
	}
}

// TestHostileGuest: no walk leads to the host, to processes, or to another pod's volumes.
func TestHostileGuest(t *testing.T) {
	w := newWorld(t)
	volume := t.TempDir()
	secret := filepath.Join(w.state, "other-pods-volume")
	if err := os.WriteFile(secret, []byte("topsecret"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"absolute": secret, "relative": strings.Repeat("../", 20) + secret} {
		if err := os.Symlink(target, filepath.Join(volume, name)); err != nil {
			t.Fatal(err)
		}
	}
	state, log := w.result(nil, "escape /data "+secret+" -- escape / "+secret+" -- escape /data /etc/machine-id -- ls /", runtime.Mount{Source: volume, Destination: "/data"})
	if state.ExitCode != 0 || strings.Contains(log, "ESCAPED") || strings.Contains(log, "topsecret") || strings.Count(log, "tried") != 3 {
		t.Errorf("%+v, log %q", state, log)
	}
	for _, name := range []string{"proc", "sys", "run", "usr"} {
		if strings.Contains(log, "\n"+name+"\n") {
			t.Errorf("the guest sees /%s: %q", name, log)
		}
	}
	// The guest could make the links: it is the jail that holds, not the engine.
	if _, err := os.Lstat(volume + "/link1"); err != nil {
		t.Error(err)
	}
}

// TestJail looks at the process of a running guest.
func TestJail(t *testing.T) {
	w := newWorld(t)
	p := w.pod("sleep 3600000")
	uid, gid := int64(1234), int64(5678)
	p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &uid, RunAsGroup: &gid}
	w.create(p, networkNamespace(t))
	if err := w.attempt(p, 0, 0); err != nil {
		t.Fatal(err)
	}
	state := w.await(p, "a", pod.ContainerRunning)
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", state.PID))
	if err != nil || len(threads) < 2 {
		t.Fatalf("threads %v, %v", threads, err)
	}
	for _, file := range threads {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // it has just ended
		}
		status := string(data)
		for _, want := range []string{
			"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000",
			"NoNewPrivs:\t1", "Seccomp:\t2", "Uid:\t1234\t1234\t1234\t1234", "Gid:\t5678\t5678\t5678\t5678",
		} {
			if !strings.Contains(status, want+"\n") {
				t.Errorf("%s has no %q:\n%s", file, want, status)
			}
		}
	}
	for _, ns := range []string{"net", "mnt", "ipc", "uts"} {
		mine, _ := os.Readlink("/proc/self/ns/" + ns)
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", state.PID, ns))
		if err != nil || its == mine {
			t.Errorf("it is in the host's %s namespace (%v)", ns, err)
		}
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", state.PID))
	if err != nil || strings.Count(string(mounts), "\n") != 1 {
		t.Errorf("its mounts: %s %v", mounts, err)
	}
}

// TestNotDumpable: root of a container with hostPID, which has more capabilities than a guest of
// root, does not get what the guest has.
func TestNotDumpable(t *testing.T) {
	w := newWorld(t)
	p := w.pod("sleep 3600000")
	w.create(p, networkNamespace(t))
	if err := w.attempt(p, 0, 0); err != nil {
		t.Fatal(err)
	}
	state := w.await(p, "a", pod.ContainerRunning)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", state.PID))
	if err != nil || !strings.Contains(string(status), "Uid:\t0\t0\t0\t0\n") {
		t.Fatalf("the guest is not root: %v\n%s", err, status)
	}
	out, err := exec.Command("setpriv", "--bounding-set=-all,+dac_override,+chown", "--inh-caps=-all", "ls", fmt.Sprintf("/proc/%d/root/", state.PID)).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "Permission denied") {
		t.Errorf("the guest can be looked into: %v\n%s", err, out)
	}
}

func TestStop(t *testing.T) {
	w := newWorld(t)
	p := w.pod("sleep 3600000", "spin")
	w.create(p, nil)
	for i, name := range []string{"a", "b"} {
		if err := w.attempt(p, i, 0); err != nil {
			t.Fatal(err)
		}
		before := time.Now()
		if err := w.manager.StopContainer(t.Context(), pod.RefOf(p), name, 30*time.Second); err != nil {
			t.Error(err)
		}
		state := w.await(p, name, pod.ContainerExited)
		if took := time.Since(before); state.ExitCode != 143 || state.Signal != 15 || took > 20*time.Second {
			t.Errorf("%s: %+v after %s", name, state, took)
		}
	}
	if err := w.attempt(p, 0, 1); err != nil {
		t.Fatal(err)
	}
	if state := w.await(p, "a", pod.ContainerRunning); state.Attempt != 1 {
		t.Errorf("the next attempt: %+v", state)
	}
}

// TestSignals: a signal that ends a process ends the guest, whatever Go's runtime would make of it,
// and though the guest computes all the time.
func TestSignals(t *testing.T) {
	w := newWorld(t)
	p := w.pod("spin")
	w.create(p, nil)
	for i, sig := range []syscall.Signal{unix.SIGQUIT, unix.SIGUSR1, unix.SIGALRM, unix.SIGHUP, 37} {
		if err := w.attempt(p, 0, i); err != nil {
			t.Fatal(err)
		}
		if err := w.manager.SignalContainer(t.Context(), pod.RefOf(p), "a", sig); err != nil {
			t.Fatal(err)
		}
		if state := w.await(p, "a", pod.ContainerExited); state.ExitCode != 128+int(sig) || state.Signal != int(sig) {
			t.Errorf("signal %d: %+v", int(sig), state)
		}
	}
}

func TestMemory(t *testing.T) {
	w := newWorld(t)
	limit := func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("128Mi")}
	}
	if state, log := w.result(limit, "alloc 16"); state.ExitCode != 0 {
		t.Errorf("enough: %+v, %q", state, log)
	}
	if state, log := w.result(limit, "alloc 512"); state.ExitCode == 0 || strings.Contains(log, "allocated") {
		t.Errorf("not enough: %+v, %q", state, log)
	}
}

// TestListener: a guest serves on a port of its pod, below 1024 too.
func TestListener(t *testing.T) {
	w := newWorld(t)
	p := w.pod("serve 4")
	uid := int64(1000)
	p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &uid}
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80}}
	ns := networkNamespace(t)
	w.create(p, ns)
	if err := w.attempt(p, 0, 0); err != nil {
		t.Fatal(err)
	}
	if answer, err := askIn(ns, 80); answer != "hello from wasm: ping" {
		t.Errorf("the guest answered %q, %v; log %q", answer, err, w.log(p, "a", 0))
	}
}

// TestLaterDaemon: a guest goes on without a daemon, and the next one knows how it ended.
func TestLaterDaemon(t *testing.T) {
	w := newWorld(t)
	p := w.pod("sleep 3600000", "exit 7")
	w.create(p, nil)
	for i := range 2 {
		if err := w.attempt(p, i, 0); err != nil {
			t.Fatal(err)
		}
	}
	before := w.await(p, "a", pod.ContainerRunning)
	w.await(p, "b", pod.ContainerExited)
	w.restart()
	if err := w.manager.Adopt(t.Context(), pod.RefOf(p)); err != nil {
		t.Fatal(err)
	}
	if after := w.await(p, "a", pod.ContainerRunning); after.PID != before.PID || after.ID != before.ID {
		t.Errorf("it was %+v and is %+v", before, after)
	}
	if state := w.await(p, "b", pod.ContainerExited); state.ExitCode != 7 {
		t.Errorf("the ended one: %+v", state)
	}
	if err := w.attempt(p, 1, 1); err != nil {
		t.Error(err)
	}
	_, err := w.manager.Exec(t.Context(), pod.RefOf(p), "a", runtime.Process{Args: []string{"true"}})
	if pod.KindOf(err) != pod.Unsupported {
		t.Errorf("exec: %v", err)
	}
}

// inNamespace calls do in a network namespace.
func inNamespace(ns *os.File, do func() error) error {
	done := make(chan error, 1)
	go func() {
		goruntime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- do()
	}()
	return <-done
}

// networkNamespace makes a network namespace with a loopback interface.
func networkNamespace(t *testing.T) *os.File {
	t.Helper()
	var f *os.File
	done := make(chan error, 1)
	go func() {
		goruntime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			f, err = os.Open("/proc/thread-self/ns/net")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	err := inNamespace(f, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		request, err := unix.NewIfreq("lo")
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_UP)
		return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// askIn sends a word to a port in a network namespace, once it is open.
func askIn(ns *os.File, port int) (string, error) {
	answer := make([]byte, len("hello from wasm: ping"))
	err := inNamespace(ns, func() error {
		fd := -1
		var err error
		for range 500 {
			if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
				return err
			}
			if err = unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err == nil {
				break
			}
			unix.Close(fd)
			time.Sleep(20 * time.Millisecond)
		}
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "socket")
		conn, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.WriteString(conn, "ping"); err != nil {
			return err
		}
		_, err = io.ReadFull(conn, answer)
		return err
	})
	return string(answer), err
}
