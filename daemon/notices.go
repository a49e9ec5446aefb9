package daemon

import (
	"sync"

	"github.com/magikrun/magikpod/pod"
)

// notices reports changes to subscribers, in the order in which they are reported to it.
type notices struct {
	mu        sync.Mutex
	listeners map[int]func(pod.Notice)
	last      int
}

// Subscribe has notify called with every change from now on. It must not block, and must not call
// the daemon.
func (n *notices) Subscribe(notify func(pod.Notice)) (unsubscribe func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners == nil {
		n.listeners = make(map[int]func(pod.Notice))
	}
	n.last++
	id := n.last
	n.listeners[id] = notify
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.listeners, id)
	}
}

func (n *notices) report(notice pod.Notice) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, notify := range n.listeners {
		notify(notice)
	}
}
