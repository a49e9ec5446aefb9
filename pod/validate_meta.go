package pod

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// maxAnnotationBytes is Kubernetes' limit for all annotations of an object.
const maxAnnotationBytes = 256 << 10

func (c *checker) metadata(meta *metav1.ObjectMeta) {
	path := field.NewPath("metadata")
	switch {
	case meta.Name != "":
		c.all(path.Child("name"), meta.Name, validation.IsDNS1123Subdomain(meta.Name))
	case meta.GenerateName != "":
		c.refuse(path.Child("generateName"), "names are not generated here; use name")
	default:
		c.required(path.Child("name"), "every object needs a name")
	}
	if meta.Namespace == "" {
		c.required(path.Child("namespace"), "every object is in a namespace")
	} else {
		c.all(path.Child("namespace"), meta.Namespace, validation.IsDNS1123Label(meta.Namespace))
	}
	labels := path.Child("labels")
	for _, k := range slices.Sorted(maps.Keys(meta.Labels)) {
		c.all(labels, k, validation.IsQualifiedName(k))
		c.all(labels.Key(clip(k)), meta.Labels[k], validation.IsValidLabelValue(meta.Labels[k]))
	}
	total := 0
	annotations := path.Child("annotations")
	for _, k := range slices.Sorted(maps.Keys(meta.Annotations)) {
		c.all(annotations, k, validation.IsQualifiedName(strings.ToLower(k)))
		total += len(k) + len(meta.Annotations[k])
	}
	if total > maxAnnotationBytes {
		c.add(field.TooLong(annotations, "", maxAnnotationBytes))
	}
}

func (c *checker) configMap(o *corev1.ConfigMap) {
	total := 0
	for _, k := range slices.Sorted(maps.Keys(o.Data)) {
		total += c.dataKey(field.NewPath("data").Key(clip(k)), k, len(o.Data[k]))
		if _, ok := o.BinaryData[k]; ok {
			c.invalid(field.NewPath("binaryData").Key(clip(k)), k, "is in data too")
		}
	}
	for _, k := range slices.Sorted(maps.Keys(o.BinaryData)) {
		total += c.dataKey(field.NewPath("binaryData").Key(clip(k)), k, len(o.BinaryData[k]))
	}
	c.dataSize(total)
	c.immutable(o.Immutable)
}

// dataKey returns the size of the value.
func (c *checker) dataKey(path *field.Path, key string, size int) int {
	c.all(path, key, validation.IsConfigMapKey(key))
	return size
}

func (c *checker) dataSize(total int) {
	if total > MaxObjectDataSize {
		c.add(field.TooLong(field.NewPath("data"), "", MaxObjectDataSize))
	}
}

func (c *checker) immutable(b *bool) {
	if isTrue(b) {
		c.warn(field.NewPath("immutable"), "is ignored: a later manifest may replace this object")
	}
}

// secretKeys are the keys that the types of Secrets must have; any other type is free, as in Kubernetes.
var secretKeys = map[corev1.SecretType][]string{
	corev1.SecretTypeDockercfg:        {corev1.DockerConfigKey},
	corev1.SecretTypeDockerConfigJson: {corev1.DockerConfigJsonKey},
	corev1.SecretTypeSSHAuth:          {corev1.SSHAuthPrivateKey},
	corev1.SecretTypeTLS:              {corev1.TLSCertKey, corev1.TLSPrivateKeyKey},
}

func (c *checker) secret(o *corev1.Secret) {
	data := field.NewPath("data")
	total := 0
	for _, k := range slices.Sorted(maps.Keys(o.Data)) {
		total += c.dataKey(data.Key(clip(k)), k, len(o.Data[k]))
	}
	c.dataSize(total)
	c.immutable(o.Immutable)
	for _, k := range secretKeys[o.Type] {
		value, ok := o.Data[k]
		switch {
		case !ok:
			c.required(data.Key(k), fmt.Sprintf("a Secret of type %s has it", o.Type))
		case (o.Type == corev1.SecretTypeDockercfg || o.Type == corev1.SecretTypeDockerConfigJson) && !json.Valid(value):
			// The value is not shown: it is a secret.
			c.add(field.Invalid(data.Key(k), field.OmitValueType{}, "must be JSON"))
		}
	}
	if o.Type == corev1.SecretTypeServiceAccountToken {
		c.refuse(field.NewPath("type"), "there is no API server that could make or accept the token")
	}
}
