package vmm

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// SharedDir is the directory that virtiofsd serves, in its own mount namespace. It is empty until
// something is mounted in it.
const SharedDir = "/shared"

// virtiofsd serves SharedDir. Its jail is a mount namespace of its own already, and it must stay
// root in it to give files their owners.
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
