// Package layertree finds files in an image that was unpacked, a directory a layer. It is apart
// from image so that who only looks into one does not start with the libraries of registries.
package layertree

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symlinks may be on the way to a file, as the kernel has it.
const maxLinks = 40

// OpaqueXattr is the extended attribute of a directory that hides what is below it.
const OpaqueXattr = "trusted.overlay.opaque"

// Tree reads files of an image through its layers, as overlayfs would show them, without mounting
// anything. No symlink leads out of it.
type Tree []string // directories, the uppermost first

// Of is the tree of layers below dir, the lowest first.
func Of(dir string, layers []string) (t Tree) {
	for _, name := range slices.Backward(layers) {
		t = append(t, filepath.Join(dir, name))
	}
	return t
}

// Resolve returns the host's path of a regular file of the image, or "".
func (t Tree) Resolve(path string) (string, error) {
	rest := elements(path)
	stack := [][]string{t} // the merged directory at each depth: where its parts are, the uppermost first
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
		if found = append(found, path); IsOpaque(path) {
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

// IsOpaque says whether a directory hides what is below it. Overlayfs asks that of every directory
// but the root of a layer, so for those the layers below are left out of the mount.
func IsOpaque(dir string) bool {
	var value [1]byte
	n, err := unix.Lgetxattr(dir, OpaqueXattr, value[:])
	return err == nil && n == 1 && value[0] == 'y'
}
