package image

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/magikrun/magikpod/internal/layertree"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// parallelBlobs is how many blobs of one image are fetched at once.
const parallelBlobs = 4

// origin is where an image comes from, if that is a multi-platform image.
type origin struct {
	source   string     // digest of the index that the manifest was picked from, or ""
	platform platform   // that it has there
	offers   []platform // those of the index that run here
}

// note notes what was picked of an index, or of one in it.
func (o *origin) note(manifests []v1.Descriptor, picked v1.Descriptor) {
	if o.offers == nil {
		o.offers = offersOf(manifests)
	}
	if picked.Platform != nil {
		o.platform = platformOf(*picked.Platform)
	}
}

// candidate is an image that is to be taken into the store.
type candidate struct {
	manifest []byte // nil: it is made from config and layers
	kind     types.MediaType
	origin
	config []byte
	layers []blobSource
	packed []types.MediaType // of the layers, when the manifest is made
	refs   []string          // normalised
	want   platform
	more   bool // it is another part of the multi-platform image before it
}

// prepare stores everything of a candidate, and returns the image that it is. Everything is pinned
// by l, and removed with it unless the image is published before.
func (s *Store) prepare(ctx context.Context, l *lease, c candidate) (*entry, error) {
	config, err := parseConfig(c.config)
	if err != nil {
		return nil, err
	}
	if err := c.check(config, s.limits); err != nil {
		return nil, err
	}
	chains := chainIDs(config.RootFS.DiffIDs)
	for i, chain := range chains {
		l.pin(layerPin(chain))
		if d := c.layers[i].digest; d.Hex != "" {
			l.pin(d.String())
		}
	}
	stored, err := s.storeLayers(ctx, l, c, config.RootFS.DiffIDs, chains)
	if err != nil {
		return nil, err
	}
	configDigest, err := s.putBytes(l, c.config)
	if err != nil {
		return nil, err
	}
	if c.manifest == nil {
		if c.manifest, err = makeManifest(configDigest, int64(len(c.config)), stored); err != nil {
			return nil, err
		}
		c.kind = types.OCIManifestSchema1
	}
	digest, err := s.putBytes(l, c.manifest)
	if err != nil {
		return nil, err
	}
	return s.newEntry(v1.Descriptor{MediaType: c.kind, Digest: digest, Size: int64(len(c.manifest))}, c.origin, c.manifest, config)
}

func (c candidate) check(config *configFile, limits Limits) error {
	switch {
	case len(config.RootFS.DiffIDs) != len(c.layers):
		return invalid("the config names %d layers and the manifest %d", len(config.RootFS.DiffIDs), len(c.layers))
	case len(c.layers) > limits.MaxLayers:
		return pod.Errorf(pod.Exhausted, "the image has %d layers, and %d are the limit", len(c.layers), limits.MaxLayers)
	case len(c.config) > int(limits.MaxManifestBytes), len(c.manifest) > int(limits.MaxManifestBytes):
		return pod.Errorf(pod.Exhausted, "the manifest or config is larger than %d bytes, the limit", limits.MaxManifestBytes)
	}
	if err := config.checkWords(); err != nil {
		return err
	}
	return config.check(c.want)
}

// storeLayers stores the blobs, several at once, and unpacks each layer as soon as its blob and the
// layers below are there.
func (s *Store) storeLayers(ctx context.Context, l *lease, c candidate, diffIDs []v1.Hash, chains []string) ([]v1.Descriptor, error) {
	stored := make([]v1.Descriptor, len(c.layers))
	ready := make([]chan struct{}, len(c.layers))
	g, ctx := errgroup.WithContext(ctx)
	slots := make(chan struct{}, parallelBlobs)
	for i := range c.layers {
		ready[i] = make(chan struct{})
	}
	g.Go(func() error {
		for i, b := range c.layers {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			g.Go(func() error {
				defer func() { <-slots }()
				digest, size, err := s.putBlob(ctx, l, b)
				if err != nil {
					return fmt.Errorf("layer %d of %d: %w", i+1, len(c.layers), err)
				}
				stored[i] = v1.Descriptor{Digest: digest, Size: size}
				if c.packed != nil {
					stored[i].MediaType = c.packed[i]
				}
				close(ready[i])
				return nil
			})
		}
		return nil
	})
	g.Go(func() error { return s.unpackLayers(ctx, diffIDs, chains, stored, ready) })
	return stored, g.Wait()
}

func (s *Store) unpackLayers(ctx context.Context, diffIDs []v1.Hash, chains []string, stored []v1.Descriptor, ready []chan struct{}) error {
	var parents []string
	left := s.limits.MaxImageBytes
	for i := range chains {
		select {
		case <-ready[i]:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		unpacked, err := s.ensureLayer(ctx, unpackJob{chain: chains[i], diffID: diffIDs[i], blob: stored[i].Digest, parents: parents})
		if err != nil {
			return fmt.Errorf("layer %d of %d: %w", i+1, len(chains), err)
		}
		if left -= unpacked.Bytes; left < 0 {
			return pod.Errorf(pod.Exhausted, "the image is larger than %d bytes, the limit", s.limits.MaxImageBytes)
		}
		parents = slices.Insert(parents, 0, unpacked.name)
	}
	return nil
}

func makeManifest(config v1.Hash, size int64, layers []v1.Descriptor) ([]byte, error) {
	return json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: config, Size: size}, Layers: layers,
	})
}

// newEntry makes the image whose manifest, config and layers are in the store.
func (s *Store) newEntry(desc v1.Descriptor, from origin, manifest []byte, config *configFile) (*entry, error) {
	m, err := parseManifest(manifest, s.limits)
	if err != nil {
		return nil, err
	}
	e := &entry{
		desc: desc, source: from.source, platform: from.platform, offers: from.offers, manifest: m, chains: chainIDs(config.RootFS.DiffIDs), id: m.Config.Digest.String(), created: config.created(),
	}
	if e.platform.os == "" {
		e.platform = platform{os: config.OS, arch: config.Architecture, variant: config.Variant}
	}
	names := []string{}
	s.change.Lock()
	for _, chain := range e.chains {
		l := s.layers[chain]
		if l == nil {
			s.change.Unlock()
			return nil, pod.Errorf(pod.Internal, "the layer %s is gone", chain)
		}
		if l.opaque {
			names = names[:0] // nothing below shows
		}
		names = append(names, l.name)
		e.size += l.Bytes
	}
	s.change.Unlock()
	if len(names) == 0 {
		names = []string{emptyLayer}
	}
	e.image = runtime.Image{ID: e.id, Config: config.image(), Rootfs: runtime.Rootfs{Dir: s.path(layersDir), Layers: names}}
	t := layertree.Of(e.image.Rootfs.Dir, e.image.Rootfs.Layers)
	if e.image.Passwd, err = readFile(t, "/etc/passwd", maxUserFile); err != nil {
		return nil, err
	}
	e.image.Group, err = readFile(t, "/etc/group", maxUserFile)
	return e, err
}

// takeIn stores candidates and publishes them as one. It returns them in order.
func (s *Store) takeIn(ctx context.Context, candidates []candidate) ([]*entry, error) {
	l := s.lease()
	defer l.release()
	var entries []*entry
	for _, c := range candidates {
		e, err := s.prepare(ctx, l, c)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, s.commit(candidates, entries)
}

// commit publishes the images that candidates have become, all or none.
func (s *Store) commit(candidates []candidate, entries []*entry) error {
	s.change.Lock()
	defer s.change.Unlock()
	x := s.index.Load().clone()
	together := map[string]bool{} // names that this has given already: its images are one
	for i, e := range entries {
		digest := e.desc.Digest.String()
		if old := x.images[digest]; old != nil && e.source == "" {
			e.source, e.platform, e.offers = old.source, old.platform, old.offers
		}
		x.images[digest] = e
		for _, ref := range candidates[i].refs {
			x.name(ref, e, together[ref])
			together[ref] = true
		}
	}
	return s.publish(x)
}

// manifestType is what a manifest without a word about its type is.
func manifestType(m *v1.Manifest) types.MediaType {
	if m.MediaType != "" {
		return m.MediaType
	}
	return types.OCIManifestSchema1
}
