package guest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// testImage makes an erofs with one file.
func testImage(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/hello", []byte(strings.Repeat("hello\n", 10000)), 0o644); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command("mkfs.erofs", "--quiet", image, dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s (try: scripts/deps)", err, out)
	}
	return image
}

// backing is the file behind a loop device; empty: none.
func backing(device string) string {
	text, _ := os.ReadFile("/sys/block/" + filepath.Base(device) + "/loop/backing_file")
	return strings.TrimSpace(string(text))
}

// TestMountLoop: an image in a file is mounted by a loop device where the kernel cannot do without,
// and the device goes with the mount.
func TestMountLoop(t *testing.T) {
	image, target := testImage(t), t.TempDir()
	if err := mountLoop(image, target); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(target, unix.MNT_DETACH)
	if data, err := os.ReadFile(target + "/hello"); err != nil || len(data) != 60000 {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	if err := os.WriteFile(target+"/new", nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("a write: %v", err)
	}
	if found := loopsOf(t, image); len(found) != 1 {
		t.Errorf("loop devices: %q", found)
	}
	if err := unmount(target); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); len(loopsOf(t, image)) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the loop device is left")
		}
	}
}

func loopsOf(t *testing.T, image string) (found []string) {
	t.Helper()
	devices, err := filepath.Glob("/sys/block/loop*")
	if err != nil {
		t.Fatal(err)
	}
	for _, device := range devices {
		if backing(device) == image {
			found = append(found, device)
		}
	}
	return found
}
