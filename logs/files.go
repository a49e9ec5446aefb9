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
	file   *os.File // nil: none was there yet
	id     fileID
	offset int64 // of the first line that was not read
	skip   bool  // the rest of a line that is too long
	// again is set when the file was found rotated, and so complete: it has to be read once more to its end before the next one.
	again  bool
	buffer []byte
}

// fileID tells files apart.
type fileID struct{ dev, ino uint64 }

// file is one file of a chain.
type file struct {
	index int // 0: the one that is written to
	id    fileID
	mtime time.Time
}

func fileOf(index int, info fs.FileInfo) file {
	f := file{index: index, mtime: info.ModTime()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		f.id = fileID{dev: uint64(st.Dev), ino: st.Ino}
	}
	return f
}

// list returns the files that are there, the newest first. One number may be missing: a rotation is on its way.
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
			files = append(files, fileOf(index, info))
		}
	}
	return files, nil
}

// openAll opens files of one moment: choose gets the list, the newest first, and returns the ones to open.
func (c *chain) openAll(choose func(files []file) []file) ([]file, []*os.File, error) {
	for end, pause := time.Now().Add(settleTime), time.Millisecond; time.Now().Before(end); pause = min(2*pause, 20*time.Millisecond) {
		before, err := c.list()
		if err != nil {
			return nil, nil, err
		}
		chosen := choose(before)
		files, ok := c.openThese(chosen)
		if ok {
			after, err := c.list()
			if err == nil && slices.EqualFunc(before, after, func(a, b file) bool { return a.index == b.index && a.id == b.id }) {
				return chosen, files, nil
			}
		}
		closeFiles(files, nil)
		time.Sleep(pause) // a rotation takes less than a millisecond
	}
	return nil, nil, pod.Errorf(pod.Unavailable, "cannot read the log: its files are rotated too fast")
}

func (c *chain) openThese(chosen []file) ([]*os.File, bool) {
	var files []*os.File
	for _, want := range chosen {
		f, err := os.OpenFile(shim.CRIRotated(c.path, want.index), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
		if err != nil {
			return files, false
		}
		files = append(files, f)
		if info, err := f.Stat(); err != nil || fileOf(want.index, info).id != want.id {
			return files, false
		}
	}
	return files, true
}

// closeFiles closes all but keep.
func closeFiles(files []*os.File, keep *os.File) {
	for _, f := range files {
		if f != keep {
			f.Close()
		}
	}
}

func (c *chain) use(f *os.File, id fileID, offset int64) {
	c.close()
	c.file, c.id, c.offset, c.skip, c.again = f, id, offset, false, false
}

func (c *chain) close() {
	if c.file != nil {
		c.file.Close()
		c.file = nil
	}
}

// advance goes on to the next newer file, or to the first one. It returns false when there is none yet, true when there is something to read again.
func (c *chain) advance() (bool, error) {
	rotated := false
	chosen, files, err := c.openAll(func(files []file) []file {
		next := c.next(files)
		rotated = next != nil
		if next == nil || c.file != nil && !c.again {
			return nil
		}
		return []file{*next}
	})
	if err != nil {
		return false, err
	}
	if len(files) == 1 {
		c.use(files[0], chosen[0].id, 0)
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
	if c.file != nil {
		if i := slices.IndexFunc(files, func(f file) bool { return f.id == c.id }); i >= 0 {
			at = i
		}
	}
	for at--; at >= 0; at-- {
		// To begin with, files without a line of the wanted time are passed over.
		if c.file != nil || at == 0 || c.since.IsZero() || !files[at].mtime.Before(c.since) {
			return &files[at]
		}
	}
	return nil
}

// read writes what is in the file from the offset on, but no unfinished line.
func (c *chain) read(ctx context.Context, out *lineWriter) error {
	for c.file != nil && ctx.Err() == nil {
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
	if c.file != nil && !c.skip {
		n, _ := c.file.ReadAt(c.buffer, c.offset)
		if n > 0 && !bytes.Contains(c.buffer[:n], []byte{'\n'}) {
			if err := c.line(c.buffer[:n], out); err != nil {
				return err
			}
		}
	}
	return out.finish()
}
