package engine

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/internal/cgroup"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/crun"
	"github.com/magikrun/magikpod/shim"
	"github.com/magikrun/magikpod/units"
)

// startErrorCode is the exit code of a container that could not be started, as in containerd.
const startErrorCode = 128

// container is what is known of the latest attempt at one container. The sandbox's lock guards it.
type container struct {
	record *attemptRecord // nil: no attempt was made
	// starting is true while RunContainer works on the attempt, stopping while StopContainer does.
	starting, stopping bool
	// noted is true once the end of the attempt was noted.
	noted bool
	// final is how the last attempt ended, kept while its unit makes way for the next one.
	final *pod.ContainerState
}

// attemptRecord (attempt.json) is what a later daemon must know of an attempt.
type attemptRecord struct {
	Container string        `json:"container"`
	Attempt   int           `json:"attempt"`
	ID        string        `json:"id"`
	Runtime   string        `json:"runtime"` // Launch.Runtime
	Grace     time.Duration `json:"grace"`   // that the unit has
	Signal    int           `json:"signal"`  // to stop it
	StopAfter []string      `json:"stopAfter,omitempty"`
	OwnPID    bool          `json:"ownPID,omitempty"` // Launch.OwnPID
	Traces    bool          `json:"traces,omitempty"` // Launch.Traces
	// Failed is the observation of an attempt that could not be started.
	Failed *pod.ContainerState `json:"failed,omitempty"`
	// Previous is how the attempt before it ended, for the case that this one turns out never to
	// have begun.
	Previous *pod.ContainerState `json:"previous,omitempty"`
}

// RunContainer implements [runtime.PodManager].
func (m *Manager) RunContainer(ctx context.Context, config runtime.ContainerConfig) error {
	ref, name := config.Ref(), config.Container.Name
	if !m.class.Available { // of a pod that an earlier manager has made
		return pod.Errorf(pod.Unsupported, "cannot run container %q of pod %s: %s", name, ref, m.class.Reason)
	}
	s := m.find(ref)
	if s == nil {
		return pod.Errorf(pod.Conflict, "cannot run container %q of pod %s: it has no sandbox", name, ref)
	}
	if err := pod.ValidateContainerName(name); err != nil {
		return err
	}
	if s.made(name, config.Attempt) {
		if begun, err := m.awaitMade(ctx, s, name, config.Attempt); begun || err != nil {
			return err
		}
	}
	a, err := m.prepare(ctx, s, config)
	if err != nil {
		return err
	}
	if err := m.clear(ctx, s, name); err != nil {
		return pod.Errorf(pod.KindOf(err), "cannot run container %q: cannot clear its last attempt: %w", name, err)
	}
	s.begin(a.record)
	starting, done := m.whileHeld(ctx, s)
	err = m.start(starting, s, a)
	done()
	if err == nil {
		s.started(name)
		return nil
	}
	return m.startFailed(ctx, s, a, err)
}

// made says whether an attempt was made already.
func (s *sandbox) made(name string, number int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[name]
	return c != nil && c.record != nil && c.record.Attempt == number && !c.starting
}

// awaitMade returns how an attempt that an earlier call has made was started. begun is false when
// it never was, as its daemon died too early: then it is still to be made.
func (m *Manager) awaitMade(ctx context.Context, s *sandbox, name string, number int) (begun bool, err error) {
	for {
		changed := s.watch()
		state := m.containerState(s, name)
		switch {
		case state.Stage == pod.ContainerAbsent || state.Attempt != number:
			return false, nil
		case state.Reason == pod.ReasonStartError:
			return true, pod.Errorf(pod.Internal, "cannot start container %q: %s", name, state.Message)
		case state.Stage != pod.ContainerStarting:
			return true, nil
		}
		select {
		case <-ctx.Done():
			return true, pod.Errorf(pod.Unavailable, "cannot start container %q: %w", name, context.Cause(ctx))
		case <-changed:
		}
	}
}

// begin makes an attempt the container's latest.
func (s *sandbox) begin(record attemptRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[record.Container]
	if c == nil {
		c = &container{}
		s.containers[record.Container] = c
	}
	record.Previous = c.final
	c.record, c.starting, c.stopping, c.noted, c.final = &record, true, false, false, nil
}

func (s *sandbox) started(name string) {
	s.mu.Lock()
	s.containers[name].starting = false
	s.mu.Unlock()
	s.wake()
}

// start carries out a prepared attempt.
func (m *Manager) start(ctx context.Context, s *sandbox, a *attempt) error {
	if a.launch.Refused != nil {
		return a.launch.Refused
	}
	if err := m.writeBundle(s, a); err != nil {
		return err
	}
	if err := m.fault("make log pipes"); err != nil {
		return err
	}
	logs := filepath.Join(s.dir, logName)
	if a.config.LogPath != "" {
		if err := shim.SetLogPath(logs, a.record.Container, a.record.Attempt, a.config.LogPath); err != nil {
			return pod.WithKind(pod.Internal, err)
		}
	}
	stdout, stderr, err := shim.MakeLogFIFOs(logs, a.record.Container, a.record.Attempt)
	if err != nil {
		return pod.WithKind(pod.Internal, err)
	}
	err = m.startUnseen(ctx, s, a, stdout, stderr)
	// They stay open until the pause process has them open too, or, when the attempt has failed,
	// for a while.
	failed := err != nil
	releaseLogs := func() {
		release := m.ctx
		if failed {
			var cancel context.CancelFunc
			release, cancel = context.WithTimeout(m.ctx, failedLogTime)
			defer cancel()
		}
		shim.ReleaseLogFIFOs(release, stdout, stderr)
	}
	if !m.spawn(releaseLogs) {
		releaseLogs() // after Close: at once
	}
	return err
}

// failedLogTime is how long the log pipes of a container that could not be started wait for the
// pause process.
const failedLogTime = 5 * time.Second

// startUnseen is startUnit, while nobody can seize what the OCI runtime does in the pod's PID namespace.
func (m *Manager) startUnseen(ctx context.Context, s *sandbox, a *attempt, stdout, stderr *os.File) error {
	thaw, err := m.freezeOnlookers(ctx, s, "", "")
	if err != nil {
		return err
	}
	if thaw == nil {
		return m.startUnit(ctx, s, a, stdout, stderr)
	}
	defer func() {
		if !m.lost() { // else it goes on, and this daemon's end thaws them when it is through
			thaw()
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, freezeLimit)
	defer cancel()
	err = m.startUnit(ctx, s, a, stdout, stderr)
	if state, _ := m.units.State(s.unit(a.record.Container)); err == nil && !m.runtime.AwaitCommand(state.MainPID) {
		err = errors.New("its command is not executed")
	}
	if err != nil && !m.lost() { // what has not got there must not be seen either
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		err = errors.Join(err, m.stopAttempt(cleanup, s, a.record))
	}
	return err
}

// startUnit makes the unit and waits until the container runs.
func (m *Manager) startUnit(ctx context.Context, s *sandbox, a *attempt, stdout, stderr *os.File) error {
	if err := m.fault("start container unit"); err != nil {
		return err
	}
	unit := s.unit(a.record.Container)
	m.rememberUnit(unit, s)
	job, err := m.units.StartTransient(ctx, unit, units.ContainerProps(units.ContainerUnit{
		Pod: a.config.Pod, Container: a.config.Container, Names: s.names, Argv: a.launch.Argv, Stdout: stdout.Name(), Stderr: stderr.Name(),
		StopSignal: syscall.Signal(a.record.Signal), Grace: a.record.Grace, StopAfter: a.config.StopAfter,
		Delegate: a.launch.Delegate, Jail: a.launch.Jail, FiltersCalls: a.launch.FiltersCalls, InVM: a.launch.InVM,
	}))
	if err != nil {
		return err
	}
	if err := m.fault("wait for container"); err != nil {
		return err
	}
	if err := job.Wait(ctx); err != nil {
		return err
	}
	return m.awaitStarted(ctx, s, a)
}

// awaitStarted waits until the container has been started, or cannot be. The unit is up already.
func (m *Manager) awaitStarted(ctx context.Context, s *sandbox, a *attempt) error {
	unit, launch := s.unit(a.record.Container), a.launch.Argv[len(a.launch.Argv)-1]
	check := time.NewTicker(time.Second)
	defer check.Stop()
	for {
		changed := s.watch()
		state, _ := m.units.State(unit)
		switch {
		case state.StatusText == shim.StatusStarted:
			return nil
		case state.StatusText == shim.StatusNotStarted:
			return errors.New("the OCI runtime did not start it")
		case over(state):
			return nil // it ended so soon that launch could not say so
		}
		select {
		case <-changed:
		case <-check.C:
			if launching(cgroup.Root()+state.ControlGroup, launch) || m.startedOrEnded(ctx, unit) {
				continue
			}
			if state.MainPID <= 0 || !m.runtime.AwaitCommand(state.MainPID) {
				return pod.Errorf(pod.Internal, "magikshim was killed")
			}
			return nil // its last notification got lost
		case <-ctx.Done():
			return pod.WithKind(pod.Unavailable, context.Cause(ctx))
		}
	}
}

// startedOrEnded asks systemd.
func (m *Manager) startedOrEnded(ctx context.Context, unit string) bool {
	state, err := m.units.Refresh(ctx, unit)
	return err != nil || state.StatusText == shim.StatusStarted || over(state)
}

// launching says whether the command of a unit with this configuration runs in a cgroup, or in a
// child of it, or may.
func launching(cgroup, config string) bool {
	lists, _ := filepath.Glob(cgroup + "/*/cgroup.procs") // the pattern is fine
	for _, list := range append(lists, cgroup+"/cgroup.procs") {
		data, err := os.ReadFile(list)
		if unseen(err) {
			return true
		}
		for pid := range strings.FieldsSeq(string(data)) {
			line, err := os.ReadFile("/proc/" + pid + "/cmdline")
			if unseen(err) {
				return true
			}
			if strings.Contains(string(line), "\x00"+config+"\x00") {
				return true
			}
		}
	}
	return false
}

// unseen says whether an error of reading a process's or a cgroup's file is another one than that
// it is gone.
func unseen(err error) bool { return err != nil && !cgroup.Gone(err) }

// errNeverStarted is a start that failed because the namespaces' holder was gone.
var errNeverStarted = errors.New("the pod's namespaces are gone")

// startFailed undoes a failed start. What is left is the observation of a StartError, or, when the
// OCI runtime was never asked, nothing.
func (m *Manager) startFailed(ctx context.Context, s *sandbox, a *attempt, err error) error {
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	name := a.record.Container
	if m.lost() { // nobody knows what has become of it: the next daemon finds out
		return pod.Errorf(pod.Unavailable, "cannot start container %q: %w", name, err)
	}
	state, known := m.units.State(s.unit(name))
	reason := crun.LastLogError(a.place.Log)
	switch {
	case errors.Is(err, errHolderEnded) || len(s.holders) > 1 && resultOf(err) == "dependency":
		err = pod.Errorf(pod.Unavailable, "cannot start container %q: %w", name, errHolderEnded)
	case known && state.ExecMainStatus == shim.ExitTempFail:
		err = pod.Errorf(pod.Unavailable, "cannot start container %q: %w", name, errNeverStarted)
	case reason != "":
		err = pod.Errorf(pod.Internal, "cannot start container %q: %s", name, reason)
	default:
		err = pod.Errorf(pod.KindOf(err), "cannot start container %q: %w", name, err)
	}
	if stopErr := m.stopAttempt(cleanup, s, a.record); stopErr != nil {
		if known {
			s.started(name) // its unit says what is true
		}
		return errors.Join(err, stopErr)
	}
	cleanErr := m.removeStopped(cleanup, s, a.record)
	var failed *pod.ContainerState
	if ctx.Err() == nil && !errors.Is(err, errNeverStarted) && !errors.Is(err, errHolderEnded) && (known || a.launch.Refused != nil) {
		now := time.Now()
		failed = &pod.ContainerState{
			Stage: pod.ContainerExited, Attempt: a.record.Attempt, ID: a.record.ID, FinishedAt: now, ExitCode: startErrorCode,
			Reason: pod.ReasonStartError, Message: cmp.Or(reason, err.Error()),
		}
	}
	return errors.Join(err, cleanErr, m.settleFailed(s, a, failed))
}

// resultOf is how the job ended that an error is about; empty: it is about none.
func resultOf(err error) string {
	if job, ok := errors.AsType[*units.JobError](err); ok {
		return job.Result
	}
	return ""
}

// settleFailed records how a failed attempt is to be observed.
func (m *Manager) settleFailed(s *sandbox, a *attempt, failed *pod.ContainerState) error {
	defer s.wake()
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[a.record.Container]
	c.starting, c.noted = false, true
	if failed == nil {
		c.final = c.record.Previous
		c.record = nil
		return nil
	}
	record := *c.record
	record.Failed = failed
	c.record = &record
	if err := os.MkdirAll(a.place.Bundle, 0o700); err != nil {
		return err
	}
	return atomicfile.SaveJSON(filepath.Join(a.place.Bundle, attemptName), record)
}
