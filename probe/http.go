package probe

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
)

// userAgent marks probes in the logs of servers, which look for its beginning. The number is that
// of the API.
const userAgent = "kube-probe/1.37"

// get asks for the page (DoHTTPProbe in the kubelet's pkg/probe/http). A body that does not come in
// time is a failure, too.
func (h *HTTP) get(ctx context.Context, timeout time.Duration) (Outcome, error) {
	transport := &http.Transport{
		DialContext:            new(net.Dialer).DialContext,           // and no proxy
		TLSClientConfig:        &tls.Config{InsecureSkipVerify: true}, // it is the pod's health that is in question, not its name
		DisableKeepAlives:      true,
		DisableCompression:     true,
		ForceAttemptHTTP2:      true,
		MaxResponseHeaderBytes: 64 << 10,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: timeout, CheckRedirect: checkRedirect}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, h.url().String(), nil)
	if err != nil {
		return failed(err)
	}
	h.setHeaders(request)
	response, err := client.Do(request)
	if err != nil {
		return failed(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxOutput))
	if err != nil {
		return failed(err)
	}
	code := response.StatusCode
	return Outcome{Success: code >= 200 && code < 400, Code: code, Text: string(body)}, nil
}

// checkRedirect follows redirects on the same host; one that leads elsewhere is the answer, and a
// success (RedirectChecker in the kubelet's pkg/probe/http).
func checkRedirect(request *http.Request, via []*http.Request) error {
	if request.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	return nil
}

// url joins what the manifest says (formatURL in the kubelet's pkg/probe/http).
func (h *HTTP) url() *url.URL {
	u, err := url.Parse(h.Path)
	if err != nil {
		u = &url.URL{Path: h.Path}
	}
	u.Scheme, u.Host, u.User, u.Opaque = h.Scheme, address(h.Host, h.Port), nil, ""
	if u.Scheme == "" {
		u.Scheme = "http"
	}
	if !strings.HasPrefix(u.Path, "/") {
		u.Path, u.RawPath = "/"+u.Path, ""
	}
	return u
}

// setHeaders adds the manifest's headers, and those that a probe has without (newProbeRequest in
// the kubelet's pkg/probe/http).
func (h *HTTP) setHeaders(request *http.Request) {
	for _, header := range h.Headers {
		request.Header.Add(header.Name, header.Value)
	}
	if host := request.Header.Get("Host"); host != "" {
		request.Host = host
	}
	request.Header.Del("Host")
	if _, ok := request.Header["User-Agent"]; !ok {
		request.Header.Set("User-Agent", userAgent)
	}
	switch _, ok := request.Header["Accept"]; {
	case !ok:
		request.Header.Set("Accept", "*/*")
	case request.Header.Get("Accept") == "":
		request.Header.Del("Accept") // an empty one means none
	}
}
