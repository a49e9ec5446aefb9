package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/magikrun/magikpod/runtime"
)

// probeUserAgent is what servers see that tell probes apart in their logs; they look for its beginning. The number is that of the API.
const probeUserAgent = "kube-probe/1.37"

// probeTCP connects.
func probeTCP(ctx context.Context, c *corev1.Container, action *corev1.TCPSocketAction, host string, timeout time.Duration) (bool, string, error) {
	address, message := probeAddress(c, action.Port, action.Host, host)
	if message != "" {
		return false, message, nil
	}
	dialer := net.Dialer{Timeout: timeout}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if ours(err) {
		return false, "", err
	}
	if err != nil {
		return false, err.Error(), nil
	}
	conn.Close()
	return true, "", nil
}

// ours says whether a connection could not be made for want of something on this side: that tells nothing about the container.
func ours(err error) bool {
	for _, own := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM} {
		if errors.Is(err, own) {
			return true
		}
	}
	return false
}

// probeHTTP asks for a page: a status from 200 to 399 is success.
func probeHTTP(ctx context.Context, c *corev1.Container, action *corev1.HTTPGetAction, host string, timeout time.Duration) (bool, string, error) {
	address, message := probeAddress(c, action.Port, action.Host, host)
	if message != "" {
		return false, message, nil
	}
	transport := &http.Transport{
		DialContext:            new(net.Dialer).DialContext,           // and no proxy
		TLSClientConfig:        &tls.Config{InsecureSkipVerify: true}, // it is the pod's health that is in question, not its name
		DisableKeepAlives:      true,
		DisableCompression:     true,
		ForceAttemptHTTP2:      true,
		MaxResponseHeaderBytes: 64 << 10,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: timeout, CheckRedirect: probeRedirect}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, probeURL(action, address).String(), nil)
	if err != nil {
		return false, err.Error(), nil
	}
	probeHeaders(request, action.HTTPHeaders)
	response, err := client.Do(request)
	if ours(err) {
		return false, "", err
	}
	if err != nil {
		return false, err.Error(), nil
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(response.Body, maxProbeOutput)); err != nil {
		return false, err.Error(), nil
	}
	if response.StatusCode < 200 || response.StatusCode >= 400 {
		return false, "HTTP probe failed with statuscode: " + strconv.Itoa(response.StatusCode), nil
	}
	return true, "", nil
}

// probeRedirect follows redirects on the same host; one that leads elsewhere is the answer, and a success.
func probeRedirect(request *http.Request, via []*http.Request) error {
	if request.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	return nil
}

// probeURL joins what the manifest says; path may have a query.
func probeURL(action *corev1.HTTPGetAction, address string) *url.URL {
	scheme := strings.ToLower(string(action.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	u, err := url.Parse(action.Path)
	if err != nil {
		u = &url.URL{Path: action.Path}
	}
	u.Scheme, u.Host, u.User, u.Opaque = scheme, address, nil, ""
	if !strings.HasPrefix(u.Path, "/") {
		u.Path, u.RawPath = "/"+u.Path, ""
	}
	return u
}

func probeHeaders(request *http.Request, headers []corev1.HTTPHeader) {
	for _, h := range headers {
		request.Header.Add(h.Name, h.Value)
	}
	if host := request.Header.Get("Host"); host != "" {
		request.Host = host
	}
	request.Header.Del("Host")
	if _, ok := request.Header["User-Agent"]; !ok {
		request.Header.Set("User-Agent", probeUserAgent)
	}
	switch _, ok := request.Header["Accept"]; {
	case !ok:
		request.Header.Set("Accept", "*/*")
	case request.Header.Get("Accept") == "":
		request.Header.Del("Accept") // an empty one means none
	}
}

// remoteProbe is a probe in a form that needs no manifest to be understood, or what is wrong with it.
func remoteProbe(c *corev1.Container, probe *corev1.Probe, host string) (asked runtime.Probe, message string) {
	switch {
	case probe.Exec != nil:
		asked.Exec = probeArgs(c, probe.Exec.Command)
	case probe.HTTPGet != nil:
		h := &runtime.HTTPProbe{Path: probe.HTTPGet.Path, Scheme: strings.ToLower(string(probe.HTTPGet.Scheme)), Headers: probe.HTTPGet.HTTPHeaders}
		if h.Scheme == "" {
			h.Scheme = "http"
		}
		h.Host, h.Port, message = probeHostPort(c, probe.HTTPGet.Port, probe.HTTPGet.Host, host)
		asked.HTTP = h
	case probe.TCPSocket != nil:
		t := &runtime.TCPProbe{}
		t.Host, t.Port, message = probeHostPort(c, probe.TCPSocket.Port, probe.TCPSocket.Host, host)
		asked.TCP = t
	default:
		message = "the probe has no handler"
	}
	return asked, message
}

// probeAddress is the address to connect to, or what is wrong.
func probeAddress(c *corev1.Container, port intstr.IntOrString, wanted, host string) (address, message string) {
	host, number, message := probeHostPort(c, port, wanted, host)
	if message != "" {
		return "", message
	}
	return net.JoinHostPort(host, strconv.Itoa(number)), ""
}

// probeHostPort is the host and the port to connect to, or what is wrong.
func probeHostPort(c *corev1.Container, port intstr.IntOrString, wanted, host string) (_ string, number int, message string) {
	if wanted != "" {
		host = wanted
	}
	if host == "" {
		return "", 0, "the pod has no IP address"
	}
	number = port.IntValue()
	if port.Type == intstr.String {
		for _, p := range c.Ports {
			if p.Name == port.StrVal {
				number = int(p.ContainerPort)
			}
		}
	}
	if number < 1 || number > 65535 {
		return "", 0, "invalid port number: " + port.String()
	}
	return host, number, ""
}
