package dbus

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/internal/testutil"
	"github.com/magikrun/magikpod/pod"
)

// openFiles counts the descriptors of this process.
var openFiles = testutil.OpenFiles

// rawBus is a client that says what it likes.
type rawBus struct {
	t      *testing.T
	conn   *net.UnixConn
	serial uint32
}

func newRawBus(t *testing.T, address string) *rawBus {
	t.Helper()
	path, _, _ := strings.Cut(strings.TrimPrefix(address, "unix:path="), ",")
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	b := &rawBus{t: t, conn: conn}
	b.say("\x00AUTH EXTERNAL " + fmt.Sprintf("%x", fmt.Sprint(os.Getuid())) + "\r\n")
	b.hear()
	b.say("NEGOTIATE_UNIX_FD\r\n")
	b.hear()
	b.say("BEGIN\r\n")
	b.call("org.freedesktop.DBus", "/", "org.freedesktop.DBus.Hello", "", nil, nil)
	return b
}

func (b *rawBus) say(text string) {
	b.t.Helper()
	if _, err := io.WriteString(b.conn, text); err != nil {
		b.t.Fatal(err)
	}
}

func (b *rawBus) hear() {
	b.t.Helper()
	if _, err := b.conn.Read(make([]byte, 4096)); err != nil {
		b.t.Fatal(err)
	}
}

// send sends a message whose body is what it is, with descriptors.
func (b *rawBus) send(kind godbus.Type, to string, path godbus.ObjectPath, member, signature string, body []byte, fds []int) uint32 {
	b.t.Helper()
	dot := strings.LastIndexByte(member, '.')
	in, name := member[:dot], member[dot+1:]
	b.serial++
	m := &godbus.Message{Type: kind, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldDestination: godbus.MakeVariant(to), godbus.FieldPath: godbus.MakeVariant(path),
		godbus.FieldInterface: godbus.MakeVariant(in), godbus.FieldMember: godbus.MakeVariant(name),
	}}
	if signature != "" {
		m.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.ParseSignatureMust(signature))
	}
	if len(fds) > 0 {
		m.Headers[godbus.FieldUnixFDs] = godbus.MakeVariant(uint32(len(fds)))
	}
	var head bytes.Buffer
	if err := m.EncodeTo(&head, binary.LittleEndian); err != nil {
		b.t.Fatal(err)
	}
	data := head.Bytes()
	binary.LittleEndian.PutUint32(data[4:], uint32(len(body)))
	binary.LittleEndian.PutUint32(data[8:], b.serial)
	data = append(data, body...)
	if _, _, err := b.conn.WriteMsgUnix(data, unix.UnixRights(fds...), nil); err != nil {
		b.t.Fatal(err)
	}
	return b.serial
}

// call waits for the answer; it returns an error's name, or "".
func (b *rawBus) call(to string, path godbus.ObjectPath, member, signature string, body []byte, fds []int) string {
	b.t.Helper()
	serial := b.send(godbus.TypeMethodCall, to, path, member, signature, body, fds)
	_ = b.conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	for {
		m, err := godbus.DecodeMessage(b.conn)
		if err != nil {
			b.t.Fatalf("no answer to %s(%s): %v", member, signature, err)
		}
		if n, _ := m.Headers[godbus.FieldReplySerial].Value().(uint32); n == serial {
			name, _ := m.Headers[godbus.FieldErrorName].Value().(string)
			return name
		}
	}
}

// marshal is a body of values.
func marshal(t *testing.T, values ...any) (signature string, body []byte) {
	t.Helper()
	m := &godbus.Message{Type: godbus.TypeSignal, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldPath: godbus.MakeVariant(godbus.ObjectPath("/")), godbus.FieldInterface: godbus.MakeVariant("a.b"),
		godbus.FieldMember: godbus.MakeVariant("c"), godbus.FieldSignature: godbus.MakeVariant(godbus.SignatureOf(values...)),
	}, Body: values}
	var all bytes.Buffer
	if err := m.EncodeTo(&all, binary.LittleEndian); err != nil {
		t.Fatal(err)
	}
	return godbus.SignatureOf(values...).String(), all.Bytes()[all.Len()-int(binary.LittleEndian.Uint32(all.Bytes()[4:])):]
}

// TestHostileMessages checks that no message that the bus lets through ends the server or leaves a
// descriptor in it.
func TestHostileMessages(t *testing.T) {
	s, _, c, address := serve(t, rule{})
	web := runWeb(t, c)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	raw := newRawBus(t, address)
	unique := s.conn.Names()[0]
	const name = BusName
	index := func(n int) godbus.UnixFDIndex { return godbus.UnixFDIndex(n) }
	none := properties{}
	tests := []struct {
		name   string
		kind   godbus.Type
		path   godbus.ObjectPath
		member string
		args   []any // signature and body as they are, when the first one is []byte
		raw    string
		fds    int
		want   string // the answer to a call: an error, or ""
	}{
		{name: "ah of none", path: ManagerPath, member: ManagerInterface + ".ListPods", args: []any{[]godbus.UnixFDIndex{}}, want: "Invalid"},
		{name: "ah", path: ManagerPath, member: ManagerInterface + ".ListPods", args: []any{[]godbus.UnixFDIndex{0, 1, 2}}, fds: 3, want: "Invalid"},
		{name: "ah out of range", path: ManagerPath, member: ManagerInterface + ".ListPods", args: []any{[]godbus.UnixFDIndex{0, 9, 1 << 31}}, fds: 1, want: "Invalid"},
		{name: "ah to an unknown method", path: ManagerPath, member: "a.b.C", args: []any{[]godbus.UnixFDIndex{0}}, fds: 1, want: "Unknown"},
		{name: "ah to Ping", path: "/", member: "org.freedesktop.DBus.Peer.Ping", args: []any{[]godbus.UnixFDIndex{0}}, fds: 1},
		{name: "a{sh}", path: ManagerPath, member: ManagerInterface + ".ListPods", args: []any{map[string]godbus.UnixFDIndex{"a": 0}}, fds: 1, want: "Invalid"},
		{name: "a(h)", path: ManagerPath, member: ManagerInterface + ".ListPods", args: []any{[]struct{ F godbus.UnixFDIndex }{{0}}}, fds: 1, want: "Invalid"},
		{name: "v of h", path: ManagerPath, member: propertiesInterface + ".Set", args: []any{ManagerInterface, "Version", godbus.MakeVariant(index(0))}, fds: 1, want: "Unsupported"},
		{name: "v of ah", path: ManagerPath, member: propertiesInterface + ".Set", args: []any{ManagerInterface, "Version", godbus.MakeVariant([]godbus.UnixFDIndex{0})}, fds: 1, want: "Unsupported"},
		{name: "a{sv} with h", path: ManagerPath, member: ManagerInterface + ".RunPod", args: []any{"", map[string]godbus.Variant{"x": godbus.MakeVariant(index(0))}}, fds: 1, want: "Invalid"},
		{name: "nested a{sv}", path: ManagerPath, member: ManagerInterface + ".RunPod", args: []any{"", map[string]godbus.Variant{"wait": godbus.MakeVariant(map[string]godbus.Variant{"y": godbus.MakeVariant(index(0))})}}, fds: 1, want: "Invalid"},
		{name: "unnamed", path: ManagerPath, member: ManagerInterface + ".ListPods", fds: 16},
		{name: "unnamed with Exec", path: web, member: PodInterface + ".Exec", args: []any{"", []string{"true"}, none, index(0), index(1), index(2)}, fds: 16, want: "?"},
		{name: "unnamed with Ping", path: "/", member: "org.freedesktop.DBus.Peer.Ping", fds: 16},
		{name: "unnamed with Introspect", path: "/", member: introspectableInterface + ".Introspect", fds: 16},
		{name: "unnamed with GetAll", path: ManagerPath, member: propertiesInterface + ".GetAll", args: []any{ManagerInterface}, fds: 16},
		{name: "index out of range", path: ManagerPath, member: ManagerInterface + ".LoadImage", args: []any{index(5)}, fds: 1, want: "Invalid"},
		{name: "index without any", path: ManagerPath, member: ManagerInterface + ".LoadImage", args: []any{index(0)}, want: "Invalid"},
		{name: "one for three", path: web, member: PodInterface + ".Exec", args: []any{"", []string{"true"}, none, index(0), index(0), index(0)}, fds: 3, want: "?"},
		{name: "signal", kind: godbus.TypeSignal, path: "/a", member: "a.b.C", args: []any{index(0)}, fds: 16},
		{name: "signal with ah", kind: godbus.TypeSignal, path: "/a", member: "a.b.C", args: []any{[]godbus.UnixFDIndex{0}}, fds: 16},
		// What godbus takes for the end of the connection.
		{name: "a{bs}", path: ManagerPath, member: ManagerInterface + ".ListPods", raw: "a{bs}\x0a\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00x\x00", want: "Invalid"},
		{name: "a{gs}", path: ManagerPath, member: ManagerInterface + ".RunPod", raw: "a{gs}\x0a\x00\x00\x00\x00\x00\x00\x00\x01y\x00\x00\x01\x00\x00\x00x\x00", fds: 2, want: "Invalid"},
		{name: "v of a{bs}", path: ManagerPath, member: propertiesInterface + ".Set", raw: "v\x05a{bs}" + strings.Repeat("\x00", 10), want: "Invalid"},
		{name: "signal with a{bs}", kind: godbus.TypeSignal, path: "/a", member: "a.b.C", raw: "a{bs}\x0a\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00x\x00", fds: 3},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.kind == 0 {
				test.kind = godbus.TypeMethodCall
			}
			signature, body := "", []byte(nil)
			if len(test.args) > 0 {
				signature, body = marshal(t, test.args...)
			}
			if test.raw != "" {
				i := strings.IndexAny(test.raw, "\x0a\x05")
				signature, body = test.raw[:i], []byte(test.raw[i:])
			}
			fds := make([]int, test.fds)
			for i := range fds {
				fds[i] = int(null.Fd())
			}
			once := func() {
				if test.kind != godbus.TypeMethodCall {
					raw.send(test.kind, unique, test.path, test.member, signature, body, fds)
					return
				}
				if got := raw.call(name, test.path, test.member, signature, body, fds); test.want != "?" && (got == "") != (test.want == "") || !strings.Contains(got, strings.TrimSuffix(test.want, "?")) {
					t.Fatalf("the answer is %q, want %q", got, test.want)
				}
			}
			once()
			before := openFiles(t)
			const calls = 60
			for range calls {
				once()
			}
			if got := raw.call(name, "/", "org.freedesktop.DBus.Peer.Ping", "", nil, nil); got != "" {
				t.Fatalf("the server says %q", got)
			}
			// An answer may come a moment before its call's descriptors are closed.
			for deadline := time.Now().Add(10 * time.Second); openFiles(t) >= before+calls/2 && time.Now().Before(deadline); {
				time.Sleep(10 * time.Millisecond)
			}
			if after := openFiles(t); after >= before+calls/2 {
				t.Errorf("%d descriptors before %d messages, %d after", before, calls, after)
			}
			select {
			case <-s.Lost():
				t.Fatal("the server has lost the bus")
			default:
			}
		})
	}
	if _, err := c.Info(t.Context()); err != nil || pod.KindOf(err) != "" {
		t.Errorf("the server does not answer any more: %v", err)
	}
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
		{"in an option", contract.PodPath("x"), PodInterface + ".Exec", []any{"", []string{"x"}, hidden, fd, fd, fd}},
		{"in a wanted option map", ManagerPath, ManagerInterface + ".RunPod", []any{"", hidden}},
		{"of a pod that is not there", contract.PodPath("x"), PodInterface + ".Exec", []any{"", []string{"x"}, map[string]godbus.Variant{}, fd, fd, fd}},
	} {
		t.Run(test.name, func(t *testing.T) {
			call := func() { _ = c.Conn().Object(BusName, test.path).Call(test.call, 0, test.args...).Err }
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
