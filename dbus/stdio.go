package dbus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/pod"
)

// maxPipe is how much a pipe can hold at most, in bytes (pipe(7), /proc/sys/fs/pipe-max-size).
const maxPipe = 1 << 20

// stdio stands between a client's files and a process in a container. The process gets pipes of
// ours and nothing of the client's: through a file in /proc/self/fd it could read what others write
// to a pipe, rewrite a file, read what is typed at a terminal, and go on with that when the client
// has long gone.
type stdio struct {
	contract.Pipes
	in      *os.File   // the client's
	outs    []*os.File // the client's, one for each of Pipes.From
	copying sync.WaitGroup
}

// newStdio takes over files, a client's standard input, output and error, and begins to copy.
// Invalid: one of them is no pipe.
func newStdio(files []*os.File) (*stdio, error) {
	defer closeAll(files)
	s := &stdio{}
	if err := s.open(files); err != nil {
		_ = s.in.Close()
		closeAll(s.outs)
		return nil, err
	}
	s.start()
	return s, nil
}

func (s *stdio) open(files []*os.File) (err error) {
	if s.in, err = ownEnd(files[0], os.O_RDONLY, "standard input"); err != nil {
		return err
	}
	joined := samePipe(files[1], files[2])
	for i, what := range []string{"standard output", "standard error"} {
		if i == 1 && joined {
			break
		}
		out, err := ownEnd(files[1+i], os.O_WRONLY, what)
		if err != nil {
			return err
		}
		s.outs = append(s.outs, out)
	}
	s.Pipes, err = contract.NewPipes(joined)
	return err
}

func (s *stdio) start() {
	s.copying.Go(func() {
		_, _ = io.Copy(s.To, s.in) // the process sees the end of its input either way
		_ = s.To.Close()
	})
	for i, from := range s.From {
		s.copying.Go(func() {
			_, err := io.Copy(s.outs[i], from)
			if errors.Is(err, os.ErrDeadlineExceeded) { // finish
				drain(s.outs[i], from)
			}
			_ = from.Close() // nobody reads any more: the process learns it by SIGPIPE
		})
	}
}

// finish is called when the process has ended: what it has written until then gets to the client,
// as fast as that reads, or until ctx ends. What it has left behind is not heard any more.
func (s *stdio) finish(ctx context.Context) {
	s.CloseProcess()
	past := time.Unix(1, 0)
	stop := context.AfterFunc(ctx, func() {
		for _, out := range s.outs {
			_ = out.SetWriteDeadline(past)
		}
	})
	closeAll([]*os.File{s.in, s.To})
	for _, from := range s.From {
		_ = from.SetReadDeadline(past)
	}
	s.copying.Wait()
	stop()
	closeAll(s.outs)
}

// drain copies what is in a pipe now. It does not wait for more: another process may still have the
// pipe open, and may even take out of it what is there.
func drain(out io.Writer, pipe *os.File) {
	_ = pipe.SetReadDeadline(time.Time{})
	conn, err := pipe.SyscallConn()
	buffer := make([]byte, 32<<10)
	for left := maxPipe; err == nil && left > 0; {
		var n int
		err = conn.Read(func(fd uintptr) bool { // our end does not block
			n, _ = unix.Read(int(fd), buffer)
			return true
		})
		if err != nil || n <= 0 {
			return
		}
		left -= n
		_, err = out.Write(buffer[:n])
	}
}

// ownEnd is a pipe of a client's as a file of ours, which shares no flags with the client's, and
// which never blocks; /dev/null stays it. Invalid: it is no pipe, or not open for reading or
// writing alone, as mode says.
func ownEnd(f *os.File, mode int, what string) (*os.File, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, pod.Errorf(pod.Internal, "%s: %w", what, err)
	}
	if info.Mode()&os.ModeNamedPipe == 0 {
		if isNull(info) {
			return os.OpenFile(os.DevNull, mode, 0)
		}
		return nil, pod.Errorf(pod.Invalid, "%s is %s: pass a pipe, and copy", what, fileKind(info))
	}
	if err := checkMode(f, mode); err != nil {
		return nil, pod.Errorf(pod.Invalid, "%s: %w", what, err)
	}
	end, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), mode|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENXIO) {
		return closedPipe()
	}
	if err != nil {
		return nil, pod.Errorf(pod.Internal, "%s: %w", what, err)
	}
	return end, nil
}

// checkMode says whether f is open for what mode says and for nothing else. A descriptor that only
// names a file (O_PATH) is open for nothing.
func checkMode(f *os.File, mode int) error {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	try := unix.Read
	if mode == os.O_WRONLY {
		try = unix.Write
	}
	if _, err := try(int(f.Fd()), nil); flags&unix.O_ACCMODE != mode || errors.Is(err, unix.EBADF) {
		if mode == os.O_WRONLY {
			return errors.New("it is not open for writing alone")
		}
		return errors.New("it is not open for reading alone")
	}
	return nil
}

// closedPipe is a pipe to nobody.
func closedPipe() (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, contract.NoPipe(err)
	}
	_ = r.Close()
	return w, nil
}

func samePipe(a, b *os.File) bool {
	one, err := a.Stat()
	if err != nil {
		return false
	}
	two, err := b.Stat()
	return err == nil && one.Mode()&os.ModeNamedPipe != 0 && os.SameFile(one, two) && checkMode(b, os.O_WRONLY) == nil
}

func isNull(info os.FileInfo) bool {
	null, err := os.Stat(os.DevNull)
	one, ok := info.Sys().(*syscall.Stat_t)
	if err != nil || !ok {
		return false
	}
	return info.Mode()&os.ModeCharDevice != 0 && one.Rdev == null.Sys().(*syscall.Stat_t).Rdev
}

// fileKind names a file that is no pipe.
func fileKind(info os.FileInfo) string {
	switch m := info.Mode(); {
	case m.IsRegular():
		return "a regular file"
	case m.IsDir():
		return "a directory"
	case m&os.ModeSocket != 0:
		return "a socket"
	case m&os.ModeNamedPipe != 0:
		return "a pipe"
	case m&os.ModeDevice != 0:
		return "a terminal or another device"
	}
	return "something else"
}
