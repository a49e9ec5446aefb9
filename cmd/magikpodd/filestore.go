package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/rawfd"
	"github.com/magikrun/magikpod/internal/sdnotify"
	"github.com/magikrun/magikpod/runtime/engine"
)

// fileStore is systemd's file descriptor store of magikpodd.service (systemd.service(5),
// FileDescriptorStoreMax=): what is in it is passed to the next daemon when this one was killed. It
// implements [engine.FileStore].
type fileStore struct {
	manager *sdnotify.Conn // nil: there is no systemd, and no store

	mu     sync.Mutex
	passed map[string][]*os.File
}

// openFileStore takes what an earlier daemon has kept out of files, which systemd has passed, and
// returns the others. What is not a sandbox's any more goes. An error leaves a store that can be used,
// and may keep less.
func openFileStore(runDir string, files []*os.File) (*fileStore, []*os.File, error) {
	s := &fileStore{passed: map[string][]*os.File{}}
	var err error
	if s.manager, err = sdnotify.Dial(); errors.Is(err, sdnotify.ErrUnset) {
		err = nil
	}
	var others []*os.File
	for _, f := range files {
		if strings.HasPrefix(f.Name(), engine.KeptFiles) {
			s.passed[f.Name()] = append(s.passed[f.Name()], f)
		} else {
			others = append(others, f)
		}
	}
	for name := range s.passed {
		if _, statErr := os.Lstat(filepath.Join(runDir, "pods", strings.TrimPrefix(name, engine.KeptFiles))); errors.Is(statErr, os.ErrNotExist) {
			err = errors.Join(err, s.Drop(name))
		}
	}
	return s, others, err
}

// Keep implements [engine.FileStore].
func (s *fileStore) Keep(name string, files []*os.File) error {
	fds := make([]int, 0, len(files))
	for _, f := range files {
		if err := rawfd.Use(f, func(fd int) error { fds = append(fds, fd); return nil }); err != nil {
			return err
		}
	}
	return s.send("FDSTORE=1\nFDNAME="+name, fds...)
}

// Drop implements [engine.FileStore].
func (s *fileStore) Drop(name string) error {
	s.mu.Lock()
	passed := s.passed[name]
	delete(s.passed, name)
	s.mu.Unlock()
	for _, f := range passed {
		_ = f.Close() // nothing was written
	}
	return s.send("FDSTOREREMOVE=1\nFDNAME=" + name)
}

func (s *fileStore) send(state string, fds ...int) error {
	if s.manager == nil {
		return nil
	}
	return s.manager.SendFiles(state, fds...)
}

// Take implements [engine.FileStore].
func (s *fileStore) Take(name string) []*os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	var files []*os.File
	for _, f := range s.passed[name] {
		_ = rawfd.Use(f, func(fd int) error { // without one of them there is no sandbox, as without all
			fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			if err == nil {
				files = append(files, os.NewFile(uintptr(fd), name))
			}
			return err
		})
	}
	return files
}
