package daemon

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/magikrun/magikpod/pod"
)

// controlServer serves handler on a unix socket; get asks it, end ends it.
func controlServer(t *testing.T, handler http.Handler) (path string, end func() error) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "control")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- ServeControl(ctx, l, handler) }()
	end = sync.OnceValue(func() error { cancel(); return <-result })
	t.Cleanup(func() { _ = end() })
	return path, end
}

func controlClient(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
}

func TestControl(t *testing.T) {
	var sick error
	var mu sync.Mutex
	healthy := func() error { mu.Lock(); defer mu.Unlock(); return sick }
	m := newMetrics(func() []pod.Summary { return nil })
	path, end := controlServer(t, newControlHandler(healthy, m.WritePrometheus, func() pod.HostInfo {
		return pod.HostInfo{Version: "1.2.3", GoVersion: "go1.26", OCIRuntime: "crun 1.21"}
	}))
	client := controlClient(path)
	check := func(method, url string, status int, contentType, body string) {
		t.Helper()
		request, err := http.NewRequest(method, "http://magikpod"+url, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		b, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != status || response.Header.Get("Content-Type") != contentType || !strings.Contains(string(b), body) {
			t.Errorf("%s %s: %d %q, %v, body %.300q", method, url, response.StatusCode, response.Header.Get("Content-Type"), err, b)
		}
	}
	const text = "text/plain; charset=utf-8"
	check("GET", "/healthz", 200, text, "ok\n")
	check("HEAD", "/healthz", 200, text, "")
	check("GET", "/metrics", 200, "text/plain; version=0.0.4; charset=utf-8", `magikpod_pods{phase="Running"} 0`)
	check("GET", "/version", 200, "application/json", `{"version":"1.2.3","goVersion":"go1.26","os":"","kernel":"","arch":"","systemd":"","ociRuntime":"crun 1.21"}`)
	check("POST", "/healthz", 405, text, "")
	check("GET", "/", 404, text, "")
	mu.Lock()
	sick = errors.New("the bus is away")
	mu.Unlock()
	check("GET", "/healthz", 503, text, "the bus is away\n")
	if err := end(); err != nil {
		t.Errorf("the end: %v", err)
	}
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("the socket still answers")
	}
}

// A client that sends endless headers is cut off, and many idle ones do not lock others out for ever.
func TestControlAbuse(t *testing.T) {
	path, _ := controlServer(t, newControlHandler(func() error { return nil }, func(io.Writer) {}, func() pod.HostInfo { return pod.HostInfo{} }))
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\n")
	for range 64 {
		if _, err := io.WriteString(conn, "X-Big: "+strings.Repeat("x", 1000)+"\r\n"); err != nil {
			break
		}
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if !strings.Contains(line, "431") && err == nil {
		t.Errorf("the answer to endless headers is %q", line)
	}
	var idle []net.Conn
	for range maxControlConns {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	time.AfterFunc(200*time.Millisecond, func() {
		for _, c := range idle {
			c.Close()
		}
	})
	response, err := controlClient(path).Get("http://magikpod/healthz")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != 200 {
		t.Errorf("status %d", response.StatusCode)
	}
}

// The end waits for an answer that is being written, but not for ever for a client that takes its time.
func TestControlEnd(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	path, end := controlServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-release
		_, _ = io.WriteString(w, "done")
	}))
	got := make(chan string, 1)
	go func() {
		response, err := controlClient(path).Get("http://magikpod/")
		if err != nil {
			got <- err.Error()
			return
		}
		defer response.Body.Close()
		b, _ := io.ReadAll(response.Body)
		got <- string(b)
	}()
	<-entered
	time.AfterFunc(100*time.Millisecond, func() { close(release) })
	if err := end(); err != nil {
		t.Error(err)
	}
	if b := <-got; b != "done" {
		t.Errorf("the answer that was being written: %q", b)
	}

	path, end = controlServer(t, http.NotFoundHandler())
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.1\r\n")
	begin := time.Now()
	if err := end(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > controlStopTime+20*time.Second {
		t.Errorf("the end took %v", took)
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "broken"))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := ServeControl(t.Context(), l, http.NotFoundHandler()); pod.KindOf(err) != pod.Internal {
		t.Errorf("a closed listener: %v", err)
	}
}
