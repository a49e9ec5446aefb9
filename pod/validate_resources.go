package pod

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The bounds of quantities: far more than any host has, and small enough that no computation with
// them overflows.
var (
	maxCPU   = resource.MustParse("1M")
	maxBytes = resource.MustParse("1Ei")
)

// resources checks the requests and limits of a container or of a pod.
func (c *checker) resources(r corev1.ResourceRequirements, at *field.Path) {
	for _, name := range resourceNames(r.Limits) {
		limit := at.Child("limits").Key(clip(string(name)))
		switch {
		case !c.quantity(limit, name, r.Limits[name]):
		case name == corev1.ResourceEphemeralStorage:
			c.refuse(limit, "the disk space of a container cannot be limited")
		}
	}
	for _, name := range resourceNames(r.Requests) {
		request := at.Child("requests").Key(clip(string(name)))
		if !c.quantity(request, name, r.Requests[name]) {
			continue
		}
		limit, limited := r.Limits[name]
		if q := r.Requests[name]; limited && q.Cmp(limit) > 0 {
			c.invalid(request, q.String(), "must not be more than the limit of "+limit.String())
		}
		if name == corev1.ResourceEphemeralStorage && !limited {
			c.warn(request, noScheduler)
		}
	}
	if len(r.Claims) > 0 {
		c.refuse(at.Child("claims"), "dynamic resource allocation is not supported")
	}
}

func resourceNames(list corev1.ResourceList) []corev1.ResourceName {
	return slices.Sorted(maps.Keys(list))
}

// quantity says whether the name is one that is supported, and the value can be compared.
func (c *checker) quantity(at *field.Path, name corev1.ResourceName, q resource.Quantity) bool {
	switch {
	case name == corev1.ResourceCPU:
		return c.quantityUpTo(at, q, maxCPU)
	case name == corev1.ResourceMemory, name == corev1.ResourceEphemeralStorage:
		return c.bytes(at, q)
	case strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix):
		c.refuse(at, "huge pages are not supported")
	case strings.Contains(string(name), "/"):
		c.refuse(at, "extended resources are not supported: there are no device plugins")
	default:
		c.add(field.NotSupported(at, clip(string(name)), []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage}))
	}
	return false
}

// bytes checks a quantity of bytes.
func (c *checker) bytes(at *field.Path, q resource.Quantity) bool {
	if !c.quantityUpTo(at, q, maxBytes) {
		return false
	}
	if whole := q.DeepCopy(); !whole.RoundUp(0) {
		c.warn(at, "is rounded up: there are no fractions of a byte")
	}
	return true
}

func (c *checker) quantityUpTo(at *field.Path, q, limit resource.Quantity) bool {
	switch {
	case q.Sign() < 0:
		c.invalid(at, q.String(), "must not be negative")
	case q.Cmp(limit) > 0:
		c.invalid(at, q.String(), "must not be more than "+limit.String())
	default:
		return true
	}
	return false
}

// podResources checks the resources of the whole pod, what the runtime class needs on top, and that
// those of the containers fit into them.
func (c *checker) podResources(s *corev1.PodSpec, at *field.Path) {
	for _, name := range resourceNames(s.Overhead) {
		overhead := at.Root().Child("overhead").Key(clip(string(name)))
		if c.quantity(overhead, name, s.Overhead[name]) && name == corev1.ResourceEphemeralStorage {
			c.warn(overhead, noScheduler)
		}
	}
	if s.Resources == nil {
		return
	}
	c.resources(*s.Resources, at)
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		if request, ok := s.Resources.Requests[name]; ok {
			if sum, _ := effectiveRequest(s, name); sum.Cmp(request) > 0 {
				c.invalid(at.Child("requests").Key(string(name)), request.String(), "must not be less than what the containers request together: "+sum.String())
			}
		}
		limit, ok := s.Resources.Limits[name]
		if !ok {
			continue
		}
		for container, path := range ContainerPaths(s) {
			if own, ok := container.Resources.Limits[name]; ok && own.Cmp(limit) > 0 {
				c.invalid(path.Child("resources", "limits").Key(string(name)), own.String(), "must not be more than the limit of the pod: "+limit.String())
			}
		}
	}
	for _, list := range []corev1.ResourceList{s.Resources.Limits, s.Resources.Requests} {
		if _, ok := list[corev1.ResourceEphemeralStorage]; ok {
			c.refuse(at, "only cpu and memory of a whole pod are supported")
		}
	}
}
