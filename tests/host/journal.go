package host

import (
	"net"
	"os"
	"os/exec"
	"testing"
)

// DialJournal connects to the journal of the host that the test runs on, as a program of root's. It
// skips the test where there is none.
func DialJournal(tb testing.TB) net.Conn {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Skip("the relay is root: run as root")
	}
	conn, err := net.Dial("unixgram", "/run/systemd/journal/socket")
	if err != nil {
		tb.Skipf("this host has no journal (%v): run it with -exec 'magikhost run --here --'", err)
	}
	tb.Cleanup(func() { conn.Close() })
	return conn
}

// ReadJournal is what journalctl prints of what was sent until now.
func ReadJournal(tb testing.TB, args ...string) string {
	tb.Helper()
	if out, err := exec.Command("journalctl", "--sync").CombinedOutput(); err != nil {
		tb.Fatalf("journalctl --sync: %v: %s", err, out)
	}
	out, err := exec.Command("journalctl", append([]string{"--quiet", "--no-pager", "--all"}, args...)...).Output()
	if err != nil {
		tb.Fatalf("journalctl: %v", err)
	}
	return string(out)
}
