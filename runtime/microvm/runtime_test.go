package microvm

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/magikrun/magikpod/netsetup"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/microvm/disks"
	"github.com/magikrun/magikpod/runtime/microvm/guestimage"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// TestClassDrivers: the class says of each driver what keeps it from being used.
func TestClassDrivers(t *testing.T) {
	for _, c := range []struct{ driver, machine, want string }{
		{"qemu", "microvm", "qemu: /none/vmm is not installed"},
		{"qemu", "", "qemu: /none/vmm is not installed"},
		{"qemu", "q35", "qemu: /none/vmm is not installed"},
		{"cloud-hypervisor", "", "cloud-hypervisor: /none/vmm is not installed"},
	} {
		class := New(Config{Driver: c.driver, Machine: c.machine, Program: "/none/vmm", Accel: vmm.AccelKVM, SupervisorPath: "/none"}).Class()
		if class.Available || class.Name != pod.ClassMicroVM || strings.Count(class.Reason, c.want) != 1 {
			t.Errorf("%s %s: %+v, want %q once", c.driver, c.machine, class, c.want)
		}
	}
	class := New(Config{Program: "/none/vmm", SupervisorPath: "/none"}).Class()
	for _, driver := range vmm.Drivers() {
		if want := driver.Name() + ": /none/vmm is not installed"; !strings.Contains(class.Reason, want) {
			t.Errorf("%q is not in %q", want, class.Reason)
		}
	}
	l := New(Config{Program: "/bin/true", Accel: vmm.AccelTCG})
	if l.driver == nil {
		t.Skipf("QEMU's vsock cannot be used here: %s (try: scripts/deps)", l.Class().Reason)
	}
	if text, want := l.description(), "; cloud-hypervisor: cloud-hypervisor emulates no CPU: it needs KVM"; !strings.HasPrefix(text, "qemu, tcg, ") || !strings.Contains(text, want) {
		t.Errorf("%q, want it to say %q", text, want)
	}
}

// TestClassNamesWhatIsMissing: a class that could make no VM is not called available, and a start
// says what has been removed meanwhile.
func TestClassNamesWhatIsMissing(t *testing.T) {
	config := Config{ShimPath: "/bin/true", SupervisorPath: "/bin/true", AgentPath: "/bin/true", Runtime: "/bin/true"}
	for _, c := range []struct {
		lack func()
		want string
	}{
		{func() { disks.Mke2fs = "/none/mke2fs" }, "/none/mke2fs is not installed (package e2fsprogs)"},
		{func() { disks.Mke2fs = "/etc/passwd" }, "/etc/passwd is not installed (package e2fsprogs)"},
		{func() { config.ShimPath = "/none/agent" }, "/none/agent is not installed (package magikpod)"},
		{func() { config.SupervisorPath = "/none/vmm" }, "/none/vmm is not installed (package magikpod)"},
		{func() { config.AgentPath = "/bin" }, "/bin is not installed (package magikpod)"},
		{func() { config.Runtime = "/none/crun" }, "/none/crun is not installed (package crun)"},
	} {
		mke2fs, all := disks.Mke2fs, config
		c.lack()
		l := New(config)
		if class := l.Class(); class.Available || !strings.Contains(class.Reason, c.want) {
			t.Errorf("got %+v, want %q", class, c.want)
		}
		_, err := l.PrepareSandbox(t.Context(), runtime.Sandbox{RunDir: "/none", StateDir: "/none"}, runtime.SandboxConfig{Network: runtime.Network{NetNS: os.Stdin}})
		if pod.KindOf(err) != pod.Unsupported || !strings.Contains(err.Error(), c.want) {
			t.Errorf("a start: %v, want %q", err, c.want)
		}
		disks.Mke2fs, config = mke2fs, all
	}
	config.ShimPath, disks.Mke2fs = "/none/agent", "/none/mke2fs"
	defer func() { disks.Mke2fs = "/usr/sbin/mke2fs" }()
	if text := New(config).Class().Reason; !strings.Contains(text, "/none/agent") || !strings.Contains(text, "/none/mke2fs") {
		t.Errorf("%q does not name all that is missing", text)
	}
}

// TestConfigure: the agent gets the names of the VM's disk and, if there is one, of its share.
func TestConfigure(t *testing.T) {
	for _, share := range []string{"", shareTag} {
		r := &record{}
		var shares []string
		if share != "" {
			r.VMM.VM.Share = &vmm.Share{Tag: share}
			shares = []string{share}
		}
		if c := r.configure(netsetup.PodLink{}); c.Scratch != scratchSerial || !slices.Equal(c.Shares, shares) {
			t.Errorf("%+v; want the disk %s and the shares %q", c, scratchSerial, shares)
		}
	}
}

// TestFull: images count that are disks, and the scratch disk.
func TestFull(t *testing.T) {
	for _, c := range []struct {
		driver vmm.Driver
		disks  int
		want   bool
	}{{vmm.QEMU{}, 22, false}, {vmm.QEMU{}, 23, true}, {vmm.CloudHypervisor{}, 22, false}, {vmm.CloudHypervisor{}, 23, true}} {
		m := &vm{record: &record{}, disks: map[string]vmm.Place{"shared": {Share: shareTag, File: "x"}}}
		m.record.VMM.VM = vmm.Config{Driver: c.driver.Name(), Disks: []vmm.Disk{{Serial: scratchSerial}}}
		for i := range c.disks {
			m.disks[strconv.Itoa(i)] = vmm.Place{Disk: strconv.Itoa(i)}
		}
		if got := m.full(); got != c.want {
			t.Errorf("%s with %d images: %t", c.driver.Name(), c.disks, got)
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
	l := New(Config{StateDir: t.TempDir()})
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

// TestForgetGuests: what VMs booted from goes when they are to boot from something else.
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
	l := New(Config{StateDir: state, SupervisorPath: "/none"})
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
