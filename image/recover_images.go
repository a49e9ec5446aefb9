package image

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/pod"
)

// recoverImages reads the images that index.json names. changed: it must be written anew.
func (s *Store) recoverImages() (x *index, changed bool, err error) {
	descs, err := s.readIndex()
	if unreadable(err) {
		return nil, false, err
	}
	if err != nil {
		if _, statErr := os.Lstat(s.path("index.json")); statErr == nil {
			if err := s.setAside(".", "index.json", err); err != nil {
				return nil, false, err
			}
		}
		if descs, changed = s.searchManifests(), true; len(descs) > 0 {
			s.warn("the names of %d images are lost, because %s is: %v", len(descs), s.path("index.json"), err)
		}
	}
	x = newIndex()
	failed, kept := map[string]bool{}, map[string]bool{}
	for _, d := range descs {
		digest := d.Digest.String()
		if x.images[digest] == nil && !failed[digest] {
			e, err := s.recoverImage(d)
			if err != nil {
				failed[digest] = true
				if isDamage(err) {
					s.warn("image %s (%s) was dropped: %v", digest, d.Annotations[annotationName], err)
					changed = true
				} else {
					s.warn("image %s (%s) cannot be used now: %v", digest, d.Annotations[annotationName], err)
				}
			}
			if err == nil {
				x.images[digest] = e
			} else if !isDamage(err) {
				kept[digest] = true
			}
		}
		if kept[digest] {
			x.kept = append(x.kept, d)
		}
		if ref := d.Annotations[annotationName]; ref != "" && !failed[digest] {
			if normal, err := Normalize(ref); err != nil || normal != ref {
				s.warn("the name %.300q of image %s was dropped: it is no full reference", ref, digest)
				changed = true
				continue
			}
			x.name(ref, x.images[digest], true)
		}
	}
	return x, changed, nil
}

// isDamage says whether an image cannot be read because of what it is, and not because of the state
// of the host or of the limits.
func isDamage(err error) bool {
	_, bad := asBadBlob(err)
	return bad || pod.KindOf(err) == pod.Invalid || errors.Is(err, os.ErrNotExist)
}

func (s *Store) readIndex() ([]v1.Descriptor, error) {
	var m v1.IndexManifest
	if err := atomicfile.LoadJSON(s.path("index.json"), maxIndexBytes, &m); err != nil {
		return nil, err
	}
	for _, d := range m.Manifests {
		if d.Digest.Algorithm != "sha256" {
			return nil, fmt.Errorf("it has a digest of the kind %q", d.Digest.Algorithm)
		}
	}
	return m.Manifests, nil
}

// searchManifests finds the images when there is no index: their names are lost, but pods know them
// by ID.
func (s *Store) searchManifests() []v1.Descriptor {
	var descs []v1.Descriptor
	for _, d := range s.blobs() {
		fi, err := os.Lstat(s.blobPath(d))
		if err != nil || fi.Size() > s.limits.MaxManifestBytes || !looksLikeManifest(s.blobPath(d)) {
			continue
		}
		data, err := s.readBlob(d)
		if err != nil {
			continue
		}
		m, err := parseManifest(data, s.limits)
		if err != nil || m.Config.Digest.Hex == "" || !s.hasBlob(m.Config.Digest, m.Config.Size) {
			continue
		}
		descs = append(descs, v1.Descriptor{MediaType: manifestType(m), Digest: d, Size: fi.Size()})
	}
	return descs
}

func looksLikeManifest(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	var first [1]byte
	_, err = io.ReadFull(f, first[:])
	return err == nil && first[0] == '{'
}

// recoverImage reads one image, and unpacks again what of its layers is missing.
func (s *Store) recoverImage(d v1.Descriptor) (*entry, error) {
	manifest, err := s.recoverBlob(d.Digest)
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(manifest, s.limits)
	if err != nil {
		return nil, err
	}
	data, err := s.recoverBlob(m.Config.Digest)
	if err != nil {
		return nil, err
	}
	config, err := parseConfig(data)
	if err != nil {
		return nil, err
	}
	if len(config.RootFS.DiffIDs) != len(m.Layers) {
		return nil, invalid("the config names %d layers and the manifest %d", len(config.RootFS.DiffIDs), len(m.Layers))
	}
	if err := s.recoverImageLayers(m, config); err != nil {
		return nil, err
	}
	source := d.Annotations[annotationSource]
	if !digestPattern.MatchString(source) {
		source = ""
	}
	from := origin{source: source, offers: splitPlatforms(d.Annotations[annotationOffers])}
	if d.Platform != nil {
		from.platform = platformOf(*d.Platform)
	}
	return s.newEntry(v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: int64(len(manifest))}, from, manifest, config)
}

// recoverBlob reads a small blob; a damaged one is set aside.
func (s *Store) recoverBlob(d v1.Hash) ([]byte, error) {
	data, err := s.readBlob(d)
	if bad, ok := asBadBlob(err); ok {
		if err := s.setAside(blobsDir, d.Hex, bad.err); err != nil {
			return nil, err
		}
	}
	return data, err
}

func (s *Store) recoverImageLayers(m *v1.Manifest, config *configFile) error {
	var parents []string
	for i, chain := range chainIDs(config.RootFS.DiffIDs) {
		d := m.Layers[i]
		blobOK := s.hasBlob(d.Digest, d.Size)
		fi, err := os.Lstat(s.blobPath(d.Digest))
		if unreadable(err) {
			return err
		}
		if err == nil && !blobOK {
			if err := s.setAside(blobsDir, d.Digest.Hex, fmt.Errorf("it has %d bytes and should have %d", fi.Size(), d.Size)); err != nil {
				return err
			}
		}
		l := s.layers[chain]
		if l == nil {
			if !blobOK {
				return invalid("layer %s is missing", d.Digest)
			}
			var err error
			if l, err = s.ensureLayer(s.ctx, unpackJob{chain: chain, diffID: config.RootFS.DiffIDs[i], blob: d.Digest, parents: parents}); err != nil {
				return err
			}
			s.warn("layer %s was missing and was unpacked again from its blob", chain)
		} else if !blobOK {
			s.warn("the blob of layer %s is missing: the image runs, but cannot be saved until it is pulled or loaded again", d.Digest)
		}
		parents = slices.Insert(parents, 0, l.name)
	}
	return nil
}
