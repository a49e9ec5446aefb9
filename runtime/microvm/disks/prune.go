package disks

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/magikrun/magikpod/internal/atomicfile"
	"github.com/magikrun/magikpod/runtime"
)

const (
	// noteSuffix is that of the file beside an image that says which layers it is made of: its name
	// is but their sum.
	noteSuffix   = ".json"
	mergedPrefix = ".merged-"
	maxNoteBytes = 1 << 20
)

// note writes down what an image is made of.
func note(path string, rootfs runtime.Rootfs) error {
	data, err := json.Marshal(rootfs)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, data, 0o600)
}

// Keep keeps Prune from removing the image of a root file system, whether it is there yet or not,
// until release is called.
func (c *Cache) Keep(rootfs runtime.Rootfs) (release func()) {
	key := keyOf(rootfs)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept[key]++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.kept[key]--; c.kept[key] == 0 {
			delete(c.kept, key)
		}
	}
}

// Prune removes the images of which a layer is gone, and what interrupted builds have left, but
// nothing that is being made or kept. VMs that run have their images open.
func (c *Cache) Prune() error {
	entries, err := os.ReadDir(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot prune disks: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, entry := range entries {
		if c.needs(entry.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(c.dir, entry.Name())); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot prune disks: %w", err)
	}
	return nil
}

// needs says whether a file of the cache is to stay. A note is written before its image, and
// removed after it: one without the other is what a crash has left.
func (c *Cache) needs(name string) bool {
	if strings.HasPrefix(name, mergedPrefix) {
		return len(c.building) > 0
	}
	key, rest, _ := strings.Cut(strings.TrimPrefix(name, "."), ".")
	if _, busy := c.building[key]; busy || c.kept[key] > 0 {
		return true
	}
	return ("."+rest == suffix || "."+rest == noteSuffix) && c.whole(key)
}

// whole says whether an image and all of its layers are there. Without its note nobody knows; with
// one that cannot be read now, they are.
func (c *Cache) whole(key string) bool {
	var rootfs runtime.Rootfs
	err := atomicfile.LoadJSON(filepath.Join(c.dir, key+noteSuffix), maxNoteBytes, &rootfs)
	if err != nil && !atomicfile.Damaged(err) && !errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if err != nil || keyOf(rootfs) != key {
		return false
	}
	for _, layer := range rootfs.Layers {
		if _, err := os.Stat(filepath.Join(rootfs.Dir, layer)); errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return complete(filepath.Join(c.dir, key+suffix))
}
