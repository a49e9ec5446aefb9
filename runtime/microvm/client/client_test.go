package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/magikrun/magikpod/runtime/microvm/wire"
	"github.com/magikrun/magikpod/tests/host"
)

// guest is a unix socket with an agent that does what the test says.
func guest(t *testing.T, serve func(conn net.Conn)) *Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "client")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", dir+"/agent")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		serving.Wait()
		os.RemoveAll(dir)
	})
	return New(Unix(dir + "/agent"))
}

// request reads the line that the host sends.
func request(conn net.Conn) {
	one := make([]byte, 1)
	for one[0] != '\n' {
		if _, err := conn.Read(one); err != nil {
			return
		}
	}
}

// flood writes the same until the other side closes.
func flood(conn net.Conn, data []byte) {
	for {
		if _, err := conn.Write(data); err != nil {
			return
		}
	}
}

// within fails when a call takes longer than a hostile guest may make it.
func within(t *testing.T, limit time.Duration, call func(ctx context.Context) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), limit, errTime)
	defer cancel()
	begin := time.Now()
	err := call(ctx)
	if took := time.Since(begin); took > limit+host.Patience(5*time.Second) {
		t.Errorf("it took %s", took)
	}
	return err
}

var errTime = errors.New("time is over")

// TestHostileReplies: a guest that does not answer as it should is an error, soon and without memory.
func TestHostileReplies(t *testing.T) {
	for _, tc := range []struct {
		name  string
		serve func(conn net.Conn)
		check func(err error) bool
	}{
		{"silence", func(conn net.Conn) { io.Copy(io.Discard, conn) }, func(err error) bool { return errors.Is(err, errTime) }},
		{"hangs up", func(conn net.Conn) {}, func(err error) bool { return errors.Is(err, ErrGone) }},
		{"hangs up later", func(conn net.Conn) { request(conn); conn.Write([]byte(`{"status":`)) }, func(err error) bool { return errors.Is(err, ErrGone) }},
		{"garbage", func(conn net.Conn) { request(conn); conn.Write([]byte("\x00\xff{}\n")) }, func(err error) bool { return strings.Contains(err.Error(), "cannot read a reply") }},
		{"an endless line", func(conn net.Conn) { flood(conn, bytes.Repeat([]byte("x"), 1<<16)) }, func(err error) bool { return errors.Is(err, wire.ErrTooLong) }},
		{"another type", func(conn net.Conn) { request(conn); conn.Write([]byte(`{"status":"ok","data":[1,2]}` + "\n")) }, func(err error) bool { return strings.Contains(err.Error(), "cannot read a reply") }},
		{"an error with colours", func(conn net.Conn) {
			request(conn)
			conn.Write([]byte(`{"status":"error","code":"internal","message":"\u001b[31mred\nline"}` + "\n"))
		}, func(err error) bool {
			return wire.CodeOf(err) == wire.CodeInternal && !strings.ContainsAny(err.Error(), "\x1b\n")
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := guest(t, tc.serve)
			err := within(t, time.Second, func(ctx context.Context) error { _, err := c.Ping(ctx); return err })
			if err == nil || !tc.check(err) {
				t.Errorf("the ping returned %v, want another error", err)
			}
		})
	}
}

// TestHostileProbe: the words of a probe go to terminals and logs, and are harmless there.
func TestHostileProbe(t *testing.T) {
	c := guest(t, func(conn net.Conn) {
		request(conn)
		conn.Write([]byte(`{"status":"ok","data":{"type":"probe","message":"\u001b[31mred\nline ` + strings.Repeat("é", wire.MaxMessage) + `"}}` + "\n"))
	})
	reply, err := c.Probe(t.Context(), wire.Probe{Container: "a", Exec: []string{"x"}})
	if err != nil || !strings.HasPrefix(reply.Message, `\x1b[31mred line é`) || len(reply.Message) > wire.MaxMessage || !utf8.ValidString(reply.Message) {
		t.Errorf("%v %q", err, reply.Message)
	}
}

// frameOf is a frame as bytes.
func frameOf(t *testing.T, kind wire.FrameType, data string) []byte {
	t.Helper()
	frame, err := wire.AppendFrame(nil, kind, []byte(data))
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

// TestHostileSessions: garbage, frames without end, output without end.
func TestHostileSessions(t *testing.T) {
	ok := []byte(`{"status":"ok"}` + "\n")
	for _, tc := range []struct {
		name  string
		serve func(conn net.Conn)
		check func(exit wire.Exit, err error) bool
	}{
		{"silence", func(conn net.Conn) { io.Copy(io.Discard, conn) }, func(_ wire.Exit, err error) bool { return errors.Is(err, errTime) }},
		{"hangs up", func(conn net.Conn) {}, func(_ wire.Exit, err error) bool { return errors.Is(err, ErrGone) }},
		{"garbage", func(conn net.Conn) { conn.Write([]byte("garbage")) }, func(_ wire.Exit, err error) bool { return err != nil && !errors.Is(err, errTime) }},
		{"a frame of 4 GiB", func(conn net.Conn) { conn.Write([]byte("o\xff\xff\xff\xff")) }, func(_ wire.Exit, err error) bool { return errors.Is(err, wire.ErrTooLong) }},
		{"an endless output", func(conn net.Conn) { flood(conn, frameOf(t, wire.FrameStdout, strings.Repeat("x", wire.MaxFrame))) },
			func(_ wire.Exit, err error) bool { return errors.Is(err, errTime) }},
		{"the host's own frames", func(conn net.Conn) { conn.Write(frameOf(t, wire.FrameStdin, "x")) }, func(_ wire.Exit, err error) bool { return err != nil && !errors.Is(err, errTime) }},
		{"an exit that cannot be", func(conn net.Conn) { conn.Write(frameOf(t, wire.FrameExit, `{"code":-7,"signal":4000}`)) },
			func(exit wire.Exit, err error) bool { return err == nil && exit.Code == 255 && exit.Signal == 0 }},
		{"an exit that is none", func(conn net.Conn) { conn.Write(frameOf(t, wire.FrameExit, `[`)) }, func(_ wire.Exit, err error) bool { return err != nil }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := guest(t, func(conn net.Conn) {
				request(conn)
				conn.Write(ok)
				tc.serve(conn)
			})
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			count := &counter{}
			var exit wire.Exit
			err := within(t, time.Second, func(ctx context.Context) error {
				session, err := c.Exec(ctx, wire.Exec{Container: "a", Args: []string{"x"}})
				if err != nil {
					return err
				}
				exit, err = session.Run(ctx, IO{Stdout: count})
				return err
			})
			runtime.ReadMemStats(&after)
			if !tc.check(exit, err) {
				t.Errorf("%+v %v", exit, err)
			}
			if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
				t.Errorf("%d bytes of memory for %d bytes of output", grown, count.n)
			}
			if tc.name == "an endless output" {
				t.Logf("%d MB in a second", count.n>>20)
			}
		})
	}
}

// counter counts what is written.
type counter struct{ n int64 }

func (c *counter) Write(data []byte) (int, error) {
	c.n += int64(len(data))
	return len(data), nil
}

// TestTenGigabytes: so much output takes time and no memory. It is written by a guest that is as
// quick as it can be.
func TestTenGigabytes(t *testing.T) {
	total := int64(10 << 30)
	if raceDetector {
		total = 256 << 20
	}
	chunk := bytes.Repeat(frameOf(t, wire.FrameStdout, strings.Repeat("x", wire.MaxFrame)), 16)
	c := guest(t, func(conn net.Conn) {
		request(conn)
		conn.Write([]byte(`{"status":"ok"}` + "\n"))
		for range total / wire.MaxFrame / 16 {
			if _, err := conn.Write(chunk); err != nil {
				return
			}
		}
		conn.Write(frameOf(t, wire.FrameExit, `{"code":3}`))
	})
	session, err := c.Exec(t.Context(), wire.Exec{Container: "a", Args: []string{"x"}})
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	count := &counter{}
	exit, err := session.Run(t.Context(), IO{Stdout: count})
	runtime.ReadMemStats(&after)
	if err != nil || exit.Code != 3 || count.n != total || after.Sys-before.Sys > 32<<20 {
		t.Errorf("%+v %v, %d bytes, %d bytes more from the kernel", exit, err, count.n, after.Sys-before.Sys)
	}
}

// TestStuckFiles: output that nobody reads, and input that nobody gives, end with the context.
func TestStuckFiles(t *testing.T) {
	c := guest(t, func(conn net.Conn) {
		request(conn)
		conn.Write([]byte(`{"status":"ok"}` + "\n"))
		flood(conn, frameOf(t, wire.FrameStdout, strings.Repeat("x", 1000)))
	})
	in, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{in, inW, out, outW} {
		defer f.Close()
	}
	err = within(t, 300*time.Millisecond, func(ctx context.Context) error {
		session, err := c.Exec(ctx, wire.Exec{Container: "a", Args: []string{"x"}, Stdin: true})
		if err != nil {
			return err
		}
		_, err = session.Run(ctx, IO{Stdin: in, Stdout: outW, Resize: make(chan wire.Size)})
		return err
	})
	if !errors.Is(err, errTime) {
		t.Errorf("the command returned %v, want the end of its time", err)
	}
}

// TestHybrid: the handshake of VMMs, whose bytes and the agent's are not mixed up.
func TestHybrid(t *testing.T) {
	answers := map[string]string{"good": "OK 1073741824\n", "no": "NO\n", "endless": strings.Repeat("x", 100), "hangs up": ""}
	dir := t.TempDir() + strings.Repeat("/long", 30) // longer than an address of a unix socket
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for name, answer := range answers {
		listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), filepath.Base(name)), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		asked := make(chan string, 1)
		go func() {
			conn, err := listener.Accept()
			if err != nil {
				asked <- err.Error()
				return
			}
			defer conn.Close()
			line := make([]byte, 13)
			_, _ = io.ReadFull(conn, line)
			asked <- string(line)
			conn.Write([]byte(answer + `{"status":"ok","data":{"type":"pong","version":"7"}}` + "\n"))
			request(conn)
		}()
		pong, err := New(Address{Path: filepath.Join(dir, name)}.Dialer()).Ping(t.Context())
		if got := <-asked; got != "CONNECT 1024\n" {
			t.Errorf("%s: asked %q", name, got)
		}
		if (err == nil) != (name == "good") || err == nil && pong.Version != "7" || err != nil && !errors.Is(err, ErrGone) {
			t.Errorf("%s: %+v %v", name, pong, err)
		}
		listener.Close()
	}
	// A VMM that never answers costs the time that there is.
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/never", d.Fd()), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := within(t, 300*time.Millisecond, func(ctx context.Context) error {
		_, err := New(Hybrid(filepath.Join(dir, "never"), 1024)).Ping(ctx)
		return err
	}); !errors.Is(err, errTime) {
		t.Errorf("a guest that never comes: %v, want the end of the time", err)
	}
}

// TestCopyRefuses: what cannot be copied is an error, of this side or of the agent.
func TestCopyRefuses(t *testing.T) {
	c := guest(t, func(conn net.Conn) {
		request(conn)
		conn.Write([]byte(`{"status":"ok"}` + "\n"))
		io.Copy(io.Discard, conn)
	})
	dir := t.TempDir()
	listener, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := c.Copy(t.Context(), "v", dir); err == nil || !strings.Contains(err.Error(), "neither a directory nor a regular file") {
		t.Errorf("a socket: %v", err)
	}
	if err := c.Copy(t.Context(), "v", dir+"/none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
	big := t.TempDir()
	if err := os.WriteFile(big+"/big", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big+"/big", wire.MaxCopy+1); err != nil {
		t.Fatal(err)
	}
	if err := c.Copy(t.Context(), "v", big); err == nil || !strings.Contains(err.Error(), "bytes") {
		t.Errorf("too much: %v", err)
	}
}
