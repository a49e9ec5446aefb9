package microvm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/microvm/client"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// execSlack is how much later than a command's timeout a VM may report it: an emulated one, on a
// busy host, takes seconds.
var execSlack = 30 * time.Second // tests are impatient

// Exec implements engine.Runtime.
func (r *Runtime) Exec(ctx context.Context, c runtime.Running, p runtime.Process) (runtime.ExitStatus, error) {
	request := wire.Exec{
		Container: c.Container, Args: p.Args, Env: p.Env, Cwd: p.WorkingDir, User: p.User, TTY: p.TTY, Stdin: p.Stdin != nil, Timeout: p.Timeout.Milliseconds(),
	}
	files := client.IO{Stdin: p.Stdin}
	if p.Stdout != nil {
		files.Stdout = p.Stdout
	}
	if p.Stderr != nil {
		files.Stderr = p.Stderr
	}
	if p.TTY && p.Resize != nil {
		select {
		case size, ok := <-p.Resize: // the first size is most often known already, and the process may ask for it at once
			if ok {
				request.Size = &wire.Size{Rows: size.Rows, Cols: size.Cols}
			}
		default:
		}
		sizes, stop := sizesOf(p.Resize)
		defer stop()
		files.Resize = sizes
	}
	if p.Timeout > 0 { // which a guest may not heed
		late := p.Timeout + execSlack
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, late, fmt.Errorf("the VM has not answered within %s", late))
		defer cancel()
	}
	var exit wire.Exit
	err := r.call(c.Sandbox, func(agent *client.Client) error {
		session, err := agent.Exec(ctx, request)
		if err != nil {
			return err
		}
		exit, err = session.Run(ctx, files)
		return err
	})
	if err == nil {
		return runtime.ExitStatus{Code: exit.Code, Signal: exit.Signal}, nil
	}
	if ctx.Err() != nil {
		return runtime.ExitStatus{Code: 128 + int(unix.SIGKILL), Signal: int(unix.SIGKILL)}, err
	}
	refused, ok := errors.AsType[*wire.Error](err)
	if !ok || refused.Code != wire.CodeExecFailed {
		return runtime.ExitStatus{}, err
	}
	tellWhy(p, refused.Message)
	return runtime.ExitStatus{Code: refused.Exit}, err
}

// tellWhy writes on the process's own files why it could not be run.
func tellWhy(p runtime.Process, message string) {
	switch {
	case p.TTY && p.Stdout != nil:
		_, _ = p.Stdout.WriteString(message + "\r\n")
	case p.Stderr != nil:
		_, _ = p.Stderr.WriteString(message + "\n")
	}
}

// sizesOf translates the sizes of a terminal until stop is called.
func sizesOf(resize <-chan runtime.WinSize) (sizes <-chan wire.Size, stop func()) {
	out, done, ended := make(chan wire.Size), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer close(out)
		for {
			select {
			case size, ok := <-resize:
				if !ok {
					return
				}
				select {
				case out <- wire.Size{Rows: size.Rows, Cols: size.Cols}:
				case <-done:
					return
				}
			case <-done:
				return
			}
		}
	}()
	return out, func() { close(done); <-ended }
}
