package bench

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/engine"
	"github.com/magikrun/magikpod/runtime/native"
	"github.com/magikrun/magikpod/runtime/wasm"
	"github.com/magikrun/magikpod/tests/host"
	"github.com/magikrun/magikpod/units"
)

var wasmPods = flag.Int("wasm-pods", 100, "how many pods of the class pod-wasm run at once when their memory is looked at")

// guests is where make bench builds the same programs as modules and as native programs, and the
// command of wazero.
const guests = "../../.cache/guests"

// programs are what is started: a large one in Go, whose machine code takes long to load, and a
// small one in C, of which little is left but what we do.
var programs = []string{"guest", "small"}

// TestWasm compares the start of a module whose machine code is in the cache, as a container of a
// pod that is there, with the bare command of wazero, with an empty transient unit, and with the
// same program as a native container; all of them until the program has made a file. Then it looks
// at the memory of pods.
func TestWasm(t *testing.T) {
	host.IsInside(t, envBench, "make bench")
	ctx := t.Context()
	w := &wasmBench{dir: "/run/bench-wasm", state: "/var/lib/magikpod/bench-wasm"}
	defer w.close()
	if err := w.open(ctx); err != nil {
		t.Fatal(err)
	}
	contenders := []contender{{"unit", []step{{"start", w.emptyUnit, 1}}}}
	for _, program := range programs {
		for kind, s := range map[string]*starter{" wasm": w.modules, " native": w.natives} {
			start := func(ctx context.Context) error { return s.start(ctx, program, w.file()) }
			contenders = append(contenders, contender{program + kind, []step{{"start", start, 1}, {"", s.settle, 1}}})
		}
		bare := func(ctx context.Context) error { return w.bare(ctx, program, w.file()) }
		contenders = append(contenders, contender{program + " wazero", []step{{"start", bare, 1}}})
	}
	measured := results{}
	if err := alternate(ctx, *pairs, contenders, measured); err != nil {
		t.Fatal(err)
	}
	alone, err := podMemory(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	many, err := podMemory(ctx, *wasmPods)
	if err != nil {
		t.Fatal(err)
	}
	text := wasmReport(measured, alone, many)
	t.Log("\n" + text)
	if *write {
		if err := os.WriteFile("../../docs/performance-wasm.md", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// wasmBench is what is compared.
type wasmBench struct {
	dir, state       string
	units            *units.Manager
	conn             *systemd.Conn
	modules, natives *starter
	runs, files      int
}

func (w *wasmBench) open(ctx context.Context) error {
	for _, dir := range []string{filepath.Join(w.dir, "data"), filepath.Join(w.state, "layers", "wasm"), filepath.Join(w.state, "layers", "native")} {
		if err := os.MkdirAll(dir, 0o777); err != nil {
			return err
		}
	}
	for from, to := range map[string]string{"guest.wasm": "wasm/guest", "guest": "native/guest", "small.wasm": "wasm/small", "small": "native/small"} {
		if err := command(ctx, "cp", filepath.Join(guests, from), filepath.Join(w.state, "layers", to)); err != nil {
			return fmt.Errorf("%w (try: make bench)", err)
		}
	}
	var err error
	if w.units, err = units.Connect(ctx); err != nil {
		return err
	}
	if w.conn, err = systemd.NewSystemConnectionContext(ctx); err != nil {
		return err
	}
	if err := w.conn.Subscribe(); err != nil {
		return err
	}
	natives, err := native.New(ctx, native.Config{RunDir: w.dir, ShimPath: shimPath})
	if err != nil {
		return err
	}
	if w.natives, err = w.starter(ctx, natives, "native"); err != nil {
		return err
	}
	modules := wasm.New(wasm.Config{Program: "/usr/libexec/magikpod/magikwasm", ShimPath: shimPath, Cache: filepath.Join(w.state, "cache")})
	w.modules, err = w.starter(ctx, modules, "wasm")
	return err
}

func (w *wasmBench) close() {
	for _, s := range []*starter{w.modules, w.natives} {
		if s != nil {
			s.close()
		}
	}
	if w.units != nil {
		w.units.Close()
	}
	if w.conn != nil {
		w.conn.Close()
	}
	_ = command(context.Background(), "rm", "-rf", w.dir, w.state) // the host goes anyway
}

// starter starts the containers of one pod, one after the other.
type starter struct {
	manager *engine.Manager
	pod     *corev1.Pod
	image   runtime.Image
	data    string
	next    int // container that was not started yet
}

const shimPath = "/usr/libexec/magikpod/magikshim"

func (w *wasmBench) starter(ctx context.Context, class engine.Runtime, layer string) (*starter, error) {
	manager, err := engine.New(ctx, engine.Config{Runtime: class, Layout: units.PodLayout{}, Units: w.units, RunDir: w.dir, StateDir: w.state, ShimPath: shimPath})
	if err != nil {
		return nil, err
	}
	manager.OnChange(func(pod.Ref) {})
	grace := int64(1)
	containers := make([]corev1.Container, len(programs)*(*pairs+1))
	for i := range containers {
		containers[i].Name = "c" + strconv.Itoa(i)
	}
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "bench", Name: layer, UID: types.UID("7b000000-0000-4000-8000-00000000000" + strconv.Itoa(len(layer)))},
		Spec:       corev1.PodSpec{TerminationGracePeriodSeconds: &grace, HostNetwork: true, Containers: containers},
	}
	s := &starter{manager: manager, pod: p, data: filepath.Join(w.dir, "data"), image: runtime.Image{
		Reference: "bench", ID: "sha256:" + strings.Repeat("b", 64), Rootfs: runtime.Rootfs{Dir: filepath.Join(w.state, "layers"), Layers: []string{layer}},
	}}
	return s, manager.CreateSandbox(ctx, runtime.SandboxConfig{Pod: p, Network: runtime.Network{Host: true, Hostname: "bench"}, LogDir: filepath.Join(w.dir, "logs")})
}

func (s *starter) close() {
	ctx := context.Background()
	_, err := s.manager.DeleteSandbox(ctx, pod.RefOf(s.pod), 0)
	if err := errors.Join(err, s.manager.Forget(ctx, pod.RefOf(s.pod)), s.manager.Close()); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// start starts the next container and waits for the file that its program makes.
func (s *starter) start(ctx context.Context, program, file string) error {
	c := &s.pod.Spec.Containers[s.next]
	s.next++
	c.Command = []string{"/" + program, "write", "/data/" + file, "x"}
	mount := runtime.Mount{Source: s.data, Destination: "/data", Propagation: "private"}
	if err := s.manager.RunContainer(ctx, runtime.ContainerConfig{Pod: s.pod, Container: c, Image: s.image, Mounts: []runtime.Mount{mount}}); err != nil {
		return err
	}
	return s.await(ctx, filepath.Join(s.data, file))
}

func (s *starter) await(ctx context.Context, path string) error {
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Microsecond) {
		if _, err := os.Stat(path); err == nil {
			return nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return fmt.Errorf("%s was not made", path)
}

// settle waits until the container that was started has ended.
func (s *starter) settle(ctx context.Context) error {
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		state, err := s.manager.Observe(ctx, pod.RefOf(s.pod))
		if err != nil {
			return err
		}
		if c := state.Containers[s.pod.Spec.Containers[s.next-1].Name]; c.Stage == pod.ContainerExited {
			if c.ExitCode != 0 {
				return fmt.Errorf("the container of %s has ended with %d", s.pod.Name, c.ExitCode)
			}
			return nil
		}
	}
	return fmt.Errorf("the container of %s does not end", s.pod.Name)
}

// file is the name of the next file that a program makes.
func (w *wasmBench) file() string {
	w.files++
	return strconv.Itoa(w.files)
}

// bare runs the command of wazero, with its own cache.
func (w *wasmBench) bare(ctx context.Context, program, file string) error {
	return command(ctx, guests+"/wazero", "run", "-cachedir", w.dir+"/wazero", "-mount", w.dir+"/data:/data", guests+"/"+program+".wasm", "write", "/data/"+file, "x")
}

// emptyUnit is one transient service that does nothing.
func (w *wasmBench) emptyUnit(ctx context.Context) error {
	w.runs++
	done := make(chan string, 1)
	_, err := w.conn.StartTransientUnitContext(ctx, fmt.Sprintf("bench-empty-%d.service", w.runs), "fail", []systemd.Property{
		systemd.PropType("exec"), systemd.PropExecStart([]string{"/bin/true"}, false),
	}, done)
	if err != nil {
		return err
	}
	if result := <-done; result != "done" {
		return fmt.Errorf("the unit: %s", result)
	}
	return nil
}

// memory is what a pod's processes have, in KiB: private and their share (Pss).
type memory struct{ pods, modulePrivate, modulePss, podPrivate, podPss int }

// podMemory runs pods whose module sleeps and looks at the processes of all of them; the values are
// per pod.
func podMemory(ctx context.Context, n int) (m memory, err error) {
	defer func() {
		err = errors.Join(err, command(context.WithoutCancel(ctx), "magikpodctl", "-n", "memory", "delete", "--all", "--force"))
	}()
	if err := loadModule(ctx); err != nil {
		return m, err
	}
	for i := range n {
		cmd := exec.CommandContext(ctx, "magikpodctl", "-n", "memory", "run", "-f", "-")
		cmd.Stdin = strings.NewReader(module.manifest(podName(i), 1))
		if out, err := cmd.CombinedOutput(); err != nil {
			return m, fmt.Errorf("%w: %s", err, out)
		}
	}
	time.Sleep(3 * time.Second)
	m.pods = n
	list, err := processes()
	if err != nil {
		return m, err
	}
	all := sum(list, inPod("memory"))
	modules := sum(list, func(p process) bool { return inPod("memory")(p) && ofContainer(p) })
	m.podPrivate, m.podPss, m.modulePrivate, m.modulePss = all.private, all.pss, modules.private, modules.pss
	for _, v := range []*int{&m.modulePrivate, &m.modulePss, &m.podPrivate, &m.podPss} {
		*v /= n
	}
	return m, nil
}

// sizeOf is the size of a guest.
func sizeOf(name string) int64 {
	fi, err := os.Stat(filepath.Join(guests, name))
	if err != nil {
		return 0 // open has copied it
	}
	return fi.Size()
}

// wasmReport is docs/performance-wasm.md.
func wasmReport(measured results, one, many memory) string {
	of := func(name string) times { return measured[name]["start"] }
	ratios := func(program string) (toFloor, toNative float64) {
		wasm := float64(of(program + " wasm").median())
		return wasm / float64(of(program+" wazero").median()+of("unit").median()), wasm / float64(of(program+" native").median())
	}
	goFloor, goNative := ratios("guest")
	cFloor, cNative := ratios("small")
	var b strings.Builder
	fmt.Fprintf(&b, `# Performance of pod-wasm

Written by %smake bench WRITE=1%s: one run, one disposable host, %d alternating rounds. A program writes a file, and the time ends when the file is there: one in Go (tests/testwasm/guest, 3.2 MB as a module) and one
in C (tests/testwasm/small, %d KB as a module, static as a native program). A module's machine code is in the cache of each. Medians in ms, with the lower and upper decile.

| | Go | C |
|---|---|---|
| a module as a container of a pod that is there | %s | %s |
| the program as a native container of a pod that is there (crun) | %s | %s |
| the bare command of wazero, to its end | %s | %s |

An empty transient service (Type=exec, /bin/true): %s.

| ratio | target | Go | | C | |
|---|---|---|---|---|---|
| module / (wazero + empty unit) | at most 1.5 | %.2f | %s | %.2f | %s |
| module / native container | below 1 | %.2f | %s | %.2f | %s |

Memory of a pod whose module (3.2 MB, Go) sleeps, in KiB a pod; the rest of a pod is its pause process.

| pods | module, private | module, Pss | pod, private | pod, Pss |
|---|---|---|---|---|
`, "`", "`", *pairs, sizeOf("small.wasm")>>10,
		of("guest wasm"), of("small wasm"), of("guest native"), of("small native"), of("guest wazero"), of("small wazero"), of("unit"),
		goFloor, met(goFloor <= 1.5), cFloor, met(cFloor <= 1.5), goNative, met(goNative < 1), cNative, met(cNative < 1))
	for _, m := range []memory{one, many} {
		fmt.Fprintf(&b, "| %d | %d | %d | %d | %d |\n", m.pods, m.modulePrivate, m.modulePss, m.podPrivate, m.podPss)
	}
	b.WriteString("\n" + measuredOn() + "\n")
	return b.String()
}
