package vmm

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/magikrun/magikpod/internal/golden"
)

// full is a machine with everything that the driver can do.
func full(d Driver) *Config {
	c := &Config{
		Driver: d.Name(), Accel: AccelKVM, Kernel: "/img/vmlinux", Initrd: "/img/initrd.cpio", Cmdline: "extra=1", CPUs: 2, MemoryMiB: 512, Control: "/run/vm/control",
		Disks: []Disk{{Path: "/data/scratch", Serial: "scratch"}, {Path: "/data/image", Serial: "img-1", ReadOnly: true}}, NIC: &NIC{Tap: "mvm0", MAC: "02:00:00:00:00:01", MTU: 1400}, Console: true,
	}
	can := d.Can(c)
	c.Vsock = Vsock{Kind: can.Vsock[len(can.Vsock)-1], CID: 7, Path: "/run/vm/s/vsock"}
	if can.Share {
		c.Share = &Share{Tag: "share", Daemon: "/usr/libexec/virtiofsd", Socket: "/run/vm/share"}
	}
	return c
}

// show writes a command as text.
func show(c *Command) string {
	var b strings.Builder
	for i, arg := range c.Argv {
		if i > 0 && strings.HasPrefix(arg, "-") {
			b.WriteString("\n ")
		}
		b.WriteString(" " + arg)
	}
	fmt.Fprintf(&b, "\nenv %q root=%t\n", c.Env, c.Root)
	if len(c.Dirs) > 0 {
		fmt.Fprintf(&b, "dirs=%q\n", c.Dirs)
	}
	for i, fd := range c.FDs {
		fmt.Fprintf(&b, "fd %d %s %s readonly=%t\n", i+3, fd.Kind, fd.Path, fd.ReadOnly)
	}
	for _, m := range c.Mounts {
		fmt.Fprintf(&b, "mount %s %s writable=%t optional=%t\n", m.Source, m.Target, m.Writable, m.Optional)
	}
	for _, path := range slices.Sorted(maps.Keys(c.Files)) {
		fmt.Fprintf(&b, "file %s %s\n", path, c.Files[path])
	}
	return b.String()
}

// TestCommand: what each monitor and helper is told. Run go test ./runtime/microvm/vmm -update when it is meant to change, and read the difference. Only QEMU is
// also run with it where these tests were written.
func TestCommand(t *testing.T) {
	configs := map[string]*Config{}
	for _, d := range Drivers() {
		configs[d.Name()] = full(d)
	}
	small := func(machine string) *Config {
		return &Config{
			Driver: "qemu", Machine: machine, Accel: AccelTCG, Kernel: "/k", Initrd: "/i", CPUs: 1, MemoryMiB: 128, Control: "/c", Vsock: Vsock{Kind: VsockVhost, CID: 3},
		}
	}
	configs["qemu-q35"], configs["qemu-microvm"], configs["qemu-small"] = small("q35"), small("microvm"), small("")
	configs["qemu-microvm"].TSCKHz = 2_600_000
	for name, c := range configs {
		t.Run(name, func(t *testing.T) {
			d, err := Find(c.Driver)
			if err != nil {
				t.Fatal(err)
			}
			command, err := d.Command(c)
			if err != nil {
				t.Fatal(err)
			}
			got := show(command)
			helpers := Helpers(c)
			for _, name := range slices.Sorted(maps.Keys(helpers)) {
				got += "\nhelper " + name + "\n" + show(helpers[name])
			}
			golden.Check(t, filepath.Join("testdata", name+".txt"), got)
		})
	}
}

// TestCommandBad: what no monitor is told.
func TestCommandBad(t *testing.T) {
	for _, d := range Drivers() {
		for name, c := range map[string]struct {
			change func(c *Config)
			want   string
		}{
			"comma":    {func(c *Config) { c.Disks[0].Path = "/data/a,readonly=off" }, "comma"},
			"relative": {func(c *Config) { c.Kernel = "vmlinux" }, "not absolute"},
			"serial":   {func(c *Config) { c.Disks[0].Serial = "a,b" }, "serial number"},
			"long":     {func(c *Config) { c.Disks[0].Serial = strings.Repeat("a", 21) }, "serial number"},
			"cid":      {func(c *Config) { c.Vsock.CID = 2 }, "reserved"},
			"accel":    {func(c *Config) { c.Accel = "" }, "accelerator"},
			"memory":   {func(c *Config) { c.MemoryMiB = 0 }, "too little"},
			"kernel":   {func(c *Config) { c.Kernel = "" }, "are needed"},
		} {
			config := full(d)
			c.change(config)
			if _, err := d.Command(config); err == nil || !strings.HasPrefix(err.Error(), "cannot run a machine: ") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s, %s: %v; want an error with %q", d.Name(), name, err, c.want)
			}
		}
	}
}

// TestEmulatedMicrovm: without the rate of the counter the kernel in it would hang.
func TestEmulatedMicrovm(t *testing.T) {
	c := full(QEMU{})
	c.Machine, c.Accel, c.Share, c.Program = "microvm", AccelTCG, nil, "/bin/true"
	if err := (QEMU{}).Check(c); err == nil || !strings.Contains(err.Error(), "time stamp counter") {
		t.Errorf("check: %v", err)
	}
	if _, err := (QEMU{}).Command(c); err == nil || !strings.Contains(err.Error(), "time stamp counter") {
		t.Errorf("command: %v", err)
	}
	c.Accel = AccelKVM // which tells it
	if _, err := (QEMU{}).Command(c); err != nil {
		t.Error(err)
	}
}

// TestHostTSC: the rate is steady, and no processor's counter is slower than 100 MHz or faster than 10 GHz.
func TestHostTSC(t *testing.T) {
	if goruntime.GOARCH != "amd64" {
		t.Skip("only x86 has the counter")
	}
	if khz := HostTSC(); khz < 100_000 || khz > 10_000_000 {
		t.Errorf("%d kHz", khz)
	}
}

// TestCheck: the reason why a driver cannot be used names what is missing.
func TestCheck(t *testing.T) {
	for _, d := range Drivers() {
		c := full(d)
		c.Share = nil
		c.Program = "/none/program"
		if err := d.Check(c); err == nil || !strings.Contains(err.Error(), "/none/program is not installed") {
			t.Errorf("%s: %v", d.Name(), err)
		}
		if d.Name() == "qemu" {
			continue
		}
		c.Program, c.Accel = "/bin/true", AccelTCG
		if err := d.Check(c); err == nil || !strings.Contains(err.Error(), "KVM") {
			t.Errorf("%s without KVM: %v", d.Name(), err)
		}
	}
	for driver, want := range map[Driver]string{Firecracker{}: "firecracker has no virtiofs"} {
		c := full(driver)
		c.Share = &Share{Tag: "host"}
		if err := driver.Check(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s with a share: %v", driver.Name(), err)
		}
	}
	if _, err := Find("bochs"); err == nil || !strings.Contains(err.Error(), "qemu, cloud-hypervisor, firecracker") {
		t.Errorf("an unknown driver: %v", err)
	}
}

// TestCheckKernel: a guest's kernel that would not find the monitor's devices is refused, one of which nothing is known is not.
func TestCheckKernel(t *testing.T) {
	boot := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(boot, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const debian = "CONFIG_ACPI=y\nCONFIG_VIRTIO_MMIO=m\n# CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES is not set\nCONFIG_VIRTIO_FS=y\n"
	const all = "CONFIG_VIRTIO_MMIO=y\nCONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y\nCONFIG_VIRTIO_FS=m\n"
	krun := []kernelOption{{name: "VIRTIO_MMIO"}, {name: "VIRTIO_MMIO_CMDLINE_DEVICES"}, {"VIRTIO_FS", true}}
	for name, c := range map[string]struct {
		config string
		needed []kernelOption
		want   string // empty: it passes
	}{
		"acpi":       {debian, []kernelOption{{name: "ACPI"}, {"VIRTIO_MMIO", true}}, ""},
		"as module":  {debian, krun, "CONFIG_VIRTIO_MMIO=y, and " + boot + "/vmlinuz-as module has it as a module"},
		"no devices": {strings.Replace(debian, "MMIO=m", "MMIO=y", 1), krun, "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES, and " + boot + "/vmlinuz-no devices has been built without it"},
		"everything": {all, krun, ""},
		"no acpi":    {all, []kernelOption{{name: "ACPI"}}, "CONFIG_ACPI, and"},
	} {
		write("config-"+name, c.config)
		err := checkKernel("it", write("vmlinuz-"+name, ""), c.needed...)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for _, path := range []string{write("vmlinuz-unknown", ""), write("vmlinux", ""), ""} {
		if err := checkKernel("it", path, krun...); err != nil {
			t.Errorf("%q: %v", path, err)
		}
	}
	// The drivers ask for it.
	write("config-debian", debian)
	c := full(Firecracker{})
	c.Program, c.Kernel, c.Accel = "/bin/true", write("vmlinuz-debian", ""), AccelTCG
	if err := (Firecracker{}).Check(c); err == nil || !strings.Contains(err.Error(), "KVM") {
		t.Errorf("firecracker and Debian's kernel: %v", err)
	}
	write("config-debian", "CONFIG_ACPI=y\n")
	if err := (Firecracker{}).Check(c); err == nil || !strings.Contains(err.Error(), "CONFIG_VIRTIO_MMIO") {
		t.Errorf("firecracker and a kernel without virtio_mmio: %v", err)
	}
}

// TestGuestSerial: Firecracker makes serial numbers of inode numbers.
func TestGuestSerial(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	for _, d := range Drivers() {
		want := "scratch"
		if d.Name() == "firecracker" {
			want = fmt.Sprint(st.Dev) + fmt.Sprint(st.Rdev) + fmt.Sprint(st.Ino)
			want = want[:min(len(want), 20)]
		}
		if got, err := GuestSerial(&Config{Driver: d.Name()}, Disk{Path: path, Serial: "scratch"}); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", d.Name(), got, err, want)
		}
	}
	if _, err := GuestSerial(&Config{Driver: "firecracker"}, Disk{Path: path + "-", Serial: "x"}); err == nil {
		t.Error("a file that is not there has a serial number")
	}
}
