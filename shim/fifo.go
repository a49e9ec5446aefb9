package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// wakeName is the FIFO by which the relay is woken when something was put into the directory. (Not
// inotify: to close that takes the kernel some 18 ms, which every pod would take longer to stop.)
// Pause processes of earlier versions listen on it under this name.
const wakeName = ".bell"

// openWake makes and opens the relay's end of it.
func openWake(dir string) (int, error) {
	path := filepath.Join(dir, wakeName)
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, fmt.Errorf("cannot make %s: %w", path, err)
	}
	return unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
}

// wakeRelay wakes the relay. One that is not there yet, or no more, needs nothing: it looks at what
// there is when it starts.
func wakeRelay(dir string) error {
	fd, err := unix.Open(filepath.Join(dir, wakeName), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot wake the log relay: %w", err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte{1}); err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EPIPE) { // it has a wake-up already, or is just gone
		return fmt.Errorf("cannot wake the log relay: %w", err)
	}
	return nil
}

// MakeLogFIFOs makes the FIFOs of one attempt at a container in dir and opens them for the
// container: both are open for reading and writing, so that there is a writer from before the pause
// process sees them, and blocking. Leftovers of the same name are replaced. On an error nothing is
// left.
func MakeLogFIFOs(dir, container string, attempt int) (stdout, stderr *os.File, err error) {
	stdout, err = makeFIFO(dir, logName{container, attempt, Stdout})
	if err == nil {
		stderr, err = makeFIFO(dir, logName{container, attempt, Stderr})
	}
	if err == nil {
		err = wakeRelay(dir)
	}
	if err == nil {
		return stdout, stderr, nil
	}
	for _, f := range []*os.File{stdout, stderr} {
		if f != nil {
			os.Remove(f.Name())
			f.Close()
		}
	}
	return nil, nil, err
}

// SetLogPath says, before MakeLogFIFOs, where in LogDir the log file of an attempt is, if it is not
// where [CRIPath] says. It is forgotten when the log has ended.
func SetLogPath(dir, container string, attempt int, path string) error {
	file := logPathFile(dir, logName{container: container, attempt: attempt})
	if err := os.WriteFile(file, []byte(path), 0o600); err != nil {
		return fmt.Errorf("cannot set the path of a log: %w", err)
	}
	return nil
}

func logPathFile(dir string, name logName) string {
	name.stream = pathEnd
	return filepath.Join(dir, "."+name.String())
}

func makeFIFO(dir string, name logName) (*os.File, error) {
	if _, ok := parseLogName(name.String()); !ok {
		return nil, fmt.Errorf("cannot make log pipe %q: not a valid name", name)
	}
	path := filepath.Join(dir, name.String())
	hidden := filepath.Join(dir, "."+name.String())
	if err := os.Remove(hidden); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot make log pipe: %w", err)
	}
	if err := unix.Mkfifo(hidden, 0o600); err != nil {
		return nil, fmt.Errorf("cannot make log pipe %s: %w", path, err)
	}
	// Opened for both, so that open does not wait for a reader, and blocking: a container that
	// writes faster than its lines go out must wait.
	fd, err := unix.Open(hidden, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		os.Remove(hidden)
		return nil, fmt.Errorf("cannot open log pipe %s: %w", path, err)
	}
	if err := os.Rename(hidden, path); err != nil {
		unix.Close(fd)
		os.Remove(hidden)
		return nil, fmt.Errorf("cannot make log pipe: %w", err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// EndLog notifies the pause process that all processes of this attempt have ended: what is in its
// pipes is written out, then they are removed.
func EndLog(dir, container string, attempt int) error {
	name := logName{container, attempt, streamEnd}
	if _, ok := parseLogName(name.String()); !ok {
		return fmt.Errorf("cannot end log %q: not a valid name", name)
	}
	hidden := filepath.Join(dir, "."+name.String())
	if err := os.WriteFile(hidden, nil, 0o600); err != nil {
		return fmt.Errorf("cannot end log: %w", err)
	}
	if err := os.Rename(hidden, filepath.Join(dir, name.String())); err != nil {
		os.Remove(hidden)
		return fmt.Errorf("cannot end log: %w", err)
	}
	return wakeRelay(dir)
}

// takenMode is the mode of a FIFO that the relay has open. The sticky bit means nothing to a FIFO;
// it is how the relay answers the maker.
const takenMode = unix.S_ISVTX | 0o600

// ReleaseLogFIFOs closes the maker's ends of log FIFOs as soon as the relay has opened them, or
// when ctx ends, and returns then. What is in a FIFO that nobody has open is lost: a container that
// fails at once, while the pause process is just starting, must not be the only one that has it
// open.
func ReleaseLogFIFOs(ctx context.Context, fifos ...*os.File) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for _, f := range fifos {
		for !logTaken(f) && ctx.Err() == nil {
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
		f.Close()
	}
}

// logTaken says whether the relay has the FIFO open, or had.
func logTaken(f *os.File) bool {
	info, err := f.Stat()
	return err != nil || info.Mode()&os.ModeSticky != 0
}

// LogsTaken says whether the relay has, or had, all log FIFOs of a directory open: what is written
// to one that it has not is lost when the pause process is stopped.
func LogsTaken(dir string) bool {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return true // there are none
	}
	for _, entry := range entries {
		name, ok := parseLogName(entry.Name())
		if !ok || name.stream == streamEnd {
			continue
		}
		if info, err := os.Lstat(filepath.Join(dir, entry.Name())); err == nil && info.Mode()&os.ModeSticky == 0 {
			return false
		}
	}
	return true
}

// LogRelayed says whether all that an attempt that has ended has written is in its log: its FIFOs
// are gone then.
func LogRelayed(dir, container string, attempt int) bool {
	for _, stream := range []string{Stdout, Stderr, streamEnd} {
		if _, err := os.Lstat(filepath.Join(dir, logName{container, attempt, stream}.String())); err == nil {
			return false
		}
	}
	return true
}
