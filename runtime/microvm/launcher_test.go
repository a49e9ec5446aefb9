package microvm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// TestClassHotPlug: what cannot plug disks is not called available, whether it is installed or not, and the reason is told.
func TestClassHotPlug(t *testing.T) {
	const reason = "cannot plug disks"
	for _, c := range []struct {
		driver, machine string
		want            string // empty: plugging is not to blame
	}{
		{"firecracker", "", "firecracker: it " + reason},
		{"libkrun", "", "libkrun: it " + reason},
		{"qemu", "microvm", ""},
		{"qemu", "", ""},
		{"qemu", "pc", ""},
		{"qemu", "q35", ""},
		{"cloud-hypervisor", "", ""},
	} {
		class := NewLauncher(Config{Driver: c.driver, Machine: c.machine, Accel: vmm.AccelKVM, SupervisorPath: "/none"}).Class()
		if class.Available || class.Name != ClassName {
			t.Errorf("%s %s: %+v", c.driver, c.machine, class)
		}
		if c.want != "" && !strings.Contains(class.Reason, c.want) || c.want == "" && strings.Contains(class.Reason, reason) {
			t.Errorf("%s %s: the reason is %q, want %q", c.driver, c.machine, class.Reason, c.want)
		}
	}
}

// TestForgetImages: the disk of an image is removed with the image's layers, not before.
func TestForgetImages(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	layers := t.TempDir()
	if err := os.MkdirAll(filepath.Join(layers, "a", "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	l := NewLauncher(Config{StateDir: t.TempDir()})
	disk, err := l.images.Image(t.Context(), runtime.Rootfs{Dir: layers, Layers: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{true, false} {
		if err := l.ForgetImages(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(disk.Path); (err == nil) != want {
			t.Errorf("the disk is there: %t, want %t (%v)", err == nil, want, err)
		}
		if err := os.RemoveAll(filepath.Join(layers, "a")); err != nil {
			t.Fatal(err)
		}
	}
}
