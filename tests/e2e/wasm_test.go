package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/magikrun/magikpod/tests/testwasm"
)

// pushModules fills the registry with all forms in which people publish WebAssembly: wasm/FORM:1.
func pushModules(module []byte) error {
	component := testwasm.Component()
	forms := map[string]func() (v1.Image, error){
		"cncf": func() (v1.Image, error) {
			return artifact("application/vnd.wasm.config.v0+json", "application/wasm", module)
		},
		"oras": func() (v1.Image, error) {
			return artifact("application/vnd.wasm.config.v1+json", "application/vnd.wasm.content.layer.v1+wasm", module)
		},
		"runwasi": func() (v1.Image, error) {
			return artifact("application/vnd.oci.image.config.v1+json", "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm", module)
		},
		"component": func() (v1.Image, error) {
			return artifact("application/vnd.wasm.config.v0+json", "application/wasm", component)
		},
		"succeeds": func() (v1.Image, error) {
			return artifact("application/vnd.wasm.config.v0+json", "application/wasm", testwasm.Command(true))
		},
		"fails": func() (v1.Image, error) {
			return artifact("application/vnd.wasm.config.v0+json", "application/wasm", testwasm.Command(false))
		},
		"two-layers": func() (v1.Image, error) {
			return artifact("application/vnd.wasm.config.v0+json", "application/wasm", module, component)
		},
		"proxy": func() (v1.Image, error) {
			return artifact("application/vnd.module.wasm.config.v1+json", "application/vnd.module.wasm.content.layer.v1+wasm", module)
		},
		"compat": func() (v1.Image, error) {
			img, err := moduleInRoot(module)
			if err != nil {
				return nil, err
			}
			return mutate.Annotations(img, map[string]string{"module.wasm.image/variant": "compat"}).(v1.Image), nil
		},
		"in-compat": func() (v1.Image, error) { return moduleInRoot(component) },
	}
	var errs []error
	for form, make := range forms {
		img, err := make()
		if err == nil {
			var ref name.Reference
			if ref, err = name.ParseReference(registryAddress + "/wasm/" + form + ":1"); err == nil {
				err = remote.Write(ref, img)
			}
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, pushPlatform(module), pushParts(module))...)
}

// pushParts pushes an index of an image for the host, which is library/app, and one for wasip1/wasm.
func pushParts(module []byte) error {
	native, err := name.ParseReference(registryAddress + "/library/app:1")
	if err != nil {
		return err
	}
	img, err := remote.Image(native)
	if err != nil {
		return err
	}
	guest, err := artifact("application/vnd.wasm.config.v0+json", "application/wasm", module)
	if err != nil {
		return err
	}
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}},
		mutate.IndexAddendum{Add: guest, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "wasip1", Architecture: "wasm"}}})
	ref, err := name.ParseReference(registryAddress + "/wasm/parts:1")
	if err != nil {
		return err
	}
	return remote.WriteIndex(ref, index)
}

// artifact has modules as layers, which are no file systems.
func artifact(config, layer string, modules ...[]byte) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.MediaType(config))
	for _, module := range modules {
		var err error
		if img, err = mutate.Append(img, mutate.Addendum{Layer: static.NewLayer(module, types.MediaType(layer)), MediaType: types.MediaType(layer)}); err != nil {
			return nil, err
		}
	}
	return img, nil
}

// moduleInRoot is an ordinary image whose program is a module.
func moduleInRoot(module []byte) (v1.Image, error) {
	var root bytes.Buffer
	t := tar.NewWriter(&root)
	err := t.WriteHeader(&tar.Header{Name: "app/guest.wasm", Mode: 0o755, Size: int64(len(module)), Typeflag: tar.TypeReg})
	if err == nil {
		_, err = t.Write(module)
	}
	if err := errors.Join(err, t.Close()); err != nil {
		return nil, err
	}
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img, err = mutate.AppendLayers(img, static.NewLayer(root.Bytes(), types.OCIUncompressedLayer))
	if err != nil {
		return nil, err
	}
	return mutate.Config(img, v1.Config{Entrypoint: []string{"/app/guest.wasm"}, Env: []string{"FROM_IMAGE=yes"}})
}

// pushPlatform pushes an index whose only image is for the platform wasi/wasm.
func pushPlatform(module []byte) error {
	img, err := moduleInRoot(module)
	if err != nil {
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "wasi", "wasm"
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return err
	}
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{
		Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "wasi", Architecture: "wasm"}},
	})
	ref, err := name.ParseReference(registryAddress + "/wasm/platform:1")
	if err != nil {
		return err
	}
	return remote.WriteIndex(ref, index)
}
