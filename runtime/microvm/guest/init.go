package guest

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/vsockinit"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// Init is PID 1 of a VM: it sets up the kernel, serves the host over vsock and never returns. When
// it cannot go on it says so on the console and powers off.
func Init(version string) {
	err := runInit(version)
	console := openLog()
	fmt.Fprintln(console, "magikagent: cannot go on:", err)
	time.Sleep(100 * time.Millisecond) // for the console's reader
	powerOff()
}

func runInit(version string) error {
	if os.Getpid() != 1 {
		return errors.New("init is for PID 1 of a VM")
	}
	if err := moveRoot(); err != nil {
		return err
	}
	if err := mountKernel(); err != nil {
		return err
	}
	log := openLog()
	if err := vsockinit.LoadModules("/modules"); err != nil {
		return err
	}
	if err := keepLessFree(); err != nil {
		fmt.Fprintln(log, "magikagent:", err)
	}
	crun, err := findCrun()
	if err != nil {
		return err
	}
	server, err := New(Config{
		Dir: "/run/magikpod", Crun: crun, CgroupRoot: "/sys/fs/cgroup", CgroupParent: "magikpod", Version: version, Reaper: NewReaper(),
		Check: CheckHost, PowerOff: powerOff, SetClock: setClock, Log: func(err error) { fmt.Fprintln(log, "magikagent:", err) },
	})
	if err != nil {
		return err
	}
	listener, err := listen()
	if err != nil {
		return err
	}
	return server.Serve(listener)
}

// keepLessFree has the kernel keep no more memory free than it does without huge pages, four times
// the square root of all of it in KiB. For their sake it keeps, in a VM of 512 MiB or more, a
// twentieth free, up to some 66 MiB, and calls memory scarce when half of that again is gone.
func keepLessFree() error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("cannot read the size of the memory: %w", err)
	}
	kib := float64(info.Totalram) * float64(info.Unit) / 1024
	return setSysctls(map[string]string{"vm.min_free_kbytes": strconv.Itoa(int(4 * math.Sqrt(kib)))})
}

// listen opens the port for the host, on whatever CID the VM has.
func listen() (net.Listener, error) {
	listener, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, wire.Port, nil)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on vsock port %d: %w", wire.Port, err)
	}
	go sayReady()
	return listener, nil
}

// readyPort is vmm.ReadyPort.
const readyPort = 1025

// sayReady shows the host that the guest listens, by a connection; a host that does not want to
// know refuses it.
func sayReady() {
	if conn, err := vsock.Dial(vsock.Host, readyPort, nil); err == nil {
		_ = conn.Close()
	}
}

// moveRoot puts a bind mount of the root over the root. The kernel's first root, where an initramfs
// is unpacked, has no parent, so that pivot_root(2), which crun makes for a container, refuses it.
func moveRoot() error {
	const over = "/.root"
	err := os.MkdirAll(over, 0o700)
	if err == nil {
		err = unix.Mount("/", over, "", unix.MS_BIND, "")
	}
	if err == nil {
		err = os.Chdir(over)
	}
	if err == nil {
		err = unix.Mount(".", "/", "", unix.MS_MOVE, "")
	}
	if err == nil {
		err = unix.Chroot(".")
	}
	if err == nil {
		err = os.Chdir("/")
	}
	if err != nil {
		return fmt.Errorf("cannot move the root: %w", err)
	}
	return nil
}

// mountKernel mounts what the kernel shows of itself, and what is to be in memory.
func mountKernel() error {
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, m := range []struct {
		kind, target string
		flags        uintptr
		options      string
	}{
		{"proc", "/proc", safe, ""},
		{"sysfs", "/sys", safe, ""},
		{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755"},
		{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,ptmxmode=0666,gid=5"},
		{"tmpfs", "/dev/shm", safe, "mode=1777"},
		{"mqueue", "/dev/mqueue", safe, ""},
		{"cgroup2", "/sys/fs/cgroup", safe, ""},
		// Not noexec: containers' root file systems are mounted below it.
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"tmpfs", "/tmp", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return fmt.Errorf("cannot mount %s: %w", m.target, err)
		}
		err := unix.Mount(m.kind, m.target, m.kind, m.flags, m.options)
		// The kernel may have mounted devtmpfs itself; one without POSIX message queues has no pod
		// that uses them.
		if err != nil && !errors.Is(err, unix.EBUSY) && m.kind != "mqueue" {
			return fmt.Errorf("cannot mount %s: %w", m.target, err)
		}
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		if err := os.Symlink(target, "/dev/"+name); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// openLog opens the console, or what else can be read.
func openLog() *os.File {
	for _, path := range []string{"/dev/console", "/dev/kmsg"} {
		if f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOCTTY, 0); err == nil {
			return f
		}
	}
	return os.Stderr
}

func findCrun() (string, error) {
	dirs := []string{"/usr/bin", "/usr/local/bin", "/usr/sbin", "/bin", "/sbin"}
	for _, dir := range dirs {
		if info, err := os.Stat(dir + "/crun"); err == nil && info.Mode()&0o111 != 0 {
			return dir + "/crun", nil
		}
	}
	return "", fmt.Errorf("cannot find crun in %s", strings.Join(dirs, " "))
}

// powerOff writes what is to be written and ends the VM.
func powerOff() {
	unix.Sync()
	// The next VM of the pod finds the emptyDirs on the scratch disk, which must not need a check then.
	_ = unix.Unmount("/run/magikpod/"+scratchName, unix.MNT_DETACH)
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	// A VM without a power button.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}
