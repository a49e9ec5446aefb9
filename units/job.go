package units

import (
	"context"

	"github.com/magikrun/magikpod/pod"
)

// The results of a job: systemd's, and two of ours.
const (
	resultDone = "done"
	resultLost = "lost"
)

// Job is something that systemd does with a unit: a start or a stop.
type Job struct {
	// ID is systemd's number; 0 for a job that there was no need for.
	ID   uint32
	Unit string

	verb   string
	done   chan struct{}
	result string
	undo   func() // called when the result is not done
}

func newJob(id uint32, verb, unit string) *Job {
	return &Job{ID: id, Unit: unit, verb: verb, done: make(chan struct{})}
}

func doneJob(verb, unit string) *Job {
	j := newJob(0, verb, unit)
	j.finish(resultDone)
	return j
}

// finish must be called once.
func (j *Job) finish(result string) {
	j.result = result
	close(j.done)
}

// Done returns a channel that is closed when the job has ended.
func (j *Job) Done() <-chan struct{} { return j.done }

// JobError is a job that did not end well.
type JobError struct {
	Verb, Unit string
	// Result is systemd's word: failed, canceled, timeout, dependency, skipped, ... or lost, when
	// the connection has ended before the job.
	Result string
}

func (e *JobError) Error() string {
	why := map[string]string{
		"failed":     "it failed",
		"canceled":   "another job took its place",
		"timeout":    "the job timed out",
		"dependency": "a unit that it needs did not start",
		"skipped":    "systemd skipped it",
		"frozen":     "it is frozen, or a slice that it is in (try: systemctl thaw)",
		resultLost:   "the connection to systemd is lost",
	}[e.Result]
	if why == "" {
		why = "the job ended as " + e.Result
	}
	return "cannot " + e.Verb + " unit " + e.Unit + ": " + why
}

// Wait waits for the end of the job: nil when it was done, a [*JobError] with a kind when not, or
// an error of kind Unavailable when ctx ends first (the job goes on then). The unit's State is up
// to date when Wait returns nil or a JobError that is not "lost".
func (j *Job) Wait(ctx context.Context) error {
	select {
	case <-j.done:
	case <-ctx.Done():
		select {
		case <-j.done:
		default:
			return pod.Errorf(pod.Unavailable, "cannot %s unit %s: %w", j.verb, j.Unit, context.Cause(ctx))
		}
	}
	if j.result == resultDone {
		return nil
	}
	kind := pod.Internal
	switch j.result {
	case "canceled", "skipped", "frozen":
		kind = pod.Conflict
	case "timeout", "dependency", resultLost:
		kind = pod.Unavailable
	}
	return pod.WithKind(kind, &JobError{Verb: j.verb, Unit: j.Unit, Result: j.result})
}
