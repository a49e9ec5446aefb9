package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/pod"
)

// objectKey names a ConfigMap or a Secret.
type objectKey struct{ kind, namespace, name string } // kind: configmaps or secrets

func (k objectKey) String() string {
	return strings.TrimSuffix(k.kind, "s") + " " + k.namespace + "/" + k.name
}

// object is a stored ConfigMap or Secret.
type object struct {
	ConfigMap *corev1.ConfigMap `json:"configMap,omitempty"`
	Secret    *corev1.Secret    `json:"secret,omitempty"`
	// Owners are the pods that came with it; it goes with the last of them. Standing: it came
	// alone, and stays.
	Owners   []types.UID `json:"owners,omitempty"`
	Standing bool        `json:"standing,omitempty"`
}

// sameData says whether both hold the same.
func (o *object) sameData(other *object) bool {
	switch {
	case o.ConfigMap != nil && other.ConfigMap != nil:
		return maps.Equal(o.ConfigMap.Data, other.ConfigMap.Data) && maps.EqualFunc(o.ConfigMap.BinaryData, other.ConfigMap.BinaryData, slices.Equal)
	case o.Secret != nil && other.Secret != nil:
		return o.Secret.Type == other.Secret.Type && maps.EqualFunc(o.Secret.Data, other.Secret.Data, slices.Equal)
	}
	return false
}

// objects keeps ConfigMaps and Secrets: in memory, and one file each below StateDir/volumes.
type objects struct {
	dir string

	mu    sync.Mutex
	known map[objectKey]*object // values are replaced, never changed
}

func (s *objects) path(k objectKey) string {
	return filepath.Join(s.dir, k.kind, k.namespace, k.name+".json")
}

// manifestObjects lists what a manifest brings.
func manifestObjects(m *pod.Manifest) map[objectKey]*object {
	all := make(map[objectKey]*object, len(m.ConfigMaps)+len(m.Secrets))
	for _, c := range m.ConfigMaps {
		all[objectKey{"configmaps", c.Namespace, c.Name}] = &object{ConfigMap: c}
	}
	for _, c := range m.Secrets {
		all[objectKey{"secrets", c.Namespace, c.Name}] = &object{Secret: c}
	}
	return all
}

// add stores the objects of a manifest for the pods that came with them; no owners: they stand
// alone. An object that other pods came with is not changed by accident: Conflict, unless replace.
// On an error nothing is changed.
func (s *objects) add(incoming map[objectKey]*object, owners []types.UID, replace bool) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := make(map[objectKey]*object, len(incoming))
	for k, o := range incoming {
		old := s.known[k]
		merged := &object{ConfigMap: o.ConfigMap, Secret: o.Secret, Owners: owners, Standing: len(owners) == 0}
		if old != nil {
			if !old.sameData(o) && !replace && len(old.Owners) > 0 {
				return pod.Errorf(pod.Conflict, "cannot store %s: there is one of that name with other content, in use by %d pods (use --replace to change it)", k, len(old.Owners))
			}
			merged.Owners = slices.Concat(old.Owners, owners)
			merged.Standing = merged.Standing || old.Standing
		}
		next[k] = merged
	}
	previous := make(map[objectKey]*object, len(next))
	defer func() {
		if err != nil {
			for k, old := range previous {
				_ = s.put(k, old)
			}
		}
	}()
	for k, o := range next {
		previous[k] = s.known[k]
		if err := s.put(k, o); err != nil {
			return err
		}
	}
	return nil
}

// put stores or (nil) removes one object. The mutex is held.
func (s *objects) put(k objectKey, o *object) error {
	path := s.path(k)
	if o == nil {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return pod.Errorf(pod.Internal, "cannot remove %s: %w", k, err)
		}
		os.Remove(filepath.Dir(path)) // the namespace's, if it is empty now
		delete(s.known, k)
		return nil
	}
	data, err := json.Marshal(o)
	if err != nil {
		return pod.Errorf(pod.Internal, "cannot store %s: %w", k, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return pod.Errorf(pod.Exhausted, "cannot store %s: %w", k, err)
	}
	if err := atomicfile.WriteNoSync(path, data, 0o600); err != nil {
		return pod.Errorf(pod.Exhausted, "cannot store %s: %w", k, err)
	}
	s.known[k] = o
	return nil
}

// release gives up what the pod owns; an object without owners goes, unless it stands alone.
func (s *objects) release(uid types.UID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for k, o := range s.known {
		if !slices.Contains(o.Owners, uid) {
			continue
		}
		rest := *o
		rest.Owners = slices.DeleteFunc(slices.Clone(o.Owners), func(u types.UID) bool { return u == uid })
		if len(rest.Owners) == 0 && !rest.Standing {
			errs = append(errs, s.put(k, nil))
			continue
		}
		errs = append(errs, s.put(k, &rest))
	}
	return errors.Join(errs...)
}

// get returns an object, which must not be changed; nil when there is none.
func (s *objects) get(kind, namespace, name string) *object {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[objectKey{kind, namespace, name}]
}

// load reads what an earlier daemon has stored; owners that exists does not know are dropped. A
// file that cannot be read is set aside.
func (s *objects) load(exists func(types.UID) bool) (warnings []string, err error) {
	s.known = make(map[objectKey]*object)
	for _, kind := range []string{"configmaps", "secrets"} {
		s.sweep(kind)
		paths, err := s.paths(kind)
		if err != nil {
			return nil, pod.Errorf(pod.Unavailable, "cannot list the %s: %w", kind, err)
		}
		for _, path := range paths {
			k := objectKey{kind, filepath.Base(filepath.Dir(path)), strings.TrimSuffix(filepath.Base(path), ".json")}
			o, err := readObject(path, k)
			if atomicfile.Damaged(err) {
				warnings = append(warnings, fmt.Sprintf("cannot use %s: %v; it was set aside as %s", path, err, setAside(path)))
				continue
			}
			if err != nil {
				return nil, pod.Errorf(pod.Unavailable, "cannot read %s: %w", k, err)
			}
			owned := len(o.Owners) > 0
			o.Owners = slices.DeleteFunc(o.Owners, func(u types.UID) bool { return !exists(u) })
			s.known[k] = o
			if owned && len(o.Owners) == 0 && !o.Standing {
				if err := s.put(k, nil); err != nil {
					warnings = append(warnings, err.Error())
				}
			}
		}
	}
	return warnings, nil
}

// paths lists the files of one kind of objects.
func (s *objects) paths(kind string) (paths []string, err error) {
	namespaces, err := os.ReadDir(filepath.Join(s.dir, kind))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	for _, ns := range namespaces {
		dir := filepath.Join(s.dir, kind, ns.Name())
		files, err := os.ReadDir(dir)
		if errors.Is(err, unix.ENOTDIR) {
			continue // it is not ours
		}
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			if !strings.HasPrefix(f.Name(), ".") && strings.HasSuffix(f.Name(), ".json") {
				paths = append(paths, filepath.Join(dir, f.Name()))
			}
		}
	}
	return paths, err
}

// sweep removes what a daemon has left that died while it wrote or removed an object.
func (s *objects) sweep(kind string) {
	namespaces, _ := filepath.Glob(filepath.Join(s.dir, kind, "*")) // the pattern is fine
	for _, dir := range namespaces {
		atomicfile.Sweep(dir)
		_ = os.Remove(dir) // if it is empty
	}
}

func readObject(path string, k objectKey) (*object, error) {
	var o object
	if err := readJSON(path, &o); err != nil {
		return nil, err
	}
	switch {
	case k.kind == "configmaps" && o.ConfigMap != nil && o.ConfigMap.Name == k.name && o.ConfigMap.Namespace == k.namespace:
	case k.kind == "secrets" && o.Secret != nil && o.Secret.Name == k.name && o.Secret.Namespace == k.namespace:
	default:
		return nil, errors.New("it is not the object of that name")
	}
	return &o, nil
}
