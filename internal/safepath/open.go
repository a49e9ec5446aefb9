package safepath

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// OpenRoot opens the directory path as a root for the other functions. The path itself is trusted:
// symlinks in it are followed.
func OpenRoot(path string) (*os.File, error) {
	fd, err := openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Open opens path in root as chroot(2) to root would see it: absolute symlinks and .. start and end
// at it. The flags are those of open(2); perm is for O_CREAT. Without O_PATH the path must be a
// regular file or a directory: everything else is refused without opening it, so that no FIFO
// blocks and no device acts. Errors are *[os.PathError].
func Open(root *os.File, path string, flags int, perm os.FileMode) (*os.File, error) {
	if flags&unix.O_PATH != 0 {
		return open(root, path, flags, 0)
	}
	if flags&unix.O_CREAT != 0 {
		f, err := open(root, path, flags|unix.O_EXCL, perm)
		if err == nil || flags&unix.O_EXCL != 0 || !errors.Is(err, unix.EEXIST) {
			return f, err
		}
		flags &^= unix.O_CREAT
	}
	handle, err := open(root, path, unix.O_PATH|flags&(unix.O_NOFOLLOW|unix.O_DIRECTORY), 0)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	return Reopen(handle, flags&^unix.O_NOFOLLOW)
}

// open is openat2 in root.
func open(root *os.File, path string, flags int, perm os.FileMode) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Mode:    uint64(perm.Perm()),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	full := filepath.Join(root.Name(), path)
	if path == "" {
		path = "."
	}
	fd, err := openat2(int(root.Fd()), path, &how)
	runtime.KeepAlive(root)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: full, Err: err}
	}
	return os.NewFile(uintptr(fd), full), nil
}

// openat2 repeats the call when the kernel could not be sure: EAGAIN says that something, anywhere,
// was renamed or mounted while .. was resolved.
func openat2(dir int, path string, how *unix.OpenHow) (int, error) {
	const tries = 256
	for n := 0; ; n++ {
		fd, err := unix.Openat2(dir, path, how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) || n == tries {
			return fd, err
		}
		if n > 32 {
			time.Sleep(time.Millisecond)
		}
	}
}

// Reopen opens what handle (opened with O_PATH) stands for, whatever has become of its name. It
// must be a regular file or a directory.
func Reopen(handle *os.File, flags int) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(handle.Fd()), &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: handle.Name(), Err: err}
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return nil, &os.PathError{Op: "open", Path: handle.Name(), Err: fmt.Errorf("it is a %s: %w", TypeName(st.Mode), unix.EINVAL)}
	}
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(int(handle.Fd())), flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	runtime.KeepAlive(handle)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: handle.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), handle.Name()), nil
}

// TypeName says in words what the type bits of a stat mode mean.
func TypeName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "regular file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symbolic link"
	case unix.S_IFIFO:
		return "FIFO"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	}
	return "file of unknown type"
}

// MkdirAll makes the directories of path in root that are missing, with perm whatever the umask,
// and returns the last one, opened with O_PATH. Symlinks on the way are followed inside root; a ..
// in path is refused, and so is a symlink to nothing.
func MkdirAll(root *os.File, path string, perm os.FileMode) (*os.File, error) {
	if slices.Contains(strings.Split(path, "/"), "..") {
		return nil, &os.PathError{Op: "mkdir", Path: path, Err: fmt.Errorf("it contains .. as an element: %w", unix.EINVAL)}
	}
	dir, err := open(root, path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if !errors.Is(err, unix.ENOENT) {
		return dir, err
	}
	done := "."
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." {
			continue
		}
		if err := mkdirIn(root, done, part, perm); err != nil {
			return nil, &os.PathError{Op: "mkdir", Path: filepath.Join(root.Name(), done, part), Err: err}
		}
		done += "/" + part
	}
	return open(root, path, unix.O_PATH|unix.O_DIRECTORY, 0)
}

// mkdirIn makes one directory, unless there is something of its name.
func mkdirIn(root *os.File, parent, name string, perm os.FileMode) error {
	dir, err := open(root, parent, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	switch err := unix.Mkdirat(int(dir.Fd()), name, uint32(perm.Perm())); {
	case errors.Is(err, unix.EEXIST):
		return nil
	case err != nil:
		return err
	}
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	fd, err := openat2(int(dir.Fd()), name, &how)
	if err != nil {
		return nil // it was swapped already: opening the whole path says what is wrong, if anything is
	}
	defer unix.Close(fd)
	return unix.Fchmod(fd, uint32(perm.Perm()))
}

// ReadFile reads the regular file path in root. More than limit bytes are an error: EFBIG.
func ReadFile(root *os.File, path string, limit int64) ([]byte, error) {
	f, err := Open(root, path, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		return nil, &os.PathError{Op: "read", Path: f.Name(), Err: unix.EFBIG}
	}
	return data, err
}

// CheckElements refuses a path with .. as an element or a NUL byte.
func CheckElements(path string) error {
	switch {
	case slices.Contains(strings.Split(path, "/"), ".."):
		return fmt.Errorf("%.80q contains .. as an element", path)
	case strings.IndexByte(path, 0) >= 0:
		return fmt.Errorf("%.80q contains a NUL byte", path)
	}
	return nil
}

// CheckSubPath refuses a path that cannot be the subPath of a volume mount: relative, without .. as
// an element, without NUL, not too long.
func CheckSubPath(path string) error {
	switch {
	case filepath.IsAbs(path):
		return fmt.Errorf("%.80q is absolute", path)
	case len(path) >= unix.PathMax:
		return fmt.Errorf("%.80q... is longer than %d bytes", path, unix.PathMax-1)
	}
	return CheckElements(path)
}
