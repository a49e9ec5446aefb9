package vmm

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Firecracker is the driver of Firecracker. It is held to the conformance tests where it is installed; elsewhere only what it is told is tested. It has no
// virtiofs, and no hot plug: a machine has all the drives that it will ever have from the start, read-only ones with nothing on them, and attaching a disk puts its image
// into one of them.
type Firecracker struct{}

// firecrackerDisks is how many drives a machine has. Each device has an interrupt line of its own, of which there are 19. Firecracker takes two for devices of its own
// (VMGenID, VMClock), the vsock, the random numbers and the card have three, and one is left to what a later version may add.
const firecrackerDisks = 13

// emptyDrive is what a drive shows that nothing is attached to: one sector.
const emptyDrive = "/vm/empty"

var emptyDriveText = "a drive for a disk that is attached later" + strings.Repeat(".", 512-42) + "\n"

// slotPrefix begins the names of those drives.
const slotPrefix = "slot_"

// Name is firecracker.
func (Firecracker) Name() string { return "firecracker" }

// Can says what Firecracker can do.
func (Firecracker) Can(*Config) Abilities {
	return Abilities{MaxDisks: firecrackerDisks, PlugDir: plugDir, EndsAtReset: true, Vsock: []VsockKind{VsockHybrid}}
}

func (Firecracker) program(c *Config) string { return cmp.Or(c.Program, "/usr/bin/firecracker") }

// Check looks for the program, KVM, and what the guest's kernel needs to find the devices: ACPI tables list them.
func (v Firecracker) Check(c *Config) error {
	if c.Share != nil {
		return errors.New("firecracker has no virtiofs")
	}
	if err := checkProgram(v.program(c), "firecracker, from its project's releases"); err != nil {
		return err
	}
	if err := checkKernel(v.Name(), c.Kernel, kernelOption{name: "ACPI"}, kernelOption{"VIRTIO_MMIO", true}); err != nil {
		return err
	}
	return checkKVMOnly(v.Name(), c)
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
	for i := range firecrackerDisks - len(c.Disks) {
		drives = append(drives, object{"drive_id": slotPrefix + strconv.Itoa(i), "path_on_host": emptyDrive, "is_root_device": false, "is_read_only": true})
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
	cmd.Files = map[string]string{firecrackerConfig: string(text), emptyDrive: emptyDriveText}
	return cmd, nil
}

// driveID: Firecracker's names have letters, digits and underscores.
func driveID(serial string) string { return "disk_" + strings.ReplaceAll(serial, "-", "_") }

// Control returns a client of the REST interface once that answers.
func (Firecracker) Control(ctx context.Context, c *Config) (Control, error) {
	r := rest{c.Control}
	if _, err := r.do(ctx, "GET", "/version", nil); err != nil {
		return nil, fmt.Errorf("cannot speak to firecracker: %w", err)
	}
	return firecrackerControl{r}, nil
}

type firecrackerControl struct{ rest }

// firecrackerDrive is a drive as Firecracker describes it.
type firecrackerDrive struct {
	ID   string `json:"drive_id"`
	Path string `json:"path_on_host"`
}

// slot returns the name of the drive for disks that shows a file; empty: none does.
func (c firecrackerControl) slot(ctx context.Context, path string) (string, error) {
	answer, err := c.do(ctx, "GET", "/vm/config", nil)
	if err != nil {
		return "", err
	}
	var config struct {
		Drives []firecrackerDrive `json:"drives"`
	}
	if err := json.Unmarshal(answer, &config); err != nil {
		return "", fmt.Errorf("firecracker's description of the machine: %w", err)
	}
	for _, d := range config.Drives {
		number, ok := strings.CutPrefix(d.ID, slotPrefix)
		if _, err := strconv.Atoi(number); ok && err == nil && d.Path == path { // it becomes part of a request
			return d.ID, nil
		}
	}
	return "", nil
}

// show has a drive show another file; the guest learns its size.
func (c firecrackerControl) show(ctx context.Context, id, path string) error {
	_, err := c.do(ctx, "PATCH", "/drives/"+id, firecrackerDrive{id, path})
	return err
}

// AttachDisk puts the disk into the first drive that is empty.
func (c firecrackerControl) AttachDisk(ctx context.Context, d Disk, file *os.File) (Place, error) {
	place, err := c.attach(ctx, d, file)
	if err != nil {
		return Place{}, fmt.Errorf("cannot attach disk %s: %w", d.Serial, err)
	}
	return place, nil
}

func (c firecrackerControl) attach(ctx context.Context, d Disk, file *os.File) (Place, error) {
	if !serialForm.MatchString(d.Serial) || !d.ReadOnly {
		return Place{}, errors.New("its serial number is not one, or it is not read-only, as firecracker's drives are")
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return Place{}, err
	}
	place := Place{Disk: inodeSerial(&st)}
	if there, err := c.slot(ctx, DiskPath(d.Serial)); err != nil || there != "" {
		return place, err
	}
	free, err := c.slot(ctx, emptyDrive)
	if err == nil && free == "" {
		err = errors.New("all of the machine's drives are taken")
	}
	if err != nil {
		return Place{}, err
	}
	return place, c.show(ctx, free, DiskPath(d.Serial))
}

// Close does nothing: each request is a connection.
func (firecrackerControl) Close() error { return nil }
