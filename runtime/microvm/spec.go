package microvm

import (
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/crun"
	"github.com/magikrun/magikpod/runtime/oci"
	"github.com/magikrun/magikpod/units"
)

// guestRootfs stands for the container's root in the spec; the agent puts its own path there.
const guestRootfs = "/magikpod/rootfs"

// cpuPeriod is the period that CPU quotas are counted over, as in Kubernetes.
const cpuPeriod = 100 * time.Millisecond

// guestSpec is the OCI spec of a container in a VM: as on the host, with limits in it, because no
// unit has them.
func (r *Runtime) guestSpec(config runtime.ContainerConfig, mounts []runtime.Mount, hostname string, vm size) (*specs.Spec, error) {
	spec, err := oci.Spec(oci.Input{
		Pod: config.Pod, Container: config.Container, Image: config.Image, Env: config.Env, Mounts: mounts,
		Rootfs: guestRootfs, ShmDir: "/dev/shm", Hostname: hostname, Rlimits: crun.Rlimits(),
		Host: oci.HostFacts{MemoryBytes: int64(vm.MemoryMiB) * mib, LowerOOMScore: true},
	})
	if err != nil {
		return nil, err
	}
	spec.Linux.Sysctl = nil // they are the VM's
	spec.Linux.Resources = r.resources(config.Container)
	return spec, nil
}

// resources are the limits of a container's cgroup in the VM.
func (r *Runtime) resources(c *corev1.Container) *specs.LinuxResources {
	limits := units.ContainerLimits(c)
	res := &specs.LinuxResources{Devices: deviceRules(c)}
	if limits.MemoryMax > 0 {
		limit, low := int64(limits.MemoryMax), int64(limits.MemoryLow)
		// The swap limit of OCI is that of memory and swap together: none on top.
		res.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit, Reservation: &low}
	}
	cpu := &specs.LinuxCPU{}
	if limits.CPUQuota > 0 {
		quota, period := (limits.CPUQuota / 10).Microseconds(), uint64(cpuPeriod.Microseconds())
		cpu.Quota, cpu.Period = &quota, &period
	}
	shares := sharesOf(c)
	cpu.Shares = &shares
	res.CPU = cpu
	if r.config.PIDsLimit > 0 {
		limit := r.config.PIDsLimit
		res.Pids = &specs.LinuxPids{Limit: &limit}
	}
	return res
}

// sharesOf is the CPU request in the OCI runtimes' unit, which they turn into a weight: 1024 for
// one CPU, at least 2.
func sharesOf(c *corev1.Container) uint64 {
	request, ok := c.Resources.Requests[corev1.ResourceCPU]
	if !ok {
		request = c.Resources.Limits[corev1.ResourceCPU]
	}
	return uint64(min(max(request.MilliValue()*1024/1000, 2), 262144))
}

// deviceRules let a privileged container use all devices of the VM, others the usual ones.
func deviceRules(c *corev1.Container) []specs.LinuxDeviceCgroup {
	if sc := c.SecurityContext; sc != nil && sc.Privileged != nil && *sc.Privileged {
		return []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	}
	return crun.DeviceRules()
}
