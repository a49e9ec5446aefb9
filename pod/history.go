package pod

import (
	"maps"
	"time"
)

// Live says whether the stage is one of an attempt that has not ended.
func (s ContainerStage) Live() bool {
	return s == ContainerStarting || s == ContainerRunning || s == ContainerStopping
}

// Absent says whether there is no sandbox; the zero value is that stage, too.
func (s SandboxStage) Absent() bool { return s == SandboxAbsent || s == "" }

// Fold takes what a runtime sees of a whole pod into the memory of its containers and returns the
// new memory; memory itself is not changed. Call it with every result of Observe and DeleteSandbox.
// names are all the containers of the pod.
func Fold(names []string, memory map[string]ContainerObservation, state RuntimeState, now time.Time, policy Policy) map[string]ContainerObservation {
	next := make(map[string]ContainerObservation, len(names))
	for _, name := range names {
		fact, ok := state.Containers[name]
		if !ok {
			fact = ContainerState{Stage: ContainerAbsent}
		}
		o := memory[name].Observed(fact, now, policy)
		if !o.Stage.Live() {
			if state.Sandbox.Stage == SandboxAbsent && o.Stage == ContainerExited {
				o.Gone = true
			}
			if state.Sandbox.StoppedByAdmin && !o.Again {
				o.StoppedByAdmin = true
			}
		}
		next[name] = o
	}
	return next
}

// Observed folds one fact into the memory of a container and returns the new memory:
//
//   - a new attempt pushes the one before it to Last, counts a restart in Failures and forgets what the probes found;
//   - an exit after BackoffReset of running sets Failures to 0;
//   - an attempt that was running and that the runtime no longer knows has ended with ReasonUnknown (exit code 255), at now;
//   - an attempt that was only starting and that the runtime no longer knows was never made;
//   - an exited attempt that the runtime no longer knows stays as it was, and its sandbox is Gone;
//   - an older attempt than the remembered one is not news.
//
// fact.Stage is ContainerAbsent (or "") when the runtime knows nothing. Observed is idempotent.
func (o ContainerObservation) Observed(fact ContainerState, now time.Time, policy Policy) ContainerObservation {
	if o.Stage == "" {
		o.Stage = ContainerAbsent
	}
	switch {
	case fact.Stage == "" || fact.Stage == ContainerAbsent:
		return o.vanished(now, policy)
	case fact.Attempt < o.Attempt && o.Stage != ContainerAbsent:
		if o.Stage == ContainerStarting {
			return o.vanished(now, policy)
		}
		return o
	case o.Stage == ContainerAbsent || fact.Attempt > o.Attempt:
		o = o.begun()
	case o.Stage == ContainerExited && fact.Stage == ContainerExited:
		// The end is known already: its time stays, and after a Restart it no longer counts who made it.
		o.StoppedByAdmin = !o.Again && (o.StoppedByAdmin || fact.StoppedByAdmin)
		return o
	}
	o.Gone = false
	o.ContainerState = fact
	if fact.Stage == ContainerExited {
		o = o.ended(now, policy)
	}
	return o
}

// begun is the memory at the start of a new attempt; the caller sets the attempt's own state.
func (o ContainerObservation) begun() ContainerObservation {
	switch {
	case o.Stage == ContainerAbsent:
		o.Failures = 0
	case o.Again:
		last := o.ContainerState
		o.Last, o.Failures = &last, 0
	default:
		last := o.ContainerState
		if last.Stage != ContainerExited { // nobody saw its end
			last = lost(last, last.StartedAt)
		}
		o.Last = &last
		o.Failures++
	}
	o.Again, o.Gone, o.Waiting = false, false, nil
	o.Startup, o.Liveness, o.Readiness = ProbeState{}, ProbeState{}, ProbeState{}
	return o
}

// ended completes the state of an attempt that has just been seen to have exited.
func (o ContainerObservation) ended(now time.Time, policy Policy) ContainerObservation {
	if o.FinishedAt.IsZero() {
		o.FinishedAt = now
	}
	o.PID = 0
	if o.Reason == "" {
		o.Reason = ReasonCompleted
		if o.ExitCode != 0 {
			o.Reason = ReasonError
		}
	}
	if !o.StartedAt.IsZero() && o.FinishedAt.Sub(o.StartedAt) >= policy.withDefaults().BackoffReset {
		o.Failures = 0
	}
	return o
}

// vanished is the memory of a container that the runtime knows nothing of.
func (o ContainerObservation) vanished(now time.Time, policy Policy) ContainerObservation {
	switch o.Stage {
	case ContainerStarting:
		if o.Last == nil {
			o.ContainerState = ContainerState{Stage: ContainerAbsent, Attempt: o.Attempt}
			return o
		}
		o.ContainerState, o.Last = *o.Last, nil
		o.Failures = max(o.Failures-1, 0)
		o.Gone = true
	case ContainerRunning, ContainerStopping:
		o.ContainerState = lost(o.ContainerState, now)
		o.Gone = true
		return o.ended(now, policy)
	case ContainerExited:
		o.Gone = true
	}
	return o
}

// lost is the state of an attempt whose end nobody saw.
func lost(s ContainerState, at time.Time) ContainerState {
	s.Stage, s.PID, s.FinishedAt = ContainerExited, 0, at
	s.ExitCode, s.Signal, s.Reason = 255, 0, ReasonUnknown
	s.Message = "The container could not be located when the pod was started again"
	return s
}

// Restart prepares the memory for a start that the user asked for: a pod that is down (finished,
// stopped, or interrupted) begins afresh with the next attempt of every container; in a pod that is
// up, the containers that an administrator stopped, that wait in a backoff or for an image are
// started at once. Containers that run are left alone.
func (o *Observation) Restart() {
	down := true
	for _, c := range o.Containers {
		if c.Stage.Live() || (c.Stage == ContainerExited && !c.Gone && !c.StoppedByAdmin) {
			down = false
		}
	}
	down = down || o.Finished
	o.Finished = false
	o.Containers = maps.Clone(o.Containers)
	for name, c := range o.Containers {
		if c.Stage.Live() {
			continue
		}
		if c.StoppedByAdmin || (down && c.Stage == ContainerExited) {
			c.Again = true
		}
		c.StoppedByAdmin, c.Waiting, c.Failures = false, nil, 0
		o.Containers[name] = c
	}
}

// SetContainer replaces the memory of one container.
func (o *Observation) SetContainer(name string, c ContainerObservation) {
	o.Containers = maps.Clone(o.Containers)
	if o.Containers == nil {
		o.Containers = make(map[string]ContainerObservation)
	}
	o.Containers[name] = c
}
