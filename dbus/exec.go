package dbus

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

const (
	maxArgs     = 4096    // of one exec
	maxArgBytes = 1 << 20 // all of its arguments and environment
	maxExecs    = 512     // processes started by exec that run at once, of all clients
	maxExecCall = maxArgBytes + 8*maxArgs + maxArguments
)

// execJob is a process that a client started in a container. It is a job of its own: it ends with the process, or ends the process when the
// client leaves the bus.
type execJob struct {
	id     uint32
	owner  string
	object string
	tty    bool
	cancel context.CancelFunc

	mu        sync.Mutex
	resize    chan runtime.WinSize // size 1: the newest size
	state     string
	err       error
	exit      *int
	cancelled bool
}

func (e *execJob) info() (pod.JobInfo, *int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return pod.JobInfo{ID: e.id, Kind: "exec", Objects: []string{e.object}, State: e.state, Err: e.err}, e.exit
}

// setSize passes a window size on without waiting: a newer size replaces one that was not applied yet.
func (e *execJob) setSize(size runtime.WinSize) {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.resize:
	default:
	}
	e.resize <- size
}

// exec serves Exec.
func (c *call) exec() ([]any, error) {
	container, p, size, err := c.process(c.body[0], c.body[1], c.body[2])
	if err != nil {
		return nil, err
	}
	files, err := newStdio(c.take())
	if err != nil {
		return nil, pod.Errorf(pod.KindOf(err), "cannot exec: %w", err)
	}
	p.Stdin, p.Stdout, p.Stderr = files.process[0], files.process[1], files.process[2]
	path, err := c.startExec(container, p, size, files.finish)
	if err != nil {
		return nil, err
	}
	return []any{path}, nil
}

// openTerminal serves OpenTerminal: the client gets one end of a socket, whose other end is the terminal's input and output.
func (c *call) openTerminal() ([]any, error) {
	container, p, size, err := c.process(c.body[0], c.body[1], c.body[2])
	if err != nil {
		return nil, err
	}
	fds, err := socketPair()
	if err != nil {
		return nil, pod.Errorf(pod.Exhausted, "cannot open a terminal: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "terminal"), os.NewFile(uintptr(fds[1]), "terminal-client")
	p.TTY, p.Stdin, p.Stdout, p.Stderr = true, ours, ours, nil
	path, err := c.startExec(container, p, size, func(context.Context) { _ = ours.Close() })
	if err != nil {
		_ = theirs.Close()
		return nil, err
	}
	out, err := c.reply(theirs)
	if err != nil {
		return nil, err
	}
	return append([]any{path}, out...), nil
}

// socketPair makes two connected sockets, close-on-exec, on systems without SOCK_CLOEXEC too: the client is built for them.
func socketPair() ([2]int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	return fds, err
}

// process reads the arguments that Exec and OpenTerminal share.
func (c *call) process(args ...any) (container string, p runtime.Process, size runtime.WinSize, err error) {
	var opts map[string]godbus.Variant
	if err := godbus.Store(args, &container, &p.Args, &opts); err != nil {
		return "", p, size, pod.Errorf(pod.Invalid, "cannot read the arguments of %s: %w", c.method.name, err)
	}
	err = newOptions(opts).take("tty", &p.TTY).take("env", &p.Env).take("working_dir", &p.WorkingDir).take("user", &p.User).
		take("rows", &size.Rows).take("cols", &size.Cols).end()
	if err != nil {
		return "", p, size, err
	}
	if err := checkContainer(container); err != nil {
		return "", p, size, err
	}
	if len(p.Args) == 0 || p.Args[0] == "" {
		return "", p, size, pod.Errorf(pod.Invalid, "cannot exec: no command is given")
	}
	total := 0
	for _, s := range slices.Concat(p.Args, p.Env) {
		total += len(s) + 1
	}
	if len(p.Args)+len(p.Env) > maxArgs || total > maxArgBytes {
		return "", p, size, pod.Errorf(pod.Invalid, "cannot exec: more than %d arguments or %d bytes of them", maxArgs, maxArgBytes)
	}
	for _, kv := range p.Env {
		if i := strings.IndexByte(kv, '='); i <= 0 {
			return "", p, size, pod.Errorf(pod.Invalid, "cannot exec: the environment entry %q is not KEY=VALUE", kv)
		}
	}
	return container, p, size, nil
}

// startExec runs the process behind a new job. It calls finish when the process has ended, or was not started: that closes its files.
func (c *call) startExec(container string, p runtime.Process, size runtime.WinSize, finish func(context.Context)) (path godbus.ObjectPath, err error) {
	defer func() {
		if err != nil {
			finish(c.ctx)
		}
	}()
	ref, err := c.ref()
	if err != nil {
		return "", err
	}
	s := c.server
	ctx, release, err := s.whileThere(s.ctx, c.sender)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithCancel(ctx)
	e := &execJob{owner: c.sender, object: ref.String(), tty: p.TTY, cancel: cancel, resize: make(chan runtime.WinSize, 1), state: "running"}
	if size.Rows > 0 && size.Cols > 0 {
		e.resize <- size
	}
	p.Resize = e.resize
	if err := s.addExec(e); err != nil {
		cancel()
		release()
		return "", err
	}
	s.pump.setOwner(e.id, c.sender)
	s.pump.notify(pod.Notice{Kind: pod.NoticeJobNew, Job: pod.JobInfo{ID: e.id, Kind: "exec", Objects: []string{e.object}, State: "running"}})
	s.wg.Go(func() {
		defer release()
		defer cancel()
		status, err := s.runExec(ctx, ref, container, p)
		finish(ctx) // before the end is told: who waits for the end of the output gets it first
		s.endExec(ctx, e, status, err)
	})
	return JobPath(e.id), nil
}

// runExec keeps a panic of the backend from ending the daemon.
func (s *Server) runExec(ctx context.Context, ref pod.Ref, container string, p runtime.Process) (status runtime.ExitStatus, err error) {
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("internal error in exec", "pod", ref.String(), "panic", v)
			err = pod.Errorf(pod.Internal, "cannot exec: internal error: %v", v)
		}
	}()
	return s.backend.Exec(ctx, ref, container, p)
}

// addExec gives the job a number. Exhausted: too many run already.
func (s *Server) addExec(e *execJob) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.execs) >= maxExecs {
		return pod.Errorf(pod.Exhausted, "cannot exec: %d processes started by exec run already", maxExecs)
	}
	for {
		s.lastExec++
		if s.lastExec < firstExecID { // wrapped around
			s.lastExec = firstExecID
		}
		if s.execs[s.lastExec] == nil {
			break
		}
	}
	e.id = s.lastExec
	s.execs[e.id] = e
	return nil
}

// endExec records how the process ended and tells it.
func (s *Server) endExec(ctx context.Context, e *execJob, status runtime.ExitStatus, err error) {
	e.mu.Lock()
	switch {
	case e.cancelled || err != nil && errors.Is(err, context.Canceled) && ctx.Err() != nil:
		e.state, e.err = string(pod.JobCanceled), err
	case err != nil:
		e.state, e.err = string(pod.JobFailed), err
		if status.Code == runtime.ExitNotExecutable || status.Code == runtime.ExitNotFound {
			e.exit = &status.Code
		}
	default:
		e.state, e.exit = string(pod.JobDone), &status.Code
	}
	e.mu.Unlock()
	info, exit := e.info()
	s.pump.endExec(info, exit)
	s.mu.Lock()
	delete(s.execs, e.id)
	s.mu.Unlock()
}

// reply answers with a file, which is closed once it is on its way.
func (c *call) reply(f *os.File) ([]any, error) {
	c.sent = append(c.sent, f)
	return []any{godbus.UnixFD(f.Fd())}, nil
}
