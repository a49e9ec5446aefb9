package vmm

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Libkrun is the driver of libkrun, a library: one helper process a machine, magikkrun, loads it and becomes the machine. It has no hot plug of disks and no
// monitor to talk to: images come as files in a directory of the jail that the machine shares, read-only, by libkrun's own virtiofs.
type Libkrun struct{}

// KrunHelper is the program that becomes a machine of libkrun's.
const KrunHelper = "/usr/libexec/magikpod/magikkrun"

// krunConfig is where the helper finds its configuration, a [KrunConfig].
const krunConfig = "/vm/krun.json"

// krunImages is the directory that the guest sees, as the share krunImagesTag.
const (
	krunImages    = "/vm/images"
	krunImagesTag = "images"
)

// KrunConfig is what the helper reads. The paths are those of its jail.
type KrunConfig struct {
	Library   string `json:"library"`
	Kernel    string `json:"kernel"`
	Initrd    string `json:"initrd"`
	Cmdline   string `json:"cmdline"`
	CPUs      int    `json:"cpus"`
	MemoryMiB int    `json:"memoryMiB"`
	Disks     []Disk `json:"disks,omitempty"`
	NIC       *NIC   `json:"nic,omitempty"`
	// ShareDir is shared under the tag ShareTag, read-only.
	ShareTag string `json:"shareTag"`
	ShareDir string `json:"shareDir"`
	// VsockPath is the unix socket that leads to AgentPort; libkrun listens on it.
	VsockPath string `json:"vsockPath"`
}

// Name is libkrun.
func (Libkrun) Name() string { return "libkrun" }

// Can says what libkrun can do.
func (Libkrun) Can(*Config) Abilities {
	return Abilities{PlugDir: krunImages, EndsAtReset: true, Vsock: []VsockKind{VsockPort}}
}

func (Libkrun) library(c *Config) string {
	return cmp.Or(c.Program, "/usr/lib/x86_64-linux-gnu/libkrun.so.1")
}

// Check looks for the library, the helper, KVM, without which libkrun would panic, and what the guest's kernel needs to find the devices: its command line lists them.
func (v Libkrun) Check(c *Config) error {
	if c.Share != nil {
		return errors.New("libkrun's virtiofs has the rights of a user who owns nothing on the host: the host's directories could not be used through it")
	}
	if _, err := os.Stat(v.library(c)); err != nil {
		return fmt.Errorf("%s is not installed (libkrun is in no release of Debian's)", v.library(c))
	}
	if err := checkProgram(KrunHelper, "magikpod"); err != nil {
		return err
	}
	err := checkKernel(v.Name(), c.Kernel, kernelOption{name: "VIRTIO_MMIO"}, kernelOption{name: "VIRTIO_MMIO_CMDLINE_DEVICES"}, kernelOption{"VIRTIO_FS", true})
	if err != nil {
		return err
	}
	return checkKVMOnly(v.Name(), c)
}

// Command starts the helper.
func (v Libkrun) Command(c *Config) (*Command, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	line := "reboot=k " + Cmdline
	if c.Console {
		line = "console=hvc0 " + line
	}
	config := KrunConfig{
		Library: v.library(c), Kernel: jailKernel, Initrd: jailInitrd, Cmdline: strings.TrimSpace(line + " " + c.Cmdline), CPUs: c.CPUs, MemoryMiB: c.MemoryMiB,
		NIC: c.NIC, ShareTag: krunImagesTag, ShareDir: krunImages, VsockPath: c.Vsock.Path,
	}
	cmd := &Command{
		Argv: []string{KrunHelper, "--config", krunConfig},
		Env:  []string{"PATH=/usr/bin"},
		Dirs: []string{krunImages},
		Proc: true, // by which its virtiofs opens files
		Mounts: append(distribution[:len(distribution):len(distribution)], Mount{Source: filepath.Dir(config.Library)}, Mount{Source: c.Kernel, Target: jailKernel},
			Mount{Source: c.Initrd, Target: jailInitrd}, Mount{Source: "/dev/kvm", Writable: true}, Mount{Source: filepath.Dir(c.Vsock.Path), Writable: true}),
	}
	for _, d := range c.Disks {
		cmd.Mounts = append(cmd.Mounts, Mount{Source: d.Path, Target: DiskPath(d.Serial), Writable: !d.ReadOnly})
		config.Disks = append(config.Disks, Disk{Path: DiskPath(d.Serial), Serial: d.Serial, ReadOnly: d.ReadOnly})
	}
	if c.NIC != nil {
		cmd.Mounts = append(cmd.Mounts, Mount{Source: "/dev/net/tun", Writable: true})
	}
	text, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	cmd.Files = map[string]string{krunConfig: string(text)}
	return cmd, nil
}

// Control waits for the socket that libkrun makes when it starts the machine.
func (Libkrun) Control(_ context.Context, c *Config) (Control, error) {
	// Not connected to: that would be a connection to the agent.
	if _, err := os.Stat(c.Vsock.Path); err != nil {
		return nil, fmt.Errorf("cannot find the machine: %w", err)
	}
	return libkrunControl{}, nil
}

type libkrunControl struct{}

// AttachDisk has nothing to do: the image is in the directory that the guest sees.
func (libkrunControl) AttachDisk(_ context.Context, d Disk, _ *os.File) (Place, error) {
	if !serialForm.MatchString(d.Serial) || !d.ReadOnly {
		return Place{}, fmt.Errorf("cannot attach disk %q: its serial number is not one, or it is not read-only, as libkrun's share is", d.Serial)
	}
	return Place{Share: krunImagesTag, File: d.Serial}, nil
}

// Close does nothing.
func (libkrunControl) Close() error { return nil }
