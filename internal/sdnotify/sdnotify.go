// Package sdnotify notifies the service manager (sd_notify(3)). It needs nothing but
// golang.org/x/sys/unix: programs use it that must be small.
//
// Layer: none.
package sdnotify

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrUnset says that there is no service manager: this process was not started by one, or not in a
// unit of Type=notify.
var ErrUnset = errors.New("cannot notify the service manager: NOTIFY_SOCKET is not set")

// Conn is a connection to the service manager. It still works when the socket's path is out of
// reach, in another mount namespace.
type Conn struct{ fd int }

// Dial connects to $NOTIFY_SOCKET; without it the error is [ErrUnset].
func Dial() (*Conn, error) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil, ErrUnset
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot notify the service manager: socket: %w", err)
	}
	// golang.org/x/sys/unix takes a leading @ for the abstract name space, as systemd does.
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot notify the service manager at %s: %w", path, err)
	}
	return &Conn{fd}, nil
}

// Close closes the connection.
func (c *Conn) Close() { unix.Close(c.fd) }

// Send sends lines of the form NAME=VALUE.
func (c *Conn) Send(state string) error { return c.SendFiles(state) }

// SendFiles sends lines with descriptors (sd_pid_notify_with_fds(3)), which stay the caller's.
func (c *Conn) SendFiles(state string, fds ...int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(c.fd, []byte(state), rights, nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("cannot notify the service manager: %w", err)
	}
	return nil
}

// Barrier waits until the service manager has dealt with all that was sent before: it gets the
// writing end of a pipe, which it closes then (sd_notify_barrier(3)).
func (c *Conn) Barrier(timeout time.Duration) error {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("cannot wait for the service manager: pipe: %w", err)
	}
	defer unix.Close(pipe[0])
	err := c.SendFiles("BARRIER=1", pipe[1])
	unix.Close(pipe[1])
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(timeout); ; {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("cannot wait for the service manager: no answer in %s", timeout)
		}
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(pipe[0])}}, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("cannot wait for the service manager: poll: %w", err)
		}
		if ready > 0 {
			return nil // POLLHUP
		}
	}
}

// Notify sends lines over a connection of their own.
func Notify(state string) error {
	c, err := Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Send(state)
}
