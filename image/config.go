package image

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// configFile is what of an image config (OCI image-spec, config.md) is used here. docker's form is
// the same.
type configFile struct {
	Created      string `json:"created,omitempty"`
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant,omitempty"`
	Config       struct {
		User         string
		Env          []string
		Entrypoint   []string
		Cmd          []string
		WorkingDir   string
		StopSignal   string
		Volumes      map[string]struct{}
		Labels       map[string]string
		ExposedPorts map[string]struct{} `json:",omitempty"`
	} `json:"config"`
	RootFS struct {
		Type    string    `json:"type"`
		DiffIDs []v1.Hash `json:"diff_ids"`
	} `json:"rootfs"`
}

func parseConfig(data []byte) (*configFile, error) {
	var c configFile
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, invalid("the image config: %w", err)
	}
	for _, d := range c.RootFS.DiffIDs {
		if d.Algorithm != "sha256" {
			return nil, pod.Errorf(pod.Unsupported, "the image config has a %s digest, and only sha256 is supported", d.Algorithm)
		}
	}
	return &c, nil
}

const (
	// maxStrings, maxString and maxArgs bound the arguments, the environment and the volumes of an
	// image, in strings, bytes of one and bytes of all. The kernel takes no longer string
	// (execve(2), MAX_ARG_STRLEN), and with the usual stack twice as many bytes.
	maxStrings = 4096
	maxString  = 128<<10 - 1
	maxArgs    = 1 << 20
	// maxWord bounds what is a name or a number: of a user and a group, of a signal.
	maxWord = 256
)

// checkWords refuses a config with which nothing could be run, or of which the kernel would get a
// part only, up to a NUL.
func (c *configFile) checkWords() error {
	lists := map[string][]string{
		"Env": c.Config.Env, "Entrypoint": c.Config.Entrypoint, "Cmd": c.Config.Cmd, "Volumes": slices.Collect(maps.Keys(c.Config.Volumes)),
		"WorkingDir": {c.Config.WorkingDir}, "User": {c.Config.User}, "StopSignal": {c.Config.StopSignal},
	}
	for name, list := range lists {
		size := 0
		for _, s := range list {
			if strings.ContainsRune(s, 0) {
				return invalid("the image config: %s has a NUL byte in it", name)
			}
			if size += len(s) + 1; len(s) > maxString {
				size = maxArgs + 1
			}
		}
		if len(list) > maxStrings || size > maxArgs {
			return pod.Errorf(pod.Exhausted, "%s of the image config has %d strings, and %d of at most %d bytes are the limit, %d bytes together",
				name, len(list), maxStrings, maxString, maxArgs)
		}
	}
	for name, word := range map[string]string{"User": c.Config.User, "StopSignal": c.Config.StopSignal} {
		if len(word) > maxWord {
			return pod.Errorf(pod.Exhausted, "%s of the image config has %d bytes, and %d are the limit", name, len(word), maxWord)
		}
	}
	return nil
}

// check refuses an image that cannot run on the wanted platform.
func (c *configFile) check(want platform) error {
	have := platform{os: cmp.Or(c.OS, want.os), arch: cmp.Or(c.Architecture, want.arch), variant: want.variant}
	if want.rank(have) > 0 {
		return nil
	}
	have.variant = c.Variant
	return pod.Errorf(pod.Unsupported, "the image is for %s and not for %s", have, want)
}

func (c *configFile) created() time.Time {
	t, err := time.Parse(time.RFC3339Nano, c.Created)
	if err != nil {
		return time.Time{}
	}
	return t
}

func (c *configFile) image() runtime.ImageConfig {
	return runtime.ImageConfig{
		User: c.Config.User, Env: c.Config.Env, Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, WorkingDir: c.Config.WorkingDir,
		StopSignal: c.Config.StopSignal, Volumes: slices.Sorted(maps.Keys(c.Config.Volumes)), Labels: c.Config.Labels,
		Architecture: c.Architecture, OS: c.OS,
	}
}

// parseManifest reads an image manifest of OCI or docker form.
func parseManifest(data []byte, limits Limits) (*v1.Manifest, error) {
	var m struct {
		v1.Manifest
		Manifests json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, invalid("the manifest: %w", err)
	}
	switch {
	case m.Manifests != nil: // two readers could see two different things in it
		return nil, invalid("the manifest is one of an image and of an index at once")
	case m.SchemaVersion != 2:
		return nil, pod.Errorf(pod.Unsupported, "the manifest has the schema version %d, and only 2 is supported", m.SchemaVersion)
	case len(m.Layers) > limits.MaxLayers:
		return nil, pod.Errorf(pod.Exhausted, "the image has %d layers, and %d are the limit", len(m.Layers), limits.MaxLayers)
	case m.Config.Size > limits.MaxManifestBytes:
		return nil, pod.Errorf(pod.Exhausted, "the image config has %d bytes, and %d are the limit", m.Config.Size, limits.MaxManifestBytes)
	}
	left := limits.MaxImageBytes
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		switch {
		case d.Digest.Algorithm != "sha256":
			return nil, pod.Errorf(pod.Unsupported, "the manifest has a %q digest, and only sha256 is supported", d.Digest.Algorithm)
		case d.Size < 0:
			return nil, invalid("the manifest has the size %d", d.Size)
		case d.Size > left:
			return nil, pod.Errorf(pod.Exhausted, "the image is larger than %d bytes, the limit", limits.MaxImageBytes)
		}
		left -= d.Size
	}
	return &m.Manifest, nil
}
