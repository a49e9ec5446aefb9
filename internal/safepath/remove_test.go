package safepath

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/testns"
	"github.com/magikrun/magikpod/internal/testutil"
)

func TestRemoveAll(t *testing.T) {
	for _, tc := range []struct {
		name string
		make func(t *testing.T, path string)
	}{
		{"nothing", func(*testing.T, string) {}},
		{"file", func(t *testing.T, path string) { must(t, os.WriteFile(path, nil, 0o000)) }},
		{"fifo", func(t *testing.T, path string) { must(t, unix.Mkfifo(path, 0o600)) }},
		{"symlink", func(t *testing.T, path string) { must(t, os.Symlink("victim", path)) }},
		{"symlinks below", func(t *testing.T, path string) {
			must(t, os.MkdirAll(path+"/a", 0o755))
			must(t, os.Symlink("../../victim", path+"/a/link"))
			must(t, os.Symlink(filepath.Dir(path)+"/victim", path+"/link"))
			must(t, os.Symlink("/proc/self/root", path+"/magic"))
		}},
		{"modes 000", func(t *testing.T, path string) {
			must(t, os.MkdirAll(path+"/a/b/c", 0o755))
			for _, d := range []string{"/a/b/c", "/a/b", "/a", ""} {
				must(t, os.Chmod(path+d, 0))
			}
		}},
		{"hostile names", func(t *testing.T, path string) {
			must(t, os.Mkdir(path, 0o755))
			for _, name := range []string{"\n", "-rf", strings.Repeat("x", 255), "\xff\xfe", "...", " ", ".deep-1", "a\tb", "'\"$()"} {
				must(t, os.MkdirAll(filepath.Join(path, name, name), 0o755))
			}
		}},
		{"wide", func(t *testing.T, path string) {
			must(t, os.Mkdir(path, 0o755))
			for i := range 3 * entriesAtOnce {
				must(t, os.WriteFile(fmt.Sprintf("%s/%d", path, i), nil, 0o600))
			}
		}},
		{"deep", func(t *testing.T, path string) { makeDeep(t, path, 10000) }},
		{"deep and taken names", func(t *testing.T, path string) {
			makeDeep(t, path, 300)
			for i := range 20 {
				must(t, os.MkdirAll(fmt.Sprintf("%s/.deep-%d/x", path, i), 0o755))
			}
		}},
		{"device and socket", func(t *testing.T, path string) {
			testns.NeedRoot(t)
			must(t, os.Mkdir(path, 0o755))
			must(t, unix.Mknod(path+"/null", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
			must(t, unix.Mknod(path+"/socket", unix.S_IFSOCK|0o600, 0))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			base := t.TempDir()
			must(t, os.Mkdir(base+"/victim", 0o755))
			must(t, os.WriteFile(base+"/victim/file", nil, 0o600))
			tc.make(t, base+"/tree")
			before := openFiles(t)
			for range 2 { // idempotent
				if err := RemoveAll(t.Context(), base+"/tree"); err != nil {
					t.Fatal(err)
				}
			}
			if after := openFiles(t); after != before {
				t.Errorf("%d open files, and %d before", after, before)
			}
			if _, err := os.Lstat(base + "/tree"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the tree is still there: %v", err)
			}
			if _, err := os.Stat(base + "/victim/file"); err != nil {
				t.Errorf("the victim was touched: %v", err)
			}
		})
	}
}

// makeDeep makes a chain of directories that no path name could reach.
func makeDeep(t *testing.T, path string, levels int) {
	t.Helper()
	must(t, os.Mkdir(path, 0o755))
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	for range levels {
		must(t, unix.Mkdirat(fd, "d", 0o755))
		sub, err := unix.Openat(fd, "d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		unix.Close(fd)
		fd = sub
	}
	unix.Close(fd)
}

var openFiles = testutil.OpenFiles

func TestRemoveAllRefuses(t *testing.T) {
	for _, path := range []string{"", ".", "..", "/", "a/.."} {
		if err := RemoveAll(t.Context(), path); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%q: %v", path, err)
		}
	}
	if err := RemoveAll(t.Context(), t.TempDir()+"/no/such/parent"); err != nil {
		t.Errorf("missing parent: %v", err)
	}
}

// TestRemoveAllMounts: what is mounted below stays, all else goes, and the error says which.
func TestRemoveAllMounts(t *testing.T) {
	base := testns.Mount(t, "")
	victim := filepath.Join(base, "victim")
	for _, dir := range []string{"victim", "tree/a/mnt", "tree/b"} {
		must(t, os.MkdirAll(filepath.Join(base, dir), 0o755))
	}
	must(t, os.WriteFile(victim+"/file", nil, 0o600))
	must(t, os.WriteFile(base+"/tree/b/file", nil, 0o600))
	must(t, os.WriteFile(base+"/tree/a/target", nil, 0o600))
	// Binds of the same file system: the device number would not show it.
	must(t, unix.Mount(victim, base+"/tree/a/mnt", "", unix.MS_BIND, ""))
	must(t, unix.Mount(victim+"/file", base+"/tree/a/target", "", unix.MS_BIND, ""))
	defer func() {
		_ = unix.Unmount(base+"/tree/a/mnt", unix.MNT_DETACH)
		_ = unix.Unmount(base+"/tree/a/target", unix.MNT_DETACH)
	}()
	err := RemoveAll(t.Context(), base+"/tree")
	if !errors.Is(err, unix.EBUSY) {
		t.Fatalf("got %v, want EBUSY", err)
	}
	if _, err := os.Stat(victim + "/file"); err != nil {
		t.Errorf("removed beyond a mount point: %v", err)
	}
	if _, err := os.Stat(base + "/tree/b"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what is not mounted stays: %v", err)
	}
	must(t, unix.Unmount(base+"/tree/a/mnt", 0))
	must(t, unix.Unmount(base+"/tree/a/target", 0))
	must(t, RemoveAll(t.Context(), base+"/tree"))
}

// TestRemoveAllFlags: a privileged container can make files immutable.
func TestRemoveAllFlags(t *testing.T) {
	base := testns.Mount(t, "")
	must(t, os.MkdirAll(base+"/tree/dir/sub", 0o755))
	must(t, os.WriteFile(base+"/tree/dir/sub/file", nil, 0o600))
	must(t, os.WriteFile(base+"/tree/log", nil, 0o600))
	set := func(path string, flag int) {
		f, err := os.Open(path)
		must(t, err)
		defer f.Close()
		if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flag); errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
			t.Skip("tmpfs has no file flags before Linux 6.6")
		} else {
			must(t, err)
		}
	}
	set(base+"/tree/dir/sub/file", unix.STATX_ATTR_IMMUTABLE)
	set(base+"/tree/dir/sub", unix.STATX_ATTR_APPEND)
	set(base+"/tree/dir", unix.STATX_ATTR_IMMUTABLE)
	set(base+"/tree/log", unix.STATX_ATTR_APPEND)
	set(base+"/tree", unix.STATX_ATTR_IMMUTABLE)
	if err := os.RemoveAll(base + "/tree"); err == nil {
		t.Fatal("the flags forbid nothing: the test shows nothing")
	}
	must(t, RemoveAll(t.Context(), base+"/tree"))
}

// TestRemoveAllRace removes a tree while a directory in it is swapped for a symlink to a victim.
func TestRemoveAllRace(t *testing.T) {
	for range 20 {
		base := t.TempDir()
		must(t, os.MkdirAll(base+"/victim/dir", 0o755))
		must(t, os.WriteFile(base+"/victim/dir/file", nil, 0o600))
		for i := range 50 {
			must(t, os.MkdirAll(fmt.Sprintf("%s/tree/swap/%d/dir", base, i), 0o755))
		}
		must(t, os.Symlink("../victim", base+"/tree/link"))
		dir, err := OpenRoot(base + "/tree")
		must(t, err)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_ = unix.Renameat2(int(dir.Fd()), "swap", int(dir.Fd()), "link", unix.RENAME_EXCHANGE)
				}
			}
		})
		err = RemoveAll(t.Context(), base+"/tree")
		close(stop)
		wg.Wait()
		dir.Close()
		if err != nil {
			must(t, RemoveAll(t.Context(), base+"/tree"))
		}
		if _, err := os.Stat(base + "/victim/dir/file"); err != nil {
			t.Fatalf("the victim was touched: %v", err)
		}
	}
}

func TestRemoveAllContext(t *testing.T) {
	dir := t.TempDir() + "/tree"
	must(t, os.MkdirAll(dir+"/a/b", 0o755))
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(context.DeadlineExceeded)
	if err := RemoveAll(ctx, dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(dir + "/a/b"); err != nil {
		t.Errorf("removed after the end of ctx: %v", err)
	}
}
