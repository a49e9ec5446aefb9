package microvm

import (
	goruntime "runtime"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/units"
)

const (
	mib = 1 << 20

	// guestOverhead is what the kernel of the VM, the agent and the file system caches need beside
	// the containers, and guestOverheadShare the part of the containers' memory that comes on top:
	// the kernel describes each page, and its tables and reserves grow with the memory. Without a
	// container 109 MiB were missing in a VM of 260 MiB, and 153 in one of 1712
	// (docs/performance-microvm.md).
	guestOverhead      = 128 * mib
	guestOverheadShare = 32
	// vmmOverhead is what the VMM and its helpers need on the host beside the VM's memory, and the
	// page cache of their programs; 31 to 54 MiB of it were in use that cannot be taken back. In
	// emulation the translated code is among it. It is no more than a limit: what is not used is
	// not taken.
	vmmOverhead         = 128 * mib
	vmmEmulatedOverhead = 384 * mib
	// proxyOverhead is what the process takes that stands for a container on the host: 3 to 5 MiB
	// were measured.
	proxyOverhead = 8 * mib
	// vmmCPU is the share of a CPU that the VMM may use beside the containers' limits.
	vmmCPU = 250 * time.Millisecond

	// maxVMMemory keeps the arithmetic far from an overflow: 16 TiB.
	maxVMMemory = 1 << 44
)

// size is how large a VM is.
type size struct {
	CPUs      int
	MemoryMiB int
}

// sizeOf makes a VM that the containers fit in: their limits, or for those that have none what the
// configuration says, but no less than what they request, and the overhead.
func (r *Runtime) sizeOf(p *corev1.Pod) size {
	limits := units.PodLimits(p)
	memory := limits.MemoryMax
	if memory == 0 {
		memory = max(uint64(r.config.MemoryBytes)+limitedMemory(p), limits.MemoryLow)
	}
	memory = min(memory, maxVMMemory)
	memory += guestOverhead + memory/guestOverheadShare
	cpus := max(r.config.CPUs, wholeCPUs(units.PodCPURequest(p)))
	if limits.CPUQuota > 0 {
		cpus = wholeCPUs(limits.CPUQuota)
	}
	return size{CPUs: max(min(cpus, goruntime.NumCPU()), 1), MemoryMiB: int((memory + mib - 1) / mib)}
}

// wholeCPUs is how many CPUs can give so much time per second.
func wholeCPUs(perSecond time.Duration) int { return int((perSecond + time.Second - 1) / time.Second) }

// limitedMemory is the sum of the memory limits in a pod some of whose containers have none.
func limitedMemory(p *corev1.Pod) (sum uint64) {
	for c := range pod.AllContainers(&p.Spec) {
		sum = min(sum+units.ContainerLimits(c).MemoryMax, maxVMMemory)
	}
	return sum
}

// PodLimits are those of the slice: the VM, and what it takes to run it. In emulation a limit of
// the containers' CPU time applies in the VM only: what their instructions cost on the host is
// another matter.
func (r *Runtime) PodLimits(p *corev1.Pod) units.Limits {
	limits, vm := units.PodLimits(p), r.sizeOf(p)
	overhead := uint64(vmmOverhead)
	if r.emulated() {
		overhead = vmmEmulatedOverhead
	}
	overhead += uint64(len(p.Spec.InitContainers)+len(p.Spec.Containers)) * proxyOverhead
	limits.MemoryMax = uint64(vm.MemoryMiB)*mib + overhead
	if limits.CPUQuota > 0 {
		limits.CPUQuota += vmmCPU
		if r.emulated() {
			limits.CPUQuota = time.Duration(vm.CPUs+1) * time.Second
		}
	}
	return limits
}
