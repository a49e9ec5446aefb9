package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// cgroup is that of a container, or one below it for an exec.
type cgroup struct {
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
func (s *Server) newCgroup(name string, limits *specs.LinuxResources) (*cgroup, error) {
	if limits == nil {
		limits = &specs.LinuxResources{}
	}
	group := "/" + s.config.CgroupParent + "/" + name
	path := filepath.Join(s.config.CgroupRoot, group)
	s.enableControllers()
	// One that is left over, by an agent that was killed, has limits and processes that are not ours.
	old := &cgroup{path: path}
	old.kill()
	if err := old.remove(); err != nil {
		return nil, err
	}
	resources := resourcesOf(limits)
	if len(resources.Devices) == 0 {
		resources.Devices = defaultDevices()
	}
	if _, err := cgroup2.NewManager(s.config.CgroupRoot, group, resources); err != nil {
		return nil, fmt.Errorf("cannot make the cgroup of the container: %w", err)
	}
	c := &cgroup{path: path}
	err := writeUnified(path, limits.Unified)
	if err == nil {
		// All of a container goes when its memory is used up, as with the kubelet and with systemd's OOMPolicy=kill.
		if err = c.write("memory.oom.group", "1"); errors.Is(err, os.ErrNotExist) {
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

// enableControllers gives the containers' cgroups all controllers that there are, so that usage is counted without limits too.
func (s *Server) enableControllers() {
	names := s.controllers()
	for i := range names {
		names[i] = "+" + names[i]
	}
	for _, dir := range []string{s.config.CgroupRoot, filepath.Join(s.config.CgroupRoot, s.config.CgroupParent)} {
		for _, name := range names {
			// One by one: some cannot be given on (a realtime process, a hybrid host). A limit that needs it says so.
			_ = writeExisting(filepath.Join(dir, "cgroup.subtree_control"), name)
		}
	}
}

// resourcesOf translates limits. The device rules are completed: the library takes all of their parts for given.
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

// defaultDevices are the rules of a container whose spec has none: what CRI runtimes give every container. A container may make nodes (CAP_MKNOD), and without
// rules could read the machine's disks, on which the other containers' files are.
func defaultDevices() []specs.LinuxDeviceCgroup {
	rule := func(allow bool, kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Major: &major, Minor: &minor, Access: access}
	}
	const any = -1
	return []specs.LinuxDeviceCgroup{
		rule(false, "a", any, any, "rwm"),
		rule(true, "c", any, any, "m"), rule(true, "b", any, any, "m"), // a node alone opens nothing
		rule(true, "c", 1, 3, "rwm"), rule(true, "c", 1, 5, "rwm"), rule(true, "c", 1, 7, "rwm"), // null, zero, full
		rule(true, "c", 1, 8, "rwm"), rule(true, "c", 1, 9, "rwm"), // random, urandom
		rule(true, "c", 5, 0, "rwm"), rule(true, "c", 5, 1, "rwm"), rule(true, "c", 5, 2, "rwm"), // tty, console, ptmx
		rule(true, "c", 136, any, "rwm"), // terminals
	}
}

// writeUnified writes limits that the specification has no name for, by file name.
func writeUnified(path string, values map[string]string) error {
	for name, value := range values {
		if name != filepath.Base(name) || strings.HasPrefix(name, "cgroup.") || strings.HasPrefix(name, ".") {
			return wire.Errorf(wire.CodeInvalidRequest, "the limit %q is none", name)
		}
		if err := writeExisting(filepath.Join(path, name), value); err != nil {
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
func (c *cgroup) child(name string) (*cgroup, error) {
	path := filepath.Join(c.path, name)
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make a cgroup: %w", err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return &cgroup{path: path, dir: dir}, nil
}

func (c *cgroup) fd() int { return int(c.dir.Fd()) }

func (c *cgroup) write(file, value string) error {
	return writeExisting(filepath.Join(c.path, file), value)
}

// writeExisting writes to a file of the kernel's, which never makes one.
func writeExisting(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// kill kills all processes in it and below.
func (c *cgroup) kill() { _ = c.write("cgroup.kill", "1") } // it fails when the cgroup is gone

// close closes the directory.
func (c *cgroup) close() {
	if c.dir != nil {
		c.dir.Close()
		c.dir = nil
	}
}

// removeTime is how long killed processes may take to be gone.
const removeTime = 5 * time.Second

// remove removes it and what is below. Its processes must have been killed: they are waited for. One that is gone is no error.
func (c *cgroup) remove() error {
	c.close()
	var err error
	for deadline, pause := time.Now().Add(removeTime), time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if err = removeTree(c.path); err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pause)
	}
}

// removeTree removes a cgroup and those below it.
func removeTree(path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeTree(filepath.Join(path, entry.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(path); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("cannot remove the cgroup %s: %w", path, err)
	}
	return nil
}

// number reads a number; 0 when there is none, or it is "max".
func (c *cgroup) number(file string) uint64 {
	data, err := os.ReadFile(filepath.Join(c.path, file))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	return n
}

// value reads the number of a key of a flat keyed file; 0 when there is none.
func (c *cgroup) value(file, key string) uint64 {
	data, err := os.ReadFile(filepath.Join(c.path, file))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name == key {
			n, _ := strconv.ParseUint(value, 10, 64)
			return n
		}
	}
	return 0
}

// oomKills is how many processes were killed because the memory was used up.
func (c *cgroup) oomKills() uint64 { return c.value("memory.events", "oom_kill") }
