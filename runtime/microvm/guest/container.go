package guest

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/cgroup"
	"github.com/magikrun/magikpod/runtime/crun"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// state is what a container is doing.
type state string

// The states. There is no other way than from the top to the bottom.
const (
	stateCreating state = "creating"
	stateCreated  state = "created"
	stateRunning  state = "running"
	stateExited   state = "exited"
)

// container is one attempt at a container, from its creation to its removal.
type container struct {
	s       *Server
	name    string
	id      string
	dir     string         // bundle: config.json, rootfs, mnt, log
	cgroup  *group         // guarded by mu until the container has been created
	process *specs.Process // what an exec is made from
	message string         // path of the termination message, empty without
	stdio   *stdio
	undo    undo // what creating it has made

	mu       sync.Mutex
	state    state
	pid      int // of the first process; 0 when it has ended or was not created
	pidfd    int // of the same; valid when pid is not 0
	exit     *wire.Exit
	removing bool
	left     []*group // of processes that have left others behind

	ended chan struct{} // closed when exit is set
	gone  chan struct{} // closed when nothing of it is left
}

// undo is a stack of what is to be undone.
type undo struct{ steps []func() error }

func (u *undo) add(step func() error) { u.steps = append(u.steps, step) }

// run undoes everything, the latest first.
func (u *undo) run() error {
	var errs []error
	for i := len(u.steps) - 1; i >= 0; i-- {
		errs = append(errs, u.steps[i]())
	}
	u.steps = nil
	return errors.Join(errs...)
}

// find returns a container; id is its ID, or empty for whichever.
func (s *Server) find(name, id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[name]
	switch {
	case c == nil:
		return nil, wire.Errorf(wire.CodeContainerNotFound, "there is no container %q", name)
	case id != "" && c.id != id:
		return nil, wire.Errorf(wire.CodeContainerNotFound, "there is no container %q with the ID %.12s", name, id)
	}
	return c, nil
}

// running returns a container that runs, with the PID of its first process.
func (s *Server) running(name, id string) (*container, int, error) {
	c, err := s.find(name, id)
	if err != nil {
		return nil, 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != stateRunning {
		return nil, 0, wire.Errorf(wire.CodeContainerNotRunning, "the container %q does not run: it is %s", name, c.state)
	}
	return c, c.pid, nil
}

// start starts a created container.
func (s *Server) start(r *wire.Start) error {
	c, err := s.find(r.Container, r.ID)
	if err != nil {
		return err
	}
	c.mu.Lock()
	if c.state != stateCreated {
		defer c.mu.Unlock()
		return wire.Errorf(wire.CodeContainerNotRunning, "cannot start the container %q: it is %s", c.name, c.state)
	}
	// It runs as soon as crun lets it, and may have ended when crun returns.
	c.state = stateRunning
	c.mu.Unlock()
	if err := s.runCrun(c.path("start.log"), nil, "start", c.id); err != nil {
		c.kill()
		return fmt.Errorf("cannot start the container %q: %w", c.name, err)
	}
	return nil
}

func (c *container) path(name string) string { return filepath.Join(c.dir, name) }

// signal sends a signal to the first process of a container.
func (s *Server) signal(r *wire.Signal) error {
	c, err := s.find(r.Container, r.ID)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pid == 0 {
		return wire.Errorf(wire.CodeContainerNotRunning, "the container %q does not run: it is %s", c.name, c.state)
	}
	if err := unix.PidfdSendSignal(c.pidfd, unix.Signal(r.Signal), nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("cannot send signal %d to the container %q: %w", r.Signal, c.name, err)
	}
	return nil
}

// alive says whether the first process has not ended, or not been collected yet: its PID is nobody
// else's.
func (c *container) alive() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pid != 0 && unix.PidfdSendSignal(c.pidfd, 0, nil, 0) == nil
}

// collected notes the end of the first process. What it has left behind ends with it, as it does in
// a unit.
func (c *container) collected(status unix.WaitStatus) {
	exit := &wire.Exit{Type: "exit"}
	if status.Signaled() {
		exit.Signal = int(status.Signal())
		exit.Code = 128 + exit.Signal
	} else {
		exit.Code = status.ExitStatus()
	}
	exit.OOM = exit.Signal == int(unix.SIGKILL) && c.cgroup.oomKills() > 0
	exit.Message = crun.ReadEnd(c.message, wire.MaxMessage)
	c.cgroup.kill()
	c.mu.Lock()
	c.pid, c.exit, c.state = 0, exit, stateExited
	unix.Close(c.pidfd)
	c.mu.Unlock()
	close(c.ended)
}

// kill kills all processes of the container.
func (c *container) kill() {
	c.mu.Lock()
	group := c.cgroup
	c.mu.Unlock()
	if group != nil { // else its creation has failed early, or not come that far
		group.kill()
	}
}

// leave removes the cgroup of a process that has ended. If it has left others behind, the cgroup
// stays until they have ended, too.
func (c *container) leave(group *group) {
	group.close()
	if cgroup.Remove(group.path) == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = append(c.left, group)
}

// sweep removes the cgroups that nobody is left in. It is called before there is one more, so that
// they do not add up.
func (c *container) sweep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = slices.DeleteFunc(c.left, func(group *group) bool { return cgroup.Remove(group.path) == nil })
}

// remove kills and removes the container and returns when nothing of it is left. It may be called
// several times at once.
func (c *container) remove() {
	c.mu.Lock()
	first := !c.removing
	c.removing = true
	c.mu.Unlock()
	if !first {
		<-c.gone
		return
	}
	c.kill()
	<-c.ended
	if err := c.undo.run(); err != nil {
		c.s.config.Log(fmt.Errorf("cannot remove all of the container %q: %w", c.name, err))
	}
	c.s.mu.Lock()
	if c.s.containers[c.name] == c {
		delete(c.s.containers, c.name)
	}
	c.s.mu.Unlock()
	close(c.gone)
}

// all lists the containers.
func (s *Server) all() []*container {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.containers))
}
