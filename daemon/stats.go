package daemon

import (
	"context"
	"maps"
	"time"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/onhost"
)

// statsOf reads what a pod uses from its cgroup, with all that it takes to run its containers, and
// asks the class for theirs. root is where cgroup version 2 is mounted (/sys/fs/cgroup), slice the
// pod's cgroup. Of a controller that is not enabled nothing is known. A pod whose cgroup does not
// exist uses nothing.
func statsOf(ctx context.Context, root, slice string, ref pod.Ref, class runtime.PodManager) (pod.Stats, error) {
	s := pod.Stats{Time: time.Now(), Containers: map[string]pod.ResourceUse{}}
	use, ok, err := onhost.Usage(root, slice)
	if err != nil {
		return pod.Stats{}, err
	}
	if !ok {
		use = pod.ResourceUse{CPUNanos: new(uint64), MemoryBytes: new(uint64), Processes: new(uint64)}
	}
	s.Pod = use
	containers, err := class.ContainerStats(ctx, ref)
	if err != nil {
		return pod.Stats{}, err
	}
	maps.Copy(s.Containers, containers)
	return s, nil
}
