package runtimetest

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// Behavior says what an attempt at a container does. The zero value starts at once, runs until it
// is asked to stop, and then ends at once with exit code 0.
type Behavior struct {
	StartDelay time.Duration // RunContainer takes that long
	StartError string        // when not empty RunContainer fails, and this is why

	Runs      time.Duration // it ends by itself after this time; 0: never
	ExitCode  int           // of an end by itself
	OOMKilled bool          // that end is the kernel's doing: exit code 137

	IgnoreStop bool          // it must be killed
	StopDelay  time.Duration // how long it takes to obey the stop signal
	StopCode   int           // the exit code when it has obeyed; 128+N: it was killed by signal N

	// Exec is what a process in it does; ctx ends with the container and with the process'
	// time-out. Nil: true, false, echo, cat, sleep SECONDS and exit CODE are known.
	Exec func(ctx context.Context, p runtime.Process) (runtime.ExitStatus, error)
}

// fakeContainer is the latest attempt at one container.
type fakeContainer struct {
	state     pod.ContainerState
	behavior  Behavior
	stopAfter []string
	timers    []*time.Timer
	kill      *time.Timer // at the end of the grace period
	killAt    time.Time
	signals   []syscall.Signal
	over      chan struct{}
}

// behaviorOf returns what this attempt does: the last behavior that was given is that of all later
// attempts.
func (w *world) behaviorOf(name string, attempt int) Behavior {
	list := w.behaviors[name]
	if len(list) == 0 {
		return Behavior{}
	}
	return list[min(attempt, len(list)-1)]
}

// start makes a new attempt.
func (w *world) start(p *fakePod, config runtime.ContainerConfig) *fakeContainer {
	name := config.Container.Name
	w.lastPID++
	c := &fakeContainer{behavior: w.behaviorOf(name, config.Attempt), stopAfter: config.StopAfter, over: make(chan struct{})}
	c.state = pod.ContainerState{Stage: pod.ContainerStarting, Attempt: config.Attempt, ID: fmt.Sprintf("%s-%s-%d", p.ref.UID, name, config.Attempt)}
	p.containers[name] = c
	pid := 1000 + w.lastPID
	started := func() {
		if c.state.Stage != pod.ContainerStarting {
			return
		}
		if c.behavior.StartError != "" {
			w.failStart(p, c, c.behavior.StartError)
			return
		}
		c.state.Stage, c.state.PID, c.state.StartedAt = pod.ContainerRunning, pid, time.Now()
		if c.behavior.Runs > 0 {
			c.timers = append(c.timers, w.after(c.behavior.Runs, func() { w.endByItself(p, c) }))
		}
		w.touch(p)
	}
	if c.behavior.StartDelay <= 0 {
		started()
		return c
	}
	w.touch(p)
	c.timers = append(c.timers, w.after(c.behavior.StartDelay, started))
	return c
}

func (w *world) endByItself(p *fakePod, c *fakeContainer) {
	if c.behavior.OOMKilled {
		w.exit(p, c, 128+int(syscall.SIGKILL), pod.ReasonOOMKilled)
		return
	}
	w.exit(p, c, c.behavior.ExitCode, "")
}

func (w *world) failStart(p *fakePod, c *fakeContainer, why string) {
	w.exit(p, c, 128, pod.ReasonStartError)
	c.state.Message, c.state.Signal = why, 0
}

// exit ends the attempt; reason "" is the one that belongs to the code.
func (w *world) exit(p *fakePod, c *fakeContainer, code int, reason string) {
	if !c.state.Stage.Live() {
		return
	}
	c.halt()
	s := &c.state
	s.Stage, s.PID, s.FinishedAt, s.ExitCode, s.Reason = pod.ContainerExited, 0, time.Now(), code, reason
	if code > 128 && code <= 128+64 {
		s.Signal = code - 128
	}
	if reason == "" {
		s.Reason = pod.ReasonCompleted
		if code != 0 {
			s.Reason = pod.ReasonError
		}
	}
	w.touch(p)
}

// halt ends what still goes on in the attempt.
func (c *fakeContainer) halt() {
	for _, t := range c.timers {
		t.Stop()
	}
	if c.kill != nil {
		c.kill.Stop()
	}
	select {
	case <-c.over:
	default:
		close(c.over)
	}
}

// deliver is the arrival of a signal at the first process.
func (w *world) deliver(p *fakePod, c *fakeContainer, sig syscall.Signal) {
	c.signals = append(c.signals, sig)
	switch sig {
	case syscall.SIGKILL:
		w.exit(p, c, 128+int(sig), "")
	case syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT:
		b := c.behavior
		switch {
		case b.IgnoreStop:
		case b.StopDelay > 0:
			c.timers = append(c.timers, w.after(b.StopDelay, func() { w.exit(p, c, b.StopCode, "") }))
		default:
			w.exit(p, c, b.StopCode, "")
		}
	}
}

// terminate begins to stop the container: its stop signal, grace, SIGKILL. A second call can only
// make it end sooner.
func (w *world) terminate(p *fakePod, c *fakeContainer, grace time.Duration) {
	stage := c.state.Stage
	if !stage.Live() {
		return
	}
	if stage == pod.ContainerStarting || grace <= 0 {
		w.deliver(p, c, syscall.SIGKILL)
		return
	}
	at := time.Now().Add(grace)
	if stage == pod.ContainerStopping && !at.Before(c.killAt) {
		return
	}
	if c.kill != nil {
		c.kill.Stop()
	}
	c.killAt = at
	c.kill = w.after(grace, func() { w.deliver(p, c, syscall.SIGKILL) })
	if stage == pod.ContainerStopping {
		return
	}
	c.state.Stage = pod.ContainerStopping
	w.touch(p)
	w.deliver(p, c, syscall.SIGTERM)
}

// running is the error of something that needs a running container.
func (c *fakeContainer) running(verb, name string) error {
	switch {
	case c == nil:
		return pod.Errorf(pod.NotFound, "cannot %s container %q: it was never started", verb, name)
	case c.state.Stage != pod.ContainerRunning && c.state.Stage != pod.ContainerStopping:
		return pod.Errorf(pod.Conflict, "cannot %s container %q: it is %s", verb, name, c.state.Stage)
	}
	return nil
}

var killed = runtime.ExitStatus{Code: 128 + int(syscall.SIGKILL), Signal: int(syscall.SIGKILL)}

func (w *world) exec(ctx context.Context, ref pod.Ref, name string, process runtime.Process) (status runtime.ExitStatus, err error) {
	var c *fakeContainer
	w.with(func() {
		_, c = w.find(ref, name)
		err = c.running("exec in", name)
	})
	if err != nil {
		return status, err
	}
	do := c.behavior.Exec
	if do == nil {
		do = shell
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	if process.Timeout > 0 {
		defer time.AfterFunc(process.Timeout, cancel).Stop()
	}
	done := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-c.over:
			cancel()
		case <-done:
		}
	}()
	status, err = do(inner, process)
	close(done)
	<-watched
	if inner.Err() != nil {
		status, err = killed, nil
	}
	if ctx.Err() != nil {
		return killed, pod.Errorf(pod.Unavailable, "cannot exec in container %q: %w", name, context.Cause(ctx))
	}
	return status, err
}

// shell is the commands that every container has.
func shell(ctx context.Context, p runtime.Process) (runtime.ExitStatus, error) {
	if len(p.Args) == 0 {
		return runtime.ExitStatus{}, pod.Errorf(pod.Invalid, "cannot exec: no command")
	}
	rest := strings.Join(p.Args[1:], " ")
	switch p.Args[0] {
	case "true":
		return runtime.ExitStatus{}, nil
	case "false":
		return runtime.ExitStatus{Code: 1}, nil
	case "exit":
		code, err := strconv.Atoi(rest)
		if err != nil {
			code = 2
		}
		return runtime.ExitStatus{Code: code}, nil
	case "echo":
		if p.Stdout != nil {
			fmt.Fprintln(p.Stdout, rest)
		}
		return runtime.ExitStatus{}, nil
	case "cat":
		if p.Stdin != nil && p.Stdout != nil {
			if _, err := io.Copy(p.Stdout, p.Stdin); err != nil {
				return runtime.ExitStatus{Code: 1}, nil
			}
		}
		return runtime.ExitStatus{}, nil
	case "sleep":
		seconds, err := strconv.ParseFloat(rest, 64)
		if err != nil {
			return runtime.ExitStatus{Code: 2}, nil
		}
		timer := time.NewTimer(time.Duration(seconds * float64(time.Second)))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return killed, nil
		}
		return runtime.ExitStatus{}, nil
	}
	return runtime.ExitStatus{Code: 127}, nil
}
