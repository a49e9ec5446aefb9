package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/runtime/crun"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// replaceTime is how long a create waits for an earlier attempt that is being removed; letGoTime,
// for the owner of one to let go, whose end of connection may come after the next attempt's
// request.
const (
	replaceTime = 10 * time.Second
	letGoTime   = 2 * time.Second
)

// create makes a container and serves its owner until the host closes the connection. The exit
// frame is the last one.
func (s *Server) create(p *peer, r *wire.Create) error {
	var spec specs.Spec
	if err := json.Unmarshal(r.Spec, &spec); err != nil {
		return wire.Errorf(wire.CodeInvalidRequest, "cannot read the spec: %v", err)
	}
	if err := checkSpec(&spec); err != nil {
		return err
	}
	c, err := s.reserve(r)
	if err != nil {
		return err
	}
	first, err := c.make(r, &spec)
	if err != nil {
		c.abandon()
		return fmt.Errorf("cannot create the container %q: %w", c.name, err)
	}
	go func() { c.collected(<-first) }()
	defer c.remove()
	c.mu.Lock()
	removing := c.removing
	c.mu.Unlock()
	if removing {
		c.kill() // the VM is being powered off, and whoever does it came before there was something to kill
	}
	if err := p.WriteReply(nil); err != nil {
		return nil // the host is gone
	}
	c.stdio.serve(p, c.ended, nil, func(bool) { c.kill() }, func() wire.Exit {
		c.mu.Lock()
		defer c.mu.Unlock()
		return *c.exit
	}, true)
	return nil
}

// checkSpec refuses what would make the agent fail later.
func checkSpec(spec *specs.Spec) error {
	if spec.Process == nil || len(spec.Process.Args) == 0 || spec.Process.OOMScoreAdj == nil || spec.Root == nil || spec.Linux == nil {
		return wire.Errorf(wire.CodeInvalidRequest, "the spec has no process, no command, no OOM score, no root or no linux part")
	}
	if spec.Hooks != nil {
		return wire.Errorf(wire.CodeInvalidRequest, "the spec has hooks, which would run outside of the container")
	}
	return nil
}

// reserve takes the name.
func (s *Server) reserve(r *wire.Create) (*container, error) {
	begin := time.Now()
	for {
		s.mu.Lock()
		old := s.containers[r.Container]
		switch {
		case !s.configured:
			s.mu.Unlock()
			return nil, wire.Errorf(wire.CodeInvalidRequest, "the VM has not been configured")
		case s.stopping:
			s.mu.Unlock()
			return nil, wire.Errorf(wire.CodeInternal, "the VM is being powered off")
		case old == nil && len(s.containers) >= wire.MaxContainers:
			s.mu.Unlock()
			return nil, wire.Errorf(wire.CodeInvalidRequest, "there are %d containers already", wire.MaxContainers)
		case old == nil:
			c := &container{
				s: s, name: r.Container, id: r.ID, dir: s.path(containersName, r.Container), state: stateCreating,
				ended: make(chan struct{}), gone: make(chan struct{}),
			}
			s.containers[r.Container] = c
			s.mu.Unlock()
			return c, nil
		}
		s.mu.Unlock()
		old.mu.Lock()
		patience := letGoTime
		if old.removing {
			patience = replaceTime
		}
		old.mu.Unlock()
		left := time.Until(begin.Add(patience))
		if left <= 0 || old.id == r.ID {
			return nil, wire.Errorf(wire.CodeInvalidRequest, "there is a container %q already", r.Container)
		}
		select {
		case <-old.gone:
		case <-time.After(min(left, 10*time.Millisecond)):
		}
	}
}

// abandon gives a reserved name back after make has failed.
func (c *container) abandon() {
	close(c.ended)
	c.remove()
}

// make does all of the creation. It returns where the end of the first process will be sent.
func (c *container) make(r *wire.Create, spec *specs.Spec) (<-chan unix.WaitStatus, error) {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, err
	}
	c.undo.add(func() error { return os.RemoveAll(c.dir) })
	c.undo.add(func() error { return os.RemoveAll(c.s.path(crunName, c.id)) })
	if err := c.mountRootfs(r.Rootfs); err != nil {
		return nil, err
	}
	if err := c.bindAll(r.Mounts, spec); err != nil {
		return nil, err
	}
	group, err := c.s.newCgroup(c.name, spec.Linux.Resources)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.cgroup = group
	c.mu.Unlock()
	c.undo.add(group.remove)
	if err := c.adaptSpec(spec); err != nil {
		return nil, err
	}
	data, err := json.Marshal(spec)
	if err == nil {
		err = os.WriteFile(c.path("config.json"), data, 0o600)
	}
	if err != nil {
		return nil, err
	}
	c.process = spec.Process
	if c.stdio, err = newStdio(false, false, nil); err != nil {
		return nil, err
	}
	c.undo.add(c.stdio.close)
	return c.runCreate()
}

// adaptSpec adds to the spec what only the guest knows.
func (c *container) adaptSpec(spec *specs.Spec) error {
	spec.Root.Path, spec.Linux.Resources = c.path("rootfs"), nil // the cgroup has the limits already
	shared, err := c.s.sharedInit()
	if err != nil {
		return err
	}
	for i := range spec.Linux.Namespaces {
		if ns := &spec.Linux.Namespaces[i]; ns.Type == specs.PIDNamespace && shared > 0 {
			ns.Path = fmt.Sprintf("/proc/%d/ns/pid", shared)
		}
	}
	return nil
}

// runCreate has crun create the container in its cgroup, and takes over its first process.
func (c *container) runCreate() (<-chan unix.WaitStatus, error) {
	pidFile := c.path("pid")
	done := c.s.config.Reaper.Expect()
	defer done()
	err := c.s.runCrun(c.path("create.log"), func(cmd *exec.Cmd) {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, c.cgroup.fd()
		c.stdio.handOver(cmd)
	}, "create", "--bundle="+c.dir, "--pid-file="+pidFile, c.id)
	c.stdio.handedOver()
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(pidFile)
	if err != nil {
		return nil, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 1 {
		return nil, errors.New("crun has not written the PID of the container's process")
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("the container's process has ended before its start: %w", err)
	}
	c.mu.Lock()
	c.pid, c.pidfd, c.state = pid, pidfd, stateCreated
	c.mu.Unlock()
	return c.s.config.Reaper.Adopt(pid), nil
}

// runCrun runs crun and waits for it. prepare changes the command before it starts; nil: no files.
// An error is crun's own, from log; of the code exec_failed when the container's command is to
// blame.
func (s *Server) runCrun(log string, prepare func(*exec.Cmd), args ...string) error {
	cmd := s.crun(log, args...)
	if prepare != nil {
		prepare(cmd)
	}
	_, ended, err := s.config.Reaper.Start(cmd)
	if err != nil {
		return fmt.Errorf("cannot run %s: %w", s.config.Crun, err)
	}
	if status := <-ended; status != 0 {
		reason := crun.LastLogError(log)
		if reason == "" {
			return fmt.Errorf("%s has ended with status %#x", s.config.Crun, uint32(status))
		}
		e := wire.Errorf(wire.CodeExecFailed, "%s", reason)
		e.Exit = crun.NotRunCode(reason)
		return e
	}
	return nil
}

func (s *Server) crun(log string, args ...string) *exec.Cmd {
	argv := append([]string{"--root=" + s.path(crunName), "--log=" + log, "--log-format=json", "--cgroup-manager=disabled"}, args...)
	cmd := exec.Command(s.config.Crun, argv...)
	cmd.Env, cmd.Dir = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	return cmd
}
