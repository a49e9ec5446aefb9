package image

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/tests/testwasm"
)

const wasmConfig = "application/vnd.wasm.config.v0+json"

// artifact makes a WebAssembly artifact.
func artifact(tb testing.TB, config, layer types.MediaType, modules ...[]byte) v1.Image {
	tb.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), config)
	for _, m := range modules {
		var err error
		if img, err = mutate.AppendLayers(img, static.NewLayer(m, layer)); err != nil {
			tb.Fatal(err)
		}
	}
	return img
}

// wantModule: the image is the one that is made of a module.
func wantModule(t *testing.T, image runtime.Image, module []byte) {
	t.Helper()
	c := image.Config
	if c.OS != "wasip1" || c.Architecture != "wasm" || len(c.Entrypoint) != 1 || c.Entrypoint[0] != modulePath || len(image.Rootfs.Layers) != 1 {
		t.Fatalf("image: %+v", image)
	}
	path := filepath.Join(image.Rootfs.Dir, image.Rootfs.Layers[0], modulePath)
	data, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(data, module) {
		t.Errorf("%s has %d bytes, want %d: %v", path, len(data), len(module), err)
	}
}

func TestPullWasmArtifact(t *testing.T) {
	reg, module := newRegistry(t), testwasm.Trap()
	for name, img := range map[string]v1.Image{
		"cncf":    artifact(t, wasmConfig, "application/wasm", module),
		"oras":    artifact(t, "application/vnd.wasm.config.v1+json", "application/vnd.wasm.content.layer.v1+wasm", module),
		"runwasi": artifact(t, types.OCIConfigJSON, "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm", module),
	} {
		t.Run(name, func(t *testing.T) {
			s := pullStore(t)
			reg.push(t, "w/"+name+":v1", img)
			ref := reg.host + "/w/" + name + ":v1"
			var last Progress
			image, err := s.Pull(context.Background(), ref, PullOptions{Keychain: anonymous, Progress: func(p Progress) { last = p }})
			if err != nil {
				t.Fatal(err)
			}
			wantModule(t, image, module)
			if last.Done == 0 || last.Done != last.Total {
				t.Errorf("progress at the end: %+v", last)
			}
			digest, err := img.Digest()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := s.Resolve(reg.host + "/w/" + name + "@" + digest.String()); err != nil || got.ID != image.ID {
				t.Errorf("by digest: %s, %v", got.ID, err)
			}
			checkLayout(t, s.dir, 1)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			again := openStore(t, s.dir, Limits{})
			if image, err = again.Resolve(ref); err != nil {
				t.Fatal(err)
			}
			wantModule(t, image, module)
		})
	}
}

func TestPullWasmRefuses(t *testing.T) {
	reg, module := newRegistry(t), testwasm.Trap()
	for _, test := range []struct {
		name string
		img  v1.Image
		kind pod.Kind
		text string
	}{
		{"two-layers", artifact(t, wasmConfig, "application/wasm", module, testwasm.Function("x")), pod.Unsupported, "2 layers"},
		{"no-layer", artifact(t, wasmConfig, "application/wasm"), pod.Unsupported, "0 layers"},
		{"component", artifact(t, wasmConfig, "application/wasm", testwasm.Component()), pod.Unsupported, "component"},
		{"text", artifact(t, wasmConfig, "application/wasm", []byte("hello")), pod.Invalid, "no WebAssembly"},
		{"filter", artifact(t, "application/vnd.module.wasm.config.v1+json", "application/vnd.module.wasm.content.layer.v1+wasm", module), pod.Unsupported, "proxy-wasm"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := pullStore(t)
			reg.push(t, "r/"+test.name+":v1", test.img)
			_, err := s.Pull(context.Background(), reg.host+"/r/"+test.name+":v1", PullOptions{Keychain: anonymous})
			wantKind(t, err, test.kind, test.text)
			if left := s.blobs(); len(left) != 0 {
				t.Errorf("blobs are left: %v", left)
			}
		})
	}
}

func TestLoadWasm(t *testing.T) {
	s, module := newStore(t), testwasm.Trap()
	load(t, s, module, "stream")
	path := filepath.Join(t.TempDir(), "m.wasm")
	if err := os.WriteFile(path, module, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := s.Load(context.Background(), f, LoadOptions{Tag: "file"}); err != nil {
		t.Fatal(err)
	}
	archive := ociArchive(t, func(p layout.Path) error {
		return p.AppendImage(artifact(t, wasmConfig, "application/wasm", module), layout.WithAnnotations(map[string]string{annotationName: "example.com/artifact:1"}))
	})
	load(t, s, archive, "")
	id := ""
	for _, ref := range []string{"stream", "file", "example.com/artifact:1"} {
		image, err := s.Resolve(ref)
		if err != nil {
			t.Fatal(err)
		}
		wantModule(t, image, module)
		if id != "" && id != image.ID {
			t.Errorf("%s is another image than the one before", ref)
		}
		id = image.ID
	}
	if list, err := os.ReadDir(s.path(tmpDir)); err != nil || len(list) > 0 {
		t.Errorf("left in tmp: %v, %v", list, err)
	}
	_, err = s.Load(context.Background(), bytes.NewReader(module), LoadOptions{})
	wantKind(t, err, pod.Invalid, "--tag")
	_, err = s.Load(context.Background(), bytes.NewReader(testwasm.Component()), LoadOptions{Tag: "c"})
	wantKind(t, err, pod.Unsupported, "component")
	s.components = true // as Options say
	refs, err := s.Load(context.Background(), bytes.NewReader(testwasm.Component()), LoadOptions{Tag: "c"})
	if err != nil || len(refs) != 1 {
		t.Errorf("a component: %v, %v", refs, err)
	}
	_, err = s.Load(context.Background(), strings.NewReader("\x00asm"), LoadOptions{Tag: "short"})
	wantKind(t, err, pod.Invalid, "")
}
