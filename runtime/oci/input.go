package oci

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/runtime"
)

// Input is all that the spec of one attempt at a container depends on. Nothing in it is modified.
type Input struct {
	Pod       *corev1.Pod       // defaults filled in
	Container *corev1.Container // of Pod
	Image     runtime.Image
	// Env is the container's environment from the manifest, references resolved, in order; the last
	// of a name wins.
	Env []runtime.EnvVar
	// Mounts are the volumes and the files of /etc. Source is the path that the OCI runtime binds:
	// SubPath and SharedTmpfs are resolved by the caller and must be empty. A mount without a
	// Source is a tmpfs.
	Mounts []runtime.Mount

	// Rootfs is the absolute path at which the container's root file system is mounted.
	Rootfs string
	// ShmDir is bound to /dev/shm; empty: the container gets a tmpfs of its own of 64 MiB.
	ShmDir string
	// Hostname is $HOSTNAME, and the name in the UTS namespace if there is one.
	Hostname   string
	Namespaces Namespaces

	// CgroupsPath is linux.cgroupsPath: empty for an OCI runtime that leaves cgroups alone.
	CgroupsPath string
	// Rlimits are set on the first process; none: what the unit has.
	Rlimits []specs.POSIXRlimit

	Host HostFacts
}

// Namespaces are the paths of the pod's namespaces. Empty means the host's own for Network, IPC and UTS.
type Namespaces struct {
	Network, IPC, UTS string
	// PID, when empty, is a new one for the container, unless the pod has hostPID.
	PID string
}

// HostFacts is what the spec needs to know about the host.
type HostFacts struct {
	// MemoryBytes is the memory of the host, for the OOM score of burstable pods; 0: not known.
	MemoryBytes int64
	// LowerOOMScore says that oom_score_adj may be lowered (CAP_SYS_RESOURCE); without it a
	// negative score is left out.
	LowerOOMScore bool
	// Capabilities are those that the container's creator has and can give (CAP_CHOWN, ...); nil:
	// all that this version knows.
	Capabilities []string
	// Devices are the host's device nodes, given to privileged containers.
	Devices []specs.LinuxDevice
	// AppArmor says that the kernel has AppArmor switched on. No profile is loaded for
	// RuntimeDefault: it is none.
	AppArmor bool
}
