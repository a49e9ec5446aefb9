package volume

import (
	"path"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/internal/safepath"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// source is where a volume comes from: a path of the host, or a tmpfs that the runtime class mounts.
type source struct {
	path     string
	tmpfs    *runtime.Tmpfs
	readOnly bool // whatever the mount says
}

// Prepared are the volumes of one pod, ready to be mounted. It does not change any more and can be
// used from any goroutine.
type Prepared struct {
	sources map[string]source // by volume name
	tmpfs   []runtime.Tmpfs
}

func (p *Prepared) add(plan *plan) {
	p.sources[plan.name] = plan.source
	if plan.source.tmpfs != nil {
		p.tmpfs = append(p.tmpfs, *plan.source.tmpfs)
	}
}

// Tmpfs returns the in-memory volumes, in the order of the manifest, for SandboxConfig.SharedTmpfs.
func (p *Prepared) Tmpfs() []runtime.Tmpfs { return slices.Clone(p.tmpfs) }

// Mounts returns the mounts of c's volumeMounts, in their order. subPathExpr is the caller's: it
// expands it into subPath (of a copy of c) first. Kinds: NotFound (no volume of that name), Invalid
// (a path that cannot be used), Unsupported (Bidirectional).
func (p *Prepared) Mounts(c *corev1.Container) ([]runtime.Mount, error) {
	mounts := make([]runtime.Mount, 0, len(c.VolumeMounts))
	for i := range c.VolumeMounts {
		m, err := p.mount(&c.VolumeMounts[i])
		if err != nil {
			return nil, kinded(err, "cannot mount volume %q in container %q", c.VolumeMounts[i].Name, c.Name)
		}
		mounts = append(mounts, m)
	}
	return mounts, nil
}

func (p *Prepared) mount(vm *corev1.VolumeMount) (runtime.Mount, error) {
	var m runtime.Mount
	s, ok := p.sources[vm.Name]
	if !ok {
		return m, pod.Errorf(pod.NotFound, "the pod has no volume of that name")
	}
	if vm.SubPathExpr != "" {
		return m, pod.Errorf(pod.Internal, "its subPathExpr has not been expanded")
	}
	if err := safepath.CheckSubPath(vm.SubPath); err != nil {
		return m, pod.Errorf(pod.Invalid, "subPath %w", err)
	}
	destination, err := cleanDestination(vm.MountPath)
	if err != nil {
		return m, err
	}
	m = runtime.Mount{Source: s.path, SubPath: cleanSubPath(vm.SubPath), Destination: destination, ReadOnly: vm.ReadOnly || s.readOnly, Propagation: "private"}
	if s.tmpfs != nil {
		m.SharedTmpfs = s.tmpfs.Name
	}
	if vm.MountPropagation != nil {
		switch *vm.MountPropagation {
		case "", corev1.MountPropagationNone:
		case corev1.MountPropagationHostToContainer:
			m.Propagation = "rslave"
		default:
			return m, pod.Errorf(pod.Unsupported, "mountPropagation %s is not supported", *vm.MountPropagation)
		}
	}
	return m, nil
}

// cleanSubPath drops what means nothing: empty elements and dots.
func cleanSubPath(subPath string) string {
	if clean := path.Clean(subPath); clean != "." {
		return clean
	}
	return ""
}

// cleanDestination returns the mountPath as an absolute path; like the kubelet it takes a relative
// one to start at /.
func cleanDestination(mountPath string) (string, error) {
	clean := path.Clean("/" + mountPath)
	if mountPath == "" || clean == "/" {
		return "", pod.Errorf(pod.Invalid, "mountPath %.80q is not below /", mountPath)
	}
	if err := safepath.CheckElements(mountPath); err != nil {
		return "", pod.Errorf(pod.Invalid, "mountPath %w", err)
	}
	return clean, nil
}
