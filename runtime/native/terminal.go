package native

import (
	"os"
	"os/exec"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

const (
	// drainTime is how long what a process has written to its terminal may take to be read by the other end, after the process has ended.
	drainTime = 2 * time.Second
	// copySize is what is written at a time: a pipe that has room at all has room for it.
	copySize = 4096
	// endOfInput is what a terminal takes for the end of its input (^D).
	endOfInput = 4
)

// terminal gives cmd a pseudo-terminal, which the OCI runtime connects with another one inside of the container: the process's own, with job control.
// The size goes from this one to that one. The returned function waits for the last output and closes the terminal.
func (x *execution) terminal(cmd *exec.Cmd) (finish func(), err error) {
	master, slave, err := openPTY()
	if err != nil {
		return nil, pod.Errorf(pod.Internal, "cannot make a terminal: %w", err)
	}
	// Closing wake[1] ends the copying; the descriptors that are copied from and to belong to others, who may keep them open.
	var wake [2]int
	if err := unix.Pipe2(wake[:], unix.O_CLOEXEC); err != nil {
		unix.Close(master)
		slave.Close()
		return nil, pod.Errorf(pod.Internal, "cannot make a terminal: %w", err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	x.applySize(master)
	var copying sync.WaitGroup
	done, drained := make(chan struct{}), make(chan struct{})
	copying.Go(func() { x.resizes(master, done) })
	if x.p.Stdin != nil {
		copying.Go(func() { copyInput(master, int(x.p.Stdin.Fd()), wake[0]) })
	}
	copying.Go(func() {
		defer close(drained)
		out := -1
		if x.p.Stdout != nil {
			out = int(x.p.Stdout.Fd())
		}
		copyOutput(out, master, wake[0])
	})
	return func() {
		slave.Close() // the last one: the master's end comes after what is still to be read
		select {
		case <-drained:
		case <-time.After(drainTime):
		}
		unix.Close(wake[1])
		close(done)
		copying.Wait()
		unix.Close(wake[0])
		unix.Close(master)
	}, nil
}

// openPTY makes a pseudo-terminal. The slave is opened by its master, so that /dev/pts of the present mount namespace does not matter.
func openPTY() (master int, slave *os.File, err error) {
	master, err = unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, nil, err
	}
	if err = unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err == nil {
		// Not by unix.IoctlRetInt, whose argument is 0: a slave that can only be read.
		fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		if errno == 0 {
			return master, os.NewFile(fd, "pts/"+strconv.Itoa(int(fd))), nil
		}
		err = errno
	}
	unix.Close(master)
	return -1, nil, err
}

// applySize sets the first size, when it is known already.
func (x *execution) applySize(master int) {
	select {
	case size, ok := <-x.p.Resize:
		if ok {
			setSize(master, size)
		}
	default:
	}
}

func (x *execution) resizes(master int, done <-chan struct{}) {
	for {
		select {
		case size, ok := <-x.p.Resize:
			if !ok {
				return
			}
			setSize(master, size)
		case <-done:
			return
		}
	}
}

func setSize(master int, size runtime.WinSize) {
	_ = unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols}) // any size is fine
}

// copyInput copies to the terminal until in ends, which it passes on, or wake does.
func copyInput(master, in, wake int) {
	buffer := make([]byte, copySize)
	for {
		if !waitFor(in, unix.POLLIN, wake) {
			return
		}
		n, err := unix.Read(in, buffer)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		data := buffer[:max(n, 0)]
		end := err != nil || n == 0
		if end {
			data = []byte{endOfInput}
		}
		if !writeAll(master, data, wake) || end {
			return
		}
	}
}

// copyOutput copies from the terminal until it has ended or wake does. Without an out (-1), or when nobody reads it any more, the output is dropped:
// the process goes on.
func copyOutput(out, master, wake int) {
	buffer := make([]byte, copySize)
	for {
		if !waitFor(master, unix.POLLIN, wake) {
			return
		}
		n, err := unix.Read(master, buffer)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil || n == 0 { // EIO: all slaves are closed
			return
		}
		if out >= 0 && !writeAll(out, buffer[:n], wake) {
			out = -1
		}
	}
}

// writeAll writes data; false when it could not, or wake has ended.
func writeAll(fd int, data []byte, wake int) bool {
	for len(data) > 0 {
		if !waitFor(fd, unix.POLLOUT, wake) {
			return false
		}
		n, err := unix.Write(fd, data)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil {
			return false
		}
		data = data[n:]
	}
	return true
}

// waitFor waits until fd is ready for events or broken; false when wake has ended first.
func waitFor(fd int, events int16, wake int) bool {
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}, {Fd: int32(wake)}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return false
		}
		switch {
		case fds[1].Revents != 0:
			return false
		case fds[0].Revents&unix.POLLNVAL != 0:
			return false
		case fds[0].Revents != 0:
			return true
		}
	}
}
