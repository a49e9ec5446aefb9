package pod

import "time"

// Kubernetes' restart backoff (Pod Lifecycle, "Container restarts"): the first restart at once, then 10 s, 20 s, 40 s, ..., at most 300 s; a
// container that has run for 10 minutes begins anew.
const (
	DefaultBackoffInitial = 10 * time.Second
	DefaultBackoffMax     = 300 * time.Second
	DefaultBackoffReset   = 10 * time.Minute
)

func (p Policy) initial() time.Duration { return orDefault(p.BackoffInitial, DefaultBackoffInitial) }
func (p Policy) max() time.Duration     { return orDefault(p.BackoffMax, DefaultBackoffMax) }
func (p Policy) reset() time.Duration   { return orDefault(p.BackoffReset, DefaultBackoffReset) }

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

// Backoff is how long to wait after the given number of failures in a row: 0 for none, then initial, doubling, at most max.
func Backoff(p Policy, failures int) time.Duration {
	if failures <= 0 {
		return 0
	}
	d := p.initial()
	for range failures - 1 {
		if d >= p.max() {
			break
		}
		d *= 2
	}
	return min(d, p.max())
}

// restartAt is when an exited container may be started again: at once after its first failure or a long run.
func (o ContainerObservation) restartAt(p Policy) time.Time {
	return o.FinishedAt.Add(o.restartDelay(p))
}

func (o ContainerObservation) restartDelay(p Policy) time.Duration {
	if o.ranLong(p) {
		return 0
	}
	return Backoff(p, o.Failures)
}

// ranLong tells whether the attempt has run so long that the backoff begins anew.
func (o ContainerObservation) ranLong(p Policy) bool {
	return !o.StartedAt.IsZero() && o.FinishedAt.Sub(o.StartedAt) >= p.reset()
}

// retryAt is when a start that could not be made (an image that cannot be pulled, a missing ConfigMap) is tried again.
func (w *Waiting) retryAt(p Policy) time.Time { return w.Since.Add(Backoff(p, w.Failures)) }
