package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/magikrun/magikpod/internal/printable"
)

// Code says of which kind an error is. The list is closed.
type Code string

// The codes.
const (
	CodeContainerNotFound   Code = "container_not_found"
	CodeContainerNotRunning Code = "container_not_running" // also: not created, not started, or started already
	CodeExecFailed          Code = "exec_failed"           // the process cannot be run as it was asked for; Exit says 126 or 127
	CodeInternal            Code = "internal"
	CodeTimeout             Code = "timeout"
	CodeInvalidRequest      Code = "invalid_request"
)

// known says whether c is in the list.
func (c Code) known() bool {
	switch c {
	case CodeContainerNotFound, CodeContainerNotRunning, CodeExecFailed, CodeInternal, CodeTimeout, CodeInvalidRequest:
		return true
	}
	return false
}

// Error is an error that the agent returns to the host. Its Message is one line of at most
// [MaxMessage] bytes.
type Error struct {
	Code    Code
	Message string
	// Exit (exec_failed) is the exit code that shells give: 127 when there is no such command, else 126.
	Exit int
}

func (e *Error) Error() string { return e.Message }

// Errorf makes an [*Error].
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: clean(fmt.Sprintf(format, args...))}
}

// CodeOf is the code of the first [*Error] in err's chain; CodeInternal when there is none, and
// empty for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return CodeInternal
}

// clean makes one line of printable text of at most MaxMessage bytes: it comes from the other side,
// and goes to terminals and logs.
func clean(text string) string { return printable.Cut(text, MaxMessage) }

// reply is the line of a reply.
type reply struct {
	Status  string          `json:"status"` // ok or error
	Data    json.RawMessage `json:"data,omitempty"`
	Code    Code            `json:"code,omitempty"`
	Message string          `json:"message,omitempty"`
	Exit    int             `json:"exit,omitempty"`
}

// EncodeReply is the line of an ok with data, or without when it is nil. A reply above [MaxReply]
// is [ErrTooLong].
func EncodeReply(data any) ([]byte, error) {
	r := reply{Status: "ok"}
	if data != nil {
		raw, err := json.Marshal(data)
		if err != nil {
			return nil, fmt.Errorf("cannot make a reply: %w", err)
		}
		r.Data = raw
	}
	return lineOf(r)
}

// EncodeError is the line of an error; one that is no [*Error] is internal.
func EncodeError(err error) []byte {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{Code: CodeInternal}
	}
	line, err := lineOf(reply{Status: "error", Code: e.Code, Message: clean(err.Error()), Exit: e.Exit})
	if err != nil { // it cannot be: all parts are bounded
		return []byte(`{"status":"error","code":"internal"}` + "\n")
	}
	return line
}

func lineOf(r reply) ([]byte, error) {
	line, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("cannot make a reply: %w", err)
	}
	if len(line) > MaxReply {
		return nil, fmt.Errorf("cannot send a reply of %d bytes: %w", len(line), ErrTooLong)
	}
	return append(line, '\n'), nil
}

// DecodeReply reads the line of a reply into data, a pointer, or nil when only ok counts. What the
// agent reports is an [*Error]; anything else that is not a reply is a plain error.
func DecodeReply(line []byte, data any) error {
	var r reply
	if err := json.Unmarshal(line, &r); err != nil {
		return fmt.Errorf("cannot read a reply: %w", err)
	}
	switch {
	case r.Status == "error" && r.Code.known():
		exit := 0
		if r.Code == CodeExecFailed {
			exit = min(max(r.Exit, 126), 127)
		}
		return &Error{Code: r.Code, Message: clean(r.Message), Exit: exit}
	case r.Status != "ok":
		return errors.New("cannot read a reply: its status is neither ok nor error")
	case data == nil:
		return nil
	case len(bytes.TrimSpace(r.Data)) == 0:
		return errors.New("cannot read a reply: it has no data")
	}
	if err := json.Unmarshal(r.Data, data); err != nil {
		return fmt.Errorf("cannot read a reply: %w", err)
	}
	return nil
}

// Pong is the reply to [Ping].
type Pong struct {
	Type     string `json:"type"` // pong
	Version  string `json:"version"`
	Protocol int    `json:"protocol"`
	// Configured says that Configure has succeeded.
	Configured bool `json:"configured"`
	// Time is what the VM's clock says.
	Time time.Time `json:"time,omitzero"`
}

// Exit is how a container or a process has ended, what an exit frame carries.
type Exit struct {
	Type   string `json:"type"`             // exit
	Code   int    `json:"code"`             // 0 to 255; 128+Signal when it was killed
	Signal int    `json:"signal,omitempty"` // that killed it
	OOM    bool   `json:"oom,omitempty"`    // it was killed because its memory was used up
	// TimedOut says that the time of an exec was over.
	TimedOut bool `json:"timed_out,omitempty"`
	// Error says why an exec could not be run (Code is 126 or 127 then). Without a terminal its
	// stderr has said so, too.
	Error string `json:"error,omitempty"`
	// Message is the end of the termination message, at most [MaxMessage] bytes.
	Message []byte `json:"message,omitempty"`
}

// Check makes what a guest said usable: numbers that cannot be become ones that can, and what is
// too long is cut.
func (e *Exit) Check() {
	if e.Signal < 0 || e.Signal > 64 {
		e.Signal = 0
	}
	if e.Code < 0 || e.Code > 255 {
		e.Code = 255
	}
	if e.Signal > 0 {
		e.Code = 128 + e.Signal
	}
	e.Error = clean(e.Error)
	if len(e.Message) > MaxMessage {
		e.Message = e.Message[len(e.Message)-MaxMessage:]
	}
}

// ProbeReply is the reply to [Probe].
type ProbeReply struct {
	Type    string `json:"type"` // probe
	Success bool   `json:"success"`
	// Code is the exit code or the HTTP status; 0 without.
	Code int `json:"code,omitempty"`
	// TimedOut says that the time was over before the process had ended.
	TimedOut bool `json:"timed_out,omitempty"`
	// Message is what the process or the server said (its beginning), or why it could not be asked.
	Message string `json:"message,omitempty"`
}

// Check makes what a guest said usable: its words are one line of printable text.
func (r *ProbeReply) Check() { r.Message = clean(r.Message) }

// StatsReply is the reply to [Stats].
type StatsReply struct {
	Type       string           `json:"type"` // stats
	VM         VMStats          `json:"machine"`
	Containers []ContainerStats `json:"containers"`
}

// VMStats is the whole VM, in bytes.
type VMStats struct {
	MemoryTotal     uint64 `json:"memory_total"`
	MemoryAvailable uint64 `json:"memory_available"`
}

// ContainerStats is one container, in bytes and microseconds. What the kernel does not count is 0.
type ContainerStats struct {
	Container        string `json:"container"`
	CPUUsec          uint64 `json:"cpu_usec"`
	Memory           uint64 `json:"memory"`
	MemoryWorkingSet uint64 `json:"memory_working_set"` // without inactive file pages, as the kubelet counts
	MemoryLimit      uint64 `json:"memory_limit,omitempty"`
	PIDs             uint64 `json:"pids"`
}
