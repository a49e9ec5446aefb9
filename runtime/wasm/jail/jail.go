//go:build linux

package jail

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/confine"
	"github.com/magikrun/magikpod/internal/safepath"
)

// mountVolumes mounts the volumes in the container's root. Paths in it are the image's, and lead
// nowhere else.
func mountVolumes(config *Config) error {
	root, err := safepath.OpenRoot(config.Root)
	if err != nil {
		return fmt.Errorf("cannot open the root file system: %w", err)
	}
	defer root.Close()
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID} // an image may have device nodes
	if err := unix.MountSetattr(unix.AT_FDCWD, config.Root, 0, &attr); err != nil {
		return fmt.Errorf("cannot take devices from the root file system: %w", err)
	}
	for _, m := range config.Mounts {
		if err := mountVolume(root, m); err != nil {
			return fmt.Errorf("cannot mount a volume at %s: %w", m.Destination, err)
		}
	}
	if dir := strings.Trim(path.Clean("/"+config.Cwd), "/"); dir != "" {
		f, err := safepath.MkdirAll(root, dir, 0o755)
		if err != nil {
			return fmt.Errorf("cannot begin in the directory %s: %w", config.Cwd, err)
		}
		_ = f.Close()
	}
	if !config.ReadOnlyRoot {
		return nil
	}
	attr = unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, config.Root, 0, &attr); err != nil {
		return fmt.Errorf("cannot make the root file system read-only: %w", err)
	}
	return nil
}

func mountVolume(root *os.File, m Mount) error {
	tree, dir, err := volumeTree(m)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	if m.ReadOnly {
		attr, flags := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, uint(unix.AT_EMPTY_PATH)
		if m.Recursive {
			flags |= unix.AT_RECURSIVE
		}
		if err := unix.MountSetattr(tree, "", flags, &attr); err != nil {
			return fmt.Errorf("mount_setattr: %w", err)
		}
	}
	propagation := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if m.Slave {
		propagation.Propagation = unix.MS_SLAVE
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &propagation); err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return moveTo(root, tree, m.Destination, dir)
}

// volumeTree opens what is to be mounted: a copy of the source's mounts, or a new tmpfs.
func volumeTree(m Mount) (tree int, dir bool, err error) {
	if m.Source == "" {
		tree, err := newTmpfs()
		return tree, true, err
	}
	tree, err = unix.OpenTree(unix.AT_FDCWD, m.Source, unix.AT_RECURSIVE|unix.AT_SYMLINK_NOFOLLOW|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, false, fmt.Errorf("open_tree: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		unix.Close(tree)
		return -1, false, err
	}
	return tree, st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

func newTmpfs() (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "mode", "1777"); err != nil {
		return -1, fmt.Errorf("fsconfig: %w", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("fsconfig: %w", err)
	}
	tree, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("fsmount: %w", err)
	}
	return tree, nil
}

// mountPoint opens (O_PATH) the directory or file to mount on, which is made when it is missing.
func mountPoint(root *os.File, destination string, dir bool) (*os.File, error) {
	name := strings.TrimPrefix(path.Clean("/"+destination), "/")
	if dir {
		return safepath.MkdirAll(root, name, 0o755)
	}
	parent, err := safepath.MkdirAll(root, path.Dir(name), 0o755)
	if err != nil {
		return nil, err
	}
	_ = parent.Close()
	f, err := safepath.Open(root, name, os.O_RDONLY|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	_ = f.Close()
	return safepath.Open(root, name, unix.O_PATH, 0)
}

// enterRoot makes the container's root the root of this process, and takes the host's away.
func enterRoot(config *Config) error {
	if err := os.Chdir(config.Root); err != nil {
		return err
	}
	return confine.EnterRoot()
}

// dropPrivileges gives up all capabilities, in all threads, for good, and becomes the container's user.
func dropPrivileges(config *Config) error {
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil || has != 1 {
			continue
		}
		if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0); errno != 0 {
			return fmt.Errorf("cannot drop capability %d: %w", c, errno)
		}
	}
	groups := make([]int, 0, len(config.Groups))
	for _, g := range config.Groups {
		groups = append(groups, int(g))
	}
	err := syscall.Setgroups(groups)
	if err == nil {
		err = syscall.Setresgid(int(config.GID), int(config.GID), int(config.GID))
	}
	if err == nil {
		err = syscall.Setresuid(int(config.UID), int(config.UID), int(config.UID))
	}
	if err != nil {
		return fmt.Errorf("cannot become user %d, group %d: %w", config.UID, config.GID, err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&none[0])), 0); errno != 0 {
		return fmt.Errorf("cannot drop capabilities: %w", errno)
	}
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("cannot refuse new privileges: %w", errno)
	}
	// As those with capabilities are: root of another pod with hostPID, but without SYS_PTRACE,
	// sees nothing of it (ptrace(2)).
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot keep others from looking: %w", err)
	}
	return checkDropped()
}

// checkDropped trusts nothing: no descriptor and no thread may be left that has more than it should.
func checkDropped() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&header, &have[0]); err != nil {
		return fmt.Errorf("cannot read capabilities: %w", err)
	}
	for _, h := range have {
		if h.Effective|h.Permitted|h.Inheritable != 0 {
			return errors.New("cannot drop capabilities: some are left")
		}
	}
	for fd := 3; fd < 1024; fd++ {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return fmt.Errorf("cannot jail: descriptor %s is a directory of the host", strconv.Itoa(fd))
		}
	}
	return nil
}
