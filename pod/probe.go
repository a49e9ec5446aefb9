package pod

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// ProbeState is what one probe has found so far on one attempt at a container. It is a value:
// [ProbeState.Record] returns the next one.
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

// maxProbeMessage bounds the message that is remembered of a failure, in bytes.
const maxProbeMessage = 1024

// Record returns the state after one more run of probe on the same attempt, which ended at the time
// at. message is what went wrong, for people; it is forgotten on success.
//
// The thresholds are those of corev1.Probe: successThreshold results in a row make it Passed,
// failureThreshold in a row make it Failed. Their defaults are 1 and 3.
func (s ProbeState) Record(probe *corev1.Probe, ok bool, message string, at time.Time) ProbeState {
	s.LastAt = at
	if ok {
		s.Successes, s.Failures = s.Successes+1, 0
		if s.Successes >= int(orDefault(probe.SuccessThreshold, 1)) {
			s.Passed, s.Failed, s.Message = true, false, ""
		}
		return s
	}
	s.Successes, s.Failures = 0, s.Failures+1
	s.Message = message
	if len(message) > maxProbeMessage {
		s.Message = strings.ToValidUTF8(message[:maxProbeMessage], "")
	}
	if s.Failures >= int(orDefault(probe.FailureThreshold, 3)) {
		s.Passed, s.Failed = false, true
	}
	return s
}

// NextAt is when the probe must run next: initialDelaySeconds after the container's start, then
// every periodSeconds (default 10).
func (s ProbeState) NextAt(probe *corev1.Probe, started time.Time) time.Time {
	first := started.Add(time.Duration(probe.InitialDelaySeconds) * time.Second)
	if s.LastAt.IsZero() {
		return first
	}
	next := s.LastAt.Add(time.Duration(orDefault(probe.PeriodSeconds, 10)) * time.Second)
	if next.Before(first) {
		return first
	}
	return next
}

// of returns the state if it belongs to attempt, and an empty one otherwise.
func (s ProbeState) of(attempt int) ProbeState {
	if s.Attempt != attempt {
		return ProbeState{Attempt: attempt}
	}
	return s
}

func orDefault(v, standard int32) int32 {
	if v <= 0 {
		return standard
	}
	return v
}
