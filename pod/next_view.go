package pod

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// kind is what a container is in its pod.
type kind int

const (
	kindInit kind = iota
	kindSidecar
	kindContainer
)

// class is what a container's latest attempt means for what comes next.
type class int

const (
	classIdle      class = iota // not run yet, or to be run afresh
	classLive                   // starting, running or stopping
	classRetry                  // ended, and to be started again
	classSucceeded              // ended for good
	classFailed                 // ended for good
	classStopped                // an administrator stopped it
)

// member is one container of the pod with what is known of it.
type member struct {
	name      string
	kind      kind
	spec      *corev1.Container
	obs       ContainerObservation
	class     class
	unhealthy bool // a probe of its failed and it is being stopped
}

// view is the pod as the decisions need it: what Next and StatusOf agree on.
type view struct {
	pod     *corev1.Pod
	seen    *Observation
	now     time.Time
	policy  corev1.RestartPolicy
	members []*member // init containers and sidecars, then containers, as in the manifest
}

func newView(p *corev1.Pod, seen Observation, now time.Time) *view {
	if seen.Sandbox.Stage == "" {
		seen.Sandbox.Stage = SandboxAbsent
	}
	v := &view{pod: p, seen: &seen, now: now, policy: p.Spec.RestartPolicy}
	if v.policy == "" {
		v.policy = corev1.RestartPolicyAlways
	}
	add := func(c *corev1.Container, k kind) {
		obs := seen.Containers[c.Name]
		if obs.Stage == "" {
			obs.Stage = ContainerAbsent
		}
		if seen.Sandbox.Stage == SandboxAbsent { // nothing can live without a sandbox
			if obs.Stage.Live() {
				obs.ContainerState = lost(obs.ContainerState, obs.StartedAt)
			}
			obs.Gone = true
		}
		v.members = append(v.members, &member{name: c.Name, kind: k, spec: c, obs: obs})
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		k := kindInit
		if Sidecar(c) {
			k = kindSidecar
		}
		add(c, k)
	}
	for i := range p.Spec.Containers {
		add(&p.Spec.Containers[i], kindContainer)
	}
	for _, m := range v.members {
		m.class = v.classify(m)
	}
	v.abandon()
	return v
}

// classify applies the restart policy.
func (v *view) classify(m *member) class {
	o := &m.obs
	switch {
	case o.Stage.Live():
		return classLive
	case o.StoppedByAdmin:
		return classStopped
	case o.Stage == ContainerAbsent || o.Again:
		return classIdle
	case m.kind == kindSidecar:
		return classRetry
	case m.kind == kindInit && o.succeeded() && o.Gone:
		return classIdle // a new sandbox is initialised from the beginning
	case m.kind == kindContainer && v.policy == corev1.RestartPolicyAlways:
		return classRetry
	}
	_, failedProbe := m.failedProbe() // killed for its health: how it took that does not matter
	switch {
	case o.succeeded() && (failedProbe == nil || v.policy == corev1.RestartPolicyNever):
		return classSucceeded
	case v.policy == corev1.RestartPolicyNever:
		return classFailed
	}
	return classRetry
}

// abandon marks the containers as failed that can never run: under restartPolicy Never a pod gets
// no second sandbox once a container has run.
func (v *view) abandon() {
	if v.policy != corev1.RestartPolicyNever {
		return
	}
	over := v.any(func(m *member) bool {
		return m.kind == kindContainer && m.obs.Gone && (m.class == classSucceeded || m.class == classFailed)
	})
	for _, m := range v.members {
		if over && m.kind == kindContainer && m.class == classIdle && !m.obs.Again {
			m.class = classFailed
		}
	}
}

func (o *ContainerObservation) succeeded() bool {
	return o.Stage == ContainerExited && o.ExitCode == 0 && o.Reason != ReasonStartError && o.Reason != ReasonUnknown
}

// failedProbe returns the probe that the latest attempt failed, if any.
func (m *member) failedProbe() (ProbeKind, *corev1.Probe) {
	switch {
	case m.spec.StartupProbe != nil && m.obs.Startup.of(m.obs.Attempt).Failed:
		return ProbeStartup, m.spec.StartupProbe
	case m.spec.LivenessProbe != nil && m.obs.Liveness.of(m.obs.Attempt).Failed:
		return ProbeLiveness, m.spec.LivenessProbe
	}
	return "", nil
}

// started says whether the container runs and has passed its startup probe, if it has one.
func (m *member) started() bool {
	if m.obs.Stage != ContainerRunning && m.obs.Stage != ContainerStopping {
		return false
	}
	return m.spec.StartupProbe == nil || m.obs.Startup.of(m.obs.Attempt).Passed
}

// ready says what the container status' field ready says.
func (m *member) ready() bool {
	if m.kind == kindInit {
		return m.class == classSucceeded
	}
	return m.started() && m.obs.Stage == ContainerRunning && (m.spec.ReadinessProbe == nil || m.obs.Readiness.of(m.obs.Attempt).Passed)
}

// initDone says whether the next container may be started.
func (m *member) initDone() bool {
	if m.kind == kindSidecar {
		return m.started() && !m.unhealthy
	}
	return m.class == classSucceeded
}

func (m *member) nextAttempt() int {
	if m.obs.Stage == ContainerAbsent {
		return m.obs.Attempt
	}
	return m.obs.Attempt + 1
}

// startAt is when the container may be started; in the past: now.
func (v *view) startAt(m *member) time.Time {
	at := m.obs.retryAt(v.seen.Policy, v.now)
	if m.class == classRetry {
		if backoff := m.obs.restartAt(v.seen.Policy, v.now); backoff.After(at) {
			at = backoff
		}
	}
	return at
}

// initialized says whether the pod's initialisation is over in this sandbox: a container was
// started in it.
func (v *view) initialized() bool {
	return v.any(func(m *member) bool {
		return m.kind == kindContainer && m.obs.Stage != ContainerAbsent && !m.obs.Gone && !m.obs.Again
	})
}

// any says whether one of the containers is so.
func (v *view) any(is func(m *member) bool) bool { return slices.ContainsFunc(v.members, is) }

// newestInit is the index of the last init container or sidecar that was started in this sandbox;
// -1 when there is none.
func (v *view) newestInit() int {
	newest := -1
	for i, m := range v.members {
		if m.kind == kindContainer {
			break
		}
		if m.class == classLive || m.class == classStopped || m.obs.Stage == ContainerExited && !m.obs.Gone && !m.obs.Again {
			newest = i
		}
	}
	return newest
}

// failedInit returns the init container that failed for good, if any.
func (v *view) failedInit() *member {
	if i := slices.IndexFunc(v.members, func(m *member) bool { return m.kind == kindInit && m.class == classFailed }); i >= 0 {
		return v.members[i]
	}
	return nil
}

// ended says whether the pod has nothing more to do.
func (v *view) ended() bool {
	return v.failedInit() != nil || !v.any(func(m *member) bool {
		return m.kind == kindContainer && m.class != classSucceeded && m.class != classFailed
	})
}

// failed says whether an ended pod has failed.
func (v *view) failed() bool {
	return v.any(func(m *member) bool { return m.kind != kindSidecar && m.class == classFailed })
}

// again says whether the user has asked for a fresh start that has not happened yet.
func (v *view) again() bool {
	return v.any(func(m *member) bool { return m.obs.Again })
}

// deadline is when activeDeadlineSeconds is over; it counts from the pod's startTime.
func (v *view) deadline() (time.Time, bool) {
	if v.pod.Spec.ActiveDeadlineSeconds == nil || v.pod.Status.StartTime == nil {
		return time.Time{}, false
	}
	return v.pod.Status.StartTime.Add(time.Duration(*v.pod.Spec.ActiveDeadlineSeconds) * time.Second), true
}

// deadlineExceeded says whether the deadline was reached before the pod had ended by itself.
func (v *view) deadlineExceeded() bool {
	deadline, ok := v.deadline()
	if !ok || v.now.Before(deadline) {
		return false
	}
	return !v.ended() || !v.endedAt().Before(deadline)
}

// endedAt is when the last container ended.
func (v *view) endedAt() time.Time {
	var at time.Time
	for _, m := range v.members {
		if m.kind != kindSidecar && m.obs.FinishedAt.After(at) {
			at = m.obs.FinishedAt
		}
	}
	return at
}

// grace is the pod's grace period.
func (v *view) grace() time.Duration {
	if v.pod.Spec.TerminationGracePeriodSeconds == nil {
		return corev1.DefaultTerminationGracePeriodSeconds * time.Second
	}
	return time.Duration(*v.pod.Spec.TerminationGracePeriodSeconds) * time.Second
}

// GraceLeft is what is left of the grace period of a pod that is being stopped or deleted.
func GraceLeft(spec *corev1.Pod, seen Observation, now time.Time) time.Duration {
	return newView(spec, seen, now).graceLeft()
}

// graceLeft is what is left of the grace period of a stop or delete, in whole seconds from one
// second on; otherwise the whole of it.
func (v *view) graceLeft() time.Duration {
	grace := v.grace()
	if v.seen.Desired == DesiredRun || v.seen.Desired == "" {
		return grace
	}
	if v.seen.Grace != nil {
		grace = max(*v.seen.Grace, 0)
	}
	left := grace
	if used := v.now.Sub(v.seen.DesiredAt); !v.seen.DesiredAt.IsZero() && used > 0 {
		left = max(grace-used, min(grace, minSidecarGrace))
	}
	if left > time.Second {
		left = left.Round(time.Second)
	}
	return left
}
