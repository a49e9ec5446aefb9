package image

import (
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// Resolve returns the image with the name (which is normalised), or with the whole ID (sha256:...);
// of two platforms with the name the host's. It does no IO. The parts of the value are shared: read
// only. NotFound: the store has none.
func (s *Store) Resolve(ref string) (runtime.Image, error) {
	name, found, err := s.lookup(ref)
	if err != nil {
		return runtime.Image{}, err
	}
	return resolved(found[0], name), nil
}

// ResolveFor is Resolve for a platform as in PullOptions. NotFound: also when there is only what
// fits less well than another part of the same multi-platform image, which must be pulled; the text
// says what is there.
func (s *Store) ResolveFor(ref, want string) (runtime.Image, error) {
	p, err := parsePlatform(want)
	if err != nil {
		return runtime.Image{}, err
	}
	name, found, err := s.lookup(ref)
	if err != nil {
		return runtime.Image{}, err
	}
	e, better := p.best(found)
	if better != "" && !digestPattern.MatchString(ref) { // who names an ID means that one
		return runtime.Image{}, pod.Errorf(pod.NotFound, "cannot find image %s for %s: it is in the store for %s only", name, better, platformsOf(found))
	}
	return resolved(e, name), nil
}

// lookup finds images by a name, which is returned normalised, or by a whole ID.
func (s *Store) lookup(ref string) (name string, found []*entry, err error) {
	x := s.index.Load()
	if digestPattern.MatchString(ref) {
		if found := x.byID(ref); len(found) > 0 {
			return ref, found[:1], nil
		}
		return "", nil, pod.Errorf(pod.NotFound, "cannot find image %s: it is not in the store", ref)
	}
	r, err := parseReference(ref)
	if err != nil {
		return "", nil, err
	}
	if found = x.byName(r); len(found) == 0 {
		return "", nil, pod.Errorf(pod.NotFound, "cannot find image %s: it is not in the store", r)
	}
	return r.String(), found, nil
}

// best returns the image that fits best, and the platform of the multi-platform image that it is
// of, if that has one that fits better.
func (p platform) best(list []*entry) (best *entry, better string) {
	rank := -1
	for _, e := range list {
		r := unsaidRank
		if e.platform.text() != "" {
			r = p.rank(e.platform)
		}
		if r > rank {
			best, rank = e, r
		}
	}
	for _, offer := range best.offers {
		if r := p.rank(offer); r > rank {
			better, rank = offer.String(), r
		}
	}
	return best, better
}

func platformsOf(list []*entry) string {
	var platforms []platform
	for _, e := range list {
		platforms = append(platforms, e.platform)
	}
	return joinPlatforms(platforms)
}

func resolved(e *entry, ref string) runtime.Image {
	image := e.image
	image.Reference = ref
	return image
}

// List returns all images, sorted by their first reference; those without one come last, sorted by
// ID. Who uses them is not known here.
func (s *Store) List() []pod.ImageSummary {
	x := s.index.Load()
	byDigest := map[string][]string{}
	for ref, digests := range x.refs {
		for _, digest := range digests {
			byDigest[digest] = append(byDigest[digest], ref)
		}
	}
	infos := make([]pod.ImageSummary, 0, len(x.images))
	for digest, e := range x.images {
		refs := byDigest[digest]
		slices.Sort(refs)
		infos = append(infos, e.info(refs))
	}
	slices.SortFunc(infos, func(a, b pod.ImageSummary) int { return strings.Compare(sortKey(a), sortKey(b)) })
	return infos
}

func sortKey(i pod.ImageSummary) string {
	if len(i.References) > 0 {
		return i.References[0]
	}
	return "~" + i.ID + i.Digest
}

// info is what List and Inspect say about the image.
func (e *entry) info(refs []string) pod.ImageSummary {
	if refs == nil {
		refs = []string{}
	}
	return pod.ImageSummary{ID: e.id, References: refs, Digest: e.digest(), Size: e.size, Created: e.created, Platform: e.platform.text()}
}

// Inspect returns an image by name, ID or the beginning of an ID (4 digits or more), and its config
// as the image has it, in JSON.
func (s *Store) Inspect(ref string) (pod.ImageSummary, []byte, error) {
	info, config, err := s.inspect(ref)
	return info, config, s.fail(err, "cannot inspect image %.300s", ref)
}

func (s *Store) inspect(ref string) (pod.ImageSummary, []byte, error) {
	x := s.index.Load()
	_, found, err := x.find(ref)
	if err != nil {
		return pod.ImageSummary{}, nil, err
	}
	e := found[0]
	for _, other := range found { // of manifests with one config one that says more
		if e.platform.text() == "" {
			e = other
		}
	}
	config, err := s.readBlob(e.manifest.Config.Digest)
	if errors.Is(err, os.ErrNotExist) { // it was removed meanwhile
		err = pod.Errorf(pod.NotFound, "there is no image %.300s any more", ref)
	}
	if err != nil {
		return pod.ImageSummary{}, nil, err
	}
	return e.info(x.references(e)), config, nil
}
