package runtimetest

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

const (
	// patience is how long something may take that a manager does not have to wait for: a loaded
	// host is slow.
	patience = 60 * time.Second
	// longGrace is a grace period that nobody who obeys needs; more than patience, so that obeying
	// and being killed cannot be mixed up.
	longGrace = 120 * time.Second
	// shortGrace is one that a stubborn container uses up.
	shortGrace = time.Second
	// sharedDir is where every container of the suite has a directory of the host.
	sharedDir = "/suite"
)

// suite is one check under way.
type suite struct {
	testing.TB
	t       *testing.T // for the functions of env
	ctx     context.Context
	env     Env
	manager runtime.PodManager
	pods    []*testPod
	cancel  context.CancelFunc

	mu      sync.Mutex
	changes map[pod.Ref]int // calls of OnChange's function
}

func newSuite(t *testing.T, tb testing.TB, e Env) *suite {
	h := &suite{TB: tb, t: t, env: e, changes: map[pod.Ref]int{}}
	h.ctx, h.cancel = context.WithTimeout(context.Background(), 5*time.Minute)
	h.use(e.Manager)
	return h
}

// use makes m the manager.
func (h *suite) use(m runtime.PodManager) {
	h.manager = m
	m.OnChange(func(ref pod.Ref) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.changes[ref]++
	})
}

func (h *suite) changesOf(ref pod.Ref) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changes[ref]
}

// clean deletes and forgets all pods and looks for what is left of them.
func (h *suite) clean() {
	defer h.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for _, p := range h.pods {
		if _, err := h.manager.DeleteSandbox(ctx, p.ref, 0); err != nil {
			h.Errorf("cleaning up: DeleteSandbox: %v", err)
		}
		if err := h.manager.Forget(ctx, p.ref); err != nil {
			h.Errorf("cleaning up: Forget: %v", err)
		}
	}
	if h.env.Leaks != nil {
		if left := h.env.Leaks(); len(left) > 0 {
			h.Errorf("left on the host: %s", strings.Join(left, ", "))
		}
	}
}

// program is what a container does, said twice: as a script for classes that run it, as a Behavior
// for those that do not.
type program struct {
	script   string
	behavior Behavior
	command  []string // instead of the script
	module   string   // what a module does instead of the script, because it knows no signals
}

// commandFor is what the container runs.
func (h *suite) commandFor(p program) []string {
	switch {
	case p.command != nil:
		return p.command
	case h.env.Modules && p.module != "":
		return []string{"/bin/sh", "-c", p.module}
	}
	return []string{"/bin/sh", "-c", p.script}
}

// obeyed is the exit code of a program that has obeyed, insisted that of one that was killed after
// its grace period.
func (h *suite) obeyed() int {
	if h.env.Modules {
		return 128 + int(syscall.SIGTERM)
	}
	return 3
}

func (h *suite) insisted() int {
	if h.env.Modules {
		return 128 + int(syscall.SIGTERM)
	}
	return 128 + int(syscall.SIGKILL)
}

// Every program that keeps running says that it is ready, so that no signal reaches it too early.
const ready = "echo > " + sharedDir + "/$NAME.$ATTEMPT.ready; "

// stays is what a module does instead of listening for signals.
const stays = ready + "sleep 100000"

// exits ends at once.
func exits(code int) program {
	return program{script: fmt.Sprintf("exit %d", code), behavior: Behavior{Runs: time.Millisecond, ExitCode: code}}
}

// obeys runs until it is asked to end, then ends with exit code 3.
var obeys = program{
	script:   "trap 'exit 3' TERM INT; " + ready + "while :; do sleep 1000 & wait $!; done",
	behavior: Behavior{StopCode: 3},
	module:   stays,
}

// slow is obeys, but it takes a second.
var slow = program{
	script:   "trap 'sleep 1; exit 3' TERM; " + ready + "while :; do sleep 1000 & wait $!; done",
	behavior: Behavior{StopCode: 3, StopDelay: time.Second},
	module:   stays,
}

// stubborn must be killed.
var stubborn = program{
	script:   "trap '' TERM INT; " + ready + "while :; do sleep 1; done",
	behavior: Behavior{IgnoreStop: true},
	module:   stays,
}

// missing cannot be started.
var missing = program{command: []string{"/no/such/command"}, behavior: Behavior{StartError: "no such file"}}

// waits runs the script, then stays until it is asked to end.
func waits(script string) program {
	return program{script: "set -e; " + script + "; " + obeys.script, behavior: obeys.behavior, module: "set -e; " + script + "; " + stays}
}

// testPod is one pod of a check.
type testPod struct {
	*suite
	pod     *corev1.Pod
	ref     pod.Ref
	network runtime.Network
	dir     string // what containers see as sharedDir
	config  runtime.SandboxConfig
	mounts  map[string][]runtime.Mount // more mounts, by container
}

// newPod makes a pod whose containers run the programs: by name, in the order of the names. No call
// is made.
func (h *suite) newPod(programs map[string]program) *testPod {
	h.Helper()
	name := fmt.Sprintf("suite-%d", len(h.pods)+1)
	uid := types.UID(fmt.Sprintf("5c%06x-0000-4000-8000-%012x", os.Getpid()&0xffffff, time.Now().UnixNano()&0xffffffffffff))
	p := &testPod{suite: h, network: runtime.Network{Host: true}, dir: h.TempDir(), mounts: map[string][]runtime.Mount{}}
	if err := os.Chmod(p.dir, 0o777); err != nil {
		h.Fatal(err)
	}
	p.pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "suite", Name: name, UID: uid}}
	grace := int64(30)
	p.pod.Spec.TerminationGracePeriodSeconds = &grace
	p.pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
	if h.env.Network != nil {
		p.network = h.env.Network(h.t)
	}
	p.pod.Spec.HostNetwork = p.network.Host
	if p.network.Hostname == "" {
		p.network.Hostname = name
	}
	for _, c := range sortedKeys(programs) {
		command := h.commandFor(programs[c])
		p.pod.Spec.Containers = append(p.pod.Spec.Containers, corev1.Container{Name: c, Image: h.env.Image.Reference, Command: command})
		if h.env.Behave != nil {
			h.env.Behave(c, programs[c].behavior)
		}
	}
	if h.env.Pod != nil {
		h.env.Pod(p.pod)
	}
	p.ref = pod.RefOf(p.pod)
	p.config = runtime.SandboxConfig{Pod: p.pod, Network: p.network}
	h.pods = append(h.pods, p)
	return p
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// change replaces what a container of the pod runs from its next attempt on.
func (p *testPod) change(container string, next program) {
	i := slices.IndexFunc(p.pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == container })
	// What was handed out already is not changed.
	p.pod = p.pod.DeepCopy()
	p.pod.Spec.Containers[i].Command = p.commandFor(next)
	if p.env.Behave != nil {
		p.env.Behave(container, next.behavior)
	}
}

// create makes the sandbox.
func (p *testPod) create() {
	p.Helper()
	if err := p.manager.CreateSandbox(p.ctx, p.config); err != nil {
		p.Fatalf("CreateSandbox: %v", err)
	}
}

// containerConfig is what an attempt is made from.
func (p *testPod) containerConfig(container string, attempt int) runtime.ContainerConfig {
	i := slices.IndexFunc(p.pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == container })
	return runtime.ContainerConfig{
		Pod: p.pod, Container: &p.pod.Spec.Containers[i], Attempt: attempt, Image: p.env.Image,
		Env: []runtime.EnvVar{
			{Name: "NAME", Value: "overridden"}, {Name: "PATH", Value: "/bin:/usr/bin:/sbin:/usr/sbin"},
			{Name: "NAME", Value: container}, {Name: "ATTEMPT", Value: fmt.Sprint(attempt)},
		},
		Mounts: append([]runtime.Mount{{Source: p.dir, Destination: sharedDir, Propagation: "private"}}, p.mounts[container]...),
	}
}

// run starts an attempt, which must succeed.
func (p *testPod) run(container string, attempt int) {
	p.Helper()
	if err := p.manager.RunContainer(p.ctx, p.containerConfig(container, attempt)); err != nil {
		p.Fatalf("RunContainer %s, attempt %d: %v", container, attempt, err)
	}
}

// runReady starts an attempt and waits until its program says that it is ready.
func (p *testPod) runReady(container string, attempt int) {
	p.Helper()
	p.run(container, attempt)
	p.awaitFile(fmt.Sprintf("%s.%d.ready", container, attempt))
}

// awaitFile waits for a file that a container makes in sharedDir, if containers do anything.
func (p *testPod) awaitFile(name string) {
	p.Helper()
	if p.env.Behave != nil {
		return
	}
	p.await("the file "+name, func() bool {
		_, err := os.Stat(filepath.Join(p.dir, name))
		return err == nil
	})
}

// await waits until done returns true.
func (p *testPod) await(what string, done func() bool) {
	p.Helper()
	long := cmp.Or(p.env.patience, patience)
	for end := time.Now().Add(long); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			state, err := p.manager.Observe(p.ctx, p.ref)
			p.Fatalf("%s: not within %v; the state is %+v, %v", what, long, state, err)
		}
	}
}

func (p *testPod) observe() pod.RuntimeState {
	p.Helper()
	state, err := p.manager.Observe(p.ctx, p.ref)
	if err != nil {
		p.Fatalf("Observe: %v", err)
	}
	return state
}

func (p *testPod) state(container string) pod.ContainerState {
	p.Helper()
	return p.observe().Containers[container]
}

// awaitExit waits until the container has ended and returns how.
func (p *testPod) awaitExit(container string) pod.ContainerState {
	p.Helper()
	var state pod.ContainerState
	p.await("the end of "+container, func() bool {
		state = p.state(container)
		return state.Stage == pod.ContainerExited
	})
	return state
}

// awaitReady waits until the sandbox is ready: CreateSandbox may return earlier.
func (p *testPod) awaitReady() {
	p.Helper()
	p.await("the sandbox", func() bool { return p.observe().Sandbox.Stage == pod.SandboxReady })
}

// exited complains unless the state is that of an attempt that has run and ended with the exit code.
func (p *testPod) exited(state pod.ContainerState, attempt, code int) {
	p.Helper()
	signal, reason := 0, pod.ReasonError
	if code > 128 {
		signal = code - 128
	} else if code == 0 {
		reason = pod.ReasonCompleted
	}
	if state.Stage != pod.ContainerExited || state.Attempt != attempt || state.ExitCode != code || state.Signal != signal || state.Reason != reason {
		p.Errorf("state %+v; want exited, attempt %d, exit code %d, signal %d, reason %s", state, attempt, code, signal, reason)
	}
	if state.PID != 0 || state.ID == "" || state.StartedAt.IsZero() || state.FinishedAt.Before(state.StartedAt) || state.StoppedByAdmin {
		p.Errorf("state %+v; want an ID, no PID, a start and a later end, and no administrator", state)
	}
}

// kind complains unless the error has one of the kinds.
func (h *suite) kind(what string, err error, kinds ...pod.Kind) {
	h.Helper()
	if err == nil || !slices.Contains(kinds, pod.KindOf(err)) {
		h.Errorf("%s: got %q: %v; want one of %q", what, pod.KindOf(err), err, kinds)
	}
}

// none complains about an error.
func (h *suite) none(what string, err error) {
	h.Helper()
	if err != nil {
		h.Errorf("%s: %v", what, err)
	}
}
