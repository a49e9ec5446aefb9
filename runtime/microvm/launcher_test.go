package microvm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/microvm/guestimage"
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
		{"qemu", "microvm", "qemu, machine microvm: it " + reason},
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

// TestForgetGuests: what machines booted from goes when they are to boot from something else.
func TestForgetGuests(t *testing.T) {
	state := t.TempDir()
	old := filepath.Join(state, "guests", "0123456789")
	past := time.Now().Add(-time.Hour)
	if err := errors.Join(os.MkdirAll(old, 0o755), os.Chtimes(old, past, past)); err != nil {
		t.Fatal(err)
	}
	modules := filepath.Join(state, "modules")
	if err := errors.Join(os.Mkdir(modules, 0o755), os.WriteFile(filepath.Join(modules, "modules.dep"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	l := NewLauncher(Config{StateDir: state, SupervisorPath: "/none"})
	for _, available := range []bool{false, true} {
		l.class.Available = available // without a kernel nobody knows what to keep
		l.parts = guestimage.Parts{Kernel: "/proc/self/exe", Modules: modules, Init: "/proc/self/exe"}
		if err := l.ForgetImages(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(old); (err == nil) == available {
			t.Errorf("the class is available: %t; the old image is there: %t", available, err == nil)
		}
	}
}
