package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/magikrun/magikpod/internal/nsfile"
)

// Driver is one kind of VMM.
type Driver interface {
	// Name is what stands in [Config.Driver]: qemu or cloud-hypervisor.
	Name() string
	// Can says what VMs of this configuration can do.
	Can(c *Config) Abilities
	// Check returns nil when VMs of this configuration can be run on this host, else the reason why
	// not, for people. Of c it reads Program, Machine, Accel, Vsock.Kind and TSCKHz. That an
	// accelerator works is only known when a VM has run: what Check says of /dev/kvm is that it can
	// be opened and speaks the right version.
	Check(c *Config) error
	// Command says how the VM is started. It reads no files and changes nothing.
	Command(c *Config) (*Command, error)
	// Control connects to a running VM through [Config.Control]. The caller must Close it soon: a
	// monitor serves one client at a time. Errors mean that it does not run (yet, or any more).
	Control(ctx context.Context, c *Config) (Control, error)
}

// Control is a connection to a running VM.
type Control interface {
	// AttachDisk gives the guest a disk, and says where the guest finds it. A disk with d's serial
	// that is there already is the same one: attaching is idempotent. It returns when the monitor
	// has taken it; the guest may see it some ten milliseconds later. file is the open image, and
	// not needed after the call; a monitor with a [Abilities.AttachDir] opens what has been mounted
	// there instead.
	AttachDisk(ctx context.Context, d Disk, file *os.File) (Place, error)
	Close() error
}

// Place is where a guest finds an image: on the disk with a serial number, or in a file at the top
// of a share.
type Place struct {
	Disk  string `json:"disk,omitempty"`
	Share string `json:"share,omitempty"`
	File  string `json:"file,omitempty"`
}

// State is what there is of a running VM on the host.
type State struct {
	// Monitor and Share are the processes of the VMM and of virtiofsd (PID 0: there is none), as
	// the host sees them.
	Monitor nsfile.Owner `json:"monitor"`
	Share   nsfile.Owner `json:"share,omitzero"`
}

// Abilities are what a VM can do.
type Abilities struct {
	// MaxDisks is how many disks there can be, those that are attached to the running VM among them.
	MaxDisks int
	// AttachDir is the directory in the monitor's jail where it looks for a disk that is attached,
	// by its serial; empty: it is handed the open file.
	AttachDir string
	// Vsock lists the transports, the preferred one first.
	Vsock []VsockKind
}

// VsockKind is how the host reaches the guest's AF_VSOCK ports.
type VsockKind string

// The transports.
const (
	// VsockVhost is the host's own AF_VSOCK through /dev/vhost-vsock.
	VsockVhost VsockKind = "vhost"
	// VsockHybrid is a unix socket: CONNECT PORT, answered by OK N.
	VsockHybrid VsockKind = "hybrid"
)

// AgentPort is the port that the agent in the guest listens on.
const AgentPort = 1024

// The accelerators.
const (
	AccelKVM = "kvm"
	AccelTCG = "tcg"
)

// Config is a VM. All paths are absolute paths of the host.
type Config struct {
	Driver string `json:"driver"`
	// Program is the monitor; empty: where Debian's package puts it.
	Program string `json:"program,omitempty"`
	// Machine is QEMU's: pc (when empty), q35 or microvm.
	Machine string `json:"machine,omitempty"`
	// Accel is kvm or tcg; only QEMU can do with tcg. Somebody has to say so: /dev/kvm may be there
	// and run no guest.
	Accel string `json:"accel"`

	// Kernel is an uncompressed ELF file (vmlinux), Initrd a cpio archive; package guestimage makes
	// both.
	Kernel string `json:"kernel"`
	Initrd string `json:"initrd"`
	// Cmdline is added to what the driver and [Cmdline] say.
	Cmdline string `json:"cmdline,omitempty"`

	CPUs      int `json:"cpus"`
	MemoryMiB int `json:"memoryMiB"`
	// TSCKHz is the rate of the host's time stamp counter in kHz, as [HostTSC] measures it. Only an
	// emulated microvm of QEMU's needs it.
	TSCKHz int `json:"tscKHz,omitempty"`

	// Disks are there from the start.
	Disks []Disk `json:"disks,omitempty"`
	NIC   *NIC   `json:"nic,omitempty"`
	Vsock Vsock  `json:"vsock"`
	Share *Share `json:"share,omitempty"`

	// Control is the unix socket of the monitor (QMP, REST), made by the supervisor or the monitor;
	// its directory is only root's.
	Control string `json:"control"`
	// Console has the guest's kernel talk on the monitor's standard output. It costs boot time.
	Console bool `json:"console,omitempty"`
}

// Disk is a raw image.
type Disk struct {
	Path string `json:"path"`
	// Serial names the disk in the guest (/sys/block/*/serial) and to the monitor: 1 to 20 of a-z,
	// A-Z, 0-9, "-", "_".
	Serial   string `json:"serial"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// NIC is the VM's network card, on a tap.
type NIC struct {
	// Tap is the tap's name in the network namespace that the supervisor joins; it makes it.
	Tap string `json:"tap"`
	// MAC is the guest's address.
	MAC string `json:"mac"`
	// MTU is that of the tap; 0: the kernel's default, 1500.
	MTU int `json:"mtu,omitempty"`
}

// Vsock is the way to the agent.
type Vsock struct {
	Kind VsockKind `json:"kind"`
	// CID is the guest's context ID, from 3; with kind vhost it is unique on the host.
	CID uint32 `json:"cid"`
	// Path is the unix socket of the kind hybrid.
	Path string `json:"path,omitempty"`
}

// Share is a directory that the guest mounts by its tag (mount -t virtiofs TAG).
type Share struct {
	Tag string `json:"tag"`
	// Daemon is the program virtiofsd, see [FindVirtiofsd].
	Daemon string `json:"daemon"`
	// Socket is the path of its unix socket; the supervisor makes it.
	Socket string `json:"socket"`
}

// Command is a program to run in a jail.
type Command struct {
	Argv []string
	Env  []string // KEY=VALUE; the whole environment
	// FDs become the descriptors 3, 4, ... of the program.
	FDs []FD
	// Mounts are the files and directories of the host that the program sees; nothing else is
	// there, but for /dev with null, zero and urandom.
	Mounts []Mount
	// Files are small files that are made for it, by path, and Dirs empty directories.
	Files map[string]string
	Dirs  []string
	// Helpers are the programs that must run before this one, by name: vsock, share. The sockets
	// that it connects to are those of its descriptors.
	Helpers map[string]*Command
	// Gate is what keeps connections from a guest that is not ready for them; nil: nothing needs to.
	Gate *Gate
	// Root: it stays root, and sees all of /proc. Otherwise it gets the VM's user.
	Root bool
}

// Gate is a unix socket that leads to the guest, under another name than [Vsock.Path] until the
// guest's vsock driver is up.
type Gate struct {
	// Path is where it is until then.
	Path string
	// Ready is the unix socket that is connected to when the guest connects to [ReadyPort] of the host.
	Ready string
	// Started says whether the driver is up, of a guest that never connects.
	Started func(ctx context.Context) (bool, error)
}

// ReadyPort is the port of the host that the agent in the guest connects to, once, as soon as it
// listens; it need not say anything, nor mind if nobody is there.
const ReadyPort = 1025

// FDKind is a way to make a descriptor.
type FDKind string

// The kinds of descriptors.
const (
	FDFile    FDKind = "file"    // open(2) of Path, for reading and writing or, with ReadOnly, for reading
	FDTap     FDKind = "tap"     // the tap Path
	FDListen  FDKind = "listen"  // a unix socket that listens on Path
	FDConnect FDKind = "connect" // a unix socket connected to Path
)

// FD is a descriptor that the program is born with.
type FD struct {
	Kind     FDKind
	Path     string
	ReadOnly bool
}

// Mount is a part of the host's file system at the same or another place.
type Mount struct {
	Source string
	Target string // empty: as Source
	// Writable also makes the device nodes below it usable.
	Writable bool
	// Optional: a source that is not there is left out.
	Optional bool
	// Owned: the VM's user becomes its owner.
	Owned bool
}

// Drivers are all drivers, the preferred one first.
func Drivers() []Driver { return []Driver{QEMU{}, CloudHypervisor{}} }

// Find returns the named driver.
func Find(name string) (Driver, error) {
	var names []string
	for _, d := range Drivers() {
		if d.Name() == name {
			return d, nil
		}
		names = append(names, d.Name())
	}
	return nil, fmt.Errorf("cannot use the VMM %q: the known ones are %s", name, strings.Join(names, ", "))
}

// Cmdline is the command line of every guest kernel of Debian's: nothing that takes time and helps
// nobody in a VM that lives as long as a pod. A panic ends it.
const Cmdline = "quiet panic=-1 rdinit=/init random.trust_cpu=on tsc=reliable no_timer_check rcupdate.rcu_expedited=1 mitigations=auto " +
	"8250.nr_uarts=1 audit=0 apparmor=0 selinux=0 net.ifnames=0 cryptomgr.notests"

var serialForm = regexp.MustCompile(`^[A-Za-z0-9_-]{1,20}$`)

// validate checks what every driver counts on.
func (c *Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Kernel == "" || c.Initrd == "" || c.Control == "" {
		bad("kernel, initrd and control are needed")
	}
	if c.CPUs < 1 || c.MemoryMiB < 32 {
		bad("%d CPUs and %d MiB are too little", c.CPUs, c.MemoryMiB)
	}
	if c.Accel != AccelKVM && c.Accel != AccelTCG {
		bad("the accelerator is %q, neither kvm nor tcg", c.Accel)
	}
	if c.Vsock.CID < 3 || c.Vsock.CID == ^uint32(0) {
		bad("context ID %d is reserved", c.Vsock.CID)
	}
	if c.Vsock.Kind != VsockVhost && c.Vsock.Path == "" {
		bad("vsock of kind %q needs a path", c.Vsock.Kind)
	}
	for _, path := range append([]string{c.Kernel, c.Initrd, c.Control, c.Vsock.Path}, diskPaths(c.Disks)...) {
		// In the options of QEMU and cloud-hypervisor a comma separates.
		if path != "" && (!strings.HasPrefix(path, "/") || strings.ContainsAny(path, ",\n\x00")) {
			bad("the path %q is not absolute, or has a comma in it", path)
		}
	}
	for _, d := range c.Disks {
		if !serialForm.MatchString(d.Serial) {
			bad("the serial number %q is not 1 to 20 letters, digits, - and _", d.Serial)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot run a VM: %w", err)
	}
	return nil
}

func diskPaths(disks []Disk) []string {
	paths := make([]string, len(disks))
	for i, d := range disks {
		paths[i] = d.Path
	}
	return paths
}

// fd adds a descriptor to the command and returns its number.
func (c *Command) fd(kind FDKind, path string, readOnly bool) int {
	c.FDs = append(c.FDs, FD{kind, path, readOnly})
	return 2 + len(c.FDs)
}

// distribution is where programs, their libraries and data are: files that came with packages, the
// same on every host.
var distribution = []Mount{{Source: "/usr"}, {Source: "/lib", Optional: true}, {Source: "/lib64", Optional: true}, {Source: "/bin", Optional: true}, {Source: "/etc/ld.so.cache", Optional: true}}
