package disks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"
)

// WriteDirectory writes a read-only image of a directory, or of a regular file, which is then alone
// in the root by its own name. Mount points below it are followed, symbolic links are not; nothing
// that somebody does to the directory meanwhile leads out of it. Hard links become files of their
// own. An image of more than limit bytes of content is refused.
func WriteDirectory(ctx context.Context, out, source string, limit int64) error {
	fd, err := unix.Open(source, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot make a disk of %s: %w", source, err)
	}
	f := os.NewFile(uintptr(fd), source)
	defer f.Close()
	if err := writeImage(ctx, out, f, limit); err != nil {
		return fmt.Errorf("cannot make a disk of %s: %w", source, errors.Join(err, os.Remove(out)))
	}
	return nil
}

// writeErofs writes an image of a directory that nobody changes.
func writeErofs(ctx context.Context, out, dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return writeImage(ctx, out, f, 1<<62)
}

func writeImage(ctx context.Context, out string, source *os.File, limit int64) error {
	image, err := os.OpenFile(out, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	w := erofs.Create(image, erofs.WithTempDir(filepath.Dir(out)))
	t := &tree{ctx: ctx, w: w, left: limit}
	var st unix.Stat_t
	err = unix.Fstat(int(source.Fd()), &st)
	switch {
	case err != nil:
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		err = t.directory("/", source, &st)
	case st.Mode&unix.S_IFMT == unix.S_IFREG:
		err = t.content("/"+filepath.Base(source.Name()), source, &st)
	default:
		err = errors.New("it is neither a directory nor a regular file")
	}
	return errors.Join(err, w.Close(), image.Close())
}

// tree copies a directory into an image. Everything is opened relative to its directory, without
// following links.
type tree struct {
	ctx  context.Context
	w    *erofs.Writer
	left int64 // bytes that content may still have
}

// directory copies a directory and what is in it.
func (t *tree) directory(name string, dir *os.File, st *unix.Stat_t) error {
	if err := t.w.Mkdir(name, fs.FileMode(st.Mode&0o777)); err != nil {
		return err
	}
	if err := t.attributes(name, fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), st, true); err != nil {
		return err
	}
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := t.ctx.Err(); err != nil {
			return context.Cause(t.ctx)
		}
		if err := t.entry(path.Join(name, entry.Name()), dir, entry.Name()); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) entry(name string, parent *os.File, base string) error {
	var st unix.Stat_t
	err := unix.Fstatat(int(parent.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil // removed meanwhile
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	at := fmt.Sprintf("/proc/self/fd/%d/%s", parent.Fd(), base)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR, unix.S_IFREG:
		return t.opened(name, parent, base)
	case unix.S_IFLNK:
		target, err := os.Readlink(at)
		if err != nil {
			return err
		}
		if err := t.w.Symlink(target, name); err != nil {
			return err
		}
	default:
		if err := t.w.Mknod(name, uint16(st.Mode), uint32(st.Rdev)); err != nil {
			return err
		}
	}
	return t.attributes(name, at, &st, false)
}

// opened copies what has to be opened: a file or a directory.
func (t *tree) opened(name string, parent *os.File, base string) error {
	fd, err := unix.Openat(int(parent.Fd()), base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return t.directory(name, f, &st)
	case unix.S_IFREG:
		return t.content(name, f, &st)
	}
	return fmt.Errorf("%s has become something else", name)
}

func (t *tree) content(name string, f *os.File, st *unix.Stat_t) error {
	out, err := t.w.Create(name)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, io.LimitReader(f, t.left+1))
	if t.left -= n; err == nil && t.left < 0 {
		err = pastLimit(name)
	}
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	return t.attributes(name, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), st, true)
}

func pastLimit(name string) error { return fmt.Errorf("its content is too big, at %s", name) }

// attributes copies owner, mode, time and extended attributes of the file at the path `at`, which
// is a link to the file itself if follow says so.
func (t *tree) attributes(name, at string, st *unix.Stat_t, follow bool) error {
	mode := fs.FileMode(st.Mode & 0o777)
	for _, bit := range []struct {
		bit  uint32
		mode fs.FileMode
	}{{unix.S_ISUID, fs.ModeSetuid}, {unix.S_ISGID, fs.ModeSetgid}, {unix.S_ISVTX, fs.ModeSticky}} {
		if st.Mode&bit.bit != 0 {
			mode |= bit.mode
		}
	}
	mtime := time.Unix(st.Mtim.Unix())
	if err := errors.Join(t.w.Chmod(name, mode), t.w.Chown(name, int(st.Uid), int(st.Gid)), t.w.Chtimes(name, mtime, mtime)); err != nil {
		return err
	}
	list, get := unix.Llistxattr, unix.Lgetxattr
	if follow {
		list, get = unix.Listxattr, unix.Getxattr
	}
	names, err := xattr(func(buf []byte) (int, error) { return list(at, buf) })
	if err != nil {
		return fmt.Errorf("%s: cannot list its extended attributes: %w", name, err)
	}
	for attr := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if attr == "" {
			continue
		}
		value, err := xattr(func(buf []byte) (int, error) { return get(at, attr, buf) })
		if err != nil {
			return fmt.Errorf("%s: cannot read its attribute %s: %w", name, attr, err)
		}
		if err := t.w.Setxattr(name, attr, string(value)); err != nil {
			return err
		}
	}
	return nil
}

// xattr calls a function that fills a buffer, with one that is big enough.
func xattr(get func(buf []byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 4 {
		buf := make([]byte, size)
		n, err := get(buf)
		switch {
		case err == nil:
			return buf[:n], nil
		case errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.ENODATA):
			return nil, nil
		case !errors.Is(err, unix.ERANGE) || size > 1<<20:
			return nil, err
		}
	}
}
