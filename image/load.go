package image

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// LoadOptions are how an archive is loaded.
type LoadOptions struct {
	Tag      string // the image's name instead of the archive's; a root file system and a module need it
	Platform string // OS/ARCHITECTURE[/VARIANT]; empty: the host's, and WebAssembly
}

// Load takes in the images of an archive: an OCI archive, a docker archive (both of which may hold
// several images) or a plain tar of a root file system, each as it is or compressed with gzip or
// zstd; or a WebAssembly module as it is. It reads r to its end, from where it stands, and returns
// the references of the images, and the ID of an image without one. All images are loaded or none.
// Invalid: the archive is damaged, hostile or no image; Unsupported: it has no image for the
// platform.
func (s *Store) Load(ctx context.Context, r io.Reader, o LoadOptions) ([]string, error) {
	var refs []string
	err := s.do(ctx, func(ctx context.Context) (err error) {
		refs, err = s.load(ctx, r, o)
		return err
	}, "cannot load archive")
	return refs, err
}

func (s *Store) load(ctx context.Context, r io.Reader, o LoadOptions) ([]string, error) {
	want, err := parsePlatform(o.Platform)
	if err != nil {
		return nil, err
	}
	tag := ""
	if o.Tag != "" {
		parsed, err := parseReference(o.Tag)
		if err != nil {
			return nil, err
		}
		if parsed.digest != "" {
			return nil, invalid("the name %s has a digest, and an archive cannot be given one", parsed)
		}
		tag = parsed.String()
	}
	l := s.lease()
	defer l.release()
	r, isModule, err := startsAsModule(ctx, r)
	if err != nil {
		return nil, err
	}
	var candidates []candidate
	if isModule {
		c, remove, err := s.moduleCandidate(ctx, r, tag, want)
		if err != nil {
			return nil, err
		}
		defer remove()
		candidates = []candidate{c}
	} else {
		a, err := s.openArchive(ctx, r)
		if err != nil {
			return nil, err
		}
		defer a.close()
		if candidates, err = s.candidates(ctx, l, a, tag, want); err != nil {
			return nil, err
		}
	}
	if tag != "" {
		images := 0
		for i := range candidates {
			if !candidates[i].more {
				images++
			}
			candidates[i].refs = []string{tag}
		}
		if images != 1 {
			return nil, invalid("the archive has %d images, and one name was given", images)
		}
	}
	entries, err := s.takeIn(ctx, candidates)
	if err != nil {
		return nil, err
	}
	return loaded(candidates, entries), nil
}

// candidates finds out what the archive is.
func (s *Store) candidates(ctx context.Context, l *lease, a *archiveFile, tag string, want platform) ([]candidate, error) {
	switch {
	case a.has("oci-layout") && a.has("index.json"):
		return s.ociCandidates(ctx, a, want)
	case a.has("manifest.json"):
		return s.dockerCandidates(ctx, a, want)
	case a.has("oci-layout"):
		return nil, invalid("it is an OCI archive without index.json")
	case tag == "":
		return nil, invalid("it is neither an OCI nor a docker archive; a root file system needs a name to be loaded by (--tag)")
	}
	c, err := s.rootCandidate(ctx, l, a, want)
	return []candidate{c}, err
}

// loaded is what Load returns: each name once, and the ID of what has none.
func loaded(candidates []candidate, entries []*entry) []string {
	refs := []string{}
	add := func(ref string) {
		if !slices.Contains(refs, ref) {
			refs = append(refs, ref)
		}
	}
	for i, e := range entries {
		for _, ref := range candidates[i].refs {
			add(ref)
		}
		if len(candidates[i].refs) == 0 {
			add(e.id)
		}
	}
	return refs
}

// rootCandidate makes an image of a root file system: one layer, and a config that says no more
// than what it is for. The same archive makes the same image.
func (s *Store) rootCandidate(ctx context.Context, l *lease, a *archiveFile, want platform) (candidate, error) {
	if !a.ended {
		return candidate{}, invalid("the archive is cut off: it has no end mark")
	}
	hash := sha256.New()
	size, err := io.Copy(hash, limitReader(ctx, io.NewSectionReader(a.r, 0, a.size), s.limits.MaxLayerBytes, "the root file system"))
	if err != nil {
		return candidate{}, err
	}
	digest := sumOf(hash)
	l.pin(digest.String())
	if a.spool != nil && !s.hasBlob(digest, size) {
		if err := s.adoptFile(a.spool, s.blobPath(digest)); err != nil {
			return candidate{}, err
		}
	}
	var config configFile
	config.Architecture, config.OS, config.Variant = want.arch, want.os, want.variant
	if a.newest.Unix() > 0 && a.newest.Year() < 10000 {
		config.Created = a.newest.UTC().Format(time.RFC3339)
	}
	c, err := oneLayer(config, digest, size, func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(a.r, 0, a.size)), nil
	})
	c.want = want
	return c, err
}

// oneLayer is an image of one layer, which is not packed.
func oneLayer(config configFile, digest v1.Hash, size int64, open func(context.Context) (io.ReadCloser, error)) (candidate, error) {
	config.RootFS.Type, config.RootFS.DiffIDs = "layers", []v1.Hash{digest}
	data, err := json.Marshal(config)
	return candidate{
		config: data, packed: []types.MediaType{types.OCIUncompressedLayer}, layers: []blobSource{{digest: digest, size: size, open: open}},
	}, err
}
