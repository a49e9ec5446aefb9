package client

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// TestWaitReady: it asks a hundred times a second at most, notices a VM that is ready within a
// hundredth, and ends with its context.
func TestWaitReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin, attempts := time.Now(), 0
		ready := begin.Add(1234 * time.Millisecond)
		c := New(func(context.Context) (net.Conn, error) {
			attempts++
			if time.Now().Before(ready) {
				return nil, errors.New("it boots")
			}
			here, there := net.Pipe()
			go func() {
				defer there.Close()
				w := wire.NewConn(there)
				if _, err := w.ReadRequest(); err == nil {
					_ = w.WriteReply(wire.Pong{Type: "pong", Version: "7"})
				}
			}()
			return here, nil
		})
		pong, err := c.WaitReady(t.Context())
		if err != nil || pong.Version != "7" || time.Since(ready) > pause || attempts > int(ready.Sub(begin)/pause)+2 {
			t.Errorf("%+v, %v, %s late, %d attempts", pong, err, time.Since(ready), attempts)
		}
		ready = time.Now().Add(time.Hour)
		because := errors.New("the VM has ended")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, because)
		defer cancel()
		if _, err := c.WaitReady(ctx); !errors.Is(err, because) || !errors.Is(err, ErrGone) || time.Now().After(ready) {
			t.Errorf("the wait returned %v, want at once that the VM has ended", err)
		}
	})
}

// BenchmarkAttempt is what one attempt of WaitReady costs while the VM boots.
func BenchmarkAttempt(b *testing.B) {
	dir, err := os.MkdirTemp("", "client")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	listener, err := net.Listen("unix", filepath.Join(dir, "refuses"))
	if err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Close() // as a VMM does when nobody listens in the guest
		}
	}()
	for name, address := range map[string]Address{
		"no-socket": {Path: filepath.Join(dir, "none")}, "refused": {Path: filepath.Join(dir, "refuses")},
	} {
		b.Run(name, func(b *testing.B) {
			c := New(address.Dialer())
			for b.Loop() {
				if _, err := c.Ping(b.Context()); !errors.Is(err, ErrGone) {
					b.Fatal(err)
				}
			}
		})
	}
}
