package guest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/runtime/crun"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// ScoreCommand is the argument with which magikagent sets its OOM score and becomes another
// program: `score NUMBER PROGRAM ARGUMENT...`.
const ScoreCommand = "score"

// execution is one process that is run in a container.
type execution struct {
	c      *container
	dir    string
	cgroup *group
	stdio  *stdio
	ended  <-chan unix.WaitStatus // of crun, which ends as the process
	tty    *crun.Console
	sized  *wire.Size
	undo   undo

	timeout  time.Duration
	timedOut bool
}

// exec runs a process and serves the host until it has ended or the connection closes.
func (s *Server) exec(p *peer, r *wire.Exec) error {
	x, err := s.newExecution(r, nil)
	if err != nil {
		return fmt.Errorf("cannot run a process in the container %q: %w", r.Container, err)
	}
	defer x.close()
	if err := p.WriteReply(nil); err != nil {
		x.cgroup.kill() // the host is gone
		<-x.ended
		return nil
	}
	x.serve(p)
	return nil
}

// newExecution starts the process. output is that of [newStdio].
func (s *Server) newExecution(r *wire.Exec, output *os.File) (_ *execution, err error) {
	c, pid, err := s.running(r.Container, "")
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.execs++
	id := "exec-" + strconv.Itoa(s.execs)
	s.mu.Unlock()
	x := &execution{c: c, dir: c.path(id), timeout: time.Duration(r.Timeout) * time.Millisecond, sized: r.Size}
	defer func() {
		if err != nil {
			x.close()
		}
	}()
	process, err := c.execProcess(r, pid)
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(x.dir, 0o700); err != nil {
		return nil, err
	}
	x.undo.add(func() error { return os.RemoveAll(x.dir) })
	data, err := json.Marshal(process)
	if err == nil {
		err = os.WriteFile(filepath.Join(x.dir, "process.json"), data, 0o600)
	}
	if err != nil {
		return nil, err
	}
	c.sweep()
	if x.cgroup, err = c.cgroup.child(id); err != nil {
		return nil, err
	}
	x.undo.add(func() error { c.leave(x.cgroup); return nil })
	if x.stdio, err = newStdio(r.Stdin, r.TTY, output); err != nil {
		return nil, err
	}
	x.undo.add(x.stdio.close)
	return x, x.start(process)
}

// start has crun start the process, in its cgroup.
func (x *execution) start(process *specs.Process) error {
	args := []string{"exec", "--process=" + filepath.Join(x.dir, "process.json"), "--pid-file=" + filepath.Join(x.dir, "pid")}
	if x.stdio.terminal {
		console, err := crun.NewConsole(x.dir)
		if err != nil {
			return fmt.Errorf("cannot make a terminal: %w", err)
		}
		x.tty = console
		x.undo.add(func() error { console.Close(); return nil })
		args = append(args, "--console-socket="+crun.ConsolePath)
	}
	cmd := x.c.s.crun(filepath.Join(x.dir, "log"), append(args, x.c.id)...)
	withScore(cmd, *process.OOMScoreAdj)
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, x.cgroup.fd()
	if x.tty != nil {
		x.tty.HandOver(cmd)
	} else {
		x.stdio.handOver(cmd)
	}
	_, ended, err := x.c.s.config.Reaper.Start(cmd)
	x.stdio.handedOver()
	if err != nil {
		return fmt.Errorf("cannot run crun: %w", err)
	}
	x.ended = ended
	return nil
}

// withScore makes cmd run with an OOM score other than this process's. crun exec leaves it alone,
// and only the process itself can set it before it is more than one.
func withScore(cmd *exec.Cmd, score int) {
	if score == crun.OwnOOMScore() {
		return
	}
	cmd.Args = slices.Concat([]string{"magikagent", ScoreCommand, strconv.Itoa(score), cmd.Path}, cmd.Args[1:])
	cmd.Path = "/proc/self/exe"
}

// SetScore is ScoreCommand. It returns only with an error.
func SetScore(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("cannot run %s: it takes a number and a program", ScoreCommand)
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(args[0]), 0); err != nil {
		return fmt.Errorf("cannot set the OOM score %s: %w", args[0], err)
	}
	err := unix.Exec(args[1], args[1:], os.Environ())
	return fmt.Errorf("cannot execute %s: %w", args[1], err)
}

// serve passes on input and output until the process has ended or the host has hung up, which kills it.
func (x *execution) serve(p *peer) {
	ended, status := make(chan struct{}), unix.WaitStatus(0)
	go func() { status = <-x.ended; close(ended) }()
	if x.tty != nil {
		x.openTerminal(ended)
	}
	var late <-chan time.Time
	if x.timeout > 0 {
		timer := time.NewTimer(x.timeout)
		defer timer.Stop()
		late = timer.C
	}
	kill := func(late bool) {
		x.timedOut = late
		x.cgroup.kill()
	}
	x.stdio.serve(p, ended, late, kill, func() wire.Exit { return x.exit(status) }, false)
}

// openTerminal takes the terminal from crun, unless that ends without one.
func (x *execution) openTerminal(ended <-chan struct{}) {
	if master, err := x.tty.Receive(ended, time.Now().Add(replaceTime)); err == nil {
		x.stdio.setTerminal(master, x.sized)
	}
}

// exit is how the process has ended.
func (x *execution) exit(status unix.WaitStatus) wire.Exit {
	exit := wire.Exit{Type: "exit"}
	if x.timedOut {
		exit.TimedOut, exit.Signal, exit.Code = true, int(unix.SIGKILL), 128+int(unix.SIGKILL)
		return exit
	}
	exit.Code, exit.Signal, exit.Error = crun.Outcome(status, filepath.Join(x.dir, "log"))
	return exit
}

// close removes the process's files, after its end.
func (x *execution) close() {
	if err := x.undo.run(); err != nil {
		x.c.s.config.Log(fmt.Errorf("cannot remove all of a process in the container %q: %w", x.c.name, err))
	}
}

// wait waits for the end of a process that nobody is connected to. It is killed after its timeout,
// and when gone is closed.
func (x *execution) wait(gone <-chan struct{}) wire.Exit {
	defer x.close()
	timer := time.NewTimer(x.timeout)
	defer timer.Stop()
	select {
	case status := <-x.ended:
		return x.exit(status)
	case <-gone:
	case <-timer.C:
		x.timedOut = true
	}
	x.cgroup.kill()
	return x.exit(<-x.ended)
}
