package crun

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestConsole: the master that an OCI runtime sends is received, also when that has ended before
// anybody looked; one that has ended without sending is not waited for.
func TestConsole(t *testing.T) {
	over := make(chan struct{})
	close(over)
	for _, tc := range []struct {
		name  string
		send  bool
		ended <-chan struct{}
	}{
		{"sent", true, nil},
		{"sent by one that has ended", true, over},
		{"not sent", false, over},
	} {
		// A socket's path has room for 107 bytes.
		dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		c, err := NewConsole(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if tc.send {
			conn, err := net.DialUnix("unix", nil, c.address())
			if err != nil {
				t.Fatal(err)
			}
			null, err := os.Open("/dev/null")
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := conn.WriteMsgUnix([]byte("/dev/null"), unix.UnixRights(int(null.Fd())), nil); err != nil {
				t.Fatal(err)
			}
			null.Close()
			conn.Close()
		}
		fd, err := c.Receive(tc.ended, time.Now().Add(time.Minute))
		if (err == nil) != tc.send {
			t.Errorf("%s: descriptor %d, %v", tc.name, fd, err)
		}
		if err != nil {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("%s: the flags of the master are %#x, %v: it blocks", tc.name, flags, err)
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("%s: children inherit the master: %#x, %v", tc.name, flags, err)
		}
		unix.Close(fd)
	}
}
