package volume

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/magikrun/magikpod/internal/safepath"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// planEmptyDir plans a directory on disk, or a tmpfs for medium Memory. The sizeLimit of a
// directory on disk is not enforced here.
func (m *Manager) planEmptyDir(p *corev1.Pod, v *corev1.Volume, group int64) (*plan, error) {
	switch v.EmptyDir.Medium {
	case corev1.StorageMediumDefault:
		path := m.statePath(p.UID, volumesDir, v.Name)
		return &plan{name: v.Name, source: source{path: path}, write: func(undo *revert) error {
			return makeEmptyDir(path, group, undo)
		}}, nil
	case corev1.StorageMediumMemory:
		size, err := memorySize(p, v.EmptyDir.SizeLimit)
		if err != nil {
			return nil, err
		}
		tmpfs := &runtime.Tmpfs{Name: v.Name, SizeBytes: size, Mode: os.ModeSticky | 0o777}
		if group >= 0 {
			tmpfs.GID = group
			tmpfs.Mode |= os.ModeSetgid
		}
		return &plan{name: v.Name, source: source{tmpfs: tmpfs}}, nil
	}
	return nil, pod.Errorf(pod.Unsupported, "the medium %q of an emptyDir is not supported", v.EmptyDir.Medium)
}

// makeEmptyDir makes the directory path with mode 0777, and setgid and owned by the group when
// there is one (-1: none). A directory that exists is complete and is left alone, as the kubelet
// does: it belongs to the containers, which may have changed its mode for good reason.
func makeEmptyDir(path string, group int64, undo *revert) error {
	if info, err := os.Lstat(path); err == nil {
		if !info.IsDir() {
			return pod.Errorf(pod.Internal, "%s is not a directory", path)
		}
		return nil
	} else if !errors.Is(err, unix.ENOENT) {
		return err
	}
	dir, name := filepath.Split(path)
	if err := undo.mkdirAll(filepath.Clean(dir)); err != nil {
		return err
	}
	// The dot keeps the name apart from every volume's: those are DNS labels.
	draft := filepath.Join(dir, "."+name+".new")
	if err := safepath.RemoveAll(context.Background(), draft); err != nil {
		return err
	}
	undo.removeAll(draft)
	if err := os.Mkdir(draft, 0o700); err != nil {
		return err
	}
	mode := os.FileMode(0o777)
	if group >= 0 {
		if err := os.Lchown(draft, -1, int(group)); err != nil {
			return err
		}
		mode |= os.ModeSetgid
	}
	if err := os.Chmod(draft, mode); err != nil {
		return err
	}
	undo.removeAll(path)
	return os.Rename(draft, path)
}

// memorySize returns the size of an in-memory volume in bytes: the smaller one of its sizeLimit and
// the memory limit of the pod; 0 when there is neither.
func memorySize(p *corev1.Pod, limit *resource.Quantity) (int64, error) {
	size := podMemoryLimit(p)
	if limit != nil {
		switch n := limit.Value(); {
		case n < 0:
			return 0, pod.Errorf(pod.Invalid, "the sizeLimit %s is negative", limit)
		case n > 0 && (size == 0 || n < size):
			size = n
		}
	}
	return size, nil
}

// podMemoryLimit returns what the containers of the pod can use at most at any time, in bytes; 0
// when one of them has no limit. The pod's own limit (spec.resources) goes before theirs.
func podMemoryLimit(p *corev1.Pod) int64 {
	if p.Spec.Resources != nil {
		if q, ok := p.Spec.Resources.Limits[corev1.ResourceMemory]; ok {
			return q.Value()
		}
	}
	limited := true
	total := pod.Effective(&p.Spec, func(c *corev1.Container) resource.Quantity {
		q := c.Resources.Limits.Memory()
		limited = limited && q.Sign() > 0
		return *q
	})
	switch {
	case !limited:
		return 0
	case total.CmpInt64(math.MaxInt64) >= 0:
		return math.MaxInt64
	}
	return total.Value()
}
