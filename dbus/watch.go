package dbus

import (
	"context"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/pod"
)

// watch follows one client until it leaves the bus.
type watch struct {
	users      int // contexts and the subscription
	subscribed bool
	gone       chan struct{} // closed when the client has left the bus
}

func ownerMatch(sender string) []godbus.MatchOption {
	return []godbus.MatchOption{
		godbus.WithMatchSender("org.freedesktop.DBus"), godbus.WithMatchInterface("org.freedesktop.DBus"),
		godbus.WithMatchMember("NameOwnerChanged"), godbus.WithMatchArg(0, sender),
	}
}

// watchNames hears of clients that leave the bus.
func (s *Server) watchNames() {
	ch := make(chan *godbus.Signal, 64)
	s.conn.Signal(ch)
	defer s.conn.RemoveSignal(ch)
	for {
		select {
		case <-s.ctx.Done():
			return
		case sig, ok := <-ch:
			if !ok {
				return
			}
			if sig.Sender != "org.freedesktop.DBus" || sig.Name != "org.freedesktop.DBus.NameOwnerChanged" || len(sig.Body) != 3 {
				continue
			}
			name, _ := sig.Body[0].(string)
			if owner, _ := sig.Body[2].(string); owner == "" {
				s.clientGone(name)
			}
		}
	}
}

// clientGone ends what the client asked for. The bus forgets nothing by itself, so the match is removed as well, behind our back.
func (s *Server) clientGone(name string) {
	s.mu.Lock()
	w := s.watches[name]
	if w != nil {
		delete(s.watches, name)
		close(w.gone)
		s.idleSince = time.Now()
	}
	s.mu.Unlock()
	if w != nil {
		s.removeMatch(name)
	}
}

// removeMatch doesn't wait for the bus's answer: it is called from the goroutine that reads signals.
func (s *Server) removeMatch(name string) {
	s.wg.Go(func() { _ = s.conn.RemoveMatchSignalContext(s.ctx, ownerMatch(name)...) })
}

// hold adds a user to the client's watch. Unavailable: the client has left.
func (s *Server) hold(sender string, subscribe bool) (*watch, error) {
	s.mu.Lock()
	w := s.watches[sender]
	fresh := w == nil
	if fresh {
		w = &watch{gone: make(chan struct{})}
		s.watches[sender] = w
	}
	if !subscribe {
		w.users++
	} else if !w.subscribed {
		w.subscribed = true
		w.users++
	}
	s.mu.Unlock()
	// A second user doesn't wait for the first one's match: the first one finds out when the client left in between.
	if !fresh {
		return w, nil
	}
	err := s.conn.AddMatchSignalContext(s.ctx, ownerMatch(sender)...)
	var here bool
	if err == nil {
		err = s.conn.BusObject().CallWithContext(s.ctx, "org.freedesktop.DBus.NameHasOwner", 0, sender).Store(&here)
	}
	if err != nil || !here {
		s.clientGone(sender)
		return nil, pod.Errorf(pod.Unavailable, "cannot follow the client %s: it has left the bus", sender)
	}
	return w, nil
}

// release takes a user off the client's watch.
func (s *Server) release(sender string, w *watch, unsubscribe bool) {
	s.mu.Lock()
	last := false
	if s.watches[sender] == w && (!unsubscribe || w.subscribed) {
		if unsubscribe {
			w.subscribed = false
		}
		if w.users--; w.users == 0 {
			delete(s.watches, sender)
			s.idleSince = time.Now()
			last = true
		}
	}
	s.mu.Unlock()
	if last {
		s.removeMatch(sender)
	}
}

// whileThere returns a context that ends when the client leaves the bus.
func (s *Server) whileThere(ctx context.Context, sender string) (context.Context, func(), error) {
	w, err := s.hold(sender, false)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	s.wg.Go(func() {
		select {
		case <-w.gone:
			cancel()
		case <-ctx.Done():
		}
	})
	return ctx, func() { cancel(); s.release(sender, w, false) }, nil
}

// subscribers lists the clients that are told everything.
func (s *Server) subscribers() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for name, w := range s.watches {
		if w.subscribed {
			names = append(names, name)
		}
	}
	return names
}
