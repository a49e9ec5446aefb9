package dbus

import (
	"strings"

	godbus "github.com/godbus/dbus/v5"
)

// emitTo sends a signal to one client.
func emitTo(conn *godbus.Conn, to string, path godbus.ObjectPath, name string, values ...any) error {
	dot := strings.LastIndexByte(name, '.')
	msg := &godbus.Message{
		Type:  godbus.TypeSignal,
		Flags: godbus.FlagNoReplyExpected,
		Headers: map[godbus.HeaderField]godbus.Variant{
			godbus.FieldInterface:   godbus.MakeVariant(name[:dot]),
			godbus.FieldMember:      godbus.MakeVariant(name[dot+1:]),
			godbus.FieldPath:        godbus.MakeVariant(path),
			godbus.FieldDestination: godbus.MakeVariant(to),
		},
		Body: fit(values),
	}
	if len(values) > 0 {
		msg.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(values...))
	}
	return conn.Send(msg, nil).Err
}
