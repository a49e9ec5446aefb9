package image

import (
	"bytes"
	"context"
	"slices"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/tests/testwasm"
)

// twoParts is an image for this host and for WebAssembly.
func twoParts(t *testing.T, wasm v1.Platform, module []byte) v1.ImageIndex {
	t.Helper()
	add := func(index v1.ImageIndex, img v1.Image, p v1.Platform) v1.ImageIndex {
		return mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &p}})
	}
	index := add(empty.Index, randomImage(t, hostArch(t), 1), v1.Platform{OS: "linux", Architecture: hostArch(t)})
	return add(index, artifact(t, wasmConfig, "application/wasm", module), wasm)
}

// wantParts checks which images a name stands for: of the host, and of WebAssembly. "none": nothing
// that fits, since the other one is there only.
func wantParts(t *testing.T, s *Store, ref, host, wasm string) {
	t.Helper()
	for want, os := range map[string]string{"": host, Modules: wasm} {
		image, err := s.ResolveFor(ref, want)
		switch {
		case os == "none":
			wantKind(t, err, pod.NotFound, "it is in the store for ")
		case err != nil:
			t.Errorf("%s for %q: %v", ref, want, err)
		case image.Config.OS != os:
			t.Errorf("%s for %q is for %s, want %s", ref, want, image.Config.OS, os)
		}
	}
}

// TestPartsOfAnImage: the host's part and that of WebAssembly come one after the other under the
// same name, and each is found by who wants it.
func TestPartsOfAnImage(t *testing.T) {
	reg := newRegistry(t)
	for _, p := range []v1.Platform{{OS: "wasip1", Architecture: "wasm"}, {OS: "wasi", Architecture: "wasm"}, {OS: "wasi", Architecture: "wasm32"}} {
		s, ref := pullStore(t), reg.host+"/both/"+p.Architecture+":"+p.OS
		reg.push(t, "both/"+p.Architecture+":"+p.OS, twoParts(t, p, testwasm.Trap()))
		pull := func(platform string) {
			t.Helper()
			if _, err := s.Pull(context.Background(), ref, PullOptions{Keychain: anonymous, Platform: platform}); err != nil {
				t.Fatal(err)
			}
		}
		pull(Modules)
		wantParts(t, s, ref, "none", "wasip1")
		pull("")
		wantParts(t, s, ref, "linux", "wasip1")
		s.Close()
		s = openStore(t, s.dir, Limits{})
		wantParts(t, s, ref, "linux", "wasip1")
		if image, err := s.Resolve(ref); err != nil || image.Config.OS != "linux" {
			t.Errorf("without a platform: %+v, %v", image, err)
		}
		var platforms []string
		for _, info := range s.List() {
			platforms = append(platforms, info.Platform)
			if len(info.References) != 1 {
				t.Errorf("names of %s: %v", info.Platform, info.References)
			}
		}
		slices.Sort(platforms)
		if want := []string{"linux/" + hostArch(t), p.OS + "/" + p.Architecture}; !slices.Equal(platforms, want) {
			t.Errorf("platforms: %v, want %v", platforms, want)
		}
		// A copy, a new name and an archive have both.
		if err := s.Tag(ref, "example.com/tagged:1"); err != nil {
			t.Fatal(err)
		}
		wantParts(t, s, "example.com/tagged:1", "linux", "wasip1")
		var archive bytes.Buffer
		if err := s.Save(context.Background(), []string{"example.com/tagged:1"}, &archive); err != nil {
			t.Fatal(err)
		}
		other := newStore(t)
		load(t, other, archive.Bytes(), "")
		wantParts(t, other, "example.com/tagged:1", "linux", "wasip1")
		// Both go.
		for _, name := range []string{ref, "example.com/tagged:1"} {
			if err := s.Remove(context.Background(), name, nil); err != nil {
				t.Fatal(err)
			}
		}
		if list, blobs := s.List(), s.blobs(); len(list)+len(blobs) > 0 {
			t.Errorf("left: %v, %v", list, blobs)
		}
	}
}

// TestPartsAreOfOneImage: what comes under the name later, and is another image, takes the place of
// both.
func TestPartsAreOfOneImage(t *testing.T) {
	reg, s := newRegistry(t), pullStore(t)
	ref, wasm := reg.host+"/moves:1", v1.Platform{OS: "wasip1", Architecture: "wasm"}
	pull := func(platform string) {
		t.Helper()
		if _, err := s.Pull(context.Background(), ref, PullOptions{Keychain: anonymous, Platform: platform}); err != nil {
			t.Fatal(err)
		}
	}
	reg.push(t, "moves:1", twoParts(t, wasm, testwasm.Trap()))
	pull("")
	pull("wasip1/wasm")
	wantParts(t, s, ref, "linux", "wasip1")
	reg.push(t, "moves:1", twoParts(t, wasm, testwasm.Function("_start")))
	pull(Modules)
	wantParts(t, s, ref, "none", "wasip1") // the host's would be another version
	if _, err := s.Load(context.Background(), bytes.NewReader(testwasm.Function("other")), LoadOptions{Tag: ref}); err != nil {
		t.Fatal(err)
	}
	wantParts(t, s, ref, "wasip1", "wasip1") // there is nothing else, and a pod of the other class may have an annotation
	// An image in use keeps its part; the other one, too.
	pull("")
	pull(Modules)
	image, err := s.ResolveFor(ref, Modules)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Remove(context.Background(), ref, func(id string) []string {
		if id == image.ID {
			return []string{"default/p"}
		}
		return nil
	})
	wantKind(t, err, pod.Conflict, "default/p")
	wantParts(t, s, ref, "linux", "wasip1")
}

// TestImageOfNoModules: where there is no part of WebAssembly modules run from the host's, as before.
func TestImageOfNoModules(t *testing.T) {
	reg, s := newRegistry(t), pullStore(t)
	index, _ := platforms(t)
	reg.push(t, "native:1", index)
	ref := reg.host + "/native:1"
	if _, err := s.Pull(context.Background(), ref, PullOptions{Keychain: anonymous, Platform: Modules}); err != nil {
		t.Fatal(err)
	}
	wantParts(t, s, ref, "linux", "linux")
	_, err := s.Pull(context.Background(), ref, PullOptions{Keychain: anonymous, Platform: "wasip1/wasm"})
	wantKind(t, err, pod.Unsupported, "no image for wasip1/wasm")
}

// TestPartThatSaysNothing: a part without a platform, in the index and in its config, is the best
// that there is where it was picked.
func TestPartThatSaysNothing(t *testing.T) {
	reg, s := newRegistry(t), pullStore(t)
	index := mutate.AppendManifests(twoParts(t, v1.Platform{OS: "wasip1", Architecture: "wasm"}, testwasm.Trap()), mutate.IndexAddendum{Add: randomImage(t, "", 1)})
	index = mutate.RemoveManifests(index, func(d v1.Descriptor) bool { return d.Platform != nil && d.Platform.OS == "linux" })
	reg.push(t, "unsaid:1", index)
	ref := reg.host + "/unsaid:1"
	image, err := s.Pull(context.Background(), ref, PullOptions{Keychain: anonymous})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.ResolveFor(ref, ""); err != nil || again.ID != image.ID {
		t.Errorf("%v, %v; want %s", again.ID, err, image.ID)
	}
	_, err = s.ResolveFor(ref, Modules)
	wantKind(t, err, pod.NotFound, "for wasip1/wasm")
}

// TestLoadParts: an archive's parts for the host and for WebAssembly come together, unless a
// platform is named.
func TestLoadParts(t *testing.T) {
	index := twoParts(t, v1.Platform{OS: "wasi", Architecture: "wasm"}, testwasm.Trap())
	archive := ociArchive(t, func(p layout.Path) error {
		return p.AppendIndex(index, layout.WithAnnotations(map[string]string{annotationName: "example.com/two:1"}))
	})
	s := newStore(t)
	if refs := load(t, s, archive, "named"); !slices.Equal(refs, []string{"docker.io/library/named:latest"}) {
		t.Errorf("loaded %v", refs)
	}
	wantParts(t, s, "named", "linux", "wasip1")
	for platform, want := range map[string][2]string{"wasip1/wasm": {"none", "wasip1"}, "linux/" + hostArch(t): {"linux", "none"}} {
		s := newStore(t)
		if _, err := s.Load(context.Background(), bytes.NewReader(archive), LoadOptions{Platform: platform}); err != nil {
			t.Fatal(err)
		}
		wantParts(t, s, "example.com/two:1", want[0], want[1])
	}
	_, err := newStore(t).Load(context.Background(), bytes.NewReader(archive), LoadOptions{Platform: "plan9/mips"})
	wantKind(t, err, pod.Unsupported, "linux/"+hostArch(t)+", wasi/wasm")
}
