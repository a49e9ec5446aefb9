package client

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/mdlayher/vsock"

	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// Dialer opens a connection to an agent. The context bounds the dialing only.
type Dialer func(ctx context.Context) (net.Conn, error)

// Address says where an agent is. Exactly one of CID and Path is set.
type Address struct {
	// CID is the context ID of the VM: AF_VSOCK.
	CID uint32 `json:"cid,omitempty"`
	// Path is a VMM's unix socket, which leads to the port that is asked for first: see [Hybrid].
	Path string `json:"path,omitempty"`
}

// Dialer is the dialer for the address.
func (a Address) Dialer() Dialer {
	if a.Path == "" {
		return VSock(a.CID, wire.Port)
	}
	return Hybrid(a.Path, wire.Port)
}

// VSock dials AF_VSOCK, which needs /dev/vhost-vsock behind the VM.
func VSock(cid, port uint32) Dialer {
	return func(ctx context.Context) (net.Conn, error) {
		conn, err := vsock.DialContext(ctx, cid, port, nil)
		if err != nil {
			return nil, fmt.Errorf("cannot dial port %d of VM %d: %w", port, cid, err)
		}
		return conn, nil
	}
}

// Unix dials a unix socket whose path may be longer than the 107 bytes that an address holds.
func Unix(path string) Dialer {
	return func(ctx context.Context) (net.Conn, error) {
		name := path
		if len(name) > 107 {
			dir, err := os.Open(filepath.Dir(path))
			if err != nil {
				return nil, fmt.Errorf("cannot dial %s: %w", path, err)
			}
			defer dir.Close()
			name = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
		}
		conn, err := new(net.Dialer).DialContext(ctx, "unix", name)
		if err != nil {
			return nil, fmt.Errorf("cannot dial %s: %w", path, err)
		}
		return conn, nil
	}
}

// Hybrid dials a VMM's unix socket and asks it for a port: "CONNECT PORT", answered by "OK N". A
// connection that nobody waits for any more is closed only when it was answered, or the VM has
// ended: vhost-device-vsock 0.3 loses the thread that does all its work when its answer finds
// nobody, and with it the VM. A VM that does not answer gets no more connections when there are
// maxAbandoned of these.
func Hybrid(path string, port uint32) Dialer {
	dial := Unix(path)
	return func(ctx context.Context) (net.Conn, error) {
		if abandoned.count(path, 0) >= maxAbandoned {
			return nil, fmt.Errorf("cannot dial port %d at %s: %d connections have not been answered yet", port, path, maxAbandoned)
		}
		conn, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		answered := make(chan error, 1)
		go func() { answered <- wire.Connect(conn, port) }()
		select {
		case err = <-answered:
			if err != nil {
				conn.Close()
			}
		case <-ctx.Done():
			err = context.Cause(ctx)
			abandoned.count(path, 1)
			go func() {
				<-answered
				conn.Close()
				abandoned.count(path, -1)
			}()
		}
		if err != nil {
			return nil, fmt.Errorf("cannot dial port %d at %s: %w", port, path, err)
		}
		return conn, nil
	}
}

// maxAbandoned is how many connections to one socket may wait for an answer that nobody waits for.
// Each takes a descriptor, and a guest could have any number.
const maxAbandoned = 64

// abandoned counts those of this process by the socket's path: all dialers of a VM have them in common.
var abandoned = counts{of: map[string]int{}}

type counts struct {
	mu sync.Mutex
	of map[string]int
}

// count adds n and returns the sum.
func (c *counts) count(path string, n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := c.of[path] + n
	if c.of[path] = sum; sum == 0 {
		delete(c.of, path)
	}
	return sum
}
