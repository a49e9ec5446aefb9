package logs

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/rawfd"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/shim"
)

const (
	// maxReaders is how many logs can be read at a time.
	maxReaders = 256
	// settleTime bounds the wait for the last lines of a container that has ended.
	settleTime = 3 * time.Second
	// fresh is how long after the end of an attempt its last lines may still be on their way.
	fresh = 10 * time.Second
	// readerCheck is how often it is looked whether somebody still reads a log without new lines.
	readerCheck = time.Second
)

// Request names a log.
type Request struct {
	// LogDir is the pod's directory of CRI log files; empty: the lines are in the journal.
	LogDir string
	// FIFODir is the directory of the pod's FIFOs ([shim.FIFODir]); empty: what is still in them
	// when an attempt ends is not waited for.
	FIFODir   string
	PodUID    string
	Container string
	Attempt   int
	// Ended is when the attempt has ended; zero while it runs.
	Ended time.Time
	// Options.Previous and Options.Container are not looked at.
	Options pod.LogOptions
	// Quiet leaves out what went wrong: the reader is a program that takes every line for the
	// container's.
	Quiet bool
	// Wait, for Options.Follow, waits until the attempt has ended, or for the end of ctx.
	Wait func(ctx context.Context)
}

// Reader reads the logs of containers.
type Reader struct {
	journalctl string // the program or its path
	ctx        context.Context
	cancel     context.CancelFunc

	mu   sync.Mutex
	open int
	wg   sync.WaitGroup
}

// NewReader returns a Reader; Close ends it.
func NewReader() *Reader {
	r := &Reader{journalctl: "journalctl"}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Close ends all reading and waits for that. Open refuses afterwards.
func (r *Reader) Close() {
	r.mu.Lock()
	r.cancel()
	r.mu.Unlock()
	r.wg.Wait()
}

// Open returns the read end of a pipe that gets the lines of the log, each ended by a newline;
// lines that were split are joined. The writer ends when all were written, when nobody reads any
// more, and with ctx. What goes wrong later than the call is the last line, unless q.Quiet is set.
//
// Exhausted: too many logs are being read; Unavailable: the reader was closed.
func (r *Reader) Open(ctx context.Context, q Request) (*os.File, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.ctx.Err() != nil:
		return nil, pod.Errorf(pod.Unavailable, "cannot read logs: magikpodd is ending")
	case r.open >= maxReaders:
		return nil, pod.Errorf(pod.Exhausted, "cannot read logs: %d are being read already", r.open)
	}
	// Only our end does not block: nobody knows what the other side makes of EAGAIN.
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, pod.Errorf(pod.Unavailable, "cannot make a pipe for the log: %w", err)
	}
	if err := unix.SetNonblock(fds[1], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, pod.Errorf(pod.Internal, "cannot make a pipe for the log: %w", err)
	}
	read, write := os.NewFile(uintptr(fds[0]), "log"), os.NewFile(uintptr(fds[1]), "log")
	r.open++
	r.wg.Go(func() {
		r.serve(ctx, q, write)
		r.mu.Lock()
		r.open--
		r.mu.Unlock()
	})
	return read, nil
}

// serve writes the log to w and closes it.
func (r *Reader) serve(ctx context.Context, q Request, w *os.File) {
	ctx, cancel := context.WithCancel(ctx)
	defer w.Close()
	defer context.AfterFunc(r.ctx, cancel)()
	stopWrites := context.AfterFunc(ctx, func() { _ = w.SetWriteDeadline(time.Unix(1, 0)) })
	defer stopWrites()
	var wg sync.WaitGroup
	wg.Go(func() { watchReader(ctx, w, cancel) })
	defer wg.Wait()
	defer cancel()

	out := newLineWriter(w, q.Options)
	err := r.copyAll(ctx, q, out)
	if err != nil && !q.Quiet && ctx.Err() == nil && !errors.Is(err, syscall.EPIPE) {
		out.text(err.Error())
	}
	_ = out.flush()
}

// copyAll writes what is there, or when the log is followed, all to the attempt's end.
func (r *Reader) copyAll(ctx context.Context, q Request, out *lineWriter) error {
	if !q.Options.Follow || q.Wait == nil {
		if !q.Ended.IsZero() && time.Since(q.Ended) < fresh {
			settle(ctx, q)
		}
		return r.copy(ctx, q, out, nil)
	}
	ctx, cancel := context.WithCancel(ctx)
	over, end := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		defer end()
		q.Wait(ctx)
		settle(ctx, q)
	})
	defer wg.Wait()
	defer cancel()
	return r.copy(ctx, q, out, over)
}

// copy writes the lines of one attempt to out: those that are there now or, when over is not nil,
// all until over ends; nothing is added to the log after that.
func (r *Reader) copy(ctx context.Context, q Request, out *lineWriter, over context.Context) error {
	if q.LogDir != "" {
		return copyFiles(ctx, q, out, over)
	}
	return copyJournal(ctx, r.journalctl, q, out, over)
}

// settle waits until all that an ended attempt has written is in its log.
func settle(ctx context.Context, q Request) {
	if q.FIFODir == "" {
		return
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(settleTime); time.Now().Before(end) && !shim.LogRelayed(q.FIFODir, q.Container, q.Attempt); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// watchReader calls gone when nobody has the other end of the pipe open any more; it returns then
// or when ctx ends.
func watchReader(ctx context.Context, w *os.File, gone func()) {
	tick := time.NewTicker(readerCheck)
	defer tick.Stop()
	for left := false; !left; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		err := rawfd.Use(w, func(fd int) error {
			fds := []unix.PollFd{{Fd: int32(fd)}}
			n, err := unix.Poll(fds, 0)
			left = err == nil && n > 0 && fds[0].Revents&unix.POLLERR != 0
			return nil
		})
		if err != nil { // it was closed
			return
		}
	}
	gone()
}
