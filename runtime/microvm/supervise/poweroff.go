package supervise

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/runtime/microvm/vmm"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// quitTime is how long the VMM may take to end after SIGTERM, for which all of them end in order,
// before it is killed.
const quitTime = 2 * time.Second

// powerOff has the guest power off, and ends the VMM if that does not help.
func (s *supervisor) powerOff(monitor *process) {
	deadline := time.Now().Add(s.config.powerOff())
	asked := make(chan error, 1)
	go func() { asked <- s.askPowerOff(deadline) }()
	limit := time.NewTimer(time.Until(deadline))
	defer limit.Stop()
	for waiting := true; waiting; {
		select {
		case <-monitor.exited:
			return
		case err := <-asked:
			if err != nil {
				complain(fmt.Errorf("cannot power off the guest: %w", err))
				waiting = false
			}
			asked = nil
		case <-limit.C:
			waiting = false
		}
	}
	monitor.signal(syscall.SIGTERM)
	select {
	case <-monitor.exited:
	case <-time.After(quitTime):
	}
}

// askPowerOff sends the agent the request. It may be too busy with it to answer.
func (s *supervisor) askPowerOff(deadline time.Time) error {
	answer, err := s.request(deadline, `{"action":"poweroff"}`)
	if bytes.Contains(answer, []byte(`"error"`)) {
		return fmt.Errorf("the agent answers %s", bytes.TrimSpace(answer))
	}
	if errors.Is(err, errNoAnswer) {
		return nil
	}
	return err
}

// dialAgent connects to the agent's port. Reads and writes end at the deadline.
func dialAgent(c *vmm.Config, deadline time.Time) (io.ReadWriteCloser, error) {
	if c.Vsock.Kind == vmm.VsockVhost {
		return dialVsock(c.Vsock.CID, deadline)
	}
	conn, err := (&net.Dialer{Deadline: deadline}).Dial("unix", c.Vsock.Path)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if err := wire.Connect(conn, vmm.AgentPort); err != nil {
		return nil, errors.Join(fmt.Errorf("the guest does not listen: %w", err), conn.Close())
	}
	return conn, nil
}

// dialVsock is AF_VSOCK without a library: one request in a process's life.
func dialVsock(cid uint32, deadline time.Time) (io.ReadWriteCloser, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("AF_VSOCK: %w", err)
	}
	f := os.NewFile(uintptr(fd), "vsock")
	timeout := unix.NsecToTimeval(max(time.Until(deadline), time.Millisecond).Nanoseconds())
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		err = errors.Join(err, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &timeout))
	}
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrVM{CID: cid, Port: vmm.AgentPort}) // gives up after 2 s by itself (vsock(7))
	}
	if err != nil {
		return nil, fmt.Errorf("cannot connect to context %d: %w", cid, errors.Join(err, f.Close()))
	}
	return f, nil
}
