package image

import (
	"context"
	"encoding/json"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/magikrun/magikpod/pod"
)

// maxIndexDepth is how deep indexes may be nested.
const maxIndexDepth = 4

// ociCandidates finds the images of an OCI archive. Manifests of one name for several platforms are
// one image.
func (s *Store) ociCandidates(ctx context.Context, a *archiveFile, want platform) ([]candidate, error) {
	data, err := a.read(ctx, "index.json", s.limits.MaxManifestBytes)
	if err != nil {
		return nil, err
	}
	top, err := parseIndex(data)
	if err != nil {
		return nil, err
	}
	if n := len(top.Manifests); n > maxArchiveNames {
		return nil, tooManyNames(n)
	}
	groups, order := groupByName(top.Manifests)
	var list []candidate
	byDigest := map[string]int{}
	for _, name := range order {
		for _, part := range parts(splitGroup(groups[name]), want) {
			c, digest, err := s.ociCandidate(ctx, a, part.descs, part.want)
			if err != nil {
				return nil, err
			}
			i, seen := byDigest[digest]
			if !seen {
				i = len(list)
				byDigest[digest] = i
				c.more = part.more
				list = append(list, c)
			}
			if name != "" {
				ref, err := Normalize(name)
				if err != nil {
					return nil, err
				}
				if !slices.Contains(list[i].refs, ref) {
					list[i].refs = append(list[i].refs, ref)
				}
			}
		}
	}
	if len(list) == 0 {
		return nil, invalid("the archive has no image")
	}
	return list, nil
}

// part is what of a multi-platform image is loaded.
type part struct {
	descs []v1.Descriptor
	want  platform
	more  bool // of the same image as the one before
}

// parts are those for the platform; where none was named also those of WebAssembly, which may be
// the same.
func parts(groups [][]v1.Descriptor, want platform) (list []part) {
	modules, _ := parsePlatform(Modules)
	for _, descs := range groups {
		list = append(list, part{descs: descs, want: want})
		if want.host && (len(descs) > 1 || descs[0].MediaType.IsIndex()) {
			list = append(list, part{descs: descs, want: modules, more: true})
		}
	}
	return list
}

// groupByName sorts the manifests of an archive's index by the names that they have; order is that
// of the archive.
func groupByName(manifests []v1.Descriptor) (groups map[string][]v1.Descriptor, order []string) {
	groups = map[string][]v1.Descriptor{}
	for _, d := range manifests {
		if !isImage(d) {
			continue
		}
		// docker and buildkit put only the tag where the OCI's name belongs, and the name elsewhere.
		name := d.Annotations[annotationDocker]
		if name == "" {
			name = d.Annotations[annotationName]
		}
		if groups[name] == nil {
			order = append(order, name)
		}
		groups[name] = append(groups[name], d)
	}
	return groups, order
}

// splitGroup separates several images without a name, and leaves the platforms of one image together.
func splitGroup(descs []v1.Descriptor) [][]v1.Descriptor {
	each := slices.Collect(slices.Chunk(descs, 1))
	if slices.ContainsFunc(descs, func(d v1.Descriptor) bool { return d.Platform == nil }) {
		return each
	}
	seen := map[platform]bool{}
	for _, d := range descs {
		p := platformOf(*d.Platform)
		if seen[p] && d.Annotations[annotationName] == "" { // two of one platform, without a name: different images
			return each
		}
		seen[p] = true
	}
	return [][]v1.Descriptor{descs}
}

// ociCandidate follows indexes to the image of the wanted platform, and returns it with the digest
// of its manifest.
func (s *Store) ociCandidate(ctx context.Context, a *archiveFile, descs []v1.Descriptor, want platform) (candidate, string, error) {
	var from origin
	for range maxIndexDepth {
		d := descs[0]
		if len(descs) > 1 || from.source != "" {
			var err error
			if d, err = want.pick(descs); err != nil {
				return candidate{}, "", err
			}
			from.note(descs, d)
		}
		data, err := s.archiveBlob(ctx, a, d)
		if err != nil {
			return candidate{}, "", err
		}
		if !d.MediaType.IsIndex() {
			c, err := s.ociImage(ctx, a, d, data)
			if c.manifest == nil && from.source == "" {
				from.source = d.Digest.String() // what the artifact was
			}
			c.origin, c.want = from, want
			return c, d.Digest.String(), err
		}
		if from.source == "" {
			from.source = d.Digest.String()
		}
		x, err := parseIndex(data)
		if err != nil {
			return candidate{}, "", err
		}
		if descs = x.Manifests; len(descs) == 0 {
			return candidate{}, "", invalid("the index %s is empty", d.Digest)
		}
	}
	return candidate{}, "", invalid("the indexes are nested more than %d deep", maxIndexDepth)
}

func (s *Store) ociImage(ctx context.Context, a *archiveFile, d v1.Descriptor, manifest []byte) (candidate, error) {
	m, err := parseManifest(manifest, s.limits)
	if err != nil {
		return candidate{}, err
	}
	if artifact, err := wasmArtifact(m); err != nil {
		return candidate{}, err
	} else if artifact != nil {
		return s.wasmCandidate(ctx, *artifact, a.source(blobName(artifact.Digest)))
	}
	config, err := s.archiveBlob(ctx, a, m.Config)
	if err != nil {
		return candidate{}, err
	}
	c := candidate{manifest: manifest, kind: d.MediaType, config: config}
	for _, layer := range m.Layers {
		c.layers = append(c.layers, blobSource{digest: layer.Digest, size: layer.Size, open: a.source(blobName(layer.Digest))})
	}
	return c, nil
}

func blobName(d v1.Hash) string { return "blobs/" + d.Algorithm + "/" + d.Hex }

// archiveBlob reads and verifies a small blob of an OCI archive.
func (s *Store) archiveBlob(ctx context.Context, a *archiveFile, d v1.Descriptor) ([]byte, error) {
	if d.Digest.Algorithm != "sha256" {
		return nil, pod.Errorf(pod.Unsupported, "the archive has a %q digest, and only sha256 is supported", d.Digest.Algorithm)
	}
	data, err := a.read(ctx, blobName(d.Digest), s.limits.MaxManifestBytes)
	if err != nil {
		return nil, err
	}
	if got := digestOf(data); got != d.Digest {
		return nil, wrongBlob(d.Digest, got)
	}
	return data, nil
}

func parseIndex(data []byte) (*v1.IndexManifest, error) {
	var x struct {
		v1.IndexManifest
		Layers json.RawMessage `json:"layers"`
		Config json.RawMessage `json:"config"`
	}
	if err := json.Unmarshal(data, &x); err != nil {
		return nil, invalid("the index: %w", err)
	}
	if x.Layers != nil || x.Config != nil {
		return nil, invalid("the index is one of an image and of an index at once")
	}
	for i, d := range x.Manifests {
		if d.MediaType == "" {
			x.Manifests[i].MediaType = types.OCIManifestSchema1
		}
	}
	return &x.IndexManifest, nil
}
