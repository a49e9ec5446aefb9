package runtimetest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/probe"
	"github.com/magikrun/magikpod/runtime"
)

// Fake is a PodManager in memory. Its containers run, end, obey signals and can be looked at as
// real ones can; only the processes are missing.
//
// It uses no clock but package time's and no goroutine that waits for anything but a timer, so it
// works in a testing/synctest bubble. What runs outlives the Fake: [Fake.Restart] returns a second
// one that sees the same pods, as after a restart of the daemon.
type Fake struct {
	// Info, Invalid and Fault are set before the first call.
	Info pod.ClassInfo
	// Invalid is what Validate returns; nil: nothing.
	Invalid func(p *corev1.Pod) field.ErrorList
	// Fault is asked before each call (Done false) and after each that succeeded (Done true); its
	// error becomes the call's. With Done false nothing has happened yet, with Done true all has,
	// and only the answer is lost, as when the daemon is killed at this point.
	Fault func(c Call) error

	world *world

	mu       sync.Mutex
	changed  func(ref pod.Ref)
	gone     bool
	known    map[types.UID]bool
	busy     map[string]int // calls that run, by what they must not share
	calls    []Call
	problems []string
}

var _ runtime.PodManager = (*Fake)(nil)

// Call is one call of a method.
type Call struct {
	Method    string // as in the interface
	Ref       pod.Ref
	Container string
	Attempt   int           // of RunContainer
	Grace     time.Duration // of the stops
	Done      bool          // for Fault
}

func (c Call) String() string {
	text := c.Method + " " + c.Ref.String()
	if c.Container != "" {
		text += " " + c.Container
	}
	if c.Method == "RunContainer" {
		text += fmt.Sprintf(" attempt=%d", c.Attempt)
	}
	return text
}

// New returns a manager of the class pod-containers on a host without pods.
func New() *Fake {
	return newFake(&world{pods: map[types.UID]*fakePod{}, behaviors: map[string][]Behavior{}})
}

func newFake(w *world) *Fake {
	f := &Fake{Info: pod.ClassInfo{Name: pod.ClassContainers, Available: true, Reason: "a fake"}, world: w,
		known: map[types.UID]bool{}, busy: map[string]int{}}
	w.mu.Lock()
	w.listener = f
	w.mu.Unlock()
	return f
}

// Restart returns the manager of the next daemon: it sees what f has left, and knows of nothing
// before Adopt. f calls nobody any more, and refuses new calls; those that run go on.
func (f *Fake) Restart() *Fake {
	f.mu.Lock()
	f.gone = true
	f.mu.Unlock()
	next := newFake(f.world)
	next.Info, next.Invalid, next.Fault = f.Info, f.Invalid, f.Fault
	return next
}

// Calls returns the calls that began so far.
func (f *Fake) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Problems returns the ways in which the caller broke the rules of the interface: mutating calls of
// one pod at the same time, calls before Adopt.
func (f *Fake) Problems() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.problems)
}

// Class implements [runtime.PodManager].
func (f *Fake) Class() pod.ClassInfo { return f.Info }

// Validate implements [runtime.PodManager].
func (f *Fake) Validate(p *corev1.Pod) field.ErrorList {
	if f.Invalid == nil {
		return nil
	}
	return f.Invalid(p)
}

// OnChange implements [runtime.PodManager].
func (f *Fake) OnChange(changed func(ref pod.Ref)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changed = changed
}

// call does one call: it keeps the books, asks Fault, and runs do.
func (f *Fake) call(c Call, do func() error) error {
	if err := f.begin(c); err != nil {
		return err
	}
	defer f.end(c)
	if f.Fault != nil {
		if err := f.Fault(c); err != nil {
			return err
		}
	}
	if err := do(); err != nil {
		return err
	}
	if f.Fault != nil {
		c.Done = true
		return f.Fault(c)
	}
	return nil
}

// lane names what a mutating call has for itself; "" when the call mutates nothing. The second
// result says whether it is the whole pod.
func (c Call) lane() (lane string, whole bool) {
	switch c.Method {
	case "CreateSandbox", "DeleteSandbox", "Forget", "Adopt":
		return string(c.Ref.UID), true
	case "RunContainer", "StopContainer":
		return string(c.Ref.UID) + "/" + c.Container, false
	}
	return "", false
}

func (f *Fake) begin(c Call) error {
	exists := f.world.exists(c.Ref.UID)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone {
		return pod.Errorf(pod.Unavailable, "cannot %s: this daemon has ended", c)
	}
	f.calls = append(f.calls, c)
	// What could not be adopted can be deleted.
	if c.Method == "Adopt" || c.Method == "DeleteSandbox" || !exists && c.Method == "CreateSandbox" {
		f.known[c.Ref.UID] = true
	} else if exists && !f.known[c.Ref.UID] {
		f.problems = append(f.problems, c.String()+" before Adopt")
	}
	lane, whole := c.lane()
	if lane == "" {
		return nil
	}
	uid := string(c.Ref.UID)
	// Each call is counted for its container and for its pod.
	if f.busy[uid] > 0 || f.busy[lane] > 0 || whole && f.busy[uid+"/"] > 0 {
		f.problems = append(f.problems, c.String()+" during another mutating call")
	}
	f.busy[lane]++
	if !whole {
		f.busy[uid+"/"]++
	}
	return nil
}

func (f *Fake) end(c Call) {
	f.mu.Lock()
	defer f.mu.Unlock()
	lane, whole := c.lane()
	if lane == "" {
		return
	}
	f.busy[lane]--
	if !whole {
		f.busy[string(c.Ref.UID)+"/"]--
	}
}

// notify notifies the daemon, if there still is one.
func (f *Fake) notify(ref pod.Ref) {
	f.mu.Lock()
	changed := f.changed
	if f.gone {
		changed = nil
	}
	f.mu.Unlock()
	if changed != nil {
		changed(ref)
	}
}

// CreateSandbox implements [runtime.PodManager].
func (f *Fake) CreateSandbox(ctx context.Context, config runtime.SandboxConfig) error {
	ref := config.Ref()
	return f.call(Call{Method: "CreateSandbox", Ref: ref}, func() error {
		if err := ctx.Err(); err != nil {
			return pod.Errorf(pod.Unavailable, "cannot create sandbox: %w", err)
		}
		return f.world.createSandbox(ref, config)
	})
}

// RunContainer implements [runtime.PodManager].
func (f *Fake) RunContainer(ctx context.Context, config runtime.ContainerConfig) error {
	c := Call{Method: "RunContainer", Ref: config.Ref(), Container: config.Container.Name, Attempt: config.Attempt}
	return f.call(c, func() error { return f.world.run(ctx, c.Ref, config) })
}

// SignalContainer implements [runtime.PodManager].
func (f *Fake) SignalContainer(_ context.Context, ref pod.Ref, container string, sig syscall.Signal) error {
	return f.call(Call{Method: "SignalContainer", Ref: ref, Container: container}, func() error { return f.world.signal(ref, container, sig) })
}

// StopContainer implements [runtime.PodManager].
func (f *Fake) StopContainer(ctx context.Context, ref pod.Ref, container string, grace time.Duration) error {
	return f.call(Call{Method: "StopContainer", Ref: ref, Container: container, Grace: grace}, func() error {
		return f.world.stop(ctx, ref, container, grace)
	})
}

// DeleteSandbox implements [runtime.PodManager].
func (f *Fake) DeleteSandbox(ctx context.Context, ref pod.Ref, grace time.Duration) (pod.RuntimeState, error) {
	var state pod.RuntimeState
	err := f.call(Call{Method: "DeleteSandbox", Ref: ref, Grace: grace}, func() (err error) {
		state, err = f.world.deleteSandbox(ctx, ref, grace)
		return err
	})
	if err != nil {
		return pod.RuntimeState{}, err
	}
	return state, nil
}

// Forget implements [runtime.PodManager].
func (f *Fake) Forget(_ context.Context, ref pod.Ref) error {
	return f.call(Call{Method: "Forget", Ref: ref}, func() error { return f.world.forget(ref) })
}

// Exec implements [runtime.PodManager]. The container's [Behavior] says what its processes do.
func (f *Fake) Exec(ctx context.Context, ref pod.Ref, container string, p runtime.Process) (runtime.ExitStatus, error) {
	var status runtime.ExitStatus
	err := f.call(Call{Method: "Exec", Ref: ref, Container: container}, func() (err error) {
		status, err = f.world.exec(ctx, ref, container, p)
		return err
	})
	return status, err
}

// Observe implements [runtime.PodManager].
func (f *Fake) Observe(_ context.Context, ref pod.Ref) (pod.RuntimeState, error) {
	var state pod.RuntimeState
	err := f.call(Call{Method: "Observe", Ref: ref}, func() error {
		state = f.world.observe(ref)
		return nil
	})
	return state, err
}

// Probe implements [runtime.PodManager] as a class does whose containers are on this host.
func (f *Fake) Probe(ctx context.Context, ref pod.Ref, container string, p probe.Probe) (ok bool, message string, err error) {
	f.world.with(func() {
		_, c := f.world.find(ref, container)
		err = c.running("probe", container)
	})
	if err != nil {
		return false, "", err
	}
	return runtime.MakeProbe(ctx, p, func(process runtime.Process) (runtime.ExitStatus, error) { return f.Exec(ctx, ref, container, process) })
}

// ContainerStats implements [runtime.PodManager]: each container has one process.
func (f *Fake) ContainerStats(_ context.Context, ref pod.Ref) (map[string]pod.ResourceUse, error) {
	use := map[string]pod.ResourceUse{}
	for name, c := range f.world.observe(ref).Containers {
		if c.Stage.Live() {
			use[name] = pod.ResourceUse{Processes: new(uint64(1))}
		}
	}
	return use, nil
}

// Frozen implements [runtime.PodManager].
func (f *Fake) Frozen(pod.Ref, string) bool { return false }

// PrepareImage implements [runtime.PodManager].
func (f *Fake) PrepareImage(context.Context, runtime.Image) error { return nil }

// ForgetImages implements [runtime.PodManager].
func (f *Fake) ForgetImages(context.Context) error { return nil }

// Named implements [runtime.PodManager].
func (f *Fake) Named(uid types.UID) (pod.Ref, error) {
	f.world.mu.Lock()
	defer f.world.mu.Unlock()
	p := f.world.pods[uid]
	if p == nil || p.sandbox.Stage == pod.SandboxAbsent {
		return pod.Ref{}, pod.Errorf(pod.NotFound, "cannot find the name of pod %s", uid)
	}
	return p.ref, nil
}

// Adopt implements [runtime.PodManager].
func (f *Fake) Adopt(_ context.Context, ref pod.Ref) error {
	return f.call(Call{Method: "Adopt", Ref: ref}, func() error { return nil })
}
