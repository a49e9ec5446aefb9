package pod

import (
	"path"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// supportedVolumes are the kinds of volumes that are honoured, by their names in the manifest.
var supportedVolumes = []string{"emptyDir", "hostPath", "configMap", "secret"}

// volumes returns the names.
func (c *checker) volumes(list []corev1.Volume, path *field.Path) map[string]bool {
	names := make(map[string]bool, len(list))
	for i := range list[:c.first(path, len(list), MaxVolumes)] {
		v := &list[i]
		at := path.Index(i)
		if v.Name == "" {
			c.required(at.Child("name"), "every volume needs a name")
		} else {
			c.all(at.Child("name"), v.Name, validation.IsDNS1123Label(v.Name))
			if names[v.Name] {
				c.add(field.Duplicate(at.Child("name"), clip(v.Name)))
			}
			names[v.Name] = true
		}
		c.volume(v, at)
	}
	for i := range list { // else mounts of the others would be said to have none
		names[list[i].Name] = true
	}
	return names
}

func (c *checker) volume(v *corev1.Volume, at *field.Path) {
	sources := 0
	for f, value := range reflect.ValueOf(v.VolumeSource).Fields() {
		if value.IsZero() {
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if sources++; sources > 1 {
			c.refuse(at.Child(name), "a volume has only one source")
		}
		if !slices.Contains(supportedVolumes, name) {
			c.refuse(at.Child(name), "volumes of this kind are not supported; these are: "+strings.Join(supportedVolumes, ", "))
		}
	}
	if sources == 0 {
		c.required(at, "a volume needs a source: "+strings.Join(supportedVolumes, ", "))
	}
	if v.EmptyDir != nil {
		c.emptyDir(v.EmptyDir, at.Child("emptyDir"))
	}
	if v.HostPath != nil {
		c.hostPath(v.HostPath, at.Child("hostPath"))
	}
	if m := v.ConfigMap; m != nil {
		at := at.Child("configMap")
		c.objectName(at.Child("name"), m.Name)
		c.files(at, m.Items, m.DefaultMode, m.DefaultUser)
	}
	if s := v.Secret; s != nil {
		at := at.Child("secret")
		c.objectName(at.Child("secretName"), s.SecretName)
		c.files(at, s.Items, s.DefaultMode, s.DefaultUser)
	}
}

func (c *checker) emptyDir(e *corev1.EmptyDirVolumeSource, at *field.Path) {
	medium := at.Child("medium")
	switch {
	case strings.HasPrefix(string(e.Medium), string(corev1.StorageMediumHugePages)):
		c.refuse(medium, "huge pages are not supported")
	default:
		oneOf(c, medium, e.Medium, corev1.StorageMediumDefault, corev1.StorageMediumMemory)
	}
	if e.SizeLimit != nil {
		c.bytes(at.Child("sizeLimit"), *e.SizeLimit)
		if e.Medium == corev1.StorageMediumDefault {
			c.refuse(at.Child("sizeLimit"), "a directory on disk has no limit of its own; use medium Memory, or leave it out")
		}
	}
	if e.Mode != nil {
		c.refuse(at.Child("mode"), "the directory is open to all users of the pod")
	}
}

func (c *checker) hostPath(h *corev1.HostPathVolumeSource, at *field.Path) {
	p := at.Child("path")
	switch {
	case h.Path == "":
		c.required(p, "")
	case !c.noControl(p, h.Path):
	case len(h.Path) > maxPath:
		c.add(field.TooLong(p, "", maxPath))
	case !path.IsAbs(h.Path) || slices.Contains(strings.Split(h.Path, "/"), ".."):
		c.invalid(p, h.Path, "must be an absolute path without ..")
	}
	if h.Type != nil {
		oneOf(c, at.Child("type"), *h.Type, corev1.HostPathUnset, corev1.HostPathDirectoryOrCreate, corev1.HostPathDirectory,
			corev1.HostPathFileOrCreate, corev1.HostPathFile, corev1.HostPathSocket, corev1.HostPathCharDev, corev1.HostPathBlockDev)
	}
}

// objectName checks the name of a ConfigMap or Secret that something refers to.
func (c *checker) objectName(at *field.Path, name string) {
	if name == "" {
		c.required(at, "")
		return
	}
	c.all(at, name, validation.IsDNS1123Subdomain(name))
}

// files checks how the keys of a ConfigMap or Secret become files.
func (c *checker) files(at *field.Path, items []corev1.KeyToPath, mode *int32, user *int64) {
	c.fileMode(at.Child("defaultMode"), mode)
	c.fileUser(at.Child("defaultUser"), user)
	seen := make(map[string]bool)
	for i, item := range items {
		at := at.Child("items").Index(i)
		if item.Key == "" {
			c.required(at.Child("key"), "")
		} else {
			c.all(at.Child("key"), item.Key, validation.IsConfigMapKey(item.Key))
		}
		p := at.Child("path")
		if clean := path.Clean(item.Path); item.Path == "" {
			c.required(p, "")
		} else if clean == "." || strings.HasPrefix(clean, "..") {
			c.invalid(p, item.Path, "must be a relative path that does not begin with ..")
		} else if c.subPath(p, item.Path); seen[clean] {
			c.add(field.Duplicate(p, clip(item.Path)))
		} else {
			seen[clean] = true
		}
		c.fileMode(at.Child("mode"), item.Mode)
		c.fileUser(at.Child("user"), item.User)
	}
}

func (c *checker) fileMode(at *field.Path, mode *int32) {
	if mode != nil && (*mode < 0 || *mode > 0o777) {
		c.invalid(at, *mode, "must be between 0 and 0777 (octal; 511 in JSON)")
	}
}

func (c *checker) fileUser(at *field.Path, user *int64) {
	if user != nil {
		c.refuse(at, "the files belong to root, and to fsGroup")
	}
}
