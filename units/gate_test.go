package units

import (
	"testing"

	"github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/internal/buslink"
)

// TestGate checks which messages are looked at, and which of them are decoded without a check.
func TestGate(t *testing.T) {
	const own, other = dbus.ObjectPath("/org/freedesktop/systemd1/unit/own"), dbus.ObjectPath("/org/freedesktop/systemd1/unit/other")
	m := &Manager{queue: newQueue(), paths: map[dbus.ObjectPath]string{own: "own"}}
	if (gate{m}).Trusts(&buslink.Head{}) {
		t.Error("somebody is trusted before systemd is known")
	}
	m.queue.trust(":1.1", true)
	signal := func(sender string, path dbus.ObjectPath, iface string, size uint32) buslink.Head {
		return buslink.Head{Type: dbus.TypeSignal, Sender: sender, Path: path, Interface: iface, BodyBytes: size}
	}
	for _, tt := range []struct {
		what           string
		head           buslink.Head
		wanted, trusts bool
	}{
		{"a change of a tracked unit", signal(":1.1", own, propsIface, 100), true, true},
		{"a change of another unit", signal(":1.1", other, propsIface, 100), false, true},
		{"the end of a job", signal(":1.1", busPath, managerIface, 100), true, true},
		{"a new owner of a name", signal("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", 100), true, false},
		{"what is too long", signal(":1.7", busPath, managerIface, 1<<20), false, false},
		{"an answer", buslink.Head{Type: dbus.TypeMethodReply, Sender: ":1.1", BodyBytes: 1 << 20}, true, true},
		{"another's answer", buslink.Head{Type: dbus.TypeMethodReply, Sender: ":1.7"}, true, false},
	} {
		if wanted, trusts := (gate{m}).Screen(&tt.head), (gate{m}).Trusts(&tt.head); wanted != tt.wanted || trusts != tt.trusts {
			t.Errorf("%s: wanted %v, trusted %v; want %v, %v", tt.what, wanted, trusts, tt.wanted, tt.trusts)
		}
	}
}
