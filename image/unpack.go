package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/layertree"
	"github.com/magikrun/magikpod/internal/safepath"
	"github.com/magikrun/magikpod/pod"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
	xattrRecord    = "SCHILY.xattr."
	opaqueXattr    = layertree.OpaqueXattr
)

// quiet is what the unpacker logs to.
var quiet = func() *logrus.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.SetLevel(logrus.PanicLevel)
	return logrus.NewEntry(l)
}()

// unpacker turns one layer's tar stream into an overlay lower directory. The work is containerd's
// archive.Apply; the unpacker bounds it, and sees to what Apply does not do: the root directory's
// own entry, whiteouts of what the same layer has (they mean the layers below only), sparse files,
// and attributes that are the host's business.
type unpacker struct {
	root    string
	parents []string // the unpacked layers below, the uppermost first
	limits  Limits

	files     int
	bytes     int64               // of file contents
	kept      int64               // of names and attributes
	looked    int64               // components of names that were looked up
	top       *os.File            // root, open while it is unpacked
	whiteouts map[string]struct{} // paths that hide something in the layers below
	rootEntry *tar.Header
}

func newUnpacker(root string, parents []string, limits Limits) *unpacker {
	return &unpacker{root: root, parents: parents, limits: limits, whiteouts: map[string]struct{}{}}
}

// unpack reads tar from r until its end. The root directory exists and is empty.
func (u *unpacker) unpack(ctx context.Context, r io.Reader) error {
	ctx = log.WithLogger(ctx, quiet)
	top, err := safepath.OpenRoot(u.root)
	if err != nil {
		return err
	}
	defer top.Close()
	u.top = top
	if u.root, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", top.Fd())); err != nil { // as pathOf has it
		return err
	}
	_, err = archive.Apply(ctx, u.root, r, archive.WithFilter(u.filter), archive.WithConvertWhiteout(u.convertWhiteout))
	if err == nil {
		err = u.finish()
	}
	return contentError(err)
}

// filter sees every entry first: it counts, bounds and cleans it. The name is clean already.
func (u *unpacker) filter(h *tar.Header) (bool, error) {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return false, nil
	}
	if err := u.count(h); err != nil {
		return false, err
	}
	if err := checkHeader(h); err != nil {
		return false, err
	}
	if h.Typeflag == tar.TypeGNUSparse {
		h.Typeflag = tar.TypeReg // the reader fills the holes
	}
	for key := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, xattrRecord); !ok || !keepXattr(name) {
			delete(h.PAXRecords, key)
		}
	}
	if strings.Trim(filepath.Join("/", h.Name), "/") == "" {
		if h.Typeflag == tar.TypeDir {
			u.rootEntry = h
		}
		return false, nil
	}
	if err := u.place(h); err != nil {
		return false, err
	}
	return true, nil
}

// keepXattr says whether an extended attribute comes along. trusted. is overlayfs' own; a label of
// the builder's SELinux or IMA means nothing here.
func keepXattr(name string) bool {
	switch name {
	case "security.selinux", "security.ima", "security.evm":
		return false
	}
	return !strings.HasPrefix(name, "trusted.")
}

func (u *unpacker) count(h *tar.Header) error {
	size := len(h.Name) + len(h.Linkname) + 256
	for k, v := range h.PAXRecords {
		size += len(k) + len(v)
	}
	if err := u.addFile(size); err != nil {
		return err
	}
	if h.Size > u.limits.MaxLayerBytes-u.bytes {
		return pod.Errorf(pod.Exhausted, "the files of the layer are larger than %d bytes, the limit", u.limits.MaxLayerBytes)
	}
	u.bytes += h.Size
	return nil
}

// addFile counts a file, of which size bytes are kept in memory.
func (u *unpacker) addFile(size int) error {
	u.files++
	u.kept += int64(size)
	switch {
	case u.files > u.limits.MaxFiles:
		return pod.Errorf(pod.Exhausted, "the layer has more than %d files, the limit", u.limits.MaxFiles)
	case u.kept > u.limits.MaxHeaderBytes:
		return pod.Errorf(pod.Exhausted, "the names and attributes of the layer's files are larger than %d bytes, the limit", u.limits.MaxHeaderBytes)
	}
	return nil
}

// checkHeader refuses what would be made into something else than it says.
func checkHeader(h *tar.Header) error {
	for _, id := range []int{h.Uid, h.Gid} {
		if id < 0 || id >= math.MaxUint32 {
			return invalid("%.200q has the owner %d:%d, which Linux does not have", h.Name, h.Uid, h.Gid)
		}
	}
	if h.Size < 0 {
		return invalid("%.200q has the size %d", h.Name, h.Size)
	}
	return nil
}

// convertWhiteout turns the whiteout files of the OCI format into those of overlayfs.
func (u *unpacker) convertWhiteout(h *tar.Header, path string) (bool, error) {
	base, dir := filepath.Base(path), filepath.Dir(path)
	switch {
	case base == whiteoutOpaque:
		return false, unix.Lsetxattr(dir, opaqueXattr, []byte{'y'}, 0)
	case strings.HasPrefix(base, whiteoutMeta):
		return false, nil // aufs' own
	case !strings.HasPrefix(base, whiteoutPrefix):
		return true, nil
	}
	hidden := filepath.Join(dir, strings.TrimPrefix(base, whiteoutPrefix))
	if hidden == dir || filepath.Dir(hidden) != dir {
		return false, invalid("%.200q is no whiteout", h.Name)
	}
	u.whiteouts[hidden] = struct{}{}
	// What the same layer has stays, and what comes later replaces this.
	if _, err := os.Lstat(hidden); err == nil {
		return false, nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	return false, unix.Mknod(hidden, unix.S_IFCHR, 0)
}

// finish does what can only be done when everything is there.
func (u *unpacker) finish() error {
	for path := range u.whiteouts {
		// A directory in the place of a whiteout hides the one below it.
		if fi, err := os.Lstat(path); err == nil && fi.IsDir() {
			if err := unix.Lsetxattr(path, opaqueXattr, []byte{'y'}, 0); err != nil {
				return err
			}
		}
	}
	return u.finishRoot()
}

// finishRoot gives the root directory what its own entry says; without one it is root's, with mode 0755.
func (u *unpacker) finishRoot() error {
	h := u.rootEntry
	if h == nil {
		return os.Chmod(u.root, 0o755)
	}
	if err := os.Chown(u.root, h.Uid, h.Gid); err != nil {
		return err
	}
	for key, value := range h.PAXRecords {
		err := unix.Lsetxattr(u.root, strings.TrimPrefix(key, xattrRecord), []byte(value), 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return err
		}
	}
	if err := os.Chmod(u.root, h.FileInfo().Mode()); err != nil {
		return err
	}
	if m := h.ModTime; m.Unix() > 0 && m.Before(time.Now().AddDate(100, 0, 0)) {
		return os.Chtimes(u.root, m, m)
	}
	return nil
}
