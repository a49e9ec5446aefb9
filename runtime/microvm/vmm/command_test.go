package vmm

import (
	"fmt"
	"maps"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"

	"github.com/magikrun/magikpod/internal/golden"
)

// full is a VM with everything that the driver can do.
func full(d Driver) *Config {
	c := &Config{
		Driver: d.Name(), Accel: AccelKVM, Kernel: "/img/vmlinux", Initrd: "/img/initrd.cpio", Cmdline: "extra=1", CPUs: 2, MemoryMiB: 512, Control: "/run/vm/control",
		Disks: []Disk{{Path: "/data/scratch", Serial: "scratch"}, {Path: "/data/image", Serial: "img-1", ReadOnly: true}}, NIC: &NIC{Tap: "mvm0", MAC: "02:00:00:00:00:01", MTU: 1400}, Console: true,
	}
	can := d.Can(c)
	c.Vsock = Vsock{Kind: can.Vsock[len(can.Vsock)-1], CID: 7, Path: "/run/vm/s/vsock"}
	c.Share = &Share{Tag: "share", Daemon: "/usr/libexec/virtiofsd", Socket: "/run/vm/share"}
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

// TestCommand: the arguments of each monitor and helper. Run go test ./runtime/microvm/vmm -update
// when it is meant to change, and read the difference. Only QEMU is also run with it where these
// tests were written.
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
			for _, name := range slices.Sorted(maps.Keys(command.Helpers)) {
				got += "\nhelper " + name + "\n" + show(command.Helpers[name])
			}
			golden.Check(t, filepath.Join("testdata", name+".txt"), got)
		})
	}
}

// TestCommandBad: what no monitor is started with.
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
			if _, err := d.Command(config); err == nil || !strings.HasPrefix(err.Error(), "cannot run a VM: ") || !strings.Contains(err.Error(), c.want) {
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
	c.Accel = AccelKVM // which reports it
	if _, err := (QEMU{}).Command(c); err != nil {
		t.Error(err)
	}
}

// TestHostTSC: the rate is steady, and no processor's counter is slower than 100 MHz or faster than
// 10 GHz.
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
	if _, err := Find("bochs"); err == nil || !strings.Contains(err.Error(), "qemu, cloud-hypervisor") {
		t.Errorf("an unknown driver: %v", err)
	}
}
