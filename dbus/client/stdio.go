package client

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"

	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/internal/errkind"
	"github.com/magikrun/magikpod/internal/podapi"
)

// Process is a process to exec in a container.
type Process struct {
	Args       []string
	Env        []string // KEY=VALUE, added to the container's
	WorkingDir string   // empty: the container's
	User       string   // USER[:GROUP], names or numbers; empty: the container's
	TTY        bool
	// Nil means nothing to read, and output that is dropped.
	Stdin, Stdout, Stderr *os.File
	Resize                <-chan podapi.WinSize
}

// stdio copies between the caller's files and pipes that are made for one process: nothing
// else leaves the caller.
type stdio struct {
	contract.Pipes
	stdin  *os.File
	outs   []*os.File // one for each of pipes.From
	failed chan error // one for each of outs, nil at the end of the output
	input  chan error // size 1: the caller's input could not be read
}

// newStdio makes the pipes. A nil file is nothing to read, or output that is dropped.
func newStdio(p Process) (*stdio, error) {
	s := &stdio{stdin: p.Stdin, outs: []*os.File{p.Stdout, p.Stderr}, input: make(chan error, 1)}
	var err error
	if s.Pipes, err = contract.NewPipes(sameFile(p.Stdout, p.Stderr)); err != nil {
		return nil, err
	}
	s.outs = s.outs[:len(s.From)]
	s.failed = make(chan error, len(s.outs))
	return s, nil
}

func sameFile(a, b *os.File) bool {
	if a == nil || b == nil {
		return a == b
	}
	one, err := a.Stat()
	if err != nil {
		return false
	}
	two, err := b.Stat()
	return err == nil && os.SameFile(one, two)
}

// start begins to copy; the daemon has its ends of the pipes.
func (s *stdio) start() {
	s.CloseProcess()
	if s.stdin == nil {
		_ = s.To.Close()
	} else {
		go func() {
			_, err := io.Copy(s.To, s.stdin)
			_ = s.To.Close()
			if err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, os.ErrClosed) { // else the process does not read
				s.input <- err
			}
		}()
	}
	for i, from := range s.From {
		go func() {
			to := io.Discard
			if s.outs[i] != nil {
				to = s.outs[i]
			}
			_, err := io.Copy(to, from)
			_ = from.Close() // the process learns that nobody reads
			s.failed <- err
		}()
	}
}

// wait waits for the end of the output, and says what could not be copied. A caller that does not
// want the output any more (EPIPE) is no error.
func (s *stdio) wait(ctx context.Context) (err error) {
	for range s.outs {
		select {
		case e := <-s.failed:
			if e != nil && !errors.Is(e, syscall.EPIPE) {
				err = errkind.Errorf(errkind.Internal, "cannot pass the output on: %w", e)
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	select {
	case e := <-s.input:
		err = errors.Join(err, errkind.Errorf(errkind.Internal, "cannot pass the input on: %w", e))
	default:
	}
	return err
}

// lend has send pass f to the daemon if it is a regular file, and a pipe in its place, from which
// or to which it copies, if it is anything else. mode says what the daemon does with it.
func lend(f *os.File, mode int, send func(*os.File) error) error {
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		return send(f)
	}
	read, write, err := os.Pipe()
	if err != nil {
		return contract.NoPipe(err)
	}
	passed, ours, from, to := read, write, f, write
	if mode == os.O_WRONLY {
		passed, ours, from, to = write, read, read, f
	}
	copied := make(chan error, 1)
	go func() {
		_, err := io.Copy(to, from)
		copied <- err // before the daemon learns of the end
		_ = ours.Close()
	}()
	err = send(passed)
	_ = passed.Close()
	if mode == os.O_WRONLY && err == nil {
		copied <- <-copied // all of it
	}
	var failed error
	select {
	case failed = <-copied:
	default: // it waits for what nobody wants any more
	}
	if failed != nil && !errors.Is(failed, syscall.EPIPE) {
		return errkind.Errorf(errkind.Internal, "cannot pass the archive on: %w", failed)
	}
	return err
}
