// Package newc writes cpio archives in the format that the kernel takes for an initramfs
// (Documentation/driver-api/early-userspace/buffer-format.rst). Nothing here reads one.
package newc

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

// Writer writes one archive. Directories that lead to an entry are made as needed; everything
// belongs to root, and the same calls give the same bytes. The first error sticks, and Close
// returns it.
type Writer struct {
	w    *bufio.Writer
	dirs map[string]bool
	ino  int
	err  error
}

// New returns a Writer to w.
func New(w io.Writer) *Writer {
	return &Writer{w: bufio.NewWriterSize(w, 1<<20), dirs: map[string]bool{".": true, "/": true}}
}

// entry writes the header of one entry; the caller writes size bytes and then calls pad.
func (c *Writer) entry(name string, mode uint32, size int64, rmajor, rminor int) {
	name = path.Clean("/" + name)[1:]
	if c.err == nil && size >= 1<<32 {
		c.err = fmt.Errorf("%s is too long for an initramfs: %d bytes", name, size)
	}
	if c.err == nil {
		c.ino++
		header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00", c.ino, mode, 0, 0, 1, 0, size, 0, 0, rmajor, rminor, len(name)+1, 0, name)
		_, c.err = c.w.WriteString(header)
		c.pad(int64(len(header)))
	}
}

func (c *Writer) pad(written int64) {
	if c.err == nil {
		_, c.err = c.w.Write(make([]byte, (4-written%4)%4))
	}
}

// Mkdir adds a directory; one that was added before stays as it is.
func (c *Writer) Mkdir(name string, perm uint32) {
	name = path.Clean("/" + name)
	if !c.dirs[name] {
		c.Mkdir(path.Dir(name), 0o755)
		c.dirs[name] = true
		c.entry(name, syscall.S_IFDIR|perm, 0, 0, 0)
	}
}

// Device adds a character device that only root may use.
func (c *Writer) Device(name string, major, minor int) {
	c.Mkdir(path.Dir(name), 0o755)
	c.entry(name, syscall.S_IFCHR|0o600, 0, major, minor)
}

// Text adds a file.
func (c *Writer) Text(name string, perm uint32, content string) {
	c.Mkdir(path.Dir(name), 0o755)
	c.entry(name, syscall.S_IFREG|perm, int64(len(content)), 0, 0)
	if c.err == nil {
		_, c.err = c.w.WriteString(content)
	}
	c.pad(int64(len(content)))
}

// Link adds a symbolic link.
func (c *Writer) Link(name, target string) {
	c.Mkdir(path.Dir(name), 0o755)
	c.entry(name, syscall.S_IFLNK|0o777, int64(len(target)), 0, 0)
	if c.err == nil {
		_, c.err = c.w.WriteString(target)
	}
	c.pad(int64(len(target)))
}

// Add copies a file of this host, or a directory with all that is in it.
func (c *Writer) Add(name, from string) {
	if c.err == nil {
		c.err = Walk(name, from, func(name, file string, info fs.FileInfo) error {
			c.addOne(name, file, info)
			return c.err
		})
	}
}

// Walk calls add for a file of this host, or for a directory and all that is in it, with the name
// that each has in an archive where the first is called name. It ends with the first error.
func Walk(name, from string, add func(name, file string, info fs.FileInfo) error) error {
	return filepath.WalkDir(from, func(file string, d fs.DirEntry, err error) error {
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
		return add(path.Join(name, rel), file, info)
	})
}

func (c *Writer) addOne(name, file string, info fs.FileInfo) {
	perm := uint32(info.Mode().Perm())
	switch {
	case info.IsDir():
		c.Mkdir(name, perm)
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(file)
		if c.err = err; err == nil {
			c.Link(name, target)
		}
	case info.Mode().IsRegular():
		f, err := os.Open(file)
		if c.err = err; err != nil {
			return
		}
		defer f.Close()
		c.Mkdir(path.Dir(name), 0o755)
		c.entry(name, syscall.S_IFREG|perm, info.Size(), 0, 0)
		if c.err == nil {
			_, c.err = io.CopyN(c.w, f, info.Size())
		}
		c.pad(info.Size())
	default:
		c.err = fmt.Errorf("cannot put %s into an initramfs: it is a %v", file, info.Mode().Type())
	}
}

// Close ends the archive.
func (c *Writer) Close() error {
	c.entry("TRAILER!!!", 0, 0, 0, 0)
	if c.err != nil {
		return c.err
	}
	return c.w.Flush()
}
