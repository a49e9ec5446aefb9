package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const layoutFile = "oci-layout"

var layoutText = []byte(`{"imageLayoutVersion":"1.0.0"}`)

// recover puts the directory in order and reads it.
func (s *Store) recover() error {
	if err := os.RemoveAll(s.path(tmpDir)); err != nil {
		return err
	}
	for _, dir := range []string{blobsDir, layersDir, tmpDir} {
		if err := os.MkdirAll(s.path(dir), 0o700); err != nil {
			return err
		}
	}
	if err := s.recoverEmptyLayer(); err != nil {
		return err
	}
	if err := s.recoverLayers(); err != nil {
		return err
	}
	if err := s.recoverBlobs(); err != nil {
		return err
	}
	if text, err := os.ReadFile(s.path(layoutFile)); err != nil || string(text) != string(layoutText) {
		if err := s.writeFile(s.path(layoutFile), layoutText); err != nil {
			return err
		}
	}
	x, changed, err := s.recoverImages()
	if err != nil {
		return err
	}
	s.change.Lock()
	defer s.change.Unlock()
	if !changed {
		s.index.Store(x)
	} else if err := s.publish(x); err != nil {
		return err
	}
	s.empty(s.collect(s.everything()))
	return nil
}

// setAside renames what is damaged, so that it is out of the way and can be looked at.
func (s *Store) setAside(dir, name string, why error) error {
	for n := 0; ; n++ {
		bad := badPrefix + name
		if n > 0 {
			bad = fmt.Sprintf("%s%s.%d", badPrefix, name, n)
		}
		if _, err := os.Lstat(s.path(dir, bad)); err == nil {
			continue
		}
		if err := os.Rename(s.path(dir, name), s.path(dir, bad)); err != nil {
			return err
		}
		s.warn("%s is damaged and was renamed to %s: %v", s.path(dir, name), bad, why)
		return nil
	}
}

func (s *Store) recoverEmptyLayer() error {
	path := s.path(layersDir, emptyLayer)
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return os.Chmod(path, 0o755)
}

// recoverLayers finds the unpacked layers.
func (s *Store) recoverLayers() error {
	list, err := os.ReadDir(s.path(layersDir))
	if err != nil {
		return err
	}
	for _, d := range list {
		name, isRecord := strings.CutSuffix(d.Name(), ".json")
		switch {
		case strings.HasPrefix(name, badPrefix), name == emptyLayer:
			continue
		case isRecord:
			if _, err := os.Lstat(s.path(layersDir, name)); errors.Is(err, os.ErrNotExist) {
				if err := os.Remove(s.path(layersDir, d.Name())); err != nil {
					return err
				}
			}
			continue
		}
		l, err := s.readLayer(name)
		if err == nil && s.layers[l.ChainID] != nil {
			err = errors.New("it is there twice")
		}
		if err != nil {
			if err := s.setAside(layersDir, name, err); err != nil {
				return err
			}
			_ = os.Remove(s.path(layersDir, name+".json"))
			continue
		}
		s.layers[l.ChainID], s.names[name] = l, l.ChainID
	}
	return nil
}

// recoverBlobs sets aside what cannot be a blob.
func (s *Store) recoverBlobs() error {
	list, err := os.ReadDir(s.path(blobsDir))
	if err != nil {
		return err
	}
	for _, d := range list {
		if strings.HasPrefix(d.Name(), badPrefix) || hexPattern.MatchString(d.Name()) && d.Type().IsRegular() {
			continue
		}
		if err := s.setAside(blobsDir, d.Name(), errors.New("it is no blob")); err != nil {
			return err
		}
	}
	return nil
}

// everything names all blobs and layers that are there.
func (s *Store) everything() []string {
	var names []string
	for chain := range s.layers {
		names = append(names, layerPin(chain))
	}
	for _, d := range s.blobs() {
		names = append(names, d.String())
	}
	return names
}

func (s *Store) blobs() []v1.Hash {
	var blobs []v1.Hash
	list, _ := os.ReadDir(s.path(blobsDir))
	for _, d := range list {
		if hexPattern.MatchString(d.Name()) {
			blobs = append(blobs, v1.Hash{Algorithm: "sha256", Hex: d.Name()})
		}
	}
	return blobs
}

// recoverImages reads the images that index.json names. changed: it must be written anew.
func (s *Store) recoverImages() (x *index, changed bool, err error) {
	descs, err := s.readIndex()
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
	failed := map[string]bool{}
	for _, d := range descs {
		digest := d.Digest.String()
		if failed[digest] {
			continue
		}
		if x.images[digest] == nil {
			e, err := s.recoverImage(d)
			if err != nil {
				if isFull(err) {
					return nil, false, err
				}
				s.warn("image %s (%s) was dropped: %v", digest, d.Annotations[annotationName], err)
				failed[digest], changed = true, true
				continue
			}
			x.images[digest] = e
		}
		if ref := d.Annotations[annotationName]; ref != "" {
			if normal, err := Normalize(ref); err != nil || normal != ref {
				s.warn("the name %.300q of image %s was dropped: it is no full reference", ref, digest)
				changed = true
				continue
			}
			x.refs[ref] = digest
		}
	}
	return x, changed, nil
}

func (s *Store) readIndex() ([]v1.Descriptor, error) {
	f, err := os.Open(s.path("index.json"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := readAll(context.Background(), f, maxIndexBytes, "index.json")
	if err != nil {
		return nil, err
	}
	var m v1.IndexManifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, err
	}
	for _, d := range m.Manifests {
		if d.Digest.Algorithm != "sha256" {
			return nil, fmt.Errorf("it has a digest of the kind %q", d.Digest.Algorithm)
		}
	}
	return m.Manifests, nil
}

// searchManifests finds the images when there is no index: their names are lost, but pods know them by ID.
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
	return s.newEntry(v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: int64(len(manifest))}, source, manifest, config)
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
		if fi, err := os.Lstat(s.blobPath(d.Digest)); err == nil && !blobOK {
			if err := s.setAside(blobsDir, d.Digest.Hex, fmt.Errorf("it has %d bytes and should have %d", fi.Size(), d.Size)); err != nil {
				return err
			}
		}
		l := s.layers[chain]
		if l == nil {
			if !blobOK {
				return fmt.Errorf("layer %s is missing", d.Digest)
			}
			var err error
			if l, err = s.ensureLayer(s.ctx, unpackJob{chain: chain, diffID: config.RootFS.DiffIDs[i], blob: d.Digest, parents: parents}); err != nil {
				if !isFull(err) {
					err = errors.Join(err, s.setAside(blobsDir, d.Digest.Hex, err))
				}
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
