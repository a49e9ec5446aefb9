package wire

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
)

func TestFrames(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	here, there := New(a), New(b)
	want := []Frame{{1, Start, []byte("{}")}, {1, Stdin, nil}, {1 << 31, Stdout, bytes.Repeat([]byte("x"), maxData)}, {2, Exit, []byte(`{"code":3}`)}}
	go func() {
		for _, f := range want {
			if err := there.Send(f); err != nil {
				t.Error(err)
			}
		}
		there.Stream(7, Stderr, strings.NewReader("text"))
		_ = b.Close()
	}()
	for _, w := range append(want, Frame{7, Stderr, []byte("text")}) {
		got, err := here.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if got.ID != w.ID || got.Kind != w.Kind || !bytes.Equal(got.Data, w.Data) {
			t.Errorf("got frame %d %c with %d bytes, want %d %c with %d", got.ID, got.Kind, len(got.Data), w.ID, w.Kind, len(w.Data))
		}
	}
	if _, err := here.Receive(); err != io.EOF {
		t.Errorf("after the end: %v, want io.EOF", err)
	}
}

func TestTooLong(t *testing.T) {
	var buf bytes.Buffer
	if err := New(&buf).Send(Frame{Data: make([]byte, maxData+1)}); err == nil || buf.Len() != 0 {
		t.Errorf("a frame that is too long was sent: %v", err)
	}
	buf.Write([]byte{0, 0, 0, 1, 'o', 0xff, 0xff, 0xff, 0xff})
	if _, err := New(&buf).Receive(); err == nil {
		t.Error("a frame that is too long was received")
	}
}
