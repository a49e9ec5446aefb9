package shim

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

const (
	// maxCRILine is the length at which CRI runtimes split a line; the parts are tagged P, the last
	// one F.
	maxCRILine         = 16 << 10
	defaultMaxLogBytes = 10 << 20
	defaultMaxLogFiles = 5
)

// criLogs writes the CRI log format in LogDir/CONTAINER/ATTEMPT.log, or where [SetLogPath] says.
// Older parts are ATTEMPT.log.1 (the newest of them), ATTEMPT.log.2 and so on.
type criLogs struct {
	dir      string
	fifos    string // directory
	maxBytes int64
	maxFiles int
	files    map[string]*criFile // by path; the two streams of an attempt share one
}

func newCRILogs(config *PauseConfig) *criLogs {
	l := &criLogs{dir: config.LogDir, fifos: config.FIFODir, maxBytes: config.MaxLogBytes, maxFiles: config.MaxLogFiles, files: map[string]*criFile{}}
	if l.maxBytes <= 0 {
		l.maxBytes = defaultMaxLogBytes
	}
	if l.maxFiles <= 0 {
		l.maxFiles = defaultMaxLogFiles
	}
	return l
}

type criFile struct {
	path    string
	file    *os.File
	size    int64
	streams int    // that use it
	buffer  []byte // lines to be written
}

type criStream struct {
	logs   *criLogs
	file   *criFile
	stream string
}

func (l *criLogs) open(name logName) (lineWriter, error) {
	path, err := l.path(name)
	if err != nil {
		return nil, fmt.Errorf("cannot open log: %w", err)
	}
	f := l.files[path]
	if f == nil {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, fmt.Errorf("cannot open log: %w", err)
		}
		f = &criFile{path: path}
		if err := f.open(); err != nil {
			return nil, err
		}
		l.files[path] = f
	}
	f.streams++
	return &criStream{logs: l, file: f, stream: name.stream}, nil
}

// path is the log file of an attempt.
func (l *criLogs) path(name logName) (string, error) {
	own, err := os.ReadFile(logPathFile(l.fifos, name))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return CRIPath(l.dir, name.container, name.attempt), nil
	case err == nil && !filepath.IsLocal(string(own)):
		err = fmt.Errorf("%q is not below %s", own, l.dir)
	}
	return filepath.Join(l.dir, string(own)), err
}

func (f *criFile) open() error {
	file, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("cannot open log: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return fmt.Errorf("cannot open log: %w", err)
	}
	f.file, f.size = file, info.Size()
	return nil
}

func (s *criStream) maxLine() int { return maxCRILine }

func (s *criStream) close() error {
	s.file.streams--
	if s.file.streams > 0 {
		return nil
	}
	delete(s.logs.files, s.file.path)
	if s.file.file == nil {
		return nil
	}
	return s.file.file.Close()
}

// write appends one line or a part of one to the buffer, which goes to the file when it is large,
// when the file is full, or by flush.
func (s *criStream) write(line []byte, partial bool) (lost int, err error) {
	tag := CRIFull
	if partial {
		tag = CRIPartial
	}
	f := s.file
	b := time.Now().UTC().AppendFormat(f.buffer, CRITime)
	b = append(b, " "+s.stream+" "+tag+" "...)
	b = append(b, line...)
	f.buffer = append(b, '\n')
	full := f.size+int64(len(f.buffer)) >= s.logs.maxBytes && !partial
	if !full && len(f.buffer) < readSize {
		return 0, nil
	}
	lost, err = f.flush()
	if err == nil && full {
		if err = f.rotate(s.logs.maxFiles); err != nil {
			lost = 1
		}
	}
	return lost, err
}

func (s *criStream) flush() (lost int, err error) { return s.file.flush() }

// flush writes the buffer. A line that does not fit any more (full disk) is taken back, so that the
// file stays readable; lost is how many do not.
func (f *criFile) flush() (lost int, err error) {
	b := f.buffer
	if len(b) == 0 {
		return 0, nil
	}
	f.buffer = b[:0]
	if f.file == nil { // a rotation that failed half-way
		if err := f.open(); err != nil {
			return bytes.Count(b, newline), err
		}
	}
	n, err := f.file.Write(b)
	whole := bytes.LastIndexByte(b[:n], '\n') + 1
	f.size += int64(whole)
	if err == nil {
		return 0, nil
	}
	if n > whole {
		err = errors.Join(err, f.file.Truncate(f.size))
	}
	return bytes.Count(b[whole:], newline), fmt.Errorf("cannot write log: %w", err)
}

// rotate renames the files one up, drops the oldest and begins a new one.
func (f *criFile) rotate(keep int) error {
	f.file.Close()
	f.file = nil
	if err := os.Remove(CRIRotated(f.path, keep-1)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot rotate log: %w", err)
	}
	for n := keep - 2; n >= 0; n-- {
		if err := os.Rename(CRIRotated(f.path, n), CRIRotated(f.path, n+1)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("cannot rotate log: %w", err)
		}
	}
	return f.open()
}
