package shim

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// readSize is how much is read at a time: a whole pipe.
	readSize = 64 << 10
	maxPipe  = 1 << 20
	// drainTime is how long the relay goes on after it was asked to stop.
	drainTime = 2 * time.Second
)

var newline = []byte{'\n'}

// lineWriter is where the lines of one stream go. The line is only lent.
type lineWriter interface {
	// write writes a line without its newline; partial: more of the same line follows. It may be
	// kept back until flush. Both return how many lines are lost.
	write(line []byte, partial bool) (lost int, err error)
	flush() (lost int, err error)
	// maxLine is the length at which lines are split, in bytes.
	maxLine() int
	close() error
}

// logSink makes the lineWriters of a driver.
type logSink interface {
	open(name logName) (lineWriter, error)
}

// relay moves the lines of a pod's containers from their FIFOs to a log driver. It is one loop
// around epoll that never leaves its thread: no goroutine, no lock, one buffer.
type relay struct {
	dir      string
	sink     logSink
	complain func(error)

	epoll, added int
	wake         int             // readable when the relay is to stop
	streams      map[int]*stream // by file descriptor
	buffer       []byte
	deadline     time.Time // of the drain; zero before stop
	// extraFD ends run when it becomes readable (the PID namespace's first process has ended).
	extraFD int
	// config, when not nil, is what the relay dozes with after it has had nothing to do for so long.
	config *PauseConfig
	rest   time.Duration
	lost   int // lines, since the last complaint
}

// stream is one open FIFO.
type stream struct {
	fd      int
	name    logName
	out     lineWriter
	pending []byte // the beginning of a line
}

func emptyRelay(dir string, wake int, complain func(error)) *relay {
	return &relay{dir: dir, complain: complain, epoll: -1, added: -1, wake: wake, extraFD: -1, streams: map[int]*stream{}, buffer: make([]byte, readSize)}
}

// newRelay listens for what is put into the directory; a FIFO that is put there from now on is not
// missed. It stops when the descriptor wake becomes readable, which becomes its own.
func newRelay(dir string, wake int, complain func(error)) (*relay, error) {
	r := emptyRelay(dir, wake, complain)
	fail := func(err error) (*relay, error) {
		r.closeAll()
		return nil, fmt.Errorf("cannot relay logs of %s: %w", dir, err)
	}
	var err error
	if r.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fail(err)
	}
	if r.added, err = openWake(dir); err != nil {
		return fail(err)
	}
	for _, fd := range []int{r.added, r.wake} {
		if err := r.watch(fd); err != nil {
			return fail(err)
		}
	}
	return r, nil
}

// openSink opens the log driver of a pod.
func (r *relay) openSink(config *PauseConfig) error {
	switch config.Driver {
	case LogJournal, "":
		r.sink = newJournal(config, r.expired)
	case LogFile:
		r.sink = newCRILogs(config)
	default:
		r.closeAll()
		return fmt.Errorf("cannot relay logs: unknown driver %q", config.Driver)
	}
	return nil
}

func (r *relay) watch(fd int) error {
	return unix.EpollCtl(r.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

// expired says that the drain's time is over.
func (r *relay) expired() bool {
	if r.deadline.IsZero() {
		r.pollWake() // the writer is waiting for the journal, and this is how it learns of a stop
	}
	return !r.deadline.IsZero() && !time.Now().Before(r.deadline)
}

// pollWake starts the drain if the relay is to stop.
func (r *relay) pollWake() {
	var why [unsafe.Sizeof(unix.SignalfdSiginfo{})]byte
	if n, err := unix.Read(r.wake, why[:]); err == nil && n > 0 && r.deadline.IsZero() {
		r.deadline = time.Now().Add(drainTime)
	}
}

// errExtra ends run when the extra descriptor became readable.
var errExtra = errors.New("the first process of the pod's PID namespace has ended")

// run relays until it is to stop and every FIFO has reached its end, or the drain's time is over.
func (r *relay) run() error {
	defer r.closeAll()
	if r.extraFD >= 0 {
		if err := r.watch(r.extraFD); err != nil && !errors.Is(err, unix.EEXIST) { // it has dozed
			return fmt.Errorf("cannot relay logs: %w", err)
		}
	}
	r.scan()
	events := make([]unix.EpollEvent, 16)
	for {
		timeout := -1
		switch {
		case r.mayDoze():
			timeout = int(r.rest / time.Millisecond)
		case !r.deadline.IsZero():
			left := time.Until(r.deadline)
			if len(r.streams) == 0 || left <= 0 {
				return nil
			}
			timeout = int(left/time.Millisecond) + 1
		}
		n, err := unix.EpollWait(r.epoll, events, timeout)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot relay logs: %w", err)
		}
		if n == 0 && r.mayDoze() {
			r.complain(r.doze())
			r.config = nil
		}
		for _, event := range events[:n] {
			switch fd := int(event.Fd); fd {
			case r.added:
				r.answer()
			case r.wake:
				r.pollWake()
				r.scan() // what was put there a moment ago counts
			case r.extraFD:
				return errExtra
			default:
				if s := r.streams[fd]; s != nil {
					r.read(s)
				}
			}
		}
	}
}

// mayDoze says whether all that the relay knows is in its descriptors.
func (r *relay) mayDoze() bool {
	if r.config == nil || !r.deadline.IsZero() || r.lost > 0 {
		return false
	}
	for _, s := range r.streams {
		if len(s.pending) > 0 {
			return false
		}
	}
	return true
}

// scan takes up everything that lies in the directory.
func (r *relay) scan() {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		r.complain(fmt.Errorf("cannot list log pipes: %w", err))
		return
	}
	var ends []logName
	for _, entry := range entries {
		if name, ok := parseLogName(entry.Name()); ok && name.stream == streamEnd {
			ends = append(ends, name)
		} else if ok {
			r.add(name)
		}
	}
	for _, name := range ends {
		r.end(name)
	}
}

// answer takes up what was added.
func (r *relay) answer() {
	var wakeUps [4096]byte
	for {
		if n, err := unix.Read(r.added, wakeUps[:]); err != nil || n < len(wakeUps) {
			break
		}
	}
	r.scan()
}

// find returns the open FIFO of that name.
func (r *relay) find(name logName) *stream {
	for _, s := range r.streams {
		if s.name == name {
			return s
		}
	}
	return nil
}

// add opens a FIFO, unless it is open already, and reads what is in it.
func (r *relay) add(name logName) {
	path := filepath.Join(r.dir, name.String())
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) {
		return
	}
	if err != nil {
		r.complain(fmt.Errorf("cannot open log pipe %s: %w", path, err))
		return
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		unix.Close(fd)
		r.complain(fmt.Errorf("cannot open log pipe %s: not a FIFO", path))
		return
	}
	if old := r.find(name); old != nil {
		var was unix.Stat_t
		if unix.Fstat(old.fd, &was) == nil && was.Ino == st.Ino && was.Dev == st.Dev {
			unix.Close(fd)
			return
		}
		r.drop(old, false) // replaced: a second start of the same attempt
	}
	s := &stream{fd: fd, name: name, out: r.openWriter(name)}
	if err := r.watch(fd); err != nil {
		unix.Close(fd)
		r.complain(fmt.Errorf("cannot watch log pipe %s: %w", path, err))
		return
	}
	r.streams[fd] = s
	if err := unix.Fchmod(fd, takenMode); err != nil {
		r.complain(fmt.Errorf("cannot mark log pipe %s: %w", path, err))
	}
	// A FIFO without a writer is at its end, of which epoll says nothing before the first writer
	// has come and gone.
	r.read(s)
}

func (r *relay) openWriter(name logName) lineWriter {
	out, err := r.sink.open(name)
	if err != nil {
		// Reading on with nowhere to write loses lines with a notice; not reading would stop the
		// container.
		r.complain(err)
		return discard{err}
	}
	return out
}

// discard refuses every line, so that the loss is counted.
type discard struct{ err error }

func (d discard) write([]byte, bool) (int, error) { return 1, d.err }
func (d discard) flush() (int, error)             { return 0, nil }
func (d discard) maxLine() int                    { return maxCRILine }
func (d discard) close() error                    { return nil }

// end takes what is left in the FIFOs of a container whose processes are gone, and removes them.
func (r *relay) end(name logName) {
	for _, kind := range []string{Stdout, Stderr} {
		fifo := logName{name.container, name.attempt, kind}
		r.add(fifo)
		s := r.find(fifo)
		// Nobody writes any more, so a pipe's worth is all that can be left (fs.pipe-max-size: 1 MiB).
		for range maxPipe/readSize + 1 {
			if s == nil || !r.read(s) {
				break
			}
		}
		if s := r.find(fifo); s != nil {
			r.drop(s, true)
		}
	}
	_ = os.Remove(logPathFile(r.dir, name)) // most often there is none
	if err := os.Remove(filepath.Join(r.dir, name.String())); err != nil && !errors.Is(err, os.ErrNotExist) {
		r.complain(fmt.Errorf("cannot remove mark: %w", err))
	}
}

// read moves what one read(2) gives; at the end of the stream it is dropped. It reports whether
// there may be more to read at once.
func (r *relay) read(s *stream) bool {
	n, err := unix.Read(s.fd, r.buffer)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return false
	case errors.Is(err, unix.EINTR):
		return true
	case err != nil:
		r.complain(fmt.Errorf("cannot read log pipe %s: %w", s.name, err))
		r.drop(s, true)
		return false
	case n == 0:
		r.drop(s, true)
		return false
	}
	before := r.lost
	r.split(s, r.buffer[:n])
	r.flush(s)
	if r.lost > 0 && r.lost == before && len(s.pending) < n {
		r.complain(errors.New("writing logs works again; lines lost: " + strconv.Itoa(r.lost)))
		r.lost = 0
	}
	return true
}

// split writes the lines in data, and keeps an unfinished one.
func (r *relay) split(s *stream, data []byte) {
	limit := s.out.maxLine()
	for len(data) > 0 {
		line, rest, whole := bytes.Cut(data, newline)
		if room := limit - len(s.pending); len(line) > room {
			r.emit(s, line[:room], true)
			data = data[room:]
			continue
		}
		if !whole {
			s.pending = append(s.pending, line...)
			return
		}
		r.emit(s, line, false)
		data = rest
	}
}

// emit writes the pending beginning and line as one.
func (r *relay) emit(s *stream, line []byte, partial bool) {
	if len(s.pending) > 0 {
		line = append(s.pending, line...)
		s.pending = nil
		if cap(line) <= readSize {
			s.pending = line[:0]
		}
	}
	lost, err := s.out.write(line, partial)
	r.count(s, lost, err)
}

func (r *relay) flush(s *stream) {
	lost, err := s.out.flush()
	r.count(s, lost, err)
}

// count complains of lost lines when their number has one more binary digit.
func (r *relay) count(s *stream, lost int, err error) {
	before := r.lost
	r.lost += lost
	if bits.Len(uint(r.lost)) > bits.Len(uint(before)) {
		r.complain(fmt.Errorf("%w (%d lines lost, container %s)", err, r.lost, s.name.container))
	}
}

// drop ends a stream: a last line without newline is a line. remove unlinks the FIFO.
func (r *relay) drop(s *stream, remove bool) {
	if len(s.pending) > 0 {
		r.emit(s, nil, false)
		r.flush(s)
	}
	if err := s.out.close(); err != nil {
		r.complain(fmt.Errorf("cannot close log: %w", err))
	}
	path := filepath.Join(r.dir, s.name.String())
	var open, there unix.Stat_t
	same := unix.Fstat(s.fd, &open) == nil && unix.Lstat(path, &there) == nil && open.Ino == there.Ino && open.Dev == there.Dev
	delete(r.streams, s.fd)
	unix.Close(s.fd)
	if remove && same {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			r.complain(fmt.Errorf("cannot remove log pipe: %w", err))
		}
	}
}

// closeAll ends every stream, with what was read of it, and gives the descriptors back.
func (r *relay) closeAll() {
	open := make([]*stream, 0, len(r.streams))
	for _, s := range r.streams {
		open = append(open, s)
	}
	slices.SortFunc(open, func(a, b *stream) int { return strings.Compare(a.name.String(), b.name.String()) })
	for _, s := range open {
		r.drop(s, false)
	}
	if j, ok := r.sink.(*journal); ok {
		j.disconnect()
	}
	for _, fd := range []int{r.epoll, r.added, r.wake} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	r.epoll, r.added, r.wake = -1, -1, -1
}
