package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/image"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// maxPulls bounds the pulls that run at once.
const maxPulls = 4

// puller pulls images, each at most once at a time whoever asks for it.
type puller struct {
	store   Images
	prepare func(context.Context, runtime.Image) // what the classes do for an image that has come

	mu      sync.Mutex
	pulling map[string]*pull // those that can be joined: somebody waits for each
	slots   chan struct{}
}

// pull is one pull that runs.
type pull struct {
	done    chan struct{}
	cancel  context.CancelFunc
	waiting int // who waits for it; the last one that leaves ends it
	image   runtime.Image
	err     error

	mu        sync.Mutex
	listeners []func(image.Progress)
}

func newPuller(store Images, prepare func(context.Context, runtime.Image)) *puller {
	return &puller{store: store, prepare: prepare, pulling: make(map[string]*pull), slots: make(chan struct{}, maxPulls)}
}

// pull pulls reference for a platform, or joins a pull of it that runs. progress may be nil.
func (p *puller) pull(ctx context.Context, reference, platform string, progress func(image.Progress)) (runtime.Image, error) {
	key := reference + " " + platform
	p.mu.Lock()
	one := p.pulling[key]
	if one == nil {
		pullCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		one = &pull{done: make(chan struct{}), cancel: cancel}
		p.pulling[key] = one
		go p.run(pullCtx, reference, platform, one)
	}
	one.waiting++
	p.mu.Unlock()
	if progress != nil {
		one.mu.Lock()
		one.listeners = append(one.listeners, progress)
		one.mu.Unlock()
	}
	select {
	case <-one.done:
	case <-ctx.Done():
	}
	p.mu.Lock()
	if one.waiting--; one.waiting == 0 {
		one.cancel()
		p.forget(key, one) // who comes now shall not get its end
	}
	p.mu.Unlock()
	select {
	case <-one.done:
		return one.image, one.err
	default:
		return runtime.Image{}, context.Cause(ctx)
	}
}

func (p *puller) run(ctx context.Context, reference, platform string, one *pull) {
	defer one.cancel()
	select {
	case p.slots <- struct{}{}:
		one.image, one.err = p.store.Pull(ctx, reference, image.PullOptions{Platform: platform, Progress: func(at image.Progress) {
			one.mu.Lock()
			listeners := one.listeners
			one.mu.Unlock()
			for _, report := range listeners {
				report(at)
			}
		}})
		<-p.slots // what the classes do with it may take long, and delays no other pull
		if one.err == nil {
			p.prepare(ctx, one.image)
		}
	case <-ctx.Done():
		one.err = ctx.Err()
	}
	p.mu.Lock()
	p.forget(reference+" "+platform, one)
	p.mu.Unlock()
	close(one.done)
}

// forget has nobody join a pull any more. The mutex is held.
func (p *puller) forget(key string, one *pull) {
	if p.pulling[key] == one {
		delete(p.pulling, key)
	}
}

// imageError is why a container has no image: the reason of its Waiting state.
type imageError struct {
	reason string
	err    error
}

func (e *imageError) Error() string { return e.err.Error() }
func (e *imageError) Unwrap() error { return e.err }

// containerImage makes the image of a container ready, by its imagePullPolicy (Kubernetes: images,
// "Image pull policy").
func (d *Daemon) containerImage(ctx context.Context, p *corev1.Pod, c *corev1.Container) (img runtime.Image, pulled bool, err error) {
	name, err := image.Normalize(c.Image)
	if err != nil {
		return runtime.Image{}, false, &imageError{"InvalidImageName", err}
	}
	img, err = d.images.ResolveFor(name, platformFor(p))
	other := ""
	if err != nil {
		if elsewhere, e := d.images.Resolve(name); e == nil { // it is there for another platform
			if other = ": " + err.Error(); isLocal(name) {
				img, err = elsewhere, nil // and comes from nowhere else
			}
		}
	}
	present := err == nil
	if err != nil && pod.KindOf(err) != pod.NotFound {
		return runtime.Image{}, false, &imageError{"ImageInspectError", err}
	}
	policy := c.ImagePullPolicy
	if isLocal(name) && policy == corev1.PullAlways {
		policy = corev1.PullIfNotPresent // there is no registry to ask
	}
	switch {
	case present && policy != corev1.PullAlways:
		return img, false, nil
	case policy == corev1.PullNever:
		return runtime.Image{}, false, &imageError{pod.ReasonErrImageNeverPull,
			pod.Errorf(pod.NotFound, "container image %q is not present with pull policy of Never (magikpodctl image load or pull brings it)%s", c.Image, other)}
	case isLocal(name):
		return runtime.Image{}, false, &imageError{pod.ReasonErrImagePull,
			pod.Errorf(pod.NotFound, "container image %q is not present, and localhost is no registry (magikpodctl image load brings it)", c.Image)}
	}
	img, err = d.pulls.pull(ctx, name, platformFor(p), nil)
	d.metrics.observePull(err == nil)
	if err != nil {
		return runtime.Image{}, false, &imageError{pod.ReasonErrImagePull, err}
	}
	return img, true, nil
}

// platformFor is the platform of a pod's images: modules run as the class pod-wasm, where an image
// has them.
func platformFor(p *corev1.Pod) string {
	if pod.ClassOf(p) == pod.ClassWasm {
		return image.Modules
	}
	return ""
}

// isLocal says whether a normalised reference names an image that was made here: the host
// "localhost" without a port is no registry.
func isLocal(reference string) bool { return strings.HasPrefix(reference, "localhost/") }

// PullImage pulls an image as a job.
func (d *Daemon) PullImage(ctx context.Context, reference string, o pod.PullOptions) (uint32, error) {
	name, err := image.Normalize(reference)
	if err != nil {
		return 0, err
	}
	return d.jobs.start(ctx, "pull", []string{name}, 0, func(ctx context.Context, job *job) ([]string, error) {
		if _, err := d.images.ResolveFor(name, o.Platform); err == nil && (!o.Always || isLocal(name)) {
			return []string{name}, nil
		}
		if isLocal(name) {
			return nil, pod.Errorf(pod.NotFound, "cannot pull %s: localhost is no registry (magikpodctl image load brings an image)", name)
		}
		job.progress("pulling "+name, 0)
		_, err := d.pulls.pull(ctx, name, o.Platform, func(at image.Progress) {
			if at.Total > 0 {
				job.progress("pulling "+name, min(float64(at.Done)/float64(at.Total), 1))
			}
		})
		d.metrics.observePull(err == nil)
		if err != nil {
			return nil, err
		}
		return []string{name}, nil
	})
}

// LoadImage reads an archive until its end.
func (d *Daemon) LoadImage(ctx context.Context, archive *os.File, o pod.LoadOptions) ([]string, error) {
	refs, err := d.images.Load(ctx, archive, image.LoadOptions{Tag: o.Tag, Platform: o.Platform})
	for _, ref := range refs {
		if img, err := d.images.ResolveFor(ref, image.Modules); err == nil {
			d.prepareImage(ctx, img)
		}
	}
	return refs, err
}

// prepareImage has the runtime classes do for a new image what takes long. The start of a container
// reports what goes wrong, too.
func (d *Daemon) prepareImage(ctx context.Context, img runtime.Image) {
	if err := d.registry.PrepareImage(ctx, img); err != nil {
		d.log.Warn("cannot prepare an image", "image", img.Reference, "error", err)
	}
}

// SaveImage writes the images as one archive.
func (d *Daemon) SaveImage(ctx context.Context, references []string, archive *os.File) error {
	return d.images.Save(ctx, references, archive)
}

// ListImages lists what is stored.
func (d *Daemon) ListImages(context.Context) ([]pod.ImageSummary, error) {
	users := d.imageUsers()
	list := d.images.List()
	for i := range list {
		list[i].Pods = len(users[list[i].ID])
	}
	return list, nil
}

// imageUsers returns which pods use an image, by its ID. A pod uses the images of its latest
// attempts, running or not, and those that its manifest names; one whose record is damaged may use
// any.
func (d *Daemon) imageUsers() map[string][]string {
	users := make(map[string][]string)
	for _, w := range d.workers() {
		snap := w.snapshot()
		seen := make(map[string]bool)
		if w.damaged {
			for _, i := range d.images.List() {
				seen[i.ID] = true
			}
		}
		for _, o := range snap.Containers {
			seen[o.ImageID] = true
		}
		for c := range pod.AllContainers(&snap.Pod.Spec) {
			if name, err := image.Normalize(c.Image); err == nil {
				if img, err := d.images.ResolveFor(name, platformFor(snap.Pod)); err == nil {
					seen[img.ID] = true
				}
			}
		}
		for id := range seen {
			if id != "" {
				users[id] = append(users[id], w.ref.String())
			}
		}
	}
	return users
}

// imageNamers returns which pods name an image in their manifests: the next start of a container
// looks for that name, whatever others the image has.
func (d *Daemon) imageNamers(reference string) []string {
	name, err := image.Normalize(reference)
	if err != nil {
		return nil
	}
	var pods []string
	for _, w := range d.workers() {
		for c := range pod.AllContainers(&w.snapshot().Pod.Spec) {
			if own, err := image.Normalize(c.Image); err == nil && own == name {
				pods = append(pods, w.ref.String())
				break
			}
		}
	}
	return pods
}

// RemoveImage removes an image, or one of its names. Conflict: a pod uses it; force removes its
// names all the same, and what running containers have open stays until they end.
func (d *Daemon) RemoveImage(ctx context.Context, reference string, force bool) error {
	users := d.imageUsers()
	if pods := d.imageNamers(reference); len(pods) > 0 && !force {
		return pod.Errorf(pod.Conflict, "cannot remove image %s: it is used by %s", reference, strings.Join(pods, ", "))
	}
	err := d.images.Remove(ctx, reference, func(id string) []string {
		if force {
			return nil
		}
		return users[id]
	})
	if err != nil {
		return err
	}
	d.forgetImages(ctx)
	return nil
}

// PruneImages removes the images that have no name any more and that no pod uses, and returns their IDs.
func (d *Daemon) PruneImages(ctx context.Context) ([]string, error) {
	users := d.imageUsers()
	ids, err := d.images.Prune(ctx, func(id string) []string { return users[id] })
	if len(ids) > 0 {
		d.forgetImages(ctx)
	}
	return ids, err
}

// forgetImages has the runtime classes remove what they have made for images that are gone. What is
// left by an error, the next time removes.
func (d *Daemon) forgetImages(ctx context.Context) {
	if err := d.registry.ForgetImages(ctx); err != nil {
		d.log.Warn("cannot remove what was made for images that are gone", "error", err)
	}
}

// TagImage gives an image another name.
func (d *Daemon) TagImage(_ context.Context, reference, newReference string) error {
	return d.images.Tag(reference, newReference)
}

// InspectImage returns what is known of an image as a JSON object.
func (d *Daemon) InspectImage(_ context.Context, reference string) ([]byte, error) {
	info, config, err := d.images.Inspect(reference)
	if err != nil {
		return nil, err
	}
	info.Pods = len(d.imageUsers()[info.ID])
	data, err := json.Marshal(struct {
		pod.ImageSummary
		Config json.RawMessage `json:"config"`
	}{info, config})
	if err != nil {
		return nil, pod.Errorf(pod.Internal, "cannot inspect image %s: %w", reference, err)
	}
	return data, nil
}

// waitingOf turns an error of a start into what the status says of the container.
func waitingOf(err error, before *pod.Waiting, now time.Time) *pod.Waiting {
	w := &pod.Waiting{Reason: "RunContainerError", Message: err.Error(), Since: now, Failures: 1}
	if kind := pod.KindOf(err); kind != pod.Internal {
		w.Kind = kind
	}
	if e, ok := errors.AsType[*imageError](err); ok {
		w.Reason = e.reason
	} else if e, ok := errors.AsType[*configError](err); ok {
		w.Reason, w.Message = "CreateContainerConfigError", e.Error()
	}
	if before != nil {
		w.Failures = before.Failures + 1
	}
	return w
}
