package pod

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Reference is a ConfigMap or a Secret that a pod refers to, in the pod's namespace.
type Reference struct {
	Name     string
	Optional bool // every reference to it says so
}

// ReferencedConfigMaps lists the ConfigMaps that volumes and environments of p name, each once, sorted by name.
func ReferencedConfigMaps(p *corev1.Pod) []Reference {
	found := references{}
	for i := range p.Spec.Volumes {
		if v := p.Spec.Volumes[i].ConfigMap; v != nil {
			found.add(v.Name, v.Optional)
		}
	}
	eachEnv(p, func(from *corev1.EnvFromSource) {
		if r := from.ConfigMapRef; r != nil {
			found.add(r.Name, r.Optional)
		}
	}, func(from *corev1.EnvVarSource) {
		if r := from.ConfigMapKeyRef; r != nil {
			found.add(r.Name, r.Optional)
		}
	})
	return found.list()
}

// ReferencedSecrets lists the Secrets that volumes and environments of p name, each once, sorted by name; imagePullSecrets are not among them.
func ReferencedSecrets(p *corev1.Pod) []Reference {
	found := references{}
	for i := range p.Spec.Volumes {
		if v := p.Spec.Volumes[i].Secret; v != nil {
			found.add(v.SecretName, v.Optional)
		}
	}
	eachEnv(p, func(from *corev1.EnvFromSource) {
		if r := from.SecretRef; r != nil {
			found.add(r.Name, r.Optional)
		}
	}, func(from *corev1.EnvVarSource) {
		if r := from.SecretKeyRef; r != nil {
			found.add(r.Name, r.Optional)
		}
	})
	return found.list()
}

// references says of each name whether it is optional.
type references map[string]bool

func (r references) add(name string, optional *bool) {
	before, seen := r[name]
	r[name] = isTrue(optional) && (before || !seen)
}

func (r references) list() []Reference {
	var list []Reference
	for _, name := range slices.Sorted(maps.Keys(r)) {
		list = append(list, Reference{Name: name, Optional: r[name]})
	}
	return list
}

// eachEnv calls from and valueFrom for each source of the environment of each container.
func eachEnv(p *corev1.Pod, from func(*corev1.EnvFromSource), valueFrom func(*corev1.EnvVarSource)) {
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			for j := range list[i].EnvFrom {
				from(&list[i].EnvFrom[j])
			}
			for _, e := range list[i].Env {
				if e.ValueFrom != nil {
					valueFrom(e.ValueFrom)
				}
			}
		}
	}
}
