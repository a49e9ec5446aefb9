package buslink

import (
	"bytes"
	"encoding/binary"
	"testing"

	godbus "github.com/godbus/dbus/v5"
)

func call(t testing.TB, order binary.ByteOrder) []byte {
	m := &godbus.Message{Type: godbus.TypeMethodCall, Flags: godbus.FlagNoReplyExpected, Body: []any{"default", uint32(3)}, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldPath: godbus.MakeVariant(godbus.ObjectPath("/org/magikpod1")), godbus.FieldInterface: godbus.MakeVariant("org.magikpod1.Manager"),
		godbus.FieldMember: godbus.MakeVariant("GetPod"), godbus.FieldSender: godbus.MakeVariant(":1.7"),
		godbus.FieldSignature: godbus.MakeVariant(godbus.SignatureOf("", uint32(0))),
	}}
	var b bytes.Buffer
	if err := m.EncodeTo(&b, order); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// read reads a head; it may change the message's flags.
func read(message []byte) (h Head, ok bool) {
	if len(message) < fixedHeader {
		return h, false
	}
	h, order, padded, err := parseFixed(message)
	if err != nil || len(message) < fixedHeader+padded {
		return h, false
	}
	return h, h.parseFields(message[fixedHeader:fixedHeader+padded], order, int(order.Uint32(message[12:]))) == nil
}

func TestHead(t *testing.T) {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		message := call(t, order)
		message[2] |= 0x80 // a flag of the future
		h, ok := read(message)
		want := Head{Type: godbus.TypeMethodCall, Flags: godbus.FlagNoReplyExpected, Sender: ":1.7", Path: "/org/magikpod1", Interface: "org.magikpod1.Manager",
			Member: "GetPod", Signature: "su", BodyBytes: 16}
		if !ok || h != want || !h.NoReply() {
			t.Errorf("%v: got %+v, %v", order, h, ok)
		}
		if err := decodable(message); err != nil {
			t.Errorf("%v: a message with an unknown flag: %v", order, err)
		}
	}
}

// FuzzHead reads anything, and what godbus can decode is read as godbus reads it.
func FuzzHead(f *testing.F) {
	f.Add(call(f, binary.LittleEndian))
	f.Add(call(f, binary.BigEndian))
	f.Fuzz(func(t *testing.T, message []byte) {
		h, ok := read(message)
		if !ok || decodable(message) != nil {
			return
		}
		m, err := godbus.DecodeMessage(bytes.NewReader(message))
		if err != nil {
			t.Fatal(err)
		}
		member, _ := m.Headers[godbus.FieldMember].Value().(string)
		sender, _ := m.Headers[godbus.FieldSender].Value().(string)
		if h.Type != m.Type || h.Flags != m.Flags || h.Serial != m.Serial() || h.Member != member || h.Sender != sender {
			t.Errorf("got %+v, godbus %+v", h, m)
		}
	})
}
