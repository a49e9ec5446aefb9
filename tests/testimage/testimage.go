// Package testimage makes images for tests, as plain root tars for `magikpodctl image load`, with
// no registry.
//
// Layer: none. Nothing that is shipped imports this package.
package testimage

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// busyboxPath is where Debian's package busybox-static puts the program.
const busyboxPath = "/bin/busybox"

// Busybox writes a root file system with a static busybox, a link for each of its applets in /bin,
// users root and "app" (1000, supplementary group 2000 "extra"), and a world-writable /tmp. The
// same busybox gives the same bytes.
func Busybox(w io.Writer) error {
	program, err := os.ReadFile(busyboxPath)
	if err != nil {
		return fmt.Errorf("cannot make the busybox image (try: apt-get install busybox-static): %w", err)
	}
	list, err := exec.Command(busyboxPath, "--list").Output()
	if err != nil {
		return fmt.Errorf("cannot list the applets of busybox: %w", err)
	}
	t := tar.NewWriter(w)
	var errs []error
	add := func(name string, kind byte, mode int64, content, link string) {
		h := &tar.Header{Typeflag: kind, Name: name, Linkname: link, Mode: mode, Size: int64(len(content)), ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
		if err := t.WriteHeader(h); err != nil {
			errs = append(errs, err)
			return
		}
		_, err := io.WriteString(t, content)
		errs = append(errs, err)
	}
	for _, dir := range []string{"bin/", "etc/", "home/", "home/app/", "root/", "usr/", "usr/bin/", "var/"} {
		add(dir, tar.TypeDir, 0o755, "", "")
	}
	add("tmp/", tar.TypeDir, 0o1777, "", "")
	add("bin/busybox", tar.TypeReg, 0o755, string(program), "")
	for _, applet := range strings.Fields(string(list)) {
		if applet != "busybox" {
			add("bin/"+applet, tar.TypeSymlink, 0o777, "", "busybox")
		}
	}
	add("etc/passwd", tar.TypeReg, 0o644, "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n", "")
	add("etc/group", tar.TypeReg, 0o644, "root:x:0:\napp:x:1000:\nextra:x:2000:app\n", "")
	return errors.Join(append(errs, t.Close())...)
}

// BusyboxFile writes the busybox image to a file that goes with the test, and returns its path.
func BusyboxFile(tb testing.TB) string {
	tb.Helper()
	f, err := os.CreateTemp(tb.TempDir(), "busybox-*.tar")
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	if err := Busybox(f); err != nil {
		tb.Fatal(err)
	}
	return f.Name()
}
