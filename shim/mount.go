package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxMountOptions is what mount(2) takes: one page, with the NUL.
const maxMountOptions = 4095

// mountOverlay mounts the container's root file system. Lower directories are named relative to the directory of the layers, so that many fit
// into the one page that mount(2) takes.
func mountOverlay(o *OverlayConfig) error {
	options, err := overlayOptions(o)
	if err != nil {
		return fmt.Errorf("cannot mount root file system: %w", err)
	}
	for _, dir := range []struct {
		path string
		mode os.FileMode
	}{{o.Upper, 0o755}, {o.Work, 0o700}, {o.Target, 0o755}} {
		if dir.path == "" {
			continue
		}
		if err := os.MkdirAll(dir.path, dir.mode); err != nil {
			return fmt.Errorf("cannot mount root file system: %w", err)
		}
	}
	// The upper directory is the container's /, whose mode must not depend on the umask.
	if o.Upper != "" {
		if err := os.Chmod(o.Upper, 0o755); err != nil {
			return fmt.Errorf("cannot mount root file system: %w", err)
		}
	}
	if err := os.Chdir(o.LayersDir); err != nil {
		return fmt.Errorf("cannot mount root file system: %w", err)
	}
	if err := unix.Mount("overlay", o.Target, "overlay", 0, options); err != nil {
		return fmt.Errorf("cannot mount root file system of %d layers on %s: overlay: %w", len(o.Lower), o.Target, err)
	}
	return nil
}

// overlayOptions builds the option string, the uppermost layer first as overlayfs wants it. index, metacopy and redirect_dir are switched off: they bind
// the writable layer to these very lower directories, and redirects in a layer that came from elsewhere are a way out of it.
func overlayOptions(o *OverlayConfig) (string, error) {
	if len(o.Lower) == 0 {
		return "", errors.New("the image has no layers")
	}
	if (o.Upper == "") != (o.Work == "") {
		return "", errors.New("upper and work directory go together")
	}
	lower := make([]string, 0, len(o.Lower))
	for i := len(o.Lower) - 1; i >= 0; i-- {
		lower = append(lower, o.Lower[i])
	}
	if o.Upper == "" && len(lower) == 1 {
		// overlayfs wants two lower directories when there is no upper one, and Linux 6.18 two that are not the same. The mount point is empty.
		lower = append(lower, o.Target)
	}
	for _, p := range append([]string{o.Upper, o.Work}, lower...) {
		if strings.ContainsAny(p, ":,\\\"\x00") {
			return "", fmt.Errorf("the path %q cannot be used in mount options", p)
		}
	}
	options := "lowerdir=" + strings.Join(lower, ":")
	if o.Upper != "" {
		options += ",upperdir=" + o.Upper + ",workdir=" + o.Work
	}
	for _, feature := range []string{"index", "metacopy", "redirect_dir"} {
		// A kernel without the feature does not know the option either.
		if _, err := os.Stat("/sys/module/overlay/parameters/" + feature); err == nil {
			options += "," + feature + "=off"
		}
	}
	if len(options) > maxMountOptions {
		return "", fmt.Errorf("the options for %d layers are %d bytes long, and the kernel takes %d", len(lower), len(options), maxMountOptions)
	}
	return options, nil
}

// mountBind makes one volume ready at its target. Everything is held by descriptors: nothing that a container may do to the volume at the same time
// leads out of it.
func mountBind(b *Bind) error {
	source, err := openSource(b)
	if err != nil {
		return fmt.Errorf("cannot bind %s: %w", filepath.Join(b.Source, b.SubPath), err)
	}
	defer unix.Close(source)
	var st unix.Stat_t
	if err := unix.Fstat(source, &st); err != nil {
		return fmt.Errorf("cannot bind %s: %w", b.Source, err)
	}
	if err := makeMountPoint(b.Target, st.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return fmt.Errorf("cannot bind %s: %w", b.Source, err)
	}
	tree, err := unix.OpenTree(source, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("cannot bind %s: open_tree: %w", b.Source, err)
	}
	defer unix.Close(tree)
	if b.ReadOnly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return fmt.Errorf("cannot bind %s read-only: mount_setattr: %w", b.Source, err)
		}
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, b.Target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("cannot bind %s to %s: move_mount: %w", b.Source, b.Target, err)
	}
	return nil
}

// openSource opens (O_PATH) what is to be bound.
func openSource(b *Bind) (int, error) {
	base, err := unix.Open(b.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil || b.SubPath == "" {
		return base, err
	}
	defer unix.Close(base)
	if filepath.IsAbs(b.SubPath) {
		return -1, fmt.Errorf("subPath %q is absolute", b.SubPath)
	}
	for part := range strings.SplitSeq(b.SubPath, "/") {
		if part == ".." {
			return -1, fmt.Errorf("subPath %q contains .. as an element", b.SubPath)
		}
	}
	fd, err := resolve(base, b.SubPath)
	if errors.Is(err, unix.ENOENT) {
		fd, err = makeBelow(base, b.SubPath)
	}
	return fd, err
}

// resolve opens path below base, in which symlinks cannot lead out of base: absolute ones start at it (openat2(2)).
func resolve(base int, path string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for range 100 {
		fd, err := unix.Openat2(base, path, &how)
		if err == nil {
			return fd, nil
		}
		// EAGAIN: something was renamed meanwhile, and the kernel could not be sure.
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return -1, fmt.Errorf("subPath %q: %w", path, err)
		}
	}
	return -1, fmt.Errorf("subPath %q: it is being changed all the time", path)
}

// makeBelow makes the missing directories of path below base, one by one, each in the directory that was opened before. They get the mode
// 0750 and, as with the kubelet, belong to root.
func makeBelow(base int, path string) (int, error) {
	done := ""
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." {
			continue
		}
		parent := base
		if done != "" {
			fd, err := resolve(base, done)
			if err != nil {
				return -1, err
			}
			parent = fd
		}
		err := unix.Mkdirat(parent, part, 0o750)
		if parent != base {
			unix.Close(parent)
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return -1, fmt.Errorf("subPath %q: mkdir: %w", path, err)
		}
		done = filepath.Join(done, part)
	}
	return resolve(base, path)
}

// makeMountPoint makes an empty directory or an empty file to mount on, unless it is there.
func makeMountPoint(path string, dir bool) error {
	if dir {
		return os.MkdirAll(path, 0o700)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func quoteJSON(s string) string {
	quoted, err := json.Marshal(s)
	if err != nil {
		panic("internal error: a string cannot be marshalled: " + err.Error())
	}
	return string(quoted)
}

// MountBind makes one volume ready at its target, for the agent of a machine. Nothing that a container does to the volume at the same time leads out of it.
func MountBind(b *Bind) error { return mountBind(b) }
