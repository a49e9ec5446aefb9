package wire

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// FrameType says what a frame carries.
type FrameType byte

// The frames. The end of a connection without an exit frame means that the other side is gone.
const (
	FrameStdin  FrameType = 'i' // host to agent; empty: the end of the input
	FrameStdout FrameType = 'o' // agent to host; with a terminal, all output
	FrameStderr FrameType = 'e' // agent to host
	FrameResize FrameType = 'r' // host to agent: a Size as JSON
	FrameExit   FrameType = 'x' // agent to host: an Exit as JSON; the last frame
	FrameData   FrameType = 'd' // host to agent: a part of a tar stream; empty: its end
)

// headerSize is the type and the length of a frame.
const headerSize = 5

// Frame is one frame.
type Frame struct {
	Type FrameType
	Data []byte
}

// known says whether t is a type of frame.
func (t FrameType) known() bool {
	switch t {
	case FrameStdin, FrameStdout, FrameStderr, FrameResize, FrameExit, FrameData:
		return true
	}
	return false
}

// ReadFrame reads a frame into buffer, which grows up to [MaxFrame] when it is too small; pass the
// frame's Data, or nil, to use it again. io.EOF: the stream ended between two frames;
// io.ErrUnexpectedEOF: within one. A frame of an unknown type is an error, one above the limit is
// [ErrTooLong].
func ReadFrame(r *bufio.Reader, buffer []byte) (Frame, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return Frame{}, err
	}
	f := Frame{Type: FrameType(header[0])}
	if !f.Type.known() {
		return Frame{}, fmt.Errorf("cannot read a frame: unknown type %#x", header[0])
	}
	size := binary.BigEndian.Uint32(header[1:])
	if size > MaxFrame {
		return Frame{}, fmt.Errorf("cannot read a frame of %d bytes: %w", size, ErrTooLong)
	}
	if uint32(cap(buffer)) < size {
		buffer = make([]byte, size)
	}
	f.Data = buffer[:size]
	if _, err := io.ReadFull(r, f.Data); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	return f, nil
}

// AppendFrame appends a frame to buffer, so that one write sends it. Data above [MaxFrame] is
// [ErrTooLong].
func AppendFrame(buffer []byte, t FrameType, data []byte) ([]byte, error) {
	if len(data) > MaxFrame {
		return buffer, fmt.Errorf("cannot send a frame of %d bytes: %w", len(data), ErrTooLong)
	}
	buffer = append(buffer, byte(t))
	buffer = binary.BigEndian.AppendUint32(buffer, uint32(len(data)))
	return append(buffer, data...), nil
}

// Size is the size of a terminal, in characters.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Decode reads the JSON that a frame carries into v.
func (f Frame) Decode(v any) error {
	if err := json.Unmarshal(f.Data, v); err != nil {
		return fmt.Errorf("cannot read a frame of type %q: %w", byte(f.Type), err)
	}
	return nil
}
