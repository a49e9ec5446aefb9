package image

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/magikrun/magikpod/pod"
)

// randomImage makes an image for the platform.
func randomImage(tb testing.TB, arch string, layers int64) v1.Image {
	tb.Helper()
	img, err := random.Image(2000, layers)
	if err != nil {
		tb.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		tb.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	config.Config.Cmd, config.Config.Env = []string{"/run"}, []string{"A=b"}
	config.Config.Volumes = map[string]struct{}{"/b": {}, "/a": {}}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		tb.Fatal(err)
	}
	return img
}

func hostArch(tb testing.TB) string {
	p, err := parsePlatform("")
	if err != nil {
		tb.Fatal(err)
	}
	return p.arch
}

func idOf(tb testing.TB, img v1.Image) string {
	tb.Helper()
	h, err := img.ConfigName()
	if err != nil {
		tb.Fatal(err)
	}
	return h.String()
}

// dockerArchive makes what docker save makes.
func dockerArchive(tb testing.TB, images map[string]v1.Image) []byte {
	tb.Helper()
	refs := map[name.Reference]v1.Image{}
	for text, img := range images {
		ref, err := name.ParseReference(text)
		if err != nil {
			tb.Fatal(err)
		}
		refs[ref] = img
	}
	var b bytes.Buffer
	if err := tarball.MultiRefWrite(refs, &b); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// ociArchive makes a tar of an OCI layout with these things.
func ociArchive(tb testing.TB, add func(p layout.Path) error) []byte {
	tb.Helper()
	dir := tb.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		tb.Fatal(err)
	}
	if err := add(p); err != nil {
		tb.Fatal(err)
	}
	return tarDir(tb, dir)
}

func tarDir(tb testing.TB, dir string) []byte {
	tb.Helper()
	var files []file
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		files = append(files, file{name: "./" + rel, content: string(data)})
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return tarOf(tb, files...)
}

func TestLoadDockerArchive(t *testing.T) {
	one, two := randomImage(t, hostArch(t), 3), randomImage(t, hostArch(t), 2)
	s := newStore(t)
	archive := dockerArchive(t, map[string]v1.Image{"one:1": one, "example.com/x/two:2": two, "one:again": one})
	got := load(t, s, zstded(t, archive), "")
	slices.Sort(got)
	if diff := cmp.Diff([]string{"docker.io/library/one:1", "docker.io/library/one:again", "example.com/x/two:2"}, got); diff != "" {
		t.Error(diff)
	}
	for ref, img := range map[string]v1.Image{"one:1": one, "one:again": one, "example.com/x/two:2": two} {
		image, err := s.Resolve(ref)
		if err != nil {
			t.Fatal(err)
		}
		if image.ID != idOf(t, img) || !slices.Equal(image.Config.Cmd, []string{"/run"}) || !slices.Equal(image.Config.Volumes, []string{"/a", "/b"}) {
			t.Errorf("%s: %+v", ref, image)
		}
	}
	_, err := s.Load(context.Background(), bytes.NewReader(archive), LoadOptions{Tag: "x"})
	wantKind(t, err, pod.Invalid, "2 images")
}

func TestLoadOCIArchive(t *testing.T) {
	img := randomImage(t, hostArch(t), 3)
	s := newStore(t)
	archive := ociArchive(t, func(p layout.Path) error {
		return p.AppendImage(img, layout.WithAnnotations(map[string]string{annotationName: "hello:v1"}))
	})
	if got := load(t, s, archive, ""); !slices.Equal(got, []string{"docker.io/library/hello:v1"}) {
		t.Errorf("got %v", got)
	}
	unnamed := ociArchive(t, func(p layout.Path) error { return p.AppendImage(img) })
	if got := load(t, s, gzipped(t, unnamed), ""); !slices.Equal(got, []string{idOf(t, img)}) {
		t.Errorf("got %v, want the ID", got)
	}
	if got := load(t, s, unnamed, "other"); !slices.Equal(got, []string{"docker.io/library/other:latest"}) {
		t.Errorf("got %v", got)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"hello:v1", "other", "hello@" + digest.String(), idOf(t, img)} {
		if image, err := s.Resolve(ref); err != nil || image.ID != idOf(t, img) {
			t.Errorf("%s: %v, %v", ref, image.ID, err)
		}
	}
	if list := s.List(); len(list) != 1 || list[0].Digest != digest.String() {
		t.Errorf("list: %+v", list)
	}
}

// platforms makes an index of images for two other architectures and this one.
func platforms(tb testing.TB) (v1.ImageIndex, map[string]v1.Image) {
	tb.Helper()
	images := map[string]v1.Image{}
	var index v1.ImageIndex = empty.Index
	for _, arch := range []string{"s390x", "riscv64", hostArch(tb)} {
		images[arch] = randomImage(tb, arch, 2)
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: images[arch],
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	note := randomImage(tb, "unknown", 1)
	return mutate.AppendManifests(index, mutate.IndexAddendum{Add: note, Descriptor: v1.Descriptor{
		Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}}), images
}

func TestLoadPicksPlatform(t *testing.T) {
	index, images := platforms(t)
	nested := ociArchive(t, func(p layout.Path) error {
		return p.AppendIndex(index, layout.WithAnnotations(map[string]string{annotationName: "multi"}))
	})
	flat := ociArchive(t, func(p layout.Path) error { return p.ReplaceIndex(index, func(v1.Descriptor) bool { return false }) })
	dir := t.TempDir()
	if _, err := layout.Write(dir, index); err != nil {
		t.Fatal(err)
	}
	for name, archive := range map[string][]byte{"nested": nested, "flat": flat, "top": tarDir(t, dir)} {
		for _, arch := range []string{"", "s390x"} {
			s := newStore(t)
			o := LoadOptions{Tag: "x"}
			want := images[hostArch(t)]
			if arch != "" {
				o.Platform, want = "linux/"+arch, images[arch]
			}
			if _, err := s.Load(context.Background(), bytes.NewReader(archive), o); err != nil {
				t.Errorf("%s %s: %v", name, arch, err)
				continue
			}
			if image, err := s.Resolve("x"); err != nil || image.ID != idOf(t, want) {
				t.Errorf("%s %s: got %s, %v", name, arch, image.ID, err)
			}
		}
		s := newStore(t)
		_, err := s.Load(context.Background(), bytes.NewReader(archive), LoadOptions{Platform: "linux/mips"})
		wantKind(t, err, pod.Unsupported, "linux/mips")
		wantEmpty(t, s)
	}
	s := newStore(t)
	_, err := s.Load(context.Background(), bytes.NewReader(dockerArchive(t, map[string]v1.Image{"a:1": images["s390x"]})), LoadOptions{})
	wantKind(t, err, pod.Unsupported, "linux/s390x")
	wantEmpty(t, s)
}

func TestSave(t *testing.T) {
	one, two := randomImage(t, hostArch(t), 3), randomImage(t, hostArch(t), 1)
	s := newStore(t)
	load(t, s, dockerArchive(t, map[string]v1.Image{"one:1": one, "one:b": one, "two:2": two}), "")
	load(t, s, tarOf(t, file{name: "etc/"}, file{name: "etc/passwd", content: "x"}), "root")
	var b bytes.Buffer
	if err := s.Save(context.Background(), []string{"one:1", "one:b", idOf(t, two)[7:19], "root"}, &b); err != nil {
		t.Fatal(err)
	}
	again := newStore(t)
	got := load(t, again, b.Bytes(), "")
	if diff := cmp.Diff([]string{"docker.io/library/one:1", "docker.io/library/one:b", idOf(t, two), "docker.io/library/root:latest"}, got); diff != "" {
		t.Error(diff)
	}
	for _, ref := range []string{"one:1", "root", idOf(t, two)} {
		before, err := s.Resolve(ref)
		if err != nil {
			t.Fatal(err)
		}
		after, err := again.Resolve(ref)
		if err != nil || after.ID != before.ID {
			t.Errorf("%s: %s before and %s after, %v", ref, before.ID, after.ID, err)
		}
	}
	checkAsDocker(t, b.Bytes(), one)
	checkAsOCI(t, b.Bytes(), 4)
	wantKind(t, s.Save(context.Background(), []string{"nosuch"}, io.Discard), pod.NotFound, "nosuch")
	wantKind(t, s.Save(context.Background(), nil, io.Discard), pod.Invalid, "none")
	r, w := io.Pipe()
	r.Close()
	wantKind(t, s.Save(context.Background(), []string{"one:1"}, w), pod.Unavailable, "written")
}

// An archive with a wrong or missing blob is never complete.
func TestSaveDamaged(t *testing.T) {
	s := newStore(t)
	archive := dockerArchive(t, map[string]v1.Image{"a:1": randomImage(t, hostArch(t), 1)})
	load(t, s, archive, "")
	blob := s.blobPath(s.index.Load().images[s.index.Load().refs["docker.io/library/a:1"][0]].manifest.Layers[0].Digest)
	data, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(data)
	flipped[len(data)/2] ^= 1
	for name, damage := range map[string]struct {
		data []byte
		kind pod.Kind
		text string
	}{"flipped": {flipped, pod.Internal, "damaged"}, "short": {data[1:], pod.Internal, "damaged"}, "gone": {nil, pod.NotFound, "not in the store any more"}} {
		os.Remove(blob)
		if damage.data != nil {
			if err := os.WriteFile(blob, damage.data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var b bytes.Buffer
		wantKind(t, s.Save(context.Background(), []string{"a:1"}, &b), damage.kind, damage.text)
		if _, err := newStore(t).Load(context.Background(), &b, LoadOptions{}); err == nil {
			t.Errorf("%s: what was saved can be loaded", name)
		}
		load(t, s, archive, "")
		if err := s.Save(context.Background(), []string{"a:1"}, io.Discard); err != nil {
			t.Errorf("%s: loaded again: %v", name, err)
		}
	}
}

// checkAsDocker reads the archive as a docker archive.
func checkAsDocker(t *testing.T, archive []byte, want v1.Image) {
	t.Helper()
	tag, err := name.NewTag("one:1")
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil }, &tag)
	if err != nil {
		t.Fatal(err)
	}
	if got := idOf(t, img); got != idOf(t, want) {
		t.Errorf("as a docker archive it has %s, want %s", got, idOf(t, want))
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
}

// checkAsOCI unpacks the archive and reads it as an OCI layout.
func checkAsOCI(t *testing.T, archive []byte, manifests int) {
	t.Helper()
	dir := t.TempDir()
	u := newUnpacker(dir, nil, Limits{}.withDefaults())
	if err := u.unpack(context.Background(), bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	checkLayout(t, dir, manifests)
}

// checkLayout reads a directory as the OCI layout that it should be.
func checkLayout(t *testing.T, dir string, manifests int) {
	t.Helper()
	p, err := layout.FromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	index, err := p.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Manifests) != manifests {
		data, _ := json.Marshal(m)
		t.Errorf("index.json has %d manifests, want %d: %s", len(m.Manifests), manifests, data)
	}
	for _, d := range m.Manifests {
		img, err := p.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for _, layer := range layers { // validate.Image takes gzip only
			r, err := layer.Compressed()
			if err != nil {
				t.Fatal(err)
			}
			got, _, err := v1.SHA256(r)
			r.Close()
			if want, wantErr := layer.Digest(); err != nil || wantErr != nil || got != want {
				t.Errorf("layer %s has the digest %s, %v, %v", want, got, err, wantErr)
			}
		}
	}
}
