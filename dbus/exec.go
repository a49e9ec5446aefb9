package dbus

import (
	"context"
	"os"
	"slices"
	"strings"
	"syscall"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

const (
	maxArgs     = 4096    // of one exec
	maxArgBytes = 1 << 20 // all of its arguments and environment
	maxExecCall = maxArgBytes + 8*maxArgs + maxArguments
)

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
	p.Stdin, p.Stdout, p.Stderr = files.Process[0], files.Process[1], files.Process[2]
	path, err := c.startExec(container, p, size, files.finish)
	if err != nil {
		return nil, err
	}
	return []any{path}, nil
}

// openTerminal serves OpenTerminal: the client gets one end of a socket, whose other end is the
// terminal's input and output.
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

// socketPair makes two connected sockets, close-on-exec, on systems without SOCK_CLOEXEC too: the
// client is built for them.
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

// startExec runs the process as a job, which ends when the client leaves the bus. finish closes the
// process' files when it has ended, or was not started.
func (c *call) startExec(container string, p runtime.Process, size runtime.WinSize, finish func(context.Context)) (godbus.ObjectPath, error) {
	s := c.server
	ref, err := c.ref()
	if err != nil {
		finish(c.ctx)
		return "", err
	}
	ctx, release := s.whileThere(c.ctx, c.sender)
	s.wg.Add(1)
	id, err := s.backend.Exec(ctx, ref, container, p, size, func(ctx context.Context) {
		finish(ctx)
		release()
		s.wg.Done()
	})
	return contract.JobPath(id), err
}

// reply answers with a file, which is closed once it is on its way.
func (c *call) reply(f *os.File) ([]any, error) {
	c.sent = append(c.sent, f)
	return []any{godbus.UnixFD(f.Fd())}, nil
}
