package guest

import (
	"fmt"
	"sync"

	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// The limits of what is kept of a container's output, in bytes. Without a newline a line is cut at maxLine. A line counts lineCost more than it has, which is about what
// it takes to keep it.
const (
	maxLog   = 256 << 10
	maxLine  = 16 << 10
	lineCost = 64
)

// logLine is one line, with its newline unless it was cut.
type logLine struct {
	t    wire.FrameType
	data []byte
}

// ring keeps the last lines of a container's output.
type ring struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced when there is more
	lines   []logLine
	first   place // of lines[0]
	cost    int
	partial map[wire.FrameType][]byte
	closed  bool
}

// place is a place in the output: how many lines, with how many bytes, come before it.
type place struct {
	line  int
	bytes int64
}

func (p place) after(l logLine) place { return place{p.line + 1, p.bytes + int64(len(l.data))} }

func newRing() *ring {
	return &ring{changed: make(chan struct{}), partial: map[wire.FrameType][]byte{}}
}

// write adds output. It never blocks for long.
func (r *ring) write(t wire.FrameType, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(data) > 0 && !r.closed {
		part := r.partial[t]
		n := min(len(data), maxLine-len(part))
		end := false
		for i, b := range data[:n] {
			if b == '\n' {
				n, end = i+1, true
				break
			}
		}
		part = append(part, data[:n]...)
		data = data[n:]
		if end || len(part) >= maxLine {
			r.add(logLine{t, part})
			part = nil
		}
		r.partial[t] = part
	}
	r.wake()
}

func (r *ring) add(line logLine) {
	r.lines = append(r.lines, line)
	r.cost += len(line.data) + lineCost
	for r.cost > maxLog {
		old := r.lines[0]
		r.cost -= len(old.data) + lineCost
		r.first = r.first.after(old)
		r.lines[0] = logLine{}
		r.lines = r.lines[1:]
	}
}

func (r *ring) wake() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// close says that there will be no more. What has no newline becomes a line.
func (r *ring) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	for _, t := range []wire.FrameType{wire.FrameStdout, wire.FrameStderr} {
		if part := r.partial[t]; len(part) > 0 {
			r.add(logLine{t, part})
		}
	}
	r.partial, r.closed = nil, true
	r.wake()
}

// tail is where the last n lines begin; where all do that are kept when n is nil.
func (r *ring) tail(n *int) place {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.first
	if n != nil && *n < len(r.lines) {
		for _, line := range r.lines[:len(r.lines)-*n] {
			at = at.after(line)
		}
	}
	return at
}

// end is where the next line will begin.
func (r *ring) end() place {
	none := 0
	return r.tail(&none)
}

// next is the line at a place, or the first one after it that is still kept, and where it begins. ok is false when there is none yet; more is closed when there is one, and nil
// when there never will be.
func (r *ring) next(at place) (line logLine, from place, ok bool, more <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at.line < r.first.line {
		at = r.first
	}
	if skip := at.line - r.first.line; skip < len(r.lines) {
		return r.lines[skip], at, true, nil
	}
	if !r.closed {
		more = r.changed
	}
	return logLine{}, at, false, more
}

// lostFormat is the line, of the standard error, that stands for lines that were not read in time.
const lostFormat = "[magikagent: %d bytes of output are missing here, because they were not read in time]\n"

// logs serves what is kept of a container's output.
func (s *Server) logs(p *peer, r *wire.Logs) error {
	c, err := s.find(r.Container, "")
	if err != nil {
		return err
	}
	if err := p.WriteReply(nil); err != nil {
		return nil // the host is gone
	}
	gone := make(chan struct{})
	go p.watch(func() { close(gone) })
	// Without follow this ends with what there is now: a container may write faster than this is read.
	at, end := c.log.tail(r.Tail), c.log.end()
	for r.Follow || at.line < end.line {
		line, from, ok, more := c.log.next(at)
		if lost := from.bytes - at.bytes; lost > 0 && p.WriteFrame(wire.FrameStderr, fmt.Appendf(nil, lostFormat, lost)) != nil {
			return nil
		}
		at = from
		if ok {
			if p.WriteFrame(line.t, line.data) != nil {
				return nil
			}
			at = from.after(line)
			continue
		}
		if more == nil {
			break
		}
		select {
		case <-more:
		case <-gone:
			return nil
		}
	}
	exit := wire.Exit{Type: "exit"}
	c.mu.Lock()
	if c.exit != nil {
		exit = *c.exit
	}
	c.mu.Unlock()
	_ = p.WriteJSON(wire.FrameExit, exit)
	return nil
}
