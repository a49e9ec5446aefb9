package wasm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime/wasm/engine"
)

// sourcesDir is the directory of the cache that records where modules come from: a file by the
// digest of each, with the paths of those files of images that have this content. Machine code
// lives as long as one of them.
const sourcesDir = ".sources"

// maxSourcesBytes bounds such a file. A path that does not fit is not noted, and the module may be
// compiled again.
const maxSourcesBytes = 1 << 20

// noteSource notes where a module comes from. Nobody else may write to the notes.
func noteSource(cache string, sum [sha256.Size]byte, file string) error {
	name := filepath.Join(cache, sourcesDir, hex.EncodeToString(sum[:]))
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	known, err := sources(name)
	if err != nil || slices.Contains(known, file) {
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString("\n" + strconv.Quote(file) + "\n") // also after half a line that a crash has left
	return errors.Join(err, f.Close())
}

// sources are the paths that a file notes.
func sources(name string) (files []string, err error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSourcesBytes))
	for line := range strings.Lines(string(data)) {
		if file, err := strconv.Unquote(strings.TrimSuffix(line, "\n")); err == nil {
			files = append(files, file)
		}
	}
	return files, err
}

// ForgetImages removes the machine code of modules that are in no image any more, and ends their
// compilations. What a container is about to start with is in its image.
func (r *Runtime) ForgetImages(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endRemoved()
	clear(r.refused)
	clear(r.digests) // an image that comes again is noted again
	used := func(digest string) bool {
		files, err := sources(filepath.Join(r.config.Cache, sourcesDir, digest))
		return err != nil || slices.ContainsFunc(files, func(file string) bool {
			_, err := os.Stat(file)
			return err == nil || !errors.Is(err, fs.ErrNotExist)
		})
	}
	err := engine.Prune(r.config.Cache, used)
	notes, readErr := os.ReadDir(filepath.Join(r.config.Cache, sourcesDir))
	if errors.Is(readErr, fs.ErrNotExist) {
		readErr = nil
	}
	errs := []error{err, readErr}
	for _, note := range notes {
		if !used(note.Name()) {
			errs = append(errs, os.Remove(filepath.Join(r.config.Cache, sourcesDir, note.Name())))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return pod.Errorf(pod.Internal, "cannot remove machine code: %w", err)
	}
	return nil
}
