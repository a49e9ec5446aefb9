package guest

import (
	"sync"
	"time"

	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// maxEvents is how many events wait for one listener.
const maxEvents = 64

// events passes events on to all who listen.
type events struct {
	mu        sync.Mutex
	listeners map[*listener]bool
}

type listener struct {
	queue chan wire.Event
	lost  bool // guarded by events.mu
}

func newEvents() *events { return &events{listeners: map[*listener]bool{}} }

// send never blocks: a listener who does not listen loses events, and is told so.
func (e *events) send(event wire.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for l := range e.listeners {
		select {
		case l.queue <- event:
		default:
			l.lost = true
		}
	}
}

// serve sends events until the host hangs up.
func (e *events) serve(p *peer) error {
	l := &listener{queue: make(chan wire.Event, maxEvents)}
	e.mu.Lock()
	e.listeners[l] = true
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		delete(e.listeners, l)
		e.mu.Unlock()
	}()
	if err := p.WriteReply(nil); err != nil {
		return nil // the host is gone
	}
	gone := make(chan struct{})
	go p.watch(func() { close(gone) })
	for {
		select {
		case event := <-l.queue:
			if p.WriteJSON(wire.FrameEvent, event) != nil {
				return nil
			}
			if e.missed(l) && p.WriteJSON(wire.FrameEvent, wire.Event{Type: wire.EventLost, Time: time.Now()}) != nil {
				return nil
			}
		case <-gone:
			return nil
		}
	}
}

// missed tells once, when a listener has read all that was kept for it, whether events were lost since.
func (e *events) missed(l *listener) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	lost := l.lost && len(l.queue) == 0
	if lost {
		l.lost = false
	}
	return lost
}
