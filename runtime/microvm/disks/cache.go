package disks

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/magikrun/magikpod/internal/erofs"
	"github.com/magikrun/magikpod/runtime"
)

// Cache keeps erofs images of container images in a directory, one for each list of layers. One
// process uses it; its methods may be called from several goroutines.
type Cache struct {
	dir  string
	mkfs string // mkfs.erofs; empty: images are written by a library, and are not compressed

	mu       sync.Mutex
	building map[string]chan struct{} // by key; closed when it is over, well or not
	kept     map[string]int           // by key
}

// Image is a disk image of the cache.
type Image struct {
	Path string
	// Serial is the serial number by which its disk is known to guests: the same in all VMs.
	Serial string
}

// NewCache returns the cache in a directory, which is made when it is needed.
func NewCache(dir string) *Cache {
	mkfs, err := exec.LookPath("mkfs.erofs")
	if err != nil {
		mkfs = ""
	}
	return &Cache{dir: dir, mkfs: mkfs, building: map[string]chan struct{}{}, kept: map[string]int{}}
}

// Packs says whether images are compressed.
func (c *Cache) Packs() bool { return c.mkfs != "" }

const suffix = ".erofs"

// keyOf is the name of an image.
func keyOf(rootfs runtime.Rootfs) string {
	sum := sha256.Sum256([]byte(strings.Join(rootfs.Layers, "\n")))
	return hex.EncodeToString(sum[:16])
}

// Image returns the image of a root file system; it is made unless it is there. The names of layers
// are names of what is in them, so that they stand for it. Whoever opens the image later must
// [Cache.Keep] it until then.
func (c *Cache) Image(ctx context.Context, rootfs runtime.Rootfs) (Image, error) {
	key := keyOf(rootfs)
	image := Image{Path: filepath.Join(c.dir, key+suffix), Serial: "img-" + key[:16]}
	for {
		if complete(image.Path) {
			return image, nil
		}
		c.mu.Lock()
		other, busy := c.building[key]
		if !busy {
			c.building[key] = make(chan struct{})
		}
		c.mu.Unlock()
		if !busy {
			break
		}
		select {
		case <-other:
		case <-ctx.Done():
			return Image{}, fmt.Errorf("cannot make a disk of an image: %w", context.Cause(ctx))
		}
	}
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		close(c.building[key])
		delete(c.building, key)
	}()
	if complete(image.Path) {
		return image, nil // made between the look and the mark
	}
	if err := c.build(ctx, rootfs, image.Path); err != nil {
		return Image{}, fmt.Errorf("cannot make a disk of an image of %d layers: %w", len(rootfs.Layers), err)
	}
	return image, nil
}

// build makes an image in a file of another name, and renames it when it is on the disk: a file of
// the right name is complete, also after a power cut.
func (c *Cache) build(ctx context.Context, rootfs runtime.Rootfs, path string) error {
	if len(rootfs.Layers) == 0 {
		return errors.New("it has no layers")
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	building := path + ".building"
	defer os.Remove(building)
	// Where the layers are put together, in a mount namespace that nobody else sees.
	target, err := os.MkdirTemp(c.dir, mergedPrefix)
	if err != nil {
		return err
	}
	defer os.Remove(target)
	err = withOverlay(rootfs, target, func() error {
		if c.mkfs == "" {
			return writeErofs(ctx, building, target)
		}
		return runMkfs(ctx, c.mkfs, building, target)
	})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(building, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	// The VMM may open it by its path, and is not root.
	if err := errors.Join(f.Chmod(0o444), f.Sync(), f.Close()); err != nil {
		return err
	}
	if !complete(building) {
		return errors.New("what was made is no erofs image")
	}
	if err := note(strings.TrimSuffix(path, suffix)+noteSuffix, rootfs); err != nil {
		return err
	}
	return os.Rename(building, path)
}

// runMkfs runs mkfs.erofs. lz4 costs the guest less than reading what it saves.
func runMkfs(ctx context.Context, program, out, dir string) error {
	cmd := exec.CommandContext(ctx, program, "--quiet", "-zlz4", "-x", "1", out, dir)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.WaitDelay = time.Second
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.erofs: %w: %s", errors.Join(err, context.Cause(ctx)), tail(text))
	}
	return nil
}

func tail(text []byte) string { return strings.TrimSpace(string(text[max(0, len(text)-500):])) }

// complete says whether a file is an erofs image that is not cut off.
func complete(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false
	}
	size, err := erofs.Size(f)
	return err == nil && size > 0 && info.Size() >= size
}
