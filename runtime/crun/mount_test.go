package crun

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// inMounts runs fn on a thread with mounts of its own, where dir is a tmpfs.
func inMounts(t *testing.T, dir string, fn func() error) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: run the tests with sudo")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = unix.Mount("tmpfs", dir, "tmpfs", 0, "")
		}
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestReadOnlyOverlay: without a writable layer the layers are merged all the same, also when there
// is one only.
func TestReadOnlyOverlay(t *testing.T) {
	for name, layers := range map[string][]string{"one": {"1"}, "two": {"1", "2"}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			inMounts(t, dir, func() error {
				var err error
				for _, layer := range layers {
					path := filepath.Join(dir, "layers", layer)
					err = errors.Join(err, os.MkdirAll(path, 0o755), os.WriteFile(path+"/file", []byte(layer), 0o644))
				}
				top := filepath.Join(dir, "layers", layers[len(layers)-1])
				// A whiteout, which nobody may see, and a mode that the root is to have.
				err = errors.Join(err, unix.Mknod(top+"/gone", unix.S_IFCHR, 0), os.Chmod(top, 0o711))
				if err != nil {
					return err
				}
				target := dir + "/rootfs"
				if err := (&Overlay{LayersDir: dir + "/layers", Lower: layers, Target: target}).Mount(); err != nil {
					return err
				}
				if data, err := os.ReadFile(target + "/file"); err != nil || string(data) != layers[len(layers)-1] {
					t.Errorf("%q, %v", data, err)
				}
				if _, err := os.Lstat(target + "/gone"); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the whiteout: %v", err)
				}
				if info, err := os.Stat(target); err != nil || info.Mode().Perm() != 0o711 {
					t.Errorf("the root: %v, %v", info, err)
				}
				if err := os.WriteFile(target+"/new", nil, 0o644); !errors.Is(err, unix.EROFS) {
					t.Errorf("written: %v", err)
				}
				return nil
			})
		})
	}
}
