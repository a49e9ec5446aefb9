package client

import (
	"net"
	"path/filepath"
	"testing"

	"github.com/magikrun/magikpod/internal/errkind"
)

// TestRefusedByTheBus: calls are sent before the bus has let the client in; that it does not is what
// they say.
func TestRefusedByTheBus(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bus")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		_, _ = conn.Write([]byte("REJECTED EXTERNAL\r\n"))
		_ = conn.(*net.UnixConn).CloseWrite()
		_, _ = conn.Read(make([]byte, 1<<16))
		_ = conn.Close()
	}()
	c, err := Dial("unix:path=" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.List(t.Context(), "")
	if want := "cannot connect to the system bus: dbus: authentication failed"; err == nil || err.Error() != want || errkind.KindOf(err) != errkind.Unavailable {
		t.Errorf("%v, want %s", err, want)
	}
}
