package host

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// hidden are directories of the root that the host sees empty: what the build host's administrator
// or its packages have enabled there is no part of a test. Vendor units in /usr/lib/systemd/system
// stay, and units that a test enables are added on top.
var hidden = []string{
	"etc/systemd/system", "etc/magikpod", "etc/cni", "var/lib/systemd/linger",
	"etc/rc0.d", "etc/rc1.d", "etc/rc2.d", "etc/rc3.d", "etc/rc4.d", "etc/rc5.d", "etc/rc6.d", "etc/rcS.d",
}

// masked are units that fail in a container, are slow, or would change the computer below: the
// sysctls and modules of the kernel are shared with it.
var masked = []string{
	"console-getty.service", "getty.target", "e2scrub_reap.service", "systemd-sysctl.service", "systemd-modules-load.service",
	"systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket",
	"modprobe@.service", "kmod-static-nodes.service", "dev-hugepages.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
	"sys-fs-fuse-connections.mount", "sys-kernel-config.mount", "systemd-pstore.service", "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount",
	"systemd-firstboot.service", "systemd-homed.service", "systemd-networkd.service", "systemd-networkd.socket", "systemd-resolved.service",
	"systemd-timesyncd.service", "systemd-remount-fs.service", "apparmor.service",
}

// writeSeed makes what the host's writable layer begins with.
func writeSeed(dir, name string) error {
	for _, path := range hidden {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		// Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories".
		if err := unix.Lsetxattr(path, "trusted.overlay.opaque", []byte("y"), 0); err != nil {
			return fmt.Errorf("cannot hide %s in the host: %w", path, err)
		}
	}
	for _, unit := range masked {
		if err := os.Symlink("/dev/null", filepath.Join(dir, "etc/systemd/system", unit)); err != nil {
			return err
		}
	}
	// Without this directory the journal stays in memory.
	if err := os.MkdirAll(filepath.Join(dir, "var/log"), 0o755); err != nil {
		return err
	}
	if err := unix.Mknod(filepath.Join(dir, "var/log/journal"), unix.S_IFCHR, 0); err != nil {
		return fmt.Errorf("cannot hide the build host's journal in the host: %w", err)
	}
	return writeIdentity(dir, name)
}

// writeIdentity gives the host a machine ID and a name of its own. (A missing ID would make systemd
// take this for a first boot.)
func writeIdentity(dir, name string) error {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	for path, content := range map[string]string{
		"etc/machine-id": hex.EncodeToString(id[:]) + "\n",
		"etc/hostname":   name + "\n",
		"etc/hosts":      "127.0.0.1 localhost " + name + "\n::1 localhost " + name + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, path), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}
