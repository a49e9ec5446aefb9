package engine

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/native"
	"github.com/magikrun/magikpod/shim"
	"github.com/magikrun/magikpod/tests/testimage"
	"github.com/magikrun/magikpod/units"
)

// The test binary is magikshim when it is called like it.
func TestMain(m *testing.M) {
	args := os.Args[1:]
	switch {
	case len(args) == 3 && args[0] == "pause" && args[1] == "--config":
		os.Exit(shim.Pause(args[2]))
	case len(args) == 3 && args[0] == "launch" && args[1] == "--config":
		os.Exit(shim.Launch(args[2]))
	case len(args) == 2 && args[0] == "vm":
		os.Exit(runVM(args[1]))
	case len(args) == 2 && args[0] == "stand-in":
		os.Exit(standIn(args[1]))
	case len(args) > 2 && args[0] == shim.FreezeCommand:
		os.Exit(shim.Freeze(args[1], args[2:]))
	case len(args) == 1 && args[0] == shim.ReapCommand:
		os.Exit(shim.Reap())
	}
	os.Exit(m.Run())
}

// world is a manager with directories of its own on a real systemd. When the test ends, nothing may
// be left of its pods.
type world struct {
	*Manager
	t       testing.TB
	oci     string // name of the OCI runtime
	image   runtime.Image
	pods    []*corev1.Pod
	opened  []*Manager
	faults  *faults
	changes chan pod.Ref
}

// faults is what a manager's Fault calls, on several goroutines.
type faults struct {
	mu sync.Mutex
	f  func(step string) error
}

func (f *faults) set(fault func(step string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.f = fault
}

func (f *faults) call(step string) error {
	f.mu.Lock()
	fault := f.f
	f.mu.Unlock()
	if fault == nil {
		return nil
	}
	return fault(step)
}

// onSystemd skips the test where systemd cannot be talked to.
func onSystemd(t testing.TB) {
	t.Helper()
	if comm, _ := os.ReadFile("/proc/1/comm"); strings.TrimSpace(string(comm)) != "systemd" {
		t.Skip(`PID 1 is not systemd (try: go build -o .cache/magikhost ./tests/host/magikhost && go test -exec "$PWD/.cache/magikhost run --here --" ./runtime/engine)`)
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// eachRuntime runs the test with every OCI runtime that the tests know.
func eachRuntime(t *testing.T, test func(t *testing.T, w *world)) {
	onSystemd(t)
	for _, name := range ociRuntimes {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(name); err != nil {
				t.Skipf("%s is not installed", name)
			}
			test(t, newWorld(t, name, nil))
		})
	}
}

// ociRuntimes are those of runtime/native.
var ociRuntimes = []string{"crun", "runc", "youki"}

func newWorld(t testing.TB, runtimeName string, fault func(string) error, changes ...func(*Config)) *world {
	t.Helper()
	run, err := os.MkdirTemp("/run", "magikpod-test-")
	if err != nil {
		t.Fatal(err)
	}
	// Writable layers cannot lie on the overlay that the host's root may be.
	state := filepath.Join("/var/lib/magikpod", filepath.Base(run))
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := removeAll(run, state); err != nil {
			t.Error(err)
		}
	})
	w := &world{t: t, image: busyboxImage(t, state), faults: &faults{f: fault}}
	t.Cleanup(func() { // after checkClean, which needs the last one
		for _, m := range w.opened {
			m.Close()
			m.config.Units.Close()
		}
	})
	config := Config{RunDir: run, StateDir: state, Layout: units.PodLayout{}, Fault: w.faults.call}
	rt, err := native.New(context.Background(), native.Config{RunDir: run, Runtime: runtimeName, ShimPath: shimPath(t)})
	if err != nil {
		t.Fatal(err)
	}
	config.Runtime = rt
	w.oci, _, _ = strings.Cut(rt.Class().Reason, " ")
	for _, change := range changes {
		change(&config)
	}
	w.Manager = w.manager(config)
	t.Cleanup(w.checkClean)
	return w
}

// manager makes a manager as a daemon does.
func (w *world) manager(config Config) *Manager {
	w.t.Helper()
	var err error
	config.ShimPath = shimPath(w.t)
	if config.Units, err = units.Connect(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	m, err := New(context.Background(), config)
	if err != nil {
		w.t.Fatal(err)
	}
	w.opened = append(w.opened, m)
	if !m.Class().Available {
		w.t.Fatal(m.Class().Reason)
	}
	changes := make(chan pod.Ref, 1) // of this manager: another one may be notified still
	w.changes = changes
	m.OnChange(func(ref pod.Ref) {
		select {
		case changes <- ref:
		default:
		}
	})
	return m
}

// shimPath is the test binary, or, for measurements, the real magikshim, which starts quicker.
func shimPath(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("MAGIKPOD_TEST_AGENT"); path != "" {
		return path
	}
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// busyboxImage unpacks the busybox image.
func busyboxImage(t testing.TB, dir string) runtime.Image {
	t.Helper()
	layer := filepath.Join(dir, "layers", "busybox")
	if err := os.MkdirAll(layer, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-xf", testimage.BusyboxFile(t), "-C", layer).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(layer, name))
		if err != nil {
			t.Fatal(err)
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

// checkClean deletes what the test has left, and then nothing may be there.
func (w *world) checkClean() {
	t := w.t
	t.Helper()
	ctx := context.Background()
	w.faults.set(nil)
	for _, p := range w.pods {
		if _, err := w.DeleteSandbox(ctx, pod.RefOf(p), 0); err != nil {
			t.Error(err)
		}
		if err := w.Forget(ctx, pod.RefOf(p)); err != nil {
			t.Error(err)
		}
	}
	if left := w.leftovers(); left != "" {
		t.Errorf("something is left:\n%s", left)
	}
}

// leftovers describes the units, files, mounts and processes that there are of the world's pods.
func (w *world) leftovers() string {
	var left []string
	w.units.Sweep()
	names, err := w.units.List(context.Background(), "magikpod*")
	for range 200 {
		if err != nil || len(names) == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond) // systemd unloads dead units when it has nothing else to do
		names, err = w.units.List(context.Background(), "magikpod*")
	}
	if err != nil {
		return err.Error()
	}
	left = append(left, names...)
	for _, dir := range []string{w.config.RunDir + "/pods", w.config.RunDir + "/runtime/" + w.oci, w.config.StateDir + "/pods"} {
		entries, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			left = append(left, err.Error())
		}
		for _, entry := range entries {
			if entry.Name() == ".cache" {
				continue // crun 1.15 and later keep compiled seccomp filters there, no pod's
			}
			left = append(left, filepath.Join(dir, entry.Name()))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), w.config.RunDir+"/") {
		left = append(left, fmt.Sprintf("mounts on the host (%v)", err))
	}
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range commands {
		if data, err := os.ReadFile(path); err == nil && strings.Contains(string(data), w.config.RunDir+"/") {
			left = append(left, "process "+strings.ReplaceAll(string(data), "\x00", " "))
		}
	}
	return strings.Join(left, "\n")
}

// pod makes a pod of containers that each run a shell script; it goes with the test.
func (w *world) pod(name string, scripts ...string) *corev1.Pod {
	grace := int64(5)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "native", Name: name, UID: types.UID(newID()[:32])},
		Spec:       corev1.PodSpec{TerminationGracePeriodSeconds: &grace},
	}
	for i, script := range scripts {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: string(rune('a' + i)), Command: []string{"sh", "-c", script}})
	}
	w.pods = append(w.pods, p)
	return p
}

// create makes the pod's sandbox, in the host's network.
func (w *world) create(p *corev1.Pod, tmpfs ...runtime.Tmpfs) {
	w.t.Helper()
	if err := w.CreateSandbox(w.t.Context(), w.sandboxOf(p, tmpfs...)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) sandboxOf(p *corev1.Pod, tmpfs ...runtime.Tmpfs) runtime.SandboxConfig {
	w.t.Helper()
	config := runtime.SandboxConfig{Pod: p, Network: runtime.Network{Host: p.Spec.HostNetwork, Hostname: p.Name}, SharedTmpfs: tmpfs}
	if !p.Spec.HostNetwork {
		config.Network.NetNS = networkNamespace(w.t)
	}
	return config
}

// networkNamespace makes an empty network namespace, which is closed when the test ends.
func networkNamespace(t testing.TB) *os.File {
	t.Helper()
	var f *os.File
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		goruntime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			f, err = os.Open("/proc/thread-self/ns/net")
		}
	}()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// configOf is what attempt number attempt at a container is made from.
func (w *world) configOf(p *corev1.Pod, name string, attempt int) runtime.ContainerConfig {
	for i := range p.Spec.Containers {
		if p.Spec.Containers[i].Name == name {
			return runtime.ContainerConfig{Pod: p, Container: &p.Spec.Containers[i], Attempt: attempt, Image: w.image}
		}
	}
	panic("no container " + name)
}

// run makes one attempt at a container, which must succeed.
func (w *world) run(p *corev1.Pod, name string, attempt int) {
	w.t.Helper()
	if err := w.RunContainer(w.t.Context(), w.configOf(p, name, attempt)); err != nil {
		w.t.Fatal(err)
	}
}

// up makes a pod with all of its containers.
func (w *world) up(p *corev1.Pod) {
	w.t.Helper()
	w.create(p)
	for _, c := range p.Spec.Containers {
		w.run(p, c.Name, 0)
	}
	if late := w.find(pod.RefOf(p)).late; late != nil {
		<-late.done
	}
}

func (w *world) state(p *corev1.Pod) pod.RuntimeState {
	w.t.Helper()
	state, err := w.Observe(w.t.Context(), pod.RefOf(p))
	if err != nil {
		w.t.Fatal(err)
	}
	return state
}

// await waits until a container is as wanted.
func (w *world) await(p *corev1.Pod, name string, stage pod.ContainerStage) pod.ContainerState {
	w.t.Helper()
	for range 3000 {
		if c := w.state(p).Containers[name]; c.Stage == stage {
			return c
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Fatalf("container %s is %+v, and not %s", name, w.state(p).Containers[name], stage)
	return pod.ContainerState{}
}

// journal waits for the lines that `journalctl -u UNIT` shows of a container, until there are at
// least as many as wanted.
func (w *world) journal(p *corev1.Pod, name string, wanted int, fields ...string) []string {
	w.t.Helper()
	unit := units.ContainerService(p.Namespace, p.Name, name)
	var lines []string
	for range 200 {
		args := append([]string{"--no-pager", "--quiet", "--output=cat", "--unit=" + unit, "MAGIKPOD_POD_UID=" + string(p.UID)}, fields...)
		out, err := exec.Command("journalctl", args...).Output()
		lines = nil
		if text := strings.TrimSuffix(string(out), "\n"); text != "" {
			lines = strings.Split(text, "\n")
		}
		if err == nil && len(lines) >= wanted {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return lines
}
