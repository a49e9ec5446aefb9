package microvm_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/internal/safepath"
	"github.com/magikrun/magikpod/netsetup"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/engine"
	"github.com/magikrun/magikpod/runtime/microvm"
	"github.com/magikrun/magikpod/tests/host"
	"github.com/magikrun/magikpod/tests/testimage"
	"github.com/magikrun/magikpod/units"
)

// Where make install puts the programs.
const libexec = "/usr/libexec/magikpod"

// patience is how long what a VM does may take: in emulation, on a busy host.
var patience = host.Patience(2 * time.Minute)

// world is the class on a real systemd, with real VMs. When the test ends, nothing may be left of
// its pods.
type world struct {
	t          testing.TB
	manager    *engine.Manager
	network    *netsetup.Manager
	config     engine.Config
	vms        microvm.Config
	image      runtime.Image
	run, state string
	pods       []*corev1.Pod
}

// caches are kept for all tests of this process: kernel and initramfs take a second to make.
var caches string

func TestMain(m *testing.M) {
	host.LoadVMModules()
	code := m.Run()
	if caches != "" {
		_ = os.RemoveAll(caches)
	}
	os.Exit(code)
}

// needsHost skips a test where there is no host as tests/host makes it, with what make install lays out.
func needsHost(t testing.TB) {
	t.Helper()
	if comm, _ := os.ReadFile("/proc/1/comm"); strings.TrimSpace(string(comm)) != "systemd" || os.Geteuid() != 0 {
		t.Skip("needs root, and PID 1 to be systemd (try: make vm-host-test)")
	}
	if _, err := os.Stat(libexec + "/magikagent"); err != nil {
		t.Skip("needs what make install lays out (try: make vm-host-test)")
	}
}

func newWorld(t testing.TB) *world {
	t.Helper()
	needsHost(t)
	w := &world{t: t}
	var err error
	if w.run, err = os.MkdirTemp("/run", "magikpod-test-"); err != nil {
		t.Fatal(err)
	}
	w.state = filepath.Join("/var/lib/magikpod", filepath.Base(w.run))
	if caches == "" {
		caches = filepath.Join("/var/lib/magikpod", "microvm-test-caches")
	}
	t.Cleanup(func() {
		for _, dir := range []string{w.run, w.state} {
			if err := safepath.RemoveAll(context.Background(), dir); err != nil {
				t.Error(err)
			}
		}
	})
	w.image = w.busybox()
	w.vms = microvm.Config{
		StateDir: caches, ShimPath: libexec + "/magikshim", SupervisorPath: libexec + "/magikvmm", AgentPath: libexec + "/magikagent",
		Machine: os.Getenv("MAGIKPOD_TEST_MACHINE"), Accel: host.Accel(), MemoryBytes: 128 << 20, ScratchBytes: 1 << 30, PIDsLimit: 512,
		// Another kernel than the host's, to be tried by hand: a pattern, as /somewhere/boot/vmlinuz-*.
		Kernel: os.Getenv("MAGIKPOD_TEST_KERNEL"),
	}
	w.config = engine.Config{Layout: units.PodLayout{}, RunDir: w.run, StateDir: w.state, ShimPath: libexec + "/magikshim"}
	if w.network, err = netsetup.New(netsetup.Config{StateFile: filepath.Join(w.run, "network.json")}); err != nil {
		t.Fatal(err)
	}
	w.start()
	if class := w.manager.Class(); !class.Available {
		t.Skipf("the class cannot be used here: %s", class.Reason)
	}
	t.Cleanup(w.close)
	return w
}

// busybox unpacks the busybox image.
func (w *world) busybox() runtime.Image {
	w.t.Helper()
	layer := filepath.Join(w.state, "layers", "busybox")
	if err := os.MkdirAll(layer, 0o755); err != nil {
		w.t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-xf", testimage.BusyboxFile(w.t), "-C", layer).CombinedOutput(); err != nil {
		w.t.Fatalf("tar: %v: %s", err, out)
	}
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(layer, name))
		if err != nil {
			w.t.Fatal(err)
		}
		return data
	}
	return runtime.Image{
		Reference: "docker.io/library/busybox:latest", ID: "sha256:" + strings.Repeat("b", 64),
		Config: runtime.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"sh"}},
		Rootfs: runtime.Rootfs{Dir: filepath.Dir(layer), Layers: []string{"busybox"}},
		Passwd: read("etc/passwd"), Group: read("etc/group"),
	}
}

// start makes a manager as a daemon does.
func (w *world) start() {
	w.t.Helper()
	var err error
	if w.config.Units, err = units.Connect(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	w.config.Runtime = microvm.New(w.vms)
	if w.manager, err = engine.New(context.Background(), w.config); err != nil {
		w.t.Fatal(err)
	}
	w.manager.OnChange(func(pod.Ref) {})
}

// restart is what a restart of the daemon does.
func (w *world) restart() {
	w.t.Helper()
	w.manager.Close()
	w.config.Units.Close()
	w.start()
	for _, p := range w.pods {
		if err := w.manager.Adopt(context.Background(), pod.RefOf(p)); err != nil {
			w.t.Fatal(err)
		}
	}
}

// close deletes all pods; then nothing may be left.
func (w *world) close() {
	if w.t.Failed() {
		out, _ := exec.Command("journalctl", "--no-pager", "--quiet", "-n", "60").Output()
		w.t.Logf("the end of the journal:\n%s", out)
	}
	for _, p := range w.pods {
		w.delete(p)
	}
	if err := w.network.Close(); err != nil {
		w.t.Error(err)
	}
	for _, left := range w.leftovers() {
		w.t.Errorf("left: %s", left)
	}
	w.manager.Close()
	w.config.Units.Close()
}

func (w *world) delete(p *corev1.Pod) {
	ctx := context.Background()
	if _, err := w.manager.DeleteSandbox(ctx, pod.RefOf(p), 0); err != nil {
		w.t.Error(err)
	}
	if err := w.network.Teardown(ctx, p.UID); err != nil {
		w.t.Error(err)
	}
	if err := w.manager.Forget(ctx, pod.RefOf(p)); err != nil {
		w.t.Error(err)
	}
}

// leftovers are the files, units, processes and mounts of pods that are there.
func (w *world) leftovers() []string {
	var left []string
	w.config.Units.Sweep()
	names, err := w.config.Units.List(context.Background(), "magikpod*")
	for range 200 {
		if err != nil || len(names) == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
		names, err = w.config.Units.List(context.Background(), "magikpod*")
	}
	if err != nil {
		left = append(left, err.Error())
	}
	left = append(left, names...)
	for _, dir := range []string{w.run + "/pods", w.state + "/pods"} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			left = append(left, filepath.Join(dir, e.Name()))
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), w.run+"/") {
		left = append(left, fmt.Sprintf("mounts on the host (%v)", err))
	}
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range commands {
		if data, err := os.ReadFile(path); err == nil && (strings.Contains(string(data), w.run+"/") || strings.Contains(string(data), "qemu-system")) {
			left = append(left, "process "+strings.ReplaceAll(string(data), "\x00", " "))
		}
	}
	return left
}

// pod makes a pod whose containers a, b, ... run shell scripts.
func (w *world) pod(scripts ...string) *corev1.Pod {
	grace := int64(5)
	uid := fmt.Sprintf("3b%06x-0000-4000-8000-%012x", os.Getpid()&0xffffff, time.Now().UnixNano()&0xffffffffffff)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "vm", Name: fmt.Sprintf("p%d", len(w.pods)), UID: types.UID(uid)},
		Spec:       corev1.PodSpec{TerminationGracePeriodSeconds: &grace},
	}
	for i, script := range scripts {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: string(rune('a' + i)), Command: []string{"sh", "-c", script}})
	}
	w.pods = append(w.pods, p)
	return p
}

// create makes the pod's network and sandbox, as the daemon does: at the same time.
func (w *world) create(p *corev1.Pod, tmpfs ...runtime.Tmpfs) netsetup.Result {
	w.t.Helper()
	ns, err := netsetup.NewNamespace()
	if err != nil {
		w.t.Fatal(err)
	}
	defer ns.Close()
	var result netsetup.Result
	var netErr error
	done := make(chan struct{})
	go func() {
		defer close(done)
		result, netErr = w.network.Setup(w.t.Context(), netsetup.PodNetwork{UID: p.UID, Name: p.Name}, ns)
	}()
	err = w.manager.CreateSandbox(w.t.Context(), runtime.SandboxConfig{
		Pod: p, Network: runtime.Network{NetNS: ns, Hostname: p.Name}, LogDir: w.logDir(p), SharedTmpfs: tmpfs,
	})
	<-done
	if err != nil || netErr != nil {
		w.t.Fatal(err, netErr)
	}
	return result
}

func (w *world) logDir(p *corev1.Pod) string { return filepath.Join(w.run, "logs", string(p.UID)) }

// attempt runs a container.
func (w *world) attempt(p *corev1.Pod, name string, attempt int, mounts ...runtime.Mount) error {
	i := slices.IndexFunc(p.Spec.Containers, func(c corev1.Container) bool { return c.Name == name })
	return w.manager.RunContainer(w.t.Context(), runtime.ContainerConfig{
		Pod: p, Container: &p.Spec.Containers[i], Attempt: attempt, Image: w.image, Mounts: mounts,
		Env: []runtime.EnvVar{{Name: "ATTEMPT", Value: fmt.Sprint(attempt)}},
	})
}

// up makes a pod with all of its containers.
func (w *world) up(p *corev1.Pod, mounts ...runtime.Mount) netsetup.Result {
	w.t.Helper()
	result := w.create(p)
	for _, c := range p.Spec.Containers {
		if err := w.attempt(p, c.Name, 0, mounts...); err != nil {
			w.t.Fatal(err)
		}
	}
	return result
}

func (w *world) observe(p *corev1.Pod) pod.RuntimeState {
	w.t.Helper()
	state, err := w.manager.Observe(w.t.Context(), pod.RefOf(p))
	if err != nil {
		w.t.Fatal(err)
	}
	return state
}

// await waits until a container is as wanted.
func (w *world) await(p *corev1.Pod, name string, stage pod.ContainerStage) pod.ContainerState {
	w.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if c := w.observe(p).Containers[name]; c.Stage == stage {
			return c
		}
	}
	w.t.Fatalf("container %s is %+v, and not %s", name, w.observe(p).Containers[name], stage)
	return pod.ContainerState{}
}

// log waits for a line in the log of an attempt, and returns all of it.
func (w *world) log(p *corev1.Pod, name string, attempt int, line string) string {
	w.t.Helper()
	path := filepath.Join(w.logDir(p), name, fmt.Sprintf("%d.log", attempt))
	var data []byte
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if data, _ = os.ReadFile(path); strings.Contains(string(data), line) {
			return string(data)
		}
	}
	w.t.Fatalf("there is no %q in the log of %s:\n%s", line, name, data)
	return ""
}

// exec runs a shell script in a container and returns what it writes.
func (w *world) exec(p *corev1.Pod, name, script string) (string, runtime.ExitStatus) {
	w.t.Helper()
	f, err := os.CreateTemp(w.t.TempDir(), "out")
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	status, err := w.manager.Exec(w.t.Context(), pod.RefOf(p), name, runtime.Process{Args: []string{"sh", "-c", script}, Stdout: f, Stderr: f, Timeout: patience})
	if err != nil {
		w.t.Fatal(err)
	}
	data, err := os.ReadFile(f.Name())
	if err != nil {
		w.t.Fatal(err)
	}
	return string(data), status
}

func quantity(text string) resource.Quantity { return resource.MustParse(text) }

// kill kills the process of the pod's VM, as a crash of the VMM does.
func (w *world) kill(p *corev1.Pod) {
	w.t.Helper()
	processes := w.vm(p).processes()
	for _, field := range processes {
		pid, err := strconv.Atoi(field)
		command, _ := os.ReadFile("/proc/" + field + "/cmdline")
		if err == nil && strings.Contains(string(command), "qemu-system") {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				w.t.Fatal(err)
			}
			return
		}
	}
	w.t.Fatalf("no monitor among the processes %q", processes)
}
