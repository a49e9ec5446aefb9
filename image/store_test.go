package image

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/magikrun/magikpod/pod"
)

func TestTagAndRemove(t *testing.T) {
	base := randomImage(t, hostArch(t), 2)
	s := newStore(t)
	load(t, s, dockerArchive(t, map[string]v1.Image{"a:1": base}), "")
	id := idOf(t, base)
	for _, ref := range []string{id, id[7:], id[7:13], "a:1"} {
		if err := s.Tag(ref, "example.com/b"); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
		info, config, err := s.Inspect(ref)
		if err != nil || info.ID != id || len(config) == 0 {
			t.Errorf("%s: %+v, %v", ref, info, err)
		}
	}
	wantKind(t, s.Tag("nosuch", "x"), pod.NotFound, "nosuch")
	wantKind(t, s.Tag("a:1", "x@"+id), pod.Invalid, "digest")
	wantKind(t, s.Tag("a:1", "X"), pod.Invalid, "lower case")
	users := func(got string) []string {
		if got != id {
			t.Errorf("asked for %s", got)
		}
		return []string{"default/web"}
	}
	ctx := context.Background()
	// A name may go while the image is in use, the last one not.
	if err := s.Remove(ctx, "a:1", users); err != nil {
		t.Error(err)
	}
	wantKind(t, s.Remove(ctx, "a:1", nil), pod.NotFound, "a:1")
	wantKind(t, s.Remove(ctx, "example.com/b", users), pod.Conflict, "default/web")
	wantKind(t, s.Remove(ctx, id[:20], users), pod.Conflict, "default/web")
	if _, err := s.Resolve("example.com/b"); err != nil {
		t.Error(err)
	}
	if err := s.Remove(ctx, "example.com/b", func(string) []string { return nil }); err != nil {
		t.Error(err)
	}
	_, err := s.Resolve("example.com/b")
	wantKind(t, err, pod.NotFound, "example.com/b:latest")
	wantEmpty(t, s)
}

// A digest means all names of one repository, and no others.
func TestRemoveByDigest(t *testing.T) {
	s := newStore(t)
	img := randomImage(t, hostArch(t), 1)
	load(t, s, ociArchive(t, func(p layout.Path) error { return p.AppendImage(img) }), "a:1")
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a:2", "ab:1", "example.com/library/a:1"} {
		if err := s.Tag("a:1", name); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(context.Background(), "a@"+digest.String(), nil); err != nil {
		t.Fatal(err)
	}
	if list := s.List(); len(list) != 1 || !slices.Equal(list[0].References, []string{"docker.io/library/ab:1", "example.com/library/a:1"}) {
		t.Errorf("list: %+v", list)
	}
}

// What two images share stays until the last of them is removed.
func TestRemoveKeepsSharedLayers(t *testing.T) {
	base := tarOf(t, file{name: "etc/"}, file{name: "etc/passwd", content: "base"})
	s := newStore(t)
	one := imageOf(t, base, tarOf(t, file{name: "one", content: "1"}))
	two := imageOf(t, base, tarOf(t, file{name: "two", content: "2"}))
	load(t, s, dockerArchive(t, map[string]v1.Image{"one:1": one}), "")
	load(t, s, dockerArchive(t, map[string]v1.Image{"two:1": two}), "")
	if len(s.layers) != 3 {
		t.Fatalf("there are %d layers, want 3", len(s.layers))
	}
	if err := s.Remove(context.Background(), "one:1", nil); err != nil {
		t.Fatal(err)
	}
	image, err := s.Resolve("two:1")
	if err != nil {
		t.Fatal(err)
	}
	if len(s.layers) != 2 || string(image.Passwd) != "base" {
		t.Errorf("there are %d layers; passwd %q", len(s.layers), image.Passwd)
	}
	for _, name := range image.Rootfs.Layers {
		if _, err := os.Stat(filepath.Join(image.Rootfs.Dir, name)); err != nil {
			t.Error(err)
		}
	}
	checkLayout(t, s.dir, 1)
	if err := s.Remove(context.Background(), idOf(t, two), nil); err != nil {
		t.Fatal(err)
	}
	wantEmpty(t, s)
}

func TestPrune(t *testing.T) {
	s := newStore(t)
	load(t, s, tarOf(t, file{name: "a", content: "1"}), "x")
	old, err := s.Resolve("x")
	if err != nil {
		t.Fatal(err)
	}
	load(t, s, tarOf(t, file{name: "a", content: "2"}), "x")
	if list := s.List(); len(list) != 2 || len(list[1].References) != 0 || list[1].ID != old.ID {
		t.Fatalf("list: %+v", list)
	}
	if ids, err := s.Prune(context.Background(), func(id string) []string { return []string{id} }); err != nil || len(ids) != 0 {
		t.Errorf("pruned %v, %v", ids, err)
	}
	if ids, err := s.Prune(context.Background(), nil); err != nil || !slices.Equal(ids, []string{old.ID}) {
		t.Errorf("pruned %v, %v", ids, err)
	}
	if list := s.List(); len(list) != 1 {
		t.Errorf("list: %+v", list)
	}
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Limits{})
	load(t, s, busybox(t), "bb")
	load(t, s, dockerArchive(t, map[string]v1.Image{"a:1": randomImage(t, hostArch(t), 3), "b:1": randomImage(t, hostArch(t), 1)}), "")
	if err := s.Tag("a:1", "c:1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(context.Background(), "a:1", nil); err != nil {
		t.Fatal(err)
	}
	_, err := Open(dir, Options{})
	wantKind(t, err, pod.Conflict, "another process")
	before, files := s.List(), contents(t, s)
	want, err := s.Resolve("bb")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wantKind(t, s.Remove(context.Background(), "bb", nil), pod.Unavailable, "closed")
	s = openStore(t, dir, Limits{})
	if diff := cmp.Diff(before, s.List()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(files, contents(t, s)); diff != "" {
		t.Error(diff)
	}
	got, err := s.Resolve("bb")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if w := s.Warnings(); len(w) > 0 {
		t.Errorf("warnings: %v", w)
	}
	checkLayout(t, dir, 3)
}
