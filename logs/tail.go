package logs

import (
	"bytes"
	"context"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/rawfd"
	"github.com/magikrun/magikpod/pod"
)

// seekTail begins at the last n lines.
func (c *chain) seekTail(n int) error {
	files, err := c.openAll(func(files []file) []file { return files })
	if err != nil {
		return err
	}
	counter := tailCounter{left: n, first: true}
	for i, f := range files {
		offset, found, err := counter.search(f.File)
		if err != nil {
			closeFiles(files[i:])
			return pod.Errorf(pod.Internal, "cannot read the log: %w", err)
		}
		c.use(f, offset)
		if found {
			closeFiles(files[i+1:])
			break
		}
	}
	return nil
}

// tailCounter looks for the beginning of the last lines, from the end backwards. A line that was
// split counts once, at its last part.
type tailCounter struct {
	left  int  // how many lines are still to be passed
	first bool // nothing was seen yet
}

// search returns the offset where the wanted lines begin, or false and 0 when they begin in an
// older file.
func (t *tailCounter) search(f *os.File) (int64, bool, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, false, err
	}
	var carry []byte // the end of a line whose beginning is in the block before
	unfinished := true
	for end := info.Size(); end > 0; {
		begin := max(end-blockSize, 0)
		block := make([]byte, int(end-begin), int(end-begin)+len(carry))
		if _, err := f.ReadAt(block, begin); err != nil && err != io.EOF {
			return 0, false, err
		}
		block = append(block, carry...)
		for {
			newline := bytes.LastIndexByte(block, '\n')
			if newline < 0 && begin > 0 {
				break
			}
			line := block[newline+1:]
			// What follows the last newline is a line only if there is something.
			if (!unfinished || len(line) > 0) && t.enough(line, unfinished) {
				after := begin + int64(newline+1+len(line))
				if !unfinished {
					after++ // the newline
				}
				return after, true, nil
			}
			unfinished = false
			if newline < 0 {
				break
			}
			block = block[:newline]
		}
		carry, end = block, begin
		if len(carry) > 2*blockSize {
			carry = carry[:blockSize] // not a line of ours: what matters is its beginning
		}
	}
	return 0, false, nil
}

// enough takes one more line, and says whether it is the one before the wanted ones.
func (t *tailCounter) enough(line []byte, unfinished bool) bool {
	_, _, partial, _, ok := parseLine(line)
	if !ok || len(line) > blockSize { // it is not shown either
		return false
	}
	counts := !partial || t.first || unfinished
	t.first = false
	if !counts {
		return false
	}
	if t.left == 0 {
		return true
	}
	t.left--
	return false
}

// dirWatch reports that something happens in a directory, which need not exist yet. It works
// without inotify too, only later.
type dirWatch struct {
	dir     string
	inotify *os.File // nil: none is to be had
	added   bool
	changed chan struct{}
	done    chan struct{}
}

func newWatch(dir string) *dirWatch {
	w := &dirWatch{dir: dir, changed: make(chan struct{}, 1), done: make(chan struct{})}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		close(w.done)
		return w
	}
	w.inotify = os.NewFile(uintptr(fd), "inotify")
	w.add()
	go w.run()
	return w
}

// add watches the directory if it is there.
func (w *dirWatch) add() {
	err := rawfd.Use(w.inotify, func(fd int) error {
		_, err := unix.InotifyAddWatch(fd, w.dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR)
		return err
	})
	w.added = err == nil
}

// run turns events into one signal; what they say does not matter.
func (w *dirWatch) run() {
	defer close(w.done)
	buffer := make([]byte, 4096)
	for {
		if _, err := w.inotify.Read(buffer); err != nil {
			return
		}
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
}

func (w *dirWatch) close() {
	if w.inotify != nil {
		w.inotify.Close()
	}
	<-w.done
}

// wait returns when there may be something new, and whether that is the end.
func (w *dirWatch) wait(ctx context.Context, over context.Context) (ended bool, err error) {
	pause := rescan
	if !w.added {
		pause = 100 * time.Millisecond
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-over.Done():
		return true, nil
	case <-w.changed:
	case <-timer.C:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if !w.added && w.inotify != nil {
		w.add()
	}
	return false, nil
}
