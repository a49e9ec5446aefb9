package pod

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// ProbeState is what one probe has found so far on one attempt at a container. It is a value: [ProbeState.Record] returns the next one.
type ProbeState struct {
	// Attempt is the attempt that the results belong to; results of another attempt count as none.
	Attempt   int       `json:"attempt,omitempty"`
	Successes int       `json:"successes,omitempty"` // in a row
	Failures  int       `json:"failures,omitempty"`  // in a row
	Passed    bool      `json:"passed,omitempty"`    // successThreshold was reached, and failureThreshold not since
	Failed    bool      `json:"failed,omitempty"`    // failureThreshold was reached, and successThreshold not since
	LastAt    time.Time `json:"lastAt,omitzero"`
	Message   string    `json:"message,omitempty"` // of the newest failure
}

// Record adds one result. The thresholds are the probe's; an unset one counts as Kubernetes' default (success 1, failure 3).
func (s ProbeState) Record(probe *corev1.Probe, ok bool, message string, at time.Time) ProbeState {
	s.LastAt = at
	if ok {
		s.Successes, s.Failures = s.Successes+1, 0
		if s.Successes >= int(threshold(probe.SuccessThreshold, 1)) {
			s.Passed, s.Failed = true, false
		}
		return s
	}
	s.Successes, s.Failures, s.Message = 0, s.Failures+1, message
	if s.Failures >= int(threshold(probe.FailureThreshold, 3)) {
		s.Passed, s.Failed = false, true
	}
	return s
}

func threshold(n, def int32) int32 {
	if n <= 0 {
		return def
	}
	return n
}

// NextAt is when the probe runs next: initialDelaySeconds after the container's start, then every periodSeconds (default 10).
func (s ProbeState) NextAt(probe *corev1.Probe, started time.Time) time.Time {
	first := started.Add(time.Duration(probe.InitialDelaySeconds) * time.Second)
	if s.LastAt.IsZero() {
		return first
	}
	next := s.LastAt.Add(time.Duration(threshold(probe.PeriodSeconds, 10)) * time.Second)
	if next.Before(first) {
		return first
	}
	return next
}

// of is the state when it belongs to the attempt, else a fresh one.
func (s ProbeState) of(attempt int) ProbeState {
	if s.Attempt != attempt {
		return ProbeState{Attempt: attempt}
	}
	return s
}

// isStarted: the container runs, and its startup probe, where it has one, has passed.
func isStarted(c *corev1.Container, o ContainerObservation) bool {
	return o.Stage == ContainerRunning && (c.StartupProbe == nil || o.Startup.of(o.Attempt).Passed)
}

// isReady: the container is started, and its readiness probe, where it has one, has passed.
func isReady(c *corev1.Container, o ContainerObservation) bool {
	return isStarted(c, o) && (c.ReadinessProbe == nil || o.Readiness.of(o.Attempt).Passed)
}

// failedProbe returns the startup or liveness probe that wants the container to be killed, and its words.
func failedProbe(c *corev1.Container, o ContainerObservation) (*corev1.Probe, string) {
	if s := o.Startup.of(o.Attempt); c.StartupProbe != nil && s.Failed {
		return c.StartupProbe, "startup probe failed"
	}
	if s := o.Liveness.of(o.Attempt); c.LivenessProbe != nil && s.Failed {
		return c.LivenessProbe, "liveness probe failed"
	}
	return nil, ""
}
