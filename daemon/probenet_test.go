package daemon

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// portOf is the port that a test server listens on.
func portOf(t *testing.T, server *httptest.Server) int {
	t.Helper()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// closedPort is one that nobody listens on.
func closedPort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func TestProbeHTTP(t *testing.T) {
	release := make(chan struct{})
	mux := http.NewServeMux()
	status := func(path string, code int) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) })
	}
	status("/ok", 200)
	status("/created", 201)
	status("/last", 399)
	status("/bad", 400)
	status("/down", 503)
	mux.Handle("/redirect", http.RedirectHandler("/down", http.StatusFound))
	mux.Handle("/redirect-ok", http.RedirectHandler("/ok", http.StatusFound))
	mux.Handle("/elsewhere", http.RedirectHandler("http://192.0.2.1/x", http.StatusFound))
	mux.Handle("/loop", http.RedirectHandler("/loop", http.StatusFound))
	mux.HandleFunc("/query", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery != "a=1&b=%20" {
			w.WriteHeader(500)
		}
	})
	mux.HandleFunc("/headers", func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "web.example" || r.Header.Get("X-Own") != "1" || !strings.HasPrefix(r.UserAgent(), "kube-probe/") || r.Header.Get("Accept") != "*/*" ||
			!r.Close || len(r.Header["Accept-Encoding"]) > 0 {
			w.WriteHeader(500)
		}
	})
	mux.HandleFunc("/ownheaders", func(w http.ResponseWriter, r *http.Request) {
		if r.UserAgent() != "mine" || len(r.Header["Accept"]) > 0 {
			w.WriteHeader(500)
		}
	})
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
	plain, secure := httptest.NewServer(mux), httptest.NewTLSServer(mux)
	defer plain.Close()
	defer secure.Close()
	defer close(release)
	t.Setenv("HTTP_PROXY", "http://192.0.2.1:1")

	tests := []struct {
		action  corev1.HTTPGetAction
		timeout time.Duration
		want    string // a part of the message; empty: success
	}{
		{action: corev1.HTTPGetAction{Path: "/ok"}},
		{action: corev1.HTTPGetAction{Path: "ok"}},
		{action: corev1.HTTPGetAction{Path: "/created"}},
		{action: corev1.HTTPGetAction{Path: "/last"}},
		{action: corev1.HTTPGetAction{Path: ""}, want: "HTTP probe failed with statuscode: 404"},
		{action: corev1.HTTPGetAction{Path: "/bad"}, want: "HTTP probe failed with statuscode: 400"},
		{action: corev1.HTTPGetAction{Path: "/down"}, want: "HTTP probe failed with statuscode: 503"},
		{action: corev1.HTTPGetAction{Path: "/redirect"}, want: "HTTP probe failed with statuscode: 503"},
		{action: corev1.HTTPGetAction{Path: "/redirect-ok"}},
		{action: corev1.HTTPGetAction{Path: "/elsewhere"}},
		{action: corev1.HTTPGetAction{Path: "/loop"}, want: "stopped after 10 redirects"},
		{action: corev1.HTTPGetAction{Path: "/query?a=1&b=%20"}},
		{action: corev1.HTTPGetAction{Path: "/headers", HTTPHeaders: []corev1.HTTPHeader{{Name: "host", Value: "web.example"}, {Name: "x-own", Value: "1"}}}},
		{action: corev1.HTTPGetAction{Path: "/ownheaders", HTTPHeaders: []corev1.HTTPHeader{{Name: "User-Agent", Value: "mine"}, {Name: "Accept", Value: ""}}}},
		{action: corev1.HTTPGetAction{Path: "/ok", Scheme: corev1.URISchemeHTTPS}},
		{action: corev1.HTTPGetAction{Path: "/down", Scheme: corev1.URISchemeHTTPS}, want: "HTTP probe failed with statuscode: 503"},
		{action: corev1.HTTPGetAction{Path: "/ok", Host: "localhost"}},
		{action: corev1.HTTPGetAction{Path: "/endless"}},
		{action: corev1.HTTPGetAction{Path: "/hang"}, timeout: 100 * time.Millisecond, want: "(Client.Timeout exceeded while awaiting headers)"},
		{action: corev1.HTTPGetAction{Path: "/bodyhang"}, timeout: 100 * time.Millisecond, want: "Client.Timeout or context cancellation while reading body"},
		{action: corev1.HTTPGetAction{Path: "/ok", Port: intstr.FromString("web")}},
		{action: corev1.HTTPGetAction{Path: "/ok", Port: intstr.FromString("nope")}, want: "invalid port number: nope"},
		{action: corev1.HTTPGetAction{Path: "/ok", Port: intstr.FromInt32(int32(closedPort(t)))}, want: "connect: connection refused"},
		{action: corev1.HTTPGetAction{Path: "/%zz"}, want: "HTTP probe failed with statuscode: 404"},
	}
	c := &corev1.Container{Name: "a", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: int32(portOf(t, plain))}}}
	for _, tt := range tests {
		t.Run(string(tt.action.Scheme)+tt.action.Path+tt.action.Port.StrVal, func(t *testing.T) {
			if tt.action.Port == (intstr.IntOrString{}) {
				tt.action.Port = intstr.FromInt32(int32(portOf(t, plain)))
				if tt.action.Scheme == corev1.URISchemeHTTPS {
					tt.action.Port = intstr.FromInt32(int32(portOf(t, secure)))
				}
			}
			if tt.timeout == 0 {
				tt.timeout = time.Minute
			}
			ok, message, err := probeHTTP(t.Context(), c, &tt.action, "127.0.0.1", tt.timeout)
			if err != nil || ok != (tt.want == "") || !strings.Contains(message, tt.want) {
				t.Errorf("ok %v, message %q, error %v; want %q", ok, message, err, tt.want)
			}
		})
	}
}

func TestProbeTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	open := l.Addr().(*net.TCPAddr).Port
	c := &corev1.Container{Name: "a", Ports: []corev1.ContainerPort{{Name: "db", ContainerPort: int32(open)}}}
	tests := []struct {
		name   string
		action corev1.TCPSocketAction
		host   string
		want   string
	}{
		{"number", corev1.TCPSocketAction{Port: intstr.FromInt32(int32(open))}, "127.0.0.1", ""},
		{"name", corev1.TCPSocketAction{Port: intstr.FromString("db")}, "127.0.0.1", ""},
		{"own host", corev1.TCPSocketAction{Port: intstr.FromString("db"), Host: "127.0.0.1"}, "", ""},
		{"closed", corev1.TCPSocketAction{Port: intstr.FromInt32(int32(closedPort(t)))}, "127.0.0.1", "connect: connection refused"},
		{"no address", corev1.TCPSocketAction{Port: intstr.FromString("db")}, "", "the pod has no IP address"},
		{"port 0", corev1.TCPSocketAction{}, "127.0.0.1", "invalid port number: 0"},
		{"port 65536", corev1.TCPSocketAction{Port: intstr.FromInt32(65536)}, "127.0.0.1", "invalid port number: 65536"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ok, message, err := probeTCP(t.Context(), c, &tt.action, tt.host, time.Minute)
			if err != nil || ok != (tt.want == "") || !strings.Contains(message, tt.want) {
				t.Errorf("ok %v, message %q, error %v; want %q", ok, message, err, tt.want)
			}
		})
	}
}

// TestProbeWithoutDescriptors checks that a probe which the daemon cannot make, for want of descriptors, tells nothing about the container.
func TestProbeWithoutDescriptors(t *testing.T) {
	port := intstr.FromInt32(int32(closedPort(t)))
	c := &corev1.Container{Name: "a"}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	next := uint64(null.Fd())
	null.Close()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := limit
	low.Cur = next
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	_, tcp, tcpErr := probeTCP(t.Context(), c, &corev1.TCPSocketAction{Port: port}, "127.0.0.1", time.Minute)
	_, page, httpErr := probeHTTP(t.Context(), c, &corev1.HTTPGetAction{Port: port}, "127.0.0.1", time.Minute)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(tcpErr, unix.EMFILE) || !errors.Is(httpErr, unix.EMFILE) || tcp+page != "" {
		t.Errorf("TCP: %q, %v; HTTP: %q, %v", tcp, tcpErr, page, httpErr)
	}
}
