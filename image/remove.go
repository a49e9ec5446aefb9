package image

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/magikrun/magikpod/pod"
)

// Tag gives the image ref (name, ID or the beginning of an ID) one more name; another image that
// had this name loses it.
func (s *Store) Tag(ref, newRef string) error {
	r, err := parseReference(newRef)
	if err != nil {
		return err
	}
	if r.digest != "" {
		return invalid("cannot tag image %.300s: a name with a digest cannot be given", ref)
	}
	return s.do(context.Background(), func(context.Context) error {
		s.change.Lock()
		defer s.change.Unlock()
		x := s.index.Load().clone()
		name, found, err := x.find(ref)
		if err != nil {
			return err
		}
		if name == "" {
			found = found[:1]
		}
		for i, e := range found {
			x.name(r.String(), e, i > 0)
		}
		return s.publish(x)
	}, "cannot tag image %.300s", ref)
}

// Remove takes a name from its image, and with the last one the image and all blobs and layers that
// no other image uses. An ID, or the beginning of one, removes the image with all its names, and a
// digest all its names in that repository. inUse returns who uses the image with an ID; nil: nobody
// does. An image in use is not removed: Conflict. It may lose a name when it has another.
func (s *Store) Remove(ctx context.Context, ref string, inUse func(id string) []string) error {
	return s.do(ctx, func(ctx context.Context) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		trash, err := s.remove(ref, inUse)
		s.empty(trash)
		return err
	}, "cannot remove image %.300s", ref)
}

func (s *Store) remove(ref string, inUse func(id string) []string) (trash []string, err error) {
	s.change.Lock()
	defer s.change.Unlock()
	x := s.index.Load().clone()
	name, found, err := x.find(ref)
	if err != nil {
		return nil, err
	}
	if name != "" {
		x.untag(name, found)
		found = slices.DeleteFunc(found, func(e *entry) bool { return len(x.references(e)) > 0 })
		if len(found) == 0 {
			return nil, s.publish(x)
		}
	}
	for _, e := range found {
		if inUse == nil {
			break
		}
		if users := inUse(e.id); len(users) > 0 {
			return nil, pod.Errorf(pod.Conflict, "it is used by %s", someOf(users))
		}
	}
	return s.drop(x, found)
}

// untag takes a name from its images. A name with a digest that they do not have themselves means
// all of their names in that repository.
func (x *index) untag(name string, found []*entry) {
	if _, ok := x.refs[name]; ok {
		delete(x.refs, name)
		return
	}
	repository, _, _ := strings.Cut(name, "@")
	for _, e := range found {
		for _, ref := range x.references(e) {
			if r, err := parseReference(ref); err == nil && r.repository() == repository {
				delete(x.refs, ref)
			}
		}
	}
}

// drop removes images from x, publishes it, and takes away what nobody needs any more. s.change is held.
func (s *Store) drop(x *index, found []*entry) (trash []string, err error) {
	var candidates []string
	for _, e := range found {
		digest := e.desc.Digest.String()
		delete(x.images, digest)
		for ref, digests := range x.refs {
			if !slices.Contains(digests, digest) {
				continue
			}
			if len(digests) == 1 {
				delete(x.refs, ref)
				continue
			}
			x.refs[ref] = slices.DeleteFunc(slices.Clone(digests), func(d string) bool { return d == digest })
		}
		candidates = append(candidates, e.pins()...)
	}
	if err := s.publish(x); err != nil {
		return nil, err
	}
	return s.collect(candidates), nil
}

// Prune removes the images that have no name any more and that nobody uses, and returns their IDs.
func (s *Store) Prune(ctx context.Context, inUse func(id string) []string) (ids []string, err error) {
	err = s.do(ctx, func(context.Context) error {
		unused, trash, err := s.prune(inUse)
		ids = unused
		s.empty(trash)
		return err
	}, "cannot prune images")
	return ids, err
}

func (s *Store) prune(inUse func(id string) []string) (ids, trash []string, err error) {
	s.change.Lock()
	defer s.change.Unlock()
	x := s.index.Load().clone()
	var found []*entry
	for _, digest := range slices.Sorted(maps.Keys(x.images)) {
		if e := x.images[digest]; len(x.references(e)) == 0 && (inUse == nil || len(inUse(e.id)) == 0) {
			found, ids = append(found, e), append(ids, e.id)
		}
	}
	if len(found) == 0 {
		return nil, nil, nil
	}
	if trash, err = s.drop(x, found); err != nil {
		return nil, nil, err
	}
	return ids, trash, nil
}

// someOf lists names, but not hundreds of them.
func someOf(names []string) string {
	const most = 5
	if len(names) > most {
		return strings.Join(names[:most], ", ") + " and others"
	}
	return strings.Join(names, ", ")
}
