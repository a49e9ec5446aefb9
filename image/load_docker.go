package image

import (
	"context"
	"encoding/json"
	"io"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/magikrun/magikpod/pod"
)

// maxArchiveNames bounds the images of an archive and their names together.
const maxArchiveNames = 1000

func tooManyNames(n int) error {
	return pod.Errorf(pod.Exhausted, "the archive has %d images and names of images, and %d are the limit", n, maxArchiveNames)
}

// dockerImage is one image of a docker archive's manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// dockerCandidates finds the images of a docker archive. Nothing in such an archive has a digest
// that could be trusted but the config, which has the diffIDs; the layers are verified by them.
func (s *Store) dockerCandidates(ctx context.Context, a *archiveFile, want platform) ([]candidate, error) {
	data, err := a.read(ctx, "manifest.json", s.limits.MaxManifestBytes)
	if err != nil {
		return nil, err
	}
	var images []dockerImage
	if err := json.Unmarshal(data, &images); err != nil {
		return nil, invalid("manifest.json: %w", err)
	}
	names := 0
	for _, image := range images {
		names += 1 + len(image.RepoTags)
	}
	if names > maxArchiveNames {
		return nil, tooManyNames(names)
	}
	var list []candidate
	for _, image := range images {
		c, err := s.dockerCandidate(ctx, a, image)
		if err != nil {
			return nil, err
		}
		c.want = want
		list = append(list, c)
	}
	if len(list) == 0 {
		return nil, invalid("the archive has no image")
	}
	return list, nil
}

func (s *Store) dockerCandidate(ctx context.Context, a *archiveFile, image dockerImage) (candidate, error) {
	config, err := a.read(ctx, image.Config, s.limits.MaxManifestBytes)
	if err != nil {
		return candidate{}, err
	}
	c := candidate{config: config}
	for _, tag := range image.RepoTags {
		ref, err := Normalize(tag)
		if err != nil {
			return c, err
		}
		c.refs = append(c.refs, ref)
	}
	if len(image.Layers) > s.limits.MaxLayers {
		return c, pod.Errorf(pod.Exhausted, "the image has %d layers, and %d are the limit", len(image.Layers), s.limits.MaxLayers)
	}
	c.packed = []types.MediaType{}
	for _, name := range image.Layers {
		kind, err := a.layerType(name)
		if err != nil {
			return c, err
		}
		c.layers = append(c.layers, blobSource{size: -1, open: a.source(name)})
		c.packed = append(c.packed, kind)
	}
	return c, nil
}

// layerType looks at the first bytes of a layer.
func (a *archiveFile) layerType(name string) (types.MediaType, error) {
	r, err := a.open(name)
	if err != nil {
		return "", err
	}
	var magic [4]byte
	if _, err := io.ReadFull(r, magic[:]); err != nil {
		return "", invalid("%.300q in the archive is no layer", name)
	}
	switch packing(magic[:]) {
	case packedGzip:
		return types.OCILayer, nil
	case packedZstd:
		return types.OCILayerZStd, nil
	}
	return types.OCIUncompressedLayer, nil
}
