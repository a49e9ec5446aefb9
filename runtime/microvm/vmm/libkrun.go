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
// monitor to talk to.
type Libkrun struct{}

// KrunHelper is the program that becomes a machine of libkrun's.
const KrunHelper = "/usr/libexec/magikpod/magikkrun"

// krunConfig is where the helper finds its configuration, a [KrunConfig].
const krunConfig = "/vm/krun.json"

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
	// VsockPath is the unix socket that leads to AgentPort; libkrun listens on it.
	VsockPath string `json:"vsockPath"`
	Console   bool   `json:"console,omitempty"`
}

// Name is libkrun.
func (Libkrun) Name() string { return "libkrun" }

// Can says what libkrun can do.
func (Libkrun) Can(*Config) Abilities { return Abilities{MaxDisks: 8, Vsock: []VsockKind{VsockPort}} }

func (Libkrun) library(c *Config) string {
	return cmp.Or(c.Program, "/usr/lib/x86_64-linux-gnu/libkrun.so.1")
}

// Check looks for the library, the helper and KVM: without that libkrun would panic.
func (v Libkrun) Check(c *Config) error {
	if _, err := os.Stat(v.library(c)); err != nil {
		return fmt.Errorf("%s is not installed (libkrun is in no release of Debian's)", v.library(c))
	}
	if err := checkProgram(KrunHelper, "magikpod"); err != nil {
		return err
	}
	if c.Share != nil {
		return errors.New("libkrun's own virtiofs confines nothing, and is not used")
	}
	if c.Accel != AccelKVM {
		return fmt.Errorf("libkrun emulates no CPU: it needs KVM, and the configuration says %q", c.Accel)
	}
	return checkKVM()
}

// Command starts the helper.
func (v Libkrun) Command(c *Config) (*Command, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	line := Cmdline
	if c.Console {
		line = "console=hvc0 " + line
	}
	config := KrunConfig{
		Library: v.library(c), Kernel: jailKernel, Initrd: jailInitrd, Cmdline: strings.TrimSpace(line + " " + c.Cmdline), CPUs: c.CPUs, MemoryMiB: c.MemoryMiB,
		NIC: c.NIC, VsockPath: c.Vsock.Path, Console: c.Console,
	}
	cmd := &Command{
		Argv: []string{KrunHelper, "--config", krunConfig},
		Env:  []string{"PATH=/usr/bin"},
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

// AttachDisk is not possible.
func (libkrunControl) AttachDisk(_ context.Context, d Disk, _ *os.File) (string, error) {
	return "", fmt.Errorf("cannot attach disk %s: %w", d.Serial, errNoHotPlug)
}

// DetachDisk is not possible.
func (libkrunControl) DetachDisk(_ context.Context, serial string) error {
	return fmt.Errorf("cannot detach disk %s: %w", serial, errNoHotPlug)
}

// Quit is not possible: whoever started the helper ends it with a signal.
func (libkrunControl) Quit(context.Context) error {
	return errors.New("cannot end the machine: libkrun has no monitor; kill its process")
}

// Close does nothing.
func (libkrunControl) Close() error { return nil }
