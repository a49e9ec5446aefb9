package guest_test

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/vsock"

	"github.com/magikrun/magikpod/internal/guesttest"
	"github.com/magikrun/magikpod/runtime/microvm/guest"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
	"github.com/magikrun/magikpod/tests/host"
)

// raw sends bytes and returns what comes back until the agent closes.
func raw(t *testing.T, m *guesttest.Guest, data []byte) string {
	t.Helper()
	conn, err := net.Dial("unix", m.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	patience := host.Patience(20 * time.Second)
	_ = conn.SetDeadline(time.Now().Add(patience))
	go conn.Write(data)
	answer, err := io.ReadAll(io.LimitReader(conn, 1<<20))
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		t.Fatalf("no end within %s after %.40q", patience, data)
	}
	return string(answer)
}

// memory is the anonymous memory of the agent, in KiB.
func memory(t *testing.T, m *guesttest.Guest) int {
	t.Helper()
	data, err := os.ReadFile("/proc/" + itoa(m.PID) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "RssAnon:")
	n := 0
	for _, c := range strings.TrimSpace(rest) {
		if c < '0' || c > '9' {
			break
		}
		n = 10*n + int(c-'0')
	}
	return n
}

// TestHostileHost: whatever comes in, the agent answers with an error or closes, goes on, and keeps
// its memory.
func TestHostileHost(t *testing.T) {
	m := guesttest.Start(t)
	frame := func(kind byte, size uint32, data string) string {
		return string(kind) + string(binary.BigEndian.AppendUint32(nil, size)) + data
	}
	var escape bytes.Buffer
	w := tar.NewWriter(&escape)
	_ = w.WriteHeader(&tar.Header{Name: "../../escaped", Typeflag: tar.TypeReg, Mode: 0o644})
	_ = w.Close()
	copyTo := `{"action":"copy","volume":"v"}` + "\n"
	for _, tc := range []struct{ name, data, want string }{
		{"garbage", "\x00\xff\n", "invalid_request"},
		{"no action", "{}\n", "invalid_request"},
		{"unknown action", `{"action":"format"}` + "\n", "invalid_request"},
		{"unknown field", `{"action":"ping","x":1}` + "\n", "invalid_request"},
		{"two objects", `{"action":"ping"}{"action":"ping"}` + "\n", "invalid_request"},
		{"an endless line", strings.Repeat("x", 8<<20), "invalid_request"},
		{"a deep line", `{"action":"create","spec":` + strings.Repeat("[", 1<<20) + "\n", "invalid_request"},
		{"a path as a name", `{"action":"start","container":"../x","id":"a"}` + "\n", "invalid_request"},
		{"a path out of a volume", copyTo + frame('d', uint32(escape.Len()), escape.String()) + frame('d', 0, ""), "invalid_request"},
		{"a frame that is too long", copyTo + frame('d', 1<<31, "x"), "internal"},
		{"a frame of no kind", copyTo + frame('?', 1, "x"), "internal"},
		{"another frame", copyTo + frame('i', 1, "x"), "invalid_request"},
		{"no tar", copyTo + frame('d', 512, strings.Repeat("x", 512)) + frame('d', 0, ""), "internal"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			answer := raw(t, m, []byte(tc.data))
			if !strings.Contains(answer, `"code":"`+tc.want+`"`) {
				t.Errorf("answer %q", answer)
			}
		})
	}
	if got := memory(t, m); got > 64<<10 {
		t.Errorf("the agent has %d KiB", got)
	}
	if _, err := m.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestConnections: more connections than there may be are closed at once, and those that say
// nothing do not stop the others for good.
func TestConnections(t *testing.T) {
	m := guesttest.Start(t)
	var idle []net.Conn
	defer func() {
		for _, conn := range idle {
			conn.Close()
		}
	}()
	for range wire.MaxConnections {
		conn, err := net.Dial("unix", m.Socket)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, conn)
	}
	if answer := raw(t, m, nil); answer != "" {
		t.Errorf("one too many got %q", answer)
	}
	idle[0].Close()
	eventually(t, "room", func() bool { _, err := m.Ping(t.Context()); return err == nil })
}

// TestOwnerSendsGarbage: an owner that breaks the protocol is one that has gone.
func TestOwnerSendsGarbage(t *testing.T) {
	m := guesttest.Start(t)
	request := guesttest.Container(t, "a", nil, "/bin/sleep", "1000")
	line, err := wire.EncodeRequest(&request)
	if err != nil {
		t.Fatal(err)
	}
	if answer := raw(t, m, append(line, "garbage"...)); !strings.HasPrefix(answer, `{"status":"ok"}`) {
		t.Errorf("answer %q", answer)
	}
	eventually(t, "removed", func() bool { return m.Containers(t) == "" })
}

// addrConn is a connection from an address.
type addrConn struct {
	net.Conn
	addr net.Addr
}

func (c addrConn) RemoteAddr() net.Addr { return c.addr }

// TestCheckHost: only the host is served, never a process in the VM, whichever way it comes.
func TestCheckHost(t *testing.T) {
	for _, tc := range []struct {
		addr net.Addr
		ok   bool
	}{
		{&vsock.Addr{ContextID: vsock.Host, Port: 1000}, true},
		{&vsock.Addr{ContextID: vsock.Local, Port: 1000}, false},
		{&vsock.Addr{ContextID: vsock.Hypervisor, Port: 1000}, false},
		{&vsock.Addr{ContextID: 3, Port: 1000}, false},
		{&net.UnixAddr{Name: "@"}, false},
	} {
		if err := guest.CheckHost(addrConn{addr: tc.addr}); (err == nil) != tc.ok {
			t.Errorf("%v: %v", tc.addr, err)
		}
	}
}

// pipeListener hands out connections without end.
type pipeListener struct {
	left   int
	closed int
}

func (l *pipeListener) Accept() (net.Conn, error) {
	if l.left == 0 {
		return nil, net.ErrClosed
	}
	l.left--
	return closeCounter{l}, nil
}
func (l *pipeListener) Close() error   { return nil }
func (l *pipeListener) Addr() net.Addr { return &vsock.Addr{} }

// closeCounter is a connection from a process in the VM.
type closeCounter struct{ l *pipeListener }

func (c closeCounter) RemoteAddr() net.Addr             { return &vsock.Addr{ContextID: vsock.Local} }
func (c closeCounter) LocalAddr() net.Addr              { return &vsock.Addr{} }
func (c closeCounter) Close() error                     { c.l.closed++; return nil }
func (c closeCounter) Read([]byte) (int, error)         { panic("a refused connection is read") }
func (c closeCounter) Write([]byte) (int, error)        { panic("a refused connection is answered") }
func (c closeCounter) SetDeadline(time.Time) error      { return nil }
func (c closeCounter) SetReadDeadline(time.Time) error  { return nil }
func (c closeCounter) SetWriteDeadline(time.Time) error { return nil }

// TestRefusedUnread: connections from within are closed unread, and a flood of them is logged once.
func TestRefusedUnread(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: run the tests with sudo")
	}
	logged := 0
	// The parent of the containers' cgroups is a plain directory here: no container is made.
	s, err := guest.New(guest.Config{Dir: t.TempDir(), CgroupRoot: t.TempDir(), CgroupParent: "x", Check: guest.CheckHost, Log: func(error) { logged++ }})
	if err != nil {
		t.Fatal(err)
	}
	l := &pipeListener{left: 1000}
	if err := s.Serve(l); err != nil || l.closed != 1000 || logged != 1 {
		t.Errorf("%v, %d closed, logged %d times", err, l.closed, logged)
	}
}
