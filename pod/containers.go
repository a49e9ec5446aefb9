package pod

import (
	"iter"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// AllContainers yields the containers of a pod: init containers and sidecars, then containers, as
// in the manifest.
func AllContainers(s *corev1.PodSpec) iter.Seq[*corev1.Container] {
	return func(yield func(*corev1.Container) bool) {
		for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
			for i := range list {
				if !yield(&list[i]) {
					return
				}
			}
		}
	}
}

// ContainerPaths yields what [AllContainers] does, each container with its path in the manifest,
// such as spec.initContainers[0].
func ContainerPaths(s *corev1.PodSpec) iter.Seq2[*corev1.Container, *field.Path] {
	return func(yield func(*corev1.Container, *field.Path) bool) {
		i := -len(s.InitContainers) // below 0: an init container
		for c := range AllContainers(s) {
			path := field.NewPath("spec", "containers").Index(i)
			if i < 0 {
				path = field.NewPath("spec", "initContainers").Index(i + len(s.InitContainers))
			}
			if !yield(c, path) {
				return
			}
			i++
		}
	}
}

// FindContainer returns the container or init container of that name; nil when there is none.
func FindContainer(s *corev1.PodSpec, name string) *corev1.Container {
	for c := range AllContainers(s) {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// Sidecar says whether an init container is a sidecar, which goes on running beside the containers.
func Sidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// ClassOf is the runtime class of a pod; before [Default] it may be left out.
func ClassOf(p *corev1.Pod) string {
	if p.Spec.RuntimeClassName == nil {
		return ClassContainers
	}
	return *p.Spec.RuntimeClassName
}
