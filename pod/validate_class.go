package pod

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// class reports what the pods of a runtime class cannot have on any host, beyond what no class
// honours. What only this host lacks is said by its runtime.
func (c *checker) class(p *corev1.Pod) {
	all, _ := AskedWasm(p)
	switch class := ClassOf(p); {
	case class == ClassMicroVM:
		c.microVM(&p.Spec)
	case class == ClassWasm, class == ClassContainers && all:
		c.wasm(&p.Spec)
	}
}

// AskedWasm says whether a pod of the class [ClassContainers] asks for WebAssembly, for all of its
// containers or for some: by crun's annotation of the pod, or by that of compat images, which has
// come to be used for pods, too. "Smart" is for pods with other containers beside the modules.
func AskedWasm(p *corev1.Pod) (all, some bool) {
	for name, values := range map[string][2]string{"run.oci.handler": {"wasm", "wasm-smart"}, "module.wasm.image/variant": {"compat", "compat-smart"}} {
		switch p.Annotations[name] {
		case values[0]:
			all = true
		case values[1]:
			some = true
		}
	}
	return all, some && !all
}

// wasm refuses what a WebAssembly module cannot honour.
func (c *checker) wasm(s *corev1.PodSpec) {
	spec := field.NewPath("spec")
	if s.HostPID {
		c.refuse(spec.Child("hostPID"), "a WebAssembly module sees no processes")
	}
	if isTrue(s.ShareProcessNamespace) {
		c.refuse(spec.Child("shareProcessNamespace"), "a WebAssembly module sees no processes")
	}
	if sc := s.SecurityContext; sc != nil && len(sc.Sysctls) > 0 {
		c.refuse(spec.Child("securityContext", "sysctls"), "sysctls are not supported by "+ClassWasm)
	}
	for container, path := range ContainerPaths(s) {
		c.wasmContainer(s, container, path)
	}
}

// WasmErrors returns what a WebAssembly module cannot honour of one container of s, at path: pods
// of the class [ClassContainers] may have modules among their containers.
func WasmErrors(s *corev1.PodSpec, container *corev1.Container, path *field.Path) field.ErrorList {
	var c checker
	c.wasmContainer(s, container, path)
	return c.errs
}

func (c *checker) wasmContainer(s *corev1.PodSpec, container *corev1.Container, path *field.Path) {
	const noExec = "a WebAssembly module has no second process"
	for name, probe := range map[string]*corev1.Probe{
		"startupProbe": container.StartupProbe, "readinessProbe": container.ReadinessProbe, "livenessProbe": container.LivenessProbe,
	} {
		if probe != nil && probe.Exec != nil {
			c.refuse(path.Child(name, "exec"), noExec)
		}
	}
	if l := container.Lifecycle; l != nil {
		for name, handler := range map[string]*corev1.LifecycleHandler{"postStart": l.PostStart, "preStop": l.PreStop} {
			if handler != nil && handler.Exec != nil {
				c.refuse(path.Child("lifecycle", name, "exec"), noExec)
			}
		}
	}
	for i, port := range container.Ports {
		at := path.Child("ports").Index(i)
		if port.Protocol != "" && port.Protocol != corev1.ProtocolTCP {
			c.refuse(at.Child("protocol"), "a WebAssembly module gets TCP sockets only")
		}
		if s.HostNetwork && port.ContainerPort < 1024 {
			c.refuse(at.Child("containerPort"), "in the host's network a WebAssembly module, which has no capabilities, gets no ports below 1024")
		}
	}
	sc, at := container.SecurityContext, path.Child("securityContext")
	if sc == nil {
		return
	}
	const none = "a WebAssembly module has no capabilities and cannot get any"
	if isTrue(sc.Privileged) {
		c.refuse(at.Child("privileged"), none)
	}
	if sc.Capabilities != nil && len(sc.Capabilities.Add) > 0 {
		c.refuse(at.Child("capabilities", "add"), none)
	}
	if sc.SeccompProfile != nil {
		oneOf(c, at.Child("seccompProfile", "type"), sc.SeccompProfile.Type, corev1.SeccompProfileTypeRuntimeDefault)
	}
}

// microVM refuses what a pod in a VM cannot have. Sysctls are all allowed: they are the VM's.
func (c *checker) microVM(s *corev1.PodSpec) {
	spec := field.NewPath("spec")
	if s.HostNetwork {
		c.refuse(spec.Child("hostNetwork"), "a VM has a network of its own; use a hostPort")
	}
	if s.HostPID {
		c.refuse(spec.Child("hostPID"), "a VM does not see the host's processes")
	}
	if s.HostIPC {
		c.refuse(spec.Child("hostIPC"), "a VM does not share memory with the host's processes")
	}
	if sc := s.SecurityContext; sc != nil {
		c.noLocalAppArmor(sc.AppArmorProfile, spec.Child("securityContext"))
	}
	for i, v := range s.Volumes {
		if v.HostPath == nil || v.HostPath.Type == nil {
			continue
		}
		at := spec.Child("volumes").Index(i).Child("hostPath", "type")
		switch *v.HostPath.Type {
		case corev1.HostPathSocket:
			c.refuse(at, "nobody listens on the host's sockets in a VM")
		case corev1.HostPathCharDev, corev1.HostPathBlockDev:
			c.refuse(at, "the host's devices are not in a VM")
		}
	}
	for container, path := range ContainerPaths(s) {
		if l := container.Lifecycle; l != nil && l.StopSignal != nil && (*l.StopSignal == corev1.SIGURG || *l.StopSignal == corev1.SIGPIPE) {
			c.refuse(path.Child("lifecycle", "stopSignal"), "the process that stands in for a VM's container cannot pass it on")
		}
		for i, m := range container.VolumeMounts {
			if m.MountPropagation != nil && *m.MountPropagation != "" && *m.MountPropagation != corev1.MountPropagationNone {
				c.refuse(path.Child("volumeMounts").Index(i).Child("mountPropagation"), "mounts are the VM's own: none comes from the host later, and none goes to it")
			}
		}
		if sc := container.SecurityContext; sc != nil {
			c.noLocalAppArmor(sc.AppArmorProfile, path.Child("securityContext"))
		}
	}
}

// noLocalAppArmor refuses a profile that lies on the host.
func (c *checker) noLocalAppArmor(p *corev1.AppArmorProfile, at *field.Path) {
	if p != nil && p.Type == corev1.AppArmorProfileTypeLocalhost {
		oneOf(c, at.Child("appArmorProfile", "type"), p.Type, corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined)
	}
}
