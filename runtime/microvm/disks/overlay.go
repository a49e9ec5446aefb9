package disks

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/ownthread"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/crun"
)

// withOverlay runs fn on a thread whose mount namespace has the layers of a root file system,
// merged and read-only, at target. Programs that fn starts are in it too.
func withOverlay(rootfs runtime.Rootfs, target string, fn func() error) error {
	return ownthread.Run(func() error {
		if err := mountOverlay(rootfs, target); err != nil {
			return err
		}
		return fn()
	})
}

// mountOverlay gives the thread a mount namespace of its own and mounts the layers there. The
// kernel does the merging: whiteouts and opaque directories are its own.
func mountOverlay(rootfs runtime.Rootfs, target string) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("cannot make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot make mounts private: %w", err)
	}
	overlay := crun.Overlay{LayersDir: rootfs.Dir, Lower: rootfs.Layers, Target: target}
	if err := overlay.Mount(); err != nil {
		return err
	}
	return unix.Chdir("/")
}
