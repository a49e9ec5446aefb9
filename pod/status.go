package pod

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// StatusOf is the status that Kubernetes would report of the pod. prev is the status before: transition and start times are kept from it.
// hostIP is the caller's.
func StatusOf(spec *corev1.Pod, seen Observation, prev corev1.PodStatus, now time.Time) corev1.PodStatus {
	s := statusBuilder{spec: spec, seen: seen, prev: prev, now: now}
	st := corev1.PodStatus{StartTime: prev.StartTime, HostIP: prev.HostIP, HostIPs: prev.HostIPs, QOSClass: qosClass(spec)}
	if st.StartTime == nil && seen.Wish == WishRun {
		t := metav1.NewTime(now.UTC().Truncate(time.Second))
		st.StartTime = &t
	}
	for i := range spec.Spec.InitContainers {
		c := &spec.Spec.InitContainers[i]
		st.InitContainerStatuses = append(st.InitContainerStatuses, s.container(c, true))
	}
	for i := range spec.Spec.Containers {
		st.ContainerStatuses = append(st.ContainerStatuses, s.container(&spec.Spec.Containers[i], false))
	}
	for i, ip := range seen.PodIPs {
		if i == 0 {
			st.PodIP = ip
		}
		st.PodIPs = append(st.PodIPs, corev1.PodIP{IP: ip})
	}
	st.Phase, st.Reason, st.Message = s.phase()
	st.Conditions = s.conditions(st.Phase)
	return st
}

type statusBuilder struct {
	spec *corev1.Pod
	seen Observation
	prev corev1.PodStatus
	now  time.Time
}

// container is one containerStatus.
func (s *statusBuilder) container(c *corev1.Container, init bool) corev1.ContainerStatus {
	o := s.seen.Containers[c.Name]
	st := corev1.ContainerStatus{Name: c.Name, Image: c.Image, ImageID: o.ImageID, RestartCount: int32(o.Attempt)}
	if o.Image != "" {
		st.Image = o.Image
	}
	if o.ID != "" {
		st.ContainerID = "magikpod://" + o.ID
	}
	started := isStarted(c, o)
	st.Started = &started
	st.Ready = isReady(c, o) && s.seen.Wish == WishRun
	if init && !isSidecar(c) {
		st.Ready = o.Stage == ContainerExited && o.ExitCode == 0
	}
	if o.Last != nil {
		st.LastTerminationState.Terminated = terminated(*o.Last)
	}
	switch o.Stage {
	case ContainerRunning, ContainerStopping:
		st.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(o.StartedAt)}
	case ContainerExited:
		if wait := s.backingOff(c, o); wait != nil {
			st.State.Waiting = wait
			st.LastTerminationState.Terminated = terminated(o.ContainerState)
		} else {
			st.State.Terminated = terminated(o.ContainerState)
		}
	default:
		st.State.Waiting = s.waiting(c, o)
	}
	return st
}

func terminated(c ContainerState) *corev1.ContainerStateTerminated {
	t := &corev1.ContainerStateTerminated{
		ExitCode: int32(c.ExitCode), Signal: int32(c.Signal), Reason: c.Reason, Message: c.Message,
		StartedAt: metav1.NewTime(c.StartedAt), FinishedAt: metav1.NewTime(c.FinishedAt),
	}
	if c.ID != "" {
		t.ContainerID = "magikpod://" + c.ID
	}
	return t
}

// backingOff is the waiting state of a container that has exited and is to be restarted later.
func (s *statusBuilder) backingOff(c *corev1.Container, o ContainerObservation) *corev1.ContainerStateWaiting {
	if s.seen.Wish != WishRun || s.seen.Finished || !willRestart(s.spec, c, o) {
		return nil
	}
	if o.Waiting != nil {
		return s.waiting(c, o)
	}
	delay := o.restartDelay(s.seen.Policy)
	if delay == 0 || !o.restartAt(s.seen.Policy).After(s.now) {
		return nil
	}
	return &corev1.ContainerStateWaiting{
		Reason:  "CrashLoopBackOff",
		Message: fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)", delay, c.Name, s.spec.Name, s.spec.Namespace, s.spec.UID),
	}
}

// waiting is the waiting state of a container that has not been started, or could not be.
func (s *statusBuilder) waiting(c *corev1.Container, o ContainerObservation) *corev1.ContainerStateWaiting {
	if o.Waiting != nil {
		w := &corev1.ContainerStateWaiting{Reason: o.Waiting.Reason, Message: o.Waiting.Message}
		if w.Reason == "ErrImagePull" && o.Waiting.Failures > 1 {
			w.Reason = "ImagePullBackOff"
		}
		return w
	}
	if s.initsBefore(c.Name) {
		return &corev1.ContainerStateWaiting{Reason: "PodInitializing"}
	}
	return &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}
}

// initsBefore: an init container that comes before the named container is not done.
func (s *statusBuilder) initsBefore(name string) bool {
	for i := range s.spec.Spec.InitContainers {
		c := &s.spec.Spec.InitContainers[i]
		if c.Name == name {
			return false
		}
		if !initDone(c, s.seen.Containers[c.Name]) {
			return true
		}
	}
	return false
}

func initDone(c *corev1.Container, o ContainerObservation) bool {
	if isSidecar(c) {
		return isStarted(c, o)
	}
	return o.Stage == ContainerExited && o.ExitCode == 0
}

// initialized: the init phase is over: all init containers are done, or a container has begun (then a sidecar may be restarting).
func (s *statusBuilder) initialized() bool {
	for i := range s.spec.Spec.Containers {
		if s.seen.Containers[s.spec.Spec.Containers[i].Name].ran() {
			return true
		}
	}
	for i := range s.spec.Spec.InitContainers {
		c := &s.spec.Spec.InitContainers[i]
		if !initDone(c, s.seen.Containers[c.Name]) {
			return false
		}
	}
	return true
}

// phase is the kubelet's getPhase, with the reason of a pod that was stopped or has exceeded its deadline.
func (s *statusBuilder) phase() (phase corev1.PodPhase, reason, message string) {
	if s.prev.Reason == "DeadlineExceeded" && s.seen.Finished || s.deadlineExceeded() {
		return corev1.PodFailed, "DeadlineExceeded", "Pod was active on the node longer than the specified deadline"
	}
	if s.seen.Wish == WishStop && !s.seen.Finished && s.seen.Sandbox.Stage == SandboxAbsent {
		return corev1.PodPending, "Stopped", "the pod was stopped; magikpodctl start starts it"
	}
	if failedInit(s.spec, s.seen) != "" {
		return corev1.PodFailed, "", ""
	}
	if !s.initialized() {
		return corev1.PodPending, "", ""
	}
	var running, waiting, stopped, succeeded int
	for i := range s.spec.Spec.Containers {
		o := s.seen.Containers[s.spec.Spec.Containers[i].Name]
		switch {
		case o.Stage == ContainerRunning, o.Stage == ContainerStopping:
			running++
		case o.Stage == ContainerExited:
			stopped++
			if o.ExitCode == 0 {
				succeeded++
			}
		case o.Last != nil:
			stopped++
		default:
			waiting++
		}
	}
	return s.phaseOf(running, waiting, stopped, succeeded), "", ""
}

func (s *statusBuilder) phaseOf(running, waiting, stopped, succeeded int) corev1.PodPhase {
	switch {
	case waiting > 0:
		return corev1.PodPending
	case running > 0:
		return corev1.PodRunning
	case s.spec.Spec.RestartPolicy == corev1.RestartPolicyAlways:
		return corev1.PodRunning
	case stopped == succeeded:
		return corev1.PodSucceeded
	case s.spec.Spec.RestartPolicy == corev1.RestartPolicyNever:
		return corev1.PodFailed
	}
	return corev1.PodRunning
}

func (s *statusBuilder) deadlineExceeded() bool {
	deadline := activeDeadline(&corev1.Pod{Spec: s.spec.Spec, Status: s.prev})
	return s.seen.Wish == WishRun && !s.seen.Finished && !deadline.IsZero() && !s.now.Before(deadline)
}

// conditions are the pod's conditions in the kubelet's order.
func (s *statusBuilder) conditions(phase corev1.PodPhase) []corev1.PodCondition {
	done := phase == corev1.PodSucceeded || phase == corev1.PodFailed
	reason, message := s.unready(phase)
	initialized, initReason := s.initialized() && failedInit(s.spec, s.seen) == "", ""
	if !initialized {
		initReason = "ContainersNotInitialized"
	} else if done {
		initReason = "PodCompleted"
	}
	return []corev1.PodCondition{
		s.condition(corev1.PodReadyToStartContainers, s.seen.Sandbox.Stage == SandboxReady, "", ""),
		s.condition(corev1.PodInitialized, initialized, initReason, ""),
		s.condition(corev1.PodReady, reason == "", reason, message),
		s.condition(corev1.ContainersReady, reason == "", reason, message),
		s.condition(corev1.PodScheduled, true, "", ""),
	}
}

// unready is why the pod is not ready; an empty reason: it is.
func (s *statusBuilder) unready(phase corev1.PodPhase) (reason, message string) {
	if phase == corev1.PodSucceeded || phase == corev1.PodFailed {
		return "PodCompleted", ""
	}
	var names []string
	check := func(c *corev1.Container) {
		if o := s.seen.Containers[c.Name]; !isReady(c, o) || s.seen.Wish != WishRun {
			names = append(names, c.Name)
		}
	}
	for i := range s.spec.Spec.InitContainers {
		if c := &s.spec.Spec.InitContainers[i]; isSidecar(c) {
			check(c)
		}
	}
	for i := range s.spec.Spec.Containers {
		check(&s.spec.Spec.Containers[i])
	}
	if len(names) > 0 {
		return "ContainersNotReady", fmt.Sprintf("containers with unready status: %v", names)
	}
	return "", ""
}

// condition keeps the transition time when the status is what it was.
func (s *statusBuilder) condition(kind corev1.PodConditionType, is bool, reason, message string) corev1.PodCondition {
	c := corev1.PodCondition{Type: kind, Status: corev1.ConditionFalse, Reason: reason, Message: message, LastTransitionTime: metav1.NewTime(s.now.UTC().Truncate(time.Second))}
	if is {
		c.Status = corev1.ConditionTrue
	}
	for _, old := range s.prev.Conditions {
		if old.Type == kind && old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
	}
	return c
}

// qosClass is Kubernetes' quality of service class.
func qosClass(spec *corev1.Pod) corev1.PodQOSClass {
	guaranteed, any := true, false
	for _, list := range [][]corev1.Container{spec.Spec.InitContainers, spec.Spec.Containers} {
		for i := range list {
			for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
				request, limit := list[i].Resources.Requests[name], list[i].Resources.Limits[name]
				if !request.IsZero() || !limit.IsZero() {
					any = true
				}
				if limit.IsZero() || request.Cmp(limit) != 0 {
					guaranteed = false
				}
			}
		}
	}
	switch {
	case !any:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}
