package microvm

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/oci"
)

// On the host the unit has the limits; in a VM only the spec can.
func TestGuestSpec(t *testing.T) {
	l := New(Config{PIDsLimit: 77})
	c := &corev1.Container{Name: "main", Command: []string{"true"}, Resources: limited("64Mi", "250m")}
	c.Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("125m"), corev1.ResourceMemory: resource.MustParse("32Mi")}
	p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{*c}, SecurityContext: &corev1.PodSecurityContext{
		Sysctls: []corev1.Sysctl{{Name: "kernel.shm_rmid_forced", Value: "1"}, {Name: "net.ipv4.ip_unprivileged_port_start", Value: "1024"}},
	}}}
	spec, err := l.guestSpec(runtime.ContainerConfig{Pod: p, Container: c}, nil, "name", size{MemoryMiB: 160})
	if err != nil {
		t.Fatal(err)
	}
	r := spec.Linux.Resources
	if *r.Memory.Limit != 64*mib || *r.Memory.Swap != 64*mib || *r.Memory.Reservation != 32*mib {
		t.Errorf("memory: %+v", r.Memory)
	}
	if *r.CPU.Quota != 25000 || *r.CPU.Period != 100000 || *r.CPU.Shares != 128 {
		t.Errorf("CPU: quota %d of %d, shares %d", *r.CPU.Quota, *r.CPU.Period, *r.CPU.Shares)
	}
	if *r.Pids.Limit != 77 {
		t.Errorf("PIDs: %d", *r.Pids.Limit)
	}
	if r.Devices[0].Allow {
		t.Error("all devices are allowed")
	}
	if len(spec.Linux.Sysctl) > 0 || spec.Linux.Seccomp == nil {
		t.Errorf("sysctls %v, seccomp %v", spec.Linux.Sysctl, spec.Linux.Seccomp)
	}
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace || ns.Type == specs.IPCNamespace || ns.Type == specs.UTSNamespace {
			t.Errorf("the container has a %s namespace of its own", ns.Type)
		}
	}
	want := map[string]string{"net.ipv4.ip_unprivileged_port_start": "1024", "net.ipv4.ping_group_range": "0 2147483647", "kernel.shm_rmid_forced": "1"}
	if diff := cmp.Diff(want, oci.Sysctls(p, true)); diff != "" {
		t.Errorf("sysctls: %s", diff)
	}
}

func TestGuestSpecWithoutLimits(t *testing.T) {
	yes := true
	c := &corev1.Container{Name: "main", Command: []string{"true"}, SecurityContext: &corev1.SecurityContext{Privileged: &yes}}
	p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{*c}}}
	spec, err := New(Config{}).guestSpec(runtime.ContainerConfig{Pod: p, Container: c}, nil, "name", size{MemoryMiB: 160})
	if err != nil {
		t.Fatal(err)
	}
	r := spec.Linux.Resources
	if r.Memory != nil || r.CPU.Quota != nil || *r.CPU.Shares != 2 || r.Pids != nil {
		t.Errorf("limits: %+v %+v", r.Memory, r.CPU)
	}
	if len(r.Devices) != 1 || !r.Devices[0].Allow || r.Devices[0].Access != "rwm" {
		t.Errorf("devices of a privileged container: %+v", r.Devices)
	}
}
