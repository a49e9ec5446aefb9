//go:build unix

package engine

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/tests/testwasm"
)

// TestServer: a guest waits for many sockets and a timer at once, computes nothing meanwhile, and
// its clients see the end of a connection.
func TestServer(t *testing.T) {
	p, err := New(cacheDir).Load(t.Context(), testwasm.Guest(t), LoadOptions{Interruptible: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := p.Run(ctx, Config{Args: []string{"guest", "serve-all", "3"}, Listeners: []Listener{{Host: "127.0.0.1", Port: port}}})
		done <- err
	}()
	dial := func() net.Conn {
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err == nil {
				_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
				return conn
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	}
	ask := func(conn net.Conn, word string) {
		t.Helper()
		if _, err := io.WriteString(conn, word); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(conn) // until the guest closes it
		if want := "hello from wasm: " + word; err != nil || string(answer) != want {
			t.Errorf("the guest answered %q, %v; want %q", answer, err, want)
		}
		conn.Close()
	}
	idle := dial()
	for i := range 20 {
		ask(dial(), fmt.Sprint("number ", i))
	}
	before := cpu(t)
	time.Sleep(time.Second)
	if used := cpu(t) - before; used > 300*time.Millisecond {
		t.Errorf("a guest that waits has computed for %v in a second", used)
	}
	ask(idle, "at last")
	stop()
	if err := <-done; err == nil {
		t.Error("the guest has ended by itself")
	}
}

// cpu is the time that this process has computed.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
