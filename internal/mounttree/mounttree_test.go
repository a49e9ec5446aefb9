package mounttree

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMountPoint: what a guest may have put into the directory that it shares is neither followed
// nor opened.
func TestMountPoint(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, "shared", name) }
	if err := os.MkdirAll(at("dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(dir, "outside")
	for name, err := range map[string]error{
		"fifo": unix.Mkfifo(at("fifo"), 0o600), "link": os.Symlink(outside, at("link")), "link to dir": os.Symlink(dir, at("link to dir")), "file": os.WriteFile(at("file"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(name, err)
		}
	}
	for name, kind := range map[string]uint32{"fifo": unix.S_IFREG, "link": unix.S_IFREG, "link to dir": unix.S_IFDIR, "file": unix.S_IFDIR, "dir": unix.S_IFREG} {
		if fd, err := mountPoint(at(name), kind); err == nil || !strings.Contains(err.Error(), "something else") {
			t.Errorf("%s: %d, %v", name, fd, err)
		}
	}
	if _, err := os.Lstat(outside); err == nil {
		t.Error("a file was made at the end of a link")
	}
	for name, kind := range map[string]uint32{"file": unix.S_IFREG, "dir": unix.S_IFDIR, "new file": unix.S_IFREG, "new dir": unix.S_IFDIR, "device": unix.S_IFCHR} {
		fd, err := mountPoint(at(name), kind)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		unix.Close(fd)
		if fi, err := os.Lstat(at(name)); err != nil || fi.IsDir() != (kind == unix.S_IFDIR) {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
	}
}
