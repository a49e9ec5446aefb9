package vmm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/rawfd"
)

// qmp is a client of QEMU's machine protocol (docs/interop/qmp-spec): one JSON object a line.
type qmp struct {
	conn *net.UnixConn

	mu      sync.Mutex // one command at a time
	answers chan qmpAnswer
	done    chan struct{} // closed when nothing is read any more
	err     error         // why; valid after done
}

type qmpAnswer struct {
	Return json.RawMessage
	Error  *qmpError
	Event  string
	QMP    json.RawMessage
}

// qmpError is QEMU's refusal of a command.
type qmpError struct{ Desc string }

func (e *qmpError) Error() string { return e.Desc }

// maxQMPLine bounds what one line of QEMU's may have: the guest has no say in them, but QEMU may
// have been taken over by it.
const maxQMPLine = 1 << 20

// qmpTimeout bounds one command, when the context has no earlier deadline: QEMU answers while the
// guest waits.
const qmpTimeout = 30 * time.Second

// startTimeout bounds the wait for a monitor's first answer: it may just have been started.
const startTimeout = time.Minute

// dialQMP connects and leaves the negotiation behind.
func dialQMP(ctx context.Context, path string) (*qmp, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to QEMU: %w", err)
	}
	m := &qmp{conn: conn.(*net.UnixConn), answers: make(chan qmpAnswer, 1), done: make(chan struct{})}
	go m.read()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	greeting, err := m.answer(ctx)
	if err == nil && greeting.QMP == nil {
		err = errors.New("it does not greet")
	}
	if err == nil {
		_, err = m.execute(ctx, "qmp_capabilities", nil, nil)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot speak to QEMU: %w", err), m.close())
	}
	return m, nil
}

// read hands answers on until the connection ends.
func (m *qmp) read() {
	defer close(m.done)
	lines := bufio.NewScanner(m.conn)
	lines.Buffer(make([]byte, 4096), maxQMPLine)
	for lines.Scan() {
		var a qmpAnswer
		if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
			m.err = fmt.Errorf("QEMU's answer cannot be understood: %w", err)
			return
		}
		if a.Event != "" {
			continue // nobody waits for one
		}
		select {
		case m.answers <- a:
		default:
			m.err = errors.New("QEMU answers what nobody has asked")
			return
		}
	}
	m.err = lines.Err()
	if m.err == nil {
		m.err = errors.New("QEMU has closed the connection")
	}
}

// execute runs a command, with a descriptor beside it if file is not nil, and returns its answer.
// After an error that is no [qmpError] the connection is of no more use.
func (m *qmp) execute(ctx context.Context, command string, arguments map[string]any, file *os.File) (json.RawMessage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, qmpTimeout, errors.New("QEMU does not answer"))
	defer cancel()
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	line, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	if err := m.write(ctx, append(line, '\n'), file); err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	a, err := m.answer(ctx)
	if err == nil && a.Error != nil {
		err = a.Error
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	return a.Return, nil
}

func (m *qmp) write(ctx context.Context, line []byte, file *os.File) error {
	deadline, _ := ctx.Deadline()
	if err := m.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	if file == nil {
		_, err := m.conn.Write(line)
		return err
	}
	return rawfd.Use(file, func(fd int) error {
		_, _, err := m.conn.WriteMsgUnix(line, unix.UnixRights(fd), nil)
		return err
	})
}

func (m *qmp) answer(ctx context.Context) (qmpAnswer, error) {
	select {
	case a := <-m.answers:
		return a, nil
	default:
	}
	select {
	case a := <-m.answers:
		return a, nil
	case <-m.done:
		return qmpAnswer{}, m.err
	case <-ctx.Done():
		_ = m.conn.Close() // the answer that is on its way would be taken for the next command's
		return qmpAnswer{}, context.Cause(ctx)
	}
}

func (m *qmp) close() error {
	err := m.conn.Close()
	<-m.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
