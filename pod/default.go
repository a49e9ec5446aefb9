package pod

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Default fills in what the manifest leaves open, with the values that the Kubernetes API server
// stores (k8s.io/kubernetes, pkg/apis/core/v1/defaults.go). Two are ours: runtimeClassName is
// [ClassContainers], and mode of configMap and secret items is left open because defaultMode says
// it. It is idempotent.
func Default(p *corev1.Pod) {
	s := &p.Spec
	set(&s.RestartPolicy, corev1.RestartPolicyAlways)
	set(&s.DNSPolicy, corev1.DNSClusterFirst)
	set(&s.SchedulerName, corev1.DefaultSchedulerName)
	setPointer(&s.TerminationGracePeriodSeconds, corev1.DefaultTerminationGracePeriodSeconds)
	setPointer(&s.EnableServiceLinks, corev1.DefaultEnableServiceLinks)
	setPointer(&s.RuntimeClassName, ClassContainers)
	setPointer(&s.SecurityContext, corev1.PodSecurityContext{})
	for i := range s.Volumes {
		defaultVolume(&s.Volumes[i])
	}
	for c := range AllContainers(s) {
		defaultContainer(c, s.HostNetwork)
	}
	defaultPodResources(s)
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func setPointer[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}

func defaultVolume(v *corev1.Volume) {
	if v.VolumeSource == (corev1.VolumeSource{}) {
		v.EmptyDir = &corev1.EmptyDirVolumeSource{}
	}
	if v.HostPath != nil {
		setPointer(&v.HostPath.Type, corev1.HostPathUnset)
	}
	if v.ConfigMap != nil {
		setPointer(&v.ConfigMap.DefaultMode, corev1.ConfigMapVolumeSourceDefaultMode)
	}
	if v.Secret != nil {
		setPointer(&v.Secret.DefaultMode, corev1.SecretVolumeSourceDefaultMode)
	}
}

func defaultContainer(c *corev1.Container, hostNetwork bool) {
	set(&c.ImagePullPolicy, defaultPullPolicy(c.Image))
	set(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	set(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	if c.SecurityContext != nil {
		setPointer(&c.SecurityContext.ProcMount, corev1.DefaultProcMount)
	}
	for i := range c.Ports {
		port := &c.Ports[i]
		set(&port.Protocol, corev1.ProtocolTCP)
		if hostNetwork {
			set(&port.HostPort, port.ContainerPort)
		}
	}
	for i := range c.Env {
		if from := c.Env[i].ValueFrom; from != nil && from.FieldRef != nil {
			set(&from.FieldRef.APIVersion, "v1")
		}
	}
	for _, probe := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		defaultProbe(probe)
	}
	roundUp(c.Resources.Limits)
	roundUp(c.Resources.Requests)
	for name, limit := range c.Resources.Limits {
		if _, ok := c.Resources.Requests[name]; !ok {
			if c.Resources.Requests == nil {
				c.Resources.Requests = corev1.ResourceList{}
			}
			c.Resources.Requests[name] = limit.DeepCopy()
		}
	}
}

// defaultPullPolicy is Always for a tag that is expected to move, latest or none at all.
func defaultPullPolicy(image string) corev1.PullPolicy {
	name, _, hasDigest := strings.Cut(image, "@")
	_, tag, hasTag := strings.Cut(name[strings.LastIndexByte(name, '/')+1:], ":")
	if hasTag && tag == "latest" || !hasTag && !hasDigest {
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
}

func defaultProbe(p *corev1.Probe) {
	if p == nil {
		return
	}
	set(&p.TimeoutSeconds, 1)
	set(&p.PeriodSeconds, 10)
	set(&p.SuccessThreshold, 1)
	set(&p.FailureThreshold, 3)
	if p.HTTPGet != nil {
		set(&p.HTTPGet.Path, "/")
		set(&p.HTTPGet.Scheme, corev1.URISchemeHTTP)
	}
	if p.GRPC != nil {
		setPointer(&p.GRPC.Service, "")
	}
}

// roundUp makes the quantities multiples of a thousandth, the smallest that counts.
func roundUp(list corev1.ResourceList) {
	for name, quantity := range list {
		quantity.RoundUp(resource.Milli)
		list[name] = quantity
	}
}

// defaultPodResources fills in the requests of the whole pod where it has limits: what its
// containers request together, else the limit.
func defaultPodResources(s *corev1.PodSpec) {
	if s.Resources == nil {
		return
	}
	roundUp(s.Resources.Limits)
	roundUp(s.Resources.Requests)
	for name, limit := range s.Resources.Limits {
		if _, ok := s.Resources.Requests[name]; ok {
			continue
		}
		request, ok := effectiveRequest(s, name)
		if !ok {
			request = limit.DeepCopy()
		}
		if s.Resources.Requests == nil {
			s.Resources.Requests = corev1.ResourceList{}
		}
		s.Resources.Requests[name] = request
	}
}

// effectiveRequest is the [Effective] request of a resource; ok says whether any container requests it.
func effectiveRequest(s *corev1.PodSpec, name corev1.ResourceName) (total resource.Quantity, ok bool) {
	total = Effective(s, func(c *corev1.Container) resource.Quantity {
		request, has := c.Resources.Requests[name]
		ok = ok || has
		return request
	})
	return total, ok
}

// Effective is what the containers of a pod come to at the time when they come to most, by what
// each has of something: all containers and sidecars together, or an init container with the
// sidecars before it (Kubernetes: "Resource sharing within containers").
func Effective(s *corev1.PodSpec, of func(*corev1.Container) resource.Quantity) resource.Quantity {
	var sidecars, peak resource.Quantity
	for i := range s.InitContainers {
		c := &s.InitContainers[i]
		needed := of(c).DeepCopy()
		if Sidecar(c) {
			sidecars.Add(needed)
			needed = sidecars.DeepCopy()
		} else {
			needed.Add(sidecars)
		}
		if needed.Cmp(peak) > 0 {
			peak = needed
		}
	}
	total := sidecars.DeepCopy()
	for i := range s.Containers {
		total.Add(of(&s.Containers[i]))
	}
	if peak.Cmp(total) > 0 {
		return peak
	}
	return total
}
