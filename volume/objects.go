package volume

import (
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/magikrun/magikpod/pod"
)

// maxPayloadBytes bounds what one volume has: items may project one key many times.
const maxPayloadBytes = 8 * pod.MaxObjectDataSize

// payload is the files of one volume by their relative path, which has been checked.
type payload map[string]payloadFile

type payloadFile struct {
	data []byte
	mode uint32 // permission bits
}

// object is what ConfigMaps and Secrets have in common.
type object struct {
	kind, name  string
	data        map[string][]byte
	items       []corev1.KeyToPath
	defaultMode *int32
	optional    bool
}

func (m *Manager) planConfigMap(p *corev1.Pod, v *corev1.Volume, group int64, src Sources) (*plan, error) {
	o := object{kind: "ConfigMap", name: v.ConfigMap.Name, items: v.ConfigMap.Items, defaultMode: v.ConfigMap.DefaultMode, optional: isTrue(v.ConfigMap.Optional)}
	cm, err := find(o, src.ConfigMap)
	if err != nil {
		return nil, err
	}
	if cm != nil {
		o.data = make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
		for key, value := range cm.Data {
			o.data[key] = []byte(value)
		}
		for key, value := range cm.BinaryData {
			if _, double := o.data[key]; double {
				return nil, pod.Errorf(pod.Invalid, "the key %q of ConfigMap %q is both in data and in binaryData", key, o.name)
			}
			o.data[key] = value
		}
	}
	return o.plan(v.Name, m.statePath(p.UID, volumesDir, v.Name), group, cm != nil)
}

func (m *Manager) planSecret(p *corev1.Pod, v *corev1.Volume, group int64, src Sources) (*plan, error) {
	o := object{kind: "Secret", name: v.Secret.SecretName, items: v.Secret.Items, defaultMode: v.Secret.DefaultMode, optional: isTrue(v.Secret.Optional)}
	s, err := find(o, src.Secret)
	if err != nil {
		return nil, err
	}
	if s != nil {
		o.data = make(map[string][]byte, len(s.Data)+len(s.StringData))
		for key, value := range s.Data {
			o.data[key] = value
		}
		for key, value := range s.StringData { // goes before data, as in the API server
			o.data[key] = []byte(value)
		}
	}
	plan, err := o.plan(v.Name, m.runPath(p.UID, secretsDir, v.Name), group, s != nil)
	if err != nil {
		return nil, err
	}
	write := plan.write
	plan.write = func(undo *revert) error {
		if err := checkInMemory(m.runDir, undo); err != nil {
			return err
		}
		return write(undo)
	}
	return plan, nil
}

// find looks the object up; nil means that it does not exist and is optional.
func find[T any](o object, get func(name string) (*T, error)) (*T, error) {
	if get != nil && o.name != "" {
		found, err := get(o.name)
		if err != nil && pod.KindOf(err) != pod.NotFound {
			return nil, kinded(err, "cannot look up %s %q", o.kind, o.name)
		}
		if err == nil && found != nil {
			return found, nil
		}
	}
	if o.optional {
		return nil, nil
	}
	return nil, pod.Errorf(pod.NotFound, "%s %q does not exist", o.kind, o.name)
}

// plan checks what the volume is to have and plans to write it to path.
func (o object) plan(name, path string, group int64, found bool) (*plan, error) {
	files, err := o.payload(found)
	if err != nil {
		return nil, err
	}
	if group >= 0 {
		for path, f := range files {
			f.mode |= 0o440 // the group must be able to read: the kubelet's rule for read-only volumes
			files[path] = f
		}
	}
	return &plan{name: name, source: source{path: path, readOnly: true}, write: func(undo *revert) error {
		return writeVolume(path, files, group, undo)
	}}, nil
}

// payload chooses the files: all keys, or those of items.
func (o object) payload(found bool) (payload, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	files := make(payload)
	mode, err := fileMode(o.defaultMode, 0o644)
	if err != nil {
		return nil, err
	}
	if len(o.items) == 0 {
		for key, value := range o.data {
			files[key] = payloadFile{value, mode}
		}
		return files, nil
	}
	total := 0
	for _, item := range o.items {
		if err := checkItemPath(item.Path); err != nil {
			return nil, err
		}
		mode, err := fileMode(item.Mode, mode)
		if err != nil {
			return nil, err
		}
		value, ok := o.data[item.Key]
		switch {
		case !ok && (o.optional || !found):
			continue
		case !ok:
			return nil, pod.Errorf(pod.NotFound, "%s %q has no key %q", o.kind, o.name, item.Key)
		}
		if total += len(value); total > maxPayloadBytes {
			return nil, pod.Errorf(pod.Invalid, "its items have more than %d bytes together", maxPayloadBytes)
		}
		clean := path.Clean(item.Path)
		if _, double := files[clean]; double {
			return nil, pod.Errorf(pod.Invalid, "two items have the path %q", clean)
		}
		files[clean] = payloadFile{value, mode}
	}
	return files, files.checkNesting()
}

// check refuses an object unless it is one that the API server would have taken.
func (o object) check() error {
	total := 0
	for key, value := range o.data {
		if problems := validation.IsConfigMapKey(key); len(problems) > 0 {
			return pod.Errorf(pod.Invalid, "%.80q cannot be a key of %s %q: %s", key, o.kind, o.name, problems[0])
		}
		total += len(value)
	}
	if total > pod.MaxObjectDataSize {
		return pod.Errorf(pod.Invalid, "%s %q has %d bytes of data; at most %d are allowed", o.kind, o.name, total, pod.MaxObjectDataSize)
	}
	return nil
}

// checkNesting refuses a file that another one needs as a directory.
func (files payload) checkNesting() error {
	for name := range files {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, both := files[dir]; both {
				return pod.Errorf(pod.Invalid, "the items want %q to be a file and a directory", dir)
			}
		}
	}
	return nil
}

// tops are the first elements of all paths, sorted.
func (files payload) tops() []string {
	var tops []string
	for name := range files {
		top, _, _ := strings.Cut(name, "/")
		tops = append(tops, top)
	}
	slices.Sort(tops)
	return slices.Compact(tops)
}

// checkItemPath refuses what cannot be the path of a file of a volume: it must be relative, not
// lead out, and not begin with an element that the layout of the volume uses.
func checkItemPath(p string) error {
	clean := path.Clean(p)
	switch {
	case p == "", clean == ".":
		return pod.Errorf(pod.Invalid, "the path of an item is empty")
	case path.IsAbs(p):
		return pod.Errorf(pod.Invalid, "the path %.80q of an item is absolute", p)
	case slices.Contains(strings.Split(p, "/"), ".."):
		return pod.Errorf(pod.Invalid, "the path %.80q of an item contains .. as an element", p)
	case strings.HasPrefix(clean, ".."):
		return pod.Errorf(pod.Invalid, "the path %.80q of an item starts with ..", p)
	case strings.IndexByte(p, 0) >= 0:
		return pod.Errorf(pod.Invalid, "the path %.80q of an item contains a NUL byte", p)
	case len(p) > 4000 || slices.ContainsFunc(strings.Split(p, "/"), func(e string) bool { return len(e) > 255 }):
		return pod.Errorf(pod.Invalid, "the path %.80q... of an item is too long", p)
	}
	return nil
}

func fileMode(mode *int32, fallback uint32) (uint32, error) {
	switch {
	case mode == nil:
		return fallback, nil
	case *mode < 0 || *mode > 0o777:
		return 0, pod.Errorf(pod.Invalid, "%#o cannot be the mode of a file: it must be between 0 and 0777", *mode)
	}
	return uint32(*mode), nil
}

func isTrue(b *bool) bool { return b != nil && *b }
