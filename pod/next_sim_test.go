package pod

import (
	"fmt"
	"maps"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// epoch is when each simulated world begins.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// world is a simulated runtime with a worker's memory: it carries out plans as a real one would,
// and checks them as it does.
type world struct {
	pod     *corev1.Pod
	now     time.Time
	seen    Observation // desired state, finished flag and memory; the runtime's facts are in state
	state   RuntimeState
	deleted bool

	imageErrors map[string]int  // how many more pulls fail, by container
	startErrors map[string]int  // how many more starts fail
	stubborn    map[string]bool // containers that ignore SIGTERM
	graceful    map[string]bool // containers that end with 0 on SIGTERM
	violations  []string
}

func newWorld(p *corev1.Pod) *world {
	return &world{
		pod: p, now: epoch,
		seen:        Observation{Desired: DesiredRun, DesiredAt: epoch, Containers: map[string]ContainerObservation{}},
		state:       RuntimeState{Sandbox: SandboxState{Stage: SandboxAbsent}, Containers: map[string]ContainerState{}},
		imageErrors: map[string]int{}, startErrors: map[string]int{}, stubborn: map[string]bool{}, graceful: map[string]bool{},
	}
}

func (w *world) names() []string {
	var names []string
	for _, c := range w.pod.Spec.InitContainers {
		names = append(names, c.Name)
	}
	for _, c := range w.pod.Spec.Containers {
		names = append(names, c.Name)
	}
	return names
}

// observe is the first half of a worker's sync: fold, then publish the status.
func (w *world) observe() {
	w.seen.Containers = Fold(w.names(), w.seen.Containers, w.state, w.now, w.seen.Policy)
	w.seen.Sandbox = w.state.Sandbox
	w.seen.PodIPs = nil
	if w.state.Sandbox.Stage == SandboxReady {
		w.seen.PodIPs = []netip.Addr{netip.MustParseAddr("10.0.0.2")}
	}
	p := *w.pod
	p.Status = StatusOf(w.pod, w.seen, w.pod.Status, w.now)
	if before := w.pod.Status.Phase; before == corev1.PodRunning && p.Status.Phase == corev1.PodPending {
		w.violate("the phase goes back from %s to %s", before, p.Status.Phase)
	}
	w.pod = &p
}

func (w *world) desired(desired Desired, grace *time.Duration) {
	w.seen.Desired, w.seen.DesiredAt, w.seen.Grace = desired, w.now, grace
	if desired == DesiredRun {
		w.seen.Restart()
	}
}

func (w *world) violate(format string, args ...any) {
	w.violations = append(w.violations, fmt.Sprintf(format, args...))
}

// carryOut does one step.
func (w *world) carryOut(s Step) {
	switch s.Op {
	case OpCreateSandbox:
		if w.state.Sandbox.Stage != SandboxAbsent {
			w.violate("a second sandbox is made: the first is %s", w.state.Sandbox.Stage)
		}
		w.state.Sandbox = SandboxState{Stage: SandboxReady}
	case OpStartContainer:
		w.startContainer(s)
	case OpStopContainer:
		w.stop(s.Container)
	case OpDeleteSandbox:
		if w.state.Sandbox.Stage == SandboxAbsent {
			w.violate("a sandbox is deleted that does not exist")
		}
		for name := range w.state.Containers {
			w.stop(name)
		}
		w.state.Sandbox = SandboxState{Stage: SandboxAbsent}
		w.observe() // what DeleteSandbox returns is folded in
		w.state.Containers = map[string]ContainerState{}
	case OpFinish:
		w.seen.Finished = true
	case OpDeletePod:
		if w.state.Sandbox.Stage != SandboxAbsent {
			w.violate("the pod is deleted while its sandbox is %s", w.state.Sandbox.Stage)
		}
		w.deleted = true
	}
}

func (w *world) startContainer(s Step) {
	if w.state.Sandbox.Stage != SandboxReady {
		w.violate("%s is started while the sandbox is %s", s.Container, w.state.Sandbox.Stage)
	}
	if w.seen.Desired != DesiredRun {
		w.violate("%s is started while the desired state is %s", s.Container, w.seen.Desired)
	}
	old, known := w.state.Containers[s.Container]
	if known && old.Stage.Live() {
		w.violate("%s is started while it is %s", s.Container, old.Stage)
	}
	if m := w.seen.Containers[s.Container]; m.Stage == ContainerExited && s.Attempt != m.Attempt+1 {
		w.violate("%s: attempt %d follows attempt %d", s.Container, s.Attempt, m.Attempt)
	}
	o := w.seen.Containers[s.Container]
	if w.imageErrors[s.Container] > 0 {
		w.imageErrors[s.Container]--
		failures := 1
		if o.Waiting != nil {
			failures += o.Waiting.Failures
		}
		o.Waiting = &Waiting{Reason: ReasonErrImagePull, Message: "no such image", Since: w.now, Failures: failures}
		w.remember(s.Container, o)
		return
	}
	o.Waiting = nil
	w.remember(s.Container, o)
	fact := ContainerState{
		Stage: ContainerRunning, Attempt: s.Attempt, ID: fmt.Sprintf("%s.%d", s.Container, s.Attempt), PID: 100, StartedAt: w.now,
	}
	if w.startErrors[s.Container] > 0 {
		w.startErrors[s.Container]--
		fact = ContainerState{
			Stage: ContainerExited, Attempt: s.Attempt, FinishedAt: w.now, ExitCode: 128, Reason: ReasonStartError, Message: "no such program",
		}
	}
	w.state.Containers[s.Container] = fact
}

func (w *world) remember(name string, o ContainerObservation) {
	w.seen.Containers = maps.Clone(w.seen.Containers)
	w.seen.Containers[name] = o
}

func (w *world) stop(name string) {
	if w.stubborn[name] {
		w.exit(name, 137, 9, ReasonError)
		return
	}
	if w.graceful[name] {
		w.exit(name, 0, 0, ReasonCompleted)
		return
	}
	w.exit(name, 143, 15, ReasonError)
}

// exit ends a running container; otherwise it does nothing and returns false.
func (w *world) exit(name string, code, signal int, reason string) bool {
	c, ok := w.state.Containers[name]
	if !ok || !c.Stage.Live() {
		return false
	}
	c.Stage, c.PID, c.FinishedAt, c.ExitCode, c.Signal, c.Reason = ContainerExited, 0, w.now, code, signal, reason
	if code == 0 {
		c.Reason = ReasonCompleted
	}
	w.state.Containers[name] = c
	return true
}

func (w *world) adminStop(name string) bool {
	if !w.exit(name, 143, 15, ReasonError) {
		return false
	}
	c := w.state.Containers[name]
	c.StoppedByAdmin = true
	w.state.Containers[name] = c
	return true
}

// killSandbox makes the sandbox die with all that is in it.
func (w *world) killSandbox(admin bool) {
	if w.state.Sandbox.Stage == SandboxAbsent {
		return
	}
	for name := range w.state.Containers {
		if admin {
			w.adminStop(name)
		} else {
			w.exit(name, 137, 9, ReasonError)
		}
	}
	w.state.Sandbox = SandboxState{Stage: SandboxDead, StoppedByAdmin: admin}
}

func (w *world) reboot() {
	w.state = RuntimeState{Sandbox: SandboxState{Stage: SandboxAbsent}, Containers: map[string]ContainerState{}}
}

// probe takes one result of a probe in; it returns false when that probe should not be running.
func (w *world) probe(name string, kind ProbeKind, ok bool) bool {
	o, wanted := w.seen.Containers[name], false
	for _, ref := range Next(w.pod, w.seen, w.now).Probes {
		wanted = wanted || ref == ProbeRef{Container: name, Attempt: o.Attempt, Kind: kind}
	}
	if !wanted {
		return false
	}
	var spec *corev1.Probe
	for _, c := range append(append([]corev1.Container{}, w.pod.Spec.InitContainers...), w.pod.Spec.Containers...) {
		if c.Name == name {
			spec = map[ProbeKind]*corev1.Probe{
				ProbeStartup: c.StartupProbe, ProbeLiveness: c.LivenessProbe, ProbeReadiness: c.ReadinessProbe,
			}[kind]
		}
	}
	state := map[ProbeKind]*ProbeState{ProbeStartup: &o.Startup, ProbeLiveness: &o.Liveness, ProbeReadiness: &o.Readiness}[kind]
	*state = state.of(o.Attempt).Record(spec, ok, "it said no", w.now)
	w.remember(name, o)
	return true
}
