package vmm

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// kvmVersion is the only one there is (Documentation/virt/kvm/api.rst, KVM_GET_API_VERSION).
const (
	kvmGetAPIVersion = 0xae00
	kvmVersion       = 12
)

// checkKVM says whether /dev/kvm can be opened and is KVM. Whether it runs a guest is not known by that.
func checkKVM() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return errors.New("there is no /dev/kvm: the CPU has no virtualisation, or it is switched off, or the module kvm is not loaded")
	}
	if err != nil {
		return fmt.Errorf("cannot use KVM: %w", err)
	}
	defer f.Close()
	version, err := unix.IoctlRetInt(int(f.Fd()), kvmGetAPIVersion)
	if err != nil {
		return fmt.Errorf("cannot use KVM: KVM_GET_API_VERSION: %w", err)
	}
	if version != kvmVersion {
		return fmt.Errorf("cannot use KVM: its version is %d, not %d", version, kvmVersion)
	}
	return nil
}

// checkDevice says whether a device can be opened; remedy is what may help when it is not there.
func checkDevice(path, remedy string) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("there is no %s (try: %s)", path, remedy)
	}
	if err != nil {
		return fmt.Errorf("cannot use %s: %w", path, err)
	}
	return f.Close()
}

// checkProgram says whether a program is there; pkg is the package that has it.
func checkProgram(path, pkg string) error {
	if info, err := os.Stat(path); err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("%s is not installed (package %s)", path, pkg)
	}
	return nil
}

// FindVsock returns the transport to use with a driver: the first of its kinds that works here.
func FindVsock(d Driver, c *Config) (VsockKind, error) {
	var errs []error
	for _, kind := range d.Can(c).Vsock {
		try := *c
		try.Vsock.Kind = kind
		err := d.Check(&try)
		if err == nil {
			return kind, nil
		}
		if len(errs) == 0 || errs[len(errs)-1].Error() != err.Error() { // what has nothing to do with the kind is reported once
			errs = append(errs, err)
		}
	}
	return "", errors.Join(errs...)
}
