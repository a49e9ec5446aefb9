package image

import (
	"archive/tar"
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/pod"
)

// fuzzLimits keep one input from taking long.
var fuzzLimits = Limits{MaxLayerBytes: 4 << 20, MaxImageBytes: 4 << 20, MaxFiles: 2000, MaxHeaderBytes: 1 << 20, MaxManifestBytes: 64 << 10, MaxLayers: 8}

// FuzzLayer unpacks any bytes as a layer. Nothing may appear or change outside of its directory,
// and nothing of overlayfs may be in it that the unpacker did not put there.
func FuzzLayer(f *testing.F) {
	for _, files := range [][]file{
		{{name: "a/"}, {name: "a/f", content: "x", mode: 0o4755, uid: 3}, {name: "a/.wh.g"}, {name: "a/.wh..wh..opq"}},
		{{name: "l", kind: tar.TypeSymlink, link: "/tmp"}, {name: "l/escape"}, {name: "../escape"}, {name: "h", kind: tar.TypeLink, link: "l"}},
		{{name: ".wh.a"}, {name: "a/"}, {name: "p", kind: tar.TypeFifo}, {name: "c", kind: tar.TypeChar, major: 1, minor: 3}},
		{{name: "f", pax: map[string]string{xattrRecord + "user.a": "b", xattrRecord + opaqueXattr: "y"}}, {name: "./", mode: 0o700}},
	} {
		f.Add(tarOf(f, files...))
	}
	f.Add(append(paxHeader(f, "GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=s", "GNU.sparse.realsize=100000"),
		tarOf(f, file{name: "s", content: "1\n0\n1\n" + strings.Repeat("\x00", 506) + "x"})...))
	f.Fuzz(func(t *testing.T, data []byte) {
		needRoot(t)
		parent := t.TempDir()
		root, lower := filepath.Join(parent, "a/root"), filepath.Join(parent, "a/lower")
		for _, dir := range []string{root, lower, filepath.Join(lower, "a")} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("/etc", filepath.Join(lower, "l")); err != nil {
			t.Fatal(err)
		}
		err := newUnpacker(root, []string{lower}, fuzzLimits.withDefaults()).unpack(context.Background(), bytes.NewReader(data))
		if kind := pod.KindOf(err); err != nil && kind != pod.Invalid && kind != pod.Exhausted {
			t.Errorf("%v (%s)", err, kind)
		}
		outside := []string{}
		for _, dir := range []string{parent, filepath.Join(parent, "a"), lower, filepath.Join(lower, "a")} {
			list, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range list {
				outside = append(outside, e.Name())
			}
		}
		if got := strings.Join(outside, " "); got != "a lower root a l" {
			t.Errorf("outside there is: %s", got)
		}
		err = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			for _, name := range []string{"trusted.overlay.redirect", "trusted.overlay.metacopy", "security.selinux"} {
				if _, err := unix.Lgetxattr(path, name, nil); err == nil {
					t.Errorf("%s has %s", path, name)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzLoad loads any bytes. What cannot be loaded leaves nothing, and what can is a whole image,
// which can be saved and loaded again.
func FuzzLoad(f *testing.F) {
	layer := tarOf(f, file{name: "etc/"}, file{name: "etc/passwd", content: "x"})
	img := imageOf(f, layer)
	docker := dockerArchive(f, map[string]v1.Image{"x:1": img})
	for _, archive := range [][]byte{layer, docker, ociArchive(f, func(p layout.Path) error { return p.AppendImage(img) }),
		tarOf(f, file{name: "manifest.json", content: `[{"Config":"c","Layers":["l"]}]`}, file{name: "c", kind: tar.TypeSymlink, link: "c"})} {
		f.Add(archive)
		f.Add(gzipped(f, archive))
		f.Add(zstded(f, archive))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s := openStore(t, t.TempDir(), fuzzLimits)
		defer s.Close()
		refs, err := s.Load(context.Background(), bytes.NewReader(data), LoadOptions{Tag: "fuzz"})
		if err != nil {
			if kind := pod.KindOf(err); kind != pod.Invalid && kind != pod.Exhausted && kind != pod.Unsupported {
				t.Errorf("%v (%s)", err, kind)
			}
			wantEmpty(t, s)
			return
		}
		var saved bytes.Buffer
		if err := s.Save(context.Background(), refs, &saved); err != nil {
			t.Fatal(err)
		}
		image, err := s.Resolve("fuzz")
		if err != nil {
			t.Fatal(err)
		}
		again := openStore(t, t.TempDir(), Limits{})
		defer again.Close()
		load(t, again, saved.Bytes(), "")
		if got, err := again.Resolve("fuzz"); err != nil || got.ID != image.ID {
			t.Errorf("%s, loaded again: %s, %v", image.ID, got.ID, err)
		}
		if err := s.Remove(context.Background(), "fuzz", nil); err != nil {
			t.Error(err)
		}
		wantEmpty(t, s)
	})
}
