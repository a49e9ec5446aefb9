package image

import (
	"errors"
	"fmt"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/atomicfile"
)

const layoutFile = "oci-layout"

var layoutText = []byte(`{"imageLayoutVersion":"1.0.0"}`)

// recover puts the directory in order and reads it. An error says that something cannot be read
// now: nobody knows then what is damaged, and what is not needed.
func (s *Store) recover() error {
	if s.readOnly = unix.Access(s.dir, unix.W_OK) == unix.EROFS; s.readOnly {
		s.warn("%s is on a file system that is read-only: images can be used, and nothing else", s.dir)
	} else if err := s.recoverDirs(); err != nil {
		return err
	}
	if err := s.recoverLayers(); err != nil {
		return err
	}
	if err := s.recoverBlobs(); err != nil {
		return err
	}
	if err := s.recoverLayout(); err != nil {
		return err
	}
	x, changed, err := s.recoverImages()
	if err != nil {
		return err
	}
	s.change.Lock()
	defer s.change.Unlock()
	if s.readOnly {
		s.index.Store(x)
		return nil
	}
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

func (s *Store) recoverDirs() error {
	if err := os.RemoveAll(s.path(tmpDir)); err != nil {
		return err
	}
	for _, dir := range []string{blobsDir, layersDir, tmpDir} {
		if err := os.MkdirAll(s.path(dir), 0o700); err != nil {
			return err
		}
	}
	return s.recoverEmptyLayer()
}

func (s *Store) recoverLayout() error {
	text, err := atomicfile.Read(s.path(layoutFile), int64(len(layoutText)))
	if err == nil && string(text) == string(layoutText) || s.readOnly {
		return nil
	}
	return s.writeFile(s.path(layoutFile), layoutText)
}

// readDir lists a directory of the store. A store that cannot be written to may have none.
func (s *Store) readDir(dir string) ([]os.DirEntry, error) {
	list, err := os.ReadDir(s.path(dir))
	if s.readOnly && errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return list, err
}

// unreadable says whether an error of reading says nothing about what was to be read: it is the
// kernel's, and not that there is nothing.
func unreadable(err error) bool {
	return err != nil && !atomicfile.Damaged(err) && !errors.Is(err, os.ErrNotExist)
}

// setAside renames what is damaged, so that it is out of the way and can be looked at.
func (s *Store) setAside(dir, name string, why error) error {
	if s.readOnly {
		s.warn("%s is damaged: %v", s.path(dir, name), why)
		return nil
	}
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
	list, err := s.readDir(layersDir)
	if err != nil {
		return err
	}
	for _, d := range list {
		name, isRecord := strings.CutSuffix(d.Name(), ".json")
		switch {
		case strings.HasPrefix(name, badPrefix), name == emptyLayer:
			continue
		case isRecord:
			if _, err := os.Lstat(s.path(layersDir, name)); errors.Is(err, os.ErrNotExist) && !s.readOnly {
				if err := os.Remove(s.path(layersDir, d.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
					return err
				}
			}
			continue
		}
		l, err := s.readLayer(name)
		if unreadable(err) {
			return err
		}
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
	list, err := s.readDir(blobsDir)
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
