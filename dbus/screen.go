package dbus

import (
	"context"
	"os"
	"strings"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/internal/buslink"
	"github.com/magikrun/magikpod/pod"
)

const peerInterface = "org.freedesktop.DBus.Peer"

// connect makes the server's two connections, both behind a gate. opts are of the one that is called.
func (s *Server) connect(ctx context.Context, address string, opts ...godbus.ConnOption) error {
	signals := godbus.WithSignalHandler(godbus.NewSequentialSignalHandler())
	oracle, err := buslink.ConnectThrough(ctx, address, driverOnly{}, nil, signals)
	if err != nil {
		return err
	}
	s.oracle = oracle
	s.gate.ask = func(sender string) (uint32, error) { return askUser(s.ctx, oracle, sender) }
	signals = godbus.WithSignalHandler(godbus.NewSequentialSignalHandler())
	conn, err := buslink.ConnectThrough(ctx, address, s.gate, isCall, append(opts, godbus.WithHandler(objects{s}), signals)...)
	if err != nil {
		_ = oracle.Close()
		return err
	}
	s.conn = conn
	return nil
}

// isCall says which messages may bring descriptors: the gate has let in calls of methods that are
// there, with the arguments that these take.
func isCall(m *godbus.Message) bool { return m.Type == godbus.TypeMethodCall }

// driverOnly lets in what the bus itself says, and nothing else.
type driverOnly struct{}

// Screen implements [buslink.Gate].
func (driverOnly) Screen(h *buslink.Head) bool {
	return h.Sender == busDriver && h.BodyBytes <= maxAnswer
}

// Deliver implements [buslink.Gate].
func (driverOnly) Deliver(m *buslink.Message) { m.Forward() }

// askUser asks the bus for the user of a client. A unique name is one connection of one user for ever.
func askUser(ctx context.Context, conn *godbus.Conn, sender string) (uid uint32, err error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	err = conn.BusObject().CallWithContext(ctx, busDriver+".GetConnectionUnixUser", 0, sender).Store(&uid)
	return uid, err
}

// knownUser is the user of a client whose call was let in.
func (s *Server) knownUser(ctx context.Context, sender string) (*user, error) {
	if u := s.gate.userOf(sender); u != nil {
		return u, nil
	}
	id, err := askUser(ctx, s.oracle, sender)
	if err != nil {
		return nil, err
	}
	s.gate.mu.Lock()
	defer s.gate.mu.Unlock()
	return s.gate.user(id), nil
}

// acceptable says why a call cannot be answered, by its head alone: what it calls is not there, or
// takes other or shorter arguments.
func (s *Server) acceptable(h *buslink.Head) error {
	o, _ := objects{s}.LookupObject(h.Path)
	i, ok := o.LookupInterface(h.Interface)
	if !ok {
		return godbus.MakeUnknownInterfaceError(h.Interface)
	}
	found, ok := i.LookupMethod(h.Member)
	if !ok {
		return godbus.MakeUnknownMethodError(h.Member)
	}
	m := found.(boundMethod).method
	if h.Signature != m.in {
		return m.wrongArguments(h.Signature)
	}
	if limit := m.limit(); int(h.BodyBytes) > limit {
		return pod.Errorf(pod.Invalid, "cannot call %s: its arguments have %d bytes, and %d are allowed", m.name, h.BodyBytes, limit)
	}
	return nil
}

// answerPeer answers org.freedesktop.DBus.Peer, which every object has.
func (s *Server) answerPeer(h *buslink.Head) {
	if h.NoReply() {
		return
	}
	switch h.Member {
	case "Ping":
		_ = s.send(h.Sender, h.Serial, "")
	case "GetMachineId":
		id, err := os.ReadFile("/etc/machine-id")
		if err != nil {
			s.gate.refuse(h, pod.Errorf(pod.Unavailable, "cannot read the machine ID: %w", err))
			return
		}
		_ = s.send(h.Sender, h.Serial, "", strings.TrimSpace(string(id)))
	default:
		s.gate.refuse(h, godbus.MakeUnknownMethodError(h.Member))
	}
}

// send answers a call that godbus does not answer. errorName is empty for what was asked for.
func (s *Server) send(to string, serial uint32, errorName string, body ...any) error {
	m := message(godbus.TypeMethodReply, to, body)
	m.Headers[godbus.FieldReplySerial] = godbus.MakeVariant(serial)
	if errorName != "" {
		m.Type = godbus.TypeError
		m.Headers[godbus.FieldErrorName] = godbus.MakeVariant(errorName)
	}
	return s.conn.Send(m, nil).Err
}
