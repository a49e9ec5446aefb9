package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/safepath"
	"github.com/magikrun/magikpod/pod"
)

// The layout of a volume of files is the one of Kubernetes, which programs watch:
//
//	..2026_07_14_09_30_00.1234/KEY   the files
//	..data -> ..2026_07_14_09_30_00.1234
//	KEY -> ..data/KEY
//
// Replacing the one link ..data replaces all files at once.
const (
	dataLink    = "..data"
	newDataLink = "..data_tmp"
	stampFormat = "..2006_01_02_15_04_05."
)

// writeVolume gives the directory dir exactly the files, owned by root and the group (-1: root's).
// Containers see it read-only.
func writeVolume(dir string, files payload, group int64, undo *revert) error {
	if err := undo.mkdirAll(filepath.Dir(dir)); err != nil {
		return err
	}
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		undo.removeAll(dir)
	} else if !errors.Is(err, unix.EEXIST) {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	w := writer{dir: dir, root: root, files: files, group: group}
	if err := w.own(".", 0o755); err != nil {
		return err
	}
	current, err := root.Readlink(dataLink)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	if current == "" || !w.has(current) {
		if current, err = w.replace(); err != nil {
			return err
		}
	}
	return w.tidy(current)
}

// writer is one run of writeVolume.
type writer struct {
	dir   string
	root  *os.Root // dir
	files payload
	group int64
}

// own gives a directory its mode and group.
func (w *writer) own(dir string, mode os.FileMode) error {
	if w.group >= 0 {
		if err := w.root.Lchown(dir, 0, int(w.group)); err != nil {
			return err
		}
		mode |= os.ModeSetgid
	}
	return w.root.Chmod(dir, mode)
}

// has reports whether the directory current has exactly the files, with their modes and group. It
// is how a file that was torn by a crash, or changed by the host's administrator, is found.
func (w *writer) has(current string) bool {
	if !strings.HasPrefix(current, "..") || strings.Contains(current, "/") || current == ".." {
		return false
	}
	same := 0
	err := fs.WalkDir(w.root.FS(), current, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		want, ok := w.files[strings.TrimPrefix(name, current+"/")]
		if !ok || !w.same(name, want) {
			return errors.New("another content")
		}
		same++
		return nil
	})
	return err == nil && same == len(w.files)
}

func (w *writer) same(name string, want payloadFile) bool {
	info, err := w.root.Lstat(name)
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != os.FileMode(want.mode) || info.Size() != int64(len(want.data)) {
		return false
	}
	if gid, ok := groupOf(info); !ok || gid != max(w.group, 0) {
		return false
	}
	f, err := w.root.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(len(want.data))+1))
	return err == nil && bytes.Equal(data, want.data)
}

// replace writes the files into a new directory and makes ..data point to it. It returns the
// directory's name.
func (w *writer) replace() (_ string, err error) {
	stamp := fmt.Sprintf("%s%09d", time.Now().UTC().Format(stampFormat), rand.Uint32())
	defer func() {
		if err != nil {
			w.remove(newDataLink)
			w.remove(stamp)
		}
	}()
	if err := w.root.Mkdir(stamp, 0o700); err != nil {
		return "", err
	}
	if err := w.own(stamp, 0o755); err != nil {
		return "", err
	}
	for name, file := range w.files {
		if err := w.writeFile(stamp, name, file); err != nil {
			return "", err
		}
	}
	w.remove(newDataLink)
	if err := w.root.Symlink(stamp, newDataLink); err != nil {
		return "", err
	}
	// A ..data that is no link is not ours: only a directory is in the way of rename(2).
	if info, err := w.root.Lstat(dataLink); err == nil && info.IsDir() {
		return "", pod.Errorf(pod.Internal, "%s is a directory", filepath.Join(w.dir, dataLink))
	}
	return stamp, w.root.Rename(newDataLink, dataLink)
}

// writeFile writes one file below the directory stamp, and the directories that its name needs.
func (w *writer) writeFile(stamp, name string, file payloadFile) error {
	dir := stamp
	parts := strings.Split(name, "/")
	for _, part := range parts[:len(parts)-1] {
		dir = path.Join(dir, part)
		if err := w.root.Mkdir(dir, 0o700); errors.Is(err, unix.EEXIST) {
			continue
		} else if err != nil {
			return err
		}
		if err := w.own(dir, 0o755); err != nil {
			return err
		}
	}
	f, err := w.root.OpenFile(path.Join(stamp, name), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(file.data); err != nil {
		return err
	}
	if err := f.Chown(0, int(max(w.group, 0))); err != nil {
		return err
	}
	if err := f.Chmod(os.FileMode(file.mode)); err != nil {
		return err
	}
	return f.Close()
}

// tidy makes the links that containers use, and removes what belongs to an older content.
func (w *writer) tidy(current string) error {
	tops := w.files.tops()
	for _, top := range tops {
		target := dataLink + "/" + top
		if old, err := w.root.Readlink(top); err == nil && old == target {
			continue
		}
		w.remove(top)
		if err := w.root.Symlink(target, top); err != nil {
			return err
		}
	}
	names, err := fs.ReadDir(w.root.FS(), ".")
	if err != nil {
		return err
	}
	for _, entry := range names {
		name := entry.Name()
		if name == dataLink || name == current {
			continue
		}
		if _, keep := slices.BinarySearch(tops, name); !keep {
			w.remove(name)
		}
	}
	return nil
}

// remove removes an entry of the volume. What stays is removed the next time, or with the volume.
func (w *writer) remove(name string) {
	_ = safepath.RemoveAll(context.Background(), filepath.Join(w.dir, name))
}
