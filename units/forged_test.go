package units

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// TestForgedSignals checks that nobody but systemd can send us a signal, nor end the connection.
func TestForgedSignals(t *testing.T) {
	m := connect(t)
	s := startSandbox(t, m, testPod("forged"))
	unit, err := s.container(t, "main", nil, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	before, _ := m.State(unit)
	var path string
	m.mu.Lock()
	for p, u := range m.paths {
		if u == unit {
			path = string(p)
		}
	}
	m.mu.Unlock()
	for _, signal := range [][]string{
		{path, propsIface, "PropertiesChanged", "sa{sv}as", unitIface, "2", "ActiveState", "s", "failed", "SubState", "s", "failed", "0"},
		{path, propsIface, "PropertiesChanged", "sa{sv}as", serviceIface, "2", "ExecMainStatus", "i", "77", "MainPID", "u", "1", "0"},
		{string(busPath), managerIface, "JobRemoved", "uoss", "1", "/org/freedesktop/systemd1/job/1", unit, "failed"},
		{string(busPath), managerIface, "UnitRemoved", "so", unit, path},
		{string(busPath), managerIface, "Reloading", "b", "true"},
		{"/org/freedesktop/DBus", "org.freedesktop.DBus", "NameOwnerChanged", "sss", busName, "", ""},
		{"/", "a.b", "C", "a{bs}", "1", "true", "x"},
	} {
		args := append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", "busctl", "emit", "--destination=" + m.conn.Names()[0]}, signal...)
		if out, err := exec.Command("setpriv", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", signal, err, out)
		}
	}
	other, err := dbus.ConnectSystemBus()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	_ = other.Send(&dbus.Message{Type: dbus.TypeSignal, Body: []any{[]dbus.UnixFD{dbus.UnixFD(os.Stderr.Fd())}}, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldDestination: dbus.MakeVariant(m.conn.Names()[0]), dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath("/")), dbus.FieldInterface: dbus.MakeVariant("a.b"),
		dbus.FieldMember: dbus.MakeVariant("C"), dbus.FieldSignature: dbus.MakeVariant(dbus.ParseSignatureMust("ah")),
	}}, nil)
	for range 10 {
		time.Sleep(50 * time.Millisecond)
		if after, ok := m.State(unit); !ok || after != before {
			t.Fatalf("it was believed: %+v, before %+v", after, before)
		}
	}
	if asked, err := m.Refresh(t.Context(), unit); err != nil || asked != before {
		t.Errorf("%+v, %v; before %+v", asked, err, before)
	}
}
