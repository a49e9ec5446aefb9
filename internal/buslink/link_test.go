package buslink

import (
	"bytes"
	"net"
	"path/filepath"
	"strings"
	"testing"
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

// TestGreeting: everything that comes before the first answer is sent without waiting for one, and a
// bus that does not take it is an error.
func TestGreeting(t *testing.T) {
	const guid = "0123456789abcdef0123456789abcdef"
	for answer, want := range map[string]string{
		"":                                    "EOF",
		"REJECTED EXTERNAL\r\nERROR\r\n":      "dbus: authentication failed",
		"OK " + guid + "\r\nERROR \"no\"\r\n": `the bus does not pass descriptors: "ERROR`,
	} {
		path := filepath.Join(t.TempDir(), "bus")
		listener, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			var said []byte
			for !bytes.Contains(said, []byte("Hello\x00")) {
				piece := make([]byte, 4096)
				n, err := conn.Read(piece)
				if err != nil {
					t.Errorf("%q, and then %v", said, err)
					return
				}
				said = append(said, piece[:n]...)
			}
			_, _ = conn.Write([]byte(answer))
		}()
		conn, err := Connect(t.Context(), "unix:path="+path, nil)
		if err == nil {
			_ = conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", answer, err, want)
		}
		_ = listener.Close()
	}
}
