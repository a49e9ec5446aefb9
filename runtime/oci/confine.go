package oci

import (
	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
)

// maskedPaths and readonlyPaths are what docker and containerd hide or protect in /proc and /sys.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
		"/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// confine adds what keeps the container's processes from the host: paths, seccomp; or, for a
// privileged container, the host's devices.
func confine(spec *specs.Spec, in Input) error {
	sc := security(in.Container)
	if privileged(in) {
		spec.Linux.Devices = in.Host.Devices
		if in.CgroupsPath != "" {
			// This OCI runtime has a device filter of its own, which must let everything pass.
			spec.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}
		}
	} else if sc.ProcMount == nil || *sc.ProcMount != corev1.UnmaskedProcMount {
		spec.Linux.MaskedPaths = maskedPaths
		spec.Linux.ReadonlyPaths = readonlyPaths
	}
	return addSeccomp(spec, in)
}

// addSeccomp applies the default profile for RuntimeDefault and when nothing is said. Privileged
// containers run without, as everywhere.
func addSeccomp(spec *specs.Spec, in Input) error {
	if privileged(in) {
		return nil
	}
	profile := first(security(in.Container).SeccompProfile, podSecurity(in.Pod).SeccompProfile)
	if profile != nil {
		switch profile.Type {
		case corev1.SeccompProfileTypeUnconfined:
			return nil
		case corev1.SeccompProfileTypeRuntimeDefault:
		default:
			return pod.Errorf(pod.Unsupported, "cannot run container %q: seccomp profiles of type %q are not supported", in.Container.Name, profile.Type)
		}
	}
	// The profile depends on the architecture, the kernel's version and the capabilities.
	rules, err := seccomp.GetDefaultProfile(spec)
	if err != nil {
		return pod.Errorf(pod.Internal, "cannot build the seccomp profile of container %q: %v", in.Container.Name, err)
	}
	spec.Linux.Seccomp = rules
	return nil
}

// appArmorProfile is the AppArmor profile of the first process; empty: none.
func appArmorProfile(in Input) (string, error) {
	profile := first(security(in.Container).AppArmorProfile, podSecurity(in.Pod).AppArmorProfile)
	if profile == nil {
		return "", nil
	}
	switch profile.Type {
	case corev1.AppArmorProfileTypeUnconfined, corev1.AppArmorProfileTypeRuntimeDefault:
		return "", nil
	case corev1.AppArmorProfileTypeLocalhost:
		if !in.Host.AppArmor {
			return "", pod.Errorf(pod.Unsupported, "cannot run container %q: it wants an AppArmor profile, and this host has no AppArmor", in.Container.Name)
		}
		if profile.LocalhostProfile == nil || *profile.LocalhostProfile == "" {
			return "", pod.Errorf(pod.Invalid, "cannot run container %q: appArmorProfile.localhostProfile is missing", in.Container.Name)
		}
		return *profile.LocalhostProfile, nil
	}
	return "", pod.Errorf(pod.Unsupported, "cannot run container %q: AppArmor profiles of type %q are not supported", in.Container.Name, profile.Type)
}
