//go:build linux

package jail

import (
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/safepath"
	"github.com/magikrun/magikpod/runtime/wasm/engine"
)

// Where things are in the jail of wasmtime.
const (
	jailGuest  = "/guest" // the container's root file system
	jailModule = "/module.wasm"
)

// furnishJail puts the container's root file system into a new, otherwise empty one, with wasmtime,
// the files that it needs and the module beside it. It takes the place of the container's root;
// nothing in it can be written to but what the guest may write to.
func furnishJail(config *Config, module []byte) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot make the jail of wasmtime: %w", err)
		}
	}()
	guest, err := unix.OpenTree(unix.AT_FDCWD, config.Root, unix.AT_RECURSIVE|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(guest)
	tmpfs, err := newTmpfs()
	if err != nil {
		return err
	}
	defer unix.Close(tmpfs)
	if err := unix.MoveMount(tmpfs, "", unix.AT_FDCWD, config.Root, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	root, err := safepath.OpenRoot(config.Root)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, file := range config.Wasmtime {
		if err := showFile(root, file); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	f, err := safepath.Open(root, strings.TrimPrefix(jailModule, "/"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	_, err = f.Write(module)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	if err := moveTo(root, guest, jailGuest, true); err != nil {
		return err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	return unix.MountSetattr(tmpfs, "", unix.AT_EMPTY_PATH, &attr)
}

// showFile makes a file of the host appear in the jail, at the same path.
func showFile(root *os.File, file string) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, file, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC) // of a symlink what it names
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(tree)
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("it is no regular file")
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return moveTo(root, tree, path.Clean(file), false)
}

// moveTo mounts a tree in the jail.
func moveTo(root *os.File, tree int, destination string, dir bool) error {
	target, err := mountPoint(root, destination, dir)
	if err != nil {
		return err
	}
	defer target.Close()
	if err := unix.MoveMount(tree, "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// becomeWasmtime replaces this process, which is jailed by now.
func becomeWasmtime(config *Config) error {
	guest := engine.Config{Args: config.Args, Env: config.Env, Dirs: []engine.Dir{{Host: jailGuest, Guest: "/", Writable: true}}} // the kernel says what can be written to
	argv, env, err := engine.ExecWasmtime(config.Wasmtime[0], jailModule, engine.LoadOptions{MemoryBytes: config.MemoryBytes}, guest, len(config.Listen) > 0)
	if err != nil {
		return err
	}
	return fmt.Errorf("cannot execute %s: %w", argv[0], unix.Exec(argv[0], argv, env))
}
