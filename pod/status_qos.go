package pod

import (
	corev1 "k8s.io/api/core/v1"
)

// QOSClass is the pod's quality of service class, from the CPU and memory of the pod, or else of
// its containers (Kubernetes: "Pod Quality of Service Classes").
func QOSClass(p *corev1.Pod) corev1.PodQOSClass {
	if r := p.Spec.Resources; r != nil && (len(r.Requests) > 0 || len(r.Limits) > 0) {
		return classOf([]corev1.ResourceRequirements{*r})
	}
	var all []corev1.ResourceRequirements
	for c := range AllContainers(&p.Spec) {
		all = append(all, c.Resources)
	}
	return classOf(all)
}

func classOf(all []corev1.ResourceRequirements) corev1.PodQOSClass {
	some, guaranteed := false, true
	for _, r := range all {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			limit, hasLimit := r.Limits[name]
			request, hasRequest := r.Requests[name]
			hasLimit, hasRequest = hasLimit && !limit.IsZero(), hasRequest && !request.IsZero()
			some = some || hasLimit || hasRequest
			if !hasLimit || hasRequest && request.Cmp(limit) != 0 {
				guaranteed = false
			}
		}
	}
	switch {
	case !some:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}
