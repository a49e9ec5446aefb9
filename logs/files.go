package logs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/shim"
)

const (
	// blockSize is how much of a file is read at a time; a longer line than that is none of ours.
	blockSize = 64 << 10
	// maxFiles bounds the number of rotated files that are looked at.
	maxFiles = 1000
	// rescan is how often a file is looked at although inotify said nothing.
	rescan = time.Second
)

// copyFiles writes the lines of CRI log files.
func copyFiles(ctx context.Context, q Request, out *lineWriter, over context.Context) error {
	path := shim.CRIPath(q.LogDir, q.Container, q.Attempt)
	chain := &chain{path: path, since: q.Options.Since, buffer: make([]byte, blockSize)}
	defer chain.close()
	var watch *dirWatch
	if over != nil {
		watch = newWatch(filepath.Dir(path))
		defer watch.close()
	}
	if q.Options.Tail >= 0 {
		if err := chain.seekTail(q.Options.Tail); err != nil {
			return err
		}
	}
	for ended := over == nil; ; {
		if err := chain.read(ctx, out); err != nil {
			return err
		}
		moved, err := chain.advance()
		if err != nil {
			return err
		}
		if moved {
			continue
		}
		if ended {
			return chain.finish(out)
		}
		if err := out.flush(); err != nil {
			return err
		}
		if ended, err = watch.wait(ctx, over); err != nil {
			return err
		}
	}
}

// chain reads the files of one attempt, the oldest first, while they are being rotated.
type chain struct {
	path   string
	since  time.Time
	file   file  // without an os.File: none was there yet
	offset int64 // of the first line that was not read
	skip   bool  // the rest of a line that is too long
	// again is set when the file was found rotated, and so complete: it has to be read once more to
	// its end before the next one.
	again  bool
	buffer []byte
}

// file is one file of a chain.
type file struct {
	*os.File     // nil: it was not opened
	index    int // 0: the one that is written to
	info     fs.FileInfo
}

// list returns the files that are there, the newest first. One number may be missing: a rotation is
// on its way.
func (c *chain) list() ([]file, error) {
	var files []file
	for index, missing := 0, 0; index <= maxFiles && missing < 2; index++ {
		info, err := os.Lstat(shim.CRIRotated(c.path, index))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			missing++
		case err != nil:
			return nil, pod.Errorf(pod.Internal, "cannot read the log: %w", err)
		case !info.Mode().IsRegular():
			return nil, pod.Errorf(pod.Internal, "cannot read the log %s: not a regular file", shim.CRIRotated(c.path, index))
		default:
			missing = 0
			files = append(files, file{index: index, info: info})
		}
	}
	return files, nil
}

// openAll opens files of one moment: choose gets the list, the newest first, and returns the ones
// to open.
func (c *chain) openAll(choose func(files []file) []file) ([]file, error) {
	for end, pause := time.Now().Add(settleTime), time.Millisecond; time.Now().Before(end); pause = min(2*pause, 20*time.Millisecond) {
		before, err := c.list()
		if err != nil {
			return nil, err
		}
		chosen := choose(before)
		if c.openThese(chosen) {
			after, err := c.list()
			if err == nil && slices.EqualFunc(before, after, func(a, b file) bool { return a.index == b.index && os.SameFile(a.info, b.info) }) {
				return chosen, nil
			}
		}
		closeFiles(chosen)
		time.Sleep(pause) // a rotation takes less than a millisecond
	}
	return nil, pod.Errorf(pod.Unavailable, "cannot read the log: its files are rotated too fast")
}

// openThese opens the files, unless one is another now.
func (c *chain) openThese(files []file) bool {
	for i := range files {
		f := &files[i]
		var err error
		if f.File, err = os.OpenFile(shim.CRIRotated(c.path, f.index), os.O_RDONLY|syscall.O_NOFOLLOW, 0); err != nil {
			return false
		}
		if info, err := f.Stat(); err != nil || !os.SameFile(info, f.info) {
			return false
		}
	}
	return true
}

func closeFiles(files []file) {
	for _, f := range files {
		f.Close() // a file that was not opened says so
	}
}

func (c *chain) use(f file, offset int64) {
	c.close()
	c.file, c.offset, c.skip, c.again = f, offset, false, false
}

func (c *chain) close() { c.file.Close() }

// advance goes on to the next newer file, or to the first one. It returns false when there is none
// yet, true when there is something to read again.
func (c *chain) advance() (bool, error) {
	rotated := false
	chosen, err := c.openAll(func(files []file) []file {
		next := c.next(files)
		rotated = next != nil
		if next == nil || c.file.File != nil && !c.again {
			return nil
		}
		return []file{*next}
	})
	if err != nil {
		return false, err
	}
	if len(chosen) == 1 {
		c.use(chosen[0], 0)
		return true, nil
	}
	if rotated {
		c.again = true
	}
	return rotated, nil
}

// next returns the file to read after the present one; nil: there is none.
func (c *chain) next(files []file) *file {
	at := len(files) // a file that is not there any more is older than all
	if c.file.File != nil {
		if i := slices.IndexFunc(files, func(f file) bool { return os.SameFile(f.info, c.file.info) }); i >= 0 {
			at = i
		}
	}
	for at--; at >= 0; at-- {
		// To begin with, files without a line of the wanted time are passed over.
		if c.file.File != nil || at == 0 || c.since.IsZero() || !files[at].info.ModTime().Before(c.since) {
			return &files[at]
		}
	}
	return nil
}

// read writes what is in the file from the offset on, but no unfinished line.
func (c *chain) read(ctx context.Context, out *lineWriter) error {
	for c.file.File != nil && ctx.Err() == nil {
		n, err := c.file.ReadAt(c.buffer, c.offset)
		if err != nil && err != io.EOF {
			return pod.Errorf(pod.Internal, "cannot read the log: %w", err)
		}
		data := c.buffer[:n]
		used := bytes.LastIndexByte(data, '\n') + 1
		switch {
		case used > 0:
			if err := c.lines(data[:used], out); err != nil {
				return err
			}
		case n == len(c.buffer):
			used, c.skip = n, true
		case n == 0:
			if info, err := c.file.Stat(); err == nil && info.Size() < c.offset {
				c.offset = 0 // somebody has emptied the file
			}
			return nil
		default:
			return nil
		}
		c.offset += int64(used)
	}
	return ctx.Err()
}

// lines writes whole lines.
func (c *chain) lines(data []byte, out *lineWriter) error {
	for len(data) > 0 {
		line, rest, _ := bytes.Cut(data, []byte{'\n'})
		data = rest
		if c.skip {
			c.skip = false
			continue
		}
		if err := c.line(line, out); err != nil {
			return err
		}
	}
	return nil
}

func (c *chain) line(line []byte, out *lineWriter) error {
	stamp, stream, partial, text, ok := parseLine(line)
	if !ok {
		return nil
	}
	if !out.since.IsZero() {
		if at, err := time.Parse(time.RFC3339Nano, string(stamp)); err != nil || at.Before(out.since) {
			return nil
		}
	}
	return out.entry(stream, stamp, text, partial)
}

// finish writes an unfinished last line: nothing will be added to it.
func (c *chain) finish(out *lineWriter) error {
	if c.file.File != nil && !c.skip {
		n, _ := c.file.ReadAt(c.buffer, c.offset)
		if n > 0 && !bytes.Contains(c.buffer[:n], []byte{'\n'}) {
			if err := c.line(c.buffer[:n], out); err != nil {
				return err
			}
		}
	}
	return out.finish()
}
