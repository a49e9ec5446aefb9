package vm

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"
)

// cpio writes an archive in the kernel's format (Documentation/driver-api/early-userspace/buffer-format.rst). All files belong to root. The first
// error sticks.
type cpio struct {
	w    *bufio.Writer
	dirs map[string]bool
	ino  int
	err  error
}

func newCpio(w io.Writer) *cpio {
	return &cpio{w: bufio.NewWriterSize(w, 1<<20), dirs: map[string]bool{".": true, "/": true}}
}

// entry writes the header of one entry; the caller writes size bytes and then calls pad.
func (c *cpio) entry(name string, mode uint32, size int64, rmajor, rminor int) {
	name = path.Clean("/" + name)[1:]
	if c.err == nil && size >= 1<<32 {
		c.err = fmt.Errorf("%s is too long for the initrd: %d bytes", name, size)
	}
	if c.err == nil {
		c.ino++
		header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00", c.ino, mode, 0, 0, 1, 0, size, 0, 0, rmajor, rminor, len(name)+1, 0, name)
		_, c.err = c.w.WriteString(header)
		c.pad(int64(len(header)))
	}
}

func (c *cpio) pad(written int64) {
	if c.err == nil {
		_, c.err = c.w.Write(make([]byte, (4-written%4)%4))
	}
}

func (c *cpio) mkdir(name string, perm uint32) {
	name = path.Clean("/" + name)
	if !c.dirs[name] {
		c.mkdir(path.Dir(name), 0o755)
		c.dirs[name] = true
		c.entry(name, syscall.S_IFDIR|perm, 0, 0, 0)
	}
}

func (c *cpio) device(name string, major, minor int) {
	c.mkdir(path.Dir(name), 0o755)
	c.entry(name, syscall.S_IFCHR|0o600, 0, major, minor)
}

func (c *cpio) text(name string, perm uint32, content string) {
	c.mkdir(path.Dir(name), 0o755)
	c.entry(name, syscall.S_IFREG|perm, int64(len(content)), 0, 0)
	if c.err == nil {
		_, c.err = c.w.WriteString(content)
	}
	c.pad(int64(len(content)))
}

func (c *cpio) link(name, target string) {
	c.mkdir(path.Dir(name), 0o755)
	c.entry(name, syscall.S_IFLNK|0o777, int64(len(target)), 0, 0)
	if c.err == nil {
		_, c.err = c.w.WriteString(target)
	}
	c.pad(int64(len(target)))
}

// add copies a file, or a directory with all that is in it.
func (c *cpio) add(name, from string) {
	if c.err != nil {
		return
	}
	c.err = filepath.WalkDir(from, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, file)
		if err != nil {
			return err
		}
		c.addOne(path.Join(name, rel), file, info)
		return c.err
	})
}

func (c *cpio) addOne(name, file string, info fs.FileInfo) {
	perm := uint32(info.Mode().Perm())
	switch {
	case info.IsDir():
		c.mkdir(name, perm)
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(file)
		if c.err = err; err == nil {
			c.link(name, target)
		}
	case info.Mode().IsRegular():
		f, err := os.Open(file)
		if c.err = err; err != nil {
			return
		}
		defer f.Close()
		c.mkdir(path.Dir(name), 0o755)
		c.entry(name, syscall.S_IFREG|perm, info.Size(), 0, 0)
		if c.err == nil {
			_, c.err = io.CopyN(c.w, f, info.Size())
		}
		c.pad(info.Size())
	default:
		c.err = fmt.Errorf("cannot put %s into the initrd: it is a %v", file, info.Mode().Type())
	}
}

// close ends the archive.
func (c *cpio) close() error {
	c.entry("TRAILER!!!", 0, 0, 0, 0)
	if c.err != nil {
		return c.err
	}
	return c.w.Flush()
}
