package image

import (
	"context"
	"io"
)

// readCloser reads from one thing and closes another.
type readCloser struct {
	io.Reader
	io.Closer
}

// sourceReader remembers the error of what it reads from, to know it from those of what reads it.
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

// asyncReader reads r in a goroutine, so that the end of the context ends a Read although the
// source (a pipe that somebody keeps open) does not. The goroutine ends when the source's own Read
// returns; it touches nothing but the source.
func asyncReader(ctx context.Context, r io.Reader) io.Reader {
	out, in := io.Pipe()
	stop := context.AfterFunc(ctx, func() { in.CloseWithError(context.Cause(ctx)) })
	go func() {
		defer stop()
		_, err := io.CopyBuffer(onlyWriter{in}, onlyReader{r}, make([]byte, 256<<10))
		in.CloseWithError(err)
	}()
	return out
}

// onlyReader and onlyWriter hide the other methods of a file, so that io.Copy reads and writes in
// large pieces.
type onlyReader struct{ io.Reader }

type onlyWriter struct{ io.Writer }
