package pod

import "k8s.io/apimachinery/pkg/util/validation"

// ValidateName says whether name can be the name of a pod, a ConfigMap or a Secret: a DNS-1123
// subdomain of at most 253 characters, as in Kubernetes. The error is of kind Invalid and one line,
// whatever name holds.
func ValidateName(name string) error {
	return nameError("name", name, validation.IsDNS1123Subdomain(name))
}

// ValidateNamespace says whether ns can be a namespace: a DNS-1123 label of at most 63 characters.
func ValidateNamespace(ns string) error {
	return nameError("namespace", ns, validation.IsDNS1123Label(ns))
}

// ValidateContainerName says whether name can be the name of a container: a DNS-1123 label of at
// most 63 characters.
func ValidateContainerName(name string) error {
	return nameError("container name", name, validation.IsDNS1123Label(name))
}

func nameError(what, value string, problems []string) error {
	switch {
	case value == "":
		return Errorf(Invalid, "cannot use an empty %s", what)
	case len(problems) > 0:
		if len(value) > 80 {
			value = value[:80] + "..."
		}
		return Errorf(Invalid, "cannot use the %s %q: %s", what, value, problems[0])
	}
	return nil
}
