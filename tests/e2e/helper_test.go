package e2e

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"github.com/rogpeppe/go-internal/testscript"
)

// envHelper makes this test binary, which is static, a program for a container: what busybox lacks.
const envHelper = "E2E_HELPER"

// help is the helper: "udp-echo ADDRESS" sends every datagram back, "hunt MARKER" is [hunt], "exec
// OBJECT FD FD FD" has a pod run true with these descriptors, "flood CONNECTIONS CALLS BYTES" calls
// the daemon and reads no answer.
func help(words []string) error {
	switch {
	case len(words) == 2 && words[0] == "udp-echo":
		return udpEcho(words[1])
	case len(words) == 2 && words[0] == "hunt":
		return hunt(words[1])
	case len(words) == 5 && words[0] == "exec":
		return execWith(words[1], words[2:])
	case len(words) == 4 && words[0] == "flood":
		return flood(words[1:])
	}
	return fmt.Errorf("unknown helper %q", words)
}

func execWith(object string, numbers []string) error {
	conn, err := godbus.ConnectSystemBus()
	if err != nil {
		return err
	}
	defer conn.Close()
	args := []any{"", []string{"true"}, map[string]godbus.Variant{}}
	for _, number := range numbers {
		n, err := strconv.Atoi(number)
		if err != nil {
			return err
		}
		args = append(args, godbus.UnixFD(n))
	}
	return conn.Object("org.magikpod1", godbus.ObjectPath(object)).Call("org.magikpod1.Pod.Exec", 0, args...).Err
}

func udpEcho(address string) error {
	conn, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		if _, err := conn.WriteTo(buf[:n], from); err != nil {
			return err
		}
	}
}

// runHelper ends the process when it is to be the helper.
func runHelper() {
	words := strings.Fields(os.Getenv(envHelper))
	if len(words) == 0 {
		return
	}
	fmt.Fprintln(os.Stderr, help(words))
	os.Exit(1)
}

// udp sends a datagram, again and again until an answer comes, which becomes standard output.
func udp(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: udp ADDRESS TEXT")
	}
	conn, err := net.Dial("udp", args[0])
	ts.Check(err)
	defer conn.Close()
	buf := make([]byte, 64<<10)
	retry(ts, patience, func() string {
		if _, err := conn.Write([]byte(args[1])); err != nil {
			return err.Error()
		}
		ts.Check(conn.SetReadDeadline(time.Now().Add(time.Second)))
		n, err := conn.Read(buf)
		if err != nil {
			return err.Error()
		}
		_, err = fmt.Fprintf(ts.Stdout(), "%s\n", buf[:n])
		ts.Check(err)
		return ""
	})
}
