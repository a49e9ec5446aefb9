package vm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/magikrun/magikpod/tests/host"
)

// vsockModules are what a Linux needs to be a guest that speaks AF_VSOCK, in the order of loading.
var vsockModules = []string{"vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"}

// TestVsock: AF_VSOCK within a VM, and to a VM in the VM, which is how a microVM would be reached.
func TestVsock(t *testing.T) {
	needed(t)
	image, err := BuildImage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	initrd := innerInitrd(t, image)
	m := boot(t, Options{Files: []File{{initrd, "/opt/initrd"}, {image.kernel(), "/opt/vmlinux"}}})

	t.Run("loopback", func(t *testing.T) {
		must(t, m, "modprobe", "vsock_loopback")
		must(t, m, "systemd-run", "--quiet", "--unit=echo", guestPath, "vsock-serve", "5000")
		if got := must(t, m, guestPath, "vsock-ask", "1", "5000", "to myself", "60s"); got != "to myself\n" {
			t.Errorf("the answer is %q", got)
		}
		if r, err := m.Run(t.Context(), guestPath, "vsock-ask", "1", "5001", "x", "1s"); err != nil || r.Code == 0 {
			t.Errorf("a port where nobody listens: %+v, %v", r, err)
		}
	})
	t.Run("nested VM", func(t *testing.T) { testNested(t, m) })
}

// innerInitrd is the initrd of the VM in the VM: the program guest is its only process.
func innerInitrd(t *testing.T, image Image) string {
	guest, err := buildGuest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "initrd"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := newCpio(f)
	c.mkdir("dev", 0o755)
	c.device("dev/console", 5, 1)
	c.add("init", guest)
	for n, name := range vsockModules {
		path := filepath.Join(dir, fmt.Sprintf("%d-%s.ko", n, name))
		if err := image.unpackModule(t.Context(), name, path); err != nil {
			t.Fatal(err)
		}
		c.add("modules/"+filepath.Base(path), path)
	}
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// testNested boots a VM in the VM: emulated CPUs can virtualise, and what QEMU does with KVM there
// it does on a real one.
func testNested(t *testing.T, m *VM) {
	if host.Accel() == "kvm" {
		if r, err := m.Run(t.Context(), "test", "-c", "/dev/kvm"); err != nil || r.Code != 0 {
			t.Skip("the host's KVM does not nest")
		}
	} else {
		must(t, m, "modprobe", "kvm_amd")
	}
	must(t, m, "modprobe", "vhost_vsock")
	must(t, m, "systemd-run", "--quiet", "--unit=inner", "--collect", "qemu-system-x86_64",
		"-M", "pc", "-accel", "kvm", "-cpu", "host", "-m", "256", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", "/opt/vmlinux", "-initrd", "/opt/initrd", "-append", "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable 8250.nr_uarts=1",
		"-serial", "stdio", "-device", "vhost-vsock-pci,guest-cid=42")
	out, err := m.Output(t.Context(), guestPath, "vsock-ask", "42", "1024", "to the inner VM", "150s")
	if err != nil {
		console, _ := m.Output(t.Context(), "journalctl", "--no-pager", "--unit=inner", "--lines=50")
		t.Fatalf("%v\nthe inner VM's console:\n%s", err, console)
	}
	if strings.TrimSpace(out) != "to the inner VM" {
		t.Errorf("the answer is %q", out)
	}
	must(t, m, "systemctl", "stop", "inner.service")
}
