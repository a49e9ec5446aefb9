package client

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/fdwait"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// IO is what a process in the VM is connected to on the host. All of it may be nil: nothing to
// read, and output that is dropped.
type IO struct {
	// Stdin is read only if the request had Stdin. It stays open, and is not read any more after Run.
	Stdin *os.File
	// Stdout and Stderr get the output; when writing fails, the rest is dropped. An [*os.File] is
	// waited for only as long as the context allows; any other writer must not block for long. With
	// a terminal all output is Stdout.
	Stdout, Stderr io.Writer
	// Resize are the sizes of the terminal.
	Resize <-chan wire.Size
}

// Session is a container (of Create) or a process (Exec) in the VM. Close it.
type Session struct {
	l       *link
	request wire.Request
}

// session makes a request that goes on as a session. ctx bounds the request alone.
func (c *Client) session(ctx context.Context, request wire.Request) (*Session, error) {
	ctx, cancel := bounded(ctx, CallTimeout)
	defer cancel()
	l, err := c.start(ctx, request, nil)
	if err != nil {
		return nil, err
	}
	if !l.stop() {
		l.close()
		return nil, fail(request, context.Cause(ctx))
	}
	return &Session{l: l, request: request}, nil
}

// Create makes a container, which [Client.Start] starts. It lives as long as the session: closing
// it kills and removes the container.
func (c *Client) Create(ctx context.Context, request wire.Create) (*Session, error) {
	return c.session(ctx, &request)
}

// Exec runs a process in a container. Closing the session kills it, with all that it has started.
// [wire.CodeExecFailed]: it cannot be run, and Exit of the error is 126 or 127; that may also be
// found out only after it was to be executed: then the session's exit code says so.
func (c *Client) Exec(ctx context.Context, request wire.Exec) (*Session, error) {
	return c.session(ctx, &request)
}

// Close ends the session and what lives by it.
func (s *Session) Close() error {
	s.l.close()
	return nil
}

// Run copies until the process has ended, which is how it returns; or until ctx ends or the
// connection breaks, which is an error. It may be called once, and closes the session.
func (s *Session) Run(ctx context.Context, files IO) (wire.Exit, error) {
	var wake [2]int // closing wake[1] ends the waiting for files
	if err := unix.Pipe2(wake[:], unix.O_CLOEXEC); err != nil {
		s.Close()
		return wire.Exit{}, fail(s.request, err)
	}
	var end sync.Once
	stop := func() {
		end.Do(func() {
			s.l.conn.Close()
			unix.Close(wake[1])
		})
	}
	s.l.ctx = ctx
	release := context.AfterFunc(ctx, stop)
	done := make(chan struct{})
	var copying sync.WaitGroup
	if files.Stdin != nil {
		copying.Go(func() { s.sendInput(files.Stdin, wake[0]) })
	}
	if files.Resize != nil {
		copying.Go(func() { s.sendSizes(files.Resize, done) })
	}
	exit, err := s.receive(files, wake[0])
	release()
	stop()
	close(done)
	copying.Wait()
	unix.Close(wake[0])
	if err != nil {
		return wire.Exit{}, fail(s.request, s.l.explain(err))
	}
	exit.Check()
	return exit, nil
}

// receive writes the output until the exit frame.
func (s *Session) receive(files IO, wake int) (exit wire.Exit, err error) {
	outputs := map[wire.FrameType]io.Writer{wire.FrameStdout: files.Stdout, wire.FrameStderr: files.Stderr}
	for t, w := range outputs {
		switch f := w.(type) {
		case nil:
			outputs[t] = io.Discard
		case *os.File:
			outputs[t] = fileWriter{f, wake}
			if f == nil {
				outputs[t] = io.Discard
			}
		}
	}
	var buffer []byte
	for {
		frame, err := s.l.wire.ReadFrame(buffer)
		if err != nil {
			return exit, err
		}
		buffer = frame.Data
		switch frame.Type {
		case wire.FrameStdout, wire.FrameStderr:
			if _, err := outputs[frame.Type].Write(frame.Data); err != nil {
				outputs[frame.Type] = io.Discard
			}
		case wire.FrameExit:
			return exit, frame.Decode(&exit)
		default:
			return exit, unexpected(frame)
		}
	}
}

// sendInput sends what stdin has, and its end.
func (s *Session) sendInput(stdin *os.File, wake int) {
	buffer := make([]byte, wire.Chunk)
	fd := int(stdin.Fd())
	for {
		n, err := fdwait.Read(fd, buffer, wake)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if s.l.wire.WriteFrame(wire.FrameStdin, buffer[:n]) != nil || n == 0 {
			return // an empty frame is the end
		}
	}
}

func (s *Session) sendSizes(sizes <-chan wire.Size, done <-chan struct{}) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok || s.l.wire.WriteJSON(wire.FrameResize, size) != nil {
				return
			}
		case <-done:
			return
		}
	}
}

// fileWriter writes to a file that may not be ready for long, until wake ends.
type fileWriter struct {
	f    *os.File
	wake int
}

func (w fileWriter) Write(data []byte) (int, error) { return fdwait.Write(int(w.f.Fd()), data, w.wake) }
