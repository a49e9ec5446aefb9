package buslink

import "testing"

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
