package image

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

const (
	annotationName   = "org.opencontainers.image.ref.name" // in index.json: the reference of the manifest
	annotationDocker = "io.containerd.image.name"          // the same in the archives of docker and buildkit
	annotationSource = "org.magikpod.image.source"         // digest of the multi-platform index that the manifest was picked from
	annotationOffers = "org.magikpod.image.platforms"      // what of that index runs here
	maxReferences    = 65536
	maxIndexBytes    = 64 << 20
)

// entry is one image of the store. It does not change.
type entry struct {
	desc     v1.Descriptor // of the manifest, without annotations
	source   string        // digest of the index that it was picked from, or ""
	platform platform      // by which it was picked from there, else that of the config
	offers   []platform    // of the index, those that run here
	manifest *v1.Manifest
	chains   []string // chain IDs of its layers, the lowest first
	id       string   // digest of the config
	created  time.Time
	size     int64 // of the files in its layers, bytes
	image    runtime.Image
}

// digest is what the image can be pulled by.
func (e *entry) digest() string {
	if e.source != "" {
		return e.source
	}
	return e.desc.Digest.String()
}

// pins are the names of everything that the image consists of.
func (e *entry) pins() []string {
	pins := []string{e.desc.Digest.String(), e.id}
	for _, l := range e.manifest.Layers {
		pins = append(pins, l.Digest.String())
	}
	for _, chain := range e.chains {
		pins = append(pins, layerPin(chain))
	}
	return pins
}

// index is all images of the store. A published one does not change.
type index struct {
	images map[string]*entry // by the digest of the manifest
	// refs are the digests of the manifests by normalised reference: one, or the host's and that of
	// WebAssembly of the same multi-platform image. The lists are not changed.
	refs map[string][]string
	kept []v1.Descriptor // what Open could not read for a reason that may pass, for the next Open
}

func newIndex() *index { return &index{images: map[string]*entry{}, refs: map[string][]string{}} }

// name gives an image a name. What had it loses it, but for the other part (the host's, or
// WebAssembly) of the same multi-platform image; together says that it is that.
func (x *index) name(ref string, e *entry, together bool) {
	own := e.desc.Digest.String()
	list := []string{own}
	for _, digest := range x.refs[ref] {
		other := x.images[digest]
		if digest == own || other == nil || other.platform.isModule() == e.platform.isModule() || !together && (e.source == "" || e.source != other.source) {
			continue
		}
		if list = []string{own, digest}; e.platform.isModule() {
			list = []string{digest, own}
		}
	}
	x.refs[ref] = list
}

// named are the images with a name, the host's first.
func (x *index) named(ref string) (list []*entry) {
	for _, digest := range x.refs[ref] {
		list = append(list, x.images[digest])
	}
	return list
}

func (x *index) clone() *index {
	return &index{images: maps.Clone(x.images), refs: maps.Clone(x.refs), kept: x.kept}
}

// references of an image, sorted.
func (x *index) references(e *entry) []string {
	refs := []string{}
	for ref, digests := range x.refs {
		if slices.Contains(digests, e.desc.Digest.String()) {
			refs = append(refs, ref)
		}
	}
	slices.Sort(refs)
	return refs
}

// byName finds the images with a normalised reference, the host's first. A reference with a digest
// also finds what was pulled from that repository by tag.
func (x *index) byName(r reference) []*entry {
	if _, ok := x.refs[r.String()]; ok || r.digest == "" {
		return x.named(r.String())
	}
	for ref := range x.refs {
		if !strings.HasPrefix(ref, r.repository()+":") && !strings.HasPrefix(ref, r.repository()+"@") {
			continue
		}
		found := slices.DeleteFunc(x.named(ref), func(e *entry) bool { return e.source != r.digest && e.desc.Digest.String() != r.digest })
		if len(found) > 0 {
			return found
		}
	}
	return nil
}

// byID finds the images with an ID, or one that begins so (with or without sha256:). They are
// sorted by the digest of the manifest.
func (x *index) byID(prefix string) []*entry {
	prefix = "sha256:" + strings.TrimPrefix(prefix, "sha256:")
	var found []*entry
	for _, e := range x.images {
		if strings.HasPrefix(e.id, prefix) {
			found = append(found, e)
		}
	}
	slices.SortFunc(found, func(a, b *entry) int { return strings.Compare(a.desc.Digest.String(), b.desc.Digest.String()) })
	return found
}

// find finds what a user means by text: a name, else an ID or the beginning of one. name is the
// reference when it is one. More than one entry is returned for a name that two platforms share,
// and for an ID when manifests share a config.
func (x *index) find(text string) (name string, found []*entry, err error) {
	r, nameErr := parseReference(text)
	if nameErr == nil {
		if found := x.byName(r); len(found) > 0 {
			return r.String(), found, nil
		}
	}
	if !prefixPattern.MatchString(text) {
		if nameErr != nil {
			return "", nil, nameErr
		}
		return "", nil, pod.Errorf(pod.NotFound, "there is no image %s", r)
	}
	found = x.byID(text)
	for _, e := range found {
		if e.id != found[0].id {
			return "", nil, invalid("the image ID %s is ambiguous: there are %s and %s", text, found[0].id, e.id)
		}
	}
	if len(found) == 0 {
		return "", nil, pod.Errorf(pod.NotFound, "there is no image %s", text)
	}
	return "", found, nil
}

// encode makes index.json: one descriptor for each reference, and one for each image without any.
func (x *index) encode() ([]byte, error) {
	m := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}
	named := map[string]bool{}
	for _, ref := range slices.Sorted(maps.Keys(x.refs)) {
		for _, e := range x.named(ref) {
			named[e.desc.Digest.String()] = true
			m.Manifests = append(m.Manifests, e.descriptor(ref))
		}
	}
	for _, digest := range slices.Sorted(maps.Keys(x.images)) {
		if !named[digest] {
			m.Manifests = append(m.Manifests, x.images[digest].descriptor(""))
		}
	}
	for _, d := range x.kept {
		ref := d.Annotations[annotationName]
		_, taken := x.refs[ref]
		if x.images[d.Digest.String()] == nil && !taken {
			m.Manifests = append(m.Manifests, d)
		}
	}
	return json.MarshalIndent(m, "", "  ")
}

func (e *entry) descriptor(ref string) v1.Descriptor {
	d := e.desc
	d.Annotations = map[string]string{}
	if ref != "" {
		d.Annotations[annotationName] = ref
	}
	if e.source != "" {
		d.Annotations[annotationSource] = e.source
	}
	if len(e.offers) > 0 {
		d.Annotations[annotationOffers] = joinPlatforms(e.offers)
	}
	if e.platform.text() != "" {
		d.Platform = &v1.Platform{OS: e.platform.os, Architecture: e.platform.arch, Variant: e.platform.variant}
	}
	return d
}

// publish writes the index and makes it what readers see. s.change is held.
func (s *Store) publish(x *index) error {
	if len(x.refs) > maxReferences {
		return pod.Errorf(pod.Exhausted, "the store has %d references, the limit", maxReferences)
	}
	data, err := x.encode()
	if err != nil {
		return err
	}
	if err := s.writeFile(s.path("index.json"), data); err != nil {
		return err
	}
	s.index.Store(x)
	return nil
}
