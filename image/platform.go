package image

import (
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/magikrun/magikpod/pod"
)

// platform is os/architecture[/variant].
type platform struct{ os, arch, variant string }

func (p platform) String() string {
	text := p.os + "/" + p.arch
	if p.variant != "" {
		text += "/" + p.variant
	}
	return text
}

// parsePlatform reads "linux/arm64" or "linux/arm/v7"; "" is the host's.
func parsePlatform(text string) (platform, error) {
	if text == "" {
		return platform{os: "linux", arch: runtime.GOARCH}, nil
	}
	parts := strings.Split(text, "/")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		return platform{}, invalid("cannot use platform %.100q: it is not OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT", text)
	}
	p := platform{os: parts[0], arch: parts[1]}
	if len(parts) == 3 {
		p.variant = parts[2]
	}
	return p, nil
}

// wasmPlatforms are the names that the platform of WebAssembly modules goes by, the better one last. They run on every host.
var wasmPlatforms = []platform{{os: "wasi", arch: "wasm32"}, {os: "wasi", arch: "wasm"}, {os: "wasip2", arch: "wasm"}, {os: "wasip1", arch: "wasm"}}

// rank says how well an offer fits; 0: not at all. More is better.
func (p platform) rank(offer platform) int {
	if i := slices.Index(wasmPlatforms, platform{os: offer.os, arch: offer.arch}); i >= 0 {
		if p.os == offer.os && p.arch == offer.arch {
			return 100
		}
		return 1 + i
	}
	if offer.os != p.os || offer.arch != p.arch {
		return 0
	}
	switch {
	case offer.variant == p.variant:
		return 100
	case p.variant != "" && offer.variant == "":
		return 90
	case p.variant != "":
		return 0
	}
	// The host's variant is not known in detail: take what runs everywhere first.
	preferred := map[string][]string{"arm": {"v7", "v6", "v5"}, "arm64": {"v8"}, "amd64": {"v1"}}[p.arch]
	for i, variant := range preferred {
		if offer.variant == variant {
			return 80 - i
		}
	}
	return 10
}

// pick returns the manifest of an index that fits best.
func (p platform) pick(manifests []v1.Descriptor) (v1.Descriptor, error) {
	best, bestRank := v1.Descriptor{}, 0
	var offered []string
	for _, d := range manifests {
		if isAttestation(d) {
			continue
		}
		if !d.MediaType.IsImage() && !d.MediaType.IsIndex() {
			continue
		}
		rank := 11 // one that says nothing about its platform
		if d.Platform != nil {
			offer := platform{os: d.Platform.OS, arch: d.Platform.Architecture, variant: d.Platform.Variant}
			offered = append(offered, offer.String())
			rank = p.rank(offer)
		}
		if rank > bestRank {
			best, bestRank = d, rank
		}
	}
	if bestRank == 0 {
		return best, pod.Errorf(pod.Unsupported, "there is no image for %s; there are: %.300s", p, strings.Join(offered, ", "))
	}
	return best, nil
}

// isAttestation says whether a manifest of an index is a note about another one (buildkit makes such) and no image.
func isAttestation(d v1.Descriptor) bool {
	return d.Annotations["vnd.docker.reference.type"] != "" ||
		d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown"
}
