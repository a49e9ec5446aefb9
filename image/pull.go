package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// PullOptions are how an image is pulled. The zero value is fine.
type PullOptions struct {
	// Progress gets how much has come, from one goroutine at a time, and not more often than every
	// 100 ms but for the end.
	Progress func(Progress)
	// Keychain has the credentials; nil: those of docker's and podman's auth files.
	Keychain authn.Keychain
	// Platform is OS/ARCHITECTURE[/VARIANT]; empty: the host's; [Modules]: WebAssembly, and the
	// host's where there is none.
	Platform string
}

// Progress is how far a pull is, in bytes of packed layers. Total is 0 until it is known. Done goes
// back when a blob must be fetched again.
type Progress struct{ Done, Total int64 }

const (
	pullAttempts     = 5                      // for one blob
	pullBackoff      = 500 * time.Millisecond // before the second attempt; then twice as long each time
	pullStall        = time.Minute            // without a byte: the attempt has failed
	progressInterval = 100 * time.Millisecond
)

// Pull fetches an image from its registry, also when the store has one of that name, and gives it
// the name. Blobs that are there are not fetched again. NotFound: the registry has no such image;
// Denied: it wants (other) credentials; Unavailable: it cannot be reached, or ctx ended;
// Unsupported: it has nothing for the platform; Invalid: what it sent is wrong.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (runtime.Image, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return runtime.Image{}, s.fail(err, "cannot pull %.300s", ref)
	}
	defer end()
	r, err := parseReference(ref)
	if err != nil {
		return runtime.Image{}, err
	}
	e, err := s.pull(ctx, r, o)
	if err != nil {
		return runtime.Image{}, s.fail(pullError(ctx, err), "cannot pull %s", r)
	}
	return resolved(e, r.String()), nil
}

func (s *Store) pull(ctx context.Context, r reference, o PullOptions) (*entry, error) {
	want, err := parsePlatform(o.Platform)
	if err != nil {
		return nil, err
	}
	p, err := s.newPuller(r, o)
	if err != nil {
		return nil, err
	}
	d, from, err := p.manifest(ctx, r, want)
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(d.Manifest, s.limits)
	if err != nil {
		return nil, err
	}
	meter := newMeter(o.Progress)
	defer meter.stop()
	for _, layer := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		meter.total(layer.Size)
	}
	if err := s.checkSpace(m); err != nil {
		return nil, err
	}
	if artifact, err := wasmArtifact(m); err != nil {
		return nil, err
	} else if artifact != nil {
		if from.source == "" {
			from.source = digestOf(d.Manifest).String()
		}
		meter.add(m.Config.Size) // nothing in it is needed
		return s.pullArtifact(ctx, *artifact, p.source(*artifact, meter), candidate{origin: from, refs: []string{r.String()}, want: want})
	}
	config, err := p.config(ctx, m.Config, meter)
	if err != nil {
		return nil, err
	}
	c := candidate{manifest: d.Manifest, kind: d.MediaType, origin: from, config: config, refs: []string{r.String()}, want: want}
	for _, layer := range m.Layers {
		c.layers = append(c.layers, p.source(layer, meter))
	}
	entries, err := s.takeIn(ctx, []candidate{c})
	if err != nil {
		return nil, err
	}
	return entries[0], nil
}

// checkSpace refuses an image whose packed layers alone don't fit.
func (s *Store) checkSpace(m *v1.Manifest) error {
	var need int64
	for _, d := range m.Layers {
		if !s.hasBlob(d.Digest, d.Size) {
			need += d.Size
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return fmt.Errorf("statfs: %w", err)
	}
	if free := int64(st.Bavail) * st.Bsize; need > free {
		return pod.Errorf(pod.Exhausted, "it needs %d bytes to download, and %d are free in %s", need, free, s.dir)
	}
	return nil
}

// puller fetches from one repository.
type puller struct {
	s      *Store
	repo   name.Repository
	remote *remote.Puller
}

func (s *Store) newPuller(r reference, o PullOptions) (*puller, error) {
	registry, err := name.NewRegistry(r.domain)
	if err != nil {
		return nil, pod.WithKind(pod.Invalid, err)
	}
	keychain := o.Keychain
	if keychain == nil {
		keychain = defaultKeychain
	}
	rp, err := remote.NewPuller(
		remote.WithTransport(&guard{next: s.network.transport, limit: s.limits.MaxManifestBytes}),
		remote.WithAuthFromKeychain(keychain), remote.WithUserAgent("magikpod"),
		remote.WithRetryBackoff(remote.Backoff{Duration: s.network.backoff, Factor: 2, Jitter: 0.1, Steps: 3}))
	if err != nil {
		return nil, err
	}
	return &puller{s: s, repo: registry.Repo(r.path), remote: rp}, nil
}

// manifest fetches the manifest for the platform.
func (p *puller) manifest(ctx context.Context, r reference, want platform) (d *remote.Descriptor, from origin, err error) {
	var ref name.Reference = p.repo.Tag(r.tag)
	if r.digest != "" {
		ref = p.repo.Digest(r.digest)
	}
	for range maxIndexDepth {
		if d, err = p.get(ctx, ref); err != nil {
			return nil, from, err
		}
		switch {
		case d.MediaType.IsImage():
			return d, from, nil
		case !d.MediaType.IsIndex():
			return nil, from, pod.Errorf(pod.Unsupported, "%q is not a supported kind of container image", d.MediaType)
		}
		if from.source == "" {
			from.source = digestOf(d.Manifest).String()
		}
		x, err := parseIndex(d.Manifest)
		if err != nil {
			return nil, from, err
		}
		child, err := want.pick(x.Manifests)
		if err != nil {
			return nil, from, err
		}
		from.note(x.Manifests, child)
		ref = p.repo.Digest(child.Digest.String())
	}
	return nil, from, invalid("the indexes are nested more than %d deep", maxIndexDepth)
}

// get fetches one manifest or index.
func (p *puller) get(ctx context.Context, ref name.Reference) (*remote.Descriptor, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*p.s.network.stall, errStall)
	defer cancel()
	d, err := p.remote.Get(ctx, ref)
	if err != nil {
		if context.Cause(ctx) == errStall {
			return nil, errStall
		}
		return nil, err
	}
	if !d.MediaType.IsImage() && !d.MediaType.IsIndex() {
		// Some registries say application/json, but most manifests say themselves what they are.
		var m struct {
			MediaType types.MediaType `json:"mediaType"`
		}
		if json.Unmarshal(d.Manifest, &m) == nil && m.MediaType != "" {
			d.MediaType = m.MediaType
		}
	}
	return d, nil
}

// config fetches the image's config, into memory.
func (p *puller) config(ctx context.Context, d v1.Descriptor, m *meter) ([]byte, error) {
	if p.s.hasBlob(d.Digest, d.Size) {
		if data, err := p.s.readBlob(d.Digest); err == nil {
			m.add(d.Size)
			return data, nil
		}
	}
	b := p.source(d, m)
	for attempt := 1; ; attempt++ {
		data, err := func() ([]byte, error) {
			r, err := b.open(ctx)
			if err != nil {
				return nil, err
			}
			defer r.Close()
			return readAll(ctx, r, d.Size, "the config")
		}()
		if err == nil {
			if got := digestOf(data); got != d.Digest {
				return nil, wrongBlob(d.Digest, got)
			}
			m.add(d.Size)
			return data, nil
		}
		if !b.retry(ctx, attempt, err) {
			return nil, err
		}
	}
}

// source makes a blob of the repository a source, with retries.
func (p *puller) source(d v1.Descriptor, m *meter) blobSource {
	return blobSource{
		digest: d.Digest, size: d.Size, progress: m.add,
		open: func(ctx context.Context) (io.ReadCloser, error) {
			watched, cancel := context.WithCancelCause(ctx)
			layer, err := p.remote.Layer(watched, p.repo.Digest(d.Digest.String()))
			if err != nil {
				cancel(nil)
				return nil, err
			}
			w := newWatchdog(p.s.network.stall, cancel)
			r, err := layer.Compressed()
			if err != nil {
				w.stop()
				return nil, w.cause(watched, err)
			}
			w.ctx, w.r = watched, r
			return w, nil
		},
		retry: func(ctx context.Context, attempt int, err error) bool {
			if attempt >= p.s.network.attempts || !isTransient(err) {
				return false
			}
			select {
			case <-time.After(p.s.network.backoff << (attempt - 1)):
				return true
			case <-ctx.Done():
				return false
			}
		},
	}
}
