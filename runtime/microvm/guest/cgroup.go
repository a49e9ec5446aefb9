package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/magikrun/magikpod/internal/cgroup"
	"github.com/magikrun/magikpod/runtime/crun"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// group is the cgroup of a container, or one below it for an exec.
type group struct {
	path string
	dir  *os.File
}

// controllers are those that limits can be set with.
func (s *Server) controllers() []string {
	data, err := os.ReadFile(filepath.Join(s.config.CgroupRoot, "cgroup.controllers"))
	if err != nil {
		return nil
	}
	return strings.Fields(string(data))
}

// newCgroup makes a container's cgroup with its limits. A limit that the kernel cannot set is an error.
func (s *Server) newCgroup(name string, limits *specs.LinuxResources) (*group, error) {
	if limits == nil {
		limits = &specs.LinuxResources{}
	}
	below := "/" + s.config.CgroupParent + "/" + name
	path := filepath.Join(s.config.CgroupRoot, below)
	s.enableControllers()
	// One that is left over, by an agent that was killed, has limits and processes that are not ours.
	old := &group{path: path}
	old.kill()
	if err := old.remove(); err != nil {
		return nil, err
	}
	if len(limits.Devices) == 0 {
		limits.Devices = crun.DeviceRules()
	}
	if _, err := cgroup2.NewManager(s.config.CgroupRoot, below, resourcesOf(limits)); err != nil {
		return nil, fmt.Errorf("cannot make the cgroup of the container: %w", err)
	}
	c := &group{path: path}
	err := writeUnified(path, limits.Unified)
	if err == nil {
		// All of a container goes when its memory is used up, as with the kubelet and with
		// systemd's OOMPolicy=kill.
		if err = cgroup.Write(path, "memory.oom.group", "1"); errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	}
	if err == nil {
		c.dir, err = os.Open(path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot make the cgroup of the container: %w", err), c.remove())
	}
	return c, nil
}

// enableControllers gives the containers' cgroups all controllers that there are, so that usage is
// counted without limits too.
func (s *Server) enableControllers() {
	names := s.controllers()
	for i := range names {
		names[i] = "+" + names[i]
	}
	for _, dir := range []string{s.config.CgroupRoot, filepath.Join(s.config.CgroupRoot, s.config.CgroupParent)} {
		for _, name := range names {
			// One by one: some cannot be given on (a realtime process, a hybrid host). A limit that
			// needs it says so.
			_ = cgroup.Write(dir, "cgroup.subtree_control", name)
		}
	}
}

// resourcesOf translates limits. The device rules are completed: the library takes all of their
// parts for given.
func resourcesOf(limits *specs.LinuxResources) *cgroup2.Resources {
	resources := cgroup2.ToResources(limits)
	for _, rule := range limits.Devices {
		all := int64(-1)
		if rule.Type == "" {
			rule.Type = "a"
		}
		if rule.Major == nil {
			rule.Major = &all
		}
		if rule.Minor == nil {
			rule.Minor = &all
		}
		if rule.Access == "" {
			rule.Access = "rwm"
		}
		resources.Devices = append(resources.Devices, rule)
	}
	return resources
}

// writeUnified writes limits that the specification has no name for, by file name.
func writeUnified(path string, values map[string]string) error {
	for name, value := range values {
		if name != filepath.Base(name) || strings.HasPrefix(name, "cgroup.") || strings.HasPrefix(name, ".") {
			return wire.Errorf(wire.CodeInvalidRequest, "the limit %q is none", name)
		}
		if err := cgroup.Write(path, name, value); err != nil {
			return err
		}
	}
	return nil
}

// update changes the limits of a container.
func (s *Server) update(r *wire.Update) error {
	var limits specs.LinuxResources
	if err := json.Unmarshal(r.Resources, &limits); err != nil {
		return wire.Errorf(wire.CodeInvalidRequest, "cannot read the limits: %v", err)
	}
	if len(limits.Devices) > 0 {
		return wire.Errorf(wire.CodeInvalidRequest, "device rules cannot be changed")
	}
	c, _, err := s.running(r.Container, "")
	if err != nil {
		return err
	}
	manager, err := cgroup2.Load("/"+s.config.CgroupParent+"/"+c.name, cgroup2.WithMountpoint(s.config.CgroupRoot))
	if err == nil {
		err = manager.Update(resourcesOf(&limits))
	}
	if err == nil {
		err = writeUnified(c.cgroup.path, limits.Unified)
	}
	if err != nil {
		return fmt.Errorf("cannot change the limits of the container %q: %w", r.Container, err)
	}
	return nil
}

// child makes a cgroup below this one, for an exec.
func (c *group) child(name string) (*group, error) {
	path := filepath.Join(c.path, name)
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make a cgroup: %w", err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return &group{path: path, dir: dir}, nil
}

func (c *group) fd() int { return int(c.dir.Fd()) }

// kill kills all processes in it and below.
func (c *group) kill() { _ = cgroup.Kill(c.path) } // nothing else can be done

// close closes the directory.
func (c *group) close() {
	if c.dir != nil {
		c.dir.Close()
		c.dir = nil
	}
}

// removeTime is how long killed processes may take to be gone.
const removeTime = 5 * time.Second

// remove removes it and what is below. Its processes must have been killed: they are waited for.
// One that is gone is no error.
func (c *group) remove() error {
	c.close()
	return cgroup.RemoveWithin(c.path, removeTime, nil)
}

// oomKills is how many processes were killed because the memory was used up.
func (c *group) oomKills() uint64 {
	u, _ := cgroup.ReadUsage(c.path)
	return value(u.OOMKills)
}
