package guestimage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/newc"
	"github.com/magikrun/magikpod/internal/vmlinux"
)

// Parts are what an image is made from. All are paths on this host.
type Parts struct {
	// Kernel is a vmlinuz and Modules its directory, /lib/modules/VERSION; see [FindKernel].
	Kernel, Modules string
	// Init is the static program that becomes /init, the guest's first process.
	Init string
	// Runtime is the OCI runtime, which gets the path /bin/crun, with the libraries that it is
	// linked with. Empty: none.
	Runtime string
}

// Image is what a VM boots from.
type Image struct {
	Kernel  string // vmlinux; of an architecture or compression that is not known here, the vmlinuz
	Initrd  string // an uncompressed cpio archive: to unpack a compressed one takes the guest longer than to read this one
	Release string // of the kernel, as uname -r
	Key     string // names the image in the cache
}

// Cache keeps images in a directory. Several processes may use it at once.
type Cache struct{ Dir string }

// format is part of every key: another way to make an image makes another image.
const format = "1"

const (
	kernelFile = "vmlinux"
	initrdFile = "initrd.cpio"
	doneFile   = "done.json" // written last: the sizes of the others

	buildingSuffix = ".building"
)

// FindKernel returns the kernel to use and the directory of its modules. pattern is a pattern of
// file names or empty: /boot/vmlinuz-*. Those without modules are left out; one for the cloud,
// which has the same drivers and less of others, is preferred, then the newest.
func FindKernel(pattern string) (kernel, modules string, err error) {
	if pattern == "" {
		pattern = "/boot/vmlinuz-*"
	}
	found, err := filepath.Glob(pattern)
	if err != nil {
		return "", "", fmt.Errorf("cannot find a kernel for guests: %q: %w", pattern, err)
	}
	found = slices.DeleteFunc(found, func(path string) bool { return modulesOf(path) == "" })
	if len(found) == 0 {
		return "", "", fmt.Errorf("cannot find a kernel for guests: no %s has modules in /lib/modules (package linux-image-cloud-amd64)", pattern)
	}
	best := slices.MaxFunc(found, func(a, b string) int {
		if ac, bc := strings.Contains(a, "cloud"), strings.Contains(b, "cloud"); ac != bc {
			if ac {
				return 1
			}
			return -1
		}
		return compareVersions(filepath.Base(a), filepath.Base(b))
	})
	return best, modulesOf(best), nil
}

// modulesOf returns the directory of a kernel's modules, in the same root file system:
// /boot/vmlinuz-V, /lib/modules/V.
func modulesOf(kernel string) string {
	release := strings.TrimPrefix(filepath.Base(kernel), "vmlinuz-")
	dir := filepath.Join(filepath.Dir(filepath.Dir(kernel)), "lib/modules", release)
	if _, err := os.Stat(filepath.Join(dir, "modules.dep")); err != nil {
		return ""
	}
	return dir
}

// Build returns the image of the parts, which is made unless it is there.
func (c Cache) Build(ctx context.Context, p Parts) (Image, error) {
	image, err := c.build(ctx, p)
	if err != nil {
		return Image{}, fmt.Errorf("cannot make a guest image: %w", err)
	}
	return image, nil
}

func (c Cache) build(ctx context.Context, p Parts) (Image, error) {
	key, err := p.key()
	if err != nil {
		return Image{}, err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return Image{}, err
	}
	lock, err := c.lock()
	if err != nil {
		return Image{}, err
	}
	defer lock.Close()
	dir := filepath.Join(c.Dir, key)
	if image, ok := c.find(p, key); ok {
		return image, markUse(dir)
	}
	if err := ctx.Err(); err != nil {
		return Image{}, err
	}
	building := filepath.Join(c.Dir, key+buildingSuffix)
	if err := errors.Join(os.RemoveAll(building), os.RemoveAll(dir)); err != nil {
		return Image{}, err
	}
	defer os.RemoveAll(building)
	if err := p.write(building); err != nil {
		return Image{}, err
	}
	if err := os.Rename(building, dir); err != nil {
		return Image{}, err
	}
	image, ok := c.find(p, key)
	if !ok {
		return Image{}, errors.New("what was made is not complete")
	}
	return image, nil
}

// key names the image. The files stand for what is in them: nobody changes a kernel or a program in
// place.
func (p Parts) key() (string, error) {
	hash := sha256.New()
	fmt.Fprintln(hash, "format", format, modules, optionalModules, laterModules)
	for _, path := range []string{p.Kernel, filepath.Join(p.Modules, "modules.dep"), p.Init, p.Runtime} {
		if path == "" {
			fmt.Fprintln(hash, "none")
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return "", &os.PathError{Op: "stat", Path: path, Err: err}
		}
		fmt.Fprintln(hash, path, st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano())
	}
	return hex.EncodeToString(hash.Sum(nil)[:12]), nil
}

// find returns the image of that key if it is complete.
func (c Cache) find(p Parts, key string) (Image, bool) {
	dir := filepath.Join(c.Dir, key)
	sizes, err := os.ReadFile(filepath.Join(dir, doneFile))
	var want map[string]int64
	if err != nil || json.Unmarshal(sizes, &want) != nil || len(want) != 2 {
		return Image{}, false
	}
	for name, size := range want {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() != size {
			return Image{}, false
		}
	}
	return Image{Kernel: filepath.Join(dir, kernelFile), Initrd: filepath.Join(dir, initrdFile), Release: filepath.Base(p.Modules), Key: key}, true
}

// inUse is how long an image is kept for who has asked for it: the VMM of a VM reads it when it
// starts, and has it open by the time it answers. The VM's unit must have come that far within two
// minutes of its start (TimeoutStartSec=), whatever becomes of the daemon that has asked.
const inUse = 10 * time.Minute

// markUse notes that an image has been asked for.
func markUse(dir string) error {
	now := time.Now()
	return os.Chtimes(dir, now, now)
}

// Prune removes what is neither the image of the parts nor one that a VM may be about to start
// with. VMs that run have their images open.
func (c Cache) Prune(p Parts) error {
	if err := c.prune(p); err != nil {
		return fmt.Errorf("cannot prune guest images: %w", err)
	}
	return nil
}

func (c Cache) prune(p Parts) error {
	entries, err := os.ReadDir(c.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	key, err := p.key()
	if err != nil {
		return err
	}
	lock, err := c.lock() // nobody makes an image now: a torn one is what a crash has left
	if err != nil {
		return err
	}
	defer lock.Close()
	var errs []error
	for _, entry := range entries {
		if !entry.IsDir() || entry.Name() == key {
			continue
		}
		dir := filepath.Join(c.Dir, entry.Name())
		info, err := os.Stat(dir)
		if err == nil && (strings.HasSuffix(dir, buildingSuffix) || time.Since(info.ModTime()) > inUse) {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	return errors.Join(errs...)
}

// lock waits until no other process makes or removes an image, and keeps it so until the file is closed.
func (c Cache) lock() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(c.Dir, ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot lock %s: %w", c.Dir, err)
	}
	return f, nil
}

// write makes all files of an image in a new directory.
func (p Parts) write(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	packed, err := os.ReadFile(p.Kernel)
	if err != nil {
		return err
	}
	// The VMM's user, which is not root, reads both files.
	kernel, err := vmlinux.Unpack(packed)
	if err != nil {
		kernel = packed // it unpacks itself, or the VM's firmware does it
	}
	if err := writeFile(filepath.Join(dir, kernelFile), func(f *os.File) error { _, err := f.Write(kernel); return err }); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, initrdFile), p.writeInitrd); err != nil {
		return err
	}
	sizes := map[string]int64{}
	for _, name := range []string{kernelFile, initrdFile} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		sizes[name] = info.Size()
	}
	return writeFile(filepath.Join(dir, doneFile), func(f *os.File) error { return json.NewEncoder(f).Encode(sizes) })
}

func writeFile(path string, write func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Chmod(0o644), f.Sync(), f.Close())
}

// addModules adds modules under names that sort as they are to be loaded.
func addModules(c *newc.Writer, dir string, list []string) error {
	for i, m := range list {
		content, err := readModule(m)
		if err != nil {
			return err
		}
		c.Text(fmt.Sprintf("%s/%02d-%s.ko", dir, i, moduleName(m)), 0o644, string(content))
	}
	return nil
}

func (p Parts) writeInitrd(f *os.File) error {
	boot, later, err := findModules(p.Modules)
	if err != nil {
		return err
	}
	c := newc.New(f)
	for _, dir := range []string{"proc", "sys", "dev", "run", "tmp", "etc", "bin", "modules"} {
		c.Mkdir(dir, 0o755)
	}
	c.Device("dev/console", 5, 1)
	c.Device("dev/null", 1, 3)
	// What they are, if they are symbolic links.
	program, err := filepath.EvalSymlinks(p.Init)
	if err != nil {
		return err
	}
	c.Add("init", program)
	if err := errors.Join(addModules(c, "modules", boot), addModules(c, "modules/later", later)); err != nil {
		return err
	}
	if p.Runtime != "" {
		crun, err := filepath.EvalSymlinks(p.Runtime)
		if err != nil {
			return err
		}
		c.Add("bin/crun", crun)
		libraries, err := Libraries(crun)
		if err != nil {
			return err
		}
		for _, l := range sorted(libraries) {
			c.Add(l.name, l.path)
		}
	}
	return c.Close()
}
