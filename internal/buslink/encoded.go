package buslink

import (
	"bytes"
	"encoding/binary"

	godbus "github.com/godbus/dbus/v5"
)

// Encoded is a whole body that its sender has encoded: godbus takes 15 µs for a dictionary of a
// dozen values. It is little-endian, begins at a multiple of 8 bytes, and is all that the message has.
type Encoded struct {
	Signature godbus.Signature
	Data      []byte
}

// encode makes the message around the body.
func (e Encoded) encode(m *godbus.Message) ([]byte, error) {
	m.Body = nil
	m.Headers[godbus.FieldSignature] = godbus.MakeVariant(e.Signature)
	var b bytes.Buffer
	if err := m.EncodeTo(&b, binary.LittleEndian); err != nil {
		return nil, err
	}
	binary.LittleEndian.PutUint32(b.Bytes()[4:], uint32(len(e.Data))) // D-Bus specification, "Message Format"
	b.Write(e.Data)
	return b.Bytes(), nil
}
