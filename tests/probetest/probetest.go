// Package probetest has one table of probes for all who make some, and the servers that they ask.
//
// Layer: none. Tests only.
package probetest

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/magikrun/magikpod/probe"
	"github.com/magikrun/magikpod/tests/host"
)

// server answers what the table asks for. What hangs does so until release is closed.
func server(release <-chan struct{}) http.Handler {
	mux := http.NewServeMux()
	for path, code := range map[string]int{"/ok": 200, "/created": 201, "/last": 399, "/bad": 400, "/down": 503} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) })
	}
	mux.Handle("/redirect", http.RedirectHandler("/down", http.StatusFound))
	mux.Handle("/redirect-ok", http.RedirectHandler("/ok", http.StatusFound))
	mux.Handle("/elsewhere", http.RedirectHandler("http://192.0.2.1/x", http.StatusFound))
	mux.Handle("/loop", http.RedirectHandler("/loop", http.StatusFound))
	expect := func(path string, ok func(r *http.Request) bool) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if !ok(r) {
				w.WriteHeader(500)
			}
		})
	}
	expect("/query", func(r *http.Request) bool { return r.URL.RawQuery == "a=1&b=%20" })
	expect("/headers", func(r *http.Request) bool {
		return r.Host == "web.example" && r.Header.Get("X-Own") == "1" && strings.HasPrefix(r.UserAgent(), "kube-probe/1.") && r.Header.Get("Accept") == "*/*" &&
			r.Close && len(r.Header["Accept-Encoding"]) == 0
	})
	expect("/repeated", func(r *http.Request) bool { return slices.Equal(r.Header["X-Own"], []string{"1", "2"}) })
	expect("/ownheaders", func(r *http.Request) bool { return r.UserAgent() == "mine" && len(r.Header["Accept"]) == 0 })
	expect("/http2", func(r *http.Request) bool { return r.ProtoMajor == 2 })
	mux.HandleFunc("/hang", func(_ http.ResponseWriter, _ *http.Request) { <-release })
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/bodyhang", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		<-release
	})
	return mux
}

// Run has ask make every probe of the table, and compares the verdicts. listen listens on a port of
// 127.0.0.1, as the probes see it.
func Run(t *testing.T, listen func(t *testing.T) net.Listener, ask func(t *testing.T, p probe.Probe) (ok bool, message string, err error)) {
	release := make(chan struct{})
	serve := func(start func(*httptest.Server)) int {
		s := &httptest.Server{Listener: listen(t), EnableHTTP2: true, Config: &http.Server{Handler: server(release), ErrorLog: log.New(io.Discard, "", 0)}}
		start(s)
		t.Cleanup(s.Close)
		return s.Listener.Addr().(*net.TCPAddr).Port
	}
	plain, secure := serve((*httptest.Server).Start), serve((*httptest.Server).StartTLS)
	t.Cleanup(func() { close(release) }) // before the servers are closed
	gone := listen(t)
	closed := gone.Addr().(*net.TCPAddr).Port
	gone.Close()

	get := func(path string, headers ...probe.Header) probe.Probe {
		return probe.Probe{HTTP: &probe.HTTP{Host: "127.0.0.1", Port: plain, Path: path, Headers: headers}}
	}
	tls := func(path string, port int) probe.Probe {
		return probe.Probe{HTTP: &probe.HTTP{Scheme: "https", Host: "127.0.0.1", Port: port, Path: path}}
	}
	tcp := func(port int) probe.Probe { return probe.Probe{TCP: &probe.TCP{Host: "127.0.0.1", Port: port}} }
	sh := func(script string) probe.Probe { return probe.Probe{Exec: []string{"sh", "-c", script}} }
	within := func(timeout time.Duration, p probe.Probe) probe.Probe { p.Timeout = timeout; return p }
	const (
		well    = ""              // the verdict is success
		unknown = "\x00"          // nothing is learned
		short   = 1 * time.Second // for what ends with it
	)
	for _, tt := range []struct {
		name  string
		probe probe.Probe
		want  string // a part of the message, or a constant
	}{
		{"status 200", get("/ok"), well},
		{"no slash", get("ok"), well},
		{"status 201", get("/created"), well},
		{"status 399", get("/last"), well},
		{"no path", get(""), "HTTP probe failed with statuscode: 404"},
		{"status 400", get("/bad"), "HTTP probe failed with statuscode: 400"},
		{"status 503", get("/down"), "HTTP probe failed with statuscode: 503"},
		{"redirect to failure", get("/redirect"), "HTTP probe failed with statuscode: 503"},
		{"redirect to success", get("/redirect-ok"), well},
		{"redirect to another host", get("/elsewhere"), well},
		{"redirect for ever", get("/loop"), "stopped after 10 redirects"},
		{"query", get("/query?a=1&b=%20"), well},
		{"bad escape", get("/%zz"), "HTTP probe failed with statuscode: 404"},
		{"headers", get("/headers", probe.Header{Name: "host", Value: "web.example"}, probe.Header{Name: "x-own", Value: "1"}), well},
		{"repeated header", get("/repeated", probe.Header{Name: "X-Own", Value: "1"}, probe.Header{Name: "x-own", Value: "2"}), well},
		{"headers of a probe replaced", get("/ownheaders", probe.Header{Name: "User-Agent", Value: "mine"}, probe.Header{Name: "Accept", Value: ""}), well},
		{"https", tls("/ok", secure), well},
		{"https, status 503", tls("/down", secure), "HTTP probe failed with statuscode: 503"},
		{"HTTP/2", tls("/http2", secure), well},
		{"https of an HTTP server", tls("/ok", plain), "server gave HTTP response to HTTPS client"},
		{"host by name", probe.Probe{HTTP: &probe.HTTP{Host: "localhost", Port: plain, Path: "/ok"}}, well},
		{"body without end", get("/endless"), well},
		{"no answer", within(short, get("/hang")), "(Client.Timeout exceeded while awaiting headers)"},
		{"no body", within(short, get("/bodyhang")), "Client.Timeout or context cancellation while reading body"},
		{"HTTP, nobody listens", probe.Probe{HTTP: &probe.HTTP{Host: "127.0.0.1", Port: closed}}, "connect: connection refused"},

		{"TCP", tcp(plain), well},
		{"TCP, nobody listens", tcp(closed), "connect: connection refused"},

		{"command", sh("echo fine"), well},
		{"both outputs", sh("printf 'one '; printf two >&2; exit 3"), "one two"},
		{"silent command", sh("exit 3"), `command "sh -c exit 3" exited with code 3`},
		{"blank output", sh("echo; exit 4"), `command "sh -c echo; exit 4" exited with code 4`},
		{"killed command", sh("kill -9 $$"), `command "sh -c kill -9 $$" exited with code 137`},
		{"no UTF-8", sh(`printf 'a\377b'; exit 3`), "a\uFFFDb"},
		{"flood", sh(`head -c 300000 /dev/zero | tr '\0' x; exit 3`), strings.Repeat("x", 4000)},
		{"output held open", sh("sleep 1000 & echo held; exit 3"), "held"},
		{"slow command", within(short, probe.Probe{Exec: []string{"sleep", "1000"}}), `command "sleep 1000" timed out`},
		{"slow command with output", within(short, sh("echo said; exec sleep 1000")), `command "sh -c echo said; exec sleep 1000" timed out`},
		{"no such command", probe.Probe{Exec: []string{"no-such-command"}}, unknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.probe.Timeout == 0 {
				tt.probe.Timeout = host.Patience(time.Minute)
			}
			ok, message, err := ask(t, tt.probe)
			switch {
			case tt.want == unknown:
				if err == nil {
					t.Errorf("the verdict is %t, %q, but nothing can be known", ok, message)
				}
			case err != nil:
				t.Errorf("nothing is learned: %v", err)
			case tt.want == well && (!ok || message != ""):
				t.Errorf("the verdict is %t, %.200q, want success", ok, message)
			case tt.want != well && (ok || !strings.Contains(message, tt.want)):
				t.Errorf("the verdict is %t, %.200q, want the failure %.200q", ok, message, tt.want)
			}
			if len(message) > 10<<10 {
				t.Errorf("the message has %d bytes", len(message))
			}
		})
	}
}

// Listen is for probes that are made here.
func Listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Command runs a command here, as a runtime class does in a container; what it leaves behind is killed.
func Command(args []string, output *os.File, timeout time.Duration) (code int, timedOut bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return 0, false, err
	}
	defer syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	err = cmd.Wait()
	if ended, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		return 0, false, err
	} else if ok && ended.Sys().(syscall.WaitStatus).Signaled() {
		return 137, ctx.Err() != nil, nil
	}
	return cmd.ProcessState.ExitCode(), false, nil
}
