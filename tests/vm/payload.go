package vm

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/newc"
)

// payloadBytes is the size of the disk that carries a payload, always the same: a saved state fits
// no other. What nobody writes costs nothing.
const payloadBytes = 4 << 30

// payload writes the tar archive that is laid over the root of a VM. All files belong to root. The
// first error sticks.
type payload struct {
	file *os.File
	buf  *bufio.Writer
	tar  *tar.Writer
	err  error
}

// writePayload makes the archive of what the options lay over the root, in memory.
func writePayload(opts Options) (*os.File, error) {
	fd, err := unix.MemfdCreate("payload", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "payload")
	p := &payload{file: f, buf: bufio.NewWriterSize(f, 1<<20)}
	p.tar = tar.NewWriter(p.buf)
	if opts.Install != "" {
		p.add("", opts.Install)
	}
	if opts.Enable {
		for _, wanted := range []string{"multi-user.target.wants/magikpodd.service", "sockets.target.wants/magikpodd.socket"} {
			p.link("etc/systemd/system/"+wanted, "/usr/lib/systemd/system/"+filepath.Base(wanted))
		}
	}
	for _, file := range opts.Files {
		p.add(file.Guest, file.Local)
	}
	if err := p.close(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot make the payload of a VM: %w", err), f.Close())
	}
	return f, nil
}

// add copies a file, or a directory with all that is in it.
func (p *payload) add(name, from string) {
	if p.err == nil {
		p.err = newc.Walk(name, from, func(name, file string, info fs.FileInfo) error {
			p.addOne(name, file, info)
			return p.err
		})
	}
}

func (p *payload) addOne(name, file string, info fs.FileInfo) {
	switch {
	case info.IsDir():
		p.header(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: int64(info.Mode().Perm())})
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(file)
		if p.err = err; err == nil {
			p.link(name, target)
		}
	case info.Mode().IsRegular():
		p.regular(name, file, info)
	default:
		p.err = fmt.Errorf("%s is a %v", file, info.Mode().Type())
	}
}

func (p *payload) regular(name, file string, info fs.FileInfo) {
	f, err := os.Open(file)
	if p.err = err; err != nil {
		return
	}
	defer f.Close()
	p.header(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(info.Mode().Perm()), Size: info.Size(), ModTime: info.ModTime()})
	if p.err == nil {
		_, p.err = io.CopyN(p.tar, f, info.Size())
	}
}

func (p *payload) link(name, target string) {
	p.header(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777})
}

// header begins an entry. Directories above it need none: they are made when they are missing, and
// stay as they are when not.
func (p *payload) header(h tar.Header) {
	h.Name = path.Clean("/" + h.Name)[1:]
	if p.err == nil && h.Name != "" {
		p.err = p.tar.WriteHeader(&h)
	}
}

// close ends the archive and gives it its size.
func (p *payload) close() error {
	if p.err != nil {
		return p.err
	}
	if err := errors.Join(p.tar.Close(), p.buf.Flush()); err != nil {
		return err
	}
	at, err := p.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if at > payloadBytes {
		return fmt.Errorf("it has %d bytes, more than %d", at, payloadBytes)
	}
	return p.file.Truncate(payloadBytes)
}
