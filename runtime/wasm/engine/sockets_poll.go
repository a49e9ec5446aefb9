package engine

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// slice is how often a wait looks whether its context has ended, if it can.
const slice = 100 * time.Millisecond

// waitFor waits until something that was asked for has happened, or the time is up, and says what.
// It may return early, with nothing.
func (p *poller) waitFor(ctx context.Context, asked []subscription, limit time.Duration) (ready map[int]bool) {
	ready = map[int]bool{}
	var fds []unix.PollFd
	var index []int
	for i, one := range asked {
		raw, events := -1, int16(unix.POLLIN)
		if one.kind == eventWrite {
			events = unix.POLLOUT
		}
		switch {
		case one.kind == eventClock:
			continue
		case one.fd == 0 && p.stdin != nil:
			raw = int(p.stdin.Fd())
		default:
			if open, ok := p.sockets.find(one.fd); ok {
				raw = open
			}
		}
		if raw < 0 {
			ready[i] = true // a file never waits
			continue
		}
		fds, index = append(fds, unix.PollFd{Fd: int32(raw), Events: events}), append(index, i)
	}
	if len(ready) > 0 {
		limit = 0
	}
	if len(fds) == 0 {
		sleep(ctx, limit)
		return ready
	}
	if ctx.Done() != nil {
		limit = min(limit, slice)
	}
	if _, err := unix.Poll(fds, milliseconds(limit)); err != nil && !errors.Is(err, unix.EINTR) {
		sleep(ctx, min(limit, time.Millisecond))
	}
	for i, fd := range fds {
		if fd.Revents != 0 {
			ready[index[i]] = true
		}
	}
	return ready
}

// milliseconds rounds up, so that no wait ends before its time; -1: for ever.
func milliseconds(d time.Duration) int {
	if d >= 24*time.Hour {
		return -1
	}
	return int((d + time.Millisecond - 1) / time.Millisecond)
}

// hangUp ends a connection; the socket stays.
func hangUp(fd int) { _ = unix.Shutdown(fd, unix.SHUT_RDWR) } // the other side may have been quicker

// openSockets lists the TCP sockets of this process.
func openSockets() []openSocket {
	const gap = 64 // descriptors are given out from below
	var list []openSocket
	for fd, missing := 3, 0; missing < gap; fd++ {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			missing++
			continue
		}
		missing = 0
		if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
			continue
		}
		open := openSocket{fd: fd, inode: uint64(st.Ino)}
		name, err := unix.Getsockname(fd)
		if err != nil {
			continue
		}
		switch a := name.(type) {
		case *unix.SockaddrInet4:
			open.port = a.Port
		case *unix.SockaddrInet6:
			open.port = a.Port
		default:
			continue
		}
		_, err = unix.Getpeername(fd)
		open.connected = err == nil
		list = append(list, open)
	}
	return list
}
