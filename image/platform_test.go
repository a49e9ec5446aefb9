package image

import (
	"errors"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/magikrun/magikpod/pod"
)

func TestPick(t *testing.T) {
	for _, test := range []struct {
		name, want string // the host's, unless it begins with "only "
		offers     []string
		picked     string // "": none
	}{
		{"exact", "linux/arm64", []string{"linux/amd64", "linux/arm64", "windows/arm64"}, "linux/arm64"},
		{"none", "linux/arm64", []string{"linux/amd64", "windows/arm64"}, ""},
		{"the first of equals", "linux/amd64", []string{"linux/amd64", "linux/amd64"}, "linux/amd64"},
		{"no variant asked, common one", "linux/arm64", []string{"linux/arm64/v8"}, "linux/arm64/v8"},
		{"no variant asked, plain first", "linux/amd64", []string{"linux/amd64/v3", "linux/amd64", "linux/amd64/v2"}, "linux/amd64"},
		{"no variant asked, best known", "linux/arm", []string{"linux/arm/v5", "linux/arm/v7", "linux/arm/v6"}, "linux/arm/v7"},
		{"no variant asked, strange one", "linux/amd64", []string{"linux/amd64/v3"}, "linux/amd64/v3"},
		{"variant asked", "linux/arm/v6", []string{"linux/arm/v7", "linux/arm/v6"}, "linux/arm/v6"},
		{"variant asked, plain offered", "linux/arm/v6", []string{"linux/arm/v7", "linux/arm"}, "linux/arm"},
		{"variant asked, other offered", "linux/arm/v6", []string{"linux/arm/v7"}, ""},
		{"wasm runs everywhere", "linux/arm64", []string{"linux/amd64", "wasi/wasm"}, "wasi/wasm"},
		{"the newest name of wasm", "linux/amd64", []string{"wasi/wasm32", "wasip1/wasm", "wasi/wasm"}, "wasip1/wasm"},
		{"wasm asked", "wasi/wasm", []string{"linux/amd64", "wasip1/wasm", "wasi/wasm"}, "wasi/wasm"},
		{"a component when there is nothing else", "linux/amd64", []string{"wasip2/wasm"}, "wasip2/wasm"},
		{"no component when there is a module", "linux/amd64", []string{"wasip2/wasm", "wasi/wasm32"}, "wasi/wasm32"},
		{"a strange variant before wasm", "linux/amd64", []string{"wasip1/wasm", "linux/amd64/v3"}, "linux/amd64/v3"},
		{"a named one is no module", "only linux/arm64", []string{"linux/amd64", "wasi/wasm"}, ""},
		{"a named one of modules", "only wasi/wasm32", []string{"linux/amd64", "wasip1/wasm"}, "wasip1/wasm"},
		{"the host's before wasm", "linux/arm64", []string{"wasi/wasm", "linux/arm64"}, "linux/arm64"},
		{"notes are no images", "unknown/unknown", []string{"unknown/unknown"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			text, only := strings.CutPrefix(test.want, "only ")
			want, err := parsePlatform(text)
			if err != nil {
				t.Fatal(err)
			}
			want.host = !only
			var descs []v1.Descriptor
			for _, offer := range test.offers {
				p, err := parsePlatform(offer)
				if err != nil {
					t.Fatal(err)
				}
				descs = append(descs, v1.Descriptor{MediaType: types.OCIManifestSchema1, Platform: &v1.Platform{OS: p.os, Architecture: p.arch, Variant: p.variant}})
			}
			d, err := want.pick(descs)
			if test.picked == "" {
				wantKind(t, err, pod.Unsupported, text)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := (platform{os: d.Platform.OS, arch: d.Platform.Architecture, variant: d.Platform.Variant}).String(); got != test.picked {
				t.Errorf("got %s, want %s", got, test.picked)
			}
		})
	}
	for _, text := range []string{"linux", "/", "linux/", "/amd64", "a/b/c/d"} {
		_, err := parsePlatform(text)
		wantKind(t, err, pod.Invalid, "platform")
	}
}

func TestConfigCheck(t *testing.T) {
	want, err := parsePlatform("linux/arm64")
	if err != nil {
		t.Fatal(err)
	}
	want.host = true
	for text, ok := range map[string]bool{`{}`: true, `{"os":"linux"}`: true, `{"architecture":"arm64"}`: true, `{"os":"linux","architecture":"arm64","variant":"v8"}`: true,
		`{"config":{"WorkingDir":"/a\u0000b"}}`: false, `{"config":{"Env":["A=\u0000"]}}`: false, `{"config":{"Entrypoint":["a","\u0000"]}}`: false, `{"config":{"Volumes":{"/\u0000":{}}}}`: false,
		`{"os":"linux","architecture":"amd64"}`: false, `{"os":"windows","architecture":"arm64"}`: false, `{"os":"wasi","architecture":"wasm"}`: true} {
		c, err := parseConfig([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(c.checkWords(), c.check(want)); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
}
