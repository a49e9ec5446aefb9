package supervise

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/ownthread"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// open makes the descriptors that a program is born with.
func (s *supervisor) open(ctx context.Context, c *vmm.Command) ([]*os.File, error) {
	var files []*os.File
	for _, fd := range c.FDs {
		f, err := s.openOne(ctx, fd)
		if err != nil {
			for _, f := range files {
				_ = f.Close()
			}
			return nil, fmt.Errorf("cannot start %s: %w", c.Argv[0], err)
		}
		files = append(files, f)
	}
	return files, nil
}

func (s *supervisor) openOne(ctx context.Context, fd vmm.FD) (*os.File, error) {
	switch fd.Kind {
	case vmm.FDFile:
		mode := os.O_RDWR
		if fd.ReadOnly {
			mode = os.O_RDONLY
		}
		return os.OpenFile(fd.Path, mode, 0)
	case vmm.FDTap:
		return s.openTap(fd.Path)
	case vmm.FDListen:
		return listenUnix(fd.Path)
	case vmm.FDConnect:
		return s.connectUnix(ctx, fd.Path)
	}
	return nil, fmt.Errorf("a descriptor of kind %q is not known", fd.Kind)
}

// listenUnix makes a unix socket that only root can connect to.
func listenUnix(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err == nil {
		err = unix.Listen(fd, 16)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", path, errors.Join(err, f.Close()))
	}
	return f, nil
}

// connectTimeout is how long a helper may take until it listens.
const connectTimeout = 30 * time.Second

// connectUnix waits until somebody listens at a path, and connects. It gives up when a helper ends.
func (s *supervisor) connectUnix(ctx context.Context, path string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err == nil {
			defer conn.Close()
			return conn.(*net.UnixConn).File()
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-s.ended:
			return nil, s.endedFirst()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// openTap makes the tap, up, in the pod's network namespace. It goes when its last descriptor is closed.
func (s *supervisor) openTap(name string) (*os.File, error) {
	var f *os.File
	err := ownthread.Run(func() (err error) {
		if s.netns >= 0 {
			err = unix.Setns(s.netns, unix.CLONE_NEWNET)
		}
		if err == nil {
			f, err = makeTap(name, s.config.VM.NIC.MTU)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot make the tap %s: %w", name, err)
	}
	return f, nil
}

func makeTap(name string, mtu int) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	f := os.NewFile(uintptr(fd), "tap "+name)
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err == nil {
		err = setLinkUp(name, mtu)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// setLinkUp sets the MTU, if it is not 0, and IFF_UP (netdevice(7)).
func setLinkUp(name string, mtu int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if mtu > 0 {
		request.SetUint32(uint32(mtu))
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFMTU, request); err != nil {
			return fmt.Errorf("cannot set MTU %d: %w", mtu, err)
		}
	}
	if request, err = unix.NewIfreq(name); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err != nil {
		return err
	}
	request.SetUint16(request.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}
