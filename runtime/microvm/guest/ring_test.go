package guest_test

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/magikrun/magikpod/internal/guesttest"
	"github.com/magikrun/magikpod/runtime/microvm/client"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
	"github.com/magikrun/magikpod/tests/host"
)

// TestSlowFollower: who reads a log too slowly is told how much is missing, to the byte, and stops nobody.
func TestSlowFollower(t *testing.T) {
	m := guesttest.Start(t)
	request := guesttest.Container(t, "a", nil, "/bin/sh", "-c", "read x; exec seq 300000")
	request.Stdin = true
	session := m.Run(t, request)
	follower := openLog(t, m, &wire.Logs{Container: "a", Follow: true})

	var all, missing bytes.Buffer
	exit, err := session.Run(t.Context(), client.IO{Stdin: fileOf(t, "go\n"), Stdout: &all, Stderr: &missing})
	if err != nil || exit.Code != 0 || missing.Len() > 0 || !strings.HasSuffix(all.String(), "\n300000\n") {
		t.Fatalf("%+v, %v, %d bytes, %q", exit, err, all.Len(), missing.String())
	}
	got, gaps := 0, 0
	var last string
	for {
		frame, err := follower.ReadFrame(nil)
		if err != nil {
			t.Fatal(err)
		}
		if frame.Type == wire.FrameExit {
			break
		}
		if frame.Type == wire.FrameStderr {
			n := 0
			if _, err := fmt.Sscanf(string(frame.Data), "[magikagent: %d bytes of output are missing here", &n); err != nil || n <= 0 {
				t.Fatalf("%q: %v", frame.Data, err)
			}
			if !bytes.HasPrefix(all.Bytes()[got+n-1:], []byte("\n")) {
				t.Errorf("%d bytes are missing after %d: a line is cut", n, got)
			}
			got, gaps = got+n, gaps+1
			continue
		}
		if last = string(frame.Data); !bytes.HasPrefix(all.Bytes()[got:], frame.Data) {
			t.Fatalf("after %d bytes comes %q", got, frame.Data)
		}
		got += len(frame.Data)
	}
	if got != all.Len() || gaps == 0 || last != "300000\n" {
		t.Errorf("%d of %d bytes are known of, with %d gaps; the last line is %q", got, all.Len(), gaps, last)
	}
	t.Logf("%d gaps", gaps)
}

// openLog asks for a log and reads no more than the answer.
func openLog(t *testing.T, m *guesttest.Machine, request *wire.Logs) *wire.Conn {
	t.Helper()
	conn, err := net.Dial("unix", m.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(host.Patience(30 * time.Second))); err != nil {
		t.Fatal(err)
	}
	c := wire.NewConn(conn)
	if err := c.WriteRequest(request); err != nil {
		t.Fatal(err)
	}
	if err := c.ReadReply(nil); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestShortLines: lines take memory beside what they say, and a flood of empty ones is not kept without bound; nor does a log that is not followed go on for ever.
func TestShortLines(t *testing.T) {
	m := guesttest.Start(t)
	session := m.Run(t, guesttest.Container(t, "a", nil, "/bin/sh", "-c", "yes '' | head -c 3000000; echo end; exec yes ''"))
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	go func() {
		defer w.Close()
		_, _ = session.Run(t.Context(), client.IO{Stdout: w})
	}()
	for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "end"; {
	}
	go func() {
		for buffer := make([]byte, 1<<16); ; {
			if _, err := out.Read(buffer); err != nil {
				return
			}
		}
	}()
	c := openLog(t, m, &wire.Logs{Container: "a"})
	lines := 0
	for {
		frame, err := c.ReadFrame(nil)
		if err != nil {
			t.Fatal(err)
		}
		if frame.Type == wire.FrameExit {
			break
		}
		lines++
	}
	if lines == 0 || lines > 10000 {
		t.Errorf("%d lines of one byte are kept", lines)
	}
}
