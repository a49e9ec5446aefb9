// Package usage reads what a cgroup of version 2 uses.
//
// What does not belong here: which cgroup is whose (runtime/engine, daemon).
package usage

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"syscall"

	"github.com/containerd/cgroups/v3/cgroup2"

	"github.com/magikrun/magikpod/pod"
)

// Of reads one cgroup. root is where cgroups are mounted (/sys/fs/cgroup), group is relative to it. Of a controller that is not enabled nothing is known. False: the cgroup
// does not exist.
//
// Memory is the working set, as kubectl top shows it: what is in use without the page cache that was not used lately.
func Of(root, group string) (pod.ResourceUse, bool, error) {
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
	manager, err := cgroup2.Load(group, cgroup2.WithMountpoint(root))
	if err != nil {
		return pod.ResourceUse{}, false, fail(err)
	}
	m, err := manager.StatFiltered(cgroup2.StatPids | cgroup2.StatCPU | cgroup2.StatMemory)
	switch {
	case errors.Is(err, syscall.ENODEV): // it went away while it was being read
		return pod.ResourceUse{}, false, nil
	case err != nil:
		return pod.ResourceUse{}, false, fail(err)
	}
	// The library takes a file that does not exist for zero.
	known := func(file string, value uint64) *uint64 {
		if _, err := os.Stat(filepath.Join(root, group, file)); err != nil {
			return nil
		}
		return &value
	}
	memory := m.GetMemory()
	use := pod.ResourceUse{
		CPUNanos:         known("cpu.stat", m.GetCPU().GetUsageUsec()*1000),
		MemoryBytes:      known("memory.current", memory.GetUsage()-min(memory.GetInactiveFile(), memory.GetUsage())),
		MemoryLimitBytes: memory.GetUsageLimit(),
		Processes:        known("pids.current", m.GetPids().GetCurrent()),
	}
	if use.MemoryLimitBytes == math.MaxUint64 {
		use.MemoryLimitBytes = 0
	}
	return use, true, nil
}
