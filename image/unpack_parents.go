package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/safepath"
	"github.com/magikrun/magikpod/pod"
)

const (
	// maxDepth is how many directories deep a file of a layer, or the target of a link, may lie.
	maxDepth = 255
	// maxMissing is how many symlinks to nothing are followed for one name; as many as the kernel
	// follows to something (path_resolution(7)).
	maxMissing = 40
	// freeDepth is how deep files may lie for nothing. The library's look-ups take time by the
	// square of a name's depth.
	freeDepth = 32
	// linkWork is what a name counts whose directory is found through symlinks: forty of them may
	// take as many look-ups. Archives that programs make have none.
	linkWork = 1024
)

// place makes the directory of an entry, and names the entry by a path without symlinks: the
// library behind it looks each part of a name up on its own, and follows 255 symlinks from the
// start each. Of a hard link the target's directory is named like that too.
func (u *unpacker) place(h *tar.Header) error {
	name, err := u.realName(h.Name, true)
	if err == nil && h.Typeflag == tar.TypeLink {
		h.Linkname, err = u.realName(h.Linkname, false)
	}
	if err == nil && h.Typeflag == tar.TypeSymlink && depth(h.Linkname) > maxDepth {
		err = invalid("the target of the link %.200q is more than %d directories deep", h.Name, maxDepth)
	}
	h.Name = name
	return err
}

// realName resolves the directory of a name in the layer as chroot(2) to it would, and makes what
// is missing of it if wanted.
func (u *unpacker) realName(name string, missing bool) (string, error) {
	name = filepath.Join("/", name)
	if depth(name) > maxDepth {
		return "", invalid("%.200q is more than %d directories deep", name, maxDepth)
	}
	dir, base := filepath.Split(name)
	links := 0
	f, err := u.openDir(filepath.Clean(dir), missing, &links)
	if err != nil {
		return "", fmt.Errorf("%.200q: %w", name, err)
	}
	defer f.Close()
	real, err := u.pathOf(f)
	if err != nil {
		return "", err
	}
	d, work := depth(real)+1, 0
	switch {
	case d > maxDepth:
		return "", invalid("%.200q is more than %d directories deep", name, maxDepth)
	case d > freeDepth:
		work = d * d
	}
	if real != filepath.Clean(dir) {
		work += linkWork
	}
	return strings.TrimPrefix(filepath.Join(real, base), "/"), u.work(work)
}

func depth(name string) int { return strings.Count(name, "/") }

// work counts look-ups of components of names.
func (u *unpacker) work(n int) error {
	if u.looked += int64(n); u.looked > u.limits.MaxPathWork {
		return pod.Errorf(pod.Exhausted, "the layer has too many files in deep directories")
	}
	return nil
}

// openDir opens a directory of the layer (O_PATH). With missing it makes what is missing of it.
func (u *unpacker) openDir(dir string, missing bool, links *int) (*os.File, error) {
	f, err := safepath.Open(u.top, dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if !missing || !errors.Is(err, unix.ENOENT) || dir == "/" {
		return f, err
	}
	parent, err := u.openDir(filepath.Dir(dir), true, links)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	real, err := u.pathOf(parent)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(real, filepath.Base(dir))
	if depth(path) > maxDepth {
		return nil, invalid("it is more than %d directories deep", maxDepth)
	}
	if target, err := os.Readlink(filepath.Join(u.root, path)); err == nil { // to nothing, that is made too
		if *links++; *links > maxMissing {
			return nil, unix.ELOOP
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(real, target)
		}
		return u.openDir(filepath.Join("/", target), true, links)
	}
	if err := u.makeDir(path); err != nil {
		return nil, err
	}
	return safepath.Open(u.top, path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// pathOf is the path of an open directory in the layer.
func (u *unpacker) pathOf(f *os.File) (string, error) {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	rest, ok := strings.CutPrefix(path, u.root)
	if err == nil && !ok {
		err = fmt.Errorf("%q is not in %q", path, u.root)
	}
	return filepath.Join("/", rest), err
}

// makeDir makes a directory that the archive only implies: as it is in the layers below, else
// root's with mode 0755.
func (u *unpacker) makeDir(path string) error {
	if err := u.addFile(len(path) / 8); err != nil {
		return err
	}
	full := filepath.Join(u.root, path)
	if err := os.Mkdir(full, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(full, 0o755); err != nil { // whatever the umask
		return err
	}
	if err := u.work(len(u.parents) * depth(path)); err != nil {
		return err
	}
	for _, parent := range u.parents {
		below, err := u.below(parent, path)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil || below == nil {
			return err
		}
		defer below.Close()
		return copyDir(full, fmt.Sprintf("/proc/self/fd/%d", below.Fd()))
	}
	return nil
}

// below opens a directory of a layer below. Nil: something that is no directory is in its place,
// and hides what is further below.
func (u *unpacker) below(parent, path string) (*os.File, error) {
	root, err := safepath.OpenRoot(parent)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := safepath.Open(root, path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, nil
	}
	return f, err
}

// copyDir gives a directory the owner, the mode and the attributes of another one.
func copyDir(to, from string) error {
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		return err
	}
	if err := os.Chown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return err
	}
	names := make([]byte, 64<<10) // the most that there can be (xattr(7))
	n, err := unix.Listxattr(from, names)
	if err != nil {
		return ignoreNone(err)
	}
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.") {
			continue
		}
		size, err := unix.Getxattr(from, name, value)
		if err == nil {
			err = unix.Setxattr(to, name, value[:size], 0)
		}
		if err := ignoreNone(err); err != nil {
			return fmt.Errorf("attribute %.100q: %w", name, err)
		}
	}
	return nil
}

// ignoreNone is err, but for a file system without extended attributes.
func ignoreNone(err error) error {
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENODATA) {
		return nil
	}
	return err
}
