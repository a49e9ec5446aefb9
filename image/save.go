package image

import (
	"archive/tar"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/magikrun/magikpod/pod"
)

// saved is one image of an archive, with the names that were asked for.
type saved struct {
	entry *entry
	refs  []string
}

// Save writes images as one archive that is an OCI archive and a docker archive in one, which Load,
// podman load and docker load read. References are names, IDs or the beginning of IDs; an image
// that is asked for by ID has no name in the archive.
func (s *Store) Save(ctx context.Context, refs []string, w io.Writer) error {
	out := &sink{w: w}
	err := s.do(ctx, func(ctx context.Context) error {
		l := s.lease()
		defer l.release()
		list, err := s.toSave(l, refs)
		if err != nil {
			return err
		}
		return s.save(ctx, list, out)
	}, "cannot save images")
	if out.err != nil {
		kind := pod.Unavailable // a pipe that nobody reads any more
		if isFull(out.err) {
			kind = pod.Exhausted
		}
		return pod.Errorf(kind, "cannot save images: the archive cannot be written: %w", out.err)
	}
	return err
}

// sink remembers the error of the archive's writer, to know it from those of the store.
type sink struct {
	w   io.Writer
	err error
}

func (o *sink) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	if err != nil && o.err == nil {
		o.err = err
	}
	return n, err
}

// toSave finds the images and pins what they consist of.
func (s *Store) toSave(l *lease, refs []string) ([]saved, error) {
	if len(refs) == 0 {
		return nil, invalid("none is named")
	}
	var list []saved
	s.change.Lock()
	x := s.index.Load()
	for _, text := range refs {
		name, found, err := x.find(text)
		if err != nil {
			s.change.Unlock()
			return nil, err
		}
		if name == "" {
			found = found[:1]
		}
		for _, e := range found {
			i := slices.IndexFunc(list, func(o saved) bool { return o.entry == e })
			if i < 0 {
				i = len(list)
				list = append(list, saved{entry: e})
			}
			if _, ok := x.refs[name]; ok && !slices.Contains(list[i].refs, name) {
				list[i].refs = append(list[i].refs, name)
			}
		}
	}
	for _, o := range list {
		for _, name := range o.entry.pins() {
			s.pins[name]++
			l.pinned = append(l.pinned, name)
		}
	}
	s.change.Unlock()
	return list, nil
}

func (s *Store) save(ctx context.Context, list []saved, w io.Writer) error {
	t := tar.NewWriter(w)
	index, docker, err := saveManifests(list)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{layoutFile, layoutText}, {"index.json", index}, {"manifest.json", docker}} {
		if err := t.WriteHeader(memberHeader(f.name, int64(len(f.data)))); err != nil {
			return err
		}
		if _, err := t.Write(f.data); err != nil {
			return err
		}
	}
	done := map[v1.Hash]bool{}
	for _, o := range list {
		m := o.entry.manifest
		for _, d := range append([]v1.Descriptor{o.entry.desc, m.Config}, m.Layers...) {
			if done[d.Digest] {
				continue
			}
			done[d.Digest] = true
			if err := s.saveBlob(ctx, t, d); err != nil {
				return err
			}
		}
	}
	return t.Close()
}

// saveBlob copies a blob and verifies it on the way: no archive is complete with a wrong one.
func (s *Store) saveBlob(ctx context.Context, t *tar.Writer, d v1.Descriptor) error {
	f, err := os.Open(s.blobPath(d.Digest))
	if errors.Is(err, os.ErrNotExist) {
		return pod.Errorf(pod.NotFound, "the blob %s is not in the store any more: pull or load the image again", d.Digest)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := t.WriteHeader(memberHeader(blobName(d.Digest), d.Size)); err != nil {
		return err
	}
	hash := sha256.New()
	n, err := io.Copy(io.MultiWriter(t, hash), limitReader(ctx, f, d.Size, "the blob"))
	if err != nil {
		return err
	}
	if n != d.Size || sumOf(hash) != d.Digest {
		return cmp.Or(s.checkBlob(ctx, d.Digest), pod.Errorf(pod.Internal, "the blob %s in the store changed meanwhile", d.Digest))
	}
	return nil
}

func memberHeader(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
}

// saveManifests makes the archive's index.json and manifest.json.
func saveManifests(list []saved) (index, docker []byte, err error) {
	x := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}
	images, tagged := []dockerImage{}, map[string]bool{}
	for _, o := range list {
		image := dockerImage{Config: blobName(o.entry.manifest.Config.Digest), RepoTags: []string{}, Layers: []string{}}
		for _, layer := range o.entry.manifest.Layers {
			image.Layers = append(image.Layers, blobName(layer.Digest))
		}
		named := false
		for _, ref := range o.refs {
			r, err := parseReference(ref)
			if err != nil || r.digest != "" {
				continue // the archive's digest speaks for itself, and docker knows tags only
			}
			named = true
			if !tagged[ref] { // docker knows one image of a name; the host's comes first
				image.RepoTags = append(image.RepoTags, ref)
			}
			tagged[ref] = true
			d := o.entry.desc
			if p := o.entry.platform; p.text() != "" {
				d.Platform = &v1.Platform{OS: p.os, Architecture: p.arch, Variant: p.variant}
			}
			d.Annotations = map[string]string{annotationName: ref, annotationDocker: ref}
			x.Manifests = append(x.Manifests, d)
		}
		if !named {
			x.Manifests = append(x.Manifests, o.entry.desc)
		}
		images = append(images, image)
	}
	if index, err = json.Marshal(x); err != nil {
		return nil, nil, err
	}
	docker, err = json.Marshal(images)
	return index, docker, err
}
