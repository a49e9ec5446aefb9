package supervise

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// TestPingClock: a guest that answers with a wrong time gets the right one, and no other guest is.
func TestPingClock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vsock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	lines, answers := make(chan string, 4), make(chan string, 4)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			reader := bufio.NewReader(conn)
			if line, err := reader.ReadString('\n'); line != "CONNECT 1024\n" {
				t.Errorf("%q, %v", line, err)
			}
			fmt.Fprint(conn, "OK 1\n")
			line, _ := reader.ReadString('\n')
			lines <- strings.TrimSpace(line)
			fmt.Fprint(conn, <-answers)
			conn.Close()
		}
	}()
	s := &supervisor{config: &Config{VM: vmm.Config{Vsock: vmm.Vsock{Kind: vmm.VsockHybrid, Path: path}}}}
	pong := func(off time.Duration) string {
		return `{"status":"ok","data":{"type":"pong","time":"` + time.Now().Add(off).Format(time.RFC3339Nano) + "\"}}\n"
	}
	for name, tc := range map[string]struct {
		answer string
		set    bool
	}{
		"right": {pong(0), false}, "behind": {pong(-time.Hour), true}, "ahead": {pong(time.Hour), true}, "another program": {"no\n", false}, "nothing": {"", false},
		"an older agent": {`{"status":"ok","data":{"type":"pong"}}` + "\n", false},
	} {
		answers <- tc.answer
		if tc.set {
			answers <- pong(0)
		}
		if err := s.ping(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if line := <-lines; line != `{"action":"ping"}` {
			t.Errorf("%s: %s", name, line)
		}
		if (len(lines) == 1) != tc.set {
			t.Fatalf("%s: %d more requests", name, len(lines))
		}
		if tc.set {
			line := <-lines
			var request struct{ Time time.Time }
			if err := json.Unmarshal([]byte(line), &request); err != nil || time.Since(request.Time).Abs() > time.Minute {
				t.Errorf("%s: %s: %v", name, line, err)
			}
		}
	}
}
