package microvm

import (
	"strings"
	"testing"

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
