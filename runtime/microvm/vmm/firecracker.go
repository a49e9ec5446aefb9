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

	"golang.org/x/sys/unix"
)

// Firecracker is the driver of Firecracker. It is held to the conformance tests where it is installed; elsewhere only what it is told is tested. It has no
// hot plug of disks, and no virtiofs.
type Firecracker struct{}

// Name is firecracker.
func (Firecracker) Name() string { return "firecracker" }

// Can says what Firecracker can do.
func (Firecracker) Can(*Config) Abilities {
	return Abilities{MaxDisks: 8, Vsock: []VsockKind{VsockHybrid}}
}

func (Firecracker) program(c *Config) string { return cmp.Or(c.Program, "/usr/bin/firecracker") }

// Check looks for the program and KVM.
func (v Firecracker) Check(c *Config) error {
	if c.Share != nil {
		return errors.New("firecracker has no virtiofs")
	}
	return checkKVMOnly(v.Name(), v.program(c), "firecracker, from its project's releases", c)
}

// firecrackerConfig is where its configuration file is in its jail.
const firecrackerConfig = "/vm/firecracker.json"

// Command writes the configuration file that Firecracker boots from.
func (v Firecracker) Command(c *Config) (*Command, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	if c.Share != nil {
		return nil, errors.New("cannot run a machine: firecracker has no virtiofs")
	}
	type object map[string]any
	line := "reboot=k " + Cmdline
	if c.Console {
		line = "console=ttyS0 " + line
	}
	cmd := &Command{
		Argv: []string{v.program(c), "--api-sock", c.Control, "--config-file", firecrackerConfig},
		Env:  []string{"PATH=/usr/bin"},
		Mounts: append(distribution[:len(distribution):len(distribution)], Mount{Source: v.program(c)}, Mount{Source: c.Kernel, Target: jailKernel}, Mount{Source: c.Initrd, Target: jailInitrd},
			Mount{Source: "/dev/kvm", Writable: true}, Mount{Source: filepath.Dir(c.Vsock.Path), Writable: true}),
	}
	if dir := filepath.Dir(c.Control); dir != filepath.Dir(c.Vsock.Path) {
		cmd.Mounts = append(cmd.Mounts, Mount{Source: dir, Writable: true})
	}
	drives := []object{}
	for _, d := range c.Disks {
		cmd.Mounts = append(cmd.Mounts, Mount{Source: d.Path, Target: DiskPath(d.Serial), Writable: !d.ReadOnly})
		drives = append(drives, object{"drive_id": driveID(d.Serial), "path_on_host": DiskPath(d.Serial), "is_root_device": false, "is_read_only": d.ReadOnly})
	}
	config := object{
		"boot-source":    object{"kernel_image_path": jailKernel, "initrd_path": jailInitrd, "boot_args": strings.TrimSpace(line + " " + c.Cmdline)},
		"machine-config": object{"vcpu_count": c.CPUs, "mem_size_mib": c.MemoryMiB},
		"drives":         drives,
		"vsock":          object{"guest_cid": c.Vsock.CID, "uds_path": c.Vsock.Path},
		"entropy":        object{},
	}
	if n := c.NIC; n != nil {
		// It opens the tap itself, by name; the supervisor has given that to its user.
		cmd.Mounts = append(cmd.Mounts, Mount{Source: "/dev/net/tun", Writable: true})
		config["network-interfaces"] = []object{{"iface_id": "net0", "guest_mac": n.MAC, "host_dev_name": n.Tap}}
	}
	text, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	cmd.Files = map[string]string{firecrackerConfig: string(text)}
	return cmd, nil
}

// driveID: Firecracker's names have letters, digits and underscores.
func driveID(serial string) string { return "disk_" + strings.ReplaceAll(serial, "-", "_") }

// FirecrackerSerial is what the guest sees as the serial number of a disk of Firecracker's or libkrun's, which cannot be told one: up to 20 digits made of the
// image's device, special device and inode number.
func FirecrackerSerial(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", fmt.Errorf("cannot tell the serial number of %s: %w", path, err)
	}
	serial := fmt.Sprintf("%d%d%d", st.Dev, st.Rdev, st.Ino)
	return serial[:min(len(serial), 20)], nil
}

// Control returns a client of the REST interface once that answers.
func (Firecracker) Control(ctx context.Context, c *Config) (Control, error) {
	r := rest{c.Control}
	if _, err := r.do(ctx, "GET", "/version", nil); err != nil {
		return nil, fmt.Errorf("cannot speak to firecracker: %w", err)
	}
	return firecrackerControl{r}, nil
}

type firecrackerControl struct{ rest }

var errNoHotPlug = errors.New("this monitor has no hot plug of disks")

// AttachDisk is not possible.
func (firecrackerControl) AttachDisk(_ context.Context, d Disk, _ *os.File) (string, error) {
	return "", fmt.Errorf("cannot attach disk %s: %w", d.Serial, errNoHotPlug)
}

// DetachDisk is not possible.
func (firecrackerControl) DetachDisk(_ context.Context, serial string) error {
	return fmt.Errorf("cannot detach disk %s: %w", serial, errNoHotPlug)
}

// Quit types Ctrl-Alt-Del, which is all that its interface offers; it resets the machine, and Firecracker ends at a reset.
func (c firecrackerControl) Quit(ctx context.Context) error {
	if _, err := c.do(ctx, "PUT", "/actions", map[string]any{"action_type": "SendCtrlAltDel"}); err != nil {
		return fmt.Errorf("cannot end the machine: %w", err)
	}
	return nil
}

// Close does nothing: each request is a connection.
func (firecrackerControl) Close() error { return nil }
