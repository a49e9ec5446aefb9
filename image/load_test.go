package image

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/magikrun/magikpod/pod"
)

func TestLoadRootFileSystem(t *testing.T) {
	root := busybox(t)
	s := newStore(t)
	var id string
	for name, archive := range map[string][]byte{"plain": root, "gzip": gzipped(t, root), "zstd": zstded(t, root)} {
		refs := load(t, s, archive, "bb:"+name)
		if want := "docker.io/library/bb:" + name; len(refs) != 1 || refs[0] != want {
			t.Errorf("%s: got %v, want %s", name, refs, want)
		}
		image, err := s.Resolve("bb:" + name)
		if err != nil {
			t.Fatal(err)
		}
		if id == "" {
			id = image.ID
		}
		if image.ID != id {
			t.Errorf("%s: the same root file system has the IDs %s and %s", name, id, image.ID)
		}
		if len(image.Config.Cmd) != 0 || image.Config.OS != "linux" || image.Config.Architecture == "" {
			t.Errorf("config: %+v", image.Config)
		}
		if !strings.Contains(string(image.Passwd), "app:x:1000") || !strings.Contains(string(image.Group), "extra:x:2000:app") {
			t.Errorf("passwd %q, group %q", image.Passwd, image.Group)
		}
		if len(image.Rootfs.Layers) != 1 || image.Rootfs.Dir != s.path("layers") {
			t.Fatalf("rootfs: %+v", image.Rootfs)
		}
		fi, err := os.Stat(filepath.Join(image.Rootfs.Dir, image.Rootfs.Layers[0], "bin/busybox"))
		if err != nil || fi.Mode() != 0o755 {
			t.Errorf("busybox: %v, %v", fi, err)
		}
		fi, err = os.Stat(filepath.Join(image.Rootfs.Dir, image.Rootfs.Layers[0], "tmp"))
		if err != nil || fi.Mode().Perm() != 0o777 || fi.Mode()&os.ModeSticky == 0 {
			t.Errorf("tmp: %v, %v", fi, err)
		}
	}
	if list := s.List(); len(list) != 1 || len(list[0].References) != 3 {
		t.Errorf("list: %+v", list)
	}
	_, err := s.Load(context.Background(), bytes.NewReader(root), LoadOptions{})
	wantKind(t, err, pod.Invalid, "needs a name")
}

// A pipe, a file read in place and a file that is read from its middle give the same image.
func TestLoadFromFileAndPipe(t *testing.T) {
	root := tarOf(t, file{name: "etc/"}, file{name: "etc/passwd", content: "root:x:0:0::/:\n"})
	s := newStore(t)
	ids := map[string]bool{}
	add := func(name string, r io.Reader) {
		t.Helper()
		if _, err := s.Load(context.Background(), r, LoadOptions{Tag: name}); err != nil {
			t.Fatal(err)
		}
		image, err := s.Resolve(name)
		if err != nil {
			t.Fatal(err)
		}
		ids[image.ID] = true
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		w.Write(root)
		w.Close()
	}()
	add("pipe", r)
	r.Close()
	path := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(path, append([]byte("prefix"), root...), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Seek(6, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	add("file", f)
	if err := os.WriteFile(path, gzipped(t, root), 0o600); err != nil {
		t.Fatal(err)
	}
	z, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	add("packed", z)
	if len(ids) != 1 {
		t.Errorf("got %d different images", len(ids))
	}
}
