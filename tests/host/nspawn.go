package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// wrapper runs as PID 1 of the outer PID namespace, in a private mount namespace, with the host's
// directory, the root and the installed tree ("" for none) as $1, $2 and $3 and the rest of
// nspawn's command line after them. It puts the root together: an overlay of the given root and of
// a layer in memory, which takes what the host writes and begins with the installed tree and with
// the seed (seed.go). They are copied because layers of an overlay must not lie inside one another,
// and both may lie inside the root.
//
// It must not exec nspawn, which is not made to be PID 1. nspawn keeps notes in /run/systemd/nspawn
// which it would leave behind when killed: they go to a tmpfs.
const wrapper = `set -eu
dir=$1 root=$2 install=$3
shift 3
mkdir -p /run/systemd/nspawn
mount -t tmpfs -o mode=0755 tmpfs /run/systemd/nspawn
mount -t tmpfs -o mode=0755 tmpfs "$dir/mnt"
cd "$dir/mnt"
mkdir upper work root lower
mount --bind "$root" lower
if [ -n "$install" ]; then
	cp -R --no-dereference --preserve=mode,links "$install/." upper/
fi
cp -a "$dir/seed/." upper/
mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay root
systemd-nspawn --directory="$dir/mnt/root" "$@"
exit $?
`

// commandLine returns the command that runs a host, and its environment.
func commandLine(h *Host, opts Options) (argv, env []string, err error) {
	root := opts.Root
	if root == "" {
		root = "/"
	}
	if root, err = filepath.Abs(root); err != nil {
		return nil, nil, err
	}
	install := opts.Install
	if install != "" {
		if install, err = filepath.Abs(install); err != nil {
			return nil, nil, err
		}
	}
	for _, dir := range []string{root, install} {
		if info, err := os.Stat(dir); dir != "" && (err != nil || !info.IsDir()) {
			return nil, nil, fmt.Errorf("cannot use %s: it is not a directory", dir)
		}
	}
	if systemdBooted() {
		argv = []string{"systemd-run", "--scope", "--quiet", "--collect", "--unit=" + scopeName(h.name), "--property=Delegate=yes", "--"}
	}
	argv = append(argv, "unshare", "--pid", "--fork", "--kill-child=KILL", "--mount", "--mount-proc", "--propagation=private",
		"sh", "-c", wrapper, "magikhost", h.dir, root, install,
		"--quiet", "--boot", "--register=no", "--keep-unit", "--private-network", "--capability=all", "--console=pipe",
		"--machine="+h.name, "--link-journal=no", "--resolv-conf=off", "--timezone=off", "--notify-ready=yes",
		"--tmpfs=/var/lib/magikpod:mode=0755", "--tmpfs=/var/lib/containers:mode=0755")
	// Overlays of an image store or of containers cannot have their upper directories on an
	// overlay: hence the two tmpfs.
	for _, device := range []string{"/dev/net/tun", "/dev/fuse", "/dev/kvm"} {
		if _, err := os.Stat(device); err == nil {
			argv = append(argv, "--bind="+device)
		}
	}
	for _, bind := range opts.Binds {
		argv = append(argv, "--bind="+bind)
	}
	env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8",
		"NOTIFY_SOCKET=" + filepath.Join(h.dir, "notify"),
		"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1", // cgroup v2 in the host, whatever the build host has
		"SYSTEMD_NSPAWN_API_VFS_WRITABLE=1",  // /proc/sys and /sys, for net sysctls and cgroups
		"SYSTEMD_NSPAWN_USE_CGNS=1",
		"SYSTEMD_SECCOMP=0", // nspawn's filter would refuse what OCI runtimes do
	}
	return argv, env, nil
}

// readySocket is where nspawn reports that the host has booted (sd_notify(3), READY=1).
type readySocket struct{ conn *net.UnixConn }

func listenReady(path string) (*readySocket, error) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("cannot listen for the end of the boot: %w", err)
	}
	return &readySocket{conn: conn}, nil
}

func (r *readySocket) Close() error { return r.conn.Close() }

// wait returns when the host has booted; an error when ctx or the host ends first.
func (r *readySocket) wait(ctx context.Context, exited <-chan struct{}) error {
	ready := make(chan error, 1)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := r.conn.Read(buf)
			if err != nil {
				ready <- err
				return
			}
			for line := range strings.Lines(string(buf[:n])) {
				if strings.TrimSpace(line) == "READY=1" {
					ready <- nil
					return
				}
			}
		}
	}()
	defer func() { _ = r.conn.SetReadDeadline(time.Unix(1, 0)) }() // ends the goroutine
	select {
	case err := <-ready:
		return err
	case <-exited:
		return errors.New("it ended while booting")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Check says whether hosts can be booted here; the error says what is missing and how to get it.
func Check() error {
	if os.Geteuid() != 0 {
		return errors.New("booting a disposable host needs root (try: sudo -E make e2e)")
	}
	for _, tool := range []string{"systemd-nspawn", "unshare", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("booting a disposable host needs %s (try: make deps)", tool)
		}
	}
	_, err := cgroupRoot()
	return err
}
