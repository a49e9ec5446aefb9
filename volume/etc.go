package volume

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/internal/safepath"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// MaxTerminationMessage is how much of a termination message is kept, in bytes: its end, as with
// the kubelet.
const MaxTerminationMessage = 4096

// EtcFiles writes the pod's /etc/hosts, /etc/hostname and /etc/resolv.conf and returns their
// mounts. A nil content leaves that file to the image. As in Kubernetes containers can write to
// them, which is why they are below StateDir: RunDir's memory is the host's. See [JoinMounts].
func (m *Manager) EtcFiles(uid types.UID, hosts, hostname, resolv []byte) (_ []runtime.Mount, err error) {
	if err := checkUID(uid); err != nil {
		return nil, err
	}
	undo := &revert{}
	defer func() {
		if err != nil {
			undo.run()
		}
	}()
	dir := m.statePath(uid, etcDir)
	if err := undo.mkdirAll(dir); err != nil {
		return nil, kinded(err, "cannot write /etc files of pod %s", uid)
	}
	var mounts []runtime.Mount
	for _, file := range []struct {
		name string
		data []byte
	}{{"hosts", hosts}, {"hostname", hostname}, {"resolv.conf", resolv}} {
		if file.data == nil {
			continue
		}
		path := filepath.Join(dir, file.name)
		if _, err := os.Lstat(path); errors.Is(err, unix.ENOENT) {
			undo.add(func() { _ = os.Remove(path) })
		}
		if err := atomicfile.WriteNoSync(path, file.data, 0o644); err != nil {
			return nil, kinded(err, "cannot write /etc/%s of pod %s", file.name, uid)
		}
		mounts = append(mounts, runtime.Mount{Source: path, Destination: "/etc/" + file.name, Propagation: "private"})
	}
	return mounts, nil
}

// JoinMounts returns system, the mounts that every container gets, without those whose destination
// own mounts itself, followed by own.
func JoinMounts(system, own []runtime.Mount) []runtime.Mount {
	joined := slices.DeleteFunc(slices.Clone(system), func(s runtime.Mount) bool {
		return slices.ContainsFunc(own, func(o runtime.Mount) bool { return path.Clean(o.Destination) == path.Clean(s.Destination) })
	})
	return append(joined, own...)
}

// TerminationMessage makes the file that one attempt at a container writes its termination message
// to, and returns its mount at the absolute path in the container. The file may exist already. The
// messages of all but the attempt before this one are removed. Kinds: Invalid, Exhausted.
func (m *Manager) TerminationMessage(uid types.UID, container string, attempt int, path string) (runtime.Mount, error) {
	file, err := m.terminationFile(uid, container, attempt)
	if err != nil {
		return runtime.Mount{}, err
	}
	destination, err := cleanDestination(path)
	if err != nil {
		return runtime.Mount{}, kinded(err, "cannot make termination message of container %q", container)
	}
	undo := &revert{}
	if err := makeTerminationFile(file, undo); err != nil {
		undo.run()
		return runtime.Mount{}, kinded(err, "cannot make termination message of container %q", container)
	}
	removeOldMessages(file, attempt)
	return runtime.Mount{Source: file, Destination: destination, Propagation: "private"}, nil
}

// makeTerminationFile makes an empty file that every user can write to.
func makeTerminationFile(file string, undo *revert) error {
	if err := undo.mkdirAll(filepath.Dir(file)); err != nil {
		return err
	}
	f, err := os.OpenFile(file, unix.O_WRONLY|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o666), f.Close())
}

// removeOldMessages removes what attempts before the last one wrote: the status shows two of them.
func removeOldMessages(file string, attempt int) {
	dir, name := filepath.Split(file)
	container := strings.TrimSuffix(name, strconv.Itoa(attempt))
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // they go with the pod
	}
	for _, entry := range entries {
		number, ok := strings.CutPrefix(entry.Name(), container)
		if n, err := strconv.Atoi(number); ok && err == nil && n < attempt-1 {
			_ = os.Remove(filepath.Join(dir, entry.Name()))
		}
	}
}

// ReadTerminationMessage returns the end of what the attempt has written, at most
// [MaxTerminationMessage] bytes of valid UTF-8; "" when there is nothing. Whatever the container
// has made of the file, it is opened only if it is a regular one.
func (m *Manager) ReadTerminationMessage(uid types.UID, container string, attempt int) (string, error) {
	file, err := m.terminationFile(uid, container, attempt)
	if err != nil {
		return "", err
	}
	message, err := readEnd(file)
	if errors.Is(err, unix.ENOENT) {
		return "", nil
	} else if err != nil {
		return "", kinded(err, "cannot read termination message of container %q", container)
	}
	return message, nil
}

func readEnd(file string) (string, error) {
	root, err := safepath.OpenRoot(filepath.Dir(file))
	if err != nil {
		return "", err
	}
	defer root.Close()
	f, err := safepath.Open(root, filepath.Base(file), unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a regular file", file)
	}
	data := make([]byte, min(info.Size(), MaxTerminationMessage))
	n, err := f.ReadAt(data, info.Size()-int64(len(data)))
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return strings.ToValidUTF8(string(data[:n]), ""), nil
}

// terminationFile names the file of an attempt. The dot cannot be in a container's name.
func (m *Manager) terminationFile(uid types.UID, container string, attempt int) (string, error) {
	if err := checkUID(uid); err != nil {
		return "", err
	}
	if err := pod.ValidateContainerName(container); err != nil {
		return "", err
	}
	if attempt < 0 {
		return "", pod.Errorf(pod.Invalid, "cannot use %d as the attempt of container %q", attempt, container)
	}
	return m.statePath(uid, terminationDir, fmt.Sprintf("%s.%d", container, attempt)), nil
}
