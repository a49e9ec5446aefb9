package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/probe"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/onhost"
	"github.com/magikrun/magikpod/shim"
	"github.com/magikrun/magikpod/units"
)

// testVMs is the Runtime of a small class of the kind of VMs: its VM is a process that does
// nothing, and a container in it is the command of the container's unit, run on the host. What this
// package does for such a class is the same as for a real one.
type testVMs struct {
	program string
	limits  units.Limits
	prepare error                           // of PrepareSandbox, after it has made files
	ready   func(ctx context.Context) error // of ReadySandbox
	signals atomic.Int32
	onhost.Base
}

// standInConfig is what the command of a container reads.
type standInConfig struct {
	Script, Status, Log, VM string
}

// runVM is the process of the VM unit. It writes its PID to a file.
func runVM(pidFile string) int {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	if err := os.WriteFile(pidFile, []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		return 1
	}
	notify("READY=1")
	<-end
	return 0
}

// standIn is the command of a container's unit.
func standIn(path string) int {
	var config standInConfig
	if err := atomicfile.LoadJSON(path, maxRecordBytes, &config); err != nil {
		return 1
	}
	if config.Script == "refuse" {
		_ = os.WriteFile(config.Log, []byte(`{"level":"error","msg":"the VM does not like it"}`+"\n"), 0o600)
		return 1
	}
	if config.Script == "hang" {
		time.Sleep(time.Hour)
	}
	notify("READY=1")
	notify("STATUS=" + config.Status)
	env := []string{"VM_PID=" + config.VM, "PATH=/bin:/usr/bin"}
	_ = unix.Exec("/bin/sh", []string{"sh", "-c", config.Script}, env)
	return 1
}

func notify(state string) {
	if c, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET")); err == nil {
		_, _ = c.Write([]byte(state))
		c.Close()
	}
}

func (m *testVMs) Class() pod.ClassInfo {
	return pod.ClassInfo{Name: "test-vms", Available: true}
}

func (m *testVMs) Validate(p *corev1.Pod) field.ErrorList {
	return field.ErrorList{field.Forbidden(field.NewPath("spec"), "asked "+p.Name)}
}

func (m *testVMs) PrepareImage(context.Context, runtime.Image) error { return nil }

func (m *testVMs) ForgetImages(context.Context) error { return nil }

func (m *testVMs) SandboxKind() runtime.SandboxKind {
	return runtime.SandboxKind{NetworkOnly: true, Holders: []runtime.HolderKind{runtime.HolderVM}}
}

func (m *testVMs) PodLimits(*corev1.Pod) units.Limits { return m.limits }

func (m *testVMs) PrepareSandbox(_ context.Context, s runtime.Sandbox, _ runtime.SandboxConfig) ([]runtime.Holder, error) {
	for _, dir := range []string{s.RunDir, s.StateDir} {
		if err := os.MkdirAll(filepath.Join(dir, "vm"), 0o700); err != nil {
			return nil, err
		}
	}
	return []runtime.Holder{{Argv: []string{m.program, "vm", filepath.Join(s.RunDir, "vm/pid")}, PowerOff: time.Second}}, m.prepare
}

func (m *testVMs) ReadySandbox(ctx context.Context, s runtime.Sandbox) error {
	if s.Namespaces.Network == nil {
		return errors.New("no network")
	}
	if m.ready != nil {
		return m.ready(ctx)
	}
	return nil
}

func (m *testVMs) RemoveSandbox(s runtime.Sandbox) error {
	return os.RemoveAll(filepath.Join(s.RunDir, "vm"))
}
func (m *testVMs) ForgetSandbox(s runtime.Sandbox) error {
	return os.RemoveAll(filepath.Join(s.StateDir, "vm"))
}

func (m *testVMs) Prepare(_ context.Context, s runtime.Sandbox, a runtime.Attempt, config runtime.ContainerConfig) (runtime.Launch, error) {
	script := config.Container.Command[2]
	launch := runtime.Launch{Runtime: "test-vms", OwnPID: true, InVM: true, Argv: []string{m.program, "stand-in", filepath.Join(a.Bundle, "config.json")}}
	if script == "invalid" {
		launch.Refused = pod.Errorf(pod.Invalid, "it is invalid")
	}
	c := standInConfig{Script: script, Status: shim.StatusStarted, Log: a.Log, VM: filepath.Join(s.RunDir, "vm/pid")}
	if script == "exit 137" {
		c.Status = shim.StatusOOMKilled
	}
	launch.Files = map[string]any{"config.json": c}
	return launch, nil
}

func (m *testVMs) Signal(context.Context, runtime.Running, syscall.Signal) error {
	m.signals.Add(1)
	return nil
}

func (m *testVMs) Exec(_ context.Context, c runtime.Running, p runtime.Process) (runtime.ExitStatus, error) {
	_, err := p.Stdout.WriteString(c.Container + strings.Join(p.Args, " "))
	return runtime.ExitStatus{Code: 3}, err
}

func (m *testVMs) Probe(_ context.Context, c runtime.Running, p probe.Probe, _ func(runtime.Process) (runtime.ExitStatus, error)) (bool, string, error) {
	return p.TCP != nil, c.Container, nil
}

func (m *testVMs) Stats(context.Context, runtime.Sandbox, map[string]string) (map[string]pod.ResourceUse, error) {
	return map[string]pod.ResourceUse{"a": {Processes: new(uint64(2))}}, nil
}

func newVMs(t *testing.T, fault func(string) error) (*world, *testVMs) {
	t.Helper()
	onSystemd(t)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	vms := &testVMs{program: program}
	w := newWorld(t, "", fault, func(c *Config) { c.Runtime = vms })
	w.oci = vms.Class().Name
	return w, vms
}

// vmPID is the process of a pod's VM.
func (w *world) vmPID(p *corev1.Pod) int {
	w.t.Helper()
	data, err := os.ReadFile(filepath.Join(w.runDir(p.UID), "vm", "pid"))
	if err != nil {
		w.t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(data))
	if err != nil {
		w.t.Fatal(err)
	}
	return pid
}

// awaitSandbox waits until the sandbox is as wanted.
func (w *world) awaitSandbox(p *corev1.Pod, stage pod.SandboxStage) pod.SandboxState {
	w.t.Helper()
	for range 1000 {
		if s := w.state(p).Sandbox; s.Stage == stage {
			return s
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Fatalf("the sandbox is %+v, and not %s", w.state(p).Sandbox, stage)
	return pod.SandboxState{}
}

// awaitEntered waits until the pause process holds the pod's network namespace itself.
func (w *world) awaitEntered(p *corev1.Pod) {
	w.t.Helper()
	s := w.find(pod.RefOf(p))
	for range 1000 {
		pause, _ := w.units.State(s.names.Pause)
		if ns, err := openNamespaces(pause.MainPID, s.record); err == nil {
			ns.close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Fatal("the pause process does not enter the namespace")
}

func TestInVM(t *testing.T) {
	w, vms := newVMs(t, nil)
	vms.limits = units.Limits{MemoryMax: 1 << 30, TasksMax: 1000}
	p := w.pod("vm", "echo hello; exec sleep 1000", "exit 137", "exit 7", "refuse", "invalid")
	w.create(p)
	for _, name := range []string{"a", "b", "c"} {
		w.run(p, name, 0)
	}
	if s := w.awaitSandbox(p, pod.SandboxReady); s.Message != "" {
		t.Error(s.Message)
	}
	if lines := w.journal(p, "a", 1); len(lines) != 1 || lines[0] != "hello" {
		t.Errorf("log: %q", lines)
	}
	if c := w.await(p, "b", pod.ContainerExited); c.Reason != pod.ReasonOOMKilled || c.ExitCode != 137 {
		t.Errorf("out of memory: %+v", c)
	}
	if c := w.await(p, "c", pod.ContainerExited); c.Reason != pod.ReasonError || c.ExitCode != 7 {
		t.Errorf("exit 7: %+v", c)
	}
	for name, want := range map[string]string{"d": "the VM does not like it", "e": "it is invalid"} {
		if err := w.RunContainer(t.Context(), w.configOf(p, name, 0)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
		if c := w.state(p).Containers[name]; c.Reason != pod.ReasonStartError || !strings.Contains(c.Message, want) {
			t.Errorf("%s: %+v", name, c)
		}
	}
	out, err := exec.Command("systemctl", "show", "--property=MemoryMax,TasksMax", units.Names(p.Namespace, p.Name).Slice).Output()
	if text := string(out); err != nil || !strings.Contains(text, "MemoryMax=1073741824\n") || !strings.Contains(text, "TasksMax=1000\n") {
		t.Errorf("limits of the slice: %s, %v", out, err)
	}
	if mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", w.state(p).Containers["a"].PID)); err != nil || strings.Contains(string(mounts), w.config.RunDir) {
		t.Errorf("something of the container is mounted (%v):\n%s", err, mounts)
	}
	w.checkDelegated(p, vms)
}

// checkDelegated asks what only the VM can answer.
func (w *world) checkDelegated(p *corev1.Pod, vms *testVMs) {
	t, ref := w.t, pod.RefOf(p)
	t.Helper()
	m := w.Manager
	if err := m.SignalContainer(w.t.Context(), ref, "a", syscall.SIGSTOP); err != nil || vms.signals.Load() != 1 {
		t.Errorf("signal: %v", err)
	}
	r, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	status, err := m.Exec(t.Context(), ref, "a", runtime.Process{Args: []string{"x", "y"}, Stdout: stdout})
	stdout.Close()
	text := make([]byte, 100)
	n, _ := r.Read(text)
	if err != nil || status.Code != 3 || string(text[:n]) != "ax y" {
		t.Errorf("exec: %+v, %q, %v", status, text[:n], err)
	}
	if _, err := m.Exec(t.Context(), ref, "c", runtime.Process{Args: []string{"x"}}); pod.KindOf(err) != pod.Conflict {
		t.Errorf("exec in a container that has ended: %v", err)
	}
	if ok, message, err := m.Probe(t.Context(), ref, "a", probe.Probe{TCP: &probe.TCP{}}); !ok || message != "a" || err != nil {
		t.Errorf("probe: %t, %q, %v", ok, message, err)
	}
	if _, _, err := m.Probe(t.Context(), ref, "c", probe.Probe{TCP: &probe.TCP{}}); pod.KindOf(err) != pod.Conflict {
		t.Errorf("probe of a container that has ended: %v", err)
	}
	if use, err := m.ContainerStats(t.Context(), ref); err != nil || *use["a"].Processes != 2 {
		t.Errorf("stats: %v, %v", use, err)
	}
	if errs := m.Validate(p); len(errs) != 1 || !strings.Contains(errs[0].Detail, "asked vm") {
		t.Errorf("validate: %v", errs)
	}
}

// The end of a VM is seen at once, and whoever waits for it does not wait any longer.
func TestVMDies(t *testing.T) {
	w, vms := newVMs(t, nil)
	waiting := make(chan struct{})
	p := w.pod("dies", "exec sleep 1000", "exec sleep 1000")
	w.create(p)
	w.run(p, "a", 0)
	vms.ready = func(ctx context.Context) error {
		close(waiting)
		<-ctx.Done()
		return pod.WithKind(pod.Unavailable, context.Cause(ctx))
	}
	started := make(chan error, 1)
	go func() { started <- w.RunContainer(context.Background(), w.configOf(p, "b", 0)) }()
	<-waiting
	select { // whatever has changed until now
	case <-w.changes:
	default:
	}
	if err := syscall.Kill(w.vmPID(p), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-w.changes:
	case <-time.After(10 * time.Second):
		t.Error("nobody is notified")
	}
	if s := w.awaitSandbox(p, pod.SandboxDead); s.StoppedByAdmin || !strings.Contains(s.Message, "VM") {
		t.Errorf("the sandbox is %+v", s)
	}
	select {
	case err := <-started:
		if pod.KindOf(err) != pod.Unavailable || !strings.Contains(err.Error(), "VM has ended") {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the start waits for a VM that is gone")
	}
	vms.ready = nil
	if _, err := w.DeleteSandbox(t.Context(), pod.RefOf(p), 0); err != nil {
		t.Fatal(err)
	}
	w.dieDuringStart(p)
	w.create(p) // and another one in its place
	w.run(p, "a", 1)
	if c := w.await(p, "a", pod.ContainerRunning); c.Attempt != 1 {
		t.Errorf("%+v", c)
	}
}

// dieDuringStart kills the VM while the command of a container waits for it: the start ends at
// once, and the attempt does not count.
func (w *world) dieDuringStart(p *corev1.Pod) {
	t := w.t
	t.Helper()
	p.Spec.Containers[1].Command[2] = "hang"
	w.create(p)
	w.awaitSandbox(p, pod.SandboxReady)
	started := make(chan error, 1)
	go func() { started <- w.RunContainer(context.Background(), w.configOf(p, "b", 0)) }()
	unit := units.ContainerService(p.Namespace, p.Name, "b")
	for state, _ := w.units.State(unit); state.MainPID == 0; state, _ = w.units.State(unit) {
		time.Sleep(time.Millisecond)
	}
	if err := syscall.Kill(w.vmPID(p), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-started:
		if pod.KindOf(err) != pod.Unavailable || !strings.Contains(err.Error(), "VM has ended") {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the start goes on without a VM")
	}
	if c := w.state(p).Containers["b"]; c.Stage != "" && c.Stage != pod.ContainerAbsent {
		t.Errorf("the attempt counts: %+v", c)
	}
	if _, err := w.DeleteSandbox(t.Context(), pod.RefOf(p), 0); err != nil {
		t.Fatal(err)
	}
}

// A container whose start is asked for just when its VM has died does not start the VM again: the
// daemon has to make another one, and report it as what it is.
func TestVMNotRevived(t *testing.T) {
	var dies func()
	w, _ := newVMs(t, func(point string) error {
		if point == "start container unit" && dies != nil {
			dies()
		}
		return nil
	})
	p := w.pod("revived", "exec sleep 1000", "exec sleep 1000")
	for attempt := range 5 { // whether systemd knows of the death before the manager does is a matter of luck
		w.create(p)
		w.run(p, "a", attempt)
		vm := units.Names(p.Namespace, p.Name).VM
		before := w.life(vm)
		dies = func() {
			if err := syscall.Kill(w.vmPID(p), syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		}
		err := w.RunContainer(t.Context(), w.configOf(p, "b", attempt))
		dies = nil
		if pod.KindOf(err) != pod.Unavailable || !strings.Contains(err.Error(), "VM has ended") {
			t.Errorf("start without a VM: %v", err)
		}
		if s := w.awaitSandbox(p, pod.SandboxDead); s.StoppedByAdmin {
			t.Errorf("the sandbox is %+v", s)
		}
		if after, want := w.life(vm), strings.Replace(before, "=active", "=failed", 1); after != want {
			t.Errorf("the VM's unit was\n%s\nand is\n%s", before, after)
		}
		if c := w.state(p).Containers["b"]; c.Stage != "" && c.Stage != pod.ContainerAbsent {
			t.Errorf("the attempt counts: %+v", c)
		}
		if _, err := w.DeleteSandbox(t.Context(), pod.RefOf(p), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// life says which of the lives of a unit it is, and whether it is over.
func (w *world) life(unit string) string {
	w.t.Helper()
	out, err := exec.Command("systemctl", "show", "--property=ActiveState,InvocationID", unit).Output()
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// A VM outlives its containers: while they stop, it is there. And a stop of the VM by systemctl is
// somebody's order.
func TestVMStops(t *testing.T) {
	w, _ := newVMs(t, nil)
	script := `trap 'sleep 0.3; kill -0 $(cat $VM_PID) && exit 42; exit 1' TERM; echo trapped; while :; do sleep 0.05; done`
	p := w.pod("stops", script)
	w.up(p)
	w.journal(p, "a", 1)
	state, err := w.DeleteSandbox(t.Context(), pod.RefOf(p), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if c := state.Containers["a"]; c.ExitCode != 42 {
		t.Errorf("when the container was stopped the VM was gone: %+v", c)
	}
	w.up(p)
	w.journal(p, "a", 2)
	if out, err := exec.Command("systemctl", "stop", units.Names(p.Namespace, p.Name).VM).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if s := w.awaitSandbox(p, pod.SandboxDead); !s.StoppedByAdmin {
		t.Errorf("the sandbox is %+v", s)
	}
	if c := w.await(p, "a", pod.ContainerExited); c.ExitCode != 42 || !c.StoppedByAdmin {
		t.Errorf("the container is %+v", c)
	}
}

// Nobody but the daemon starts a VM: whoever starts a container's unit after its VM has died fails,
// and changes nothing.
func TestVMStaysDead(t *testing.T) {
	w, _ := newVMs(t, nil)
	p := w.pod("again", "exec sleep 1000", "exit 7")
	w.up(p)
	w.await(p, "b", pod.ContainerExited)
	pid := w.vmPID(p)
	if err := errors.Join(syscall.Kill(pid, syscall.SIGKILL), syscall.Kill(w.state(p).Containers["a"].PID, syscall.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	w.awaitSandbox(p, pod.SandboxDead)
	w.await(p, "a", pod.ContainerExited)
	names := units.Names(p.Namespace, p.Name)
	for _, verb := range []string{"start", "restart"} {
		for _, name := range []string{"a", "b"} {
			out, err := exec.Command("systemctl", verb, units.ContainerService(p.Namespace, p.Name, name)).CombinedOutput()
			if err == nil {
				t.Errorf("systemctl %s of container %s succeeded: %s", verb, name, out)
			}
			t.Logf("systemctl %s of container %s: %s", verb, name, out)
			active, _ := exec.Command("systemctl", "is-active", names.VM).Output() // its status is what it says
			if text := strings.TrimSpace(string(active)); text != "failed" && text != "inactive" || w.vmPID(p) != pid {
				t.Errorf("after systemctl %s of container %s the VM is %s, PID %d, and was %d", verb, name, text, w.vmPID(p), pid)
			}
		}
	}
	if s := w.awaitSandbox(p, pod.SandboxDead); s.StoppedByAdmin {
		t.Errorf("the sandbox is %+v", s)
	}
}

func TestVMAdopted(t *testing.T) {
	for _, dead := range []bool{false, true} {
		t.Run(map[bool]string{false: "runs", true: "died meanwhile"}[dead], func(t *testing.T) {
			w, _ := newVMs(t, nil)
			p := w.pod("adopted", "exec sleep 1000", "exec sleep 1000")
			w.create(p)
			w.run(p, "a", 0)
			w.awaitSandbox(p, pod.SandboxReady)
			w.awaitEntered(p)
			pid := w.vmPID(p)
			config := w.config
			w.Close()
			config.Units.Close()
			if dead {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				time.Sleep(100 * time.Millisecond)
			}
			w.Manager = w.manager(config)
			if err := w.Adopt(t.Context(), pod.RefOf(p)); err != nil {
				t.Fatal(err)
			}
			if dead {
				w.awaitSandbox(p, pod.SandboxDead)
				return
			}
			if s := w.state(p); s.Sandbox.Stage != pod.SandboxReady || s.Containers["a"].Stage != pod.ContainerRunning {
				t.Errorf("adopted: %+v", s)
			}
			w.run(p, "b", 0)
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			w.awaitSandbox(p, pod.SandboxDead)
		})
	}
}

// A step that fails leaves nothing, whichever it is.
func TestVMFaults(t *testing.T) {
	for _, step := range []string{"make namespaces", "write sandbox records", "prepare sandbox", "PrepareSandbox", "start pause unit", "after pause unit", "start VM unit", "after VM unit"} {
		t.Run(step, func(t *testing.T) {
			w, vms := newVMs(t, func(s string) error {
				if s == step {
					return errors.New("injected")
				}
				return nil
			})
			if step == "PrepareSandbox" {
				vms.prepare = errors.New("injected")
			}
			p := w.pod("fault", "exec sleep 1000")
			if err := w.CreateSandbox(t.Context(), w.sandboxOf(p)); err == nil || !strings.Contains(err.Error(), "injected") {
				t.Fatalf("create: %v", err)
			}
			if err := w.Forget(t.Context(), pod.RefOf(p)); err != nil {
				t.Error(err)
			}
			if left := w.leftovers(); left != "" {
				t.Errorf("left:\n%s", left)
			}
		})
	}
}
