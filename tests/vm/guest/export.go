package main

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// exporter writes the files of a directory as a tar archive, each again when it has changed: what
// unpacks the archive as it comes has the directory as it is now.
type exporter struct {
	dir  string
	tar  *tar.Writer
	sent map[string]fs.FileInfo
}

// exportEvery is how often the directory is looked at.
const exportEvery = 300 * time.Millisecond

// export goes on until standard input ends, and looks once more then.
func export(dir string) error {
	e := &exporter{dir: dir, tar: tar.NewWriter(os.Stdout), sent: map[string]fs.FileInfo{}}
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // an error is an end, too
		close(ended)
	}()
	for last := false; ; {
		if err := e.round(); err != nil {
			return err
		}
		if last {
			return e.tar.Close()
		}
		select {
		case <-ended:
			last = true
		case <-time.After(exportEvery):
		}
	}
}

func (e *exporter) round() error {
	return filepath.WalkDir(e.dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it has gone since
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		return e.file(path)
	})
}

// file sends a file unless it was sent as it is.
func (e *exporter) file(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if old := e.sent[path]; old != nil && old.Size() == info.Size() && old.ModTime().Equal(info.ModTime()) {
		return nil
	}
	name, err := filepath.Rel(e.dir, path)
	if err != nil {
		return err
	}
	e.sent[path] = info
	if err := e.tar.WriteHeader(&tar.Header{Name: name, Mode: int64(info.Mode().Perm()), Size: info.Size(), ModTime: info.ModTime()}); err != nil {
		return err
	}
	n, err := io.Copy(e.tar, io.LimitReader(f, info.Size()))
	if err == nil && n < info.Size() { // it was cut meanwhile, and comes again
		_, err = io.CopyN(e.tar, zeros{}, info.Size()-n)
	}
	if err == nil {
		err = e.tar.Flush()
	}
	return err
}

// zeros reads as zeros without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
