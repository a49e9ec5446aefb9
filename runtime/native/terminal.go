package native

import (
	"errors"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/fdwait"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/crun"
)

// copySize is what is copied at a time.
const copySize = 4096

// terminal is the outer side of a process's terminal.
type terminal struct {
	p       runtime.Process
	wake    [2]int        // closing wake[1] ends the copying; the files that are copied from and to belong to others, who may keep them open
	done    chan struct{} // closed then
	drained chan struct{} // closed when there is no more output
	copying sync.WaitGroup
	// release lets go of what keeps the terminal open or is waited for, when the OCI runtime has ended.
	release func()
}

// openTerminal gives the process of cmd a terminal, with job control, that the OCI runtime makes
// inside of the container. Either that sends us its master over a socket (crun, youki); or (runc)
// it copies between it and a terminal of ours, passing on the size. The caller closes it after cmd
// has ended or could not be started.
func (x *execution) openTerminal(cmd *exec.Cmd) (*terminal, error) {
	t := &terminal{p: x.p, done: make(chan struct{}), drained: make(chan struct{})}
	if err := unix.Pipe2(t.wake[:], unix.O_CLOEXEC); err != nil {
		return nil, pod.Errorf(pod.Internal, "cannot make a terminal: %w", err)
	}
	open := t.openOwn
	if x.kind.consoleSocket {
		open = func(cmd *exec.Cmd) error { return t.openSocket(cmd, x.dir) }
	}
	if err := open(cmd); err != nil {
		unix.Close(t.wake[0])
		unix.Close(t.wake[1])
		return nil, pod.Errorf(pod.Internal, "cannot make a terminal: %w", err)
	}
	return t, nil
}

// close waits for the last output, for a while, and closes the terminal.
func (t *terminal) close() {
	t.release()
	select {
	case <-t.drained:
	case <-time.After(crun.DrainTime):
	}
	unix.Close(t.wake[1])
	close(t.done)
	t.copying.Wait()
	unix.Close(t.wake[0])
}

// openOwn makes a terminal of ours that cmd has as its own. It is raw from the beginning:
// everything is for the container's.
func (t *terminal) openOwn(cmd *exec.Cmd) error {
	master, slave, err := openPTY()
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	_ = unix.SetNonblock(master, true)
	t.release = func() { slave.Close() } // the last one: the master's end comes after what is still to be read
	t.serve(master)
	return nil
}

// openPTY makes a raw pseudo-terminal. The slave is opened by its master, so that /dev/pts of the
// present mount namespace does not matter.
func openPTY() (master int, slave *os.File, err error) {
	master, err = unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, nil, err
	}
	var mode *unix.Termios
	if err = unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err == nil {
		mode, err = unix.IoctlGetTermios(master, unix.TCGETS)
	}
	if err == nil { // cfmakeraw(3)
		mode.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
		mode.Oflag &^= unix.OPOST
		mode.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
		err = unix.IoctlSetTermios(master, unix.TCSETS, mode)
	}
	if err == nil {
		fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		if errno == 0 {
			return master, os.NewFile(fd, "terminal"), nil
		}
		err = errno
	}
	unix.Close(master)
	return -1, nil, err
}

// openSocket makes the socket in dir over which cmd sends the master of the container's terminal.
func (t *terminal) openSocket(cmd *exec.Cmd, dir string) error {
	console, err := crun.NewConsole(dir)
	if err != nil {
		return err
	}
	console.HandOver(cmd)
	ended, received := make(chan struct{}), make(chan struct{})
	t.release = func() {
		close(ended)
		<-received
		console.Close()
	}
	t.copying.Go(func() {
		master, err := console.Receive(ended, time.Time{})
		close(received)
		if err != nil {
			close(t.drained) // the OCI runtime has ended, and says why
			return
		}
		t.serve(master)
	})
	return nil
}

// serve copies between a terminal's master and the process's files and applies the sizes, until it
// is closed.
func (t *terminal) serve(master int) {
	var using sync.WaitGroup
	select {
	case size, ok := <-t.p.Resize: // the first size is most often known already
		if ok {
			crun.SetSize(master, size.Rows, size.Cols)
		}
	default:
	}
	using.Go(func() { t.resizes(master) })
	if t.p.Stdin != nil {
		using.Go(func() { copyInput(master, int(t.p.Stdin.Fd()), t.wake[0]) })
	}
	using.Go(func() {
		defer close(t.drained)
		out := -1
		if t.p.Stdout != nil {
			out = int(t.p.Stdout.Fd())
		}
		copyOutput(out, master, t.wake[0])
	})
	t.copying.Go(func() {
		using.Wait()
		unix.Close(master)
	})
}

func (t *terminal) resizes(master int) {
	for {
		select {
		case size, ok := <-t.p.Resize:
			if !ok {
				return
			}
			crun.SetSize(master, size.Rows, size.Cols)
		case <-t.done:
			return
		}
	}
}

// copyInput copies to the terminal until in ends, which it passes on, or wake does.
func copyInput(master, in, wake int) {
	buffer := make([]byte, copySize)
	for {
		n, err := fdwait.Read(in, buffer, wake)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		data := buffer[:n]
		end := err != nil || n == 0
		if end {
			data = []byte{crun.EndOfInput}
		}
		if _, err := fdwait.Write(master, data, wake); err != nil || end {
			return
		}
	}
}

// copyOutput copies from the terminal until it has ended or wake does. Without an out (-1), or when
// nobody reads it any more, the output is dropped: the process goes on.
func copyOutput(out, master, wake int) {
	buffer := make([]byte, copySize)
	for {
		n, err := fdwait.Read(master, buffer, wake)
		if err != nil || n == 0 { // EIO: all slaves are closed
			return
		}
		if out < 0 {
			continue
		}
		if _, err := fdwait.Write(out, buffer[:n], wake); err != nil {
			out = -1
		}
	}
}
