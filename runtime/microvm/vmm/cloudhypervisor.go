package vmm

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// CloudHypervisor is the driver of cloud-hypervisor. It is held to the conformance tests where it is installed; elsewhere only what it is told is tested.
type CloudHypervisor struct{}

// Name is cloud-hypervisor.
func (CloudHypervisor) Name() string { return "cloud-hypervisor" }

// Can says what cloud-hypervisor can do: its only bus has 32 slots.
func (CloudHypervisor) Can(*Config) Abilities {
	return Abilities{MaxDisks: 24, PlugDir: plugDir, Share: true, Vsock: []VsockKind{VsockHybrid}}
}

func (CloudHypervisor) program(c *Config) string {
	return cmp.Or(c.Program, "/usr/bin/cloud-hypervisor")
}

// Check looks for the program and KVM.
func (v CloudHypervisor) Check(c *Config) error {
	if err := checkProgram(v.program(c), "cloud-hypervisor"); err != nil {
		return err
	}
	return checkKVMOnly(v.Name(), c)
}

// checkKVMOnly is for the monitors that emulate no CPU.
func checkKVMOnly(name string, c *Config) error {
	if c.Accel != AccelKVM {
		return fmt.Errorf("%s emulates no CPU: it needs KVM, and the configuration says %q", name, c.Accel)
	}
	return checkKVM()
}

// Command builds the arguments. Its vsock socket is made by itself, in a directory that it may write to.
func (v CloudHypervisor) Command(c *Config) (*Command, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	cmd := &Command{
		Env: []string{"PATH=/usr/bin"},
		Mounts: append(distribution[:len(distribution):len(distribution)], Mount{Source: v.program(c)}, Mount{Source: c.Kernel, Target: jailKernel}, Mount{Source: c.Initrd, Target: jailInitrd},
			Mount{Source: "/dev/kvm", Writable: true}, Mount{Source: filepath.Dir(c.Vsock.Path), Writable: true}),
	}
	console := "off"
	line := Cmdline
	if c.Console {
		console, line = "tty", "console=ttyS0 "+line
	}
	memory := fmt.Sprintf("size=%dM", c.MemoryMiB)
	if c.Share != nil {
		memory += ",shared=on"
	}
	cmd.Argv = []string{v.program(c), "--api-socket", fmt.Sprintf("fd=%d", cmd.fd(FDListen, c.Control, false)), "--kernel", jailKernel, "--initramfs", jailInitrd,
		"--cmdline", strings.TrimSpace(line + " " + c.Cmdline), "--cpus", fmt.Sprintf("boot=%d", c.CPUs), "--memory", memory, "--serial", console, "--console", "off",
		"--vsock", fmt.Sprintf("cid=%d,socket=%s", c.Vsock.CID, c.Vsock.Path)}
	if len(c.Disks) > 0 {
		cmd.Argv = append(cmd.Argv, "--disk")
	}
	for _, d := range c.Disks {
		cmd.Mounts = append(cmd.Mounts, Mount{Source: d.Path, Target: DiskPath(d.Serial), Writable: !d.ReadOnly})
		cmd.Argv = append(cmd.Argv, fmt.Sprintf("path=%s,readonly=%s,id=%s,serial=%s", DiskPath(d.Serial), onOff(d.ReadOnly), deviceID(d.Serial), d.Serial))
	}
	if n := c.NIC; n != nil {
		cmd.Argv = append(cmd.Argv, "--net", fmt.Sprintf("fd=%d,mac=%s", cmd.fd(FDTap, n.Tap, false), n.MAC))
	}
	if s := c.Share; s != nil {
		cmd.Mounts = append(cmd.Mounts, Mount{Source: filepath.Dir(s.Socket), Writable: true})
		cmd.Argv = append(cmd.Argv, "--fs", fmt.Sprintf("tag=%s,socket=%s", s.Tag, s.Socket))
	}
	return cmd, nil
}

// plugDir is where monitors that take no descriptors find disks in their jails.
const plugDir = "/vm/disks"

// DiskPath is where such a monitor finds a disk that is there from the start.
func DiskPath(serial string) string { return plugDir + "/" + serial }

// Control returns a client of the REST interface once that answers.
func (CloudHypervisor) Control(ctx context.Context, c *Config) (Control, error) {
	r := rest{c.Control}
	if _, err := r.do(ctx, "GET", "/api/v1/vmm.ping", nil); err != nil {
		return nil, fmt.Errorf("cannot speak to cloud-hypervisor: %w", err)
	}
	return cloudHypervisorControl{r}, nil
}

type cloudHypervisorControl struct{ rest }

// AttachDisk adds a disk.
func (c cloudHypervisorControl) AttachDisk(ctx context.Context, d Disk, _ *os.File) (Place, error) {
	if !serialForm.MatchString(d.Serial) {
		return Place{}, fmt.Errorf("cannot attach a disk: its serial number is %q", d.Serial)
	}
	there, err := c.plugged(ctx, d.Serial)
	if err == nil && !there {
		_, err = c.do(ctx, "PUT", "/api/v1/vm.add-disk", map[string]any{"path": DiskPath(d.Serial), "readonly": d.ReadOnly, "id": deviceID(d.Serial), "serial": d.Serial})
	}
	if err != nil {
		return Place{}, fmt.Errorf("cannot attach disk %s: %w", d.Serial, err)
	}
	return Place{Disk: d.Serial}, nil
}

func (c cloudHypervisorControl) plugged(ctx context.Context, serial string) (bool, error) {
	info, err := c.do(ctx, "GET", "/api/v1/vm.info", nil)
	// The identifier as a JSON string occurs nowhere but in the list of disks.
	return strings.Contains(string(info), `"`+deviceID(serial)+`"`), err
}

// Close does nothing: each request is a connection.
func (cloudHypervisorControl) Close() error { return nil }
