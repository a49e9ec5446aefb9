package vm

import (
	"cmp"
	"os"
	"strconv"
	"time"

	"github.com/magikrun/magikpod/tests/host"
)

// The environment of tests that boot VMs.
const (
	// EnvAccel is tcg or kvm; empty stands for tcg.
	EnvAccel = host.EnvAccel
	// EnvCPUs and EnvMemory are the number of CPUs (2) and the memory in MiB (4096).
	EnvCPUs   = "MAGIKVM_CPUS"
	EnvMemory = "MAGIKVM_MEMORY"
	// EnvPlain, when it is not empty, makes every VM boot, instead of being restored from a saved
	// state where that is possible.
	EnvPlain = "MAGIKVM_PLAIN"
)

// Options say what to boot. The zero value boots the bare image.
type Options struct {
	// Install is a directory that `make install DESTDIR=` has filled; it is laid over the root.
	// Empty: none.
	Install string
	// Enable starts the daemon at boot, as `systemctl enable magikpodd.service` does.
	Enable bool
	// Files are laid over the root too.
	Files []File
	// Disk is a raw image with ext4 (see [Image.MakeDisk]) that holds /var/lib/magikpod and
	// /etc/magikpod. Empty: they are in memory.
	Disk string
	// BootTimeout is how long the VM may take to boot; 0 stands for a minute, times [Slowness].
	BootTimeout time.Duration
	// Limit is how long the VM may run; then it is killed. 0 stands for half an hour.
	Limit time.Duration
}

// File is a file or directory of the host and its absolute path in the test VM.
type File struct {
	Local, Guest string
}

// Slowness is what tests in a VM multiply their patience by. It is less than how much slower a
// process is there: a test that waits is patient enough for a busy host, and most of what it waits
// for is not computing.
func Slowness() int {
	if host.Accel() == "kvm" {
		return 2
	}
	return 5
}

// slownessEnv is what every command in a VM gets.
func slownessEnv() string { return host.EnvSlowness + "=" + strconv.Itoa(Slowness()) }

// arguments are those of QEMU. Its files: 1 is the console, 3 the initrd, 4 the control port, 5 the
// payload, 6 the monitor.
func arguments(i Image, opts Options) []string {
	cpu := "max"
	if host.Accel() == "kvm" {
		cpu = "host"
	}
	kernel := "console=ttyS0 quiet panic=-1 rdinit=/init systemd.show_status=false random.trust_cpu=on net.ifnames=0 mitigations=off tsc=reliable clocksource=tsc " +
		"apparmor=0 selinux=0 audit=0 init_on_alloc=0 rcupdate.rcu_expedited=1 nokaslr no5lvl 8250.nr_uarts=1 no_timer_check"
	args := []string{
		"-L", i.root() + "/usr/share/qemu", "-L", i.root() + "/usr/share/seabios",
		"-M", "pc", "-accel", host.Accel(), "-cpu", cpu, "-smp", cmp.Or(os.Getenv(EnvCPUs), "2"), "-m", cmp.Or(os.Getenv(EnvMemory), "4096"),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", i.kernel(), "-initrd", "/proc/self/fd/3", "-append", kernel,
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-chardev", "socket,id=control,fd=4", "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=control,name=org.magikrun.test",
		"-device", "virtio-rng-pci",
		"-drive", "if=none,id=root,format=raw,readonly=on,file=" + i.erofs(), "-device", "virtio-blk-pci,drive=root",
		"-drive", "if=none,id=payload,format=raw,readonly=on,file=/proc/self/fd/5", "-device", "virtio-blk-pci,drive=payload",
		"-chardev", "socket,id=monitor,fd=6", "-mon", "chardev=monitor,mode=control",
	}
	if opts.Disk != "" {
		args = append(args, "-drive", "if=none,id=disk,format=raw,file="+opts.Disk, "-device", "virtio-blk-pci,drive=disk")
	}
	return args
}
