package native

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/magikrun/magikpod/pod"
)

// Validate implements [runtime.PodManager].
func (m *Manager) Validate(p *corev1.Pod) field.ErrorList {
	if other := m.config.other(); other != nil {
		return other.Validate(p)
	}
	var errs field.ErrorList
	spec := field.NewPath("spec")
	if p.Spec.HostUsers != nil && !*p.Spec.HostUsers {
		errs = append(errs, field.Forbidden(spec.Child("hostUsers"), "user namespaces are not supported by "+ClassName))
	}
	if p.Spec.OS != nil && p.Spec.OS.Name != corev1.Linux {
		errs = append(errs, field.NotSupported(spec.Child("os", "name"), p.Spec.OS.Name, []corev1.OSName{corev1.Linux}))
	}
	if sc := p.Spec.SecurityContext; sc != nil {
		path := spec.Child("securityContext")
		errs = append(errs, validateSysctls(p, sc.Sysctls, path.Child("sysctls"))...)
		errs = append(errs, validateSeccomp(sc.SeccompProfile, path.Child("seccompProfile"))...)
	}
	for c, path := range pod.ContainerPaths(&p.Spec) {
		errs = append(errs, validateContainer(c, path)...)
	}
	return append(errs, m.validateChosen(p)...)
}

// validateChosen is what the Chooser has to say of a pod that asks for it.
func (m *Manager) validateChosen(p *corev1.Pod) field.ErrorList {
	if m.config.Chooser == nil {
		return nil
	}
	all, some := m.config.Chooser.Asked(p)
	var errs field.ErrorList
	if class := m.config.Chooser.Class(); !class.Available && (all || some) {
		errs = append(errs, field.Forbidden(field.NewPath("metadata", "annotations"), "WebAssembly is asked for, and cannot be run: "+class.Reason))
	}
	if all {
		errs = append(errs, m.config.Chooser.Validate(p)...)
	}
	return errs
}

func validateContainer(c *corev1.Container, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i := range c.VolumeDevices {
		errs = append(errs, field.Forbidden(path.Child("volumeDevices").Index(i), "block volumes are not supported by "+ClassName))
	}
	if c.TTY {
		errs = append(errs, field.Forbidden(path.Child("tty"), "a terminal for a container's first process is not supported by "+ClassName+"; exec has one"))
	}
	if sc := c.SecurityContext; sc != nil {
		errs = append(errs, validateSeccomp(sc.SeccompProfile, path.Child("securityContext", "seccompProfile"))...)
	}
	return errs
}

func validateSeccomp(profile *corev1.SeccompProfile, path *field.Path) field.ErrorList {
	if profile != nil && profile.Type == corev1.SeccompProfileTypeLocalhost {
		return field.ErrorList{field.NotSupported(path.Child("type"), profile.Type, []corev1.SeccompProfileType{
			corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined})}
	}
	return nil
}

// validateSysctls lets pass what belongs to a namespace of the pod (the kubelet's list): everything else would change the host.
func validateSysctls(p *corev1.Pod, sysctls []corev1.Sysctl, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, s := range sysctls {
		name := strings.ReplaceAll(s.Name, "/", ".")
		why := ""
		switch {
		case strings.HasPrefix(name, "net."):
			if p.Spec.HostNetwork {
				why = "it would change the host's, because hostNetwork is true"
			}
		case ipcSysctl(name):
			if p.Spec.HostIPC {
				why = "it would change the host's, because hostIPC is true"
			}
		default:
			why = fmt.Sprintf("it does not belong to a namespace: %s would change the host's", s.Name)
		}
		if why != "" {
			errs = append(errs, field.Forbidden(path.Index(i).Child("name"), why))
		}
	}
	return errs
}

// ipcSysctl says whether a sysctl belongs to the IPC namespace (ipc_namespaces(7)).
func ipcSysctl(name string) bool {
	switch name {
	case "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced", "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni":
		return true
	}
	return strings.HasPrefix(name, "fs.mqueue.")
}
