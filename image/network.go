package image

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/magikrun/magikpod/pod"
)

// network is how registries are reached.
type network struct {
	transport      *http.Transport
	attempts       int
	backoff, stall time.Duration
}

// newNetwork has a transport like ggcr's own.
func newNetwork() network {
	t := remote.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = pullStall
	return network{transport: t, attempts: pullAttempts, backoff: pullBackoff, stall: pullStall}
}

// guard stands between the registry library and the network: no plain HTTP to other hosts, and no
// endless manifests.
type guard struct {
	next  http.RoundTripper
	limit int64
}

func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !isThisHost(r.URL.Hostname()) {
		return nil, pod.Errorf(pod.Denied, "%s speaks plain HTTP, which must be allowed expressly", r.URL.Host)
	}
	resp, err := g.next.RoundTrip(r)
	if err == nil && !strings.Contains(r.URL.Path, "/blobs/") {
		resp.Body = readCloser{limitReader(r.Context(), resp.Body, g.limit, "the registry's answer"), resp.Body}
	}
	return resp, err
}

func isThisHost(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// watchdog is the body of a blob that ends when nothing comes for a while.
type watchdog struct {
	r      io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	after  time.Duration
}

var errStall = pod.Errorf(pod.Unavailable, "the registry stopped sending")

func newWatchdog(after time.Duration, cancel context.CancelCauseFunc) *watchdog {
	return &watchdog{cancel: cancel, after: after, timer: time.AfterFunc(after, func() { cancel(errStall) })}
}

func (w *watchdog) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if n > 0 {
		w.timer.Reset(w.after)
	}
	return n, w.cause(w.ctx, err)
}

// cause replaces the error of a cancelled request by why it was cancelled, and gives all others a kind.
func (w *watchdog) cause(ctx context.Context, err error) error {
	switch {
	case err == nil || err == io.EOF:
		return err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case pod.KindOf(err) != pod.Internal:
		return err
	}
	return pod.WithKind(pod.Unavailable, err)
}

func (w *watchdog) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

func (w *watchdog) Close() error {
	w.stop()
	return w.r.Close()
}

// isTransient says whether it may go better next time. The library itself repeats requests whose
// answer says so; what comes here is mostly connections that broke in the middle.
func isTransient(err error) bool {
	if answer, ok := errors.AsType[*transport.Error](err); ok {
		return answer.Temporary() || answer.StatusCode >= 500 || answer.StatusCode == http.StatusTooManyRequests
	}
	if errors.Is(err, errStall) {
		return true
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || isFull(err) {
		return false
	}
	switch pod.KindOf(err) {
	case pod.Internal, pod.Unavailable:
	default:
		return errors.Is(err, io.ErrUnexpectedEOF)
	}
	_, cert := errors.AsType[*tls.CertificateVerificationError](err)
	return !cert
}

// pullError gives what the network says a kind.
func pullError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if answer, ok := errors.AsType[*transport.Error](err); ok {
		return pod.Errorf(answerKind(answer), "the registry says: %w", answer)
	}
	if pod.KindOf(err) != pod.Internal || isFull(err) {
		return err
	}
	_, request := errors.AsType[*url.Error](err)
	_, connection := errors.AsType[*net.OpError](err)
	if request || connection || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return pod.WithKind(pod.Unavailable, err)
	}
	return err
}

func answerKind(e *transport.Error) pod.Kind {
	for _, d := range e.Errors {
		switch d.Code {
		case transport.UnauthorizedErrorCode, transport.DeniedErrorCode:
			return pod.Denied
		case transport.ManifestUnknownErrorCode, transport.NameUnknownErrorCode, transport.BlobUnknownErrorCode:
			return pod.NotFound
		case transport.TooManyRequestsErrorCode:
			return pod.Unavailable
		}
	}
	switch {
	case e.StatusCode == http.StatusUnauthorized, e.StatusCode == http.StatusForbidden:
		return pod.Denied
	case e.StatusCode == http.StatusNotFound:
		return pod.NotFound
	case e.StatusCode >= 500, e.StatusCode == http.StatusTooManyRequests, e.StatusCode == http.StatusRequestTimeout:
		return pod.Unavailable
	}
	return pod.Invalid
}
