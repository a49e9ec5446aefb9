package image

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	magikruntime "github.com/magikrun/magikpod/runtime"

	"github.com/magikrun/magikpod/pod"
)

// mounted mounts the image as a container would see it, in a mount namespace of its own that ends
// with the thread, and lists its files as MODE UID:GID PATH[ -> LINK][ = CONTENT].
func mounted(t *testing.T, image magikruntime.Image) []string {
	t.Helper()
	target, upper := t.TempDir(), t.TempDir()
	var list []string
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread and its namespace end with the goroutine
		errs <- func() error {
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			if err := unix.Mount("t", upper, "tmpfs", 0, ""); err != nil {
				return err
			}
			for _, dir := range []string{"/u", "/w"} {
				if err := os.Mkdir(upper+dir, 0o755); err != nil {
					return err
				}
			}
			if err := os.Chdir(image.Rootfs.Dir); err != nil {
				return err
			}
			lower := slices.Clone(image.Rootfs.Layers)
			slices.Reverse(lower)
			options := fmt.Sprintf("lowerdir=%s,upperdir=%s/u,workdir=%s/w", strings.Join(lower, ":"), upper, upper)
			if err := unix.Mount("overlay", target, "overlay", 0, options); err != nil {
				return fmt.Errorf("overlay %s: %w", options, err)
			}
			var err error
			list, err = listTree(target)
			return err
		}()
	}()
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	return list
}

func listTree(dir string) ([]string, error) {
	list := []string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%06o %d:%d %s", st.Mode, st.Uid, st.Gid, strings.TrimPrefix(path, dir))
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			link, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + link
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += " = " + string(data)
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" %d,%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		list = append(list, line)
		return nil
	})
	return list, err
}

func TestLayersAsOverlay(t *testing.T) {
	base := []file{
		{name: "./", mode: 0o711}, {name: "a/", mode: 0o751, uid: 5, gid: 6}, {name: "a/gone", content: "x"}, {name: "a/stays", content: "x", mode: 0o4755, uid: 7},
		{name: "b/"}, {name: "b/lower", content: "x"}, {name: "c/"}, {name: "c/lower", content: "x"}, {name: "d", content: "file"}, {name: "e/"}, {name: "e/lower", content: "x"},
		{name: "tmp/", mode: 0o1777},
	}
	for _, test := range []struct {
		name  string
		upper []file
		want  []string
	}{
		{"whiteout", []file{{name: "a/"}, {name: "a/.wh.gone"}, {name: ".wh.b"}, {name: ".wh.d"}}, []string{
			"040755 0:0 /a", "104755 7:0 /a/stays = x", "040755 0:0 /c", "100644 0:0 /c/lower = x", "040755 0:0 /e", "100644 0:0 /e/lower = x", "041777 0:0 /tmp"}},
		{"implied parents keep owner and mode", []file{{name: "a/new", content: "n"}, {name: "tmp/x/y", content: "n"}, {name: ".wh.b"}, {name: ".wh.c"}, {name: ".wh.d"}, {name: ".wh.e"}}, []string{
			"040751 5:6 /a", "100644 0:0 /a/gone = x", "100644 0:0 /a/new = n", "104755 7:0 /a/stays = x", "041777 0:0 /tmp", "040755 0:0 /tmp/x", "100644 0:0 /tmp/x/y = n"}},
		{"opaque after and before its files", []file{{name: "b/"}, {name: "b/new"}, {name: "b/.wh..wh..opq"}, {name: "c/.wh..wh..opq"}, {name: "c/new"}, {name: ".wh.a"}, {name: ".wh.tmp"}}, []string{
			"040755 0:0 /b", "100644 0:0 /b/new = ", "040755 0:0 /c", "100644 0:0 /c/new = ", "100644 0:0 /d = file", "040755 0:0 /e", "100644 0:0 /e/lower = x"}},
		{"opaque root", []file{{name: ".wh..wh..opq"}, {name: "only"}}, []string{"100644 0:0 /only = "}},
		// A whiteout means the layers below, whatever the same layer has, in either order.
		{"whiteout and again", []file{{name: ".wh.b"}, {name: "b/"}, {name: "b/new"}, {name: "c/"}, {name: "c/new"}, {name: ".wh.c"}, {name: ".wh.d"}, {name: "d", content: "new"},
			{name: "e", content: "file"}, {name: ".wh.e"}, {name: ".wh.a"}, {name: ".wh.tmp"}}, []string{
			"040755 0:0 /b", "100644 0:0 /b/new = ", "040755 0:0 /c", "100644 0:0 /c/new = ", "100644 0:0 /d = new", "100644 0:0 /e = file"}},
		{"kinds and links", []file{{name: ".wh..wh.plnk/"}, {name: ".wh..wh.aufs"}, {name: ".wh..wh..opq"}, {name: "f", content: "f", mode: 0o600, uid: 70000, gid: 80000}, {name: "h", kind: tar.TypeLink, link: "f", mode: 0o600, uid: 70000, gid: 80000},
			{name: "s", kind: tar.TypeSymlink, link: "/etc/f"}, {name: "p", kind: tar.TypeFifo}, {name: "c", kind: tar.TypeChar, major: 1, minor: 3, mode: 0o666}, {name: "d", kind: tar.TypeDir, mode: 0o2775}}, []string{
			"020666 0:0 /c 1,3", "042775 0:0 /d", "100600 70000:80000 /f = f", "100600 70000:80000 /h = f", "010644 0:0 /p", "120777 0:0 /s -> /etc/f"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStore(t)
			load(t, s, dockerArchive(t, map[string]v1.Image{"x:1": imageOf(t, tarOf(t, base...), tarOf(t, test.upper...))}), "")
			image, err := s.Resolve("x:1")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, mounted(t, image)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRootDirectory(t *testing.T) {
	s := newStore(t)
	load(t, s, tarOf(t, file{name: "x"}), "plain")
	load(t, s, tarOf(t, file{name: "./", mode: 0o1711, uid: 3, gid: 4}, file{name: "x"}), "entry")
	for name, want := range map[string]string{"plain": "40755 0:0", "entry": "41711 3:4"} {
		image, err := s.Resolve(name)
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(image.Rootfs.Dir, image.Rootfs.Layers[0]), &st); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

func TestXattrs(t *testing.T) {
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	s := newStore(t)
	load(t, s, tarOf(t, file{name: "f", mode: 0o755, uid: 9, pax: map[string]string{
		xattrRecord + "user.a": "b", xattrRecord + "security.capability": capability, xattrRecord + "security.selinux": "l",
		xattrRecord + "trusted.overlay.redirect": "/etc", xattrRecord + opaqueXattr: "y"}}), "x")
	image, err := s.Resolve("x")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(image.Rootfs.Dir, image.Rootfs.Layers[0], "f")
	for name, want := range map[string]string{"user.a": "b", "security.capability": capability, "security.selinux": "", "trusted.overlay.redirect": "", opaqueXattr: ""} {
		buf := make([]byte, 100)
		n, err := unix.Lgetxattr(path, name, buf)
		if got := string(buf[:max(n, 0)]); got != want {
			t.Errorf("%s is %q (%v), want %q", name, got, err, want)
		}
	}
}

// 127 layers fit into one mount together with the longest paths of a pod.
func TestManyLayers(t *testing.T) {
	var layers [][]byte
	for i := range maxLayers {
		layers = append(layers, tarOf(t, file{name: fmt.Sprintf("f%03d", i)}))
	}
	s := newStore(t)
	load(t, s, dockerArchive(t, map[string]v1.Image{"x:1": imageOf(t, layers...)}), "")
	image, err := s.Resolve("x:1")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(strings.Join(image.Rootfs.Layers, ":")); n > 4095-900 {
		t.Errorf("the names of the layers have %d bytes", n)
	}
	if got := mounted(t, image); len(got) != maxLayers {
		t.Errorf("got %d files: %v", len(got), got)
	}
	_, err = s.Load(context.Background(), bytes.NewReader(dockerArchive(t, map[string]v1.Image{"x:2": imageOf(t, append(layers, layers[0])...)})), LoadOptions{})
	wantKind(t, err, pod.Exhausted, "128 layers")
}

func TestImageWithoutLayers(t *testing.T) {
	s := newStore(t)
	load(t, s, dockerArchive(t, map[string]v1.Image{"x:1": imageOf(t)}), "")
	image, err := s.Resolve("x:1")
	if err != nil {
		t.Fatal(err)
	}
	if got := mounted(t, image); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

// passwd and group are read as the container would see them, and nothing leads out of the image.
func TestUserFiles(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("host"), 0o600); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 99) + "\n"
	for _, test := range []struct {
		name   string
		layers [][]file
		want   string
	}{
		{"none", [][]file{{{name: "x"}}}, ""},
		{"upper wins", [][]file{{{name: "etc/passwd", content: "low"}}, {{name: "etc/passwd", content: "up"}}}, "up"},
		{"lower shows", [][]file{{{name: "etc/passwd", content: "low"}}, {{name: "etc/other"}}}, "low"},
		{"whiteout", [][]file{{{name: "etc/passwd", content: "low"}}, {{name: "etc/.wh.passwd"}}}, ""},
		{"whiteout of etc", [][]file{{{name: "etc/passwd", content: "low"}}, {{name: ".wh.etc"}}, {{name: "etc/x"}}}, ""},
		{"opaque etc", [][]file{{{name: "etc/passwd", content: "low"}}, {{name: "etc/.wh..wh..opq"}}}, ""},
		{"opaque root", [][]file{{{name: "etc/passwd", content: "low"}}, {{name: ".wh..wh..opq"}}}, ""},
		{"etc is a file", [][]file{{{name: "etc/passwd", content: "low"}}, {{name: "etc", content: "x"}}}, ""},
		{"absolute link", [][]file{{{name: "usr/p", content: "linked"}}, {{name: "etc/passwd", kind: tar.TypeSymlink, link: "/usr/p"}}}, "linked"},
		{"relative link", [][]file{{{name: "usr/p", content: "linked"}, {name: "etc/passwd", kind: tar.TypeSymlink, link: ".././../../usr/p"}}}, "linked"},
		{"linked directory", [][]file{{{name: "usr/etc/passwd", content: "linked"}, {name: "etc", kind: tar.TypeSymlink, link: "usr/etc"}}}, "linked"},
		{"link to the host", [][]file{{{name: "etc/passwd", kind: tar.TypeSymlink, link: secret}}}, ""},
		{"link up to the host", [][]file{{{name: "etc/passwd", kind: tar.TypeSymlink, link: strings.Repeat("../", 30) + secret}}}, ""},
		{"link to itself", [][]file{{{name: "etc/passwd", kind: tar.TypeSymlink, link: "passwd"}}}, ""},
		{"pipe", [][]file{{{name: "etc/passwd", kind: tar.TypeFifo}}}, ""},
		{"device", [][]file{{{name: "etc/passwd", kind: tar.TypeChar, major: 1, minor: 5}}}, ""},
		{"directory", [][]file{{{name: "etc/passwd/"}}}, ""},
		{"too long", [][]file{{{name: "etc/passwd", content: strings.Repeat(long, maxUserFile/100+10)}}}, strings.Repeat(long, maxUserFile/100)},
	} {
		t.Run(test.name, func(t *testing.T) {
			var layers [][]byte
			for _, files := range test.layers {
				layers = append(layers, tarOf(t, files...))
			}
			s := newStore(t)
			load(t, s, dockerArchive(t, map[string]v1.Image{"x:1": imageOf(t, layers...)}), "")
			image, err := s.Resolve("x:1")
			if err != nil {
				t.Fatal(err)
			}
			if string(image.Passwd) != test.want {
				t.Errorf("got %.100q (%d bytes), want %.100q (%d bytes)", image.Passwd, len(image.Passwd), test.want, len(test.want))
			}
		})
	}
}
