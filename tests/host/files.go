package host

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Push copies a file of the build host into the host, with the given mode; missing directories are
// made, a file of that name is replaced.
func (h *Host) Push(local, remote string, mode os.FileMode) error {
	src, err := os.Open(local)
	if err != nil {
		return err
	}
	defer src.Close()
	return h.write(remote, src, mode)
}

// WriteFile writes a file in the host; missing directories are made.
func (h *Host) WriteFile(remote, content string, mode os.FileMode) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	go func() {
		_, _ = w.WriteString(content) // a reader that went away has reported its own error
		_ = w.Close()
	}()
	defer r.Close()
	return h.write(remote, r, mode)
}

// ReadFile returns the content of a file in the host.
func (h *Host) ReadFile(remote string) ([]byte, error) {
	f, err := h.open(remote, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// Pull copies a file of the host to the build host.
func (h *Host) Pull(remote, local string) error {
	src, err := h.open(remote, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(local)
	if err != nil {
		return err
	}
	if _, err := io.Copy(dst, src); err != nil {
		_ = dst.Close()
		return err
	}
	return dst.Close()
}

func (h *Host) write(remote string, src io.Reader, mode os.FileMode) error {
	if err := h.mkdirAll(filepath.Dir(filepath.Clean("/" + remote))); err != nil {
		return err
	}
	dst, err := h.open(remote, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, uint64(mode.Perm()))
	if err != nil {
		return err
	}
	if _, err := io.Copy(dst, src); err != nil {
		_ = dst.Close()
		return err
	}
	if err := dst.Chmod(mode); err != nil { // whatever the umask and an older file say
		_ = dst.Close()
		return err
	}
	return dst.Close()
}

func (h *Host) mkdirAll(dir string) error {
	if dir == "/" {
		return nil
	}
	if f, err := h.open(dir, unix.O_PATH|unix.O_DIRECTORY, 0); err == nil {
		return f.Close()
	}
	if err := h.mkdirAll(filepath.Dir(dir)); err != nil {
		return err
	}
	parent, err := h.open(filepath.Dir(dir), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := unix.Mkdirat(int(parent.Fd()), filepath.Base(dir), 0o755); err != nil && err != unix.EEXIST {
		return fmt.Errorf("cannot make %s in host %s: %w", dir, h.name, err)
	}
	return nil
}

// open opens a path below the host's root. An absolute symlink on the way must be resolved there
// and not on the build host: hence openat2(2).
func (h *Host) open(path string, flags int, mode uint64) (*os.File, error) {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", h.leader), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open the root of host %s: %w", h.name, err)
	}
	defer func() { _ = unix.Close(root) }()
	how := &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Mode: mode, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(root, path, how)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s in host %s: %w", path, h.name, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}
