package client

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestHybridGivenUp: a connection that nobody waits for any more stays until it was answered.
// Closing it earlier ends vhost-device-vsock's work for good.
func TestHybridGivenUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vsock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	given := errors.New("given up")
	ctx, cancel := context.WithCancelCause(t.Context())
	dialed := make(chan error, 1)
	go func() {
		_, err := Hybrid(path, 1024)(ctx)
		dialed <- err
	}()
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	reader := bufio.NewReader(conn)
	if line, err := reader.ReadString('\n'); line != "CONNECT 1024\n" {
		t.Fatalf("the first line is %q, %v, want CONNECT 1024", line, err)
	}
	cancel(given)
	if err := <-dialed; !errors.Is(err, given) {
		t.Errorf("%v, want %v", err, given)
	}
	if err := conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := reader.ReadByte(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("before the answer: %v, want a connection that is open", err)
	}
	if _, err := io.WriteString(conn, "OK 1\n"); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := reader.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("after the answer: %v, want the end of the connection", err)
	}
}

// TestHybridSilent: a VM that never answers costs a bounded number of connections, and can be
// dialed again when it has answered.
func TestHybridSilent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vsock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conns := make(chan net.Conn, 2*maxAbandoned)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conns <- conn
		}
	}()
	c := New(Hybrid(path, 1024))
	for range 2 * maxAbandoned {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		_, err := c.Ping(ctx)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrGone) {
			t.Fatal(err)
		}
	}
	if _, err := New(Hybrid(path, 1024)).Ping(t.Context()); !errors.Is(err, ErrGone) {
		t.Errorf("%v, want %v", err, ErrGone)
	}
	live := 0
	for range len(conns) {
		conn := <-conns
		defer conn.Close()
		if _, err := io.WriteString(conn, "OK 1\n"); err == nil { // else it was given up before it was one
			live++
		}
	}
	if live > maxAbandoned {
		t.Errorf("%d connections, want %d at most", live, maxAbandoned)
	}
	for deadline := time.Now().Add(10 * time.Second); abandoned.count(path, 0) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections are still counted", abandoned.count(path, 0))
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want another connection", err)
	}
}
