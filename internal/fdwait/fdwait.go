// Package fdwait reads and writes files that may not be ready for long and belong to others: the
// waiting ends when somebody closes the other end of a pipe.
package fdwait

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// writeSize is what is written at a time: a pipe that has room at all has room for it.
const writeSize = 4096

// Read reads what fd has, as soon as it has something or has ended. [os.ErrClosed]: wake, the
// reading end of a pipe, has ended first.
func Read(fd int, buffer []byte, wake int) (int, error) {
	for wait(fd, unix.POLLIN, wake) {
		n, err := unix.Read(fd, buffer)
		if !again(err) {
			return max(n, 0), err
		}
	}
	return 0, os.ErrClosed
}

// Write writes all of data, and returns how much it has. [os.ErrClosed]: wake, the reading end of a
// pipe, has ended first.
func Write(fd int, data []byte, wake int) (written int, err error) {
	for written < len(data) {
		if !wait(fd, unix.POLLOUT, wake) {
			return written, os.ErrClosed
		}
		n, err := unix.Write(fd, data[written:min(written+writeSize, len(data))])
		if err != nil && !again(err) {
			return written, err
		}
		written += max(n, 0)
	}
	return written, nil
}

func again(err error) bool { return errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) }

// wait waits until fd is ready for events or broken; false when wake has ended first, or fd is not open.
func wait(fd int, events int16, wake int) bool {
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}, {Fd: int32(wake)}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return false
		}
		switch {
		case fds[1].Revents != 0, fds[0].Revents&unix.POLLNVAL != 0:
			return false
		case fds[0].Revents != 0:
			return true
		}
	}
}
