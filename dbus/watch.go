package dbus

import (
	"context"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/pod"
)

// watch follows one client until it leaves the bus.
type watch struct {
	users      int           // contexts and the subscription
	subscriber *user         // nil: it is sent nothing
	gone       chan struct{} // closed when the client has left the bus
}

// What subscribers there may be, besides root's.
const (
	maxSubscriptions      = 64 // of one user
	maxOtherSubscriptions = 256
)

// watchNames hears of clients that leave the bus. One rule reports all: the bus limits the rules of
// a connection to 512, which the clients of a few users would use up.
func (s *Server) watchNames() error {
	ch := make(chan *godbus.Signal, 64)
	s.conn.Signal(ch)
	s.wg.Go(func() {
		defer s.conn.RemoveSignal(ch)
		for {
			select {
			case <-s.ctx.Done():
				return
			case sig, ok := <-ch:
				if !ok {
					return
				}
				if sig.Sender != busDriver || sig.Name != busDriver+".NameOwnerChanged" || len(sig.Body) != 3 {
					continue
				}
				name, _ := sig.Body[0].(string)
				if owner, _ := sig.Body[2].(string); owner == "" {
					s.clientGone(name)
				}
			}
		}
	})
	err := s.conn.AddMatchSignalContext(s.ctx, godbus.WithMatchSender(busDriver), godbus.WithMatchInterface(busDriver),
		godbus.WithMatchMember("NameOwnerChanged"), godbus.WithMatchArg(2, ""))
	if err != nil {
		return pod.Errorf(pod.Unavailable, "cannot follow the clients on the bus: %w", err)
	}
	return nil
}

// clientGone ends what the client asked for.
func (s *Server) clientGone(name string) {
	s.gate.gone(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.watches[name]
	if w == nil {
		return
	}
	delete(s.watches, name)
	close(w.gone)
	s.idleSince = time.Now()
}

// maySubscribe says whether the user may have another subscribed client; s.mu is held.
func (s *Server) maySubscribe(u *user) bool {
	if u.root() {
		return true
	}
	own, others := 0, 0
	for _, w := range s.watches {
		if w.subscriber == nil || w.subscriber.root() {
			continue
		}
		others++
		if w.subscriber.id == u.id {
			own++
		}
	}
	return own < maxSubscriptions && others < maxOtherSubscriptions
}

// subscribeClient makes the client hear everything until it leaves. Exhausted: its user has too
// many such clients.
func (s *Server) subscribeClient(sender string, u *user) error {
	w := s.keep(sender)
	defer s.release(sender, w)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case w.subscriber != nil || s.watches[sender] != w:
	case !s.maySubscribe(u):
		return pod.Errorf(pod.Exhausted, "cannot subscribe: there are too many subscribers")
	default:
		w.users++
		w.subscriber = u
	}
	return nil
}

// unsubscribeClient is the inverse of subscribeClient.
func (s *Server) unsubscribeClient(sender string) {
	s.mu.Lock()
	w := s.watches[sender]
	subscribed := w != nil && w.subscriber != nil
	if subscribed {
		w.subscriber = nil
	}
	s.mu.Unlock()
	if subscribed {
		s.release(sender, w)
	}
}

// keep adds a user to the client's watch. Nobody waits for the bus, which may say that the client
// left before we looked.
func (s *Server) keep(sender string) *watch {
	s.mu.Lock()
	w := s.watches[sender]
	fresh := w == nil
	if fresh {
		w = &watch{gone: make(chan struct{})}
		s.watches[sender] = w
	}
	w.users++
	s.mu.Unlock()
	// A client that the gate knows has not left before the watch was there: clientGone tells the gate
	// first.
	if fresh && s.gate.userOf(sender) == nil {
		s.wg.Go(func() {
			var here bool
			err := s.conn.BusObject().CallWithContext(s.ctx, busDriver+".NameHasOwner", 0, sender).Store(&here)
			if err != nil || !here {
				s.clientGone(sender)
			}
		})
	}
	return w
}

// release takes a user off the client's watch.
func (s *Server) release(sender string, w *watch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watches[sender] != w {
		return
	}
	if w.users--; w.users == 0 {
		delete(s.watches, sender)
		s.idleSince = time.Now()
	}
}

// whileThere returns a context that ends when the client leaves the bus.
func (s *Server) whileThere(ctx context.Context, sender string) (context.Context, func()) {
	w := s.keep(sender)
	ctx, cancel := context.WithCancel(ctx)
	s.wg.Go(func() {
		select {
		case <-w.gone:
			cancel()
		case <-ctx.Done():
		}
	})
	return ctx, func() { cancel(); s.release(sender, w) }
}

// subscribers lists the clients that are sent everything.
func (s *Server) subscribers() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for name, w := range s.watches {
		if w.subscriber != nil {
			names = append(names, name)
		}
	}
	return names
}
