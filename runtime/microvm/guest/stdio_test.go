package guest

import (
	"bytes"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// refilled is a host that takes output, of a process that has as much again for each frame.
type refilled struct {
	io.Reader
	taken  bytes.Buffer
	writer *os.File
	limit  int
}

func (r *refilled) Write(data []byte) (int, error) {
	r.taken.Write(data)
	if r.taken.Len() > r.limit {
		return 0, io.ErrShortWrite
	}
	_, err := r.writer.Write(data[5:]) // without the frame's head
	return len(data), err
}

// TestStopOutput: of a process that has ended all output is read that its pipe has, but not what
// others write there without end.
func TestStopOutput(t *testing.T) {
	for _, size := range []int{1 << 16, 1 << 20} {
		writer, reader, err := pipe(0)
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close()
		defer writer.Close()
		if _, err := unix.FcntlInt(writer.Fd(), unix.F_SETPIPE_SZ, size); err != nil {
			t.Fatal(err)
		}
		own := bytes.Repeat([]byte("x"), size)
		if _, err := writer.Write(own); err != nil {
			t.Fatal(err)
		}
		s := &stdio{outputs: [2]*os.File{reader}}
		s.stopOutput()
		host := &refilled{writer: writer, limit: 4 << 20}
		s.copyOutput(wire.NewConn(host))
		if taken := bytes.Count(host.taken.Bytes(), []byte("x")); taken < size || host.taken.Len() > size+size/wire.Chunk*8 {
			t.Errorf("of %d bytes %d were taken, and %d in all", size, taken, host.taken.Len())
		}
	}
}
