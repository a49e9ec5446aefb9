package pod

import "time"

// The defaults of a [Policy]: the kubelet's (pkg/kubelet/kubelet.go, MaxContainerBackOff, and
// client-go's flowcontrol.Backoff).
const (
	DefaultBackoffInitial = 10 * time.Second
	DefaultBackoffMax     = 300 * time.Second
	DefaultBackoffReset   = 10 * time.Minute
)

// withDefaults fills in the fields that are zero.
func (p Policy) withDefaults() Policy {
	if p.BackoffInitial <= 0 {
		p.BackoffInitial = DefaultBackoffInitial
	}
	if p.BackoffMax <= 0 {
		p.BackoffMax = DefaultBackoffMax
	}
	if p.BackoffReset <= 0 {
		p.BackoffReset = DefaultBackoffReset
	}
	return p
}

// Backoff is how long to wait before the next try after failures tries: none for 0, then
// BackoffInitial, doubling up to BackoffMax.
//
// For containers, failures is [ContainerObservation.Failures], the restarts so far: as in
// Kubernetes the first restart is made at once.
func Backoff(policy Policy, failures int) time.Duration {
	policy = policy.withDefaults()
	if failures <= 0 {
		return 0
	}
	delay := min(policy.BackoffInitial, policy.BackoffMax)
	for i := 1; i < failures && delay < policy.BackoffMax; i++ {
		delay = min(2*delay, policy.BackoffMax)
	}
	return delay
}

// restartAt is when an exited container may be started again. It is never after now plus the
// longest backoff: a clock that was set back does not keep a container down.
func (o *ContainerObservation) restartAt(policy Policy, now time.Time) time.Time {
	if o.FinishedAt.After(now) {
		return time.Time{}
	}
	return o.FinishedAt.Add(Backoff(policy, o.Failures))
}

// retryAt is when an attempt that could not be made (Waiting) may be tried again; zero when there
// was none.
func (o *ContainerObservation) retryAt(policy Policy, now time.Time) time.Time {
	if o.Waiting == nil || o.Waiting.Since.After(now) {
		return time.Time{}
	}
	return o.Waiting.Since.Add(Backoff(policy, max(o.Waiting.Failures, 1)))
}
