package dbus

import (
	"context"
	"maps"
	"os"
	"runtime/debug"
	"sync"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/internal/buslink"
	"github.com/magikrun/magikpod/pod"
)

// What may be under way at a time. A call counts from before its body is read until its answer was
// handed to the bus; jobs do not count, exec's neither. Root has a budget of its own, so that
// nobody else's calls stand before root's.
const (
	maxCalls       = 128      // of one user
	maxCallBytes   = 8 << 20  // the bodies of these
	maxOthers      = 512      // of all users but root
	maxOthersBytes = 32 << 20 // the bodies of these
	maxRootCalls   = 1024
	maxRootBytes   = 64 << 20

	// Calls of a client whose user the bus is being asked for.
	maxParked      = 32       // of one client
	maxParkedBytes = 16 << 20 // of all; the bus is not read while there are more

	maxArguments = 16 << 10 // bytes of the arguments of a call, unless its method says otherwise
	maxPeers     = 4096     // clients whose user is remembered
	maxAnswer    = 1 << 20  // bytes of an answer that the bus or polkit gives us
)

// Memory is given back to the kernel this long after a burst of calls began, once one has ended
// that cost (by a rough count) that many bytes.
const (
	burstTime  = 2 * time.Second
	burstBytes = 4 << 20
	callCost   = 16 << 10 // of any call, refused ones too
	heavyCost  = 64       // times the bytes of its arguments, of a manifest's reading
)

// budget counts calls under way.
type budget struct{ calls, bytes int }

func (b *budget) fits(bytes, maxCalls, maxBytes int) bool {
	return b.calls < maxCalls && b.bytes+bytes <= maxBytes
}

func (b *budget) add(calls, bytes int) { b.calls += calls; b.bytes += bytes }

// user is what all connections of one user have under way.
type user struct {
	id uint32
	budget
	heavy     chan struct{} // of size 1
	questions chan struct{} // of size maxUserQuestions, for polkit
}

func newUser(id uint32) *user {
	return &user{id: id, heavy: make(chan struct{}, 1), questions: make(chan struct{}, maxUserQuestions)}
}

// root says whether the user may do everything anyway: root, or who runs the daemon.
func (u *user) root() bool { return u.id == 0 || u.id == uint32(os.Getuid()) }

// peer is a client. Its calls are parked until its user is known.
type peer struct {
	user   *user
	parked []*buslink.Message
}

// ticket is a call that was let in.
type ticket struct {
	user  *user
	bytes int
}

type ticketKey struct {
	sender string
	serial uint32
}

// gate decides which messages the server reads at all: [buslink.Gate].
type gate struct {
	server *Server
	ask    func(sender string) (uint32, error) // the bus, on a connection of its own

	mu        sync.Mutex
	room      *sync.Cond // there are fewer parked bytes
	peers     map[string]*peer
	users     map[uint32]*user
	others    budget
	parked    budget
	tickets   map[ticketKey][]*ticket
	running   int // tickets
	idleSince time.Time
	burst     int
	free      *time.Timer // nil: none is set
	closed    bool

	// Who does heavy work holds one of these, and his own user's.
	heavyRoot, heavyOthers chan struct{}
}

func newGate(s *Server) *gate {
	g := &gate{
		server: s, peers: make(map[string]*peer), users: make(map[uint32]*user), tickets: make(map[ticketKey][]*ticket), idleSince: time.Now(),
		heavyRoot: make(chan struct{}, 8), heavyOthers: make(chan struct{}, 1),
	}
	g.room = sync.NewCond(&g.mu)
	return g
}

// Screen implements [buslink.Gate].
func (g *gate) Screen(h *buslink.Head) bool {
	switch h.Type {
	case godbus.TypeSignal: // anyone can send them to anyone
		return h.Sender == busDriver && h.BodyBytes <= maxAnswer
	case godbus.TypeMethodReply, godbus.TypeError: // the bus lets through what was asked for
		return h.BodyBytes <= maxAnswer
	case godbus.TypeMethodCall:
	default:
		return false
	}
	if !g.server.serving.Load() { // nobody knows us yet
		return false
	}
	if h.Interface == peerInterface {
		g.server.answerPeer(h)
		return false
	}
	if err := g.server.acceptable(h); err != nil {
		g.refuse(h, err)
		return false
	}
	if err := g.wait(h); err != nil {
		g.refuse(h, err)
		return false
	}
	return true
}

// wait returns when there is room for the call's body; an error when there will be none.
func (g *gate) wait(h *buslink.Head) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	bytes := int(h.BodyBytes)
	for {
		p := g.peers[h.Sender]
		switch {
		case g.closed:
			return errEnding
		case p != nil && p.user != nil:
			return g.fits(p.user, bytes)
		case p != nil && len(p.parked) >= maxParked:
			return pod.Errorf(pod.Exhausted, "cannot take the call: %d of your calls are waiting already", maxParked)
		case g.parked.bytes == 0 || g.parked.bytes+bytes <= maxParkedBytes:
			if p == nil {
				g.peers[h.Sender] = &peer{}
				g.server.wg.Go(func() { g.identify(h.Sender) })
			}
			return nil
		}
		g.room.Wait()
	}
}

// fits says why another call of the user cannot be taken; g.mu is held.
func (g *gate) fits(u *user, bytes int) error {
	switch {
	case u.root():
		if !u.fits(bytes, maxRootCalls, maxRootBytes) {
			return pod.Errorf(pod.Exhausted, "cannot take the call: %d calls with %d bytes of arguments are being answered already", u.calls, u.bytes)
		}
	case !u.fits(bytes, maxCalls, maxCallBytes):
		return pod.Errorf(pod.Exhausted, "cannot take the call: %d of your calls with %d bytes of arguments are being answered already", u.calls, u.bytes)
	case !g.others.fits(bytes, maxOthers, maxOthersBytes):
		return pod.Errorf(pod.Exhausted, "cannot take the call: too many calls are being answered already")
	}
	return nil
}

// Deliver implements [buslink.Gate].
func (g *gate) Deliver(m *buslink.Message) {
	if m.Type != godbus.TypeMethodCall {
		m.Forward()
		return
	}
	if m.Broken != nil {
		m.Close()
		g.refuse(&m.Head, pod.Errorf(pod.Invalid, "cannot call %s: its arguments cannot be read: %w", m.Member, m.Broken))
		return
	}
	g.mu.Lock()
	p := g.peers[m.Sender]
	switch {
	case p == nil: // it left the bus while its body was read
		g.mu.Unlock()
		m.Close()
	case p.user == nil:
		p.parked = append(p.parked, m)
		g.parked.add(1, int(m.BodyBytes))
		g.mu.Unlock()
	default:
		err := g.admit(m, p.user)
		g.mu.Unlock()
		if err != nil {
			g.refuse(&m.Head, err)
		}
	}
}

// admit lets a call in, or closes it; g.mu is held.
func (g *gate) admit(m *buslink.Message, u *user) error {
	bytes := int(m.BodyBytes)
	if err := g.fits(u, bytes); err != nil {
		m.Close()
		return err
	}
	u.add(1, bytes)
	if !u.root() {
		g.others.add(1, bytes)
	}
	key := ticketKey{m.Sender, m.Serial}
	g.tickets[key] = append(g.tickets[key], &ticket{u, bytes})
	g.running++
	m.Forward()
	return nil
}

// identify asks the bus for the user of a client, and lets its parked calls in.
func (g *gate) identify(sender string) {
	id, err := g.ask(sender)
	var refused []*buslink.Message
	g.mu.Lock()
	p := g.peers[sender]
	if p == nil {
		g.mu.Unlock()
		return
	}
	if err != nil {
		delete(g.peers, sender)
		err = pod.Errorf(pod.Unavailable, "cannot take the call: the caller's user is not known: %w", err)
	} else {
		p.user = g.user(id)
	}
	for _, m := range g.unpark(p) {
		if err == nil {
			err = g.admit(m, p.user)
		} else {
			m.Close()
		}
		if err != nil { // for what came later, too
			refused = append(refused, m)
		}
	}
	g.mu.Unlock()
	for _, m := range refused {
		g.refuse(&m.Head, err)
	}
}

// unpark takes out the parked calls of a client; g.mu is held.
func (g *gate) unpark(p *peer) []*buslink.Message {
	parked := p.parked
	p.parked = nil
	for _, m := range parked {
		g.parked.add(-1, -int(m.BodyBytes))
	}
	g.room.Broadcast()
	return parked
}

// user returns the user of that number, of whom there is one; g.mu is held.
func (g *gate) user(id uint32) *user {
	g.forget()
	u := g.users[id]
	if u == nil {
		u = newUser(id)
		g.users[id] = u
	}
	return u
}

// forget keeps the tables small; g.mu is held. A client that is forgotten is asked about again.
func (g *gate) forget() {
	if len(g.peers) >= maxPeers {
		maps.DeleteFunc(g.peers, func(_ string, p *peer) bool { return p.user != nil })
	}
	if len(g.users) >= maxPeers {
		here := make(map[*user]bool)
		for _, p := range g.peers {
			here[p.user] = true
		}
		maps.DeleteFunc(g.users, func(_ uint32, u *user) bool { return u.calls == 0 && !here[u] })
	}
}

// gone forgets a client that has left the bus.
func (g *gate) gone(sender string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.peers[sender]
	if p == nil {
		return
	}
	for _, m := range g.unpark(p) {
		m.Close()
	}
	delete(g.peers, sender)
}

// userOf returns the user of a client that has called; nil when it has left.
func (g *gate) userOf(sender string) *user {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p := g.peers[sender]; p != nil {
		return p.user
	}
	return nil
}

// take returns the ticket of a call; nil when it has none.
func (g *gate) take(sender string, serial uint32) *ticket {
	g.mu.Lock()
	defer g.mu.Unlock()
	key := ticketKey{sender, serial}
	list := g.tickets[key]
	if len(list) == 0 {
		return nil
	}
	if len(list) == 1 {
		delete(g.tickets, key)
	} else {
		g.tickets[key] = list[1:]
	}
	return list[0]
}

// leave counts a call out.
func (g *gate) leave(t *ticket, cost int) {
	if t == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	t.user.add(-1, -t.bytes)
	if !t.user.root() {
		g.others.add(-1, -t.bytes)
	}
	g.running--
	g.idleSince = time.Now()
	g.spend(t.bytes + cost)
}

// spend counts what is garbage now; g.mu is held. After a burst the kernel gets its memory back:
// the runtime would keep it for minutes.
func (g *gate) spend(bytes int) {
	g.burst += bytes
	if g.burst < burstBytes || g.free != nil || g.closed {
		return
	}
	g.free = time.AfterFunc(burstTime, func() {
		g.mu.Lock()
		g.free, g.burst = nil, 0
		g.mu.Unlock()
		debug.FreeOSMemory()
	})
}

// idle says since when no call has been under way.
func (g *gate) idle() (since time.Time, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.idleSince, g.running == 0 && g.parked.calls == 0
}

// close lets nothing in any more.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	if g.free != nil {
		g.free.Stop()
	}
	g.room.Broadcast()
}

// work waits until a call may be answered that costs much memory or time: one at a time of each
// user, and few in all. Root doesn't wait for others.
func (g *gate) work(ctx context.Context, u *user) (done func(), err error) {
	slots := []chan struct{}{u.heavy, g.heavyOthers}
	if u.root() {
		slots = []chan struct{}{g.heavyRoot}
	}
	for i, slot := range slots {
		select {
		case slot <- struct{}{}:
		case <-ctx.Done():
			for _, taken := range slots[:i] {
				<-taken
			}
			return nil, pod.Errorf(pod.Unavailable, "cannot take the call: %w", context.Cause(ctx))
		}
	}
	return func() {
		for _, taken := range slots {
			<-taken
		}
	}, nil
}

// refuse answers a call that is not let in.
func (g *gate) refuse(h *buslink.Head, err error) {
	g.mu.Lock()
	g.spend(callCost)
	g.mu.Unlock()
	if h.NoReply() {
		return
	}
	e, ok := err.(godbus.Error) // one of godbus's own
	if !ok {
		e = *toBus(err)
	}
	_ = g.server.send(h.Sender, h.Serial, e.Name, e.Body...)
}
