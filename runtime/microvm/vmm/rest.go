package vmm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// rest speaks HTTP over a unix socket to a monitor, one request a connection. net/http would do it, and make the supervisor, of which one runs
// beside every machine, twice as big.
type rest struct{ path string }

// maxRestBody bounds an answer: the configuration of a machine has some kilobytes.
const maxRestBody = 1 << 20

const restTimeout = 30 * time.Second

// do sends body as JSON (nil: none) and returns the answer's. An answer beyond 2xx is an error with the monitor's reason.
func (r rest) do(ctx context.Context, method, target string, body any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, restTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", r.path)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
	var content []byte
	if body != nil {
		if content, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	request := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", method, target, len(content), content)
	if _, err := io.WriteString(conn, request); err != nil {
		return nil, err
	}
	status, answer, err := readAnswer(bufio.NewReader(io.LimitReader(conn, maxRestBody)))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, target, errors.Join(err, context.Cause(ctx)))
	}
	if status/100 != 2 {
		return nil, fmt.Errorf("%s %s: status %d: %s", method, target, status, bytes.TrimSpace(answer))
	}
	return answer, nil
}

// readAnswer reads one answer with a Content-Length, or without a body.
func readAnswer(r *bufio.Reader) (status int, body []byte, err error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return 0, nil, err
	}
	fields := strings.Fields(line)
	if len(fields) < 2 || !strings.HasPrefix(fields[0], "HTTP/1.") {
		return 0, nil, fmt.Errorf("%q is no answer", line)
	}
	if status, err = strconv.Atoi(fields[1]); err != nil {
		return 0, nil, fmt.Errorf("%q is no answer", line)
	}
	length := 0
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return 0, nil, err
		}
		name, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":")
		if !ok {
			break
		}
		if strings.EqualFold(name, "Content-Length") {
			if length, err = strconv.Atoi(strings.TrimSpace(value)); err != nil || length < 0 || length > maxRestBody {
				return 0, nil, fmt.Errorf("the answer's length is %q", value)
			}
		}
	}
	body = make([]byte, length)
	_, err = io.ReadFull(r, body)
	return status, body, err
}
