package wire

import (
	"bufio"
	"encoding/json"
	"io"
	"sync"
)

// Conn reads and writes lines and frames on a stream. Writes may come from several goroutines; only
// one reads.
type Conn struct {
	r *bufio.Reader

	mu     sync.Mutex
	w      io.Writer
	buffer []byte // for writing: one write a frame
}

// NewConn is a connection over rw. It takes some KiB, and at most one line or two frames more.
func NewConn(rw io.ReadWriter) *Conn {
	return &Conn{r: bufio.NewReaderSize(rw, 4<<10), w: rw}
}

// ReadRequest reads and checks the request. An [*Error] of the code [CodeInvalidRequest] is for the
// peer; others are the stream's.
func (c *Conn) ReadRequest() (Request, error) {
	line, err := ReadLine(c.r, MaxRequest)
	if err != nil {
		return nil, err
	}
	return DecodeRequest(line)
}

// WriteRequest checks and sends a request.
func (c *Conn) WriteRequest(request Request) error {
	line, err := EncodeRequest(request)
	if err != nil {
		return err
	}
	return c.write(line)
}

// ReadReply reads a reply into data, a pointer or nil. An [*Error] is what the agent said.
func (c *Conn) ReadReply(data any) error {
	line, err := ReadLine(c.r, MaxReply)
	if err != nil {
		return err
	}
	return DecodeReply(line, data)
}

// WriteReply sends data, one of the reply types, or nil: a plain ok.
func (c *Conn) WriteReply(data any) error {
	line, err := EncodeReply(data)
	if err != nil {
		return err
	}
	return c.write(line)
}

// WriteError sends an error.
func (c *Conn) WriteError(err error) error { return c.write(EncodeError(err)) }

// ReadFrame reads a frame into buffer, as the function of the same name.
func (c *Conn) ReadFrame(buffer []byte) (Frame, error) { return ReadFrame(c.r, buffer) }

// WriteFrame sends a frame in one write.
func (c *Conn) WriteFrame(t FrameType, data []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	buffer, err := AppendFrame(c.buffer[:0], t, data)
	if err != nil {
		return err
	}
	c.buffer = buffer
	_, err = c.w.Write(buffer)
	return err
}

// WriteJSON sends a frame with v as JSON.
func (c *Conn) WriteJSON(t FrameType, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.WriteFrame(t, data)
}

func (c *Conn) write(line []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.w.Write(line)
	return err
}
