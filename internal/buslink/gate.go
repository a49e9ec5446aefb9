package buslink

import (
	"encoding/binary"
	"errors"
	"fmt"

	godbus "github.com/godbus/dbus/v5"
)

const (
	maxFields  = 64 << 10 // bytes of header fields; those of an honest message have some 200
	knownFlags = byte(godbus.FlagNoReplyExpected | godbus.FlagNoAutoStart | godbus.FlagAllowInteractiveAuthorization)
)

// Gate decides about each message that comes from the bus. Both methods are called from one
// goroutine, in the order of the messages; while one of them waits, nothing comes in, answers
// included.
type Gate interface {
	// Screen says whether the body is wanted at all. One that is not is read and thrown away, a
	// piece at a time: godbus decodes up to 128 MiB in one goroutine, and starts another one for
	// each call.
	Screen(h *Head) bool
	// Deliver gets a wanted message and forwards it, now or later, or closes it.
	Deliver(m *Message)
}

// Truster is a Gate that knows senders whose messages godbus can decode: they are not decoded once
// more, before, to find out.
type Truster interface {
	Trusts(h *Head) bool
}

// Head is what a message says before its body (D-Bus specification, "Message Format"). The bus has
// checked its form, and set Sender.
type Head struct {
	Type              godbus.Type
	Flags             godbus.Flags
	Serial            uint32
	Sender            string
	Path              godbus.ObjectPath
	Interface, Member string
	Signature         string
	BodyBytes         uint32
}

// NoReply says whether the caller wants no answer.
func (h *Head) NoReply() bool { return h.Flags&godbus.FlagNoReplyExpected != 0 }

// Message is a whole message that godbus has not seen.
type Message struct {
	Head
	Broken error // why godbus cannot decode it; such a message is not forwarded

	link *link
	data []byte
	fds  []int
}

// Forward hands a message to godbus, or closes one that is broken. It may be called from any
// goroutine; messages are handed over in the order of the calls.
func (m *Message) Forward() {
	if m.Broken != nil {
		m.Close()
		return
	}
	select {
	case m.link.ready <- m:
	case <-m.link.done:
		m.Close()
	}
}

// Close drops a message that is not forwarded.
func (m *Message) Close() {
	closeFiles(m.fds)
	m.fds = nil
}

// small lets in what is [Small].
type small struct{}

const (
	maxSignal = 256 << 10
	maxCall   = 4 << 10
)

// Screen implements [Gate].
func (small) Screen(h *Head) bool { return Small(h) }

// Small says whether a message is what an honest bus sends to one who serves nothing: an answer, or
// a short signal.
func Small(h *Head) bool {
	switch h.Type {
	case godbus.TypeSignal:
		return h.BodyBytes <= maxSignal
	case godbus.TypeMethodCall:
		return h.BodyBytes <= maxCall
	}
	return true
}

// Deliver implements [Gate].
func (small) Deliver(m *Message) { m.Forward() }

// caller is the Gate of who calls and ends: it trusts whom it calls.
type caller struct{ small }

// Trusts implements [Truster].
func (caller) Trusts(h *Head) bool { return h.Type == godbus.TypeMethodReply }

var errHead = errors.New("the head of the message is broken")

// parseFixed reads the first 16 bytes: the order of bytes and the padded length of the fields.
func parseFixed(b []byte) (h Head, order binary.ByteOrder, fields int, err error) {
	switch b[0] {
	case 'l':
		order = binary.LittleEndian
	case 'B':
		order = binary.BigEndian
	default:
		return h, nil, 0, errHead
	}
	// Unknown flags must be ignored, says the specification; godbus drops such a message.
	b[2] &= knownFlags
	h = Head{Type: godbus.Type(b[1]), Flags: godbus.Flags(b[2]), BodyBytes: order.Uint32(b[4:]), Serial: order.Uint32(b[8:])}
	n := (uint64(order.Uint32(b[12:])) + 7) &^ 7
	if n+uint64(h.BodyBytes) > maxMessage {
		return h, nil, 0, fmt.Errorf("a message of %d bytes came from the bus", n+uint64(h.BodyBytes))
	}
	return h, order, int(n), nil
}

// parseFields reads the array of (yv) into the head.
func (h *Head) parseFields(b []byte, order binary.ByteOrder, length int) error {
	for at := 0; at < length; {
		at = (at + 7) &^ 7
		if at+4 > length || b[at+1] != 1 {
			return errHead
		}
		field, kind := godbus.HeaderField(b[at]), b[at+2]
		at += 4
		text, next := value(b[:length], at, kind, order)
		if next < 0 {
			return errHead
		}
		at = next
		switch field {
		case godbus.FieldPath:
			h.Path = godbus.ObjectPath(text)
		case godbus.FieldInterface:
			h.Interface = text
		case godbus.FieldMember:
			h.Member = text
		case godbus.FieldSender:
			h.Sender = text
		case godbus.FieldSignature:
			h.Signature = text
		case godbus.FieldErrorName, godbus.FieldReplySerial, godbus.FieldDestination, godbus.FieldUnixFDs:
		default:
			return errHead // godbus drops it; the bus removes unknown fields
		}
	}
	return nil
}

// value reads a value of the types that header fields have: s, o and g, and u, which is passed
// over. next is where it ends, -1 when it is none.
func value(b []byte, at int, kind byte, order binary.ByteOrder) (text string, next int) {
	size := 0
	switch kind {
	case 'u', 's', 'o':
		at = (at + 3) &^ 3
		if at+4 > len(b) {
			return "", -1
		}
		size = int(order.Uint32(b[at:]))
		if at += 4; kind == 'u' {
			return "", at
		}
	case 'g':
		if at >= len(b) {
			return "", -1
		}
		size = int(b[at])
		at++
	default:
		return "", -1
	}
	if size < 0 || at+size+1 > len(b) {
		return "", -1
	}
	return string(b[at : at+size]), at + size + 1
}
