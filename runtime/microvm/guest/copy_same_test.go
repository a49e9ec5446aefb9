package guest

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// A copy that changes nothing leaves files what they are: a container may be about to mount one of
// them. One that differs in anything is replaced.
func TestUnpackSame(t *testing.T) {
	dir := t.TempDir()
	unpackFile := func(content string, mode int64) os.FileInfo {
		t.Helper()
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		header := &tar.Header{Typeflag: tar.TypeReg, Name: "file", Mode: mode, Size: int64(len(content)), Uid: os.Getuid(), Gid: os.Getgid()}
		if err := w.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := unpack(dir, &b); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(dir, "file"))
		if err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(data) != content || info.Mode().Perm() != os.FileMode(mode) {
			t.Fatalf("%q, %v, mode %v", data, err, info.Mode())
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Fatalf("%v, %v", entries, err)
		}
		return info
	}
	first := unpackFile("one", 0o644)
	if again := unpackFile("one", 0o644); !os.SameFile(first, again) {
		t.Error("the same content made another file")
	}
	mode := unpackFile("one", 0o600)
	if os.SameFile(first, mode) {
		t.Error("another mode made no other file")
	}
	if content := unpackFile("two", 0o600); os.SameFile(mode, content) {
		t.Error("another content made no other file")
	}
}
