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

// TestHybridGivenUp: a connection that nobody waits for any more stays until it was answered. Closing it earlier ends vhost-device-vsock's work for good.
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
		t.Fatalf("%q, %v", line, err)
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

// TestHybridDeaf: who never answers does not get ever more connections, and is asked again when it has answered.
func TestHybridDeaf(t *testing.T) {
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
				close(conns)
				return
			}
			conns <- conn
		}
	}()
	for n := range maxAbandoned + 5 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		_, err := Hybrid(path, 1024)(ctx)
		cancel()
		if deaf := err != nil && !errors.Is(err, context.DeadlineExceeded); deaf != (n >= maxAbandoned) {
			t.Fatalf("dial %d: %v", n, err)
		}
	}
	for range maxAbandoned {
		(<-conns).Close()
	}
	for end := time.Now().Add(10 * time.Second); deaf(path); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it stays deaf")
		}
	}
	go func() { _, _ = io.WriteString(<-conns, "OK 1\n") }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := Hybrid(path, 1024)(ctx)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}
