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
	"strings"
	"sync"
	"syscall"

	godbus "github.com/godbus/dbus/v5"
)

const (
	// maxMessage is the longest message of the D-Bus specification, in bytes.
	maxMessage = 1 << 27
	// fixedHeader is the part of a message's header that has always the same size: it ends with the length of the rest.
	fixedHeader = 16
)

// Link is a connection to the bus as godbus sees it: bytes to read and write, without descriptors. Messages are read as a whole, so that it is known which descriptors
// came with which message.
type Link struct {
	conn  *net.UnixConn
	files bool // descriptors are wanted
	began bool // the authentication is over

	// Only the goroutine that reads messages uses these.
	rest []byte // of the message that godbus reads
	fds  []int  // that came with it

	sending sync.Mutex
}

// Connect connects to the bus at address, "" being the system bus, and says hello; ctx bounds that alone. With files, messages may carry descriptors: intercept gets each message, on the
// goroutine that reads, and with [Link.Files] what came with it; all that it does not ask for is closed. Without files the bus keeps them back. intercept may be nil.
func Connect(ctx context.Context, address string, files bool, intercept func(*Link, *godbus.Message), opts ...godbus.ConnOption) (*godbus.Conn, *Link, error) {
	socket, err := dial(address)
	if err != nil {
		return nil, nil, err
	}
	l := &Link{conn: socket, files: files}
	if intercept != nil {
		opts = append(opts, godbus.WithIncomingInterceptor(func(m *godbus.Message) { intercept(l, m) }))
	}
	conn, err := godbus.NewConn(l, opts...)
	if err != nil {
		_ = socket.Close()
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = socket.Close() })
	// The user's number, not the name: no look-up of names.
	err = conn.Auth([]godbus.Auth{godbus.AuthExternal(fmt.Sprint(os.Getuid()))})
	if err == nil {
		err = conn.Hello()
	}
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	return conn, l, nil
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
func (l *Link) Read(p []byte) (int, error) {
	if !l.began {
		return l.conn.Read(p)
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

// next reads a message. There is none in rest afterwards if godbus could not take it.
func (l *Link) next() error {
	l.closeFiles()
	message, order, err := l.receive()
	if err != nil {
		l.closeFiles()
		return err
	}
	if decodable(message) != nil {
		l.closeFiles()
		if message = emptied(message, order); decodable(message) != nil {
			message = nil
		}
	}
	l.rest = message
	return nil
}

// receive reads a whole message and its descriptors: those that come while it is read are its own (D-Bus specification, UNIX_FDS; unix(7)).
func (l *Link) receive() (message []byte, order binary.ByteOrder, err error) {
	b := bytes.NewBuffer(make([]byte, 0, fixedHeader))
	if _, err := io.CopyN(b, receiver{l}, fixedHeader); err != nil {
		return nil, nil, err
	}
	order = binary.LittleEndian
	if b.Bytes()[0] == 'B' {
		order = binary.BigEndian
	}
	body, fields := uint64(order.Uint32(b.Bytes()[4:])), uint64(order.Uint32(b.Bytes()[12:]))
	rest := (fields+7)/8*8 + body
	if rest > maxMessage {
		return nil, nil, fmt.Errorf("a message of %d bytes came from the bus", rest)
	}
	// The buffer grows with what comes: a length alone takes no memory.
	if _, err := io.CopyN(b, receiver{l}, int64(rest)); err != nil {
		return nil, nil, err
	}
	return b.Bytes(), order, nil
}

// receiver reads from the socket and keeps the descriptors that come.
type receiver struct{ l *Link }

func (r receiver) Read(p []byte) (int, error) {
	var space [2048]byte // the kernel passes 253 descriptors at most (SCM_MAX_FD)
	n, oobn, _, _, err := r.l.conn.ReadMsgUnix(p, space[:])
	if messages, parseErr := syscall.ParseSocketControlMessage(space[:oobn]); parseErr == nil {
		for i := range messages {
			// What did not fit, because this process has too many open, is missing: whoever counts on it is told.
			if fds, err := syscall.ParseUnixRights(&messages[i]); err == nil {
				r.l.fds = append(r.l.fds, fds...)
			}
		}
	}
	if err == nil && n == 0 && len(p) > 0 {
		err = io.EOF
	}
	return max(n, 0), err
}

// Files returns the descriptors that came with the message that is being intercepted: they are the caller's now. It returns them once.
func (l *Link) Files() []int {
	fds := l.fds
	l.fds = nil
	return fds
}

func (l *Link) closeFiles() {
	for _, fd := range l.Files() {
		_ = syscall.Close(fd)
	}
}

// Write implements [io.Writer] for godbus, which writes a whole line or message at a time.
func (l *Link) Write(p []byte) (int, error) {
	l.sending.Lock()
	defer l.sending.Unlock()
	if !l.began && bytes.Equal(p, []byte("BEGIN\r\n")) {
		if err := l.negotiate(); err != nil {
			return 0, err
		}
		l.began = true
	}
	return l.conn.Write(p)
}

// negotiate asks the bus to pass descriptors.
func (l *Link) negotiate() error {
	if !l.files {
		return nil
	}
	if _, err := l.conn.Write([]byte("NEGOTIATE_UNIX_FD\r\n")); err != nil {
		return err
	}
	var line []byte
	for len(line) < 1024 && !bytes.HasSuffix(line, []byte("\n")) {
		var b [1]byte
		if _, err := io.ReadFull(l.conn, b[:]); err != nil {
			return err
		}
		line = append(line, b[0])
	}
	if string(line) != "AGREE_UNIX_FD\r\n" {
		return fmt.Errorf("the bus does not pass descriptors: %q", line)
	}
	return nil
}

// Send sends a message that expects no answer, with the descriptors in its body, which can be closed then.
func (l *Link) Send(m *godbus.Message) error {
	if n, err := m.CountFds(); err != nil {
		return err
	} else if n > 0 {
		m.Headers[godbus.FieldUnixFDs] = godbus.MakeVariant(uint32(n))
	}
	var b bytes.Buffer
	fds, err := m.EncodeToWithFDs(&b, binary.LittleEndian)
	if err != nil {
		return err
	}
	// The serial: any but 0, which godbus has left there, is right for what nobody answers.
	binary.LittleEndian.PutUint32(b.Bytes()[8:], 1)
	l.sending.Lock()
	defer l.sending.Unlock()
	n, _, err := l.conn.WriteMsgUnix(b.Bytes(), syscall.UnixRights(fds...), nil)
	if err == nil && n < b.Len() { // the descriptors are on their way with the first byte
		_, err = l.conn.Write(b.Bytes()[n:])
	}
	return err
}

// Close implements [io.Closer] for godbus.
func (l *Link) Close() error { return l.conn.Close() }
