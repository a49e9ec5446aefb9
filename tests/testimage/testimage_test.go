package testimage_test

import (
	"bytes"
	"os"
	"os/exec"
	"testing"

	"github.com/magikrun/magikpod/tests/testimage"
)

// TestBusyboxRuns: the root is whole enough to run a shell and an applet in it.
func TestBusyboxRuns(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("chroot needs root (try: sudo -E go test)")
	}
	root := t.TempDir()
	unpack := exec.Command("tar", "--extract", "--directory", root, "--file", testimage.BusyboxFile(t))
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	out, err := exec.Command("chroot", root, "/bin/sh", "-c", "id -un app | tr a-z A-Z; id -G app; stat -c %a /tmp").CombinedOutput()
	if want := "APP\n1000 2000\n1777\n"; err != nil || string(out) != want {
		t.Errorf("got %q, %v; want %q", out, err, want)
	}
}

func TestBusyboxIsReproducible(t *testing.T) {
	var a, b bytes.Buffer
	if err := testimage.Busybox(&a); err != nil {
		t.Fatal(err)
	}
	if err := testimage.Busybox(&b); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two images of the same busybox differ")
	}
}
