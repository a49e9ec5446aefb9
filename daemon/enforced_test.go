package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/magikrun/magikpod/internal/testutil"
	"github.com/magikrun/magikpod/pod"
)

func TestMissingControllers(t *testing.T) {
	for _, test := range []struct {
		name, controllers string // none: no file
		v1                []string
		want              string
	}{
		{"all", "cpuset cpu io memory hugetlb pids\n", nil, ""},
		{"no memory", "cpu pids\n", nil, "memory"},
		{"none", "hugetlb\n", nil, "cpu memory pids"},
		{"empty", "\n", nil, "cpu memory pids"},
		{"not known", "none", nil, ""}, // an error is not an absence
		{"hybrid", "\n", []string{"cpu", "memory"}, "pids"},
	} {
		t.Run(test.name, func(t *testing.T) {
			top := t.TempDir()
			root := top
			for _, name := range test.v1 {
				root = filepath.Join(top, "unified")
				testutil.WriteFiles(t, filepath.Join(top, name), map[string]string{"cgroup.procs": ""})
			}
			if test.controllers != "none" {
				testutil.WriteFiles(t, root, map[string]string{"cgroup.controllers": test.controllers})
			}
			if got := strings.Join(missingControllers(root), " "); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
	if _, err := os.Stat("/sys/fs/cgroup"); err == nil {
		t.Logf("this host lacks %v", ReadHost("", "").MissingControllers)
	}
}

const limitedPod = `
apiVersion: v1
kind: Pod
metadata: {name: limited}
spec:
  runtimeClassName: CLASS
  resources: {limits: {memory: 64Mi}}
  initContainers: [{name: i, image: "localhost/x:1", resources: {requests: {memory: 8Mi}}}]
  containers:
  - {name: a, image: "localhost/x:1", resources: {limits: {memory: 32Mi, cpu: 500m}, requests: {cpu: 100m}}}
  - {name: b, image: "localhost/x:1", resources: {requests: {cpu: 100m}}}
`

// A limit that has no effect is reported like every other field that is not honoured: by validate,
// by run, and by an event of the pod.
func TestIgnoredLimits(t *testing.T) {
	memory := []string{"spec.containers[0].resources.limits[memory]", "spec.initContainers[0].resources.requests[memory]", "spec.resources.limits[memory]"}
	cpu := []string{"spec.containers[0].resources.limits[cpu]", "spec.containers[1].resources.requests[cpu]"}
	for _, test := range []struct {
		name, class string
		missing     []string
		want        []string
	}{
		{"a host with all", pod.ClassContainers, nil, nil},
		{"no memory", pod.ClassContainers, []string{"memory"}, memory},
		{"no CPU", pod.ClassContainers, []string{"cpu", "pids"}, cpu},
		{"nothing", pod.ClassContainers, []string{"cpu", "memory", "pids"}, append(slices.Clone(memory), cpu...)},
		{"a module's memory is its engine's", pod.ClassWasm, []string{"memory"}, memory[1:]},
		{"a VM has its own", pod.ClassMicroVM, []string{"cpu", "memory", "pids"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, err := pod.Parse([]byte(strings.Replace(limitedPod, "CLASS", test.class, 1)))
			if err != nil {
				t.Fatal(err)
			}
			pod.Default(m.Pods[0])
			d := &Daemon{host: Host{MissingControllers: test.missing}}
			var got []string
			for _, w := range d.ignoredLimits(m.Pods[0]) {
				if !strings.Contains(w.Detail, "has no effect on this host, which does not have the cgroup controller ") {
					t.Errorf("%v", w)
				}
				got = append(got, w.Field)
			}
			want := slices.Sorted(slices.Values(test.want))
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}
