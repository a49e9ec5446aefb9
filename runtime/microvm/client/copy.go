package client

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// Copy makes a volume of the VM equal to source, a directory or a single file of this host (the
// volume then has one entry with the file's name). No symlink is followed; anything but
// directories, regular files and symlinks is an error. At most [wire.MaxCopy] bytes and
// [wire.MaxEntries] entries.
func (c *Client) Copy(ctx context.Context, volume, source string) error {
	request := &wire.Copy{Volume: volume}
	ctx, cancel := bounded(ctx, 2*CallTimeout)
	defer cancel()
	l, err := c.start(ctx, request, nil)
	if err != nil {
		return err
	}
	defer l.close()
	err = sendTree(l.wire, source)
	if err == nil || broken(err) {
		// The agent may have refused what came before the end.
		if readErr := l.wire.ReadReply(nil); readErr != nil || err == nil {
			err = readErr
		}
	}
	if err != nil {
		return fail(request, l.explain(err))
	}
	return nil
}

// frameWriter writes data frames.
type frameWriter struct{ conn *wire.Conn }

func (w frameWriter) Write(data []byte) (int, error) {
	for rest := data; len(rest) > 0; {
		n := min(len(rest), wire.Chunk)
		if err := w.conn.WriteFrame(wire.FrameData, rest[:n]); err != nil {
			return len(data) - len(rest), err
		}
		rest = rest[n:]
	}
	return len(data), nil
}

// sendTree sends source as a tar stream in data frames.
func sendTree(conn *wire.Conn, source string) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	dir, only := source, ""
	if !info.IsDir() {
		dir, only = filepath.Split(source)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	t := &tree{root: root, tar: tar.NewWriter(frameWriter{conn})}
	if only != "" {
		info, err = root.Lstat(only)
		if err == nil {
			err = t.add(only, info)
		}
	} else {
		err = fs.WalkDir(root.FS(), ".", t.visit)
	}
	if err == nil {
		err = t.tar.Close()
	}
	if err != nil {
		return err
	}
	return conn.WriteFrame(wire.FrameData, nil)
}

// tree is a directory that is being sent.
type tree struct {
	root    *os.Root
	tar     *tar.Writer
	entries int
	bytes   int64
}

func (t *tree) visit(name string, entry fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	info, err := entry.Info()
	if err != nil {
		return err
	}
	return t.add(name, info)
}

func (t *tree) add(name string, info fs.FileInfo) error {
	mode := info.Mode()
	if !mode.IsDir() && !mode.IsRegular() && mode&fs.ModeSymlink == 0 {
		return fmt.Errorf("cannot copy %s: it is neither a directory nor a regular file nor a symlink", name)
	}
	if t.entries++; t.entries > wire.MaxEntries {
		return fmt.Errorf("cannot copy more than %d files", wire.MaxEntries)
	}
	link := ""
	if mode&fs.ModeSymlink != 0 {
		var err error
		if link, err = t.root.Readlink(name); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	// The names of this host's users say nothing in the VM, and times of more than seconds cost a
	// record of their own.
	header.Name, header.Uname, header.Gname = name, "", ""
	header.AccessTime, header.ChangeTime, header.ModTime = time.Time{}, time.Time{}, header.ModTime.Truncate(time.Second)
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		header.Uid, header.Gid = int(stat.Uid), int(stat.Gid)
	}
	if !mode.IsRegular() {
		return t.tar.WriteHeader(header)
	}
	if t.bytes += header.Size; t.bytes > wire.MaxCopy {
		return fmt.Errorf("cannot copy more than %d bytes", wire.MaxCopy)
	}
	return t.addFile(header)
}

func (t *tree) addFile(header *tar.Header) error {
	f, err := t.root.OpenFile(header.Name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := t.tar.WriteHeader(header); err != nil {
		return err
	}
	// A file that grows or shrinks meanwhile is sent with the size that it had; one that got too
	// short is an error.
	if _, err := io.CopyN(t.tar, f, header.Size); err != nil {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("cannot copy %s: it has just become shorter", header.Name)
		}
		return err
	}
	return nil
}
