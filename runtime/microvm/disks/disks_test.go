package disks

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/testns"
	"github.com/magikrun/magikpod/internal/testutil"
	"github.com/magikrun/magikpod/runtime"
)

func TestMain(m *testing.M) { testns.Main(m) }

// layers makes a root file system of two layers with all that layers have: owners, modes, links,
// devices, attributes, whiteouts and an opaque directory.
func layers(t *testing.T) runtime.Rootfs {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	// Layers lie on a file system of their own: the temporary directory may be an overlay's.
	if err := unix.Mount("layers", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	write := func(name, content string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(content), 0o644))
		must(t, os.Chmod(path, mode))
		must(t, os.Chtimes(path, time.Unix(1e9, 0), time.Unix(1e9, 0)))
	}
	write("low/etc/kept", "kept\n", 0o640)
	write("low/etc/removed", "removed\n", 0o644)
	write("low/opaque/below", "below\n", 0o644)
	write("low/bin/tool", strings.Repeat("magikpod ", 100_000), 0o755|os.ModeSetuid)
	must(t, os.Chown(filepath.Join(dir, "low/etc/kept"), 1000, 2000))
	must(t, os.Link(filepath.Join(dir, "low/etc/kept"), filepath.Join(dir, "low/etc/linked")))
	must(t, os.Symlink("../etc/kept", filepath.Join(dir, "low/bin/link")))
	must(t, unix.Mknod(filepath.Join(dir, "low/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, os.Chmod(filepath.Join(dir, "low/null"), 0o666))
	must(t, unix.Mkfifo(filepath.Join(dir, "low/fifo"), 0o600))
	must(t, unix.Setxattr(filepath.Join(dir, "low/bin/tool"), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	must(t, os.Mkdir(filepath.Join(dir, "low/tmp"), 0o755))
	must(t, os.Chmod(filepath.Join(dir, "low/tmp"), 0o777|os.ModeSticky))
	write("high/etc/new", "", 0o600)
	must(t, unix.Mknod(filepath.Join(dir, "high/etc/removed"), unix.S_IFCHR, 0))
	write("high/opaque/above", "above\n", 0o644)
	must(t, unix.Setxattr(filepath.Join(dir, "high/opaque"), "trusted.overlay.opaque", []byte("y"), 0))
	return runtime.Rootfs{Dir: dir, Layers: []string{"low", "high"}}
}

var must = testutil.Must

// contents reads an image with the library, which knows no set-user-ID and sticky bits;
// runtime/microvm/supervise has a kernel read all of an image.
func contents(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	image, err := erofs.Open(f)
	must(t, err)
	found := map[string]string{}
	must(t, fs.WalkDir(image, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*erofs.Stat)
		text := info.Mode().String()
		if st.UID != 0 || st.GID != 0 {
			text += " owned"
		}
		for attr := range st.Xattrs {
			text += " " + attr
		}
		if info.Mode().IsRegular() {
			data, err := fs.ReadFile(image, name)
			if err != nil {
				return err
			}
			text += " " + string(data[:min(len(data), 12)])
		}
		found[name] = text
		return nil
	}))
	return found
}

// writers runs the test with both ways to write an image.
func writers(t *testing.T, test func(t *testing.T, c *Cache)) {
	t.Run("mkfs", func(t *testing.T) {
		c := NewCache(filepath.Join(t.TempDir(), "images"))
		if c.mkfs == "" {
			t.Skip("mkfs.erofs is not installed (try: scripts/deps)")
		}
		test(t, c)
	})
	t.Run("library", func(t *testing.T) {
		c := NewCache(filepath.Join(t.TempDir(), "images"))
		c.mkfs = ""
		test(t, c)
	})
}

func TestImage(t *testing.T) {
	rootfs := layers(t)
	writers(t, func(t *testing.T, c *Cache) {
		image, err := c.Image(context.Background(), rootfs)
		must(t, err)
		if c.mkfs != "" {
			// The library reads no compressed files.
			image.Path = filepath.Join(t.TempDir(), "plain")
			must(t, withOverlay(rootfs, t.TempDir(), func() error { return nil }))
			target := t.TempDir()
			must(t, withOverlay(rootfs, target, func() error {
				return exec.Command(c.mkfs, "--quiet", "-x", "1", image.Path, target).Run()
			}))
		}
		want := map[string]string{
			".": "drwxr-xr-x", "bin": "drwxr-xr-x", "bin/link": "Lrwxrwxrwx", "bin/tool": "-rwxr-xr-x security.capability magikpod mag", "etc": "drwxr-xr-x",
			"etc/kept": "-rw-r----- owned kept\n", "etc/linked": "-rw-r----- owned kept\n", "etc/new": "-rw------- ", "fifo": "prw-------", "null": "Dcrw-rw-rw-",
			"opaque": "drwxr-xr-x", "opaque/above": "-rw-r--r-- above\n", "tmp": "drwxrwxrwx",
		}
		got := contents(t, image.Path)
		for name, text := range want {
			if got[name] != text {
				t.Errorf("%s: %q, want %q", name, got[name], text)
			}
			delete(got, name)
		}
		if len(got) > 0 {
			t.Errorf("too much in the image: %v", got)
		}
	})
}

// TestImageShared: many who want the same image at once cause one build, and get it.
func TestImageShared(t *testing.T) {
	rootfs := layers(t)
	writers(t, func(t *testing.T, c *Cache) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		inodes := map[uint64]int{}
		for range 8 {
			wg.Go(func() {
				image, err := c.Image(context.Background(), rootfs)
				var st unix.Stat_t
				if err == nil {
					err = unix.Stat(image.Path, &st)
				}
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				inodes[st.Ino]++
			})
		}
		wg.Wait()
		if len(inodes) != 1 {
			t.Errorf("8 callers got %d different files", len(inodes))
		}
		onlyImages(t, c, 1)
	})
}

// onlyImages: nothing of a build is left.
func onlyImages(t *testing.T, c *Cache, want int) {
	t.Helper()
	entries, err := os.ReadDir(c.dir)
	must(t, err)
	for _, entry := range entries {
		if ext := filepath.Ext(entry.Name()); ext != suffix && ext != noteSuffix {
			t.Errorf("%s is left in the cache", entry.Name())
		}
	}
	if len(entries) != 2*want {
		t.Errorf("%d files in the cache, want %d images with their notes: %v", len(entries), want, entries)
	}
}

// TestTornImage: a file that is cut off, or is something else, is made anew.
func TestTornImage(t *testing.T) {
	rootfs := layers(t)
	writers(t, func(t *testing.T, c *Cache) {
		image, err := c.Image(context.Background(), rootfs)
		must(t, err)
		info, err := os.Stat(image.Path)
		must(t, err)
		for _, damage := range []func() error{
			func() error { return os.Truncate(image.Path, info.Size()/2) },
			func() error { return os.Truncate(image.Path, 0) },
			func() error { return os.WriteFile(image.Path, make([]byte, info.Size()), 0o600) },
		} {
			must(t, damage())
			if complete(image.Path) {
				t.Fatal("the damaged file counts as complete")
			}
			again, err := c.Image(context.Background(), rootfs)
			must(t, err)
			if again != image || !complete(image.Path) {
				t.Errorf("%v is not a new image", again)
			}
		}
	})
}

func TestImageBad(t *testing.T) {
	rootfs := layers(t)
	writers(t, func(t *testing.T, c *Cache) {
		for _, bad := range []runtime.Rootfs{{Dir: rootfs.Dir}, {Dir: rootfs.Dir, Layers: []string{"none"}}, {Dir: rootfs.Dir, Layers: []string{"a:b"}}, {Dir: "/none", Layers: []string{"low"}}} {
			if _, err := c.Image(context.Background(), bad); err == nil || !strings.HasPrefix(err.Error(), "cannot make a disk") {
				t.Errorf("%v: %v", bad, err)
			}
		}
		ctx, cancel := context.WithCancelCause(context.Background())
		cancel(errors.New("enough"))
		if _, err := c.Image(ctx, rootfs); err == nil || !strings.Contains(err.Error(), "enough") {
			t.Errorf("with a context that has ended: %v", err)
		}
		onlyImages(t, c, 0)
		if _, err := c.Image(context.Background(), rootfs); err != nil {
			t.Error(err)
		}
	})
}

// TestPrune: an image goes with the first of its layers, unless somebody is about to use it.
func TestPrune(t *testing.T) {
	rootfs := layers(t)
	low := runtime.Rootfs{Dir: rootfs.Dir, Layers: rootfs.Layers[:1]}
	c := NewCache(filepath.Join(t.TempDir(), "images"))
	must(t, c.Prune()) // nothing is there
	image := func(rootfs runtime.Rootfs) Image {
		t.Helper()
		image, err := c.Image(context.Background(), rootfs)
		must(t, err)
		return image
	}
	both, one := image(rootfs), image(low)
	if both.Serial == one.Serial || both.Path == one.Path || len(both.Serial) > 20 {
		t.Errorf("%v and %v", both, one)
	}
	left := func(what string, images ...Image) {
		t.Helper()
		var want, got []string
		for _, image := range images {
			name := filepath.Base(image.Path)
			want = append(want, name, strings.TrimSuffix(name, suffix)+noteSuffix)
			if !complete(image.Path) {
				t.Errorf("%s: %s is not whole", what, name)
			}
		}
		entries, err := os.ReadDir(c.dir)
		must(t, err)
		for _, e := range entries {
			got = append(got, e.Name())
		}
		slices.Sort(want)
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s: %q are left, want %q", what, got, want)
		}
	}
	// What a crash leaves: half an image, the place of its layers, a note alone, half a note, and
	// an image of an older version, without a note.
	for _, name := range []string{"0123.erofs.building", "4567.json", ".89ab.json-12", "cdef.erofs"} {
		must(t, os.WriteFile(filepath.Join(c.dir, name), nil, 0o600))
	}
	must(t, os.Mkdir(filepath.Join(c.dir, mergedPrefix+"1"), 0o700))
	must(t, c.Prune())
	left("all layers are there", both, one)

	release := c.Keep(rootfs)
	again := c.Keep(rootfs)
	must(t, os.RemoveAll(filepath.Join(rootfs.Dir, rootfs.Layers[1])))
	must(t, c.Prune())
	left("somebody is about to use it", both, one)
	release()
	must(t, c.Prune())
	left("one of two still is", both, one)
	again()
	f, err := os.Open(both.Path)
	must(t, err)
	defer f.Close()
	must(t, c.Prune())
	left("a layer is gone", one)
	if _, err := f.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Errorf("a VM that has the image open: %v", err)
	}
	must(t, os.RemoveAll(filepath.Join(rootfs.Dir, rootfs.Layers[0])))
	must(t, NewCache(c.dir).Prune()) // as after a restart
	left("all layers are gone")
}

func TestWriteDirectory(t *testing.T) {
	source := t.TempDir()
	must(t, os.WriteFile(filepath.Join(source, "a"), []byte("12345"), 0o600))
	must(t, os.Mkdir(filepath.Join(source, "d"), 0o750))
	must(t, os.Symlink("/etc/passwd", filepath.Join(source, "d", "out")))
	out := filepath.Join(t.TempDir(), "image")
	must(t, WriteDirectory(context.Background(), out, source, 5))
	got := contents(t, out)
	names := []string{}
	for name := range got {
		names = append(names, name)
	}
	slices.Sort(names)
	if want := []string{".", "a", "d", "d/out"}; !slices.Equal(names, want) || got["a"] != "-rw------- 12345" || got["d"] != "drwxr-x---" {
		t.Errorf("in the image: %v", got)
	}
	must(t, WriteDirectory(context.Background(), out, filepath.Join(source, "a"), 5))
	if got := contents(t, out); len(got) != 2 || got["a"] != "-rw------- 12345" {
		t.Errorf("in the image of a file: %v", got)
	}
	for _, c := range []struct {
		source string
		limit  int64
		want   string
	}{{source, 4, "too big"}, {"/dev/null", 4, "neither"}, {source + "/none", 4, "no such file"}} {
		if err := WriteDirectory(context.Background(), out, c.source, c.limit); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", c.source, err, c.want)
		}
		if _, err := os.Stat(out); err == nil && c.want == "too big" {
			t.Error("half an image is left")
		}
	}
}

func TestScratch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "scratch")
	begin := time.Now()
	must(t, MakeScratch(context.Background(), path, 1<<30))
	t.Logf("made in %v", time.Since(begin))
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	if st.Size != 1<<30 || st.Blocks*512 > 4<<20 || st.Mode&0o777 != 0o600 {
		t.Errorf("%d bytes, of which %d on disk; mode %o", st.Size, st.Blocks*512, st.Mode)
	}
	if out, err := exec.Command("/usr/sbin/e2fsck", "-fn", path).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v: %s", err, out)
	}
	// Once more: it stays, with its data.
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("data"), 1<<29)
	must(t, errors.Join(err, f.Close()))
	must(t, MakeScratch(context.Background(), path, 1<<30))
	must(t, MakeScratch(context.Background(), path, 2<<30)) // of a configuration that has changed meanwhile
	data := make([]byte, 4)
	f, err = os.Open(path)
	must(t, err)
	defer f.Close()
	if _, err := f.ReadAt(data, 1<<29); err != nil || string(data) != "data" {
		t.Errorf("the scratch disk has %q, %v, want data", data, err)
	}
	if err := MakeScratch(context.Background(), path+"/scratch", 1<<30); !errors.Is(err, unix.ENOTDIR) { // whether there is one cannot be known
		t.Errorf("below a file: %v", err)
	}
	if err := MakeScratch(context.Background(), filepath.Join(t.TempDir(), "none", "scratch"), 1<<30); err == nil {
		t.Error("a disk was made where there is no directory")
	}
}

// BenchmarkImage: MAGIKPOD_BENCH_ROOT names a root file system.
func BenchmarkImage(b *testing.B) {
	root := os.Getenv("MAGIKPOD_BENCH_ROOT")
	if root == "" {
		b.Skip("MAGIKPOD_BENCH_ROOT names no root file system")
	}
	for _, name := range []string{"mkfs", "library"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				c := NewCache(filepath.Join(b.TempDir(), "images"))
				if name == "library" {
					c.mkfs = ""
				}
				image, err := c.Image(context.Background(), runtime.Rootfs{Dir: filepath.Dir(root), Layers: []string{filepath.Base(root)}})
				if err != nil {
					b.Fatal(err)
				}
				info, err := os.Stat(image.Path)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(info.Size())/1e6, "MB")
			}
		})
	}
}
