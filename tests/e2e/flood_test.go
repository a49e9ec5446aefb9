package e2e

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/godbus/dbus/v5"
)

// flood opens connections to the bus and makes calls over each of them, ListPods or RunPod with a
// manifest of so many bytes, without ever reading an answer. It says "sent" and keeps the
// connections until its standard input ends.
func flood(words []string) error {
	var n [3]int
	for i := range n {
		var err error
		if n[i], err = strconv.Atoi(words[i]); err != nil {
			return err
		}
	}
	member, body := "ListPods", []any(nil)
	if n[2] > 0 {
		member, body = "RunPod", []any{strings.Repeat("#", n[2]), map[string]dbus.Variant{}}
	}
	var call bytes.Buffer
	if err := busCall("org.magikpod1", "/org/magikpod1", "org.magikpod1.Manager", member, body).EncodeTo(&call, binary.LittleEndian); err != nil {
		return err
	}
	message := call.Bytes()
	// godbus counts the serials of a connection; this message has none yet.
	var wg sync.WaitGroup
	for range n[0] {
		conn, err := rawBus()
		if err != nil {
			return err
		}
		defer conn.Close()
		wg.Go(func() {
			for i := range n[1] {
				one := bytes.Clone(message)
				binary.LittleEndian.PutUint32(one[8:], uint32(i+2))
				if _, err := conn.Write(one); err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	fmt.Println("sent")
	_, err := bufio.NewReader(os.Stdin).ReadString(0)
	return err
}

// rawBus says hello to the system bus.
func rawBus() (net.Conn, error) {
	conn, err := net.Dial("unix", "/run/dbus/system_bus_socket")
	if err != nil {
		return nil, err
	}
	user := hex.EncodeToString([]byte(strconv.Itoa(os.Getuid())))
	if _, err := fmt.Fprintf(conn, "\x00AUTH EXTERNAL %s\r\n", user); err != nil {
		return nil, err
	}
	// Read no further than the line.
	line := make([]byte, 0, 128)
	for one := make([]byte, 1); !bytes.HasSuffix(line, []byte("\r\n")); line = append(line, one...) {
		if _, err := conn.Read(one); err != nil {
			return nil, fmt.Errorf("the bus: %q, %w", line, err)
		}
	}
	if _, err := conn.Write([]byte("BEGIN\r\n")); err != nil {
		return nil, err
	}
	var hello bytes.Buffer
	const bus = "org.freedesktop.DBus"
	if err := busCall(bus, "/org/freedesktop/DBus", bus, "Hello", nil).EncodeTo(&hello, binary.LittleEndian); err != nil {
		return nil, err
	}
	binary.LittleEndian.PutUint32(hello.Bytes()[8:], 1)
	_, err = conn.Write(hello.Bytes())
	return conn, err
}

func busCall(to string, path dbus.ObjectPath, in, member string, body []any) *dbus.Message {
	m := &dbus.Message{Type: dbus.TypeMethodCall, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldDestination: dbus.MakeVariant(to), dbus.FieldPath: dbus.MakeVariant(path),
		dbus.FieldInterface: dbus.MakeVariant(in), dbus.FieldMember: dbus.MakeVariant(member),
	}}
	if body != nil {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
	}
	return m
}
