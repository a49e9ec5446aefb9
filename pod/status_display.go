package pod

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// DisplayState is the STATUS column as kubectl prints it (kubectl: printers/internalversion,
// printPod), with Stopped for a pod that rests and Frozen for one of which a container is frozen. p
// carries the status that belongs to seen.
func DisplayState(p *corev1.Pod, seen Observation) string {
	switch {
	case seen.Desired == DesiredDelete:
		return "Terminating"
	case seen.Desired == DesiredStop && !seen.Sandbox.Stage.Absent():
		return "Stopping"
	case p.Status.Reason == ReasonStopped:
		return ReasonStopped
	}
	state := string(p.Status.Phase)
	if p.Status.Reason != "" {
		state = p.Status.Reason
	}
	initState := initDisplay(p)
	if initState != "" && !conditionTrue(p, corev1.PodInitialized) {
		return initState
	}
	state = containersDisplay(p, state)
	if state == string(corev1.PodRunning) && frozen(seen) {
		return "Frozen"
	}
	return state
}

// frozen says whether somebody has frozen a container of the pod.
func frozen(seen Observation) bool {
	for _, c := range seen.Containers {
		if c.Frozen && c.Stage == ContainerRunning {
			return true
		}
	}
	return false
}

// initDisplay is the state while the pod is initialised; empty when it is.
func initDisplay(p *corev1.Pod) string {
	for i, c := range p.Status.InitContainerStatuses {
		t, w, spec := c.State.Terminated, c.State.Waiting, FindContainer(&p.Spec, c.Name)
		switch {
		case t != nil && t.ExitCode == 0:
			continue
		case spec != nil && Sidecar(spec) && c.Started != nil && *c.Started:
			continue
		case t != nil:
			return "Init:" + endDisplay(t)
		case w != nil && w.Reason != "" && w.Reason != ReasonPodInitializing:
			return "Init:" + w.Reason
		}
		return fmt.Sprintf("Init:%d/%d", i, len(p.Spec.InitContainers))
	}
	return ""
}

func containersDisplay(p *corev1.Pod, state string) string {
	running := false
	for i := len(p.Status.ContainerStatuses) - 1; i >= 0; i-- {
		c := &p.Status.ContainerStatuses[i]
		switch {
		case c.State.Waiting != nil && c.State.Waiting.Reason != "":
			state = c.State.Waiting.Reason
		case c.State.Terminated != nil:
			state = endDisplay(c.State.Terminated)
		case c.State.Running != nil && c.Ready:
			running = true
		}
	}
	if state == ReasonCompleted && running {
		if conditionTrue(p, corev1.PodReady) {
			return string(corev1.PodRunning)
		}
		return "NotReady"
	}
	return state
}

func endDisplay(t *corev1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	}
	return fmt.Sprintf("ExitCode:%d", t.ExitCode)
}

func conditionTrue(p *corev1.Pod, kind corev1.PodConditionType) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == kind && c.Status == corev1.ConditionTrue
	})
}

// ReadyCount is the READY column and the RESTARTS column: sidecars count among the containers;
// plain init containers' restarts count only until the pod is initialised.
func ReadyCount(p *corev1.Pod, seen Observation) (ready, total, restarts int) {
	v := newView(p, seen, time.Time{})
	initialized := len(v.incomplete()) == 0
	for _, m := range v.members {
		if m.kind != kindInit {
			total++
			if m.ready() {
				ready++
			}
		}
		if (m.kind != kindInit) == initialized || m.kind == kindSidecar {
			restarts += m.obs.Attempt
		}
	}
	return ready, total, restarts
}

// Started says whether the pod is initialised and every container of it has been started in this
// start of the pod.
func Started(p *corev1.Pod, seen Observation) bool {
	return !newView(p, seen, time.Time{}).any(func(m *member) bool {
		startError := m.obs.Stage == ContainerExited && m.obs.Reason == ReasonStartError
		return m.kind == kindContainer && (m.obs.Stage == ContainerAbsent || m.obs.Stage == ContainerStarting || m.obs.Again || startError)
	})
}

// IsReady says whether the pod's condition Ready is true.
func IsReady(p *corev1.Pod, seen Observation) bool {
	if seen.Finished || seen.Desired == DesiredDelete {
		return false
	}
	return len(newView(p, seen, time.Time{}).unready()) == 0
}

// IsFinished says whether the pod has reached the phase Succeeded or Failed.
func IsFinished(seen Observation) bool { return seen.Finished }

// StartFailure is why a pod that is being started cannot be expected to come up: what makes an
// atomic run fail and roll back. It is nil while there is hope, and once the pod has [Started].
func StartFailure(p *corev1.Pod, seen Observation) error {
	if Started(p, seen) {
		return nil
	}
	v := newView(p, seen, time.Time{})
	for _, m := range v.members {
		o := &m.obs
		switch {
		case o.Again:
		case o.Waiting != nil && !o.Stage.Live():
			return Errorf(waitingKind(o.Waiting), "cannot start container %q: %s: %s", m.name, o.Waiting.Reason, o.Waiting.Message)
		case o.Stage == ContainerExited && o.Reason == ReasonStartError:
			return Errorf(Internal, "cannot start container %q: %s", m.name, o.Message)
		}
	}
	if m := v.failedInit(); m != nil {
		return Errorf(Unavailable, "cannot start pod %s: init container %q failed with exit code %d (%s)", RefOf(p), m.name, m.obs.ExitCode, m.obs.Reason)
	}
	if seen.Finished {
		return Errorf(Unavailable, "cannot start pod %s: it ended before all its containers were started", RefOf(p))
	}
	return nil
}

func waitingKind(w *Waiting) Kind {
	if w.Kind != "" {
		return w.Kind
	}
	switch w.Reason {
	case ReasonErrImageNeverPull:
		return NotFound
	case "CreateContainerConfigError", "InvalidImageName":
		return Invalid
	}
	return Unavailable
}
