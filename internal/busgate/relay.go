package busgate

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Gate decides about each message that comes from the bus. Both methods are called from one goroutine, in the order of the messages; while one of them
// waits, nothing comes in, answers included.
type Gate interface {
	// Screen says whether the body is wanted at all. One that is not is read and thrown away, a piece at a time.
	Screen(h *Head) bool
	// Deliver gets a wanted message and forwards it, now or later, or closes it.
	Deliver(r *Relay, m *Message)
}

// Relay is the way between the bus and godbus.
type Relay struct {
	bus, inner *net.UnixConn // inner's other end is godbus's
	mu         sync.Mutex    // for messages to inner
}

// Connect dials the bus at address ("": the system bus), says hello and returns a connection behind the gate. It ends with the bus's connection.
func Connect(address string, gate Gate, opts ...godbus.ConnOption) (*godbus.Conn, error) {
	bus, err := dial(address)
	if err != nil {
		return nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		_ = bus.Close()
		return nil, err
	}
	inner, err1 := unixConn(fds[0])
	outer, err2 := unixConn(fds[1])
	if err := errors.Join(err1, err2); err != nil {
		_ = bus.Close()
		return nil, err
	}
	r := &Relay{bus: bus, inner: inner}
	go r.inward(gate)
	go r.outward()
	return godbus.ConnectUnix(outer, opts...) // a failure closes outer, and with it the relay
}

func unixConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "bus")
	defer func() { _ = f.Close() }() // FileConn makes a copy
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// dial connects to the first address of the list that works.
func dial(address string) (*net.UnixConn, error) {
	if address == "" {
		if address = os.Getenv("DBUS_SYSTEM_BUS_ADDRESS"); address == "" {
			address = "unix:path=/run/dbus/system_bus_socket"
		}
	}
	err := fmt.Errorf("the bus address %q has no unix socket", address)
	for one := range strings.SplitSeq(address, ";") {
		rest, ok := strings.CutPrefix(one, "unix:")
		if !ok {
			continue
		}
		for pair := range strings.SplitSeq(rest, ",") {
			key, value, _ := strings.Cut(pair, "=")
			if key != "path" && key != "abstract" {
				continue
			}
			if value, err = godbus.UnescapeBusAddressValue(value); err != nil {
				continue
			}
			if key == "abstract" {
				value = "@" + value
			}
			var conn *net.UnixConn
			if conn, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: value, Net: "unix"}); err == nil {
				return conn, nil
			}
		}
	}
	return nil, err
}

// outward copies what godbus sends, descriptors too.
func (r *Relay) outward() {
	defer r.close()
	buf, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4*maxFiles))
	for {
		n, oobn, _, _, err := r.inner.ReadMsgUnix(buf, oob)
		files := filesOf(oob[:oobn])
		if err != nil || n == 0 {
			closeFiles(files)
			return
		}
		err = write(r.bus, buf[:n], files)
		closeFiles(files)
		if err != nil {
			return
		}
	}
}

func (r *Relay) close() {
	_ = r.bus.Close()
	_ = r.inner.Close()
}

// write sends all of b, and files with its first byte.
func write(to *net.UnixConn, b []byte, files []int) error {
	if len(files) > 0 {
		n, _, err := to.WriteMsgUnix(b, unix.UnixRights(files...), nil)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	_, err := to.Write(b)
	return err
}

func filesOf(oob []byte) (files []int) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range messages {
		if fds, err := syscall.ParseUnixRights(&messages[i]); err == nil {
			files = append(files, fds...)
		}
	}
	return files
}

// reader reads from the bus and gathers the descriptors that come along.
type reader struct {
	conn  *net.UnixConn
	files []int
	oob   []byte
}

// Read implements [io.Reader].
func (r *reader) Read(b []byte) (int, error) {
	n, oobn, _, _, err := r.conn.ReadMsgUnix(b, r.oob)
	r.files = append(r.files, filesOf(r.oob[:oobn])...)
	if err == nil && n == 0 && len(b) > 0 {
		err = io.EOF
	}
	return n, err
}

func (r *reader) take() []int {
	files := r.files
	r.files = nil
	return files
}

// inward reads the lines of the authentication, then messages.
func (r *Relay) inward(gate Gate) {
	in := &reader{conn: r.bus, oob: make([]byte, 4096)}
	defer func() {
		closeFiles(in.take())
		r.close()
	}()
	for negotiated := false; !negotiated; {
		line, err := readLine(in)
		if err != nil || write(r.inner, line, nil) != nil {
			return
		}
		// The answer to NEGOTIATE_UNIX_FD is the last line.
		text := string(line)
		negotiated = strings.HasPrefix(text, "AGREE_UNIX_FD") || strings.HasPrefix(text, "ERROR")
	}
	for r.message(in, gate) == nil {
	}
}

func readLine(in io.Reader) ([]byte, error) {
	var line []byte
	one := make([]byte, 1)
	for len(line) < 4096 {
		if _, err := io.ReadFull(in, one); err != nil {
			return nil, err
		}
		if line = append(line, one[0]); one[0] == '\n' {
			return line, nil
		}
	}
	return nil, errHead
}

// message reads one message. An error ends the connection.
func (r *Relay) message(in *reader, gate Gate) error {
	raw := make([]byte, fixedBytes, 512)
	if _, err := io.ReadFull(in, raw); err != nil {
		return err
	}
	h, order, n, err := parseFixed(raw)
	if err != nil {
		return err
	}
	length := int(order.Uint32(raw[12:]))
	wanted := n <= maxFields
	if wanted {
		raw = append(raw, make([]byte, n)...)
		if _, err := io.ReadFull(in, raw[fixedBytes:]); err != nil {
			return err
		}
		wanted = h.parseFields(raw[fixedBytes:], order, length) == nil
	} else if err := discard(in, n); err != nil {
		return err
	}
	// All descriptors come with the first byte.
	if !wanted || int(h.Files) != len(in.files) || h.Files > maxFiles || !gate.Screen(&h) {
		err := discard(in, int(h.BodyBytes))
		closeFiles(in.take())
		return err
	}
	at := len(raw)
	raw = append(raw, make([]byte, h.BodyBytes)...)
	if _, err := io.ReadFull(in, raw[at:]); err != nil {
		return err
	}
	gate.Deliver(r, &Message{Head: h, bytes: raw, files: in.take()})
	return nil
}

func discard(in io.Reader, n int) error {
	_, err := io.CopyN(io.Discard, in, int64(n))
	return err
}

// Forward hands a message to godbus. It may be called from any goroutine; messages are handed over in the order of the calls.
func (r *Relay) Forward(m *Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := write(r.inner, m.bytes, m.files); err != nil {
		r.close()
	}
	m.Close()
}
