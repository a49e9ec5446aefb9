package pod

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Next decides what is to be done for a pod now. It is pure and level-triggered: it looks at what is, never at what happened last.
// spec.Status is only read for its start time (activeDeadlineSeconds). Semantics are the kubelet's (Pod Lifecycle; Sidecar Containers), with
// the wishes of a single host added: a stop that can be started again, and an administrator's systemctl stop, which is respected.
func Next(spec *corev1.Pod, seen Observation, now time.Time) Plan {
	p := planner{spec: spec, seen: seen, now: now}
	switch {
	case seen.Wish == WishDelete:
		p.tearDown(Step{Op: OpDeletePod})
	case seen.Wish == WishStop:
		p.tearDown()
	default:
		p.run()
	}
	return p.plan
}

// planner is one call of Next.
type planner struct {
	spec *corev1.Pod
	seen Observation
	now  time.Time
	plan Plan
}

func (p *planner) add(s Step) { p.plan.Steps = append(p.plan.Steps, s) }

// wake makes Next be called at t at the latest.
func (p *planner) wake(t time.Time) {
	if p.plan.WakeAt.IsZero() || t.Before(p.plan.WakeAt) {
		p.plan.WakeAt = t
	}
}

func isSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

func (p *planner) container(name string) ContainerObservation { return p.seen.Containers[name] }

// grace is the pod's own grace period.
func (p *planner) grace() time.Duration {
	if s := p.spec.Spec.TerminationGracePeriodSeconds; s != nil {
		return time.Duration(*s) * time.Second
	}
	return corev1.DefaultTerminationGracePeriodSeconds * time.Second
}

// graceLeft is what is left of the grace period of the present stop or delete. The first second counts as none, so that a stop that has just
// begun has exactly the grace period that the units were made with.
func (p *planner) graceLeft() time.Duration {
	grace := p.grace()
	if p.seen.Grace != nil {
		grace = *p.seen.Grace
	}
	elapsed := p.now.Sub(p.seen.WishedAt)
	if elapsed < time.Second {
		return grace
	}
	return max(grace-elapsed, 0)
}

// tearDown stops everything in order and removes the sandbox, then does the last steps: containers first, then sidecars in reverse order, each after
// the one behind it has ended. Without running sidecars the whole pod is stopped at once.
func (p *planner) tearDown(last ...Step) {
	if p.stopInOrder(p.graceLeft(), "") {
		return
	}
	if p.seen.Sandbox.Stage != SandboxAbsent {
		p.add(Step{Op: OpDeleteSandbox, Grace: p.graceLeft()})
	}
	for _, s := range last {
		p.add(s)
	}
}

// stopInOrder emits what must be stopped before the sandbox can go; false: nothing, the sandbox can go at once.
func (p *planner) stopInOrder(grace time.Duration, why string) bool {
	if p.seen.Sandbox.Stage == SandboxAbsent || p.seen.Sandbox.Stage == SandboxDead {
		return false
	}
	sidecars := p.runningSidecars()
	if len(sidecars) == 0 {
		return false
	}
	waiting := false
	for i := range p.spec.Spec.Containers {
		name := p.spec.Spec.Containers[i].Name
		if p.container(name).alive() {
			p.add(Step{Op: OpStopContainer, Container: name, Grace: grace, Why: why})
			waiting = true
		}
	}
	for i := range p.spec.Spec.InitContainers { // one that is still at work
		c := &p.spec.Spec.InitContainers[i]
		if !isSidecar(c) && p.container(c.Name).alive() {
			p.add(Step{Op: OpStopContainer, Container: c.Name, Grace: grace, Why: why})
			waiting = true
		}
	}
	if !waiting && len(sidecars) > 1 {
		p.add(Step{Op: OpStopContainer, Container: sidecars[len(sidecars)-1], Grace: grace, Why: "the containers have ended"})
		waiting = true
	}
	return waiting
}

// runningSidecars lists them in the order of the manifest.
func (p *planner) runningSidecars() []string {
	var names []string
	for i := range p.spec.Spec.InitContainers {
		c := &p.spec.Spec.InitContainers[i]
		if isSidecar(c) && p.container(c.Name).alive() {
			names = append(names, c.Name)
		}
	}
	return names
}

// run plans for a pod that is to run.
func (p *planner) run() {
	if p.seen.Finished {
		if p.seen.Sandbox.Stage != SandboxAbsent {
			p.add(Step{Op: OpDeleteSandbox, Grace: p.grace()})
		}
		return
	}
	if why := p.ending(); why != "" {
		p.finish(why)
		return
	}
	switch p.seen.Sandbox.Stage {
	case SandboxDead:
		p.add(Step{Op: OpDeleteSandbox, Why: "the sandbox died: " + p.seen.Sandbox.Message})
		return
	case SandboxAbsent, "":
		p.add(Step{Op: OpCreateSandbox})
		return
	}
	if p.initContainers() {
		p.containers()
	}
	p.probes()
}

// ending tells why the pod's life is over, or "".
func (p *planner) ending() string {
	if deadline := activeDeadline(p.spec); !deadline.IsZero() {
		if !p.now.Before(deadline) {
			return "DeadlineExceeded"
		}
		p.wake(deadline)
	}
	if name := failedInit(p.spec, p.seen); name != "" {
		return "init container " + name + " failed"
	}
	for i := range p.spec.Spec.Containers {
		c := &p.spec.Spec.Containers[i]
		if o := p.container(c.Name); o.Stage != ContainerExited || willRestart(p.spec, c, o) || held(p.spec, o) {
			return ""
		}
	}
	return "all containers have ended"
}

// activeDeadline is the end of activeDeadlineSeconds; zero when there is none or the pod has not begun.
func activeDeadline(spec *corev1.Pod) time.Time {
	if spec.Spec.ActiveDeadlineSeconds == nil || spec.Status.StartTime == nil {
		return time.Time{}
	}
	return spec.Status.StartTime.Add(time.Duration(*spec.Spec.ActiveDeadlineSeconds) * time.Second)
}

// failedInit returns the init container that has failed for good, or "".
func failedInit(spec *corev1.Pod, seen Observation) string {
	for i := range spec.Spec.InitContainers {
		c := &spec.Spec.InitContainers[i]
		o := seen.Containers[c.Name]
		if !isSidecar(c) && o.Stage == ContainerExited && o.ExitCode != 0 && !o.StoppedByAdmin && !willRestart(spec, c, o) {
			return c.Name
		}
	}
	return ""
}

// willRestart tells whether an exited container is started again by the restart policy.
func willRestart(spec *corev1.Pod, c *corev1.Container, o ContainerObservation) bool {
	if o.Stage != ContainerExited || o.StoppedByAdmin {
		return false
	}
	if isSidecar(c) {
		return true
	}
	probe, _ := failedProbe(c, o)
	switch spec.Spec.RestartPolicy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return o.ExitCode != 0 || probe != nil
	}
	for i := range spec.Spec.InitContainers {
		if spec.Spec.InitContainers[i].Name == c.Name { // an init container runs to its success under Always too
			return o.ExitCode != 0 || probe != nil
		}
	}
	return true
}

// held: an administrator stopped the container, and the pod goes on without it.
func held(spec *corev1.Pod, o ContainerObservation) bool {
	return o.StoppedByAdmin && spec.Spec.RestartPolicy != corev1.RestartPolicyNever
}

// finish ends a pod that has nothing more to do: what still runs, the sandbox, the phase.
func (p *planner) finish(why string) {
	if p.stopInOrder(p.grace(), why) {
		return
	}
	if p.seen.Sandbox.Stage != SandboxAbsent && p.seen.Sandbox.Stage != "" {
		p.add(Step{Op: OpDeleteSandbox, Grace: p.grace(), Why: why})
	}
	p.add(Step{Op: OpFinish, Why: why})
}

// initContainers runs them in order; true when the containers may be started.
func (p *planner) initContainers() bool {
	for i := range p.spec.Spec.InitContainers {
		c := &p.spec.Spec.InitContainers[i]
		o := p.container(c.Name)
		if isSidecar(c) {
			p.keep(c, o)
			if !isStarted(c, o) && !p.mainBegun() && !o.StoppedByAdmin {
				return false
			}
			continue
		}
		if o.Stage == ContainerExited && (o.ExitCode == 0 || o.StoppedByAdmin) && !willRestart(p.spec, c, o) {
			if o.ExitCode != 0 { // stopped by an administrator: the pod waits
				return false
			}
			continue
		}
		if p.mainBegun() {
			continue
		}
		p.keep(c, o)
		return false
	}
	return true
}

// mainBegun: a container (not init) has been started in this sandbox, so that the init phase is over.
func (p *planner) mainBegun() bool {
	for i := range p.spec.Spec.Containers {
		if p.container(p.spec.Spec.Containers[i].Name).alive() {
			return true
		}
	}
	return false
}

func (p *planner) containers() {
	for i := range p.spec.Spec.Containers {
		c := &p.spec.Spec.Containers[i]
		p.keep(c, p.container(c.Name))
	}
}

// keep does what one container needs that is to run: start, restart after the backoff, or a kill when a probe wants it.
func (p *planner) keep(c *corev1.Container, o ContainerObservation) {
	switch o.Stage {
	case ContainerRunning:
		if probe, why := failedProbe(c, o); probe != nil {
			grace := p.grace()
			if s := probe.TerminationGracePeriodSeconds; s != nil {
				grace = time.Duration(*s) * time.Second
			}
			p.add(Step{Op: OpStopContainer, Container: c.Name, Grace: grace, Why: why})
		}
	case ContainerExited:
		if willRestart(p.spec, c, o) {
			p.startAt(c, o, o.restartAt(p.seen.Policy), "restart")
		}
	case ContainerAbsent, "":
		p.startAt(c, o, time.Time{}, "")
	}
}

// startAt starts the container now, or wakes when it is time.
func (p *planner) startAt(c *corev1.Container, o ContainerObservation, at time.Time, why string) {
	if o.Waiting != nil {
		if retry := o.Waiting.retryAt(p.seen.Policy); retry.After(at) {
			at = retry
		}
	}
	if at.After(p.now) {
		p.wake(at)
		return
	}
	p.add(Step{Op: OpStartContainer, Container: c.Name, Attempt: o.nextAttempt(), Why: why})
}

// probes lists the probes that must run: the startup probe alone until it has passed, then the others.
func (p *planner) probes() {
	for _, list := range [][]corev1.Container{p.spec.Spec.InitContainers, p.spec.Spec.Containers} {
		for i := range list {
			c := &list[i]
			o := p.container(c.Name)
			if o.Stage != ContainerRunning {
				continue
			}
			want := func(probe *corev1.Probe, kind ProbeKind) {
				if probe != nil {
					p.plan.Probes = append(p.plan.Probes, ProbeRef{Container: c.Name, Attempt: o.Attempt, Kind: kind})
				}
			}
			if !isStarted(c, o) {
				want(c.StartupProbe, ProbeStartup)
				continue
			}
			want(c.LivenessProbe, ProbeLiveness)
			want(c.ReadinessProbe, ProbeReadiness)
		}
	}
}
