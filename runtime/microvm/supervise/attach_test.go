package supervise

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/microvm/attach"
	"github.com/magikrun/magikpod/runtime/microvm/disks"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// rootfs is a container image with all that images have, in two layers; merged is what a container
// would see, as the guest describes it.
func rootfs(t *testing.T) (r runtime.Rootfs, merged []string) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("layers", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	low, high := filepath.Join(dir, "low"), filepath.Join(dir, "high")
	for _, err := range []error{
		os.MkdirAll(low+"/bin", 0o755), os.MkdirAll(low+"/gone/deep", 0o755), os.Mkdir(low+"/tmp", 0o755), os.Chmod(low+"/tmp", 0o777|os.ModeSticky), os.MkdirAll(high, 0o755),
		os.WriteFile(low+"/bin/tool", []byte(strings.Repeat("magikpod ", 300_000)), 0o755), os.Chmod(low+"/bin/tool", 0o755|os.ModeSetuid),
		unix.Setxattr(low+"/bin/tool", "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0),
		os.Symlink("/bin/tool", low+"/bin/link"), os.WriteFile(low+"/removed", []byte("x"), 0o644), os.WriteFile(low+"/owned", []byte("x"), 0o604), os.Chown(low+"/owned", 70000, 2000),
		unix.Mknod(low+"/null", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))), unix.Mkfifo(low+"/fifo", 0o600), os.Chtimes(low+"/owned", time.Unix(1e9, 0), time.Unix(1e9, 0)),
		unix.Mknod(high+"/removed", unix.S_IFCHR, 0), os.Mkdir(high+"/gone", 0o711), unix.Setxattr(high+"/gone", "trusted.overlay.opaque", []byte("y"), 0),
		os.WriteFile(high+"/empty", nil, 0o600), os.WriteFile(high+"/gone/new", []byte("new\n"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	// Two mount namespaces would be one too many for a test: what is merged is put together by
	// hand, from the same files.
	for _, side := range []string{low, high} {
		lines, err := listTree(side)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range lines {
			name, _, _ := strings.Cut(line, " ")
			if side == low && (strings.HasPrefix(name, "gone") || name == "removed" || name == ".") || side == high && name == "removed" {
				continue
			}
			merged = append(merged, line)
		}
	}
	slices.Sort(merged)
	return runtime.Rootfs{Dir: dir, Layers: []string{"low", "high"}}, merged
}

// TestDisks attaches the disk of an image, and a scratch disk that is there from the start, and has
// the guest's kernel read and write them.
func TestDisks(t *testing.T) {
	for _, machine := range []string{"pc", "q35"} {
		t.Run(machine, func(t *testing.T) {
			scratch := filepath.Join(t.TempDir(), "scratch")
			if err := disks.MakeScratch(context.Background(), scratch, 64<<20); err != nil {
				t.Fatal(err)
			}
			m := boot(t, vmm.QEMU{}, func(c *Config) {
				c.VM.Machine = machine
				c.VM.Disks = []vmm.Disk{{Path: scratch, Serial: "scratch"}}
			})
			layers, want := rootfs(t)
			image, err := disks.NewCache(t.TempDir()).Image(context.Background(), layers)
			if err != nil {
				t.Fatal(err)
			}
			disk := vmm.Disk{Path: image.Path, Serial: image.Serial, ReadOnly: true}
			begin := time.Now()
			for range 2 { // the second time nothing happens
				if place, err := m.attach().Disk(context.Background(), disk); err != nil || place != (vmm.Place{Disk: image.Serial}) {
					t.Fatalf("attached as %+v, %v", place, err)
				}
			}
			got := m.tree(vmm.Place{Disk: image.Serial})
			t.Logf("attached, mounted and read after %v", time.Since(begin))
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("the image in the guest (-want +got):\n%s", diff)
			}
			m.ask(request{Action: "write", Serial: "scratch", FSType: "ext4", Path: "new"})
			if got := m.ask(request{Action: "disks"}).Lines; !slices.Equal(got, []string{image.Serial, "scratch"}) {
				t.Errorf("the guest's disks: %q", got)
			}
			if _, err := m.attach().Disk(context.Background(), vmm.Disk{Path: image.Path, Serial: "other", ReadOnly: true}); err != nil {
				t.Fatal(err)
			}
			m.sees(image.Serial, "other", "scratch")
		})
	}
}

// attachTo is a VM to attach something to.
func attachTo(c *Config) attach.VM { return attach.VM{Config: &c.VM, State: c.ReadState} }

func (m *testVM) attach() attach.VM { return attachTo(m.Config) }

// tree lists what is in an image.
func (m *testVM) tree(p vmm.Place) []string {
	m.t.Helper()
	r := request{Action: "tree", Serial: p.Disk, FSType: "erofs"}
	if p.Disk == "" {
		r.Share, r.Serial = p.Share, p.File
	}
	lines := m.ask(r).Lines
	slices.Sort(lines)
	return lines
}

// sees waits until the guest has exactly these disks.
func (m *testVM) sees(serials ...string) {
	m.t.Helper()
	slices.Sort(serials)
	var got []string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if got = m.ask(request{Action: "disks"}).Lines; slices.Equal(got, serials) {
			return
		}
	}
	m.t.Fatalf("the guest's disks are %q, want %q", got, serials)
}

// TestManyDisks: as many as are promised.
func TestManyDisks(t *testing.T) {
	m := boot(t, vmm.QEMU{}, nil)
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	var serials []string
	for i := range (vmm.QEMU{}).Can(&m.VM).MaxDisks {
		serial := "disk" + string(rune('a'+i))
		if _, err := m.attach().Disk(context.Background(), vmm.Disk{Path: path, Serial: serial, ReadOnly: true}); err != nil {
			t.Fatalf("disk %d: %v", i, err)
		}
		serials = append(serials, serial)
	}
	m.sees(serials...)
}

// TestShareDisk: an image in a file of the share is mounted as one on a disk is.
func TestShareDisk(t *testing.T) {
	daemon, err := vmm.FindVirtiofsd()
	if err != nil {
		t.Skipf("%v (try: MAGIKHOST_ROOT=trixie make host-test PKG=./runtime/microvm/supervise)", err)
	}
	m := boot(t, vmm.QEMU{}, func(c *Config) { c.VM.Share = &vmm.Share{Tag: "share", Daemon: daemon} })
	layers, want := rootfs(t)
	image, err := disks.NewCache(t.TempDir()).Image(context.Background(), layers)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time nothing happens
		place, err := m.attach().ShareDisk(vmm.Disk{Path: image.Path, Serial: image.Serial, ReadOnly: true})
		if err != nil || place != (vmm.Place{Share: "share", File: image.Serial + ".erofs"}) {
			t.Fatalf("shared as %+v, %v", place, err)
		}
		if diff := cmp.Diff(want, m.tree(place)); diff != "" {
			t.Errorf("the image in the guest (-want +got):\n%s", diff)
		}
	}
	if _, err := m.try(request{Action: "write", Serial: "share", FSType: "virtiofs", Path: image.Serial + ".erofs"}); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("a write to the image: %v", err)
	}
}

// TestNIC: the guest has the address it is given, on a tap that is up and goes with the VM.
func TestNIC(t *testing.T) {
	const name, address = "vmtest0", "02:00:00:00:00:07"
	m := boot(t, vmm.QEMU{}, func(c *Config) { c.VM.NIC = &vmm.NIC{Tap: name, MAC: address, MTU: 1400} })
	if got := m.ask(request{Action: "links"}).Lines; !slices.Contains(got, address) {
		t.Errorf("the guest's links: %q", got)
	}
	// The flags are UP, BROADCAST and MULTICAST (netdevice(7)).
	for file, want := range map[string]string{"mtu": "1400", "flags": "0x1003"} {
		if got, err := os.ReadFile("/sys/class/net/" + name + "/" + file); err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("the tap's %s is %q, %v; want %q", file, got, err, want)
		}
	}
	m.close()
	if _, err := os.Stat("/sys/class/net/" + name); err == nil {
		t.Error("the tap is left")
	}
}

// TestShare: directories of the host appear in the guest while it runs, with what is written to
// them, and no further than they may be.
func TestShare(t *testing.T) {
	daemon, err := vmm.FindVirtiofsd()
	if err != nil {
		t.Skipf("%v (try: MAGIKHOST_ROOT=trixie make host-test PKG=./runtime/microvm/supervise)", err)
	}
	dir := t.TempDir()
	for _, name := range []string{"rw", "ro"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "ro", "hello"), []byte("hello\n"), 0o604); err != nil {
		t.Fatal(err)
	}
	m := boot(t, vmm.QEMU{}, func(c *Config) { c.VM.Share = &vmm.Share{Tag: "share", Daemon: daemon} })
	for _, name := range []string{"rw", "ro"} {
		if err := m.attach().Share(name, filepath.Join(dir, name), name == "ro"); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.attach().Share("file", filepath.Join(dir, "ro", "hello"), true); err != nil {
		t.Fatal(err)
	}
	share := request{Action: "tree", Serial: "share", FSType: "virtiofs"}
	got := strings.Join(m.ask(share).Lines, "\n")
	for _, want := range []string{"\nro/hello -rw----r-- 0:0 ", "\nrw drwxr-xr-x 0:0 ", "\nfile -rw----r-- 0:0 "} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in the share:\n%s", want, got)
		}
	}
	m.ask(request{Action: "write", Serial: "share", FSType: "virtiofs", Path: "rw/new"})
	if text, err := os.ReadFile(filepath.Join(dir, "rw/new")); err != nil || string(text) != "written by the guest\n" {
		t.Errorf("on the host: %q, %v", text, err)
	}
	if _, err := m.try(request{Action: "write", Serial: "share", FSType: "virtiofs", Path: "ro/new"}); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("a write to what is read-only: %v", err)
	}
	for _, bad := range []string{"", "..", "a/b"} {
		if err := m.attach().Share(bad, dir, true); err == nil {
			t.Errorf("%q counts as a name", bad)
		}
	}
}
