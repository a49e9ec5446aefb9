package disks

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/runtime"
)

// withOverlay runs fn on a thread whose mount namespace has the layers of a root file system, merged and read-only, at target. Programs that fn starts are in it too.
func withOverlay(rootfs runtime.Rootfs, target string, fn func() error) error {
	result := make(chan error, 1)
	go func() {
		goruntime.LockOSThread() // never unlocked: the thread, and with it the mount, ends with the goroutine
		err := mountOverlay(rootfs, target)
		if err == nil {
			err = fn()
		}
		result <- err
	}()
	return <-result
}

// mountOverlay gives the thread a mount namespace of its own and mounts the layers there. The kernel does the merging: whiteouts and opaque directories are its own.
func mountOverlay(rootfs runtime.Rootfs, target string) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("cannot make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot make mounts private: %w", err)
	}
	lower := make([]string, 0, len(rootfs.Layers)+1)
	for i := len(rootfs.Layers) - 1; i >= 0; i-- {
		if strings.ContainsAny(rootfs.Layers[i], ":,\\\x00") {
			return fmt.Errorf("the layer %q cannot be used in mount options", rootfs.Layers[i])
		}
		lower = append(lower, rootfs.Layers[i])
	}
	if len(lower) == 1 {
		// overlayfs wants two lower directories, which must not be the same. A whiteout, of which a lowest layer has none, stays one below the guest's overlay.
		if err := unix.Mount(filepath.Join(rootfs.Dir, lower[0]), target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cannot mount the layer: %w", err)
		}
		return nil
	}
	options := "lowerdir=" + strings.Join(lower, ":")
	for _, feature := range []string{"metacopy", "redirect_dir"} {
		// What a layer says of it came from elsewhere.
		if _, err := os.Stat("/sys/module/overlay/parameters/" + feature); err == nil {
			options += "," + feature + "=off"
		}
	}
	if err := unix.Chdir(rootfs.Dir); err != nil {
		return fmt.Errorf("cannot enter the directory of the layers: %w", err)
	}
	err := unix.Mount("overlay", target, "overlay", unix.MS_RDONLY, options)
	if errors.Is(err, unix.ENODEV) {
		return errors.New("the kernel has no overlayfs")
	}
	if err != nil {
		return fmt.Errorf("cannot merge the layers: overlay: %w", err)
	}
	return unix.Chdir("/")
}
