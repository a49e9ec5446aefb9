package pod

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// NameValue is a variable of the environment.
type NameValue struct{ Name, Value string }

// EnvSources is what the environment of a container may refer to.
type EnvSources struct {
	// ConfigMap and Secret return the object of that name in the pod's namespace, or an error of
	// kind NotFound when there is none.
	ConfigMap func(name string) (*corev1.ConfigMap, error)
	Secret    func(name string) (*corev1.Secret, error)

	PodIPs   []string // the first one is status.podIP; with hostNetwork the host's
	HostIPs  []string // the first one is status.hostIP
	NodeName string   // spec.nodeName
	// Capacity is what a container has that is not limited.
	Capacity corev1.ResourceList
}

// ResolveEnv returns the environment that the manifest gives to container c of pod p, as the
// kubelet makes it: first what envFrom names, in the order of the list and sorted by name within
// each object, then env. A name may occur more than once: the last one counts. $(NAME) in a value
// is replaced by the variable of that name that was set before.
//
// Keys that cannot be the name of a variable are left out. What is missing and optional is left
// out, too.
//
// Errors: NotFound, with its name, for a ConfigMap, a Secret or a key that is missing and not
// optional; what the sources return; Invalid for a value that no process can be given.
func ResolveEnv(p *corev1.Pod, c *corev1.Container, sources EnvSources) ([]NameValue, error) {
	r := envResolver{pod: p, container: c, sources: sources, values: make(map[string]string)}
	for _, from := range c.EnvFrom {
		if err := r.from(from); err != nil {
			return nil, err
		}
	}
	for _, e := range c.Env {
		value, ok := Expand(e.Value, r.lookup), true
		if e.ValueFrom != nil {
			var err error
			if value, ok, err = r.valueFrom(e.ValueFrom); err != nil {
				return nil, Errorf(KindOf(err), "cannot set the variable %s of container %q: %w", shown(e.Name), c.Name, err)
			}
		}
		if !ok {
			continue
		}
		if err := r.set(e.Name, value); err != nil {
			return nil, err
		}
	}
	return r.list, nil
}

type envResolver struct {
	pod       *corev1.Pod
	container *corev1.Container
	sources   EnvSources
	list      []NameValue
	values    map[string]string
	bytes     int
}

func (r *envResolver) lookup(name string) (string, bool) {
	value, ok := r.values[name]
	return value, ok
}

func (r *envResolver) set(name, value string) error {
	if r.bytes += len(name) + len(value) + 2; r.bytes > MaxExecBytes {
		return Errorf(Invalid, "cannot make the environment of container %q: it has more than %d bytes", r.container.Name, MaxExecBytes)
	}
	if strings.ContainsRune(value, 0) {
		return Errorf(Invalid, "cannot set the variable %s of container %q: its value has a NUL byte", shown(name), r.container.Name)
	}
	r.list = append(r.list, NameValue{name, value})
	r.values[name] = value
	return nil
}

// from adds all keys of an object.
func (r *envResolver) from(from corev1.EnvFromSource) error {
	data := make(map[string]string)
	switch {
	case from.ConfigMapRef != nil:
		ref := from.ConfigMapRef
		o, err := find(r.sources.ConfigMap, "ConfigMap", ref.Name, ref.Optional)
		if err != nil || o == nil {
			return r.wrap(err)
		}
		data = o.Data
	case from.SecretRef != nil:
		ref := from.SecretRef
		o, err := find(r.sources.Secret, "Secret", ref.Name, ref.Optional)
		if err != nil || o == nil {
			return r.wrap(err)
		}
		for k, v := range o.Data {
			data[k] = string(v)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(data)) {
		name := from.Prefix + key
		if len(validation.IsRelaxedEnvVarName(name)) > 0 || strings.ContainsRune(data[key], 0) {
			continue
		}
		if err := r.set(name, data[key]); err != nil {
			return err
		}
	}
	return nil
}

func (r *envResolver) wrap(err error) error {
	if err == nil {
		return nil
	}
	return Errorf(KindOf(err), "cannot make the environment of container %q: %w", r.container.Name, err)
}

// find gets an object; it returns nil when there is none and it is optional.
func find[T any](get func(name string) (*T, error), kind, name string, optional *bool) (*T, error) {
	err := Errorf(NotFound, "there is none")
	var o *T
	if get != nil {
		o, err = get(name)
	}
	switch {
	case err == nil && o != nil:
		return o, nil
	case (err == nil || KindOf(err) == NotFound) && isTrue(optional):
		return nil, nil
	case err == nil || KindOf(err) == NotFound:
		return nil, Errorf(NotFound, "the %s %s does not exist", kind, shown(name))
	}
	return nil, Errorf(KindOf(err), "cannot read the %s %s: %w", kind, shown(name), err)
}

// valueFrom returns the value; ok is false for one that is optional and missing.
func (r *envResolver) valueFrom(from *corev1.EnvVarSource) (value string, ok bool, err error) {
	switch {
	case from.FieldRef != nil:
		value, err = r.field(from.FieldRef.FieldPath)
		return value, err == nil, err
	case from.ResourceFieldRef != nil:
		value, err = r.resource(from.ResourceFieldRef)
		return value, err == nil, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		o, err := find(r.sources.ConfigMap, "ConfigMap", ref.Name, ref.Optional)
		if err != nil || o == nil {
			return "", false, err
		}
		value, ok := o.Data[ref.Key]
		return value, ok, keyError(ok, "ConfigMap", ref.Name, ref.Key, ref.Optional)
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		o, err := find(r.sources.Secret, "Secret", ref.Name, ref.Optional)
		if err != nil || o == nil {
			return "", false, err
		}
		value, ok := o.Data[ref.Key]
		return string(value), ok, keyError(ok, "Secret", ref.Name, ref.Key, ref.Optional)
	}
	return "", false, Errorf(Invalid, "its source is not supported")
}

func keyError(ok bool, kind, name, key string, optional *bool) error {
	if ok || isTrue(optional) {
		return nil
	}
	return Errorf(NotFound, "the %s %s has no key %s", kind, shown(name), shown(key))
}

// field returns a field of the pod (Kubernetes, "Downward API").
func (r *envResolver) field(path string) (string, error) {
	p := r.pod
	if object, key, ok := subscript(path); ok {
		switch object {
		case "metadata.labels":
			return p.Labels[key], nil
		case "metadata.annotations":
			return p.Annotations[key], nil
		}
	}
	switch path {
	case "metadata.name":
		return p.Name, nil
	case "metadata.namespace":
		return p.Namespace, nil
	case "metadata.uid":
		return string(p.UID), nil
	case "spec.nodeName":
		return r.sources.NodeName, nil
	case "spec.serviceAccountName":
		return p.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return firstOf(r.sources.HostIPs), nil
	case "status.hostIPs":
		return strings.Join(r.sources.HostIPs, ","), nil
	case "status.podIP":
		return firstOf(r.sources.PodIPs), nil
	case "status.podIPs":
		return strings.Join(r.sources.PodIPs, ","), nil
	}
	return "", Errorf(Invalid, "fieldPath %s is not supported", shown(path))
}

func firstOf(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}
