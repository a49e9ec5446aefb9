package guest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// console is a socket over which crun sends the master of a terminal. It is named by descriptors, because a socket's path must be short.
type console struct {
	dir      *os.File
	listener *net.UnixListener
}

// consolePath is the path of the socket for crun, whose first extra file is the directory.
const consolePath = "/proc/self/fd/3/console"

// openConsole makes the socket in a directory, with which it goes.
func openConsole(dir string) (*console, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/console", d.Fd()), Net: "unix"})
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("cannot make a terminal: %w", err)
	}
	listener.SetUnlinkOnClose(false)
	return &console{dir: d, listener: listener}, nil
}

func (c *console) handOver(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{c.dir} }

func (c *console) close() {
	c.listener.Close()
	c.dir.Close()
}

// receive waits for the message that carries the master, until a deadline.
func (c *console) receive(deadline time.Time) (*os.File, error) {
	if err := c.listener.SetDeadline(deadline); err != nil {
		return nil, err
	}
	conn, err := c.listener.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("cannot make a terminal: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	data, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(data, oob)
	if err != nil {
		return nil, fmt.Errorf("cannot make a terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, errors.New("cannot make a terminal: crun sent no descriptor")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("cannot make a terminal: crun sent no descriptor")
	}
	unix.CloseOnExec(fds[0])
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}
