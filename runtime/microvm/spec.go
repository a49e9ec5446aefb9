package microvm

import (
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/oci"
	"github.com/magikrun/magikpod/units"
)

// guestRootfs stands for the container's root in the spec; the agent puts its own path there.
const guestRootfs = "/magikpod/rootfs"

// cpuPeriod is the period that CPU quotas are counted over, as in Kubernetes.
const cpuPeriod = 100 * time.Millisecond

// guestRlimits are what units give to containers of the host.
var guestRlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 65536, Hard: 1048576}}

// standardDevices may be used by every container, as the OCI runtime specification has it; the OCI runtime makes them.
var standardDevices = []struct {
	major, minor int64
}{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}}

// ptsMajor is the major number of pseudo-terminals.
const ptsMajor = 136

// guestSpec is the OCI spec of a container in a VM: as on the host, with limits in it, because no unit has them.
func (r *Runtime) guestSpec(config runtime.ContainerConfig, mounts []runtime.Mount, hostname string, machine size) (*specs.Spec, error) {
	spec, err := oci.Spec(oci.Input{
		Pod: config.Pod, Container: config.Container, Image: config.Image, Env: config.Env, Mounts: mounts,
		Rootfs: guestRootfs, ShmDir: "/dev/shm", Hostname: hostname, Rlimits: guestRlimits,
		Host: oci.HostFacts{MemoryBytes: int64(machine.MemoryMiB) * mib, LowerOOMScore: true},
	})
	if err != nil {
		return nil, err
	}
	spec.Linux.Sysctl = nil // they are the VM's, see machineSysctls
	spec.Linux.Resources = r.resources(config.Container)
	return spec, nil
}

// resources are the limits of a container's cgroup in the machine.
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

// sharesOf is the CPU request in the OCI runtimes' unit, which they turn into a weight: 1024 for one CPU, at least 2.
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
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}, {Allow: true, Type: "c", Access: "m"}, {Allow: true, Type: "b", Access: "m"}}
	number := func(n int64) *int64 { return &n }
	for _, d := range standardDevices {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: number(d.major), Minor: number(d.minor), Access: "rwm"})
	}
	return append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: number(ptsMajor), Access: "rwm"})
}

// machineSysctls are the sysctls of a pod: two that every CRI runtime sets in a pod's network namespace, and the pod's own, which win.
func machineSysctls(p *corev1.Pod) map[string]string {
	set := map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
	if sc := p.Spec.SecurityContext; sc != nil {
		for _, s := range sc.Sysctls {
			set[s.Name] = s.Value
		}
	}
	return set
}
