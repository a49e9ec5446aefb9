package units

import (
	"math"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/magikrun/magikpod/pod"
)

// DefaultTasksMax is how many processes and threads a pod may have when nobody says otherwise.
const DefaultTasksMax = 4096

const (
	// cpuPeriod is the period that a CPU quota is counted over, as in Kubernetes.
	cpuPeriod = 100 * time.Millisecond
	// minCPUQuota is 1 ms a period, the least that the kernel takes.
	minCPUQuota = 10 * time.Millisecond
	// maxMilliCPU keeps the arithmetic far from an overflow: a million CPUs.
	maxMilliCPU = 1_000_000_000

	minShares, maxShares = 2, 262144
	maxWeight            = 10000
)

// Limits are the resources of a pod or a container in systemd's terms. The zero value of a field is
// no limit, or systemd's default.
type Limits struct {
	// MemoryMax is the limit in bytes. Swap is not to be used on top of it: a limit of 64 MiB is
	// not one of 64 MiB and all of the swap.
	MemoryMax uint64
	// MemoryLow is what the kernel takes last when memory is short, in bytes. Requests become
	// MemoryLow=, not MemoryMin=: min is a hard reservation, and a host that has promised too much
	// would kill processes which have nothing to do with the pods. (cgroup v2 counts it against the
	// siblings below the same ancestor that is short of memory; give magikpod.slice a MemoryLow= of
	// its own to protect pods from the rest of the host.)
	MemoryLow uint64
	// CPUQuota is CPU time per second of wall clock: 1.5 CPUs are 1.5 s.
	CPUQuota time.Duration
	// CPUWeight is 1 to 10000; 100 is systemd's default and one requested CPU.
	CPUWeight uint64
	// TasksMax is the number of processes and threads.
	TasksMax uint64
}

// ContainerLimits returns the limits of one container. A request that is missing is the limit, as
// in Kubernetes.
func ContainerLimits(c *corev1.Container) Limits {
	return Limits{
		MemoryMax: bytesOf(limitOf(c, corev1.ResourceMemory)),
		MemoryLow: bytesOf(requestOf(c, corev1.ResourceMemory)),
		CPUQuota:  quotaOf(limitOf(c, corev1.ResourceCPU)),
		CPUWeight: weightOf(requestOf(c, corev1.ResourceCPU)),
	}
}

// PodLimits returns the limits of a whole pod: what spec.resources says, and for what it does not
// say what Kubernetes computes from the containers. That is the sum of the containers and the
// sidecars, or what an init container needs beside the sidecars before it when that is more, and
// the overhead of the runtime class on top. A limit applies to the pod only when every container
// has one.
func PodLimits(p *corev1.Pod) Limits {
	return Limits{
		MemoryMax: bytesOf(podLimit(p, corev1.ResourceMemory)),
		MemoryLow: bytesOf(podRequest(p, corev1.ResourceMemory)),
		CPUQuota:  quotaOf(podLimit(p, corev1.ResourceCPU)),
		CPUWeight: weightOf(podRequest(p, corev1.ResourceCPU)),
		TasksMax:  DefaultTasksMax,
	}
}

// WithTasks returns l with another limit of processes and threads; 0: that of l.
func (l Limits) WithTasks(limit int64) Limits {
	if limit > 0 {
		l.TasksMax = uint64(limit)
	}
	return l
}

// PodCPURequest is what PodLimits makes a weight of: the CPU time that a pod asks for, per second
// of wall clock; 0: nothing.
func PodCPURequest(p *corev1.Pod) time.Duration { return quotaOf(podRequest(p, corev1.ResourceCPU)) }

func limitOf(c *corev1.Container, name corev1.ResourceName) resource.Quantity {
	return c.Resources.Limits[name]
}

func requestOf(c *corev1.Container, name corev1.ResourceName) resource.Quantity {
	if q, ok := c.Resources.Requests[name]; ok {
		return q
	}
	return c.Resources.Limits[name]
}

func podLimit(p *corev1.Pod, name corev1.ResourceName) resource.Quantity {
	var total resource.Quantity
	if r := p.Spec.Resources; r != nil && positive(r.Limits[name]) {
		total = r.Limits[name].DeepCopy()
	} else {
		for c := range pod.AllContainers(&p.Spec) {
			if !positive(limitOf(c, name)) {
				return resource.Quantity{}
			}
		}
		total = effective(p, name, limitOf)
	}
	if positive(total) {
		total.Add(p.Spec.Overhead[name])
	}
	return total
}

func podRequest(p *corev1.Pod, name corev1.ResourceName) resource.Quantity {
	var total resource.Quantity
	if q, ok := podLevelRequest(p, name); ok {
		total = q.DeepCopy()
	} else {
		total = effective(p, name, requestOf)
	}
	total.Add(p.Spec.Overhead[name])
	return total
}

// podLevelRequest is the request in spec.resources. When there is only a limit there, that is the
// request only if no container asks for anything.
func podLevelRequest(p *corev1.Pod, name corev1.ResourceName) (resource.Quantity, bool) {
	r := p.Spec.Resources
	if r == nil {
		return resource.Quantity{}, false
	}
	if q, ok := r.Requests[name]; ok {
		return q, true
	}
	if q, ok := r.Limits[name]; ok && !positive(effective(p, name, requestOf)) {
		return q, true
	}
	return resource.Quantity{}, false
}

// effective is Kubernetes' sum over the containers of a pod.
func effective(p *corev1.Pod, name corev1.ResourceName, of func(*corev1.Container, corev1.ResourceName) resource.Quantity) resource.Quantity {
	return pod.Effective(&p.Spec, func(c *corev1.Container) resource.Quantity { return of(c, name) })
}

func positive(q resource.Quantity) bool { return q.Sign() > 0 }

func bytesOf(q resource.Quantity) uint64 {
	if !positive(q) {
		return 0
	}
	return uint64(q.Value())
}

func milli(q resource.Quantity) int64 {
	if q.CmpInt64(maxMilliCPU/1000) >= 0 {
		return maxMilliCPU
	}
	return q.MilliValue()
}

func quotaOf(cpu resource.Quantity) time.Duration {
	if !positive(cpu) {
		return 0
	}
	return max(time.Duration(milli(cpu))*time.Millisecond, minCPUQuota)
}

// weightOf turns a CPU request into cgroup v2's weight by way of cgroup v1's shares, as Kubernetes
// and the OCI runtimes do: 1024 shares (one CPU) are 100, the least (2 shares, also for no request
// at all) is 1, the most is 10000. The curve is the quadratic one of the OCI runtimes since 2025;
// with the linear one before it one CPU was 39, and lost against every other cgroup of the host.
func weightOf(cpu resource.Quantity) uint64 {
	shares := float64(minShares)
	if positive(cpu) {
		shares = float64(milli(cpu) * 1024 / 1000)
	}
	switch {
	case shares <= minShares:
		return 1
	case shares >= maxShares:
		return maxWeight
	}
	l := math.Log2(shares)
	// The small number makes 1024 shares 100 and not 101, however a CPU rounds.
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34) - 1e-6))
}
