package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/errkind"
	"github.com/magikrun/magikpod/runtime/crun"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// unmount takes a mount away even if somebody is still in it: the kernel ends it with its last user.
func unmount(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("cannot unmount %s: %w", path, err)
	}
	return nil
}

// mountRootfs mounts the container's root file system: the image below a writable layer of the attempt.
func (c *container) mountRootfs(image wire.Image) error {
	lower, release, err := c.s.useImage(image)
	if err != nil {
		return err
	}
	c.undo.add(release)
	layer, target := c.s.path(scratchName, layersName, c.id), c.path("rootfs")
	c.undo.add(func() error { return os.RemoveAll(layer) })
	overlay := crun.Overlay{Lower: []string{lower}, Upper: layer + "/upper", Work: layer + "/work", Target: target}
	if err := overlay.Mount(); err != nil {
		return invalid(err)
	}
	c.undo.add(func() error { return unmount(target) })
	return nil
}

// invalid gives an error for which the request is to blame its code.
func invalid(err error) error {
	if errkind.KindOf(err) == errkind.Invalid {
		return wire.Errorf(wire.CodeInvalidRequest, "%v", err)
	}
	return err
}

// bindAll makes the mounts ready and the spec name them.
func (c *container) bindAll(mounts []wire.Mount, spec *specs.Spec) error {
	targets := make([]string, len(mounts))
	for i, m := range mounts {
		source, err := c.source(m)
		if err != nil {
			return err
		}
		targets[i] = c.path("mnt/" + strconv.Itoa(i))
		bind := crun.Bind{Source: source, SubPath: m.SubPath, Target: targets[i], ReadOnly: m.ReadOnly}
		if err := bind.Mount(); err != nil {
			return invalid(err)
		}
		c.undo.add(func() error { return unmount(targets[i]) })
	}
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		if number, ok := strings.CutPrefix(m.Source, strings.TrimSuffix(wire.MountSource(0), "0")); ok {
			n, err := strconv.Atoi(number)
			if err != nil || n < 0 || n >= len(targets) {
				return wire.Errorf(wire.CodeInvalidRequest, "the spec has a mount from %q, and there are %d mounts", m.Source, len(targets))
			}
			m.Source = targets[n]
		} else if m.Source == "/dev/shm" {
			m.Source = c.s.path(shmName)
		}
	}
	return nil
}

// source is where a mount comes from.
func (c *container) source(m wire.Mount) (string, error) {
	switch m.Kind {
	case wire.MountCopy:
		return existing(c.s.path(copiesName, m.Name), "volume", m.Name)
	case wire.MountShare:
		return existing(c.s.path(sharesName, m.Name), "share", m.Name)
	case wire.MountScratch:
		path := c.s.path(scratchName, "volumes", m.Name)
		return path, makeVolume(path, m)
	case wire.MountTmpfs:
		return c.s.useTmpfs(m)
	case wire.MountImage:
		path, release, err := c.s.useImage(*m.Image)
		if err == nil {
			c.undo.add(release)
		}
		return path, err
	case wire.MountMessage:
		c.message = c.path("message")
		f, err := os.OpenFile(c.message, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666)
		if err == nil {
			err = errors.Join(f.Chmod(0o666), f.Close()) // whatever the umask: the container may be any user
		}
		return c.message, err
	}
	return "", wire.Errorf(wire.CodeInvalidRequest, "there is no kind of mounts %q", m.Kind)
}

func existing(path, what, name string) (string, error) {
	if _, err := os.Stat(path); err != nil {
		return "", wire.Errorf(wire.CodeInvalidRequest, "there is no %s %q in the VM", what, name)
	}
	return path, nil
}

// makeVolume makes the directory of a volume, unless it is there.
func makeVolume(path string, m wire.Mount) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil
		}
		return err
	}
	if err := unix.Chown(path, 0, int(m.GID)); err != nil {
		return fmt.Errorf("cannot make the volume %q: chown: %w", m.Name, err)
	}
	if err := unix.Chmod(path, modeOf(m)); err != nil { // after chown, which takes the set-group-ID bit away
		return fmt.Errorf("cannot make the volume %q: chmod: %w", m.Name, err)
	}
	return nil
}

func modeOf(m wire.Mount) uint32 {
	if m.Mode == 0 {
		return 0o777
	}
	return m.Mode
}

// useTmpfs mounts a tmpfs of the pod, unless it is mounted. It stays until the VM ends.
func (s *Server) useTmpfs(m wire.Mount) (string, error) {
	s.setup.Lock()
	defer s.setup.Unlock()
	path := s.path(tmpfsName, m.Name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return "", err
	}
	options := fmt.Sprintf("mode=%04o,gid=%d", modeOf(m), m.GID)
	if m.Bytes > 0 {
		options += fmt.Sprintf(",size=%d", m.Bytes)
	}
	if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return "", errors.Join(fmt.Errorf("cannot make the volume %q: tmpfs: %w", m.Name, err), os.Remove(path))
	}
	return path, nil
}
