package dbus

import (
	"os"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
)

// openFiles counts the descriptors of this process.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestStrayDescriptorsAreClosed(t *testing.T) {
	_, _, c, _ := serve(t, rule{})
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := godbus.UnixFD(null.Fd())
	hidden := map[string]godbus.Variant{"x": godbus.MakeVariant(fd)}
	for _, test := range []struct {
		name string
		path godbus.ObjectPath
		call string
		args []any
	}{
		{"no such object", "/nowhere", PodInterface + ".Exec", []any{"", []string{"x"}, map[string]godbus.Variant{}, fd, fd, fd}},
		{"no such method", ManagerPath, ManagerInterface + ".Nothing", []any{fd}},
		{"no such interface", ManagerPath, "org.example.Nothing.Ping", []any{fd}},
		{"peer", ManagerPath, "org.freedesktop.DBus.Peer.Ping", []any{fd}},
		{"wrong arguments", ManagerPath, ManagerInterface + ".LoadImage", []any{fd, fd}},
		{"in a structure", ManagerPath, ManagerInterface + ".LoadImage", []any{struct{ F godbus.UnixFD }{fd}}},
		{"in an option", PodPath("x"), PodInterface + ".Exec", []any{"", []string{"x"}, hidden, fd, fd, fd}},
		{"in a wanted option map", ManagerPath, ManagerInterface + ".RunPod", []any{"", hidden}},
		{"of a pod that is not there", PodPath("x"), PodInterface + ".Exec", []any{"", []string{"x"}, map[string]godbus.Variant{}, fd, fd, fd}},
	} {
		t.Run(test.name, func(t *testing.T) {
			call := func() { _ = c.conn.Object(BusName, test.path).Call(test.call, 0, test.args...).Err }
			call()
			before := openFiles(t)
			const calls = 50
			for range calls {
				call()
			}
			// An answer may come a moment before its call's descriptors are closed.
			for deadline := time.Now().Add(10 * time.Second); openFiles(t) >= before+calls/2 && time.Now().Before(deadline); {
				time.Sleep(10 * time.Millisecond)
			}
			if after := openFiles(t); after >= before+calls/2 {
				t.Errorf("%d descriptors before %d calls, %d after", before, calls, after)
			}
		})
	}
	if _, err := c.Info(t.Context()); err != nil {
		t.Errorf("the server does not answer any more: %v", err)
	}
}
