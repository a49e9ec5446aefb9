package safepath

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

const (
	// maxOpenDepth is how deep the removal descends with one descriptor a level. What lies deeper
	// is moved up to the top first, so that neither descriptors nor stack grow with the depth of a
	// hostile tree.
	maxOpenDepth = 64
	// entriesAtOnce is how many names of a directory are read at a time.
	entriesAtOnce = 512
)

// RemoveAll removes path and everything below it; that it does not exist is no error. The directory
// that path is in is trusted, what is below path is not: symlinks are removed and never followed,
// mount points stay and are an error (EBUSY) after all else has been removed, immutable and
// append-only flags are cleared. It works for trees of any depth and width with a bounded number of
// descriptors, and ends when ctx does, also when somebody goes on writing into the tree.
func RemoveAll(ctx context.Context, path string) error {
	dir, name := filepath.Split(filepath.Clean(path))
	if name == "" || name == "." || name == ".." {
		return &os.PathError{Op: "remove", Path: path, Err: unix.EINVAL}
	}
	if dir == "" {
		dir = "."
	}
	parent, err := os.OpenFile(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return err
	}
	defer parent.Close()
	r := remover{ctx: ctx}
	if err := r.remove(parent, name, 0); err != nil {
		return &os.PathError{Op: "remove", Path: path, Err: err}
	}
	return nil
}

// errMountPoint is what EBUSY means when something is to be removed, renamed or entered.
var errMountPoint = fmt.Errorf("it is a mount point: %w", unix.EBUSY)

// remover is one run of RemoveAll.
type remover struct {
	ctx  context.Context
	top  *os.File // the root of the tree: what is too deep is moved here
	next int      // number of the next name in top
}

// remove removes the entry name of dir. The depth is that of dir, in levels below the trusted parent.
func (r *remover) remove(dir *os.File, name string, depth int) error {
	if err := r.ctx.Err(); err != nil {
		return context.Cause(r.ctx)
	}
	err := unlink(dir, name, 0)
	if !errors.Is(err, unix.EISDIR) {
		return named(name, err)
	}
	err = unlink(dir, name, unix.AT_REMOVEDIR)
	if !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		return named(name, err)
	}
	if depth > maxOpenDepth {
		return named(name, r.moveUp(dir, name))
	}
	sub, err := openDir(dir, name)
	if err != nil {
		return named(name, err)
	}
	defer sub.Close()
	if depth == 0 {
		r.top = sub
	}
	if err := r.empty(sub, depth+1); err != nil {
		return named(name, err)
	}
	return named(name, unlink(dir, name, unix.AT_REMOVEDIR))
}

// empty removes all entries of dir, as long as it gets on. The error is the first one of the last round.
func (r *remover) empty(dir *os.File, depth int) error {
	for {
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
		removed, first, err := r.round(dir, depth)
		switch {
		case err != nil:
			return err
		case first == nil && removed == 0:
			return nil
		case removed == 0 || r.ctx.Err() != nil:
			return first
		}
	}
}

// round goes once over the entries of dir; it returns how many it removed, and why the first that
// remains does. err is a failure to read dir.
func (r *remover) round(dir *os.File, depth int) (removed int, first, err error) {
	for {
		names, err := dir.Readdirnames(entriesAtOnce)
		for _, name := range names {
			if err := r.remove(dir, name, depth); err == nil {
				removed++
			} else if first == nil {
				first = err
			}
			if err := r.ctx.Err(); err != nil {
				return removed, context.Cause(r.ctx), nil
			}
		}
		if errors.Is(err, io.EOF) {
			return removed, first, nil
		} else if err != nil {
			return removed, first, err
		}
	}
}

// moveUp moves a directory that is too deep to the top of the tree, under a name that is free there.
func (r *remover) moveUp(dir *os.File, name string) error {
	for {
		if err := r.ctx.Err(); err != nil {
			return context.Cause(r.ctx)
		}
		r.next++
		err := withFlagsCleared(dir, name, func() error {
			return unix.Renameat2(int(dir.Fd()), name, int(r.top.Fd()), fmt.Sprintf(".deep-%d", r.next), unix.RENAME_NOREPLACE)
		})
		runtime.KeepAlive(r.top)
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
}

// unlink is unlinkat; a name that is gone already is fine.
func unlink(dir *os.File, name string, flags int) error {
	err := withFlagsCleared(dir, name, func() error { return unix.Unlinkat(int(dir.Fd()), name, flags) })
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EBUSY):
		return errMountPoint
	}
	return err
}

// openDir opens a subdirectory that is really one: no symlink, no mount point.
func openDir(dir *os.File, name string) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd, err := openat2(int(dir.Fd()), name, &how)
	runtime.KeepAlive(dir)
	if errors.Is(err, unix.EXDEV) {
		return nil, errMountPoint
	} else if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// withFlagsCleared calls do, and if that is not permitted, which for root means an immutable or
// append-only flag, clears these flags of the directory and of the entry and calls do again.
func withFlagsCleared(dir *os.File, name string, do func() error) error {
	err := do()
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	clearFlags(dir)
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV}
	if fd, err := openat2(int(dir.Fd()), name, &how); err == nil {
		handle := os.NewFile(uintptr(fd), name)
		if entry, err := Reopen(handle, unix.O_RDONLY); err == nil {
			clearFlags(entry)
			entry.Close()
		}
		handle.Close()
	}
	return do()
}

// clearFlags clears the flags that forbid removing. A file system without flags says so, and the
// caller's second try what is wrong.
func clearFlags(f *os.File) {
	const forbidding = unix.STATX_ATTR_IMMUTABLE | unix.STATX_ATTR_APPEND // FS_IMMUTABLE_FL and FS_APPEND_FL have the same values
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil && flags&forbidding != 0 {
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^forbidding)
	}
	runtime.KeepAlive(f)
}

// named says which entry an error is about. Names are quoted: they are hostile.
func named(name string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if _, ok := errors.AsType[*entryError](err); ok {
		return err // the innermost name says most
	}
	return &entryError{name, err}
}

type entryError struct {
	name string
	err  error
}

func (e *entryError) Error() string { return fmt.Sprintf("%.80q: %v", e.name, e.err) }
func (e *entryError) Unwrap() error { return e.err }
