package guest

import (
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/rawfd"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// CheckHost refuses every connection that does not come from the host over AF_VSOCK: one from a
// process in this VM has another CID.
func CheckHost(conn net.Conn) error { return checkAddr(conn.RemoteAddr()) }

func checkAddr(addr net.Addr) error {
	from, ok := addr.(*vsock.Addr)
	if !ok || from.ContextID != wire.HostCID {
		return fmt.Errorf("cannot serve a connection from %v: it is not the host", addr)
	}
	return nil
}

// peer is the host's end of one connection.
type peer struct {
	*wire.Conn
	conn net.Conn
}

// watch waits until the host closes the connection, or sends what it should not, and then calls gone.
func (p *peer) watch(gone func()) {
	_, _ = p.ReadFrame(nil)
	gone()
}

// checkEvery is how often a connection that cannot be read is looked at.
const checkEvery = 200 * time.Millisecond

// hungUp says whether the host has closed the connection, also if there is still something to read.
func (p *peer) hungUp() bool {
	conn, ok := p.conn.(syscall.Conn)
	if !ok {
		return false
	}
	gone := false
	err := rawfd.Use(conn, func(fd int) error {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		_, _ = unix.Poll(fds, 0)
		gone = fds[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
		return nil
	})
	return gone || err != nil
}

// input passes on what the host sends to a process: stdin and sizes.
type input struct {
	stdin  chan []byte // nil without; the data of one frame, empty for the end
	resize func(wire.Size)
}

// feed reads frames until the connection ends. It keeps no more than two of them.
func (p *peer) feed(in input) {
	var buffer []byte
	for {
		frame, err := p.ReadFrame(buffer)
		if err != nil {
			return
		}
		buffer = frame.Data
		switch {
		case frame.Type == wire.FrameStdin && in.stdin != nil:
			if !p.deliver(in.stdin, append([]byte(nil), frame.Data...)) {
				return
			}
		case frame.Type == wire.FrameResize && in.resize != nil:
			var size wire.Size
			if frame.Decode(&size) != nil {
				return
			}
			in.resize(size)
		default:
			return // not what this process takes: the host is out of its mind
		}
	}
}

// deliver waits until the process takes its input or the host hangs up.
func (p *peer) deliver(stdin chan<- []byte, data []byte) bool {
	for {
		select {
		case stdin <- data:
			return true
		case <-time.After(checkEvery):
			if p.hungUp() {
				return false
			}
		}
	}
}
