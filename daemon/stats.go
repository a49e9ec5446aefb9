package daemon

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/magikrun/magikpod/internal/cgroup"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// statsOf reads what a pod and its containers use. root is where cgroup version 2 is mounted (/sys/fs/cgroup), slice the pod's cgroup and containers
// those of its running containers by name, as systemd's ControlGroup gives them, relative to root. Of a controller that is not enabled nothing is
// known. A pod whose cgroup does not exist uses nothing; a container whose cgroup does not exist is left out.
//
// Memory is the working set, as kubectl top shows it: what is in use without the page cache that was not used lately.
func statsOf(root, slice string, containers map[string]string) (pod.Stats, error) {
	s := pod.Stats{Time: time.Now(), Containers: make(map[string]pod.ResourceUse, len(containers))}
	use, ok, err := statsRead(root, slice)
	if err != nil {
		return pod.Stats{}, err
	}
	if !ok {
		use = pod.ResourceUse{CPUNanos: new(uint64), MemoryBytes: new(uint64), Processes: new(uint64)}
	}
	s.Pod = use
	for name, group := range containers {
		use, ok, err := statsRead(root, group)
		if err != nil {
			return pod.Stats{}, err
		}
		if ok {
			s.Containers[name] = use
		}
	}
	return s, nil
}

// statsBy is statsOf for a class whose containers have no cgroups on the host. The pod's figures are the host's, with all that it takes to run them.
func statsBy(ctx context.Context, root, slice string, ref pod.Ref, reader runtime.StatsReader) (pod.Stats, error) {
	s, err := statsOf(root, slice, nil)
	if err != nil {
		return s, err
	}
	use, err := reader.ContainerStats(ctx, ref)
	if err != nil {
		return pod.Stats{}, err
	}
	maps.Copy(s.Containers, use)
	return s, nil
}

// statsRead reads one cgroup; false: it does not exist.
func statsRead(root, group string) (pod.ResourceUse, bool, error) {
	group = filepath.Clean("/" + group)
	if group == "/" { // of a unit that has ended: that of the whole host is not meant
		return pod.ResourceUse{}, false, nil
	}
	fail := func(err error) error {
		return pod.Errorf(pod.Internal, "cannot read the cgroup %s: %w", group, err)
	}
	if _, err := os.Stat(filepath.Join(root, group)); errors.Is(err, fs.ErrNotExist) {
		return pod.ResourceUse{}, false, nil
	}
	u, err := cgroup.ReadUsage(filepath.Join(root, group))
	switch {
	case cgroup.Gone(err): // it went away while it was being read
		return pod.ResourceUse{}, false, nil
	case err != nil:
		return pod.ResourceUse{}, false, fail(err)
	}
	use := pod.ResourceUse{MemoryBytes: u.WorkingSet, Processes: u.PIDs}
	if u.CPUUsec != nil {
		use.CPUNanos = new(*u.CPUUsec * 1000)
	}
	if u.MemoryLimit != nil {
		use.MemoryLimitBytes = *u.MemoryLimit
	}
	return use, true, nil
}
