package netsetup

import (
	"errors"
	"net/netip"
	"os"
	"syscall"

	"github.com/magikrun/magikpod/pod"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// sockets are those that keep host processes from binding to a pod's ports: the process would get
// no packets and no error either.
type sockets []int

// close frees the ports at once. A child that is being made has a copy of each socket until it
// executes its program, which is what ForkLock waits for: without it a port that was just given up
// may still be taken.
func (s sockets) close() {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	for _, fd := range s {
		unix.Close(fd)
	}
}

// reserve binds to the host's side of each port. Errors: [pod.Conflict] naming the port that a host
// process has, [pod.Invalid] for a hostIP that is none of the host's.
func reserve(ports []Port) (reserved sockets, err error) {
	defer func() {
		if err != nil {
			reserved.close()
		}
	}()
	for _, p := range ports {
		for _, a := range p.bindAddrs() {
			fd, err := bind(p, a)
			switch {
			case errors.Is(err, unix.EADDRINUSE):
				return reserved, pod.Errorf(pod.Conflict, "cannot publish port %s: a process of the host uses it", p)
			case errors.Is(err, unix.EADDRNOTAVAIL):
				return reserved, pod.Errorf(pod.Invalid, "cannot publish port %s: the host does not have the address", p)
			case errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.ESOCKTNOSUPPORT):
				continue // no process can have it
			case err != nil:
				return reserved, pod.Errorf(kindOf(err), "cannot publish port %s: %w", p, err)
			case fd >= 0:
				reserved = append(reserved, fd)
			}
		}
	}
	return reserved, nil
}

func (p Port) bindAddrs() []netip.Addr {
	if p.HostIP.IsValid() {
		return []netip.Addr{p.HostIP}
	}
	return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
}

// bind returns a bound socket, which does not listen, or -1 when the port is free but cannot be
// reserved. A connection that an ended server has left behind does not count as use: where a plain
// bind fails, one that reuses addresses decides, as it does for servers.
func bind(p Port, a netip.Addr) (int, error) {
	fd, err := bound(p, a, false)
	if errors.Is(err, unix.EADDRINUSE) && p.Protocol != corev1.ProtocolUDP {
		if fd, err = bound(p, a, true); err == nil {
			unix.Close(fd)
			return -1, nil
		}
	}
	return fd, err
}

func bound(p Port, a netip.Addr, reuse bool) (fd int, err error) {
	family, typ := unix.AF_INET, unix.SOCK_STREAM
	if a.Is6() {
		family = unix.AF_INET6
	}
	if p.Protocol == corev1.ProtocolUDP {
		typ = unix.SOCK_DGRAM
	}
	fd, err = unix.Socket(family, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, p.proto())
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
			fd = -1
		}
	}()
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(p.HostPort)}
	if a.Is6() {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return fd, os.NewSyscallError("setsockopt", err)
		}
		sa = &unix.SockaddrInet6{Port: int(p.HostPort), Addr: a.As16()}
	} else {
		sa.(*unix.SockaddrInet4).Addr = a.As4()
	}
	if reuse {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return fd, os.NewSyscallError("setsockopt", err)
		}
	}
	if err := unix.Bind(fd, sa); err != nil {
		return fd, os.NewSyscallError("bind", err)
	}
	if reuse {
		return fd, os.NewSyscallError("listen", unix.Listen(fd, 1))
	}
	return fd, nil
}
