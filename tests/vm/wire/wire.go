package wire

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// Kind says what a frame is.
type Kind byte

// The frames. Hello goes both ways, those of a command's output come from the guest, the others go
// to it.
const (
	Hello      Kind = 'H' // the program in the guest is there; to the guest: Data is the time as RFC 3339, to be set and answered
	Start      Kind = 'S' // Data is a Command as JSON; ID is new
	Stdin      Kind = 'i' // standard input of the command; empty: its end
	Kill       Kind = 'k' // SIGKILL for the command and its children
	Resize     Kind = 'r' // Data is a Size as JSON
	Stdout     Kind = 'o'
	Stderr     Kind = 'e'
	Exit       Kind = 'x' // the last frame of a command; Data is a Status as JSON
	maxData         = 1 << 20
	headerSize      = 9
)

// Chunk is how much of a stream goes into a frame.
const Chunk = 32 << 10

// Command is what to run.
type Command struct {
	Argv []string `json:"argv"`
	Env  []string `json:"env,omitempty"`
	Dir  string   `json:"dir,omitempty"`
	TTY  *Size    `json:"tty,omitempty"` // a terminal of this size; then all output is Stdout
}

// Size is that of a terminal, in characters.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Status is how a command has ended. Error is set when it could not be started.
type Status struct {
	Code  int    `json:"code"`
	Error string `json:"error,omitempty"`
}

// Frame is one message.
type Frame struct {
	ID   uint32 // of the command
	Kind Kind
	Data []byte // at most 1 MiB
}

// Conn carries frames. Send may be called from several goroutines.
type Conn struct {
	mu sync.Mutex
	w  io.Writer
	r  *bufio.Reader
}

// New is a connection over rw.
func New(rw io.ReadWriter) *Conn {
	return &Conn{w: rw, r: bufio.NewReaderSize(rw, 2*Chunk)}
}

// Send writes a frame.
func (c *Conn) Send(f Frame) error {
	if len(f.Data) > maxData {
		return fmt.Errorf("cannot send a frame of %d bytes", len(f.Data))
	}
	buf := make([]byte, headerSize, headerSize+len(f.Data))
	binary.BigEndian.PutUint32(buf, f.ID)
	buf[4] = byte(f.Kind)
	binary.BigEndian.PutUint32(buf[5:], uint32(len(f.Data)))
	buf = append(buf, f.Data...)
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.w.Write(buf)
	return err
}

// Receive reads the next frame; io.EOF when the other side is gone. Only one goroutine may receive.
func (c *Conn) Receive() (Frame, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(c.r, header[:]); err != nil {
		return Frame{}, err
	}
	size := binary.BigEndian.Uint32(header[5:])
	if size > maxData {
		return Frame{}, fmt.Errorf("a frame of %d bytes is too long", size)
	}
	f := Frame{ID: binary.BigEndian.Uint32(header[:]), Kind: Kind(header[4]), Data: make([]byte, size)}
	_, err := io.ReadFull(c.r, f.Data)
	return f, err
}

// Stream sends what r has as frames of one kind until its end.
func (c *Conn) Stream(id uint32, kind Kind, r io.Reader) {
	buf := make([]byte, Chunk)
	for {
		n, err := r.Read(buf)
		if n > 0 && c.Send(Frame{ID: id, Kind: kind, Data: buf[:n]}) != nil {
			return
		}
		if err != nil {
			return
		}
	}
}
