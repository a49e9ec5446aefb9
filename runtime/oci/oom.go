package oci

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
)

// The OOM scores of the kubelet (pkg/kubelet/qos/policy.go).
const (
	guaranteedOOMScore = -997
	bestEffortOOMScore = 1000
)

// oomScoreAdj is what the kubelet gives a container of the pod's QoS class; nil where the host does
// not let us set it.
func oomScoreAdj(in Input) *int {
	score := oomScore(in)
	if score < 0 && !in.Host.LowerOOMScore {
		return nil
	}
	return &score
}

func oomScore(in Input) int {
	switch pod.QOSClass(in.Pod) {
	case corev1.PodQOSGuaranteed:
		return guaranteedOOMScore
	case corev1.PodQOSBestEffort:
		return bestEffortOOMScore
	}
	if in.Host.MemoryBytes <= 0 {
		return bestEffortOOMScore - 1
	}
	// A container that asked for all of the memory is the last to go.
	request := in.Container.Resources.Requests.Memory().Value()
	if _, ok := in.Container.Resources.Requests[corev1.ResourceMemory]; !ok {
		request = in.Container.Resources.Limits.Memory().Value()
	}
	share := float64(request) / float64(in.Host.MemoryBytes)
	score := 1000 - int(1000*share)
	// Burstable containers stay above the guaranteed and below the best-effort ones.
	return min(max(score, 1000+guaranteedOOMScore), bestEffortOOMScore-1)
}
