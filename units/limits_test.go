package units

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
)

// resources reads limits and requests as "cpu=1 memory=1Gi".
func resources(limits, requests string) corev1.ResourceRequirements {
	return corev1.ResourceRequirements{Limits: resourceList(limits), Requests: resourceList(requests)}
}

func resourceList(s string) corev1.ResourceList {
	list := corev1.ResourceList{}
	for _, field := range strings.Fields(s) {
		name, value, _ := strings.Cut(field, "=")
		list[corev1.ResourceName(name)] = resource.MustParse(value)
	}
	return list
}

func TestPodLimits(t *testing.T) {
	type container struct{ kind, limits, requests string }
	const mib = 1 << 20
	tests := []struct {
		name             string
		containers       []container
		limits, requests string // of the pod
		overhead         string
		want             Limits
	}{
		{
			name:       "nothing",
			containers: []container{{}},
			want:       Limits{CPUWeight: 1},
		},
		{
			name:       "sum",
			containers: []container{{"", "cpu=1 memory=64Mi", "cpu=500m memory=32Mi"}, {"", "cpu=500m memory=64Mi", "cpu=500m memory=32Mi"}},
			want:       Limits{MemoryMax: 128 * mib, MemoryLow: 64 * mib, CPUQuota: 1500 * time.Millisecond, CPUWeight: 100},
		},
		{
			name:       "a container without a limit",
			containers: []container{{"", "cpu=1 memory=64Mi", ""}, {"", "cpu=1", "memory=32Mi"}},
			want:       Limits{MemoryLow: 96 * mib, CPUQuota: 2 * time.Second, CPUWeight: 174},
		},
		{
			name:       "an init container without a limit",
			containers: []container{{"init", "", ""}, {"", "cpu=1 memory=64Mi", ""}},
			want:       Limits{MemoryLow: 64 * mib, CPUWeight: 100},
		},
		{
			name:       "the largest init container",
			containers: []container{{"init", "memory=100Mi", ""}, {"init", "memory=90Mi", ""}, {"", "memory=64Mi", ""}},
			want:       Limits{MemoryMax: 100 * mib, MemoryLow: 100 * mib, CPUWeight: 1},
		},
		{
			name:       "sidecars count for what comes after them",
			containers: []container{{"init", "memory=70Mi", ""}, {"sidecar", "memory=20Mi", ""}, {"init", "memory=60Mi", ""}, {"sidecar", "memory=1Mi", ""}, {"", "memory=40Mi", ""}},
			want:       Limits{MemoryMax: 80 * mib, MemoryLow: 80 * mib, CPUWeight: 1},
		},
		{
			name:       "sidecars run with the containers",
			containers: []container{{"sidecar", "memory=20Mi", ""}, {"", "memory=40Mi", ""}},
			want:       Limits{MemoryMax: 60 * mib, MemoryLow: 60 * mib, CPUWeight: 1},
		},
		{
			name:       "overhead",
			containers: []container{{"", "memory=40Mi", "cpu=900m"}},
			overhead:   "memory=2Mi cpu=100m",
			want:       Limits{MemoryMax: 42 * mib, MemoryLow: 42 * mib, CPUWeight: 100},
		},
		{
			name:       "the pod's own",
			containers: []container{{"", "memory=40Mi", "cpu=1"}, {}},
			limits:     "memory=50Mi cpu=2",
			requests:   "memory=5Mi",
			want:       Limits{MemoryMax: 50 * mib, MemoryLow: 5 * mib, CPUQuota: 2 * time.Second, CPUWeight: 100},
		},
		{
			name:       "the pod's own limit is its request when nobody asks",
			containers: []container{{}},
			limits:     "memory=50Mi cpu=1",
			want:       Limits{MemoryMax: 50 * mib, MemoryLow: 50 * mib, CPUQuota: time.Second, CPUWeight: 100},
		},
		{
			name:       "least and most",
			containers: []container{{"", "cpu=1m memory=8Ei", "cpu=1000000"}},
			want:       Limits{MemoryMax: 1<<63 - 1, MemoryLow: 1<<63 - 1, CPUQuota: 10 * time.Millisecond, CPUWeight: 10000},
		},
		{
			name:       "absurd",
			containers: []container{{"", "cpu=99999999999999999999 memory=0", ""}},
			want:       Limits{CPUQuota: 1_000_000 * time.Second, CPUWeight: 10000},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := testPod("p")
			p.Spec.Containers = nil
			always := corev1.ContainerRestartPolicyAlways
			for _, c := range tt.containers {
				built := corev1.Container{Resources: resources(c.limits, c.requests)}
				switch c.kind {
				case "":
					p.Spec.Containers = append(p.Spec.Containers, built)
				case "sidecar":
					built.RestartPolicy = &always
					fallthrough
				default:
					p.Spec.InitContainers = append(p.Spec.InitContainers, built)
				}
			}
			if tt.limits+tt.requests != "" {
				r := resources(tt.limits, tt.requests)
				p.Spec.Resources = &r
			}
			p.Spec.Overhead = resourceList(tt.overhead)
			tt.want.TasksMax = DefaultTasksMax
			before := p.DeepCopy()
			if got := PodLimits(p); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if !equality.Semantic.DeepEqual(before, p) {
				t.Error("the pod was changed")
			}
		})
	}
}

// The values of the OCI runtimes' conversion at its corners, and that more is never less.
func TestWeight(t *testing.T) {
	for cpu, want := range map[string]uint64{"0": 1, "1m": 1, "2m": 1, "100m": 17, "250m": 35, "500m": 59, "1": 100, "2": 174, "4": 303, "256": 10000, "1000": 10000} {
		if got := weightOf(resource.MustParse(cpu)); got != want {
			t.Errorf("%s: %d, want %d", cpu, got, want)
		}
	}
	last := uint64(0)
	for m := int64(0); m < 300_000; m += 7 {
		w := weightOf(*resource.NewMilliQuantity(m, resource.DecimalSI))
		if w < last || w < 1 || w > 10000 {
			t.Fatalf("%dm: %d after %d", m, w, last)
		}
		last = w
	}
}
