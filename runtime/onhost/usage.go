package onhost

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/magikrun/magikpod/internal/cgroup"
	"github.com/magikrun/magikpod/pod"
)

// Usage reads what a cgroup uses. root is where cgroups are mounted (/sys/fs/cgroup), group is
// relative to it. Of a controller that is not enabled nothing is known. False: the cgroup does not
// exist.
//
// Memory is the working set, as kubectl top shows it: what is in use without the page cache that
// was not used lately.
func Usage(root, group string) (pod.ResourceUse, bool, error) {
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
