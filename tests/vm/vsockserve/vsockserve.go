package vsockserve

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Conn is one connection. Peer is the context ID that it comes from.
type Conn struct {
	*os.File
	Peer uint32
}

// Serve accepts connections to a vsock port, on whatever context ID this system has, and calls
// serve with each. listening is called before the first; it and serve are called by the same
// goroutine. Serve returns with an error only.
func Serve(port uint32, listening func(), serve func(Conn)) error {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open an AF_VSOCK socket: %w", err)
	}
	defer unix.Close(fd)
	if err = unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err == nil {
		err = unix.Listen(fd, 8)
	}
	if err != nil {
		return fmt.Errorf("cannot listen on vsock port %d: %w", port, err)
	}
	listening()
	for {
		conn, address, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot accept on vsock port %d: %w", port, err)
		}
		c := Conn{File: os.NewFile(uintptr(conn), "vsock")}
		if from, ok := address.(*unix.SockaddrVM); ok {
			c.Peer = from.CID
		}
		serve(c)
	}
}
