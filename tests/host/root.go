package host

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	goruntime "runtime"
	"strings"
	"syscall"
)

// trixiePackages are what the Debian 13 root has beyond mmdebstrap's minbase: what magikpod needs,
// podman for the benchmarks, and tools that tests use.
var trixiePackages = []string{
	"systemd", "systemd-sysv", "dbus", "polkitd", "crun", "runc", "nftables", "iproute2", "procps", "curl", "ca-certificates", "busybox-static", "netcat-openbsd",
	"podman", "catatonit", "netavark", "aardvark-dns", "passt", "systemd-container",
	// For pods in VMs; vhost-device-vsock comes from sid, see BuildTrixie.
	"linux-image-cloud-amd64", "qemu-system-x86", "virtiofsd", "erofs-utils", "e2fsprogs", "kmod",
}

// trixieSetup is the script that finishes the root; $1 is its directory.
//
//go:embed trixie-setup.sh
var trixieSetup string

// FindRoot returns the directory of the named root: "" for the build host's own, the cached one for
// "trixie", else the name itself, a directory.
func FindRoot(name string) (string, error) {
	if name != "trixie" {
		return name, nil
	}
	dir, err := trixieDir()
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); err != nil {
		return "", errors.New("the Debian 13 root has not been built (try: make root-trixie)")
	}
	return dir, nil
}

// BuildTrixie makes the Debian 13 root in the cache unless it is there, and returns its directory.
// What it is made from is part of its name, so that a change builds a new one; older ones are
// removed. Its text goes to standard error.
func BuildTrixie(ctx context.Context) (string, error) {
	dir, err := trixieDir()
	if err != nil {
		return "", err
	}
	return dir, Cached(dir, func(building string) error {
		if err := Debootstrap(ctx, building, trixiePackages, trixieSetup); err != nil {
			return err
		}
		return installVsockDevice(ctx, building)
	})
}

// installVsockDevice installs vhost-device-vsock, which Debian 13 does not have, in the root.
func installVsockDevice(ctx context.Context, root string) error {
	tree, err := SourceTree()
	if err != nil {
		return err
	}
	deb := root + ".vhost-device-vsock.deb"
	defer os.Remove(deb)
	for _, argv := range [][]string{{filepath.Join(tree, "scripts/vhost-device-vsock"), deb}, {"dpkg", "--root=" + root, "--install", deb}} {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("cannot install vhost-device-vsock: %w", err)
		}
	}
	return nil
}

// Cached has build make the directory dir, KIND-DIGEST with a digest of 12 hexadecimal digits,
// under another name that is given to it, unless dir is there. Siblings of its kind are of older
// versions, or what an interrupted build has left, and are removed; others stay, also those that
// begin alike.
func Cached(dir string, build func(building string) error) error {
	cache := filepath.Dir(dir)
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	name := cachedName.FindStringSubmatch(filepath.Base(dir))
	if name == nil {
		return fmt.Errorf("cannot keep %s: its name must end in - and 12 hexadecimal digits", dir)
	}
	kind := name[1]
	lock, err := lockFile(filepath.Join(cache, kind+".lock"), syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	siblings, err := os.ReadDir(cache)
	if err != nil {
		return err
	}
	for _, sibling := range siblings {
		if name := cachedName.FindStringSubmatch(sibling.Name()); name == nil || name[1] != kind {
			continue
		}
		if err := os.RemoveAll(filepath.Join(cache, sibling.Name())); err != nil {
			return err
		}
	}
	building := dir + ".building"
	if err := build(building); err != nil {
		return errors.Join(err, os.RemoveAll(building))
	}
	return os.Rename(building, dir)
}

// cachedName has the kind, and what a build in progress adds to its name.
var cachedName = regexp.MustCompile(`^([a-z]+)-[0-9a-f]{12}(\..*)?$`)

// Debootstrap makes a Debian 13 root in dir from minbase and the packages, which come from where
// the build host has its own; setup is a shell script that finishes it, $1 its directory. Its text
// goes to standard error.
func Debootstrap(ctx context.Context, dir string, packages []string, setup string) error {
	sources, err := debianSources(ctx, "trixie")
	if err != nil {
		return err
	}
	// mmdebstrap mounts /proc and others in the root it builds: in namespaces of its own they go
	// with it, however it ends, and are never in the way of RemoveAll here. It hands its root to a
	// hook as $1.
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--propagation=private", "--pid", "--fork", "--mount-proc", "--kill-child=KILL",
		"mmdebstrap", "--mode=root", "--variant=minbase", "--include="+strings.Join(packages, ","),
		"--aptopt=Acquire::Languages \"none\"", "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		"--customize-hook="+setup, "trixie", dir)
	cmd.Args = append(cmd.Args, sources...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	goruntime.LockOSThread() // for Pdeathsig
	defer goruntime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("cannot build a Debian 13 root with mmdebstrap: %w", err)
	}
	return nil
}

// debianSources are lines of sources.list(5) for a suite of Debian's.
func debianSources(ctx context.Context, suite string) ([]string, error) {
	tree, err := SourceTree()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(tree, "scripts/debian-sources"), suite)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("cannot find the build host's sources of Debian: %w", err)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n"), nil
}

// trixieDir is where the Debian 13 root is or will be: .cache of the source tree.
func trixieDir() (string, error) {
	top, err := SourceTree()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(strings.Join(trixiePackages, " ") + "\x00" + trixieSetup + "\x00vhost-device-vsock"))
	return filepath.Join(top, ".cache", "trixie-"+hex.EncodeToString(sum[:6])), nil
}

// SourceTree is the directory of go.mod, at or above the working directory.
func SourceTree() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("cannot find the source tree: no go.mod at or above the working directory")
		}
		dir = parent
	}
}
