package daemon

import (
	"errors"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/pod"
)

const (
	// maxProbeOutput is how much of a command's output, or of the body of an answer, is read, in bytes, as in the kubelet.
	maxProbeOutput = 10 << 10
	// probeDrainEvery is how often a pipe is emptied into which a probe writes: 64 KiB each time, which a sane one never fills.
	probeDrainEvery = 20 * time.Millisecond
)

// probeOutput collects the beginning of what a probe's command writes and lets the rest go. The pipe is looked at from time to time, not waited for:
// a process that the command has left behind may keep it open for ever.
type probeOutput struct {
	w      *os.File
	r      int
	kept   []byte
	buffer []byte
	done   chan struct{}
	wg     sync.WaitGroup
}

func newProbeOutput() (*probeOutput, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, pod.Errorf(pod.Unavailable, "cannot make a pipe for the probe: %w", err)
	}
	// Only our end: a command that must wait a moment is better off than one whose write fails.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, pod.Errorf(pod.Internal, "cannot make a pipe for the probe: %w", err)
	}
	o := &probeOutput{w: os.NewFile(uintptr(fds[1]), "probe"), r: fds[0], buffer: make([]byte, 4096), done: make(chan struct{})}
	o.wg.Go(func() {
		tick := time.NewTicker(probeDrainEvery)
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
func (o *probeOutput) drain() {
	for range 64 << 10 / len(o.buffer) {
		n, err := unix.Read(o.r, o.buffer)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n <= 0 {
			return
		}
		o.kept = append(o.kept, o.buffer[:min(n, maxProbeOutput-len(o.kept))]...)
	}
}

// end returns what was written so far. It is called once.
func (o *probeOutput) end() string {
	close(o.done)
	o.wg.Wait()
	o.drain()
	return strings.ToValidUTF8(string(o.kept), "\uFFFD")
}

// close is called after end.
func (o *probeOutput) close() {
	unix.Close(o.r)
	o.w.Close()
}
