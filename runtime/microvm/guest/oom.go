package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// oomWatch is told by the kernel when a container's memory.events changes.
type oomWatch struct {
	s *Server
	f *os.File // inotify

	mu      sync.Mutex
	watched map[int32]*watched
}

// watched is one container with the kills that were told.
type watched struct {
	c     *container
	kills uint64
}

func newOOMWatch(s *Server) (*oomWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("cannot watch for out of memory: %w", err)
	}
	w := &oomWatch{s: s, f: os.NewFile(uintptr(fd), "inotify"), watched: map[int32]*watched{}}
	go w.run()
	return w, nil
}

// add watches a container, whose cgroup has been made, until the returned function is called.
func (w *oomWatch) add(c *container) (remove func() error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	watch := -1
	control(w.f, func(fd int) {
		var err error
		// A kernel without the memory controller has no such file, and kills nobody for it.
		if watch, err = unix.InotifyAddWatch(fd, filepath.Join(c.cgroup.path, "memory.events"), unix.IN_MODIFY); err != nil {
			watch = -1
		}
	})
	if watch >= 0 {
		w.watched[int32(watch)] = &watched{c: c}
	}
	return func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		// The kernel forgets the watch with the file.
		delete(w.watched, int32(watch))
		return nil
	}
}

// run reads what the kernel tells for as long as the server lives, which is as long as the process.
func (w *oomWatch) run() {
	buffer := make([]byte, 4096)
	for {
		n, err := w.f.Read(buffer)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				w.s.config.Log(fmt.Errorf("cannot watch for out of memory any more: %w", err))
			}
			return
		}
		for rest := buffer[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			w.tell(int32(binary.NativeEndian.Uint32(rest)))
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(rest[12:]))
			rest = rest[min(size, len(rest)):]
		}
	}
}

func (w *oomWatch) tell(watch int32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	entry := w.watched[watch]
	if entry == nil {
		return
	}
	if kills := entry.c.cgroup.oomKills(); kills > entry.kills {
		entry.kills = kills
		w.s.events.send(wire.Event{Type: wire.EventOOM, Container: entry.c.name, ID: entry.c.id, Time: time.Now()})
	}
}
