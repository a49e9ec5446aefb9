package pod

import (
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// minSidecarGrace is what a sidecar gets at least when the containers before it have used the grace
// period up, as in the kubelet.
const minSidecarGrace = 2 * time.Second

// Next decides what must be done now for the pod, given what is true of it and what its user wants.
//
// It is pure and level-triggered: it looks at what is, never at what was asked of the world last,
// so it can be called at any time, and after a crash at any point. The decisions are the kubelet's
// (computePodActions, syncTerminatingPod) with two additions: a pod can be stopped and started
// again, and what an administrator stopped through systemd stays down until the user starts the
// pod.
//
// spec needs its defaults; of its status only startTime is read. seen comes from [Fold].
func Next(spec *corev1.Pod, seen Observation, now time.Time) Plan {
	p := &planner{view: newView(spec, seen, now)}
	switch {
	case seen.Desired == DesiredStop || seen.Desired == DesiredDelete:
		p.shutDown()
	case seen.Finished:
		p.removeSandbox("the pod has finished")
	default:
		p.keepRunning()
	}
	return p.plan
}

// planner collects the plan.
type planner struct {
	*view
	plan Plan
}

func (p *planner) add(s Step) { p.plan.Steps = append(p.plan.Steps, s) }

// wake asks for another look at the time at, if that is in the future.
func (p *planner) wake(at time.Time) {
	if at.After(p.now) && (p.plan.WakeAt.IsZero() || at.Before(p.plan.WakeAt)) {
		p.plan.WakeAt = at
	}
}

func (p *planner) removeSandbox(why string) {
	if p.seen.Sandbox.Stage != SandboxAbsent {
		p.add(Step{Op: OpDeleteSandbox, Grace: p.graceLeft(), Why: why})
	}
}

// shutDown stops the pod, and removes it when that is desired. A pod without running sidecars goes
// in one step: systemd stops its containers all at once.
func (p *planner) shutDown() {
	why := "the pod is stopped"
	if p.seen.Desired == DesiredDelete {
		why = "the pod is deleted"
	}
	if p.seen.Sandbox.Stage != SandboxAbsent && !p.stopInOrder(why) {
		return
	}
	p.removeSandbox(why)
	if p.seen.Desired == DesiredDelete {
		p.add(Step{Op: OpDeletePod})
	}
}

// stopInOrder stops the containers, then the sidecars in reverse order. It returns true when only
// the sandbox is left to do.
func (p *planner) stopInOrder(why string) bool {
	var sidecar *member
	containers := make([]*member, 0, len(p.members))
	for _, m := range p.members {
		switch {
		case m.class != classLive:
		case m.kind == kindSidecar:
			sidecar = m
		default:
			containers = append(containers, m)
		}
	}
	if sidecar == nil || p.seen.Sandbox.Stage == SandboxDead {
		return true
	}
	for _, m := range containers {
		p.add(Step{Op: OpStopContainer, Container: m.name, Grace: p.graceLeft(), Why: why})
	}
	if len(containers) == 0 {
		p.add(Step{Op: OpStopContainer, Container: sidecar.name, Grace: p.graceLeft(), Why: why})
	}
	return false
}

// keepRunning is Next for a pod that shall run.
func (p *planner) keepRunning() {
	if p.ended() || p.deadlineExceeded() {
		p.end()
		return
	}
	if deadline, ok := p.deadline(); ok {
		p.wake(deadline)
	}
	switch p.seen.Sandbox.Stage {
	case SandboxDead:
		if p.seen.Sandbox.StoppedByAdmin && !p.again() {
			return // it rests until the user starts it
		}
		p.removeSandbox("the sandbox is dead")
		return
	case SandboxAbsent:
		if !p.worthASandbox() {
			return
		}
		p.add(Step{Op: OpCreateSandbox})
	}
	p.stopUnhealthy()
	if p.initialize() {
		for _, m := range p.members {
			if m.kind == kindContainer {
				p.start(m)
			}
		}
	}
	p.probe()
}

// end brings a pod down that has nothing more to do, or whose time is over.
func (p *planner) end() {
	why := "all containers have ended"
	switch {
	case p.deadlineExceeded():
		why = "the pod was active longer than activeDeadlineSeconds"
	case p.failedInit() != nil:
		why = "init container " + p.failedInit().name + " failed"
	}
	if p.seen.Sandbox.Stage != SandboxAbsent && !p.stopInOrder(why) {
		return
	}
	p.removeSandbox(why)
	p.add(Step{Op: OpFinish, Why: why})
}

// worthASandbox says whether a container waits for a new sandbox: none does when all have ended or
// are kept down by an administrator.
func (p *planner) worthASandbox() bool {
	return !p.stoppedInit() && p.any(func(m *member) bool {
		return m.kind == kindContainer && (m.class == classIdle || m.class == classRetry)
	})
}

// stopUnhealthy stops the containers that failed their startup or liveness probe.
func (p *planner) stopUnhealthy() {
	for _, m := range p.members {
		if m.class != classLive || m.obs.Stage == ContainerStarting {
			continue
		}
		if kind, probe := m.failedProbe(); probe != nil {
			grace := p.grace()
			if seconds := probe.TerminationGracePeriodSeconds; seconds != nil {
				grace = time.Duration(*seconds) * time.Second
			}
			m.unhealthy = true
			p.add(Step{Op: OpStopContainer, Container: m.name, Grace: grace, Why: "its " + string(kind) + " probe failed"})
		}
	}
}

// initialize starts the init containers and sidecars one after the other, and keeps the sidecars
// that were started alive. It returns true when the containers may run.
//
// As in the kubelet the newest init container that was ever started decides how far the pod is: a
// sidecar before it that has died is started again beside it.
func (p *planner) initialize() bool {
	done := p.initialized()
	newest := p.newestInit()
	for i, m := range p.members {
		if m.kind == kindContainer {
			break
		}
		switch {
		case m.kind == kindSidecar && (done || i <= newest):
			p.start(m)
		case i == newest && !done && m.class == classRetry:
			p.start(m)
		}
	}
	if done {
		return true
	}
	if newest >= 0 && !p.members[newest].initDone() {
		return false
	}
	following := p.members[newest+1]
	if following.kind == kindContainer {
		return true
	}
	p.start(following)
	return false
}

// start starts a container that shall run and does not, now or when its backoff is over.
func (p *planner) start(m *member) {
	if m.class != classIdle && m.class != classRetry {
		return
	}
	at := p.startAt(m)
	if at.After(p.now) {
		p.wake(at)
		return
	}
	why := ""
	if m.class == classRetry {
		why = "it ended with exit code " + strconv.Itoa(m.obs.ExitCode)
	}
	p.add(Step{Op: OpStartContainer, Container: m.name, Attempt: m.nextAttempt(), Why: why})
}

// probe lists the probes that must be running: the startup probe first, then the others.
func (p *planner) probe() {
	for _, m := range p.members {
		if m.kind == kindInit || m.obs.Stage != ContainerRunning || m.unhealthy {
			continue
		}
		list := func(kind ProbeKind, probe *corev1.Probe) {
			if probe != nil {
				p.plan.Probes = append(p.plan.Probes, ProbeRef{Container: m.name, Attempt: m.obs.Attempt, Kind: kind})
			}
		}
		if !m.started() {
			list(ProbeStartup, m.spec.StartupProbe)
			continue
		}
		list(ProbeLiveness, m.spec.LivenessProbe)
		list(ProbeReadiness, m.spec.ReadinessProbe)
	}
}
