package image

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/runtime"
)

const (
	maxUserFile = 1 << 20 // bytes of /etc/passwd or /etc/group
	maxLinks    = 40      // symlinks on the way to a file, as the kernel has it
)

// tree reads files of an image through its layers, as overlayfs would show them, without mounting anything. No symlink leads out of it.
type tree struct{ layers []string } // directories, the uppermost first

// FindFile returns the host's path of a regular file of an image; empty: it has none of that name.
func FindFile(rootfs runtime.Rootfs, path string) (string, error) {
	return treeOf(rootfs).resolve(path)
}

func treeOf(rootfs runtime.Rootfs) (t tree) {
	for _, name := range slices.Backward(rootfs.Layers) {
		t.layers = append(t.layers, filepath.Join(rootfs.Dir, name))
	}
	return t
}

// readFile returns the regular file at the path in the image, cut at the last line end before limit; nil when there is none.
func (t tree) readFile(path string, limit int) ([]byte, error) {
	real, err := t.resolve(path)
	if err != nil || real == "" {
		return nil, err
	}
	// The layers are complete and nobody changes them, so what resolve saw is what is opened.
	f, err := os.OpenFile(real, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(data) > limit {
		data = data[:bytes.LastIndexByte(data[:limit], '\n')+1]
	}
	return data, nil
}

// resolve returns the host's path of a regular file of the image, or "".
func (t tree) resolve(path string) (string, error) {
	rest := elements(path)
	stack := [][]string{t.layers} // the merged directory at each depth: where its parts are, the uppermost first
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		if name == ".." {
			stack = stack[:max(len(stack)-1, 1)]
			continue
		}
		dirs, leaf, mode, err := lookup(stack[len(stack)-1], name)
		switch {
		case err != nil:
			return "", err
		case dirs != nil:
			stack = append(stack, dirs)
		case mode&os.ModeSymlink != 0:
			if links++; links > maxLinks {
				return "", nil
			}
			target, err := os.Readlink(leaf)
			if err != nil {
				return "", err
			}
			if filepath.IsAbs(target) {
				stack = stack[:1]
			}
			rest = append(elements(target), rest...)
		case leaf != "" && mode.IsRegular() && len(rest) == 0:
			return leaf, nil
		default:
			return "", nil
		}
	}
	return "", nil
}

// lookup finds name in a merged directory: its parts when it is a directory, else the uppermost file.
func lookup(dirs []string, name string) (found []string, leaf string, mode os.FileMode, err error) {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		fi, err := os.Lstat(path)
		switch {
		case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENAMETOOLONG):
			continue
		case err != nil:
			return nil, "", 0, err
		case !fi.IsDir():
			if found != nil || isWhiteout(fi) {
				return found, "", 0, nil
			}
			return nil, path, fi.Mode(), nil
		}
		if found = append(found, path); isOpaque(path) {
			return found, "", 0, nil
		}
	}
	return found, "", 0, nil
}

func isWhiteout(fi os.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && fi.Mode()&os.ModeCharDevice != 0 && st.Rdev == 0
}

func elements(path string) []string {
	var list []string
	for e := range strings.SplitSeq(path, "/") {
		if e != "" && e != "." {
			list = append(list, e)
		}
	}
	return list
}
