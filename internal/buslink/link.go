package buslink

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	godbus "github.com/godbus/dbus/v5"
)

const (
	// maxMessage is the longest message of the D-Bus specification, in bytes.
	maxMessage = 1 << 27
	// fixedHeader is the part of a message's header that has always the same size: it ends with the
	// length of the rest.
	fixedHeader = 16
)

// link is a connection to the bus as godbus sees it: bytes to read and write, without descriptors.
// Messages are read as a whole, so that it is known which descriptors came with which message.
type link struct {
	conn  *net.UnixConn
	gate  Gate
	wants func(*godbus.Message) bool
	// A reply that godbus cannot decode ends the connection. To find out takes as long as decoding it.

	// Only the goroutine that connects uses these.
	told  []byte        // what godbus hears in place of the bus while it authenticates itself
	began bool          // that is over
	hello chan struct{} // closed when the first message is on its way; nil then

	agreed chan struct{} // closed when the bus has answered what comes before the first message

	ready chan *Message // forwarded, for godbus to read
	done  chan struct{} // closed when nothing comes any more
	err   error         // why; set before done is closed

	// Only the goroutine that reads messages uses these.
	rest []byte // of the message that godbus reads
	fds  []int  // that came with it

	sending sync.Mutex
	waiting map[uint32]withFiles // messages that godbus is about to write, by serial
}

// withFiles is an encoded message and the descriptors, if any, that go with it.
type withFiles struct {
	data []byte
	fds  []int
}

// Connect connects to the bus at address, "" being the system bus, and says hello; ctx bounds that
// alone. wants says of a message, on the goroutine that reads, whether it may bring descriptors:
// then those that its arguments name are in its body. All others are closed. A nil wants wants
// none. Long signals and calls are dropped.
func Connect(ctx context.Context, address string, wants func(*godbus.Message) bool, opts ...godbus.ConnOption) (*godbus.Conn, error) {
	return ConnectThrough(ctx, address, small{}, wants, opts...)
}

// ConnectThrough is Connect for who serves: gate decides what comes in.
func ConnectThrough(ctx context.Context, address string, gate Gate, wants func(*godbus.Message) bool, opts ...godbus.ConnOption) (*godbus.Conn, error) {
	_, conn, err := open(address, gate, wants, opts)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	err = conn.Hello()
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// Start is Connect for who calls and ends. It does not wait for the bus: what is called meanwhile is
// sent behind the hello. It trusts whom it calls: a reply that godbus cannot decode ends the connection.
// answer gets what came of that; an error, once the connection has ended for it.
func Start(address string, wants func(*godbus.Message) bool, opts ...godbus.ConnOption) (conn *godbus.Conn, answer <-chan error, err error) {
	l, conn, err := open(address, caller{}, wants, opts)
	if err != nil {
		return nil, nil, err
	}
	said, hello := l.hello, make(chan error, 1)
	go func() {
		err := conn.Hello()
		if err != nil {
			_ = conn.Close()
		}
		hello <- err
	}()
	<-said
	return conn, hello, nil
}

// open connects, and does all that godbus does before the hello.
func open(address string, gate Gate, wants func(*godbus.Message) bool, opts []godbus.ConnOption) (*link, *godbus.Conn, error) {
	socket, err := dial(address)
	if err != nil {
		return nil, nil, err
	}
	l := &link{
		conn: socket, gate: gate, wants: wants, told: []byte("REJECTED EXTERNAL\r\nOK here\r\n"), hello: make(chan struct{}), agreed: make(chan struct{}),
		waiting: make(map[uint32]withFiles), ready: make(chan *Message, 16), done: make(chan struct{}),
	}
	conn, err := godbus.NewConn(l, append(opts, godbus.WithIncomingInterceptor(l.incoming), godbus.WithOutgoingInterceptor(l.outgoing))...)
	if err == nil {
		err = conn.Auth([]godbus.Auth{external{}})
	}
	if err != nil {
		_ = socket.Close()
		return nil, nil, err
	}
	return l, conn, nil
}

// external is authentication by the socket's credentials as godbus sees it; see [link.greet].
type external struct{}

func (external) FirstData() (name, resp []byte, status godbus.AuthStatus) {
	return []byte("EXTERNAL"), nil, godbus.AuthOk
}

func (external) HandleData([]byte) (resp []byte, status godbus.AuthStatus) {
	return nil, godbus.AuthError
}

// dial connects to the first address of a list (D-Bus specification, "Server Addresses") that is there.
func dial(addresses string) (*net.UnixConn, error) {
	if addresses == "" {
		addresses = os.Getenv("DBUS_SYSTEM_BUS_ADDRESS")
	}
	if addresses == "" {
		addresses = "unix:path=/run/dbus/system_bus_socket;unix:path=/var/run/dbus/system_bus_socket"
	}
	var errs []error
	for address := range strings.SplitSeq(addresses, ";") {
		path, err := socketPath(address)
		if err == nil {
			var conn *net.UnixConn
			if conn, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"}); err == nil {
				return conn, nil
			}
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func socketPath(address string) (string, error) {
	keys, ok := strings.CutPrefix(address, "unix:")
	if ok {
		for pair := range strings.SplitSeq(keys, ",") {
			key, value, _ := strings.Cut(pair, "=")
			path, err := url.PathUnescape(value)
			switch {
			case err == nil && key == "path":
				return path, nil
			case err == nil && key == "abstract":
				return "@" + path, nil
			}
		}
	}
	return "", fmt.Errorf("%q is no address of a bus on a unix socket", address)
}

// Read implements [io.Reader] for godbus.
func (l *link) Read(p []byte) (int, error) {
	if len(l.told) > 0 {
		n := copy(p, l.told)
		l.told = l.told[n:]
		return n, nil
	}
	for len(l.rest) == 0 {
		if err := l.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, l.rest)
	if l.rest = l.rest[n:]; len(l.rest) == 0 {
		l.rest = nil // it may be large, and the next message may be long in coming
	}
	return n, nil
}

// next takes a message that was forwarded.
func (l *link) next() error {
	l.closeFiles()
	select {
	case m := <-l.ready:
		l.rest, l.fds = m.data, m.fds
		return nil
	case <-l.done:
	}
	for {
		select {
		case m := <-l.ready:
			m.Close()
		default:
			return l.err
		}
	}
}

// receiveAll asks the gate about each message until the connection ends.
func (l *link) receiveAll() {
	in := &receiver{conn: l.conn}
	l.err = welcome(in)
	close(l.agreed)
	for l.err == nil {
		l.err = l.receive(in)
		closeFiles(in.fds)
		in.fds = nil
	}
	close(l.done)
}

// receive reads a message and its descriptors: those that come while it is read are its own (D-Bus
// specification, UNIX_FDS; unix(7)).
func (l *link) receive(in *receiver) error {
	data := make([]byte, fixedHeader, 512)
	if _, err := io.ReadFull(in, data); err != nil {
		return err
	}
	h, order, padded, err := parseFixed(data)
	if err != nil {
		return err
	}
	if padded > maxFields {
		return discard(in, padded+int(h.BodyBytes))
	}
	length := int(order.Uint32(data[12:]))
	data = append(data, make([]byte, padded)...)
	if _, err := io.ReadFull(in, data[fixedHeader:]); err != nil {
		return err
	}
	if h.parseFields(data[fixedHeader:], order, length) != nil || !l.gate.Screen(&h) {
		return discard(in, int(h.BodyBytes))
	}
	// A long buffer grows with what comes: a length alone takes no memory.
	b := bytes.NewBuffer(data)
	b.Grow(int(min(h.BodyBytes, 1<<20)) + bytes.MinRead)
	if _, err := io.CopyN(b, in, int64(h.BodyBytes)); err != nil {
		return err
	}
	m := &Message{Head: h, link: l, data: b.Bytes(), fds: in.fds}
	if t, ok := l.gate.(Truster); !ok || !t.Trusts(&h) {
		m.Broken = decodable(m.data)
	}
	in.fds = nil
	l.gate.Deliver(m)
	return nil
}

// discard reads in large pieces: who has been called with much waits for it.
func discard(in *receiver, n int) error {
	if in.scratch == nil {
		in.scratch = make([]byte, 256<<10)
	}
	for n > 0 {
		got, err := in.Read(in.scratch[:min(n, len(in.scratch))])
		if n -= got; err != nil {
			return err
		}
	}
	return nil
}

// byteOrder is that of a message.
func byteOrder(message []byte) binary.ByteOrder {
	if message[0] == 'B' {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

// receiver reads from the socket and keeps the descriptors that come.
type receiver struct {
	conn    *net.UnixConn
	fds     []int
	scratch []byte
}

func (r *receiver) Read(p []byte) (int, error) {
	var space [2048]byte // the kernel passes 253 descriptors at most (SCM_MAX_FD)
	n, oobn, _, _, err := r.conn.ReadMsgUnix(p, space[:])
	if messages, parseErr := syscall.ParseSocketControlMessage(space[:oobn]); parseErr == nil {
		for i := range messages {
			// What did not fit, because this process has too many open, is missing: whoever counts
			// on it learns it.
			if fds, err := syscall.ParseUnixRights(&messages[i]); err == nil {
				r.fds = append(r.fds, fds...)
			}
		}
	}
	if err == nil && n == 0 && len(p) > 0 {
		err = io.EOF
	}
	return max(n, 0), err
}

// incoming puts the descriptors that the arguments name in the place of their numbers, and closes
// all others: those of messages that nobody wants, those that are hidden in an array or a variant,
// and those that no argument names. It runs after godbus has read the message, on the same
// goroutine.
func (l *link) incoming(m *godbus.Message) {
	if len(l.fds) == 0 {
		return
	}
	if l.wants != nil && l.wants(m) {
		taken := make(map[int]bool)
		for i, v := range m.Body {
			if n, ok := v.(godbus.UnixFDIndex); ok && int(n) < len(l.fds) {
				fd := l.fds[n]
				m.Body[i], taken[fd] = godbus.UnixFD(fd), true
			}
		}
		l.fds = slices.DeleteFunc(l.fds, func(fd int) bool { return taken[fd] })
	}
	l.closeFiles()
}

func (l *link) closeFiles() {
	closeFiles(l.fds)
	l.fds = nil
}

func closeFiles(fds []int) {
	for _, fd := range fds {
		_ = syscall.Close(fd)
	}
}

// outgoing encodes a message, once: godbus would do so three times, two of
// them to count descriptors, and cannot send those over a connection that it takes for one without.
// It writes an empty message in its place, which Write replaces.
func (l *link) outgoing(m *godbus.Message) {
	var b bytes.Buffer
	fds, err := m.EncodeToWithFDs(&b, binary.LittleEndian)
	if err == nil && len(fds) > 0 {
		m.Headers[godbus.FieldUnixFDs] = godbus.MakeVariant(uint32(len(fds)))
		b.Reset()
		fds, err = m.EncodeToWithFDs(&b, binary.LittleEndian)
	}
	if err != nil {
		return // godbus reports the error
	}
	m.Body = nil
	l.sending.Lock()
	defer l.sending.Unlock()
	l.waiting[m.Serial()] = withFiles{b.Bytes(), fds}
}

// Write implements [io.Writer] for godbus, which writes a whole line or message at a time.
func (l *link) Write(p []byte) (int, error) {
	l.sending.Lock()
	defer l.sending.Unlock()
	if !l.began { // it authenticates itself with nobody
		l.began = bytes.Equal(p, []byte("BEGIN\r\n"))
		return len(p), nil
	}
	serial := byteOrder(p).Uint32(p[8:]) // D-Bus specification, "Message Format"
	m, ok := l.waiting[serial]
	if !ok {
		m.data = p
	}
	delete(l.waiting, serial)
	return len(p), l.send(m)
}

// send sends a message; l.sending is held.
func (l *link) send(m withFiles) error {
	if l.hello != nil {
		defer func() { close(l.hello); l.hello = nil }()
		return l.greet(m.data)
	}
	if len(m.fds) == 0 {
		_, err := l.conn.Write(m.data)
		return err
	}
	<-l.agreed // a bus that reads lines drops descriptors
	n, _, err := l.conn.WriteMsgUnix(m.data, syscall.UnixRights(m.fds...), nil)
	if err == nil && n < len(m.data) { // the descriptors are on their way with the first byte
		_, err = l.conn.Write(m.data[n:])
	}
	return err
}

// greet sends all that is to be said before the first message, and that: the bus reads it in one go,
// where godbus waits for the answer to each line.
func (l *link) greet(hello []byte) error {
	// The user's number, not the name: no look-up of names.
	text := fmt.Appendf(nil, "\x00AUTH EXTERNAL %x\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n", strconv.Itoa(os.Getuid()))
	_, err := l.conn.Write(append(text, hello...))
	go l.receiveAll()
	return err
}

// welcome reads the answers to the lines of greet; a GUID has 32 digits (D-Bus specification, "UUIDs").
func welcome(in *receiver) error {
	text := make([]byte, len("OK \r\nAGREE_UNIX_FD\r\n")+32)
	n, err := io.ReadFull(in, text)
	first, second, _ := strings.Cut(string(text[:n]), "\r\n")
	switch {
	case err != nil && n == 0:
		return err
	case !strings.HasPrefix(first, "OK "):
		return errors.New("dbus: authentication failed")
	case second != "AGREE_UNIX_FD\r\n":
		return fmt.Errorf("the bus does not pass descriptors: %q", second)
	}
	return nil
}

// Close implements [io.Closer] for godbus.
func (l *link) Close() error { return l.conn.Close() }
