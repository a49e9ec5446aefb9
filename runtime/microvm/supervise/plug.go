package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/nsfile"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// AttachDisk gives a disk to a running machine, once: one that is there already stays. It returns where the guest finds it.
func AttachDisk(ctx context.Context, c *Config, d vmm.Disk) (vmm.Place, error) {
	driver, err := vmm.Find(c.VM.Driver)
	if err != nil {
		return vmm.Place{}, err
	}
	control, err := driver.Control(ctx, &c.VM)
	if err != nil {
		return vmm.Place{}, err
	}
	defer control.Close()
	mode := os.O_RDWR
	if d.ReadOnly {
		mode = os.O_RDONLY
	}
	f, err := os.OpenFile(d.Path, mode, 0)
	if err != nil {
		return vmm.Place{}, fmt.Errorf("cannot attach disk: %w", err)
	}
	defer f.Close()
	if dir := driver.Can(&c.VM).PlugDir; dir != "" {
		// It opens the file itself.
		state, err := c.ReadState()
		if err == nil {
			err = bindOnce(state.Monitor, f, d, filepath.Join(dir, d.Serial))
		}
		if err != nil {
			return vmm.Place{}, fmt.Errorf("cannot attach disk %s: %w", d.Serial, err)
		}
	}
	return control.AttachDisk(ctx, d, f)
}

// imageSuffix ends the names of images in the directory that a machine shares; other names there have nothing to do with it.
const imageSuffix = ".erofs"

// ShareDisk is AttachDisk for a machine whose places for disks are all taken, and that shares a directory: the guest finds the image as a file in it.
func ShareDisk(c *Config, d vmm.Disk) (vmm.Place, error) {
	name := d.Serial + imageSuffix
	f, err := os.Open(d.Path)
	if err == nil {
		defer f.Close()
		var state State
		if state, err = c.shareState(name); err == nil {
			err = bindOnce(state.Share, f, d, filepath.Join(vmm.SharedDir, name))
		}
	}
	if err != nil {
		return vmm.Place{}, fmt.Errorf("cannot share disk %s with the machine: %w", d.Serial, err)
	}
	return vmm.Place{Share: c.VM.Share.Tag, File: name}, nil
}

// BindShare makes a directory or a file of the host appear as name in the directory that the machine shares; with readOnly the host's kernel refuses writes. A
// name that is there already is mounted over. name has no slashes in it.
func BindShare(c *Config, name, source string, readOnly bool) error {
	state, err := c.shareState(name)
	if err == nil {
		err = bindInto(state.Share, source, filepath.Join(vmm.SharedDir, name), readOnly)
	}
	if err != nil {
		return fmt.Errorf("cannot share %s with the machine: %w", source, err)
	}
	return nil
}

func (c *Config) shareState(name string) (State, error) {
	if name == "" || strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
		return State{}, fmt.Errorf("%q is not a name", name)
	}
	state, err := c.ReadState()
	if err == nil && state.Share.PID == 0 {
		err = errors.New("the machine shares no directory")
	}
	return state, err
}

// bindInto mounts a part of this mount namespace in that of another process. Mounts below the source come along.
func bindInto(process nsfile.Owner, source, target string, readOnly bool) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.AT_RECURSIVE|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(tree)
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return inMountNS(process, func() error {
		return mountAt(tree, target, st.Mode&unix.S_IFMT)
	})
}

// bindOnce is bindInto for a disk that is open as f, unless it is there already.
func bindOnce(process nsfile.Owner, f *os.File, d vmm.Disk, target string) error {
	var want unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &want); err != nil {
		return err
	}
	there := false
	err := inMountNS(process, func() error {
		var got unix.Stat_t
		there = unix.Lstat(target, &got) == nil && got.Dev == want.Dev && got.Ino == want.Ino
		return nil
	})
	if err != nil || there {
		return err
	}
	return bindInto(process, d.Path, target, d.ReadOnly)
}

// mountAt mounts a tree whose root is of a kind (S_IFDIR, ...) at a path, which is made when it is missing.
func mountAt(tree int, path string, kind uint32) error {
	point, err := mountPoint(path, kind)
	if err != nil {
		return err
	}
	defer unix.Close(point)
	if err := unix.MoveMount(tree, "", point, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// mountPoint makes an empty directory or file (kind is S_IFDIR, or anything else) unless there is one, and what leads to it, and opens it (O_PATH). The directory may be one that a guest
// writes to: what is there under the name may be a link that leads to the host's files, or a FIFO that nobody ever opens. Neither is followed or opened.
func mountPoint(path string, kind uint32) (int, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return -1, err
	}
	parent, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer unix.Close(parent)
	name := filepath.Base(path)
	if kind == unix.S_IFDIR {
		err = unix.Mkdirat(parent, name, 0o755)
	} else {
		kind = unix.S_IFREG
		var made int
		if made, err = unix.Openat(parent, name, unix.O_RDONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644); err == nil {
			unix.Close(made)
		}
	}
	if err != nil && err != unix.EEXIST {
		return -1, &os.PathError{Op: "create", Path: path, Err: err}
	}
	point, err := unix.Openat(parent, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err = unix.Fstat(point, &st); err == nil && st.Mode&unix.S_IFMT != kind {
		err = fmt.Errorf("%s is there already, and is something else", path)
	}
	if err != nil {
		unix.Close(point)
		return -1, err
	}
	return point, nil
}

// inMountNS runs fn on a thread in the mount namespace of a process, at its root.
func inMountNS(process nsfile.Owner, fn func() error) error {
	ns, err := nsfile.Open(fmt.Sprintf("/proc/%d/ns/mnt", process.PID), process)
	if err != nil {
		return fmt.Errorf("cannot open the mount namespace of process %d: %w", process.PID, err)
	}
	defer unix.Close(ns)
	result := make(chan error, 1)
	go func() {
		goruntime.LockOSThread() // never unlocked: the thread ends with the goroutine
		// setns(2): a thread that shares its file system information cannot change the mount namespace.
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Setns(ns, unix.CLONE_NEWNS)
		}
		if err != nil {
			result <- fmt.Errorf("cannot join the mount namespace of process %d: %w", process.PID, err)
			return
		}
		result <- fn()
	}()
	return <-result
}
