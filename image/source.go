package image

import (
	"context"
	"io"
)

// sourceReader remembers the error of what it reads from, to tell it from those of what reads it.
type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// asyncReader reads ahead in a goroutine, so that the end of the context ends a Read although the source (a pipe that somebody holds open)
// does not. The goroutine ends when the source's own Read returns; it touches nothing but the source.
type asyncReader struct {
	ctx    context.Context
	chunks chan chunk
	free   chan []byte
	rest   chunk
}

type chunk struct {
	buf  []byte // whole, to be given back
	data []byte
	err  error
}

func newAsyncReader(ctx context.Context, r io.Reader) *asyncReader {
	const chunks, size = 4, 256 << 10
	a := &asyncReader{ctx: ctx, chunks: make(chan chunk), free: make(chan []byte, chunks)}
	for range chunks {
		a.free <- make([]byte, size)
	}
	go a.fill(r)
	return a
}

func (a *asyncReader) fill(r io.Reader) {
	for {
		var buf []byte
		select {
		case buf = <-a.free:
		case <-a.ctx.Done():
			return
		}
		n, err := r.Read(buf)
		select {
		case a.chunks <- chunk{buf: buf, data: buf[:n], err: err}:
		case <-a.ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

func (a *asyncReader) Read(p []byte) (int, error) {
	for len(a.rest.data) == 0 {
		if a.rest.err != nil {
			return 0, a.rest.err
		}
		if a.rest.buf != nil {
			a.free <- a.rest.buf
			a.rest.buf = nil
		}
		select {
		case a.rest = <-a.chunks:
		case <-a.ctx.Done():
			return 0, context.Cause(a.ctx)
		}
	}
	n := copy(p, a.rest.data)
	a.rest.data = a.rest.data[n:]
	return n, nil
}
