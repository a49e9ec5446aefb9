package crun

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/errkind"
	"github.com/magikrun/magikpod/internal/safepath"
)

// maxMountOptions is what mount(2) takes: one page, with the NUL.
const maxMountOptions = 4095

// Overlay is a container's root file system.
type Overlay struct {
	// LayersDir is the directory that Lower is relative to, so that many layers fit into the one
	// page that mount(2) takes; empty: Lower is absolute. It becomes the process's working
	// directory.
	LayersDir string `json:"layersDir"`
	// Lower are the read-only layers, the lowest first (runtime.Rootfs.Layers as it is).
	Lower []string `json:"lower"`
	// Upper and Work are made when they are missing, with the mode 0755 and 0700. Both empty: a
	// read-only overlay without a writable layer.
	Upper string `json:"upper,omitempty"`
	Work  string `json:"work,omitempty"`
	// Target is the mount point; it is made when it is missing.
	Target string `json:"target"`
}

// Mount mounts it. Invalid: its options cannot be given to the kernel.
func (o *Overlay) Mount() error {
	options, err := o.options()
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
	if o.LayersDir != "" {
		if err := os.Chdir(o.LayersDir); err != nil {
			return fmt.Errorf("cannot mount root file system: %w", err)
		}
	}
	if err := unix.Mount("overlay", o.Target, "overlay", 0, options); err != nil {
		return fmt.Errorf("cannot mount root file system of %d layers on %s: overlay: %w", len(o.Lower), o.Target, err)
	}
	return nil
}

// options builds the option string, the uppermost layer first as overlayfs wants it. index,
// metacopy and redirect_dir are switched off: they bind the writable layer to these very lower
// directories, and redirects in a layer that came from elsewhere are a way out of it.
func (o *Overlay) options() (string, error) {
	if len(o.Lower) == 0 {
		return "", errkind.Errorf(errkind.Invalid, "the image has no layers")
	}
	if (o.Upper == "") != (o.Work == "") {
		return "", errkind.Errorf(errkind.Invalid, "upper and work directory go together")
	}
	lower := make([]string, 0, len(o.Lower))
	for i := len(o.Lower) - 1; i >= 0; i-- {
		lower = append(lower, o.Lower[i])
	}
	if o.Upper == "" && len(lower) == 1 {
		// overlayfs wants two lower directories when there is no upper one, and Linux 6.18 two that
		// are not the same. The mount point is empty.
		lower = append(lower, o.Target)
	}
	for _, p := range append([]string{o.Upper, o.Work}, lower...) {
		if strings.ContainsAny(p, ":,\\\"\x00") {
			return "", errkind.Errorf(errkind.Invalid, "the path %q cannot be used in mount options", p)
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
		return "", errkind.Errorf(errkind.Invalid, "the options for %d layers are %d bytes long, and the kernel takes %d", len(lower), len(options), maxMountOptions)
	}
	return options, nil
}

// Bind is one volume, or a part of one, that is bound to a path outside of the container's reach.
type Bind struct {
	// Source is a directory or a file. (A shared tmpfs of the pod: its path in the pod's mount
	// namespace.)
	Source string `json:"source"`
	// SubPath is resolved below Source so that no symlink leads out of it; a missing directory is
	// made. Empty: Source itself.
	SubPath string `json:"subPath,omitempty"`
	// Target is the mount point, c/NAME/mnt/N; the directory or the file is made, as the source is
	// one or the other.
	Target string `json:"target"`
	// ReadOnly makes this mount read-only (mounts below it keep what they have, as in Kubernetes).
	ReadOnly bool `json:"readOnly,omitempty"`
}

// Mount makes the volume ready at its target. Everything is kept by descriptors: nothing that a
// container may do to the volume at the same time leads out of it.
func (b *Bind) Mount() error {
	handle, err := b.open()
	if err != nil {
		return fmt.Errorf("cannot bind %s: %w", filepath.Join(b.Source, b.SubPath), err)
	}
	defer handle.Close()
	source := int(handle.Fd())
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

// open opens (O_PATH) what is to be bound. Missing directories of a sub-path get the mode 0750 and,
// as with the kubelet, belong to root.
func (b *Bind) open() (*os.File, error) {
	if b.SubPath == "" {
		fd, err := unix.Open(b.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), b.Source), nil
	}
	if filepath.IsAbs(b.SubPath) {
		return nil, errkind.Errorf(errkind.Invalid, "subPath %q is absolute", b.SubPath)
	}
	if slices.Contains(strings.Split(b.SubPath, "/"), "..") {
		return nil, errkind.Errorf(errkind.Invalid, "subPath %q contains .. as an element", b.SubPath)
	}
	root, err := safepath.OpenRoot(b.Source)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := safepath.Open(root, b.SubPath, unix.O_PATH, 0)
	if errors.Is(err, unix.ENOENT) {
		f, err = safepath.MkdirAll(root, b.SubPath, 0o750)
	}
	if err != nil {
		return nil, fmt.Errorf("subPath %q: %w", b.SubPath, err)
	}
	return f, nil
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
