package guest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// probe asks whether a container is well. That it is not, or cannot be asked, is no error but an unsuccessful probe.
func (s *Server) probe(ctx context.Context, r *wire.Probe) (any, error) {
	timeout := time.Duration(r.Timeout) * time.Millisecond
	if timeout == 0 {
		timeout = time.Second
	}
	if _, _, err := s.running(r.Container, ""); err != nil {
		return nil, err
	}
	reply := wire.ProbeReply{Type: "probe"}
	switch {
	case r.Exec != nil:
		x, err := s.newExecution(&wire.Exec{Container: r.Container, Args: r.Exec, Timeout: max(timeout.Milliseconds(), 1)})
		if err != nil {
			return nil, err
		}
		exit, output := x.run(ctx.Done())
		reply.Code, reply.Message, reply.Success = exit.Code, string(output), exit.Code == 0
		if exit.TimedOut {
			reply.TimedOut, reply.Message = true, fmt.Sprintf("no end within %s", timeout)
		} else if exit.Error != "" {
			reply.Message = exit.Error
		}
	case r.HTTP != nil:
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		reply.Code, reply.Message, reply.Success = probeHTTP(ctx, r.HTTP)
	case r.TCP != nil:
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", hostPort(r.TCP.Host, r.TCP.Port))
		if err != nil {
			reply.Message = err.Error()
			break
		}
		conn.Close()
		reply.Success = true
	}
	reply.Message = strings.ToValidUTF8(reply.Message[:min(len(reply.Message), wire.MaxMessage)], "\ufffd")
	return reply, nil
}

func hostPort(host string, port int) string {
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// errElsewhere ends a chain of redirects at another host, which is a success to the kubelet.
var errElsewhere = errors.New("redirected to another host")

// probeHTTP makes the request that the kubelet makes: certificates are not checked, redirects are followed on the same host.
func probeHTTP(ctx context.Context, h *wire.HTTPProbe) (status int, message string, success bool) {
	target := &url.URL{Scheme: "http", Host: hostPort(h.Host, h.Port)}
	if h.Scheme != "" {
		target.Scheme = h.Scheme
	}
	path, err := url.Parse(h.Path)
	if err != nil {
		return 0, err.Error(), false
	}
	target.Path, target.RawPath, target.RawQuery = path.Path, path.RawPath, path.RawQuery
	if !strings.HasPrefix(target.Path, "/") {
		target.Path = "/" + target.Path
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return 0, err.Error(), false
	}
	request.Header.Set("User-Agent", "kube-probe/magikpod")
	request.Header.Set("Accept", "*/*")
	for _, header := range h.Headers {
		if strings.EqualFold(header.Name, "Host") {
			request.Host = header.Value
		} else {
			request.Header.Set(header.Name, header.Value)
		}
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10}
	client := http.Client{Transport: transport, CheckRedirect: func(next *http.Request, via []*http.Request) error {
		if next.URL.Hostname() != via[0].URL.Hostname() {
			return errElsewhere
		}
		if len(via) >= 10 {
			return errors.New("too many redirects")
		}
		return nil
	}}
	response, err := client.Do(request)
	if response != nil {
		defer response.Body.Close()
	}
	if err != nil {
		if errors.Is(err, errElsewhere) && response != nil {
			return response.StatusCode, errElsewhere.Error(), true
		}
		return 0, err.Error(), false
	}
	body, _ := io.ReadAll(io.LimitReader(response.Body, wire.MaxMessage)) // the status is what counts
	return response.StatusCode, string(body), response.StatusCode >= 200 && response.StatusCode < 400
}
