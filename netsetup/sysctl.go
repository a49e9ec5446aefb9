package netsetup

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

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
func writeSysctl(path, value string) error {
	if old, err := readSysctl(path); err == nil && old == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return pod.Errorf(kindOf(err), "cannot set %s to %s: %w", path, value, err)
	}
	return nil
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
