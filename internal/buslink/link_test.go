package buslink

import (
	"bytes"
	"encoding/binary"
	"testing"

	godbus "github.com/godbus/dbus/v5"
)

func TestSocketPath(t *testing.T) {
	for address, want := range map[string]string{
		"unix:path=/run/dbus/system_bus_socket": "/run/dbus/system_bus_socket", "unix:guid=ab,path=/a%20b": "/a b", "unix:abstract=/tmp/x,guid=1": "@/tmp/x",
		"tcp:host=localhost,port=1": "", "unix:tmpdir=/tmp": "", "": "", "unix:path=%zz": "",
	} {
		if path, err := socketPath(address); path != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", address, path, err)
		}
	}
}

// TestEmptied checks that a call that cannot be decoded keeps all of its header but the type of its body.
func TestEmptied(t *testing.T) {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		for _, path := range []godbus.ObjectPath{"/", "/a", "/org/magikpod1/pod/x"} { // of all alignments
			m := &godbus.Message{Type: godbus.TypeMethodCall, Body: []any{"x"}, Headers: map[godbus.HeaderField]godbus.Variant{
				godbus.FieldPath: godbus.MakeVariant(path), godbus.FieldMember: godbus.MakeVariant("Member"), godbus.FieldSender: godbus.MakeVariant(":1.7"),
				godbus.FieldUnixFDs: godbus.MakeVariant(uint32(3)), godbus.FieldSignature: godbus.MakeVariant(godbus.SignatureOf("x")),
			}}
			var b bytes.Buffer
			if err := m.EncodeTo(&b, order); err != nil {
				t.Fatal(err)
			}
			data := b.Bytes()
			order.PutUint32(data[8:], 77)
			got, err := godbus.DecodeMessage(bytes.NewReader(emptied(data)))
			if err != nil {
				t.Fatalf("%v: %v", path, err)
			}
			if got.Serial() != 77 || len(got.Headers) != 4 || got.Headers[godbus.FieldPath].Value() != path || got.Headers[godbus.FieldMember].Value() != "Member" ||
				got.Headers[godbus.FieldSender].Value() != ":1.7" || got.Headers[godbus.FieldSignature].Value().(godbus.Signature).String() != "y" {
				t.Errorf("%+v", got)
			}
			data[1] = byte(godbus.TypeSignal)
			if emptied(data) != nil {
				t.Error("a signal has come back")
			}
		}
	}
}
