package probe

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/errkind"
)

// drainEvery is how often a pipe is emptied into which a command writes: 64 KiB each time, which a
// sane one never fills.
const drainEvery = 20 * time.Millisecond

// Command runs the command of a probe in the container and waits for it. output is its standard
// output and error. An error says that the command could not be run, or not until its end.
type Command func(output *os.File) (code int, timedOut bool, err error)

// Make makes the probe once. run, which the probe's timeout ends, is called for a command only. An
// error means that nothing was learned.
func (p Probe) Make(ctx context.Context, run Command) (Outcome, error) {
	switch {
	case p.HTTP != nil:
		return p.HTTP.get(ctx, p.Timeout)
	case p.TCP != nil:
		return p.TCP.connect(ctx, p.Timeout)
	}
	out, err := newOutput()
	if err != nil {
		return Outcome{}, err
	}
	defer out.close()
	code, timedOut, err := run(out.w)
	text := out.end()
	switch {
	case err != nil: // nor does a command that there is not count as a failure in the kubelet's pkg/probe/exec
		return Outcome{}, err
	case timedOut:
		text = "no end within " + p.Timeout.String()
	}
	return Outcome{Success: code == 0 && !timedOut, Code: code, TimedOut: timedOut, Text: text}, nil
}

// output collects the beginning of what a command writes and lets the rest go. The pipe is looked
// at from time to time, not waited for: a process that the command has left behind may keep it open
// for ever.
type output struct {
	w      *os.File
	r      int
	kept   []byte
	buffer []byte
	done   chan struct{}
	wg     sync.WaitGroup
}

func newOutput() (*output, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, errkind.Errorf(errkind.Unavailable, "cannot make a pipe for the probe: %w", err)
	}
	// Only our end: a command that must wait a moment is better off than one whose write fails.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, errkind.Errorf(errkind.Internal, "cannot make a pipe for the probe: %w", err)
	}
	o := &output{w: os.NewFile(uintptr(fds[1]), "probe"), r: fds[0], buffer: make([]byte, 4096), done: make(chan struct{})}
	o.wg.Go(func() {
		tick := time.NewTicker(drainEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				o.drain()
			case <-o.done:
				return
			}
		}
	})
	return o, nil
}

// drain reads what is there, at most about one pipe full.
func (o *output) drain() {
	for range 64 << 10 / len(o.buffer) {
		n, err := unix.Read(o.r, o.buffer)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n <= 0 {
			return
		}
		o.kept = append(o.kept, o.buffer[:min(n, maxOutput-len(o.kept))]...)
	}
}

// end returns what was written so far. It is called once.
func (o *output) end() string {
	close(o.done)
	o.wg.Wait()
	o.drain()
	return strings.ToValidUTF8(string(o.kept), "\uFFFD")
}

// close is called after end.
func (o *output) close() {
	unix.Close(o.r)
	o.w.Close()
}
