package image

import (
	"os"
	"strings"
)

// lease keeps blobs and layers from being collected while they are worked with.
type lease struct {
	s      *Store
	pinned []string
}

func (s *Store) lease() *lease { return &lease{s: s} }

// pin adds to the lease. What is pinned before it is looked for stays, if it is there.
func (l *lease) pin(names ...string) {
	l.s.change.Lock()
	defer l.s.change.Unlock()
	for _, name := range names {
		l.s.pins[name]++
		l.pinned = append(l.pinned, name)
	}
}

// release ends the lease and removes what of it no image needs: all that work that failed has made.
func (l *lease) release() {
	s := l.s
	s.change.Lock()
	for _, name := range l.pinned {
		if s.pins[name]--; s.pins[name] == 0 {
			delete(s.pins, name)
		}
	}
	trash := s.collect(l.pinned)
	s.change.Unlock()
	l.pinned = nil
	s.empty(trash)
}

// collect takes away those of the candidates that neither an image nor a lease needs, and returns
// where they are now. s.change is held.
func (s *Store) collect(candidates []string) (trash []string) {
	needed := map[string]bool{}
	for _, e := range s.index.Load().images {
		for _, name := range e.pins() {
			needed[name] = true
		}
	}
	seen := map[string]bool{}
	for _, name := range candidates {
		if needed[name] || s.pins[name] > 0 || seen[name] {
			continue
		}
		seen[name] = true
		if path := s.takeAway(name); path != "" {
			trash = append(trash, path)
		}
	}
	return trash
}

// takeAway takes the name from a blob or a layer, which is quick, and returns what is to be
// removed. What cannot be moved now is removed by the next Open.
func (s *Store) takeAway(name string) string {
	chain, isLayer := strings.CutPrefix(name, "chain:")
	if !isLayer {
		_ = os.Remove(s.path(blobsDir, strings.TrimPrefix(name, "sha256:")))
		return ""
	}
	l := s.layers[chain]
	if l == nil {
		return ""
	}
	dir, err := os.MkdirTemp(s.path(tmpDir), "trash-")
	if err != nil {
		return ""
	}
	if err := os.Rename(s.path(layersDir, l.name), dir+"/layer"); err != nil {
		return dir
	}
	_ = os.Remove(s.path(layersDir, l.name+".json"))
	delete(s.layers, chain)
	delete(s.names, l.name)
	return dir
}

func (s *Store) empty(trash []string) {
	for _, path := range trash {
		_ = os.RemoveAll(path)
	}
}
