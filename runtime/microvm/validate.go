package microvm

import (
	"fmt"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/magikrun/magikpod/pod"
)

// Validate returns what a pod in a machine of its own cannot have. Sysctls are all allowed: they are the machine's.
func (l *Launcher) Validate(p *corev1.Pod) field.ErrorList {
	var errs field.ErrorList
	spec := field.NewPath("spec")
	forbid := func(path *field.Path, why string) { errs = append(errs, field.Forbidden(path, why)) }
	for _, host := range []struct {
		set       bool
		name, why string
	}{
		{p.Spec.HostNetwork, "hostNetwork", "a machine has a network of its own; use a hostPort"},
		{p.Spec.HostPID, "hostPID", "a machine does not see the host's processes"},
		{p.Spec.HostIPC, "hostIPC", "a machine does not share memory with the host's processes"},
		{p.Spec.HostUsers != nil && !*p.Spec.HostUsers, "hostUsers", "user namespaces are not supported by " + ClassName + ", whose users are the machine's"},
	} {
		if host.set {
			forbid(spec.Child(host.name), host.why)
		}
	}
	if p.Spec.OS != nil && p.Spec.OS.Name != corev1.Linux {
		errs = append(errs, field.NotSupported(spec.Child("os", "name"), p.Spec.OS.Name, []corev1.OSName{corev1.Linux}))
	}
	if sc := p.Spec.SecurityContext; sc != nil {
		path := spec.Child("securityContext")
		errs = append(errs, validateProfiles(sc.SeccompProfile, sc.AppArmorProfile, path)...)
	}
	if l.manyImages(p) && l.share == "" {
		forbid(spec.Child("containers"), fmt.Sprintf("%d images, and a machine of %s has disks for %d: %s", l.countImages(p), l.driver.Name(), l.maxImages(), l.noShare()))
	}
	for i := range p.Spec.Volumes {
		errs = append(errs, l.validateVolume(p, &p.Spec.Volumes[i], spec.Child("volumes").Index(i))...)
	}
	for c, path := range pod.ContainerPaths(&p.Spec) {
		errs = append(errs, validateContainer(c, path)...)
	}
	return errs
}

// validateVolume refuses what cannot reach a machine.
func (l *Launcher) validateVolume(p *corev1.Pod, v *corev1.Volume, path *field.Path) field.ErrorList {
	if v.HostPath == nil {
		return nil
	}
	path = path.Child("hostPath")
	if v.HostPath.Type != nil {
		switch *v.HostPath.Type {
		case corev1.HostPathSocket:
			return field.ErrorList{field.Forbidden(path.Child("type"), "nobody listens on the host's sockets in a machine")}
		case corev1.HostPathCharDev, corev1.HostPathBlockDev:
			return field.ErrorList{field.Forbidden(path.Child("type"), "the host's devices are not in a machine")}
		}
	}
	if why := l.noShare(); why != "" && mountedWritable(p, v.Name) {
		return field.ErrorList{field.Forbidden(path, why+": a machine gets a copy, and all mounts of the volume must be readOnly")}
	}
	return nil
}

// mountedWritable says whether a container of the pod may write to a volume.
func mountedWritable(p *corev1.Pod, volume string) bool {
	for c := range pod.AllContainers(&p.Spec) {
		for _, m := range c.VolumeMounts {
			if m.Name == volume && !m.ReadOnly {
				return true
			}
		}
	}
	return false
}

func validateContainer(c *corev1.Container, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range c.VolumeDevices {
		errs = append(errs, field.Forbidden(path.Child("volumeDevices").Index(i), "block volumes are not supported by "+ClassName))
	}
	if c.TTY {
		errs = append(errs, field.Forbidden(path.Child("tty"), "a terminal for a container's first process is not supported by "+ClassName+"; exec has one"))
	}
	if life := c.Lifecycle; life != nil && life.StopSignal != nil {
		// A name that is none of x/sys is another one of a signal that is passed on.
		if sig := unix.SignalNum(string(*life.StopSignal)); sig != 0 && noStopSignal(sig) != "" {
			errs = append(errs, field.Forbidden(path.Child("lifecycle", "stopSignal"), noStopSignal(sig)))
		}
	}
	for i := range c.VolumeMounts {
		if mode := c.VolumeMounts[i].MountPropagation; mode != nil && *mode != "" && *mode != corev1.MountPropagationNone {
			errs = append(errs, field.Forbidden(path.Child("volumeMounts").Index(i).Child("mountPropagation"),
				"mounts are the machine's own: none comes from the host later, and none goes to it"))
		}
	}
	if sc := c.SecurityContext; sc != nil {
		errs = append(errs, validateProfiles(sc.SeccompProfile, sc.AppArmorProfile, path.Child("securityContext"))...)
	}
	return errs
}

// validateProfiles refuses profiles that lie on the host.
func validateProfiles(seccomp *corev1.SeccompProfile, apparmor *corev1.AppArmorProfile, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if seccomp != nil && seccomp.Type == corev1.SeccompProfileTypeLocalhost {
		errs = append(errs, field.NotSupported(path.Child("seccompProfile", "type"), seccomp.Type,
			[]corev1.SeccompProfileType{corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined}))
	}
	if apparmor != nil && apparmor.Type == corev1.AppArmorProfileTypeLocalhost {
		errs = append(errs, field.NotSupported(path.Child("appArmorProfile", "type"), apparmor.Type,
			[]corev1.AppArmorProfileType{corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined}))
	}
	return errs
}
