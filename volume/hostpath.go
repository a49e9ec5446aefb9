package volume

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/internal/safepath"
	"github.com/magikrun/magikpod/pod"
)

// planHostPath checks a path of the host. As with the kubelet symlinks in it are the host's own
// business and are followed; without a type nothing is checked, and a missing directory is made,
// which OCI runtimes under a kubelet do.
func planHostPath(v *corev1.Volume) (*plan, error) {
	path := v.HostPath.Path
	switch {
	case !filepath.IsAbs(path):
		return nil, pod.Errorf(pod.Invalid, "hostPath %.255q is not absolute", path)
	case slices.Contains(strings.Split(path, "/"), ".."):
		return nil, pod.Errorf(pod.Invalid, "hostPath %.255q contains .. as an element", path)
	case strings.IndexByte(path, 0) >= 0:
		return nil, pod.Errorf(pod.Invalid, "hostPath %.255q contains a NUL byte", path)
	}
	path = filepath.Clean(path)
	kind := corev1.HostPathUnset
	if v.HostPath.Type != nil {
		kind = *v.HostPath.Type
	}
	want, ok := hostPathTypes[kind]
	if !ok {
		return nil, pod.Errorf(pod.Invalid, "%.80q is not a type of hostPath", kind)
	}
	missing, err := checkHostPath(path, kind, want)
	if err != nil {
		return nil, err
	}
	p := &plan{name: v.Name, source: source{path: path}}
	if missing {
		p.write = func(*revert) error { return makeHostPath(path, kind, want) }
	}
	return p, nil
}

// hostPathType is what a type of hostPath asks for.
type hostPathType struct {
	format uint32      // S_IFMT bits; 0: anything
	create os.FileMode // 0: it must exist
}

var hostPathTypes = map[corev1.HostPathType]hostPathType{
	corev1.HostPathUnset:             {0, 0o755},
	corev1.HostPathDirectoryOrCreate: {unix.S_IFDIR, 0o755},
	corev1.HostPathDirectory:         {unix.S_IFDIR, 0},
	corev1.HostPathFileOrCreate:      {unix.S_IFREG, 0o644},
	corev1.HostPathFile:              {unix.S_IFREG, 0},
	corev1.HostPathSocket:            {unix.S_IFSOCK, 0},
	corev1.HostPathCharDev:           {unix.S_IFCHR, 0},
	corev1.HostPathBlockDev:          {unix.S_IFBLK, 0},
}

// checkHostPath reports whether path is missing and may be. The path is opened with O_PATH: no FIFO
// blocks, no device acts.
func checkHostPath(path string, kind corev1.HostPathType, want hostPathType) (missing bool, err error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT) && want.create != 0:
		return true, nil
	case errors.Is(err, unix.ENOENT):
		return false, pod.Errorf(pod.NotFound, "hostPath %q does not exist and its type is %s", path, kind)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		return false, pod.Errorf(pod.Invalid, "hostPath %.255q: %w", path, err)
	case err != nil:
		return false, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if want.format != 0 && st.Mode&unix.S_IFMT != want.format {
		return false, pod.Errorf(pod.Invalid, "hostPath %q is a %s and its type is %s", path, safepath.TypeName(st.Mode), kind)
	}
	return false, nil
}

// makeHostPath makes a missing path. It is the host's from then on: nothing of this package removes it.
func makeHostPath(path string, kind corev1.HostPathType, want hostPathType) error {
	if want.format != unix.S_IFREG {
		return makeHostDir(path, want.create)
	}
	f, err := os.OpenFile(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, want.create)
	switch {
	case errors.Is(err, unix.EEXIST): // somebody else made it, or it is a symlink to nothing
		if missing, err := checkHostPath(path, kind, want); err != nil || !missing {
			return err
		}
		return pod.Errorf(pod.Invalid, "hostPath %q is a symbolic link to a file that does not exist", path)
	case errors.Is(err, unix.ENOENT):
		return pod.Errorf(pod.NotFound, "hostPath %q cannot be created: its directory does not exist", path)
	case err != nil:
		return err
	}
	// Whatever the umask is.
	return errors.Join(f.Chmod(want.create), f.Close())
}

// makeHostDir makes path and its parents with mode, whatever the umask is.
func makeHostDir(path string, mode os.FileMode) error {
	err := os.Mkdir(path, mode)
	if errors.Is(err, unix.ENOENT) && path != "/" {
		if err := makeHostDir(filepath.Dir(path), mode); err != nil {
			return err
		}
		err = os.Mkdir(path, mode)
	}
	if errors.Is(err, unix.EEXIST) {
		if missing, err := checkHostPath(path, corev1.HostPathDirectoryOrCreate, hostPathTypes[corev1.HostPathDirectoryOrCreate]); err != nil || !missing {
			return err
		}
		return pod.Errorf(pod.Invalid, "hostPath %q is a symbolic link to a directory that does not exist", path)
	} else if err != nil {
		return err
	}
	dir, err := os.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	return errors.Join(dir.Chmod(mode), dir.Close())
}
