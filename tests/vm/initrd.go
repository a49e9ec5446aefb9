package vm

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/tests/host"
)

//go:embed init.sh
var initScript string

// guestPath is where the program that runs commands lies in the VM.
const guestPath = "/usr/local/libexec/guest"

const guestUnit = `[Unit]
Description=runs the commands of tests
After=basic.target dbus.socket
Before=multi-user.target
[Service]
ExecStart=` + guestPath + ` serve
Restart=no
LimitNOFILE=1024:524288
TasksMax=infinity
KillMode=process
`

// writeInitrd makes the initrd in memory: what all VMs have.
func (i Image) writeInitrd(ctx context.Context) (*os.File, error) {
	guest, err := buildGuest(ctx)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("initrd", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "initrd")
	c := newCpio(f)
	for _, dir := range []string{"bin", "dev", "proc", "root", "rw", "modules", "base"} {
		c.mkdir(dir, 0o755)
	}
	c.device("dev/console", 5, 1)
	c.text("init", 0o755, initScript)
	c.add("bin/busybox", filepath.Join(i.root(), "usr/bin/busybox"))
	c.add("modules", i.modules())
	c.add("base"+guestPath, guest)
	c.text("base/etc/systemd/system/guest.service", 0o644, guestUnit)
	c.link("base/etc/systemd/system/multi-user.target.wants/guest.service", "../guest.service")
	if err := c.close(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot make the initrd: %w", err), f.Close())
	}
	return f, nil
}

// buildGuest builds the program in the cache and returns its path.
func buildGuest(ctx context.Context) (string, error) {
	tree, err := host.SourceTree()
	if err != nil {
		return "", err
	}
	out := filepath.Join(tree, ".cache", "vm-guest")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "./tests/vm/guest")
	cmd.Dir = tree
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot build the program for the VM: %w: %s", err, text)
	}
	return out, nil
}
