package pod

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The reasons of conditions, as the kubelet words them (pkg/kubelet/status/generate.go).
const (
	reasonPodCompleted             = "PodCompleted"
	reasonPodFailed                = "PodFailed"
	reasonContainersNotReady       = "ContainersNotReady"
	reasonContainersNotInitialized = "ContainersNotInitialized"
)

// conditions are the pod's conditions in the kubelet's order; prev gives the times of those that
// have not changed.
func (v *view) conditions(phase corev1.PodPhase, prev []corev1.PodCondition) []corev1.PodCondition {
	ready := v.readyCondition(phase)
	sandbox := corev1.PodCondition{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionFalse}
	if s := v.seen.Sandbox.Stage; s == SandboxReady || s == SandboxStarting {
		sandbox.Status = corev1.ConditionTrue
	}
	containersReady := ready
	containersReady.Type = corev1.ContainersReady
	conditions := []corev1.PodCondition{
		sandbox, v.initializedCondition(phase), ready, containersReady,
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
	}
	for i := range conditions {
		c := &conditions[i]
		c.ObservedGeneration = v.pod.Generation
		c.LastTransitionTime = metav1.NewTime(v.now)
		for _, old := range prev {
			if old.Type == c.Type && old.Status == c.Status && !old.LastTransitionTime.IsZero() {
				c.LastTransitionTime = old.LastTransitionTime
			}
		}
	}
	return conditions
}

func (v *view) readyCondition(phase corev1.PodPhase) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionFalse}
	switch phase {
	case corev1.PodSucceeded:
		c.Reason = reasonPodCompleted
		return c
	case corev1.PodFailed:
		c.Reason = reasonPodFailed
		return c
	}
	unready := v.unready()
	if len(unready) == 0 {
		c.Status = corev1.ConditionTrue
		return c
	}
	c.Reason = reasonContainersNotReady
	c.Message = fmt.Sprintf("containers with unready status: [%s]", strings.Join(unready, " "))
	return c
}

// unready lists the sidecars and containers that are not ready.
func (v *view) unready() []string {
	var names []string
	for _, m := range v.members {
		if m.kind != kindInit && !m.ready() {
			names = append(names, m.name)
		}
	}
	return names
}

func (v *view) initializedCondition(phase corev1.PodPhase) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.PodInitialized, Status: corev1.ConditionTrue}
	if phase == corev1.PodSucceeded {
		c.Reason = reasonPodCompleted
		return c
	}
	incomplete := v.incomplete()
	if len(incomplete) == 0 {
		return c
	}
	c.Status, c.Reason = corev1.ConditionFalse, reasonContainersNotInitialized
	c.Message = fmt.Sprintf("containers with incomplete status: [%s]", strings.Join(incomplete, " "))
	return c
}

// incomplete lists the init containers and sidecars that the initialisation still waits for.
func (v *view) incomplete() []string {
	if v.initialized() {
		return nil
	}
	newest := v.newestInit()
	var names []string
	for i, m := range v.members {
		if m.kind == kindContainer {
			break
		}
		if i > newest || i == newest && !m.initDone() {
			names = append(names, m.name)
		}
	}
	if v.seen.Finished && v.failedInit() == nil { // it ended, so it was initialised; the sandbox is gone since
		return nil
	}
	return names
}
