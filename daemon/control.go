package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/netutil"

	"github.com/magikrun/magikpod/pod"
)

const (
	// maxControlConns is how many connections are served at a time; others wait.
	maxControlConns = 32
	// controlStopTime is what the answers that are being written get when the server ends.
	controlStopTime = 2 * time.Second
)

// newControlHandler answers on the control socket, GET and HEAD only:
//
//	/healthz  200 "ok", or 503 with the reason that healthy gives
//	/metrics  what metrics writes, in the Prometheus text format
//	/version  a JSON object about the daemon and its host
func newControlHandler(healthy func() error, metrics func(w io.Writer), info func() pod.HostInfo) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		controlType(w, "text/plain; charset=utf-8")
		if err := healthy(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, err.Error()+"\n")
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		controlType(w, "text/plain; version=0.0.4; charset=utf-8")
		metrics(w)
	})
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) {
		i := info()
		controlType(w, "application/json")
		_ = json.NewEncoder(w).Encode(controlVersion{Version: i.Version, GoVersion: i.GoVersion, OS: i.OS, Kernel: i.Kernel, Arch: i.Arch,
			Systemd: i.Systemd, OCIRuntime: i.OCIRuntime})
	})
	return mux
}

// controlVersion is the answer to /version.
type controlVersion struct {
	Version    string `json:"version"`
	GoVersion  string `json:"goVersion"`
	OS         string `json:"os"`
	Kernel     string `json:"kernel"`
	Arch       string `json:"arch"`
	Systemd    string `json:"systemd"`
	OCIRuntime string `json:"ociRuntime"`
}

func controlType(w http.ResponseWriter, contentType string) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
}

// ServeControl serves HTTP on l until ctx ends, then gives the answers that are being written a
// moment, closes l and returns nil. An error is one of l. What a client sends, and how long it may
// take, is bounded.
func ServeControl(ctx context.Context, l net.Listener, handler http.Handler) error {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          log.New(io.Discard, "", 0), // broken requests are the client's business
	}
	stopped := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(stopped)
		wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), controlStopTime)
		defer cancel()
		if server.Shutdown(wait) != nil {
			server.Close()
		}
	})
	err := server.Serve(netutil.LimitListener(l, maxControlConns))
	if !cancel() {
		<-stopped
		return nil
	}
	server.Close()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return pod.Errorf(pod.Internal, "cannot serve the control socket: %w", err)
}
