package wire

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// ErrTooLong is a line or frame beyond its limit. Nothing of it was kept; the connection is of no
// use any more.
var ErrTooLong = errors.New("too long")

// ReadLine reads up to a newline, which is left out. A line of more than limit bytes is
// [ErrTooLong] as soon as that many have come, and is never kept whole. io.EOF: there was nothing;
// io.ErrUnexpectedEOF: the line has no end.
func ReadLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if err == nil {
			part = part[:len(part)-1]
		}
		if len(line)+len(part) > limit {
			return nil, fmt.Errorf("cannot read a line of more than %d bytes: %w", limit, ErrTooLong)
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}
