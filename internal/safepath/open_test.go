package safepath

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/testutil"
)

// fixture is a root with a secret beside it.
func fixture(t testing.TB) (root *os.File, dir string) {
	t.Helper()
	base := t.TempDir()
	dir = filepath.Join(base, "root")
	must(t, os.MkdirAll(filepath.Join(dir, "sub/deep"), 0o755))
	must(t, os.WriteFile(filepath.Join(base, "secret"), []byte("secret"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "secret"), []byte("inside"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "sub/file"), []byte("content"), 0o600))
	for link, target := range map[string]string{
		"absolute": filepath.Join(base, "secret"), "climb": "../../../../../../../../../../../secret", "sub/up": "../../secret", "rooted": "/sub/file",
		"magic": "/proc/self/root/etc/passwd", "loop": "loop", "dangling": "nothing", "host": "/etc", "dots": "..", "here": ".",
	} {
		must(t, os.Symlink(target, filepath.Join(dir, link)))
	}
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	root, err := OpenRoot(dir)
	must(t, err)
	t.Cleanup(func() { root.Close() })
	return root, dir
}

var must = testutil.Must

func TestReadFile(t *testing.T) {
	root, _ := fixture(t)
	for _, tc := range []struct {
		name, path, want string
		err              error
	}{
		{"plain", "sub/file", "content", nil},
		{"absolute path is in the root", "/sub/file", "content", nil},
		{"rooted symlink", "rooted", "content", nil},
		{".. stays in the root", "../../secret", "inside", nil},
		{"symlink that climbs stays in the root", "climb", "inside", nil},
		{"symlink from below", "sub/up", "inside", nil},
		{"through a symlink to ..", "dots/dots/secret", "inside", nil},
		{"absolute symlink out", "absolute", "", unix.ENOENT},
		{"symlink to a directory of the host", "host/passwd", "", unix.ENOENT},
		{"magic link that is none in the root", "magic", "", unix.ENOENT},
		{"loop", "loop", "", unix.ELOOP},
		{"dangling", "dangling", "", unix.ENOENT},
		{"fifo", "fifo", "", unix.EINVAL},
		{"directory", "sub", "", unix.EISDIR},
		{"root itself", "", "", unix.EISDIR},
		{"NUL", "a\x00b", "", unix.EINVAL},
		{"too long", strings.Repeat("a/", 3000), "", unix.ENAMETOOLONG},
	} {
		t.Run(tc.name, func(t *testing.T) {
			data, err := ReadFile(root, tc.path, 100)
			if !errors.Is(err, tc.err) || string(data) != tc.want {
				t.Errorf("got %q, %v; want %q, %v", data, err, tc.want, tc.err)
			}
		})
	}
	if _, err := ReadFile(root, "sub/file", 6); !errors.Is(err, unix.EFBIG) {
		t.Errorf("over the limit: %v", err)
	}
	if data, err := ReadFile(root, "sub/file", 7); err != nil || string(data) != "content" {
		t.Errorf("at the limit: %q, %v", data, err)
	}
}

func TestMagicLinks(t *testing.T) {
	root, err := OpenRoot("/proc")
	must(t, err)
	defer root.Close()
	for _, path := range []string{"self/root/etc/passwd", "self/cwd", "self/fd/0", "self/exe"} {
		if f, err := Open(root, path, unix.O_PATH, 0); !errors.Is(err, unix.ELOOP) {
			if err == nil {
				f.Close()
			}
			t.Errorf("%s: %v, want ELOOP", path, err)
		}
	}
}

func TestOpenCreate(t *testing.T) {
	root, dir := fixture(t)
	write := func(path string, flags int) error {
		f, err := Open(root, path, unix.O_WRONLY|unix.O_CREAT|flags, 0o640)
		if err != nil {
			return err
		}
		_, err = io.WriteString(f, "new")
		return errors.Join(err, f.Close())
	}
	must(t, write("sub/new", 0))
	must(t, write("rooted", unix.O_TRUNC))
	if data, _ := os.ReadFile(filepath.Join(dir, "sub/file")); string(data) != "new" {
		t.Errorf("an existing file was not truncated: %q", data)
	}
	if err := write("sub/new", unix.O_EXCL); !errors.Is(err, unix.EEXIST) {
		t.Errorf("O_EXCL: %v", err)
	}
	if err := write("fifo", 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("fifo: %v", err)
	}
	if err := write("dangling", 0); !errors.Is(err, unix.ENOENT) {
		t.Errorf("dangling: %v", err)
	}
	if err := write("absolute", 0); !errors.Is(err, unix.ENOENT) {
		t.Errorf("out of the root: %v", err)
	}
	if err := write("rooted", unix.O_NOFOLLOW); err == nil {
		t.Error("O_NOFOLLOW followed a symlink")
	}
}

func TestMkdirAll(t *testing.T) {
	for _, tc := range []struct {
		name, path, want string // want: the directory, relative to the root; empty when err is
		err              error
	}{
		{"new", "a/b/c", "a/b/c", nil},
		{"part exists", "sub/deep/x", "sub/deep/x", nil},
		{"exists", "sub/deep", "sub/deep", nil},
		{"absolute", "/a", "a", nil},
		{"dots and slashes", "./a//b/./c/", "a/b/c", nil},
		{"through a symlink", "here/n", "n", nil},
		{"symlink to ..", "dots/n", "n", nil},
		{"..", "a/../../b", "", unix.EINVAL},
		{"symlink to the host", "host/magikpod-test", "", unix.ENOENT},
		{"dangling", "dangling/a", "", unix.ENOENT},
		{"file on the way", "secret/a", "", unix.ENOTDIR},
		{"loop", "loop/a", "", unix.ELOOP},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root, dir := fixture(t)
			old := unix.Umask(0o077)
			f, err := MkdirAll(root, tc.path, 0o751)
			unix.Umask(old)
			if !errors.Is(err, tc.err) {
				t.Fatalf("got %v, want %v", err, tc.err)
			}
			if err != nil {
				return
			}
			defer f.Close()
			info, err := os.Stat(filepath.Join(dir, tc.want))
			must(t, err)
			got, err := f.Stat()
			must(t, err)
			if !os.SameFile(info, got) {
				t.Errorf("it is not %s", tc.want)
			}
			if tc.name == "new" && info.Mode().Perm() != 0o751 {
				t.Errorf("mode %v", info.Mode())
			}
		})
	}
}

// TestRace opens and makes paths while another thread swaps a directory for a symlink that leads
// out, as fast as it can.
func TestRace(t *testing.T) {
	root, dir := fixture(t)
	base := filepath.Dir(dir)
	outside := filepath.Join(base, "outside")
	must(t, os.Mkdir(outside, 0o755))
	must(t, os.WriteFile(filepath.Join(outside, "file"), []byte("secret"), 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "swap"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "swap/file"), []byte("inside"), 0o600))
	must(t, os.Symlink(outside, filepath.Join(dir, "link")))
	// A second kind of trick: a relative one.
	must(t, os.Symlink("../outside", filepath.Join(dir, "sub/link")))

	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			link := []string{"link", "sub/link"}[n/2%2]
			if err := unix.Renameat2(int(root.Fd()), "swap", int(root.Fd()), link, unix.RENAME_EXCHANGE); err != nil {
				t.Errorf("swap: %v", err)
				return
			}
		}
	})
	hits := 0
	for range 3000 {
		if data, err := ReadFile(root, "swap/file", 100); err == nil {
			hits++
			if string(data) == "secret" {
				t.Error("read outside of the root")
				break
			}
		}
		if f, err := MkdirAll(root, "swap/made/here", 0o755); err == nil {
			f.Close()
		}
	}
	close(stop)
	wg.Wait()
	if hits == 0 {
		t.Error("the race never let a read succeed: the test shows nothing")
	}
	entries, err := os.ReadDir(outside)
	must(t, err)
	if len(entries) != 1 {
		t.Errorf("something was made outside: %v", entries)
	}
}

func TestCheckSubPath(t *testing.T) {
	for path, want := range map[string]bool{
		"": true, "a": true, "a/b": true, "..a": true, "a/..b": true, ".": true, "/a": false, "..": false, "a/..": false, "a/../b": false, "a\x00": false,
		strings.Repeat("a", 5000): false,
	} {
		if err := CheckSubPath(path); (err == nil) != want {
			t.Errorf("%.20q: %v", path, err)
		}
	}
}

// FuzzOpen: whatever the path, nothing outside of the root is reached.
func FuzzOpen(f *testing.F) {
	for _, seed := range []string{"sub/file", "../secret", "/../secret", "absolute", "climb", "sub/up", "dots/../dots/secret", "magic", "host/passwd", "here/here/./secret", "a\x00"} {
		f.Add(seed)
	}
	root, _ := fixture(f)
	f.Fuzz(func(t *testing.T, path string) {
		if data, err := ReadFile(root, path, 1000); err == nil && string(data) != "inside" && string(data) != "content" {
			t.Errorf("%q reads %q", path, data)
		}
	})
}
