package microvm

import (
	goruntime "runtime"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

func limited(memory, cpu string) corev1.ResourceRequirements {
	r := corev1.ResourceRequirements{Limits: corev1.ResourceList{}}
	if memory != "" {
		r.Limits[corev1.ResourceMemory] = resource.MustParse(memory)
	}
	if cpu != "" {
		r.Limits[corev1.ResourceCPU] = resource.MustParse(cpu)
	}
	return r
}

func requested(memory, cpu string) corev1.ResourceRequirements {
	r := limited(memory, cpu)
	return corev1.ResourceRequirements{Requests: r.Limits}
}

func TestSize(t *testing.T) {
	const guest, vmmMiB = guestOverhead / mib, vmmOverhead / mib
	for _, c := range []struct {
		name       string
		containers []corev1.ResourceRequirements
		memory     int // MiB of the VM, without guestOverhead
		cpus       int
		quota      time.Duration
	}{
		{"no limits", []corev1.ResourceRequirements{{}, {}}, 528, 1, 0},
		{"limits", []corev1.ResourceRequirements{limited("100Mi", "300m"), limited("28Mi", "200m")}, 132, 1, 500*time.Millisecond + vmmCPU},
		{"one without", []corev1.ResourceRequirements{limited("100Mi", ""), {}}, 632, 1, 0},
		{"more CPUs than one", []corev1.ResourceRequirements{limited("1Gi", "1500m")}, 1056, min(2, goruntime.NumCPU()), 1500*time.Millisecond + vmmCPU},
		{"more CPUs than there are", []corev1.ResourceRequirements{limited("1Gi", "5000")}, 1056, goruntime.NumCPU(), 5000*time.Second + vmmCPU},
		{"requests", []corev1.ResourceRequirements{requested("1Gi", "1500m"), requested("1Gi", "")}, 2112, min(2, goruntime.NumCPU()), 0},
		{"small requests", []corev1.ResourceRequirements{requested("64Mi", "100m")}, 528, 1, 0},
		{"a request beside a limit", []corev1.ResourceRequirements{requested("2Gi", ""), limited("64Mi", "")}, 2178, 1, 0},
		{"a part of a MiB", []corev1.ResourceRequirements{limited("1", "")}, 1, 1, 0},
		{"more than there can be", []corev1.ResourceRequirements{limited("8Ei", "")}, maxVMMemory/mib + (maxVMMemory/guestOverheadShare+mib-1)/mib, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := New(Config{Accel: vmm.AccelKVM})
			p := &corev1.Pod{}
			for _, r := range c.containers {
				p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Resources: r})
			}
			if got, want := l.sizeOf(p), (size{CPUs: c.cpus, MemoryMiB: c.memory + guest}); got != want {
				t.Errorf("%+v, want %+v", got, want)
			}
			limits := l.PodLimits(p)
			if want := uint64(c.memory+guest+vmmMiB)*mib + uint64(len(c.containers))*proxyOverhead; limits.MemoryMax != want {
				t.Errorf("MemoryMax of the slice is %d, want %d", limits.MemoryMax, want)
			}
			if limits.CPUQuota != c.quota {
				t.Errorf("CPUQuota of the slice is %s, want %s", limits.CPUQuota, c.quota)
			}
		})
	}
}

// In emulation the CPU limit applies in the VM: on the host it is that of its CPUs.
func TestSizeEmulated(t *testing.T) {
	l := New(Config{Accel: vmm.AccelTCG})
	p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Resources: limited("64Mi", "100m")}}}}
	limits := l.PodLimits(p)
	if limits.CPUQuota != 2*time.Second || limits.MemoryMax != 66*mib+guestOverhead+vmmEmulatedOverhead+proxyOverhead {
		t.Errorf("%+v", limits)
	}
}
