package image

import (
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/magikrun/magikpod/pod"
)

// Modules is a platform for options: WebAssembly modules, which run on every host, before the
// host's own.
const Modules = "wasm"

// platform is os/architecture[/variant].
type platform struct {
	os, arch, variant string
	// Of what is wanted: none was named, so it is the host's, which runs WebAssembly, too; modules:
	// that comes first.
	host, modules bool
}

func platformOf(p v1.Platform) platform {
	return platform{os: p.OS, arch: p.Architecture, variant: p.Variant}
}

func (p platform) String() string {
	text := p.os + "/" + p.arch
	if p.variant != "" {
		text += "/" + p.variant
	}
	return text
}

// text is empty for what does not say enough.
func (p platform) text() string {
	if p.os == "" || p.arch == "" {
		return ""
	}
	return p.String()
}

// parsePlatform reads "linux/arm64" or "linux/arm/v7"; "" is the host's.
func parsePlatform(text string) (platform, error) {
	if text == "" || text == Modules {
		return platform{os: "linux", arch: runtime.GOARCH, host: true, modules: text == Modules}, nil
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

// wasmPlatforms are the names that the platform of WebAssembly modules goes by, the better one
// last. They run on every host.
var wasmPlatforms = []platform{{os: "wasip2", arch: "wasm"}, {os: "wasi", arch: "wasm32"}, {os: "wasi", arch: "wasm"}, {os: "wasip1", arch: "wasm"}}

// rank says how well an offer fits; 0: not at all. More is better.
func (p platform) rank(offer platform) int {
	if i := slices.Index(wasmPlatforms, platform{os: offer.os, arch: offer.arch}); i >= 0 {
		switch {
		case p.os == offer.os && p.arch == offer.arch:
			return 100
		case p.modules:
			return 101 + i
		case p.host || p.isModule():
			return 1 + i
		}
		return 0
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

// unsaidRank is the rank of what says nothing about its platform.
const unsaidRank = 11

// pick returns the manifest of an index that fits best.
func (p platform) pick(manifests []v1.Descriptor) (v1.Descriptor, error) {
	best, bestRank := v1.Descriptor{}, 0
	var offered []string
	for _, d := range manifests {
		if !isImage(d) {
			continue
		}
		rank := unsaidRank
		if d.Platform != nil {
			offer := platformOf(*d.Platform)
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

// isModule says whether it is one of WebAssembly.
func (p platform) isModule() bool {
	return slices.Contains(wasmPlatforms, platform{os: p.os, arch: p.arch})
}

// maxOffers bounds what is remembered of an index.
const maxOffers = 16

// offersOf are those platforms of an index that run here.
func offersOf(manifests []v1.Descriptor) (offers []platform) {
	want := platform{os: "linux", arch: runtime.GOARCH, modules: true}
	for _, d := range manifests {
		if d.Platform == nil || !isImage(d) {
			continue
		}
		if p := platformOf(*d.Platform); want.rank(p) > 0 && len(p.variant) < 32 && !slices.Contains(offers, p) && len(offers) < maxOffers {
			offers = append(offers, p)
		}
	}
	return offers
}

func joinPlatforms(list []platform) string {
	var texts []string
	for _, p := range list {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ",")
}

// splitPlatforms is the inverse of joinPlatforms; what is none is left out.
func splitPlatforms(text string) (list []platform) {
	for part := range strings.SplitSeq(text, ",") {
		if p, err := parsePlatform(part); err == nil && part != "" && len(list) < maxOffers {
			list = append(list, p)
		}
	}
	return list
}

// isImage says whether a manifest of an index is an image or an index, and no note about another
// one (an attestation: buildkit makes such).
func isImage(d v1.Descriptor) bool {
	note := d.Annotations["vnd.docker.reference.type"] != "" ||
		d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown"
	return !note && (d.MediaType.IsImage() || d.MediaType.IsIndex())
}
