package dbus

import (
	"slices"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/dbus/client"
	"github.com/magikrun/magikpod/internal/bustest"
	"github.com/magikrun/magikpod/internal/fakepods"
)

// TestMessagesOfOneCall counts what a command costs the bus: beside the call there is the hello, and
// one question of the server's, who that is.
func TestMessagesOfOneCall(t *testing.T) {
	address := bustest.Start(t)
	backend := fakepods.New()
	s, err := Serve(t.Context(), backend, ServerOptions{Address: address, Authorizer: rule{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(); backend.Close() })
	monitor, err := godbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	defer monitor.Close()
	if err := monitor.BusObject().Call("org.freedesktop.DBus.Monitoring.BecomeMonitor", 0, []string{"type='method_call'"}, uint32(0)).Err; err != nil {
		t.Fatal(err)
	}
	messages := make(chan *godbus.Message, 64)
	monitor.Eavesdrop(messages)

	c, err := client.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.List(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := s.conn.BusObject().Call(busDriver+".GetId", 0).Err; err != nil { // the last one
		t.Fatal(err)
	}
	var got []string
	for m := range messages {
		member, _ := m.Headers[godbus.FieldMember].Value().(string)
		if member == "GetId" {
			break
		}
		if m.Type == godbus.TypeMethodCall {
			got = append(got, member)
		}
	}
	if want := []string{"Hello", "SummarizePods", "GetConnectionUnixUser"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
