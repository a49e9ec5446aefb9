package guest

import (
	"context"
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

// TestMountLoop: an image in a file is mounted by a loop device where the kernel cannot do without, and the device goes with the mount.
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

// TestAwaitSize: a disk whose size comes after its content, as with Firecracker, is waited for. A loop device stands for it.
func TestAwaitSize(t *testing.T) {
	image, path := testImage(t), filepath.Join(t.TempDir(), "disk")
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, make([]byte, 512), 0o644); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	device, err := attachLoop(file)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	ready := make(chan error, 1)
	go func() { ready <- awaitSize(t.Context(), device.Name()) }()
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ready:
		t.Fatalf("a disk of a sector is good enough: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := unix.IoctlSetInt(int(device.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		t.Fatal(err)
	}
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(len(data)/2)&^511); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetInt(int(device.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := awaitSize(ctx, device.Name()); err == nil || !strings.Contains(err.Error(), "its erofs") {
		t.Errorf("half of an image: %v", err)
	}
	if err := awaitSize(t.Context(), "/dev/zero"); err != nil {
		t.Errorf("no erofs: %v", err)
	}
}
