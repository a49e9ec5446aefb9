package sdnotify

import (
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNotify: a service manager gets what is sent, also at an abstract address; without one the
// caller learns that there is none.
func TestNotify(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Notify("READY=1"); !errors.Is(err, ErrUnset) {
		t.Errorf("without a service manager: %v", err)
	}
	path := filepath.Join(t.TempDir(), "notify")
	for _, name := range []string{path, "@" + path} {
		socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		t.Setenv("NOTIFY_SOCKET", name)
		if err := Notify("READY=1\nSTATUS=fine"); err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 100)
		n, err := socket.Read(data)
		if err != nil || string(data[:n]) != "READY=1\nSTATUS=fine" {
			t.Errorf("%s: got %q, %v", name, data[:n], err)
		}
	}
	t.Setenv("NOTIFY_SOCKET", path+"/none")
	if err := Notify("READY=1"); !errors.Is(err, unix.ENOTDIR) || !strings.HasPrefix(err.Error(), "cannot notify the service manager at "+path+"/none: ") {
		t.Errorf("a service manager that is not there: %v", err)
	}
}
