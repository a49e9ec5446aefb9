package daemon

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/image"
	"github.com/magikrun/magikpod/netsetup"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/runtime/runtimetest"
	"github.com/magikrun/magikpod/volume"
)

// world is a host in memory, but for files: daemons come and go on it.
type world struct {
	t      *testing.T
	fake   *runtimetest.Fake
	more   []runtime.PodManager // other classes
	net    *fakeNetworks
	images *fakeImages
	config Config
	d      *Daemon

	mu      sync.Mutex
	notices []pod.Notice
}

// inWorld runs test in a bubble with a clock of its own, on a fresh host with a running daemon, and
// checks at the end that nothing is left behind that no pod owns.
func inWorld(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, fake: runtimetest.New(), net: newFakeNetworks(), images: newFakeImages("localhost/app:1"), config: DefaultConfig()}
		w.config.StateDir, w.config.RunDir, w.config.LogDir = filepath.Join(dir, "state"), filepath.Join(dir, "run"), filepath.Join(dir, "log")
		w.start()
		defer func() {
			if w.d != nil {
				w.d.Close()
			}
			if problems := w.fake.Problems(); len(problems) > 0 {
				t.Errorf("calls that break the contract of PodManager: %q", problems)
			}
		}()
		test(t, w)
	})
}

// start starts a daemon.
func (w *world) start() {
	w.t.Helper()
	if err := w.tryStart(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// tryStart starts a daemon, if it does start.
func (w *world) tryStart(ctx context.Context) error {
	w.t.Helper()
	for _, dir := range []string{w.config.StateDir, w.config.RunDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			w.t.Fatal(err)
		}
	}
	volumes, err := volume.New(volume.Config{StateDir: w.config.StateDir, RunDir: w.config.RunDir})
	if err != nil {
		w.t.Fatal(err)
	}
	var registry runtime.Registry
	registry.Add(w.fake)
	for _, class := range w.more {
		registry.Add(class)
	}
	d, err := New(ctx, Options{
		Config: w.config, Registry: &registry, Images: w.images, Networks: w.net, Volumes: volumes,
		Host: Host{Hostname: "host", IPv4: netip.MustParseAddr("192.0.2.10"), CgroupRoot: "/nonexistent"},
	})
	if err != nil {
		w.d = nil
		return err
	}
	w.mu.Lock()
	w.notices = nil // the numbers of jobs begin anew
	w.mu.Unlock()
	d.Subscribe(func(n pod.Notice) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.notices = append(w.notices, n)
	})
	w.d = d
	return nil
}

// next ends the daemon and makes the runtime of the next one, which is not started yet.
func (w *world) next(fault func(c runtimetest.Call) error) {
	w.t.Helper()
	if w.d != nil {
		w.d.Close()
	}
	w.fake = w.fake.Restart()
	w.fake.Fault = fault
}

// crash ends the daemon as if it was killed: nothing is tidied up, and pods go on. Another daemon
// is started.
func (w *world) crash() {
	w.t.Helper()
	w.d.Close()
	w.fake = w.fake.Restart()
	w.start()
}

// reboot ends everything that runs, and starts the next daemon.
func (w *world) reboot() {
	w.t.Helper()
	w.d.Close()
	w.fake.Reboot()
	w.fake = w.fake.Restart()
	w.net.reset()
	if err := os.RemoveAll(w.config.RunDir); err != nil {
		w.t.Fatal(err)
	}
	w.start()
}

// job waits for the job to end and returns how it did.
func (w *world) job(id uint32, err error) (pod.JobInfo, error) {
	w.t.Helper()
	if err != nil {
		return pod.JobInfo{}, err
	}
	for range 100000 {
		w.mu.Lock()
		for _, n := range w.notices {
			if n.Kind == pod.NoticeJobRemoved && n.Job.ID == id {
				w.mu.Unlock()
				return n.Job, n.Job.Err
			}
		}
		w.mu.Unlock()
		time.Sleep(5 * time.Millisecond)
	}
	w.t.Fatalf("job %d never ends", id)
	return pod.JobInfo{}, nil
}

func (w *world) run(manifest string, o pod.RunOptions) (pod.JobInfo, error) {
	w.t.Helper()
	return w.job(w.d.Run(w.t.Context(), []byte(manifest), o))
}

// mustRun runs the pods of the manifest and returns the first one.
func (w *world) mustRun(manifest string) pod.Ref {
	w.t.Helper()
	job, err := w.run(manifest, pod.RunOptions{})
	if err != nil {
		w.t.Fatalf("run: %v", err)
	}
	ns, name, _ := strings.Cut(job.Output[0], "/")
	d, err := w.d.Get(ns, name)
	if err != nil {
		w.t.Fatal(err)
	}
	return d.Ref
}

// get returns the pod once its worker has nothing to do at this moment.
func (w *world) get(ref pod.Ref) pod.Detail {
	w.t.Helper()
	synctest.Wait()
	d, err := w.d.GetByUID(ref.UID)
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

// until waits until the pod is as wanted.
func (w *world) until(ref pod.Ref, what string, want func(d pod.Detail) bool) pod.Detail {
	w.t.Helper()
	var d pod.Detail
	for range 20000 {
		if d = w.get(ref); want(d) {
			return d
		}
		time.Sleep(50 * time.Millisecond)
	}
	w.t.Fatalf("the pod is never %s: it is %s %s, %+v", what, d.Phase, d.State, d.Pod.Status.ContainerStatuses)
	return d
}

// events lists the reasons of the pod's events.
func events(d pod.Detail) []string {
	var reasons []string
	for _, e := range d.Events {
		reasons = append(reasons, e.Reason)
	}
	return reasons
}

// leaks lists everything that is left on the host.
func (w *world) leaks() []string {
	synctest.Wait()
	left := append(w.fake.Leaks(), w.net.leaks()...)
	for _, dir := range []string{filepath.Join(w.config.StateDir, "pods"), filepath.Join(w.config.RunDir, "pods"), filepath.Join(w.config.StateDir, "volumes")} {
		_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
			if err == nil && (!e.IsDir() || filepath.Base(filepath.Dir(path)) == "pods") {
				left = append(left, path)
			}
			return nil
		})
	}
	return left
}

// wantNothing fails when something is left on the host.
func (w *world) wantNothing() {
	w.t.Helper()
	if left := w.leaks(); len(left) > 0 {
		w.t.Errorf("left behind: %q", left)
	}
	if pods := w.d.List(); len(pods) > 0 {
		w.t.Errorf("pods are left: %v", pods)
	}
}

// fakeNetworks gives out addresses.
type fakeNetworks struct {
	mu    sync.Mutex
	next  byte
	pods  map[types.UID]netip.Addr
	fault func(step string) error
}

func newFakeNetworks() *fakeNetworks { return &fakeNetworks{pods: make(map[types.UID]netip.Addr)} }

func (n *fakeNetworks) NewNamespace() (*os.File, error) {
	if err := n.fail("namespace"); err != nil {
		return nil, err
	}
	return os.Open(os.DevNull)
}

func (n *fakeNetworks) fail(step string) error {
	if n.fault == nil {
		return nil
	}
	return n.fault(step)
}

func (n *fakeNetworks) Setup(_ context.Context, want netsetup.PodNetwork, _ *os.File) (netsetup.Result, error) {
	if err := n.fail("setup"); err != nil {
		return netsetup.Result{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.pods[want.UID]; !ok {
		n.next++
		n.pods[want.UID] = netip.AddrFrom4([4]byte{10, 0, 0, n.next})
	}
	return netsetup.Result{IPs: []netip.Addr{n.pods[want.UID]}}, nil
}

func (n *fakeNetworks) Teardown(_ context.Context, uid types.UID) error {
	if err := n.fail("teardown"); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.pods, uid)
	return nil
}

func (n *fakeNetworks) Restore(_ context.Context, known func(types.UID) (netsetup.PodNetwork, bool)) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.pods, func(uid types.UID, _ netip.Addr) bool { _, ok := known(uid); return !ok })
	return nil
}

func (n *fakeNetworks) reset() { clear(n.pods) }

func (n *fakeNetworks) leaks() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var left []string
	for uid := range n.pods {
		left = append(left, "network of "+string(uid))
	}
	return left
}

// fakeImages holds images by name; those of registry.test can be pulled.
type fakeImages struct {
	mu      sync.Mutex
	present map[string]bool
	pulls   int
	pull    func(ctx context.Context, reference string) error
}

func newFakeImages(names ...string) *fakeImages {
	f := &fakeImages{present: make(map[string]bool)}
	for _, n := range names {
		f.present[n] = true
	}
	return f
}

func (f *fakeImages) image(reference string) runtime.Image {
	return runtime.Image{Reference: reference, ID: "sha256:" + fmt.Sprintf("%x", reference), Rootfs: runtime.Rootfs{Dir: "/", Layers: []string{"a"}}}
}

func (f *fakeImages) Resolve(reference string) (runtime.Image, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.present[reference] {
		return runtime.Image{}, pod.Errorf(pod.NotFound, "cannot find image %s", reference)
	}
	return f.image(reference), nil
}

func (f *fakeImages) ResolveFor(reference, _ string) (runtime.Image, error) {
	return f.Resolve(reference)
}

func (f *fakeImages) Pull(ctx context.Context, reference string, o image.PullOptions) (runtime.Image, error) {
	f.mu.Lock()
	f.pulls++
	pull := f.pull
	f.mu.Unlock()
	if o.Progress != nil {
		o.Progress(image.Progress{Done: 1, Total: 2})
	}
	if pull == nil {
		return runtime.Image{}, pod.Errorf(pod.NotFound, "cannot pull %s: no such image", reference)
	}
	if err := pull(ctx, reference); err != nil {
		return runtime.Image{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.present[reference] = true
	return f.image(reference), nil
}

func (f *fakeImages) Load(_ context.Context, _ io.Reader, o image.LoadOptions) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.present[o.Tag] = true
	return []string{o.Tag}, nil
}

func (f *fakeImages) Save(context.Context, []string, io.Writer) error { return nil }

func (f *fakeImages) List() []pod.ImageSummary {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []pod.ImageSummary
	for _, name := range slices.Sorted(maps.Keys(f.present)) {
		list = append(list, pod.ImageSummary{ID: f.image(name).ID, References: []string{name}})
	}
	return list
}

func (f *fakeImages) Inspect(reference string) (pod.ImageSummary, []byte, error) {
	img, err := f.Resolve(reference)
	return pod.ImageSummary{ID: img.ID, References: []string{reference}}, []byte(`{}`), err
}

func (f *fakeImages) Tag(reference, newReference string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.present[newReference] = f.present[reference]
	return nil
}

func (f *fakeImages) Remove(_ context.Context, reference string, inUse func(id string) []string) error {
	if users := inUse(f.image(reference).ID); len(users) > 0 {
		return pod.Errorf(pod.Conflict, "cannot remove image %s: %v use it", reference, users)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.present, reference)
	return nil
}

// Prune removes the images whose names begin with localhost/old/: they stand for those that have
// lost their names.
func (f *fakeImages) Prune(_ context.Context, inUse func(id string) []string) (ids []string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(f.present)) {
		if id := f.image(name).ID; strings.HasPrefix(name, "localhost/old/") && len(inUse(id)) == 0 {
			delete(f.present, name)
			ids = append(ids, id)
		}
	}
	return ids, nil
}

func seconds(n int) metav1.Duration { return metav1.Duration{Duration: time.Duration(n) * time.Second} }
