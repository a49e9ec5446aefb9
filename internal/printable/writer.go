package printable

import (
	"io"
	"strings"
	"unicode/utf8"
)

// maxColour bounds what stands between ESC [ and m, in bytes.
const maxColour = 32

// Writer escapes what is written to it, but for newlines and tabs, and passes it on. It keeps at
// most the beginning of one character or colour, until the next Write or Flush. It is used by one
// goroutine at a time.
type Writer struct {
	w       io.Writer
	colours bool
	pending []byte
	buffer  []byte
	dirty   bool // a colour may be in effect
}

// NewWriter returns a Writer. With colours the attributes of text (ESC [ numbers m, ECMA-48
// 8.3.117) pass, and nothing else that begins with ESC.
func NewWriter(w io.Writer, colours bool) *Writer { return &Writer{w: w, colours: colours} }

// Write implements io.Writer.
func (o *Writer) Write(p []byte) (int, error) {
	o.pending = o.put(append(o.pending, p...), false)
	if err := o.send(); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush writes what was kept, and ends the colours.
func (o *Writer) Flush() error {
	o.pending = o.put(o.pending, true)
	if o.dirty {
		o.dirty = false
		o.buffer = append(o.buffer, "\x1b[0m"...)
	}
	return o.send()
}

func (o *Writer) send() error {
	if len(o.buffer) == 0 {
		return nil
	}
	_, err := o.w.Write(o.buffer)
	o.buffer = o.buffer[:0]
	return err
}

// put escapes p into the buffer and returns what must wait for more, which is nothing at the end.
func (o *Writer) put(p []byte, end bool) []byte {
	for len(p) > 0 {
		if p[0] == 0x1b && o.colours {
			n, more := colour(p)
			if more && !end {
				break
			}
			if n > 0 {
				o.buffer = append(o.buffer, p[:n]...)
				o.dirty = true
				p = p[n:]
				continue
			}
		}
		if !end && !utf8.FullRune(p) {
			break
		}
		r, size := utf8.DecodeRune(p)
		if r == '\n' || r == '\t' {
			o.buffer = append(o.buffer, byte(r))
		} else {
			o.buffer = appendRune(o.buffer, r, size, p[0])
		}
		p = p[size:]
	}
	return append(o.pending[:0], p...)
}

// colour returns the length of the sequence that sets attributes of text at the beginning of p, 0
// when there is none; more: that is not known yet.
func colour(p []byte) (n int, more bool) {
	if len(p) > 1 && p[1] != '[' {
		return 0, false
	}
	for i := 2; i < len(p); i++ {
		switch {
		case p[i] == 'm':
			return i + 1, false
		case i-2 >= maxColour, !strings.ContainsRune("0123456789;:", rune(p[i])):
			return 0, false
		}
	}
	return 0, true
}
