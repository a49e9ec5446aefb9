package dbus

import (
	"reflect"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// maxDepth is how deep values can be nested on the bus (the specification's 32 arrays and 32 structs, and what variants add).
const maxDepth = 64

// refuseStrayFiles closes the descriptors that nobody will take: those of messages that are not calls, of calls to what does not exist or with the wrong
// arguments, and those that are hidden in an array or a variant.
// The bus lets root alone send descriptors (files/org.magikpod1.conf): one that no argument names is out of reach here, and an array of them makes
// godbus panic.
func (s *Server) refuseStrayFiles(msg *godbus.Message) {
	sent, _ := msg.Headers[godbus.FieldUnixFDs].Value().(uint32)
	if sent == 0 {
		return
	}
	taken, all := make(map[int]bool), make(map[int]bool)
	wanted := s.takesFiles(msg)
	for _, v := range msg.Body {
		if fd, ok := v.(godbus.UnixFD); ok && wanted {
			taken[int(fd)] = true
		}
	}
	findFiles(reflect.ValueOf(msg.Body), all, 0)
	for fd := range all {
		if !taken[fd] {
			_ = unix.Close(fd)
		}
	}
	if !wanted {
		msg.Body = nil // the numbers mean nothing any more
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

// findFiles adds the descriptors in v to found.
func findFiles(v reflect.Value, found map[int]bool, depth int) {
	if depth > 4*maxDepth || !v.IsValid() {
		return
	}
	switch x := v.Interface().(type) {
	case godbus.UnixFD:
		found[int(x)] = true
		return
	case godbus.Variant:
		findFiles(reflect.ValueOf(x.Value()), found, depth+1)
		return
	}
	switch v.Kind() {
	case reflect.Interface:
		findFiles(v.Elem(), found, depth+1)
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return
		}
		for i := range v.Len() {
			findFiles(v.Index(i), found, depth+1)
		}
	case reflect.Map:
		for entry := v.MapRange(); entry.Next(); {
			findFiles(entry.Key(), found, depth+1)
			findFiles(entry.Value(), found, depth+1)
		}
	}
}
