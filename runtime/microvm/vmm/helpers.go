package vmm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// vsockDeviceProgram implements a vsock device outside of QEMU and of the kernel.
const vsockDeviceProgram = "/usr/bin/vhost-device-vsock"

// vsockDeviceSocket is where QEMU finds it: beside the host's socket.
func vsockDeviceSocket(c *Config) string { return c.Vsock.Path + ".vhost" }

// ReadyPort is the port of the host that the agent in the guest connects to, once, as soon as it listens; it need not say anything, nor mind if nobody is there.
const ReadyPort = 1025

// VsockGate is the path at which vhost-device-vsock listens for connections to the guest until the guest's driver is up, and ReadySocket that of the unix socket that it
// connects to when the guest connects to ReadyPort. Before that time nobody may connect: a connection between the setting of the guest's memory and that of the
// queues ends the thread of vhost-device-vsock 0.3 that does all the work (its handle_event lets the error of a queue that is not ready go up), and the guest never answers
// again. So the supervisor renames the gate to [Vsock.Path] when the guest is there. Both are empty where there is no gate.
func (c *Config) VsockGate() (gate, readySocket string) {
	if c.Driver != (QEMU{}).Name() || c.Vsock.Kind != VsockHybrid {
		return "", ""
	}
	gate = c.Vsock.Path + ".gate"
	return gate, fmt.Sprintf("%s_%d", gate, ReadyPort)
}

// Helpers are the programs that must run before the monitor is started, by name: vsock, share. The sockets that the monitor connects to are those of
// its descriptors.
func Helpers(c *Config) map[string]*Command {
	helpers := map[string]*Command{}
	if c.Driver == "qemu" && c.Vsock.Kind == VsockHybrid {
		helpers["vsock"] = vsockDevice(c)
	}
	if c.Share != nil {
		helpers["share"] = virtiofsd(c.Share)
	}
	return helpers
}

// vsockDevice makes both of its sockets itself, so it sees their directory.
func vsockDevice(c *Config) *Command {
	gate, _ := c.VsockGate()
	return &Command{
		Argv:   []string{vsockDeviceProgram, "--guest-cid", fmt.Sprint(c.Vsock.CID), "--socket", vsockDeviceSocket(c), "--uds-path", gate},
		Env:    []string{"PATH=/usr/bin", "RUST_LOG=error"},
		Mounts: append(distribution[:len(distribution):len(distribution)], Mount{Source: filepath.Dir(c.Vsock.Path), Writable: true}),
	}
}

// SharedDir is the directory that virtiofsd serves, in its own mount namespace. It is empty until something is mounted in it.
const SharedDir = "/shared"

// virtiofsd serves SharedDir. Its jail is a mount namespace of its own already, and it must stay root in it to give files their owners.
func virtiofsd(s *Share) *Command {
	cmd := &Command{Env: []string{"PATH=/usr/bin"}, Mounts: distribution, Dirs: []string{SharedDir}, Root: true}
	fd := cmd.fd(FDListen, s.Socket, false)
	if isCVirtiofsd(s.Daemon) {
		cmd.Argv = []string{s.Daemon, fmt.Sprintf("--fd=%d", fd), "-o", "source=" + SharedDir, "-o", "sandbox=chroot", "-o", "announce_submounts", "-o", "cache=auto", "-o", "xattr"}
	} else {
		cmd.Argv = []string{s.Daemon, fmt.Sprintf("--fd=%d", fd), "--shared-dir=" + SharedDir, "--sandbox=chroot", "--announce-submounts", "--cache=auto", "--xattr", "--log-level=error"}
	}
	return cmd
}

// isCVirtiofsd: QEMU's own of versions before 8, as in Debian 12, has options of another form.
func isCVirtiofsd(path string) bool { return strings.Contains(path, "/qemu/") }

// FindVirtiofsd returns the path of virtiofsd.
func FindVirtiofsd() (string, error) {
	for _, path := range []string{"/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"} {
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", errors.New("virtiofsd is not installed (package virtiofsd; qemu-system-common on Debian 12)")
}
