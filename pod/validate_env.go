package pod

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// envFields are what fieldRef can name in an environment variable, besides one label or annotation.
var envFields = []string{
	"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs",
	"status.podIP", "status.podIPs",
}

// envResources are what resourceFieldRef can name.
var envResources = []string{
	"limits.cpu", "limits.memory", "limits.ephemeral-storage", "requests.cpu", "requests.memory", "requests.ephemeral-storage",
}

// The divisors that Kubernetes allows.
var (
	cpuDivisors  = []string{"1m", "1"}
	byteDivisors = []string{"1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"}
)

func (k *containerChecker) env() {
	at := k.path.Child("env")
	k.first(at, len(k.c.Env)+len(k.c.EnvFrom), MaxEnvVars)
	for i, from := range k.c.EnvFrom[:min(len(k.c.EnvFrom), MaxEnvVars)] {
		k.envFrom(k.path.Child("envFrom").Index(i), from)
	}
	seen := make(map[string]bool)
	for i, e := range k.c.Env[:min(len(k.c.Env), MaxEnvVars)] {
		at := at.Index(i)
		if e.Name == "" {
			k.required(at.Child("name"), "")
		} else {
			k.all(at.Child("name"), e.Name, validation.IsRelaxedEnvVarName(e.Name))
			if seen[e.Name] {
				k.warn(at.Child("name"), "hides a variable of the same name above it")
			}
			seen[e.Name] = true
		}
		if strings.ContainsRune(e.Value, 0) {
			k.invalid(at.Child("value"), e.Value, "must not contain a NUL byte")
		}
		if e.ValueFrom != nil {
			k.valueFrom(at.Child("valueFrom"), e.ValueFrom)
			if e.Value != "" {
				k.refuse(at.Child("valueFrom"), "cannot be used with value")
			}
		}
	}
}

func (k *containerChecker) envFrom(at *field.Path, from corev1.EnvFromSource) {
	if from.Prefix != "" {
		k.all(at.Child("prefix"), from.Prefix, validation.IsRelaxedEnvVarName(from.Prefix))
	}
	if from.ConfigMapRef != nil {
		k.objectName(at.Child("configMapRef", "name"), from.ConfigMapRef.Name)
	}
	if from.SecretRef != nil {
		k.objectName(at.Child("secretRef", "name"), from.SecretRef.Name)
	}
	switch {
	case from.ConfigMapRef == nil && from.SecretRef == nil:
		k.required(at, "needs configMapRef or secretRef")
	case from.ConfigMapRef != nil && from.SecretRef != nil:
		k.refuse(at.Child("secretRef"), "cannot be used with configMapRef")
	}
}

func (k *containerChecker) valueFrom(at *field.Path, from *corev1.EnvVarSource) {
	sources := 0
	if from.FieldRef != nil {
		sources++
		k.fieldRef(at.Child("fieldRef"), from.FieldRef)
	}
	if from.ResourceFieldRef != nil {
		sources++
		k.resourceFieldRef(at.Child("resourceFieldRef"), from.ResourceFieldRef)
	}
	if ref := from.ConfigMapKeyRef; ref != nil {
		sources++
		k.keyRef(at.Child("configMapKeyRef"), ref.Name, ref.Key)
	}
	if ref := from.SecretKeyRef; ref != nil {
		sources++
		k.keyRef(at.Child("secretKeyRef"), ref.Name, ref.Key)
	}
	if from.FileKeyRef != nil {
		sources++
		k.refuse(at.Child("fileKeyRef"), "variables from files are not supported")
	}
	switch {
	case sources == 0:
		k.required(at, "needs one of fieldRef, resourceFieldRef, configMapKeyRef, secretKeyRef")
	case sources > 1:
		k.refuse(at, "has more than one source")
	}
}

func (k *containerChecker) keyRef(at *field.Path, name, key string) {
	k.objectName(at.Child("name"), name)
	if key == "" {
		k.required(at.Child("key"), "")
	} else {
		k.all(at.Child("key"), key, validation.IsConfigMapKey(key))
	}
}

func (k *containerChecker) fieldRef(at *field.Path, ref *corev1.ObjectFieldSelector) {
	oneOf(k.checker, at.Child("apiVersion"), ref.APIVersion, "v1")
	p := at.Child("fieldPath")
	if ref.FieldPath == "" {
		k.required(p, "")
		return
	}
	if object, key, ok := subscript(ref.FieldPath); ok {
		switch object {
		case "metadata.labels":
			k.all(p, key, validation.IsQualifiedName(key))
			return
		case "metadata.annotations":
			k.all(p, key, validation.IsQualifiedName(strings.ToLower(key)))
			return
		}
	}
	oneOf(k.checker, p, ref.FieldPath, envFields...)
}

// subscript splits OBJECT['KEY'].
func subscript(path string) (object, key string, ok bool) {
	object, rest, ok := strings.Cut(path, "['")
	key, closed := strings.CutSuffix(rest, "']")
	return object, key, ok && closed
}

func (k *containerChecker) resourceFieldRef(at *field.Path, ref *corev1.ResourceFieldSelector) {
	if ref.Resource == "" {
		k.required(at.Child("resource"), "")
	} else {
		oneOf(k.checker, at.Child("resource"), ref.Resource, envResources...)
	}
	if ref.ContainerName != "" && FindContainer(k.spec, ref.ContainerName) == nil {
		k.add(field.NotFound(at.Child("containerName"), clip(ref.ContainerName)))
	}
	if ref.Divisor.IsZero() {
		return
	}
	divisors := byteDivisors
	if strings.HasSuffix(ref.Resource, ".cpu") {
		divisors = cpuDivisors
	}
	same := func(d string) bool { return ref.Divisor.Cmp(resource.MustParse(d)) == 0 }
	if !slices.ContainsFunc(divisors, same) {
		k.invalid(at.Child("divisor"), ref.Divisor.String(), "must be one of "+strings.Join(divisors, ", "))
	}
}
