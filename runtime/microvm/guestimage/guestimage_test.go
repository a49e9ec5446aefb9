package guestimage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/testns"
)

func TestMain(m *testing.M) { testns.Main(m) }

// kernel finds one on this host, or in the Debian 13 root of disposable hosts.
func kernel(t *testing.T) Parts {
	t.Helper()
	path, modules, err := FindKernel("")
	if err != nil {
		path, modules, err = FindKernel("../../../.cache/trixie-*/boot/vmlinuz-*")
	}
	if err != nil {
		t.Skipf("%v (try: make root-trixie)", err)
	}
	return Parts{Kernel: path, Modules: modules, Init: "/proc/self/exe"}
}

// entry is a file of an archive.
type entry struct {
	mode    uint32
	content string
}

// readCpio reads an archive, as the kernel does (init/initramfs.c).
func readCpio(t *testing.T, data []byte) (names []string, entries map[string]entry) {
	t.Helper()
	entries = map[string]entry{}
	field := func(i int) int {
		n, err := strconv.ParseUint(string(data[6+8*i:14+8*i]), 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		return int(n)
	}
	round := func(n int) int { return (n + 3) &^ 3 }
	for {
		if len(data) < 110 || string(data[:6]) != "070701" {
			t.Fatalf("no header: %.20q", data)
		}
		size, length := field(6), field(11)
		name := string(data[110 : 110+length-1])
		if name == "TRAILER!!!" {
			return names, entries
		}
		body := round(110 + length)
		entries[name] = entry{uint32(field(1)), string(data[body : body+size])}
		names = append(names, name)
		data = data[body+round(size):]
	}
}

func TestBuild(t *testing.T) {
	parts := kernel(t)
	crun, err := exec.LookPath("crun")
	if err != nil {
		t.Fatal(err)
	}
	parts.Runtime = crun
	cache := Cache{Dir: t.TempDir()}
	var wg sync.WaitGroup
	images := make([]Image, 4)
	for i := range images {
		wg.Go(func() {
			var err error
			if images[i], err = cache.Build(context.Background(), parts); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	image := images[0]
	if n := len(slices.Compact(images)); n != 1 {
		t.Errorf("%d different images", n)
	}
	if image.Release != filepath.Base(parts.Modules) {
		t.Errorf("release %q", image.Release)
	}
	initrd, err := os.ReadFile(image.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	names, entries := readCpio(t, initrd)
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if e := entries["init"]; e.content != string(self) || e.mode&0o111 == 0 {
		t.Errorf("/init has mode %o and %d bytes", e.mode, len(e.content))
	}
	var modules []string
	for _, name := range names {
		if base, ok := strings.CutPrefix(name, "modules/"); ok && entries[name].mode&0o170000 == 0o100000 {
			modules = append(modules, base)
			if !strings.HasPrefix(entries[name].content, "\x7fELF") {
				t.Errorf("%s is no ELF file", name)
			}
		}
	}
	if !slices.IsSorted(modules) || !slices.ContainsFunc(modules, func(n string) bool { return strings.HasSuffix(n, "-vmw_vsock_virtio_transport.ko") }) {
		t.Errorf("modules: %q", modules)
	}
	if !slices.ContainsFunc(modules, func(n string) bool { return n == "later/00-loop.ko" }) {
		t.Errorf("no loop device for later: %q", modules)
	}
	checkRuns(t, entries)
	t.Logf("%d MB with %q", len(initrd)>>20, modules)
}

// checkRuns: the OCI runtime runs with nothing but what the archive has.
func checkRuns(t *testing.T, entries map[string]entry) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for chroot")
	}
	root := t.TempDir()
	for name, e := range entries {
		path := filepath.Join(root, name)
		if e.mode&0o170000 != 0o100000 {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(e.content), os.FileMode(e.mode&0o777)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("proc", filepath.Join(root, "proc"), "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(filepath.Join(root, "proc"), unix.MNT_DETACH)
	out, err := exec.Command("chroot", root, "/bin/crun", "--version").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("crun version")) {
		t.Errorf("crun in the guest's root: %v: %s", err, out)
	}
}

// TestCache: what changes makes another image, and what is torn is made anew.
func TestCache(t *testing.T) {
	parts := kernel(t)
	cache := Cache{Dir: t.TempDir()}
	first, err := cache.Build(context.Background(), parts)
	if err != nil {
		t.Fatal(err)
	}
	for _, damage := range []func() error{
		func() error { return os.Truncate(first.Initrd, 100) },
		func() error { return os.Remove(first.Kernel) },
		func() error {
			return os.WriteFile(filepath.Join(filepath.Dir(first.Kernel), doneFile), []byte("{"), 0o600)
		},
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		again, err := cache.Build(context.Background(), parts)
		if err != nil || again != first {
			t.Fatalf("%v, %v; want %v", again, err, first)
		}
		if info, err := os.Stat(again.Initrd); err != nil || info.Size() < 1000 {
			t.Errorf("the image was not made anew: %v", err)
		}
	}
	program := filepath.Join(t.TempDir(), "init")
	if err := os.WriteFile(program, []byte("#!"), 0o755); err != nil {
		t.Fatal(err)
	}
	parts.Init = program
	second, err := cache.Build(context.Background(), parts)
	if err != nil || second.Key == first.Key {
		t.Fatalf("another program: %v, %v", second, err)
	}
	parts.Init = filepath.Join(t.TempDir(), "none")
	if _, err := cache.Build(context.Background(), parts); err == nil || !strings.HasPrefix(err.Error(), "cannot make a guest image: ") {
		t.Errorf("without a program: %v", err)
	}
}

// TestPrune: the image of other parts goes, but not while a VM may be about to read it, and what a
// VM has open it can read to its end.
func TestPrune(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o755)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file("modules/modules.builtin", strings.Join(modules, ".ko\n")+".ko\n")
	parts := Parts{Kernel: file("vmlinuz-1", "a kernel"), Modules: filepath.Dir(file("modules/modules.dep", "")), Init: file("init-1", "#!")}
	cache := Cache{Dir: filepath.Join(dir, "cache")}
	prune := func(p Parts) {
		t.Helper()
		if err := cache.Prune(p); err != nil {
			t.Fatal(err)
		}
	}
	prune(parts) // nothing is there
	build := func(p Parts) Image {
		t.Helper()
		image, err := cache.Build(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		return image
	}
	there := func(when string, image Image, want bool) {
		t.Helper()
		if _, err := os.Stat(image.Initrd); (err == nil) != want {
			t.Errorf("%s: the image is there: %t, want %t", when, err == nil, want)
		}
	}
	age := func(image Image) {
		t.Helper()
		past := time.Now().Add(-inUse - time.Minute)
		if err := os.Chtimes(filepath.Dir(image.Kernel), past, past); err != nil {
			t.Fatal(err)
		}
	}
	first := build(parts)
	age(first)
	prune(parts)
	there("no other", first, true)
	newer := parts
	newer.Init = file("init-2", "#!")
	age(first)
	build(parts) // a VM is being made
	second := build(newer)
	prune(newer)
	there("asked for just now", first, true)
	open, err := os.Open(first.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	age(first)
	torn := filepath.Dir(file("cache/0123"+buildingSuffix+"/"+kernelFile, "half"))
	prune(newer)
	there("old", first, false)
	there("the one of the parts", second, true)
	if _, err := os.Stat(torn); err == nil {
		t.Error("what a crash has left is there")
	}
	if data, err := io.ReadAll(open); err != nil || len(data) == 0 {
		t.Errorf("an image that is open: %d bytes, %v", len(data), err)
	}
	if err := os.Remove(newer.Init); err != nil {
		t.Fatal(err)
	}
	if err := cache.Prune(newer); err == nil || !strings.HasPrefix(err.Error(), "cannot prune guest images: ") {
		t.Errorf("without a program: %v", err)
	}
	there("nobody knows which one is needed", second, true)
}

func TestFindModules(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("modules.builtin", "kernel/drivers/virtio/virtio_pci.ko\nkernel/fs/ext4/ext4.ko\n")
	dep := "k/blk/virtio_blk.ko.xz:\nk/net/virtio_net.ko.xz: k/net/net_failover.ko.xz k/net/failover.ko.xz\nk/net/net_failover.ko.xz: k/net/failover.ko.xz\nk/net/failover.ko.xz:\n" +
		"k/v/vmw_vsock_virtio_transport.ko.xz: k/v/common.ko.xz k/v/vsock.ko.xz\nk/v/common.ko.xz: k/v/vsock.ko.xz\nk/v/vsock.ko.xz:\nk/fs/erofs.ko.xz:\nk/fs/overlay.ko.xz:\n" +
		"k/virtio_mmio.ko.xz:\nk/loop.ko.xz: k/v/common.ko.xz k/blk/helper.ko.xz\nk/blk/helper.ko.xz:\n"
	write("modules.dep", dep)
	boot, later, err := findModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		got  []string
		want string
	}{
		{boot, "vsock common vmw_vsock_virtio_transport virtio_blk failover net_failover virtio_net erofs overlay virtio_mmio"},
		{later, "helper loop"}, // what else it needs is loaded at the boot
	} {
		var names []string
		for _, path := range c.got {
			names = append(names, moduleName(path))
		}
		if want := strings.Fields(c.want); !slices.Equal(names, want) {
			t.Errorf("%q, want %q", names, want)
		}
	}
	write("modules.dep", strings.Replace(dep, "erofs", "other", 1))
	if _, _, err := findModules(dir); err == nil || !strings.Contains(err.Error(), "has no erofs") {
		t.Errorf("without erofs: %v", err)
	}
}

func TestFindKernel(t *testing.T) {
	root := t.TempDir()
	for _, v := range []string{"6.9.1-amd64", "6.12.1-cloud-amd64", "6.9.12-cloud-amd64", "7.0-amd64"} {
		for _, err := range []error{
			os.MkdirAll(filepath.Join(root, "lib/modules", v), 0o755), os.MkdirAll(filepath.Join(root, "boot"), 0o755),
			os.WriteFile(filepath.Join(root, "lib/modules", v, "modules.dep"), nil, 0o644), os.WriteFile(filepath.Join(root, "boot/vmlinuz-"+v), nil, 0o644),
			os.WriteFile(filepath.Join(root, "boot/vmlinuz-9.9-cloud-amd64"), nil, 0o644),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	got, modules, err := FindKernel(root + "/boot/vmlinuz-*")
	if want := root + "/boot/vmlinuz-6.12.1-cloud-amd64"; err != nil || got != want || modules != root+"/lib/modules/6.12.1-cloud-amd64" {
		t.Errorf("%q, %q, %v; want %q", got, modules, err, want)
	}
	if _, _, err := FindKernel(root + "/none-*"); err == nil {
		t.Error("a kernel was found where there is none")
	}
}

func TestLibraries(t *testing.T) {
	got, err := Libraries("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	if len(got) < 2 {
		t.Errorf("the libraries of a shell: %v", got)
	}
	for where, file := range got {
		if _, err := os.Stat(file); err != nil || !filepath.IsAbs(where) {
			t.Errorf("%s: %v", where, err)
		}
	}
	if self, err := Libraries("/proc/self/exe"); err == nil && len(self) > 0 {
		t.Log(fmt.Sprint("this program is not static: ", self))
	}
	if _, err := Libraries("/etc/passwd"); err == nil {
		t.Error("a text file has libraries")
	}
}
