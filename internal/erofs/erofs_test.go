package erofs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestSize: what mkfs.erofs makes is as large as it says.
func TestSize(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), bytes.Repeat([]byte("x"), 10000), 0o644); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command("mkfs.erofs", image, dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s (try: scripts/deps)", err, out)
	}
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if size, err := Size(bytes.NewReader(data)); err != nil || size != int64(len(data)) {
		t.Errorf("%d bytes, %v; want %d", size, err, len(data))
	}
	for name, c := range map[string]struct {
		data []byte
		want error
	}{
		"nothing": {nil, io.ErrUnexpectedEOF}, "a sector": {data[:512], io.ErrUnexpectedEOF}, "half a super block": {data[:1040], io.ErrUnexpectedEOF}, "zeros": {make([]byte, 4096), ErrNone},
	} {
		if _, err := Size(bytes.NewReader(c.data)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
