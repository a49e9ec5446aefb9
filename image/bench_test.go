package image

import (
	"bytes"
	"context"
	"fmt"
	"testing"
)

// Resolve is asked for every container that starts.
func BenchmarkResolve(b *testing.B) {
	s := newStore(b)
	load(b, s, tarOf(b, file{name: "f"}), "x")
	for i := range 200 {
		if err := s.Tag("x", fmt.Sprintf("x:%d", i)); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, err := s.Resolve("x:100"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLoad loads and removes busybox, and waits for the disk as the daemon does.
func BenchmarkLoad(b *testing.B) {
	needRoot(b)
	archive := busybox(b)
	s, err := Open(b.TempDir(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	b.SetBytes(int64(len(archive)))
	for b.Loop() {
		if _, err := s.Load(context.Background(), bytes.NewReader(archive), LoadOptions{Tag: "x"}); err != nil {
			b.Fatal(err)
		}
		if err := s.Remove(context.Background(), "x", nil); err != nil {
			b.Fatal(err)
		}
	}
}
