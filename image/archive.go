package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/magikrun/magikpod/pod"
)

// archiveFile is a tar archive that can be read at any place: the caller's file, or a spooled copy.
type archiveFile struct {
	r       io.ReaderAt
	size    int64
	spool   *os.File // in tmp; nil for the caller's file
	members map[string]member
	newest  time.Time
	ended   bool // the archive has its end mark
}

// member is one file of an archive.
type member struct {
	off, size int64
	kind      byte
	link      string
}

// maxArchiveLinks is how many links (docker's archives have them between equal layers) lead to a member.
const maxArchiveLinks = 16

// openArchive makes r an archiveFile. A plain tar in a regular file is read where it is; everything
// else is copied, unpacked, into tmp.
func (s *Store) openArchive(ctx context.Context, r io.Reader) (*archiveFile, error) {
	a, err := s.archiveInPlace(r)
	if err == nil && a == nil {
		a, err = s.spoolArchive(ctx, r)
	}
	if err != nil {
		return nil, err
	}
	if err := a.scan(ctx, s.limits); err != nil {
		a.close()
		return nil, contentError(err)
	}
	return a, nil
}

func (s *Store) archiveInPlace(r io.Reader) (*archiveFile, error) {
	f, ok := r.(*os.File)
	if !ok {
		return nil, nil
	}
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		return nil, err
	}
	start, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, err
	}
	section := io.NewSectionReader(f, start, fi.Size()-start)
	content, packed, err := decompress(section)
	if err != nil || packed {
		if packed && err == nil {
			err = content.Close()
		}
		return nil, err
	}
	if section.Size() > s.limits.MaxImageBytes {
		return nil, pod.Errorf(pod.Exhausted, "the archive is larger than %d bytes, the limit", s.limits.MaxImageBytes)
	}
	return &archiveFile{r: section, size: section.Size()}, nil
}

// spoolArchive copies r, unpacked, to a file in tmp.
func (s *Store) spoolArchive(ctx context.Context, r io.Reader) (*archiveFile, error) {
	source := &sourceReader{r: asyncReader(ctx, r)}
	f, err := os.CreateTemp(s.path(tmpDir), "archive-")
	if err != nil {
		return nil, err
	}
	a := &archiveFile{r: f, spool: f}
	content, _, err := decompress(source)
	if err == nil {
		if content, err = startsAsTar(content); err != nil {
			content.Close()
		}
	}
	if err == nil {
		a.size, err = io.Copy(onlyWriter{f}, limitReader(ctx, content, s.limits.MaxImageBytes, "the archive"))
		err = errors.Join(err, content.Close())
	}
	switch {
	case err == nil:
		return a, nil
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case source.err != nil:
		err = pod.Errorf(pod.Unavailable, "the archive cannot be read: %w", source.err)
	default:
		err = contentError(err)
	}
	a.close()
	return nil, err
}

// startsAsTar refuses what is no archive before gigabytes of it are copied.
func startsAsTar(content io.ReadCloser) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(content, 128<<10)
	again := readCloser{b, content}
	first, err := b.Peek(512)
	if err != nil && err != io.EOF {
		return again, err
	}
	if _, err := tar.NewReader(bytes.NewReader(first)).Next(); len(first) < 512 || errors.Is(err, tar.ErrHeader) || err == io.EOF {
		return again, invalid("it is empty or no archive")
	}
	return again, nil
}

func (a *archiveFile) close() {
	if a.spool != nil {
		_ = a.spool.Close()
		_ = os.Remove(a.spool.Name())
	}
}

// scan reads the headers.
func (a *archiveFile) scan(ctx context.Context, limits Limits) error {
	section := io.NewSectionReader(a.r, 0, a.size)
	t := tar.NewReader(section)
	a.members = map[string]member{}
	var kept, last int64
	for n := 0; ; n++ {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return invalid("it is no intact tar archive: %w", err)
		}
		off, err := section.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		if kept += int64(len(h.Name) + len(h.Linkname) + 128); n >= limits.MaxFiles || kept > limits.MaxHeaderBytes {
			return pod.Errorf(pod.Exhausted, "the archive has more than %d files or %d bytes of names, the limits", limits.MaxFiles, limits.MaxHeaderBytes)
		}
		a.add(h, off)
		if last = off; h.Typeflag == tar.TypeReg {
			last = off + (h.Size+511)/512*512
		}
	}
	end, err := section.Seek(0, io.SeekCurrent)
	a.ended = end > last
	if len(a.members) == 0 && err == nil {
		return invalid("it is empty or no archive")
	}
	return err
}

func (a *archiveFile) add(h *tar.Header, off int64) {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return
	}
	kind := h.Typeflag
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			kind = tar.TypeGNUSparse // its bytes are not in one piece
		}
	}
	a.members[cleanName(h.Name)] = member{off: off, size: h.Size, kind: kind, link: h.Linkname}
	if h.ModTime.After(a.newest) {
		a.newest = h.ModTime
	}
}

// cleanName is a member's name as a path from the top of the archive.
func cleanName(name string) string { return strings.TrimPrefix(path.Join("/", name), "/") }

func (a *archiveFile) has(name string) bool {
	_, ok := a.members[name]
	return ok
}

// open finds a regular file, through the archive's own links, which are never those of the host.
func (a *archiveFile) open(name string) (*io.SectionReader, error) {
	at := cleanName(name)
	for range maxArchiveLinks {
		m, ok := a.members[at]
		switch {
		case !ok:
			return nil, invalid("the archive has no %.300q", name)
		case m.kind == tar.TypeReg:
			return io.NewSectionReader(a.r, m.off, m.size), nil
		case m.kind == tar.TypeSymlink && !path.IsAbs(m.link):
			at = cleanName(path.Join(path.Dir(at), m.link))
		case m.kind == tar.TypeLink:
			at = cleanName(m.link)
		default:
			return nil, invalid("%.300q in the archive is no file", name)
		}
	}
	return nil, invalid("%.300q in the archive has too many links", name)
}

// read reads a small file of the archive.
func (a *archiveFile) read(ctx context.Context, name string, limit int64) ([]byte, error) {
	r, err := a.open(name)
	if err != nil {
		return nil, err
	}
	if r.Size() > limit {
		return nil, pod.Errorf(pod.Exhausted, "%.300q in the archive has %d bytes, and %d are the limit", name, r.Size(), limit)
	}
	data, err := readAll(ctx, r, limit, name)
	return data, contentError(err)
}

// source makes a member a blob source.
func (a *archiveFile) source(name string) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) {
		r, err := a.open(name)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(r), nil
	}
}
