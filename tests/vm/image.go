package vm

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/magikrun/magikpod/internal/vmlinux"
	"github.com/magikrun/magikpod/tests/host"
)

// packages are what the root has beyond minbase: what magikpod needs, the kernel, QEMU for here and
// for VMs in the VM, and tools of tests.
var packages = []string{
	"systemd", "systemd-sysv", "dbus", "polkitd", "udev", "kmod", "crun", "runc", "nftables", "iproute2", "procps", "curl", "ca-certificates", "busybox-static",
	"netcat-openbsd", "conntrack", "linux-image-cloud-amd64", "qemu-system-x86", "virtiofsd", "erofs-utils", "e2fsprogs",
}

// setup is the script that finishes the root; $1 is its directory.
//
//go:embed setup.sh
var setup string

// bootModules are those that the kernel needs to get at its root, in the order of loading.
var bootModules = []string{"virtio_blk", "libcrc32c", "erofs", "overlay"}

// Image is what VMs boot from. All of it is in a directory of the cache.
type Image struct {
	dir string
}

func (i Image) root() string    { return filepath.Join(i.dir, "root") }
func (i Image) erofs() string   { return filepath.Join(i.dir, "root.erofs") }
func (i Image) kernel() string  { return filepath.Join(i.dir, "vmlinux") }
func (i Image) modules() string { return filepath.Join(i.dir, "modules") }

// BuildImage makes the image unless it is in the cache (.cache of the source tree). What it is made
// from is part of its name, so that a change builds a new one.
func BuildImage(ctx context.Context) (Image, error) {
	tree, err := host.SourceTree()
	if err != nil {
		return Image{}, err
	}
	sum := sha256.Sum256([]byte(strings.Join(packages, " ") + "\x00" + setup + "\x00" + strings.Join(bootModules, " ")))
	dir := filepath.Join(tree, ".cache", "vm-"+hex.EncodeToString(sum[:6]))
	return Image{dir}, host.Cached(dir, func(building string) error {
		err := (Image{building}).build(ctx)
		if err != nil {
			return fmt.Errorf("cannot build the image of test VMs: %w", err)
		}
		return nil
	})
}

func (i Image) build(ctx context.Context) error {
	if err := os.MkdirAll(i.modules(), 0o755); err != nil {
		return err
	}
	if err := host.Debootstrap(ctx, i.root(), packages, setup); err != nil {
		return err
	}
	if err := i.unpackKernel(); err != nil {
		return err
	}
	if err := i.unpackModules(ctx); err != nil {
		return err
	}
	out, err := i.command(ctx, "usr/bin/mkfs.erofs", "-zlz4", "--exclude-regex=^(var/cache|var/lib/apt)/.*", i.erofs(), i.root()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.erofs: %w: %s", err, out)
	}
	return nil
}

// command is a program of the root that runs here, through the root's dynamic loader.
func (i Image) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	libraries := filepath.Join(i.root(), "usr/lib/x86_64-linux-gnu")
	argv := append([]string{"--library-path", libraries, filepath.Join(i.root(), program)}, args...)
	cmd := exec.CommandContext(ctx, filepath.Join(i.root(), "usr/lib64/ld-linux-x86-64.so.2"), argv...)
	cmd.Env = append(os.Environ(), "QEMU_MODULE_DIR="+filepath.Join(libraries, "qemu"))
	return cmd
}

// unpackKernel takes the kernel out of its self-extracting file: emulated, it would unpack itself
// for seconds, each time.
func (i Image) unpackKernel() error {
	path, err := one(filepath.Join(i.root(), "boot/vmlinuz-*"))
	if err != nil {
		return err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	kernel, err := vmlinux.Unpack(data)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(i.kernel(), kernel, 0o644)
}

// one returns the one path that matches a pattern.
func one(pattern string) (string, error) {
	paths, err := filepath.Glob(pattern)
	if err != nil {
		return "", err
	}
	if len(paths) != 1 {
		return "", fmt.Errorf("%s matches %q, want one file", pattern, paths)
	}
	return paths[0], nil
}

// unpackModules writes the modules for booting to a directory, numbered.
func (i Image) unpackModules(ctx context.Context) error {
	for n, name := range bootModules {
		if err := i.unpackModule(ctx, name, filepath.Join(i.modules(), fmt.Sprintf("%02d-%s.ko", n, name))); err != nil {
			return err
		}
	}
	return nil
}

// unpackModule uncompresses a module of the kernel to a file.
func (i Image) unpackModule(ctx context.Context, name, to string) error {
	dir, err := one(filepath.Join(i.root(), "usr/lib/modules/*"))
	if err != nil {
		return err
	}
	var from string
	err = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if filepath.Base(path) == name+".ko.xz" {
			from = path
		}
		return err
	})
	if err != nil {
		return err
	}
	var problem bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(i.root(), "usr/bin/busybox"), "xz", "-dc", from)
	cmd.Stderr = &problem
	module, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("cannot unpack module %s (%q): %w: %s", name, from, err, problem.String())
	}
	return os.WriteFile(to, module, 0o644)
}

// MakeDisk makes a sparse raw image of 2 GiB with an empty ext4 file system, for [Options.Disk].
func (i Image) MakeDisk(ctx context.Context, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(2<<30), f.Close()); err != nil {
		return err
	}
	if out, err := i.command(ctx, "usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", path).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot make a file system in %s: %w: %s", path, err, out)
	}
	return nil
}

// CheckDisk is fsck of an image that no VM uses: an error when its file system is damaged beyond
// what its journal mends.
func (i Image) CheckDisk(ctx context.Context, path string) error {
	// 1: errors corrected, as those of the journal.
	out, err := i.command(ctx, "usr/sbin/e2fsck", "-p", "-f", path).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 1 {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("the file system in %s is damaged: %w: %s", path, err, out)
	}
	return nil
}
