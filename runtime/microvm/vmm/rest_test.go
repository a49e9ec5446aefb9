package vmm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// monitor is a local server that stands for a monitor that is not installed here. It notes the
// requests, and answers the way its interface's description says. It shows that the requests are
// those; not that a monitor does what they ask for.
type monitor struct {
	mu       sync.Mutex
	requests []string
	answer   func(method, path, body string) (int, string)
}

func (m *monitor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var compact bytes.Buffer
	if len(body) > 0 {
		if err := json.Compact(&compact, body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.requests = append(m.requests, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+compact.String()))
	status, text := m.answer(r.Method, r.URL.Path, compact.String())
	w.WriteHeader(status)
	fmt.Fprint(w, text)
}

func (m *monitor) noted() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	noted := m.requests
	m.requests = nil
	return noted
}

func serveMonitor(t *testing.T, m *monitor) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "api")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: m}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return path
}

func TestCloudHypervisorRequests(t *testing.T) {
	disks := `{"config":{"disks":[]}}`
	m := &monitor{answer: func(method, path, _ string) (int, string) {
		switch method + " " + path {
		case "GET /api/v1/vmm.ping":
			return 200, `{"version":"v48.0"}`
		case "GET /api/v1/vm.info":
			return 200, disks
		case "PUT /api/v1/vm.add-disk":
			return 200, `{"id":"disk-img-1","bdf":"0000:00:05.0"}`
		}
		return 404, "no such thing"
	}}
	c := &Config{Control: serveMonitor(t, m)}
	ctx := context.Background()
	control, err := CloudHypervisor{}.Control(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	m.noted()
	disk := Disk{Path: "/images/1", Serial: "img-1", ReadOnly: true}
	for _, step := range []struct {
		name string
		do   func() error
		want []string
	}{
		{"attach", func() error { _, err := control.AttachDisk(ctx, disk, nil); return err }, []string{
			"GET /api/v1/vm.info", `PUT /api/v1/vm.add-disk {"id":"disk-img-1","path":"/vm/disks/img-1","readonly":true,"serial":"img-1"}`,
		}},
		{"it is there", func() error { disks = `{"config":{"disks":[{"id":"disk-img-1"}]}}`; return nil }, nil},
		{"attach again", func() error { _, err := control.AttachDisk(ctx, disk, nil); return err }, []string{"GET /api/v1/vm.info"}},
	} {
		if err := step.do(); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		if got := m.noted(); !slices.Equal(got, step.want) {
			t.Errorf("%s: requests %q, want %q", step.name, got, step.want)
		}
	}
	m.answer = func(string, string, string) (int, string) { return 500, "out of slots" }
	if _, err := control.AttachDisk(ctx, disk, nil); err == nil || !strings.Contains(err.Error(), "out of slots") {
		t.Errorf("a refusal: %v", err)
	}
}

// TestHostileMonitor: a monitor that a guest has taken over answers as it likes.
func TestHostileMonitor(t *testing.T) {
	for name, answer := range map[string]string{
		"nothing": "", "no HTTP": "hello\r\n\r\n", "negative": "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "huge": "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
		"short": "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "endless": "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 2000),
	} {
		path := filepath.Join(t.TempDir(), "api")
		talk(t, path, func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 4096))
			_, _ = io.WriteString(conn, answer)
		})
		if got, err := (rest{path}).do(context.Background(), "GET", "/", nil); err == nil {
			t.Errorf("%s: %q counts as an answer", name, got)
		}
	}
}

// TestHostileQMP: the same for QEMU.
func TestHostileQMP(t *testing.T) {
	greeting := `{"QMP": {"version": {}, "capabilities": []}}` + "\n"
	for name, c := range map[string]struct{ say, want string }{
		"nothing":        {"", "closed the connection"},
		"no greeting":    {`{"return": {}}` + "\n", "does not greet"},
		"garbage":        {"garbage\n", "cannot be understood"},
		"endless line":   {strings.Repeat("x", 2<<20), "too long"},
		"unasked":        {greeting + strings.Repeat(`{"return": {}}`+"\n", 5), "nobody has asked"},
		"ends half way":  {greeting, "closed the connection"},
		"endless events": {greeting + strings.Repeat(`{"event": "X", "data": {}}`+"\n", 1000), "closed the connection"},
	} {
		path := filepath.Join(t.TempDir(), "qmp")
		talk(t, path, func(conn net.Conn) {
			_, _ = io.WriteString(conn, c.say)
			_ = conn.(*net.UnixConn).CloseWrite()
			_, _ = io.Copy(io.Discard, conn)
		})
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		m, err := dialQMP(ctx, path)
		if err == nil {
			// What was too much comes after the negotiation.
			_, err = m.execute(ctx, "query-status", nil, nil)
			if err == nil {
				_, err = m.execute(ctx, "query-status", nil, nil)
			}
			_ = m.close()
		}
		cancel()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, c.want)
		}
	}
}

// TestQEMULeftovers: what an attach that was cut short has left in QEMU, a node and its descriptor,
// goes before the disk is attached anew.
func TestQEMULeftovers(t *testing.T) {
	answers := map[string]string{
		"qmp_capabilities": `{}`, "qom-list": `[{"name": "disk-other"}]`, "query-fdsets": `[{"fdset-id": 2, "fds": [{"opaque": "other"}]}, {"fdset-id": 3, "fds": [{"opaque": "img-1"}]}]`,
		"blockdev-del": `{}`, "remove-fd": `{}`, "add-fd": `{"fdset-id": 4, "fd": 20}`, "blockdev-add": `{}`, "device_add": `{}`,
	}
	path, done := filepath.Join(t.TempDir(), "qmp"), make(chan []string, 1)
	talk(t, path, func(conn net.Conn) {
		_, _ = io.WriteString(conn, `{"QMP": {"version": {}, "capabilities": []}}`+"\n")
		var asked []string
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			var command struct {
				Execute   string
				Arguments json.RawMessage
			}
			if err := json.Unmarshal(lines.Bytes(), &command); err != nil {
				t.Error(err)
			}
			asked = append(asked, strings.TrimSpace(command.Execute+" "+string(command.Arguments)))
			_, _ = fmt.Fprintf(conn, `{"event": "X", "data": {}}`+"\n"+`{"return": %s}`+"\n", answers[command.Execute])
		}
		done <- asked
	})
	control, err := QEMU{}.Control(t.Context(), &Config{Control: path})
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if place, err := control.AttachDisk(t.Context(), Disk{Path: "/images/1", Serial: "img-1", ReadOnly: true}, file); err != nil || place != (Place{Disk: "img-1"}) {
		t.Errorf("attached as %+v, %v", place, err)
	}
	if err := control.Close(); err != nil {
		t.Error(err)
	}
	want := []string{
		"qmp_capabilities", `qom-list {"path":"/machine/peripheral"}`, `blockdev-del {"node-name":"node-img-1"}`, "query-fdsets", `remove-fd {"fdset-id":3}`, `add-fd {"opaque":"img-1"}`,
		`blockdev-add {"driver":"raw","file":{"driver":"file","filename":"/dev/fdset/4","locking":"off"},"node-name":"node-img-1","read-only":true}`,
		`device_add {"drive":"node-img-1","driver":"virtio-blk-pci","id":"disk-img-1","serial":"img-1"}`,
	}
	if got := <-done; !slices.Equal(got, want) {
		t.Errorf("QEMU was asked %q, want %q", got, want)
	}
}

// talk serves one connection.
func talk(t *testing.T, path string, serve func(net.Conn)) {
	t.Helper()
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if conn, err := listener.Accept(); err == nil {
			serve(conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() { listener.Close(); <-done })
}
