package pod

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// What people and jobs want to know of a pod at a glance.

// DisplayState is the STATUS column of kubectl get pods, and Stopped for a pod that the user or an administrator stopped. p has its status.
func DisplayState(p *corev1.Pod, seen Observation) string {
	switch {
	case seen.Wish == WishDelete:
		return "Terminating"
	case seen.Wish == WishStop && seen.Sandbox.Stage == SandboxAbsent && !seen.Finished:
		return "Stopped"
	case seen.Wish == WishStop && !seen.Finished:
		return "Stopping"
	}
	if text := initState(p); text != "" {
		return text
	}
	return mainState(p)
}

// initState is the state of a pod whose init phase is not over, or "".
func initState(p *corev1.Pod) string {
	total := len(p.Spec.InitContainers)
	for i, s := range p.Status.InitContainerStatuses {
		sidecar := isSidecar(&p.Spec.InitContainers[i])
		switch {
		case s.State.Terminated != nil && s.State.Terminated.ExitCode == 0 && !sidecar:
			continue
		case sidecar && s.Started != nil && *s.Started:
			continue
		case sidecar && p.Status.Phase != corev1.PodPending:
			continue
		case s.State.Terminated != nil:
			return "Init:" + exitText(s.State.Terminated)
		case s.State.Waiting != nil && s.State.Waiting.Reason != "" && s.State.Waiting.Reason != "PodInitializing" && s.State.Waiting.Reason != "ContainerCreating":
			return "Init:" + s.State.Waiting.Reason
		}
		return fmt.Sprintf("Init:%d/%d", i, total)
	}
	return ""
}

func mainState(p *corev1.Pod) string {
	text, running := string(p.Status.Phase), false
	if p.Status.Reason != "" {
		text = p.Status.Reason
	}
	for i := len(p.Status.ContainerStatuses) - 1; i >= 0; i-- {
		s := p.Status.ContainerStatuses[i]
		switch {
		case s.State.Waiting != nil && s.State.Waiting.Reason != "":
			text = s.State.Waiting.Reason
		case s.State.Terminated != nil:
			text = exitText(s.State.Terminated)
		case s.State.Running != nil:
			running = true
		}
	}
	if text == ReasonCompleted && running {
		return "Running"
	}
	return text
}

func exitText(t *corev1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	}
	return fmt.Sprintf("ExitCode:%d", t.ExitCode)
}

// ReadyCount counts as kubectl get pods does: containers and sidecars, how many are ready, and all restarts.
func ReadyCount(p *corev1.Pod) (ready, total, restarts int) {
	for i, s := range p.Status.InitContainerStatuses {
		restarts += int(s.RestartCount)
		if isSidecar(&p.Spec.InitContainers[i]) {
			total++
			if s.Ready {
				ready++
			}
		}
	}
	for _, s := range p.Status.ContainerStatuses {
		restarts += int(s.RestartCount)
		total++
		if s.Ready {
			ready++
		}
	}
	return ready, total, restarts
}

// Started tells whether every container (not init) has been started since the pod was last asked to run.
func Started(spec *corev1.Pod, seen Observation) bool {
	if seen.Wish != WishRun {
		return false
	}
	for i := range spec.Spec.Containers {
		switch o := seen.Containers[spec.Spec.Containers[i].Name]; {
		case o.Stage == ContainerRunning, o.Stage == ContainerStopping:
		case o.Stage == ContainerExited && o.Reason != ReasonStartError:
		default:
			return false
		}
	}
	return true
}

// IsReady tells whether the pod's condition Ready is true.
func IsReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// StartFailure is what makes a RunPod fail and be taken back; nil while there is hope: an image that cannot be had, a reference to nothing, a
// program that the OCI runtime cannot start, an init container that has failed for good.
func StartFailure(spec *corev1.Pod, seen Observation) error {
	if seen.Wish != WishRun {
		return nil
	}
	for _, list := range [][]corev1.Container{spec.Spec.InitContainers, spec.Spec.Containers} {
		for i := range list {
			name := list[i].Name
			o := seen.Containers[name]
			switch {
			case o.Waiting != nil:
				return Errorf(o.Waiting.kind(), "container %q: %s: %s", name, o.Waiting.Reason, o.Waiting.Message)
			case o.Stage == ContainerExited && o.Reason == ReasonStartError:
				return Errorf(Invalid, "container %q: %s: %s", name, o.Reason, o.Message)
			}
		}
	}
	if name := failedInit(spec, seen); name != "" {
		o := seen.Containers[name]
		return Errorf(Conflict, "init container %q failed with exit code %d (%s)", name, o.ExitCode, o.Reason)
	}
	return nil
}

func (w *Waiting) kind() Kind {
	if w.Kind == "" {
		return Internal
	}
	return w.Kind
}
