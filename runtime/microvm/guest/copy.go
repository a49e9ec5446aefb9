package guest

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// copyVolume makes a volume equal to a tar stream.
func (s *Server) copyVolume(p *peer, r *wire.Copy) error {
	if err := p.WriteReply(nil); err != nil {
		return nil // the host is gone
	}
	s.setup.Lock()
	defer s.setup.Unlock()
	dir := s.path(copiesName, r.Volume)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	stream := &dataReader{conn: p.Conn}
	if err := unpack(dir, stream); err != nil {
		return fmt.Errorf("cannot write the volume %q: %w", r.Volume, err)
	}
	return p.WriteReply(nil)
}

// dataReader reads the data frames of a stream up to the empty one.
type dataReader struct {
	conn   *wire.Conn
	buffer []byte
	rest   []byte
	end    bool
}

func (d *dataReader) Read(data []byte) (int, error) {
	for len(d.rest) == 0 {
		if d.end {
			return 0, io.EOF
		}
		frame, err := d.conn.ReadFrame(d.buffer)
		if err != nil {
			return 0, err
		}
		if frame.Type != wire.FrameData {
			return 0, wire.Errorf(wire.CodeInvalidRequest, "a frame of type %q came within the data", byte(frame.Type))
		}
		d.buffer, d.rest, d.end = frame.Data, frame.Data, len(frame.Data) == 0
	}
	n := copy(data, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

// volume is a directory that is being made equal to a stream.
type volume struct {
	root    *os.Root
	seen    map[string]bool // path of each entry
	bytes   int64
	entries int
}

// unpack makes dir equal to a tar stream, entry by entry in its order: files and symlinks are
// replaced by renaming, so that a reader sees the old or the new one. What the stream has not is
// removed at the end. No entry leads out of dir.
func unpack(dir string, r io.Reader) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	v := &volume{root: root, seen: map[string]bool{".": true}}
	for stream := tar.NewReader(r); ; {
		header, err := stream.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := v.add(header, stream); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, r); err != nil { // up to the empty frame
		return err
	}
	return v.prune()
}

func (v *volume) add(header *tar.Header, data io.Reader) error {
	name := path.Clean(header.Name)
	if !fs.ValidPath(name) || strings.ContainsRune(name, 0) {
		return wire.Errorf(wire.CodeInvalidRequest, "the entry %.80q leads out of the volume", header.Name)
	}
	v.entries++
	v.bytes += header.Size
	if v.entries > wire.MaxEntries || header.Size < 0 || v.bytes > wire.MaxCopy {
		return wire.Errorf(wire.CodeInvalidRequest, "there are more than %d entries or %d bytes", wire.MaxEntries, wire.MaxCopy)
	}
	v.seen[name] = true
	mode := header.FileInfo().Mode()
	switch header.Typeflag {
	case tar.TypeDir:
		return v.addDir(name, header, mode)
	case tar.TypeReg:
		return v.replace(name, func(temporary string) error {
			f, err := v.root.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			_, err = io.Copy(f, data)
			return errors.Join(err, f.Chown(header.Uid, header.Gid), f.Chmod(mode), f.Close())
		})
	case tar.TypeSymlink:
		return v.replace(name, func(temporary string) error {
			return errors.Join(v.root.Symlink(header.Linkname, temporary), v.root.Lchown(temporary, header.Uid, header.Gid))
		})
	}
	return wire.Errorf(wire.CodeInvalidRequest, "the entry %.80q is neither a file nor a directory nor a symlink", header.Name)
}

func (v *volume) addDir(name string, header *tar.Header, mode fs.FileMode) error {
	if info, err := v.root.Lstat(name); err == nil && !info.IsDir() {
		if err := v.root.RemoveAll(name); err != nil {
			return err
		}
	}
	if err := v.root.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return errors.Join(v.root.Chown(name, header.Uid, header.Gid), v.root.Chmod(name, mode))
}

// temporary is the name of an entry before it gets its own. A volume cannot have it: names of
// volumes' files come from keys that do not begin with a dot twice.
const temporary = "..magikpod-new"

// replace makes an entry under another name and then gives it its own.
func (v *volume) replace(name string, create func(temporary string) error) error {
	if name == "." {
		return wire.Errorf(wire.CodeInvalidRequest, "the volume itself is no directory")
	}
	if info, err := v.root.Lstat(name); err == nil && info.IsDir() {
		if err := v.root.RemoveAll(name); err != nil {
			return err
		}
	}
	// Left over by a copy that failed.
	if err := v.root.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := create(temporary); err != nil {
		return err
	}
	if same, err := v.same(temporary, name); err != nil || same {
		return errors.Join(err, v.root.Remove(temporary))
	}
	return v.root.Rename(temporary, name)
}

// same says whether two entries are files with the same content, owner and mode. Such a file stays
// what it is: a container that is just being created may be about to mount it, and the kernel
// mounts no file that has lost its name.
func (v *volume) same(one, other string) (bool, error) {
	a, err := v.root.Lstat(one)
	if err != nil {
		return false, err
	}
	b, err := v.root.Lstat(other)
	if err != nil || !a.Mode().IsRegular() || a.Mode() != b.Mode() || a.Size() != b.Size() {
		return false, nil // also when there is none yet
	}
	as, aok := a.Sys().(*syscall.Stat_t)
	bs, bok := b.Sys().(*syscall.Stat_t)
	if !aok || !bok || as.Uid != bs.Uid || as.Gid != bs.Gid {
		return false, nil
	}
	x, err := v.root.ReadFile(one)
	if err != nil {
		return false, err
	}
	y, err := v.root.ReadFile(other)
	return err == nil && bytes.Equal(x, y), err
}

// prune removes what the stream had not.
func (v *volume) prune() error {
	var old []string
	err := fs.WalkDir(v.root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if v.seen[name] {
			return nil
		}
		old = append(old, name)
		if entry.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range old {
		if err := v.root.RemoveAll(name); err != nil {
			return err
		}
	}
	return nil
}
