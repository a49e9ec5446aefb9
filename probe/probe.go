package probe

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxOutput is how much of a command's output, or of the body of an answer, is read, in bytes:
// maxReadLength in the kubelet's pkg/probe/exec, maxRespBodyLength in its pkg/probe/http.
const maxOutput = 10 << 10

// Probe is one question. Exactly one of Exec, HTTP and TCP is set.
type Probe struct {
	Exec []string // a command; its exit code 0 is success
	HTTP *HTTP
	TCP  *TCP
	// Timeout is positive. A probe that takes longer has failed.
	Timeout time.Duration
}

// HTTP asks for a page; a status from 200 to 399 is success.
type HTTP struct {
	Scheme  string // http (also when empty) or https
	Host    string // empty: 127.0.0.1
	Port    int
	Path    string // perhaps with a query
	Headers []Header
}

// Header is a header of an HTTP request. One name may come more than once.
type Header struct{ Name, Value string }

// TCP connects.
type TCP struct {
	Host string // empty: 127.0.0.1
	Port int
}

// Outcome is what a probe has learned.
type Outcome struct {
	Success  bool
	Code     int  // the exit code or the HTTP status; 0 without
	TimedOut bool // the command did not end in time
	// Text is what the command or the server said (its beginning), or why it could not be asked.
	Text string
}

// Verdict says whether the container is well, and when it is not, what the kubelet says of such a
// failure.
func (p Probe) Verdict(o Outcome) (ok bool, message string) {
	command := `command "` + strings.Join(p.Exec, " ") + `"`
	switch {
	case o.Success:
		return true, ""
	case p.Exec != nil && o.TimedOut:
		return false, command + " timed out"
	case p.Exec != nil && strings.TrimSpace(o.Text) == "":
		return false, command + " exited with code " + strconv.Itoa(o.Code)
	case p.HTTP != nil && o.Code != 0:
		return false, "HTTP probe failed with statuscode: " + strconv.Itoa(o.Code)
	}
	return false, o.Text
}

// connect connects, and no more (DoTCPProbe in the kubelet's pkg/probe/tcp).
func (t *TCP) connect(ctx context.Context, timeout time.Duration) (Outcome, error) {
	dialer := net.Dialer{Timeout: timeout}
	conn, err := dialer.DialContext(ctx, "tcp", address(t.Host, t.Port))
	if err != nil {
		return failed(err)
	}
	conn.Close()
	return Outcome{Success: true}, nil
}

func address(host string, port int) string {
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// failed is the outcome of a request that came to nothing. When this side lacks something, nothing
// was learned about the container.
func failed(err error) (Outcome, error) {
	for _, own := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM} {
		if errors.Is(err, own) {
			return Outcome{}, err
		}
	}
	return Outcome{Text: err.Error()}, nil
}
