// Package attach gives disks and directories of the host to a VM that runs.
//
// A disk goes through the VMM's control, and where the VMM opens files itself also into its jail; a
// directory, or a disk that finds no slot any more, goes into the directory that virtiofsd serves.
// Both are mounts in the mount namespace of a process that
// [github.com/magikrun/magikpod/runtime/microvm/supervise] has started: it is magikvmm that runs a
// VM, and the daemon that attaches.
//
// Layer: L2. It knows VMs and their drivers, no pods.
package attach

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/mounttree"
	"github.com/magikrun/magikpod/internal/nsfile"
	"github.com/magikrun/magikpod/internal/ownthread"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// VM is a VM that runs.
type VM struct {
	Config *vmm.Config
	// State returns its processes.
	State func() (vmm.State, error)
}

// Disk attaches a disk, once: one that is there already stays. It returns where the guest finds it.
func (v VM) Disk(ctx context.Context, d vmm.Disk) (vmm.Place, error) {
	driver, err := vmm.Find(v.Config.Driver)
	if err != nil {
		return vmm.Place{}, err
	}
	control, err := driver.Control(ctx, v.Config)
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
	if dir := driver.Can(v.Config).AttachDir; dir != "" {
		// It opens the file itself.
		state, err := v.State()
		if err == nil {
			err = bindOnce(state.Monitor, f, d, filepath.Join(dir, d.Serial))
		}
		if err != nil {
			return vmm.Place{}, fmt.Errorf("cannot attach disk %s: %w", d.Serial, err)
		}
	}
	return control.AttachDisk(ctx, d, f)
}

// imageSuffix ends the names of images in the directory that a VM shares; other names there have
// nothing to do with it.
const imageSuffix = ".erofs"

// ShareDisk is Disk for a VM whose slots for disks are all taken, and that shares a directory: the
// guest finds the image as a file in it.
func (v VM) ShareDisk(d vmm.Disk) (vmm.Place, error) {
	name := d.Serial + imageSuffix
	f, err := os.Open(d.Path)
	if err == nil {
		defer f.Close()
		var share nsfile.Owner
		if share, err = v.share(name); err == nil {
			err = bindOnce(share, f, d, filepath.Join(vmm.SharedDir, name))
		}
	}
	if err != nil {
		return vmm.Place{}, fmt.Errorf("cannot share disk %s with the VM: %w", d.Serial, err)
	}
	return vmm.Place{Share: v.Config.Share.Tag, File: name}, nil
}

// Share makes a directory or a file of the host appear as name in the directory that the VM shares;
// with readOnly the host's kernel refuses writes. A name that is there already is mounted over.
// name has no slashes in it.
func (v VM) Share(name, source string, readOnly bool) error {
	share, err := v.share(name)
	if err == nil {
		err = bindInto(share, source, filepath.Join(vmm.SharedDir, name), readOnly)
	}
	if err != nil {
		return fmt.Errorf("cannot share %s with the VM: %w", source, err)
	}
	return nil
}

// share is the process that serves the shared directory, in which name is to appear.
func (v VM) share(name string) (nsfile.Owner, error) {
	if name == "" || strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
		return nsfile.Owner{}, fmt.Errorf("%q is not a name", name)
	}
	state, err := v.State()
	if err == nil && state.Share.PID == 0 {
		err = errors.New("the VM shares no directory")
	}
	return state.Share, err
}

// bindInto mounts a part of this mount namespace in that of another process. Mounts below the
// source come along.
func bindInto(process nsfile.Owner, source, target string, readOnly bool) error {
	attributes := uint64(unix.MOUNT_ATTR_NODEV)
	if readOnly {
		attributes |= unix.MOUNT_ATTR_RDONLY
	}
	tree, err := mounttree.Clone(source, attributes)
	if err != nil {
		return err
	}
	defer tree.Close()
	return inMountNS(process, func() error { return tree.MountAt(target) })
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

// inMountNS runs fn on a thread in the mount namespace of a process, at its root.
func inMountNS(process nsfile.Owner, fn func() error) error {
	ns, err := nsfile.Open(fmt.Sprintf("/proc/%d/ns/mnt", process.PID), process)
	if err != nil {
		return fmt.Errorf("cannot open the mount namespace of process %d: %w", process.PID, err)
	}
	defer unix.Close(ns)
	return ownthread.Run(func() error {
		// setns(2): a thread that shares its file system information cannot change the mount namespace.
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Setns(ns, unix.CLONE_NEWNS)
		}
		if err != nil {
			return fmt.Errorf("cannot join the mount namespace of process %d: %w", process.PID, err)
		}
		return fn()
	})
}
