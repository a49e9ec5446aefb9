package dbus

import (
	godbus "github.com/godbus/dbus/v5"
)

// takesFiles says whether the message calls a method that is there, with the arguments that it wants.
func (s *Server) takesFiles(msg *godbus.Message) bool {
	if msg.Type != godbus.TypeMethodCall {
		return false
	}
	path, _ := msg.Headers[godbus.FieldPath].Value().(godbus.ObjectPath)
	in, _ := msg.Headers[godbus.FieldInterface].Value().(string)
	name, _ := msg.Headers[godbus.FieldMember].Value().(string)
	signature, _ := msg.Headers[godbus.FieldSignature].Value().(godbus.Signature)
	if in == "org.freedesktop.DBus.Peer" { // godbus answers it itself
		return false
	}
	o, _ := objects{s}.LookupObject(path)
	i, ok := o.LookupInterface(in)
	if !ok {
		return false
	}
	m, ok := i.LookupMethod(name)
	if !ok {
		return false
	}
	bound, ok := m.(boundMethod)
	return ok && bound.method.in == signature.String()
}
