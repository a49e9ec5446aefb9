package daemon

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/shim"
)

// newProber makes the prober of a worker: results wait until the worker's next sync.
func (w *worker) newProber() *prober {
	b := newProber(w.manager, func(ref pod.ProbeRef, ok bool, message string) {
		w.mu.Lock()
		w.probed = append(w.probed, probeResult{ref: ref, ok: ok, message: message, at: time.Now()})
		w.mu.Unlock()
		w.wake()
	})
	b.errored = func(ref pod.ProbeRef, err error) {
		w.log.Debug("cannot probe", shim.FieldContainer, ref.Container, "probe", string(ref.Kind), "error", err)
	}
	return b
}

// probeState is what a probe has found so far, and when its container started.
func (w *worker) probeState(ref pod.ProbeRef) (pod.ProbeState, time.Time) {
	o := w.record.Containers[ref.Container]
	return *stateOf(&o, ref.Kind), o.StartedAt
}

// stateOf is where an observation has what a probe has found.
func stateOf(o *pod.ContainerObservation, kind pod.ProbeKind) *pod.ProbeState {
	switch kind {
	case pod.ProbeStartup:
		return &o.Startup
	case pod.ProbeLiveness:
		return &o.Liveness
	}
	return &o.Readiness
}

// foldProbe takes one result into the memory; one that belongs to an older attempt is too late.
func (w *worker) foldProbe(result probeResult) {
	ref := result.ref
	o, ok := w.record.Containers[ref.Container]
	_, probe := probeOf(w.record.Pod, ref)
	if !ok || probe == nil || o.Attempt != ref.Attempt || !o.Stage.Live() {
		return
	}
	state := stateOf(&o, ref.Kind)
	if state.Attempt != ref.Attempt {
		*state = pod.ProbeState{Attempt: ref.Attempt}
	}
	was := state.Failures
	*state = state.Record(probe, result.ok, result.message, result.at)
	if !result.ok && (was == 0 || state.Message != "" && state.Failures == int(probe.FailureThreshold)) {
		w.event(corev1.EventTypeWarning, "Unhealthy", ref.Container, fmt.Sprintf("%s probe failed: %s", probeTitle(ref.Kind), result.message))
	}
	w.record.SetContainer(ref.Container, o)
}

func probeTitle(kind pod.ProbeKind) string {
	switch kind {
	case pod.ProbeStartup:
		return "Startup"
	case pod.ProbeLiveness:
		return "Liveness"
	}
	return "Readiness"
}

// reportFrozen reports that somebody has frozen or thawed a container.
func (w *worker) reportFrozen(name string, frozen bool) {
	if frozen {
		w.event(corev1.EventTypeWarning, "Frozen", name, "Container "+name+" was frozen through systemd or its cgroup: it does nothing until it is thawed or stopped")
		return
	}
	w.event(corev1.EventTypeNormal, "Thawed", name, "Container "+name+" was thawed")
}

// reportEnd reports that an attempt has ended.
func (w *worker) reportEnd(name string, o *pod.ContainerObservation) {
	kind := corev1.EventTypeNormal
	text := fmt.Sprintf("Container %s ended with exit code %d", name, o.ExitCode)
	if o.Signal != 0 {
		text = fmt.Sprintf("Container %s was ended by signal %d", name, o.Signal)
	}
	if o.Reason != pod.ReasonCompleted {
		kind = corev1.EventTypeWarning
		text += " (" + o.Reason + ")"
	}
	if o.StoppedByAdmin {
		text += "; it was stopped through systemd and stays down until the pod is started"
	}
	w.event(kind, "Exited", name, text)
}

// endMessage is what a container has written to its terminationMessagePath.
func (w *worker) endMessage(name string, o *pod.ContainerObservation) string {
	c := pod.FindContainer(&w.record.Pod.Spec, name)
	if c == nil || c.TerminationMessagePath == "" || o.Reason == pod.ReasonStartError || o.Reason == pod.ReasonUnknown {
		return ""
	}
	text, err := w.d.volumes.ReadTerminationMessage(w.ref.UID, name, o.Attempt)
	if err != nil {
		w.log.Debug("cannot read the termination message", shim.FieldContainer, name, "error", err)
	}
	return text
}

// lastWords is the end of an attempt's log, which stands in for its termination message.
type lastWords struct {
	container string
	attempt   int
	text      string
}

// askLog reads the end of the log of an attempt that has failed without a message, if the manifest
// asks for that; the worker is woken with it.
func (w *worker) askLog(name string, o *pod.ContainerObservation) {
	c := pod.FindContainer(&w.record.Pod.Spec, name)
	if c == nil || c.TerminationMessagePolicy != corev1.TerminationMessageFallbackToLogsOnError || o.Message != "" || o.ExitCode == 0 || o.Reason == pod.ReasonUnknown {
		return
	}
	attempt, ended := o.Attempt, o.FinishedAt
	w.d.wg.Go(func() {
		text := w.d.endLog(w.d.ctx, w.ref, name, attempt, ended)
		if text == "" {
			return
		}
		w.mu.Lock()
		w.lastSaid = append(w.lastSaid, lastWords{container: name, attempt: attempt, text: text})
		w.mu.Unlock()
		w.wake()
	})
}

// foldLastWords makes the end of the log the message of the attempt.
func (w *worker) foldLastWords(said lastWords) {
	o := w.record.Containers[said.container]
	switch {
	case o.Attempt == said.attempt && o.Stage == pod.ContainerExited && o.Message == "":
		o.Message = said.text
	case o.Last != nil && o.Last.Attempt == said.attempt && o.Last.Message == "":
		last := *o.Last
		last.Message = said.text
		o.Last = &last
	default:
		return
	}
	w.record.SetContainer(said.container, o)
}
