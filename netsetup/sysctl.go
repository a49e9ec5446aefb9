package netsetup

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/pod"
)

const (
	sysctlDir  = "/proc/sys/net"
	ipv4Conf   = sysctlDir + "/ipv4/conf"
	ipv6Conf   = sysctlDir + "/ipv6/conf"
	ipForward4 = sysctlDir + "/ipv4/ip_forward"
	ipForward6 = ipv6Conf + "/all/forwarding"
)

// hasIPv6 says whether the kernel has IPv6 (ipv6.disable=1 switches it off).
func hasIPv6() bool {
	_, err := os.Stat(ipv6Conf)
	return err == nil
}

// readSysctl reads the setting of the thread's network namespace.
func readSysctl(path string) (string, error) {
	data, err := os.ReadFile(path)
	return string(bytes.TrimSpace(data)), err
}

// writeSysctl changes the setting of the thread's network namespace, if it is not value already:
// reading works where /proc/sys is read-only.
func writeSysctl(path, value string) error { return writeSysctlIn("/proc", path, value) }

func writeSysctlIn(proc, path, value string) error {
	file := proc + strings.TrimPrefix(path, "/proc")
	if old, err := readSysctl(file); err == nil && old == value {
		return nil
	}
	if err := os.WriteFile(file, []byte(value), 0); err != nil {
		return pod.Errorf(kindOf(err), "cannot set %s to %s: %w", path, value, err)
	}
	return nil
}

// writePodSysctls changes settings of the thread's network namespace, a pod's, through a procfs made
// for that. In the host's, names as net/ipv6/conf/eth0 stay in the kernel's cache once for each
// namespace, all under one hash, and all are compared when anybody looks one up: with 1000 pods,
// 0.12 ms for each file.
func writePodSysctls(settings ...setting) error {
	proc := "/proc"
	if fd, err := mountProc(); err == nil { // else it takes longer
		defer unix.Close(fd)
		proc = "/proc/thread-self/fd/" + strconv.Itoa(fd)
	}
	for _, s := range settings {
		if err := writeSysctlIn(proc, s.path, s.value); err != nil {
			return err
		}
	}
	return nil
}

// mountProc makes a procfs that is mounted nowhere and goes with the descriptor.
func mountProc() (int, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
}

// enableForwarding makes the host a router, which it stays when the last pod goes: by then others
// may count on it. Turning on IPv6 forwarding makes the kernel ignore router advertisements on
// interfaces with accept_ra=1, and the host would lose its default route; they get 2, "also when
// forwarding". Interfaces whose advertisements are read in user space have 0 and keep it.
func enableForwarding(ipv6 bool) error {
	if err := writeSysctl(ipForward4, "1"); err != nil {
		return err
	}
	if !ipv6 {
		return nil
	}
	if old, err := readSysctl(ipForward6); err == nil && old == "1" {
		return nil
	}
	paths, err := filepath.Glob(ipv6Conf + "/*/accept_ra")
	if err != nil {
		return err
	}
	for _, path := range paths {
		old, err := readSysctl(path)
		if err != nil || old != "1" || filepath.Base(filepath.Dir(path)) == "all" {
			continue // "all" is not consulted; an interface may just have gone
		}
		if err := writeSysctl(path, "2"); err != nil && !isNotExist(err) {
			return err
		}
	}
	return writeSysctl(ipForward6, "1")
}

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
