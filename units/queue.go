package units

import (
	"sync"

	"github.com/godbus/dbus/v5"
)

// queue is what the goroutine of the manager works on: signals in the order in which they came, and
// functions put between them. It has no bound: the connection's reader must never wait, since it
// delivers replies too.
type queue struct {
	mu       sync.Mutex
	items    []item
	closed   bool
	wake     chan struct{} // of size 1
	channels []chan<- *dbus.Signal
	sender   string // systemd, on the bus; empty: not known yet
}

// item is a signal or a function.
type item struct {
	signal *dbus.Signal
	do     func()
}

func newQueue() *queue { return &queue{wake: make(chan struct{}, 1)} }

// add appends an item; false when the queue is closed.
func (q *queue) add(it item) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.items = append(q.items, it)
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return true
}

// take waits for items and returns all of them; false when the queue is closed and empty.
func (q *queue) take() ([]item, bool) {
	for {
		q.mu.Lock()
		items, closed := q.items, q.closed
		q.items = nil
		q.mu.Unlock()
		if len(items) > 0 || closed {
			return items, len(items) > 0
		}
		<-q.wake
	}
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.closed = true
		close(q.wake)
	}
}

// DeliverSignal implements [dbus.SignalHandler]; the connection's reader calls it for one message
// after the other. What is not from systemd is dropped: everybody on the bus may send us signals
// that look like its own.
func (q *queue) DeliverSignal(_, _ string, signal *dbus.Signal) {
	if signal.Sender == "org.freedesktop.DBus" {
		if signal.Name == "org.freedesktop.DBus.NameOwnerChanged" && len(signal.Body) == 3 && signal.Body[0] == busName {
			owner, _ := signal.Body[2].(string)
			q.trust(owner, true)
		}
		return
	}
	if q.trusts(signal.Sender) {
		q.add(item{signal: signal})
	}
}

// trust names systemd on the bus. It has another name after `systemctl daemon-reexec`; what the bus
// says about that is the newest.
func (q *queue) trust(sender string, newest bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if newest || q.sender == "" {
		q.sender = sender
	}
}

// trusts says whether a sender is systemd.
func (q *queue) trusts(sender string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.sender != "" && sender == q.sender
}

// AddSignal implements [dbus.SignalRegistrar] for go-systemd, which always listens: it gets no
// signal, but learns of the end.
func (q *queue) AddSignal(ch chan<- *dbus.Signal) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.channels = append(q.channels, ch)
}

// RemoveSignal implements [dbus.SignalRegistrar].
func (q *queue) RemoveSignal(chan<- *dbus.Signal) {}

// Terminate implements [dbus.Terminator]: the connection has ended.
func (q *queue) Terminate() {
	q.mu.Lock()
	channels := q.channels
	q.channels = nil
	q.mu.Unlock()
	for _, ch := range channels {
		close(ch)
	}
}
