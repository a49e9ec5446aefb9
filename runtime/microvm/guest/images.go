package guest

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/vsockinit"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// mountTable counts who uses a mounted image, by where it is mounted.
type mountTable struct{ images map[string]int }

// useImage mounts an image, unless it is mounted, and returns where. The caller calls release when
// it does not use it any more.
func (s *Server) useImage(i wire.Image) (path string, release func() error, err error) {
	path = s.path(disksName, i.Disk)
	if i.Disk == "" {
		path = s.path(filesName, i.Share, i.File)
	}
	s.setup.Lock()
	defer s.setup.Unlock()
	if s.mounts.images == nil {
		s.mounts.images = map[string]int{}
	}
	if s.mounts.images[path] == 0 {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return "", nil, err
		}
		if err := s.mountImage(i, path); err != nil {
			return "", nil, errors.Join(err, os.Remove(path))
		}
	}
	s.mounts.images[path]++
	return path, func() error {
		s.setup.Lock()
		defer s.setup.Unlock()
		if s.mounts.images[path]--; s.mounts.images[path] > 0 {
			return nil
		}
		delete(s.mounts.images, path)
		return unmount(path)
	}, nil
}

func (s *Server) mountImage(i wire.Image, target string) error {
	if i.Disk == "" {
		path, err := existing(s.path(sharesName, i.Share, i.File), "file on the share "+i.Share, i.File)
		if err == nil {
			err = mountFile(path, target)
		}
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), diskTimeout)
	defer cancel()
	device, err := findDisk(ctx, i.Disk)
	if err == nil {
		err = mountErofs(device, target)
	}
	return err
}

func mountErofs(source, target string) error {
	if err := unix.Mount(source, target, "erofs", unix.MS_RDONLY|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("cannot mount the image %s: erofs: %w", source, err)
	}
	return nil
}

// mountFile mounts the erofs in a file: by itself, if the kernel can (Linux 6.12,
// CONFIG_EROFS_FS_BACKED_BY_FILE), else by a loop device.
func mountFile(path, target string) error {
	err := mountErofs(path, target)
	if errors.Is(err, unix.ENOTBLK) {
		return mountLoop(path, target)
	}
	return err
}

// mountLoop mounts the erofs in a file by a loop device, which goes with the mount.
func mountLoop(path, target string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	device, err := attachLoop(file)
	if err != nil {
		return fmt.Errorf("cannot mount the image %s: loop device: %w", path, err)
	}
	defer device.Close()
	return mountErofs(device.Name(), target)
}

// laterModules has the modules that few VMs need.
const laterModules = "/modules/later"

// attachLoop makes a free loop device show a file, read-only, until the last one has closed it.
func attachLoop(file *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		if err := vsockinit.LoadModules(laterModules); err != nil {
			return nil, err
		}
		control, err = os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	}
	if err != nil {
		return nil, err
	}
	defer control.Close()
	config := unix.LoopConfig{Fd: uint32(file.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR}}
	for tries := 0; ; tries++ {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		device, err := os.Open(fmt.Sprintf("/dev/loop%d", n))
		if err != nil {
			return nil, err
		}
		if err = unix.IoctlLoopConfigure(int(device.Fd()), &config); err == nil {
			return device, nil
		}
		device.Close()
		// Somebody else was faster.
		if !errors.Is(err, unix.EBUSY) || tries == 10 {
			return nil, err
		}
	}
}
