package vmm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
)

// QEMU is the driver of qemu-system-x86_64 and qemu-system-aarch64.
type QEMU struct{}

// Where the kernel and the initrd are in a monitor's jail.
const (
	jailKernel = "/vm/kernel"
	jailInitrd = "/vm/initrd"
)

// Name is qemu.
func (QEMU) Name() string { return "qemu" }

// attachSlots is how many root ports a machine type with PCI Express has for disks.
const attachSlots = 20

// translatedMiB is how much translated code an emulated VM keeps at most.
const translatedMiB = "256"

// express says whether the VM's bus is PCI Express, where each disk that is attached later needs a
// root port of its own.
func express(machine string) bool { return machine == "q35" || machine == "microvm" }

// Can says what QEMU can do. The machine pc has 32 slots on its bus, a few of which are taken.
func (QEMU) Can(c *Config) Abilities {
	a := Abilities{MaxDisks: 24, Vsock: []VsockKind{VsockVhost, VsockHybrid}}
	if express(c.Machine) {
		a.MaxDisks = attachSlots
	}
	return a
}

// Check looks for the program and the devices.
func (q QEMU) Check(c *Config) error {
	switch cmp.Or(c.Machine, "pc") {
	case "pc", "q35", "microvm":
	default:
		return fmt.Errorf("QEMU's machine %q is not known here (pc, q35 and microvm are)", c.Machine)
	}
	if err := checkProgram(q.program(c), "qemu-system-x86"); err != nil {
		return err
	}
	if q.needsTSC(c) && c.TSCKHz == 0 {
		return errNoTSC
	}
	if c.Accel == AccelKVM {
		if err := checkKVM(); err != nil {
			return err
		}
	}
	if c.Vsock.Kind == VsockHybrid {
		return checkProgram(vsockDeviceProgram, "vhost-device-vsock")
	}
	return checkDevice("/dev/vhost-vsock", "modprobe vhost_vsock")
}

// needsTSC: an emulated microvm has no clock against which its CPU could be calibrated.
func (QEMU) needsTSC(c *Config) bool { return c.Machine == "microvm" && c.Accel == AccelTCG }

var errNoTSC = errors.New("QEMU's machine microvm needs the rate of the time stamp counter when it is emulated, and this host has none")

func (QEMU) program(c *Config) string { return cmp.Or(c.Program, "/usr/bin/qemu-system-x86_64") }

// Command builds QEMU's arguments. Whatever it can be handed open it gets as a descriptor: its jail
// has the distribution's files and the guest's kernel.
func (q QEMU) Command(c *Config) (*Command, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	if q.needsTSC(c) && c.TSCKHz == 0 {
		return nil, fmt.Errorf("cannot run a VM: %w", errNoTSC)
	}
	cmd := &Command{
		Argv: []string{q.program(c), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-name", "magikpod"},
		Env:  []string{"PATH=/usr/bin", "LC_ALL=C"},
		Mounts: append(distribution[:len(distribution):len(distribution)], Mount{Source: "/etc/qemu", Optional: true}, Mount{Source: c.Kernel, Target: jailKernel},
			Mount{Source: c.Initrd, Target: jailInitrd}),
		Helpers: map[string]*Command{},
	}
	add := func(args ...string) { cmd.Argv = append(cmd.Argv, args...) }
	add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	q.machine(c, cmd, add)
	add("-kernel", jailKernel, "-initrd", jailInitrd, "-append", q.cmdline(c))
	add("-chardev", fmt.Sprintf("socket,id=control,server=on,wait=off,fd=%d", cmd.fd(FDListen, c.Control, false)), "-mon", "chardev=control,mode=control")
	if c.Console {
		add("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console")
	}
	add("-device", "virtio-rng-pci")
	for i, d := range c.Disks {
		set := i + 1
		mode := "off"
		if d.ReadOnly {
			mode = "on"
		}
		add("-add-fd", fmt.Sprintf("fd=%d,set=%d", cmd.fd(FDFile, d.Path, d.ReadOnly), set),
			"-blockdev", fmt.Sprintf("driver=raw,node-name=%s,read-only=%s,file.driver=file,file.filename=/dev/fdset/%d,file.locking=off", nodeName(d.Serial), mode, set),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s,id=%s", nodeName(d.Serial), d.Serial, deviceID(d.Serial)))
	}
	if n := c.NIC; n != nil {
		// romfile: nobody boots from it.
		add("-netdev", fmt.Sprintf("tap,id=net0,fd=%d", cmd.fd(FDTap, n.Tap, false)), "-device", fmt.Sprintf("virtio-net-pci,netdev=net0,mac=%s,romfile=", n.MAC))
	}
	q.vsock(c, cmd, add)
	if s := c.Share; s != nil {
		add("-chardev", fmt.Sprintf("socket,id=share,fd=%d", cmd.fd(FDConnect, s.Socket, false)), "-device", "vhost-user-fs-pci,chardev=share,tag="+s.Tag)
		cmd.Helpers["share"] = virtiofsd(s)
	}
	return cmd, nil
}

func (q QEMU) machine(c *Config, cmd *Command, add func(...string)) {
	machine := cmp.Or(c.Machine, "pc")
	switch machine {
	case "pc":
		machine += ",usb=off,vmport=off"
	case "q35":
		machine += ",usb=off,vmport=off,sata=off,smbus=off"
	case "microvm":
		// The bus, which this machine lacks of its own accord, is for the disks that are attached
		// later. A kernel that finds no PC does not set up the old interrupt controller, which then
		// delivers the first tick of the old timer as a division by zero: there are neither. The
		// firmware of its own accord is SeaBIOS, which puts the ACPI tables where the initrd comes
		// to lie; qboot puts them elsewhere.
		machine += ",acpi=on,rtc=on,pit=off,pic=off,pcie=on,isa-serial=" + onOff(c.Console)
		add("-bios", "qboot.rom")
	}
	// A vhost-user device, another process, works in the guest's memory.
	if c.Vsock.Kind == VsockHybrid || c.Share != nil {
		machine += ",memory-backend=memory"
		add("-object", fmt.Sprintf("memory-backend-memfd,id=memory,size=%dM,share=on", c.MemoryMiB))
	}
	add("-M", machine)
	if c.Accel == AccelKVM {
		cmd.Mounts = append(cmd.Mounts, Mount{Source: "/dev/kvm", Writable: true})
		add("-accel", "kvm", "-cpu", "host")
	} else {
		// Of its own accord it would keep up to 1 GiB of translated code, which is beyond what the
		// slice has for it.
		add("-accel", "tcg,thread=multi,tb-size="+translatedMiB, "-cpu", "max")
	}
	add("-smp", fmt.Sprint(c.CPUs), "-m", fmt.Sprint(c.MemoryMiB))
	if express(c.Machine) {
		for i := range attachSlots {
			add("-device", fmt.Sprintf("pcie-root-port,id=slot%d,chassis=%d,bus=pcie.0,addr=%#x.%d,multifunction=on", i, i+1, 0x10+i/8, i%8))
		}
	}
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func (q QEMU) cmdline(c *Config) string {
	line := Cmdline
	if c.Console {
		line = "console=ttyS0 " + line
	}
	if c.Machine == "microvm" {
		line += " " + microvmCmdline
	}
	if q.needsTSC(c) {
		line += fmt.Sprintf(" tsc_early_khz=%d", c.TSCKHz)
	}
	return strings.TrimSpace(line + " " + c.Cmdline)
}

// microvmCmdline: without it the kernel leaves the root ports alone, since this machine's firmware
// has no table (MCFG) that describes the bus's configuration space early enough for the kernel to
// ask for them (_OSC).
const microvmCmdline = "pcie_ports=native"

// nodeName and deviceID are a disk's names in QEMU.
func nodeName(serial string) string { return "node-" + serial }
func deviceID(serial string) string { return "disk-" + serial }

// Control connects to QEMU's monitor.
func (q QEMU) Control(ctx context.Context, c *Config) (Control, error) {
	m, err := dialQMP(ctx, c.Control)
	if err != nil {
		return nil, err
	}
	return &qemuControl{monitor: m, machine: c.Machine}, nil
}

type qemuControl struct {
	monitor *qmp
	machine string
}

// Close ends the connection, not the VM.
func (c *qemuControl) Close() error { return c.monitor.close() }

// AttachDisk hands QEMU the descriptor and adds a virtio-blk device.
func (c *qemuControl) AttachDisk(ctx context.Context, d Disk, file *os.File) (Place, error) {
	if !serialForm.MatchString(d.Serial) {
		return Place{}, fmt.Errorf("cannot attach a disk: its serial number is %q", d.Serial)
	}
	if err := c.attach(ctx, d, file); err != nil {
		return Place{}, fmt.Errorf("cannot attach disk %s: %w", d.Serial, err)
	}
	return Place{Disk: d.Serial}, nil
}
