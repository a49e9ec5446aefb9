package dbus

import (
	"strings"

	godbus "github.com/godbus/dbus/v5"
)

// message makes a message to one client, which is not to be answered.
func message(kind godbus.Type, to string, body []any) *godbus.Message {
	m := &godbus.Message{
		Type:    kind,
		Flags:   godbus.FlagNoReplyExpected,
		Headers: map[godbus.HeaderField]godbus.Variant{godbus.FieldDestination: godbus.MakeVariant(to)},
		Body:    fit(body),
	}
	if len(body) > 0 {
		m.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(body...))
	}
	return m
}

// emitTo sends a signal to one client.
func emitTo(conn *godbus.Conn, to string, path godbus.ObjectPath, name string, values ...any) error {
	dot := strings.LastIndexByte(name, '.')
	m := message(godbus.TypeSignal, to, values)
	m.Headers[godbus.FieldInterface] = godbus.MakeVariant(name[:dot])
	m.Headers[godbus.FieldMember] = godbus.MakeVariant(name[dot+1:])
	m.Headers[godbus.FieldPath] = godbus.MakeVariant(path)
	return conn.Send(m, nil).Err
}
