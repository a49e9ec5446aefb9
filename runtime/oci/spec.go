package oci

import (
	"path"

	"github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
)

// specVersion is the newest version of the OCI runtime specification that all supported OCI
// runtimes accept (crun 1.8 refuses newer ones).
const specVersion = "1.0.2"

// Spec builds the OCI runtime spec of a container, what CRI runtimes make of the same pod except in
// these points: without a seccompProfile the default profile is applied (Kubernetes runs unconfined
// then), and resource limits are left out, because the container's unit has them. The pod's
// annotations never get in: OCI runtimes take orders from annotations (run.oci.*,
// org.systemd.property.*).
//
// Errors are of the kinds Invalid (the manifest or the image is wrong) and Unsupported (this host
// cannot).
func Spec(in Input) (*specs.Spec, error) {
	if !path.IsAbs(in.Rootfs) {
		return nil, pod.Errorf(pod.Internal, "cannot build the spec of container %q: root file system %q is not an absolute path", in.Container.Name, in.Rootfs)
	}
	spec := &specs.Spec{
		Version: specVersion,
		Root:    &specs.Root{Path: in.Rootfs, Readonly: isTrue(security(in.Container).ReadOnlyRootFilesystem)},
		Linux: &specs.Linux{
			Namespaces:  namespaces(in),
			CgroupsPath: in.CgroupsPath,
			Sysctl:      Sysctls(in.Pod, in.Namespaces.Network != ""),
		},
	}
	if in.Namespaces.UTS != "" {
		spec.Hostname = in.Hostname
	}
	process, err := Process(in)
	if err != nil {
		return nil, err
	}
	spec.Process = process
	if err := addMounts(spec, in); err != nil {
		return nil, err
	}
	if err := confine(spec, in); err != nil {
		return nil, err
	}
	return spec, nil
}

// Process is the first process of the container. Its errors are those of [Spec].
func Process(in Input) (*specs.Process, error) {
	args, err := Command(in)
	if err != nil {
		return nil, err
	}
	user, home, err := execUser(in)
	if err != nil {
		return nil, err
	}
	env, err := env(in, home)
	if err != nil {
		return nil, err
	}
	caps, err := capabilities(in)
	if err != nil {
		return nil, err
	}
	dir, err := workingDir(in)
	if err != nil {
		return nil, err
	}
	profile, err := appArmorProfile(in)
	if err != nil {
		return nil, err
	}
	sc := security(in.Container)
	return &specs.Process{
		User: user,
		Args: args,
		Env:  env,
		Cwd:  dir,
		// Inheritable and Ambient stay empty: a process of another user than root gains nothing by
		// execve (CVE-2022-24769).
		Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		Rlimits:         in.Rlimits,
		NoNewPrivileges: sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation,
		OOMScoreAdj:     oomScoreAdj(in),
		ApparmorProfile: profile,
	}, nil
}

// namespaces lists what the container enters or gets. A missing type is the host's.
func namespaces(in Input) []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}}
	if in.Namespaces.PID != "" || !in.Pod.Spec.HostPID {
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: in.Namespaces.PID})
	}
	for _, ns := range []specs.LinuxNamespace{
		{Type: specs.NetworkNamespace, Path: in.Namespaces.Network},
		{Type: specs.IPCNamespace, Path: in.Namespaces.IPC},
		{Type: specs.UTSNamespace, Path: in.Namespaces.UTS},
	} {
		if ns.Path != "" {
			list = append(list, ns)
		}
	}
	return list
}

// Sysctls are the pod's, and with a network of its own two that every CRI runtime sets today: ports
// below 1024 and ping are open to users other than root. The pod's own values win.
func Sysctls(p *corev1.Pod, ownNetwork bool) map[string]string {
	set := map[string]string{}
	if ownNetwork {
		set["net.ipv4.ip_unprivileged_port_start"] = "0"
		set["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	if sc := p.Spec.SecurityContext; sc != nil {
		for _, s := range sc.Sysctls {
			set[s.Name] = s.Value
		}
	}
	if len(set) == 0 {
		return nil
	}
	return set
}

// security is the container's security context, never nil.
func security(c *corev1.Container) *corev1.SecurityContext {
	if c.SecurityContext == nil {
		return &corev1.SecurityContext{}
	}
	return c.SecurityContext
}

// podSecurity is the pod's security context, never nil.
func podSecurity(p *corev1.Pod) *corev1.PodSecurityContext {
	if p.Spec.SecurityContext == nil {
		return &corev1.PodSecurityContext{}
	}
	return p.Spec.SecurityContext
}

func isTrue(b *bool) bool { return b != nil && *b }

func privileged(in Input) bool { return isTrue(security(in.Container).Privileged) }
