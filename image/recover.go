package image

import (
	"errors"
	"fmt"
	"os"
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
	if len(x.kept) == 0 { // who knows what these need
		s.empty(s.collect(s.everything()))
	}
	return nil
}

// setAside renames what is damaged, so that it is out of the way and can be looked at.
func (s *Store) setAside(dir, name string, why error) error {
	bad, err := s.renameBad(dir, name)
	if err == nil {
		s.warn("%s is damaged and was renamed to %s: %v", s.path(dir, name), bad, why)
	}
	return err
}

func (s *Store) renameBad(dir, name string) (bad string, err error) {
	for n := 0; ; n++ {
		bad = badPrefix + name
		if n > 0 {
			bad = fmt.Sprintf("%s%s.%d", badPrefix, name, n)
		}
		if _, err := os.Lstat(s.path(dir, bad)); err == nil {
			continue
		}
		return bad, os.Rename(s.path(dir, name), s.path(dir, bad))
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
				if err := os.Remove(s.path(layersDir, d.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
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
