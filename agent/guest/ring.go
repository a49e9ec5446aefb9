package guest

import (
	"sync"

	"github.com/magikrun/magikpod/agent/wire"
)

// The limits of what is kept of a container's output, in bytes. Without a newline a line is cut at maxLine. Each line counts for lineCost more, which is what it
// takes beside its bytes: a container that writes short ones would have the agent take fifty times of what is kept, out of all containers' sight.
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
	first   int // number of lines[0]
	bytes   int
	partial map[wire.FrameType][]byte
	closed  bool
}

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
	r.bytes += len(line.data) + lineCost
	for r.bytes > maxLog {
		r.bytes -= len(r.lines[0].data) + lineCost
		r.lines[0] = logLine{}
		r.lines = r.lines[1:]
		r.first++
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

// tail is the number of the line from which n are left; all when n is nil.
func (r *ring) tail(n *int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n == nil || *n > len(r.lines) {
		return r.first
	}
	return r.first + len(r.lines) - *n
}

// since are the lines from a number on, as many as are kept; next is the number to go on with. more is closed when there is more, nil when there never will be.
func (r *ring) since(number int) (lines []logLine, next int, more <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	number = max(number, r.first)
	if skip := number - r.first; skip < len(r.lines) {
		lines = append(lines, r.lines[skip:]...)
	}
	if !r.closed {
		more = r.changed
	}
	return lines, r.first + len(r.lines), more
}

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
	for number := c.log.tail(r.Tail); ; {
		lines, next, more := c.log.since(number)
		for _, line := range lines {
			if p.WriteFrame(line.t, line.data) != nil {
				return nil
			}
		}
		number = next
		if !r.Follow || more == nil {
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
