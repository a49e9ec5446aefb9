package dbus

import (
	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/buslink"
)

// passFiles puts the descriptors that a call's arguments name in the place of their numbers, and closes all others: those of messages that are not calls, of calls to
// what does not exist or with the wrong arguments, those that are hidden in an array or a variant, and those that no argument names.
func (s *Server) passFiles(l *buslink.Link, msg *godbus.Message) {
	fds := l.Files()
	if len(fds) == 0 {
		return
	}
	taken := make([]bool, len(fds))
	if s.takesFiles(msg) {
		for i, v := range msg.Body {
			if n, ok := v.(godbus.UnixFDIndex); ok && int(n) < len(fds) {
				msg.Body[i], taken[n] = godbus.UnixFD(fds[n]), true
			}
		}
	}
	for i, fd := range fds {
		if !taken[i] {
			_ = unix.Close(fd)
		}
	}
}

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
