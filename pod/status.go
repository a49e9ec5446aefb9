package pod

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ContainerIDScheme is what containerID begins with in a status.
const ContainerIDScheme = "magikpod://"

// The reasons of a pod's or container's status, as Kubernetes words them; ReasonStopped is
// magikpod's own.
const (
	ReasonContainerCreating = "ContainerCreating"
	ReasonPodInitializing   = "PodInitializing"
	ReasonCrashLoopBackOff  = "CrashLoopBackOff"
	ReasonErrImagePull      = "ErrImagePull"
	ReasonErrImageNeverPull = "ErrImageNeverPull"
	ReasonImagePullBackOff  = "ImagePullBackOff"
	ReasonDeadlineExceeded  = "DeadlineExceeded"
	// ReasonStopped: the pod rests, because its user or an administrator stopped it.
	ReasonStopped = "Stopped"
)

// StatusOf is the status that Kubernetes would report of the pod. prev is the status before this
// one: times of unchanged conditions and the phase of a finished pod are kept from it. hostIP is
// kept too: the caller sets it.
//
// It agrees with [Next] for the same arguments: CrashLoopBackOff is what Next waits for.
func StatusOf(spec *corev1.Pod, seen Observation, prev corev1.PodStatus, now time.Time) corev1.PodStatus {
	p := *spec
	p.Status = prev
	v := newView(&p, seen, now)
	status := corev1.PodStatus{
		ObservedGeneration: spec.Generation,
		HostIP:             prev.HostIP, HostIPs: prev.HostIPs,
		StartTime: v.startTime(prev.StartTime),
		QOSClass:  QOSClass(spec),
	}
	p.Status.StartTime = status.StartTime
	status.Phase, status.Reason, status.Message = v.phase(prev)
	if status.Phase == corev1.PodPending && prev.Phase == corev1.PodRunning {
		status.Phase = corev1.PodRunning // a phase that was left does not come back (Kubernetes: pod lifecycle)
	}
	for _, ip := range seen.PodIPs {
		status.PodIPs = append(status.PodIPs, corev1.PodIP{IP: ip.String()})
	}
	if len(status.PodIPs) > 0 {
		status.PodIP = status.PodIPs[0].IP
	}
	for _, m := range v.members {
		cs := v.containerStatus(m)
		if m.kind == kindContainer {
			status.ContainerStatuses = append(status.ContainerStatuses, cs)
		} else {
			status.InitContainerStatuses = append(status.InitContainerStatuses, cs)
		}
	}
	status.Conditions = v.conditions(status.Phase, prev.Conditions)
	return status
}

// startTime is when the pod was first seen, or when its user last started it afresh;
// activeDeadlineSeconds counts from it.
func (v *view) startTime(prev *metav1.Time) *metav1.Time {
	if prev == nil {
		t := metav1.NewTime(v.now)
		return &t
	}
	down := v.seen.Sandbox.Stage == SandboxAbsent && v.again() && !v.seen.Finished
	if down && !v.stopping() && v.seen.DesiredAt.After(prev.Time) {
		t := metav1.NewTime(v.seen.DesiredAt)
		return &t
	}
	return prev
}

func (v *view) stopping() bool {
	return v.seen.Desired == DesiredStop || v.seen.Desired == DesiredDelete
}

// resting says whether the pod is down, and stays so until its user starts it.
func (v *view) resting() bool {
	if v.seen.Finished {
		return false
	}
	if v.seen.Desired == DesiredStop && v.seen.Sandbox.Stage == SandboxAbsent {
		return true
	}
	if v.seen.Sandbox.StoppedByAdmin && !v.again() {
		return true
	}
	stopped := false
	for _, m := range v.members {
		if m.class == classLive || m.kind == kindContainer && (m.class == classIdle || m.class == classRetry) && !v.stoppedInit() {
			return false
		}
		stopped = stopped || m.class == classStopped
	}
	return stopped
}

func (v *view) stoppedInit() bool {
	return v.any(func(m *member) bool { return m.kind == kindInit && m.class == classStopped })
}

// phase is the pod's phase with its reason and message (kubelet: getPhase).
func (v *view) phase(prev corev1.PodStatus) (phase corev1.PodPhase, reason, message string) {
	if v.seen.Finished {
		if prev.Phase == corev1.PodSucceeded || prev.Phase == corev1.PodFailed {
			return prev.Phase, prev.Reason, prev.Message
		}
		if v.deadlineExceeded() || prev.Reason == ReasonDeadlineExceeded {
			return corev1.PodFailed, ReasonDeadlineExceeded, deadlineMessage
		}
		if v.failed() || !v.ended() {
			return corev1.PodFailed, "", ""
		}
		return corev1.PodSucceeded, "", ""
	}
	if v.resting() {
		return corev1.PodPending, ReasonStopped, v.stoppedMessage()
	}
	if !v.stopping() && v.deadlineExceeded() {
		reason, message = ReasonDeadlineExceeded, deadlineMessage
	}
	if !v.ended() && v.any(func(m *member) bool { return m.kind == kindContainer && v.neverRan(m) }) {
		return corev1.PodPending, reason, message
	}
	return corev1.PodRunning, reason, message
}

const deadlineMessage = "Pod was active on the node longer than the specified deadline"

func (v *view) stoppedMessage() string {
	if v.seen.Desired == DesiredStop {
		return "The pod was stopped by its user"
	}
	return "The pod was stopped through systemd; it stays down until it is started"
}

// neverRan says whether the container waits for its first attempt of this start.
func (v *view) neverRan(m *member) bool {
	return m.class == classIdle || m.obs.Stage == ContainerAbsent || m.obs.Stage == ContainerStarting && m.obs.Last == nil
}

// containerStatus is what the status says of one container.
func (v *view) containerStatus(m *member) corev1.ContainerStatus {
	started := m.started()
	cs := corev1.ContainerStatus{
		Name: m.name, Ready: m.ready(), Started: &started, RestartCount: int32(m.obs.Attempt),
		Image: m.obs.Image, ImageID: m.obs.ImageID,
	}
	if cs.Image == "" {
		cs.Image = m.spec.Image
	}
	if m.obs.ID != "" {
		cs.ContainerID = ContainerIDScheme + m.obs.ID
	}
	if m.obs.Last != nil {
		cs.LastTerminationState.Terminated = terminated(m.obs.Last)
	}
	if m.obs.Stage == ContainerRunning || m.obs.Stage == ContainerStopping {
		cs.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(m.obs.StartedAt)}
		return cs
	}
	waiting := v.waiting(m)
	if m.obs.Stage == ContainerExited {
		if waiting == nil {
			cs.State.Terminated = terminated(&m.obs.ContainerState)
			cs.Ready = m.kind == kindInit && m.obs.succeeded()
			if m.class == classStopped && cs.State.Terminated.Message == "" {
				cs.State.Terminated.Message = "stopped through systemd; it stays down until the pod is started"
			}
			return cs
		}
		cs.LastTerminationState.Terminated = terminated(&m.obs.ContainerState)
	}
	if waiting == nil {
		waiting = v.creating()
	}
	cs.State.Waiting = waiting
	return cs
}

// waiting is why a container that has ended or was never run is not running; nil when it has ended
// and nothing is to be waited for.
func (v *view) waiting(m *member) *corev1.ContainerStateWaiting {
	if v.stopping() || v.seen.Finished || v.resting() || m.class != classIdle && m.class != classRetry {
		return nil
	}
	if w := m.obs.Waiting; w != nil {
		return imageWaiting(w, m.spec.Image)
	}
	if m.class == classIdle {
		return v.creating()
	}
	at := m.obs.restartAt(v.seen.Policy, v.now)
	if !at.After(v.now) {
		return nil
	}
	delay := Backoff(v.seen.Policy, m.obs.Failures)
	return &corev1.ContainerStateWaiting{
		Reason:  ReasonCrashLoopBackOff,
		Message: fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)", delay, m.name, v.pod.Name, v.pod.Namespace, v.pod.UID),
	}
}

func (v *view) creating() *corev1.ContainerStateWaiting {
	if len(v.pod.Spec.InitContainers) > 0 {
		return &corev1.ContainerStateWaiting{Reason: ReasonPodInitializing}
	}
	return &corev1.ContainerStateWaiting{Reason: ReasonContainerCreating}
}

// imageWaiting words a failed attempt: from the second failed pull on it is ImagePullBackOff.
func imageWaiting(w *Waiting, image string) *corev1.ContainerStateWaiting {
	if w.Reason == ReasonErrImagePull && w.Failures > 1 {
		return &corev1.ContainerStateWaiting{
			Reason:  ReasonImagePullBackOff,
			Message: fmt.Sprintf("Back-off pulling image %q: %s: %s", image, ReasonErrImagePull, w.Message),
		}
	}
	return &corev1.ContainerStateWaiting{Reason: w.Reason, Message: w.Message}
}

func terminated(s *ContainerState) *corev1.ContainerStateTerminated {
	t := &corev1.ContainerStateTerminated{
		ExitCode: int32(s.ExitCode), Signal: int32(s.Signal), Reason: s.Reason, Message: s.Message,
		StartedAt: metav1.NewTime(s.StartedAt), FinishedAt: metav1.NewTime(s.FinishedAt),
	}
	if s.ID != "" {
		t.ContainerID = ContainerIDScheme + s.ID
	}
	return t
}
