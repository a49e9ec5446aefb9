package wasm

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/magikrun/magikpod/pod"
)

// ClassName is the runtime class.
const ClassName = "pod-wasm"

// Validate returns what a WebAssembly module cannot honour.
func Validate(p *corev1.Pod) field.ErrorList {
	var errs field.ErrorList
	spec := field.NewPath("spec")
	forbid := func(path *field.Path, why string) { errs = append(errs, field.Forbidden(path, why)) }
	if p.Spec.HostUsers != nil && !*p.Spec.HostUsers {
		forbid(spec.Child("hostUsers"), "user namespaces are not supported by "+ClassName)
	}
	if p.Spec.HostPID {
		forbid(spec.Child("hostPID"), "a WebAssembly module sees no processes")
	}
	if p.Spec.ShareProcessNamespace != nil && *p.Spec.ShareProcessNamespace {
		forbid(spec.Child("shareProcessNamespace"), "a WebAssembly module sees no processes")
	}
	if p.Spec.OS != nil && p.Spec.OS.Name != corev1.Linux {
		errs = append(errs, field.NotSupported(spec.Child("os", "name"), p.Spec.OS.Name, []corev1.OSName{corev1.Linux}))
	}
	if sc := p.Spec.SecurityContext; sc != nil && len(sc.Sysctls) > 0 {
		forbid(spec.Child("securityContext", "sysctls"), "sysctls are not supported by "+ClassName)
	}
	for c, path := range pod.ContainerPaths(&p.Spec) {
		errs = append(errs, validateContainer(p, c, path)...)
	}
	return errs
}

const noExec = "a WebAssembly module has no second process"

func validateContainer(p *corev1.Pod, c *corev1.Container, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	forbid := func(path *field.Path, why string) { errs = append(errs, field.Forbidden(path, why)) }
	for i := range c.VolumeDevices {
		forbid(path.Child("volumeDevices").Index(i), "block volumes are not supported by "+ClassName)
	}
	if c.TTY {
		forbid(path.Child("tty"), "a WebAssembly module has no terminal")
	}
	for name, probe := range map[string]*corev1.Probe{"startupProbe": c.StartupProbe, "readinessProbe": c.ReadinessProbe, "livenessProbe": c.LivenessProbe} {
		if probe != nil && probe.Exec != nil {
			forbid(path.Child(name, "exec"), noExec)
		}
	}
	if l := c.Lifecycle; l != nil {
		for name, handler := range map[string]*corev1.LifecycleHandler{"postStart": l.PostStart, "preStop": l.PreStop} {
			if handler != nil && handler.Exec != nil {
				forbid(path.Child("lifecycle", name, "exec"), noExec)
			}
		}
	}
	for i, port := range c.Ports {
		if port.Protocol != "" && port.Protocol != corev1.ProtocolTCP {
			forbid(path.Child("ports").Index(i).Child("protocol"), "a WebAssembly module gets TCP sockets only")
		}
		if p.Spec.HostNetwork && port.ContainerPort < 1024 {
			forbid(path.Child("ports").Index(i).Child("containerPort"), "in the host's network a WebAssembly module, which has no capabilities, gets no ports below 1024")
		}
	}
	return append(errs, validateSecurity(c.SecurityContext, path.Child("securityContext"))...)
}

func validateSecurity(sc *corev1.SecurityContext, path *field.Path) field.ErrorList {
	if sc == nil {
		return nil
	}
	var errs field.ErrorList
	const none = "a WebAssembly module has no capabilities and cannot get any"
	if sc.Privileged != nil && *sc.Privileged {
		errs = append(errs, field.Forbidden(path.Child("privileged"), none))
	}
	if sc.Capabilities != nil && len(sc.Capabilities.Add) > 0 {
		errs = append(errs, field.Forbidden(path.Child("capabilities", "add"), none))
	}
	if sc.SeccompProfile != nil && sc.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		errs = append(errs, field.NotSupported(path.Child("seccompProfile", "type"), sc.SeccompProfile.Type,
			[]corev1.SeccompProfileType{corev1.SeccompProfileTypeRuntimeDefault}))
	}
	return errs
}

// The annotations by which pods of other runtimes ask for WebAssembly: crun's, of the pod, and that of compat images, which has come to be used for
// pods, too. "Smart" is for pods with other containers beside the modules.
const (
	annotationHandler = "run.oci.handler"
	annotationVariant = "module.wasm.image/variant"
)

// Asked says whether a pod of another class asks for WebAssembly by an annotation, for all of its containers or for some.
func Asked(p *corev1.Pod) (all, some bool) {
	for name, values := range map[string][2]string{annotationHandler: {"wasm", "wasm-smart"}, annotationVariant: {"compat", "compat-smart"}} {
		switch p.Annotations[name] {
		case values[0]:
			all = true
		case values[1]:
			some = true
		}
	}
	return all, some && !all
}
