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

// monitor is a local server that stands for a monitor that is not installed here. It notes the requests, and answers the way its interface's description says. It shows
// that the requests are those; not that a monitor does what they ask for.
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

// firecrackerAnswers behaves as Firecracker does: it has the drives that its configuration has, and a PATCH of one changes its file.
func firecrackerAnswers(t *testing.T, config string) func(method, path, body string) (int, string) {
	t.Helper()
	var c struct {
		Drives []map[string]any `json:"drives"`
	}
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		t.Fatal(err)
	}
	return func(method, path, body string) (int, string) {
		switch id, isDrive := strings.CutPrefix(path, "/drives/"); {
		case method == "GET" && path == "/version":
			return 200, `{"firecracker_version":"1.16.1"}`
		case method == "GET" && path == "/vm/config":
			text, err := json.Marshal(c)
			if err != nil {
				return 500, err.Error()
			}
			return 200, string(text)
		case method == "PATCH" && isDrive:
			var update struct {
				ID   string `json:"drive_id"`
				Path string `json:"path_on_host"`
			}
			if err := json.Unmarshal([]byte(body), &update); err != nil || update.ID != id || update.Path == "" {
				return 400, `{"fault_message":"no such update"}`
			}
			for _, d := range c.Drives {
				if d["drive_id"] == id {
					d["path_on_host"] = update.Path
					return 204, ""
				}
			}
			return 400, `{"fault_message":"no such drive"}`
		}
		return 404, ""
	}
}

// TestFirecrackerRequests: a machine has drives for disks from the start, which take images, also when the daemon is another one.
func TestFirecrackerRequests(t *testing.T) {
	config := full(Firecracker{})
	command, err := Firecracker{}.Command(config)
	if err != nil {
		t.Fatal(err)
	}
	if text := command.Files[emptyDrive]; len(text) != 512 {
		t.Errorf("an empty drive has %d bytes, which is not a sector", len(text))
	}
	m := &monitor{answer: firecrackerAnswers(t, command.Files[firecrackerConfig])}
	ctx := context.Background()
	config.Control = serveMonitor(t, m)
	control, err := Firecracker{}.Control(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := m.noted(), []string{"GET /version"}; !slices.Equal(got, want) {
		t.Errorf("requests %q, want %q", got, want)
	}
	file, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	serial, err := GuestSerial(config, Disk{Path: "/proc/self/exe"})
	if err != nil {
		t.Fatal(err)
	}
	const look = "GET /vm/config"
	attach := func(serials ...string) func() error {
		return func() error {
			for _, s := range serials {
				place, err := control.AttachDisk(ctx, Disk{Path: "/images/x", Serial: s, ReadOnly: true}, file)
				if err != nil || place != (Place{Disk: serial}) {
					return fmt.Errorf("%+v, %w", place, err)
				}
			}
			return nil
		}
	}
	patch := func(slot, path string) string {
		return fmt.Sprintf(`PATCH /drives/%s {"drive_id":"%s","path_on_host":"%s"}`, slot, slot, path)
	}
	for _, step := range []struct {
		name string
		do   func() error
		want []string
	}{
		{"attach", attach("img-1"), []string{look, look, patch("slot_0", "/vm/disks/img-1")}},
		{"attach again", attach("img-1"), []string{look}},
		{"attach another", attach("img-2"), []string{look, look, patch("slot_1", "/vm/disks/img-2")}},
	} {
		if err := step.do(); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		if got := m.noted(); !slices.Equal(got, step.want) {
			t.Errorf("%s: requests %q, want %q", step.name, got, step.want)
		}
	}
	// As many as are promised: two are there from the start, two are attached.
	for i := range (Firecracker{}).Can(config).MaxDisks - 4 {
		if err := attach(fmt.Sprintf("more-%d", i))(); err != nil {
			t.Fatalf("disk %d: %v", i, err)
		}
	}
	if err := attach("too-many")(); err == nil || !strings.Contains(err.Error(), "all of the machine's drives are taken") {
		t.Errorf("one more: %v", err)
	}
	if _, err := control.AttachDisk(ctx, Disk{Serial: "writable"}, file); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("a disk to write to: %v", err)
	}
	m.answer = func(string, string, string) (int, string) { return 400, "busy" }
	if err := attach("x")(); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Errorf("a refusal: %v", err)
	}
}

// TestLibkrunDisks: a disk is a file in the share that the machine has from the start.
func TestLibkrunDisks(t *testing.T) {
	config := full(Libkrun{})
	command, err := Libkrun{}.Command(config)
	if err != nil {
		t.Fatal(err)
	}
	var c KrunConfig
	if err := json.Unmarshal([]byte(command.Files[krunConfig]), &c); err != nil {
		t.Fatal(err)
	}
	dir := (Libkrun{}).Can(config).PlugDir
	if c.ShareDir != dir || !slices.Contains(command.Dirs, dir) || !slices.Equal(ShareTags(config), []string{c.ShareTag}) {
		t.Errorf("the share %q of %q is not what disks are put into: %q, %q, %q", c.ShareTag, c.ShareDir, dir, command.Dirs, ShareTags(config))
	}
	for _, d := range c.Disks {
		if strings.HasPrefix(d.Path, dir+"/") {
			t.Errorf("the share shows %s, which is no image", d.Path)
		}
	}
	control := libkrunControl{}
	if place, err := control.AttachDisk(context.Background(), Disk{Serial: "img-1", ReadOnly: true}, nil); err != nil || place != (Place{Share: c.ShareTag, File: "img-1"}) {
		t.Errorf("%+v, %v", place, err)
	}
	for _, bad := range []Disk{{Serial: "../x", ReadOnly: true}, {Serial: "writable"}} {
		if _, err := control.AttachDisk(context.Background(), bad, nil); err == nil {
			t.Errorf("%+v was attached", bad)
		}
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

// TestQEMULeftovers: what an attach that was cut short has left in QEMU, a node and its descriptor, goes before the disk is attached anew.
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
