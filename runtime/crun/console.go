package crun

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// ConsolePath is the path of a [Console] for the OCI runtime (--console-socket), whose first
	// extra file is the directory.
	ConsolePath = "/proc/self/fd/3/" + consoleName
	consoleName = "console"
	// EndOfInput is what a terminal takes for the end of its input (^D).
	EndOfInput = 4
	// DrainTime is how long what a process has written may take to be read after its end: another
	// process may still have its output open.
	DrainTime = 2 * time.Second
)

// Console is a socket over which the OCI runtime sends the master of a terminal. It is named by
// descriptors, because a socket's path must be short.
type Console struct {
	dir      *os.File
	listener *net.UnixListener
}

// NewConsole makes the socket in a directory, with which it goes.
func NewConsole(dir string) (*Console, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	c := &Console{dir: d}
	if c.listener, err = net.ListenUnix("unix", c.address()); err != nil {
		d.Close()
		return nil, err
	}
	c.listener.SetUnlinkOnClose(false)
	return c, nil
}

// address is that of the socket for this process.
func (c *Console) address() *net.UnixAddr {
	return &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", c.dir.Fd(), consoleName), Net: "unix"}
}

// HandOver makes [ConsolePath] the socket for cmd.
func (c *Console) HandOver(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{c.dir} }

// Close closes the socket.
func (c *Console) Close() {
	c.listener.Close()
	c.dir.Close()
}

// Receive waits for the message that carries the master, and returns its descriptor, which does not
// block. It is waited for until the deadline (zero: for ever), and no longer than until the OCI
// runtime has ended, if it has not sent it by then.
func (c *Console) Receive(ended <-chan struct{}, deadline time.Time) (int, error) {
	if err := c.listener.SetDeadline(deadline); err != nil {
		return -1, err
	}
	accepted, looking := make(chan struct{}), make(chan struct{})
	defer func() { close(accepted); <-looking }()
	go func() {
		defer close(looking)
		select {
		case <-ended:
			// A quick command has ended before its connection was accepted: the master waits there.
			// This connection comes after it, and brings nothing.
			if last, err := net.DialUnix("unix", nil, c.address()); err == nil {
				last.Close()
			}
		case <-accepted:
		}
	}()
	conn, err := c.listener.AcceptUnix()
	if err != nil {
		return -1, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return -1, err
	}
	data, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(data, oob)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return -1, errNoDescriptor
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, errNoDescriptor
	}
	unix.CloseOnExec(fds[0])
	if err := unix.SetNonblock(fds[0], true); err != nil { // a terminal that says it has room may still not have enough
		unix.Close(fds[0])
		return -1, err
	}
	return fds[0], nil
}

var errNoDescriptor = errors.New("the OCI runtime sent no descriptor over the console socket")

// SetSize sets the size of the terminal with this master.
func SetSize(master int, rows, columns uint16) {
	_ = unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}) // any size is fine
}
