package pod

import (
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// resource returns a request or a limit of a container of the pod in units of the divisor, rounded
// up. A limit that is not set is what the host has.
func (r *envResolver) resource(ref *corev1.ResourceFieldSelector) (string, error) {
	c := r.container
	if ref.ContainerName != "" {
		if c = FindContainer(&r.pod.Spec, ref.ContainerName); c == nil {
			return "", Errorf(Invalid, "there is no container %s", shown(ref.ContainerName))
		}
	}
	kind, name, _ := strings.Cut(ref.Resource, ".")
	var list corev1.ResourceList
	switch kind {
	case "limits":
		list = c.Resources.Limits
	case "requests":
		list = c.Resources.Requests
	default:
		return "", Errorf(Invalid, "resource %s is not supported", shown(ref.Resource))
	}
	quantity, ok := list[corev1.ResourceName(name)]
	if kind == "limits" && (!ok || quantity.IsZero()) {
		quantity = r.sources.Capacity[corev1.ResourceName(name)]
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	switch corev1.ResourceName(name) {
	case corev1.ResourceCPU:
		return divideUp(quantity.MilliValue(), divisor.MilliValue()), nil
	case corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
		return divideUp(quantity.Value(), divisor.Value()), nil
	}
	return "", Errorf(Invalid, "resource %s is not supported", shown(ref.Resource))
}

// divideUp divides two positive numbers and rounds up.
func divideUp(n, d int64) string {
	quotient := n / max(d, 1)
	if n%max(d, 1) > 0 {
		quotient++
	}
	return strconv.FormatInt(quotient, 10)
}
