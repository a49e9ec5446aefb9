package pod

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Memory: how facts of the runtime become what is remembered of a container. All pure.

// Observed folds a fact of the runtime into what is remembered and returns the result. The worker calls it for each container after each look.
//
// A fact of a later attempt moves the remembered one to Last and counts one restart for the backoff. A fact of an earlier attempt is stale and
// changes nothing. No fact (Absent) of a container that was remembered as alive means that it is gone and nobody saw how: it has exited
// with ReasonUnknown. An exit that was seen is remembered after the runtime has forgotten it.
func (o ContainerObservation) Observed(s ContainerState, now time.Time, p Policy) ContainerObservation {
	switch {
	case s.Stage == ContainerAbsent || s.Stage == "":
		if o.alive() {
			o.Stage, o.PID, o.ExitCode, o.Reason, o.FinishedAt = ContainerExited, 0, 255, ReasonUnknown, now
			o.Message = "the container is gone and its exit status was not seen"
		}
		if o.Stage == "" {
			o.Stage = ContainerAbsent
		}
		return o
	case o.stale(s):
		return o
	case o.ran() && s.Attempt > o.Attempt:
		return o.next(s, p)
	}
	o.ContainerState = s
	if o.alive() || o.Stage == ContainerExited {
		o.Waiting = nil
	}
	return o
}

func (o ContainerObservation) alive() bool {
	return o.Stage == ContainerRunning || o.Stage == ContainerStarting || o.Stage == ContainerStopping
}

// ran tells whether there was any attempt.
func (o ContainerObservation) ran() bool {
	return o.Last != nil || o.alive() || o.Stage == ContainerExited
}

// stale tells whether s is of an attempt before the one remembered, or of one that has been put aside by a restart of the pod.
func (o ContainerObservation) stale(s ContainerState) bool {
	if !o.ran() {
		return false
	}
	return s.Attempt < o.Attempt || s.Attempt == o.Attempt && (o.Stage == ContainerAbsent || o.Stage == ContainerExited && s.Stage != ContainerExited)
}

// next makes the observation of a later attempt.
func (o ContainerObservation) next(s ContainerState, p Policy) ContainerObservation {
	failures := o.Failures + 1
	if o.Stage == ContainerAbsent {
		failures = 0 // the user, or a new sandbox, began anew
	} else if o.ranLong(p) {
		failures = 1
	}
	last := o.Last
	if o.Stage != ContainerAbsent {
		was := o.ContainerState
		last = &was
	}
	return ContainerObservation{ContainerState: s, Failures: failures, Last: last, Image: o.Image, ImageID: o.ImageID}
}

// anew puts the latest attempt aside: the container is to be run again from the start, without backoff.
func (o ContainerObservation) anew() ContainerObservation {
	if o.Stage == ContainerAbsent || o.Stage == "" {
		o.Waiting = nil
		return o
	}
	was := o.ContainerState
	return ContainerObservation{
		ContainerState: ContainerState{Stage: ContainerAbsent, Attempt: o.Attempt}, Last: &was, Image: o.Image, ImageID: o.ImageID,
	}
}

// nextAttempt is the number of the attempt that comes now.
func (o ContainerObservation) nextAttempt() int {
	if !o.ran() {
		return 0
	}
	return o.Attempt + 1
}

// Restart makes the memory ready for a start that the user asked for: every container that does not run begins anew, a finished pod is no
// longer finished.
func Restart(finished *bool, containers map[string]ContainerObservation) {
	*finished = false
	for name, o := range containers {
		if !o.alive() {
			containers[name] = o.anew()
		}
	}
}

// NewSandbox makes the memory ready for a sandbox that has just been made: the init containers and sidecars run again, as the kubelet has it.
func NewSandbox(spec *corev1.Pod, containers map[string]ContainerObservation) {
	for i := range spec.Spec.InitContainers {
		name := spec.Spec.InitContainers[i].Name
		if o, ok := containers[name]; ok && !o.alive() {
			containers[name] = o.anew()
		}
	}
}
