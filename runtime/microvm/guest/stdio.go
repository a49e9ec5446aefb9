package guest

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/rawfd"
	"github.com/magikrun/magikpod/runtime/crun"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// stdio is what a container or an exec reads and writes: pipes, or a terminal.
type stdio struct {
	terminal bool
	stdin    *os.File // our end; nil without
	outputs  [2]*os.File
	theirs   []*os.File // the other ends of the pipes: stdin, stdout, stderr
	end      sync.Once
}

// newStdio makes pipes; a terminal comes later. output, when not nil, takes the place of the pipes
// for stdout and stderr, and is closed as the process's ends of them are.
func newStdio(stdin, terminal bool, output *os.File) (*stdio, error) {
	s := &stdio{terminal: terminal}
	if terminal {
		return s, nil
	}
	in, out, err := pipe(1)
	if err != nil {
		return nil, err
	}
	s.theirs, s.stdin = []*os.File{in, nil, nil}, out
	if !stdin { // nothing to read, but not the VM's /dev/null, whose mode root in a container could change
		out.Close()
		s.stdin = nil
	}
	if output != nil {
		s.theirs[1], s.theirs[2] = output, output
		return s, nil
	}
	for i := range s.outputs {
		if s.theirs[1+i], s.outputs[i], err = pipe(0); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	return s, nil
}

// pipe makes a pipe of which our end, 0 to read or 1 to write, does not block this process's
// threads. That of the process must be as programs expect it.
func pipe(end int) (theirs, ours *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	if err := unix.SetNonblock(fds[end], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[1-end]), "pipe"), os.NewFile(uintptr(fds[end]), "pipe"), nil
}

// handOver gives cmd its files.
func (s *stdio) handOver(cmd *exec.Cmd) {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.theirs[0], s.theirs[1], s.theirs[2]
}

// handedOver closes the process's ends: it has them, or could not be started.
func (s *stdio) handedOver() {
	for _, f := range s.theirs {
		if f != nil {
			f.Close()
		}
	}
	s.theirs = nil
}

// setTerminal takes a terminal's master.
func (s *stdio) setTerminal(master int, size *wire.Size) {
	f := os.NewFile(uintptr(master), "terminal")
	s.stdin, s.outputs[0] = f, f
	if size != nil {
		s.resize(*size)
	}
}

func (s *stdio) resize(size wire.Size) {
	if !s.terminal || s.stdin == nil {
		return
	}
	_ = rawfd.Use(s.stdin, func(fd int) error {
		crun.SetSize(fd, size.Rows, size.Cols)
		return nil
	})
}

// input is where input is delivered. finish ends it, when the process has ended.
func (s *stdio) input() (in input, finish func()) {
	if s.terminal {
		in.resize = s.resize
	}
	if s.stdin == nil {
		return in, func() {}
	}
	stdin, done := make(chan []byte, 1), make(chan struct{})
	in.stdin = stdin
	go func() {
		open := true
		for {
			select {
			case data := <-stdin:
				switch {
				case !open: // dropped: the process does not read any more
				case len(data) > 0:
					_, err := s.stdin.Write(data)
					open = err == nil
				case s.terminal:
					_, err := s.stdin.Write([]byte{crun.EndOfInput})
					open = err == nil
				default:
					s.stdin.Close()
					open = false
				}
			case <-done:
				return
			}
		}
	}()
	return in, sync.OnceFunc(func() {
		close(done)
		s.stdin.Close() // also ends a write
	})
}

// serve passes on input and output until the process has ended, and then writes how. kill kills it:
// when the host has hung up, or it is late. An owner keeps what has ended until it hangs up; else
// the connection is closed.
func (s *stdio) serve(p *peer, ended <-chan struct{}, late <-chan time.Time, kill func(late bool), exit func() wire.Exit, owner bool) {
	in, finish := s.input()
	hostGone := make(chan struct{})
	go func() { defer close(hostGone); p.feed(in) }()
	copied := make(chan struct{})
	go func() { defer close(copied); s.copyOutput(p.Conn) }()
	select {
	case <-ended:
	case <-hostGone:
		kill(false)
	case <-late:
		kill(true)
	}
	<-ended
	// What it has left in the background, or a process of another container, may keep its output
	// open for ever; that is not waited for.
	select {
	case <-copied:
	case <-hostGone:
	case <-time.After(crun.DrainTime):
	}
	s.stopOutput()
	// What is left of it is the host's to read, or not.
	select {
	case <-copied:
		if p.WriteJSON(wire.FrameExit, exit()) == nil && owner {
			<-hostGone
		}
	case <-hostGone: // the copying ends with the connection
	}
	p.conn.Close()
	<-hostGone
	<-copied
	finish()
}

// copyOutput copies the output into frames until all who could write have ended. When the host does
// not take it, it is dropped.
func (s *stdio) copyOutput(to *wire.Conn) {
	var copying sync.WaitGroup
	for i, t := range []wire.FrameType{wire.FrameStdout, wire.FrameStderr} {
		if f := s.outputs[i]; f != nil {
			copying.Go(func() { copyFrames(to, t, f) })
		}
	}
	copying.Wait()
}

func copyFrames(to *wire.Conn, t wire.FrameType, from *os.File) {
	buffer, left := make([]byte, wire.Chunk), -1
	for {
		n, err := from.Read(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			// The process has ended, and who else has its output open is not waited for. What was
			// written is still there; but not what is written from now on, which may have no end.
			if left < 0 {
				left = pending(from)
			}
			n, err = readNow(from, buffer[:min(left, len(buffer))])
			left -= n
		}
		if n > 0 && to != nil && to.WriteFrame(t, buffer[:n]) != nil {
			to = nil
		}
		if err != nil { // EOF; EIO of a terminal
			return
		}
	}
}

// pending is at least as much as there is to read. A pipe says how much; a terminal only a part,
// and it has less than minPending.
func pending(f *os.File) (n int) {
	_ = rawfd.Use(f, func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
		return err
	})
	return max(n, minPending)
}

const minPending = 64 << 10

// readNow reads what there is without waiting.
func readNow(f *os.File, buffer []byte) (n int, err error) {
	err = rawfd.Use(f, func(fd int) error {
		n, err = unix.Read(fd, buffer)
		return err
	})
	if err == nil && n <= 0 {
		err = io.EOF
	}
	return max(n, 0), err
}

// stopOutput ends copyOutput: what comes later is lost.
func (s *stdio) stopOutput() {
	for _, f := range s.outputs {
		if f != nil {
			_ = f.SetReadDeadline(time.Now()) // pipes and terminals have one
		}
	}
}

// close closes everything. Closing again is no error.
func (s *stdio) close() error {
	s.end.Do(func() {
		s.handedOver()
		for _, f := range []*os.File{s.stdin, s.outputs[0], s.outputs[1]} {
			if f != nil {
				f.Close()
			}
		}
	})
	return nil
}
