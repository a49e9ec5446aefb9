package oci

import (
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// addMounts fills in spec.Mounts: the kernel's file systems, then the volumes. A volume on the path
// of a kernel file system replaces it.
func addMounts(spec *specs.Spec, in Input) error {
	volumes, err := Volumes(in)
	if err != nil {
		return err
	}
	for _, m := range in.Mounts {
		// The container's root must not be more private than its volumes.
		switch {
		case m.Propagation == "rshared":
			spec.Linux.RootfsPropagation = "rshared"
		case m.Propagation == "rslave" && spec.Linux.RootfsPropagation == "":
			spec.Linux.RootfsPropagation = "rslave"
		}
	}
	for _, m := range systemMounts(in) {
		if !slices.ContainsFunc(volumes, func(v specs.Mount) bool { return v.Destination == m.Destination }) {
			spec.Mounts = append(spec.Mounts, m)
		}
	}
	spec.Mounts = append(spec.Mounts, volumes...)
	return nil
}

// Volumes are the mounts of in.Mounts, parents before children. Its errors are those of [Spec].
func Volumes(in Input) ([]specs.Mount, error) {
	var volumes []specs.Mount
	for _, m := range in.Mounts {
		mount, err := volumeMount(in, m)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(volumes, func(v specs.Mount) bool { return v.Destination == mount.Destination }) {
			return nil, pod.Errorf(pod.Invalid, "cannot run container %q: two mounts at %s", in.Container.Name, mount.Destination)
		}
		volumes = append(volumes, mount)
	}
	slices.SortStableFunc(volumes, func(a, b specs.Mount) int { return depth(a.Destination) - depth(b.Destination) })
	return volumes, nil
}

func depth(p string) int { return strings.Count(p, "/") }

// systemMounts are the file systems that every Linux container expects (OCI runtime-spec,
// config-linux.md).
func systemMounts(in Input) []specs.Mount {
	access := "ro"
	if privileged(in) {
		access = "rw"
	}
	shm := specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}}
	if in.ShmDir != "" {
		shm = specs.Mount{Destination: "/dev/shm", Type: "bind", Source: in.ShmDir, Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", "rw"}}
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		shm,
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", access}},
	}
}

// volumeMount translates one mount. Only absolute destinations below the root are accepted.
func volumeMount(in Input, m runtime.Mount) (specs.Mount, error) {
	if m.SubPath != "" || m.SharedTmpfs != "" {
		return specs.Mount{}, pod.Errorf(pod.Internal, "cannot run container %q: the mount at %s was not resolved", in.Container.Name, m.Destination)
	}
	dest := path.Clean(m.Destination)
	if !path.IsAbs(dest) || dest == "/" || pod.KernelPath(dest) || slices.Contains(strings.Split(m.Destination, "/"), "..") {
		return specs.Mount{}, pod.Errorf(pod.Invalid, "cannot run container %q: a volume cannot be mounted at %q", in.Container.Name, m.Destination)
	}
	access := "rw"
	if m.ReadOnly {
		access = "ro"
	}
	if m.Source == "" {
		return specs.Mount{Destination: dest, Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", access}}, nil
	}
	if !path.IsAbs(m.Source) {
		return specs.Mount{}, pod.Errorf(pod.Internal, "cannot run container %q: the source %q of the mount at %s is not absolute", in.Container.Name, m.Source, dest)
	}
	options := []string{"rbind"}
	switch m.Propagation {
	case "", "private":
		options = append(options, "rprivate")
	case "rslave", "rshared":
		options = append(options, m.Propagation)
	default:
		return specs.Mount{}, pod.Errorf(pod.Internal, "cannot run container %q: unknown mount propagation %q at %s", in.Container.Name, m.Propagation, dest)
	}
	options = append(options, access)
	if m.ReadOnly && recursiveReadOnly(in.Container, dest) {
		options = append(options, "rro")
	}
	return specs.Mount{Destination: dest, Type: "bind", Source: m.Source, Options: options}, nil
}

// recursiveReadOnly says whether the manifest wants the mounts below this one read-only too.
func recursiveReadOnly(c *corev1.Container, dest string) bool {
	for _, vm := range c.VolumeMounts {
		if path.Clean(vm.MountPath) == dest && vm.RecursiveReadOnly != nil {
			return *vm.RecursiveReadOnly != corev1.RecursiveReadOnlyDisabled
		}
	}
	return false
}
