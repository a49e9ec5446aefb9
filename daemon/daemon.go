package daemon

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/image"
	"github.com/magikrun/magikpod/logs"
	"github.com/magikrun/magikpod/netsetup"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/units"
	"github.com/magikrun/magikpod/volume"
)

// maxStarts bounds the containers of one class that are being started at once. Each class has its
// own: to start a container in a VM, that must have booted, and a VM that hangs must not keep other
// classes' containers waiting.
const maxStarts = 16

// maxAdoptions bounds the pods that are being adopted at once: the rest of the host's systemd's time
// is for those who wait for an answer.
const maxAdoptions = 4

// Images is what the daemon needs of package image ([image.Store]).
type Images interface {
	Resolve(reference string) (runtime.Image, error)
	ResolveFor(reference, platform string) (runtime.Image, error)
	Pull(ctx context.Context, reference string, o image.PullOptions) (runtime.Image, error)
	Load(ctx context.Context, r io.Reader, o image.LoadOptions) ([]string, error)
	Save(ctx context.Context, references []string, w io.Writer) error
	List() []pod.ImageSummary
	Inspect(reference string) (pod.ImageSummary, []byte, error)
	Tag(reference, newReference string) error
	Remove(ctx context.Context, reference string, inUse func(id string) []string) error
	Prune(ctx context.Context, inUse func(id string) []string) (ids []string, err error)
}

// Networks is what the daemon needs of package netsetup.
type Networks interface {
	// NewNamespace makes a network namespace that lives as long as the file, or a process in it, does.
	NewNamespace() (*os.File, error)
	Setup(ctx context.Context, n netsetup.PodNetwork, ns *os.File) (netsetup.Result, error)
	Teardown(ctx context.Context, uid types.UID) error
	Restore(ctx context.Context, known func(uid types.UID) (netsetup.PodNetwork, bool)) error
}

// Volumes is what the daemon needs of package volume ([volume.Manager]).
type Volumes interface {
	Prepare(ctx context.Context, p *corev1.Pod, src volume.Sources) (*volume.Prepared, error)
	EtcFiles(uid types.UID, hosts, hostname, resolv []byte) ([]runtime.Mount, error)
	TerminationMessage(uid types.UID, container string, attempt int, path string) (runtime.Mount, error)
	ReadTerminationMessage(uid types.UID, container string, attempt int) (string, error)
	Remove(ctx context.Context, uid types.UID) error
}

// Options are what a daemon is made from. All fields are required but Log.
type Options struct {
	Config   Config
	Registry *runtime.Registry
	Images   Images
	Networks Networks
	Volumes  Volumes
	Host     Host
	Log      *slog.Logger
}

// Daemon is the orchestrator: it admits pods and runs a worker for each. It implements the backend
// of the bus server.
type Daemon struct {
	notices
	config   Config
	registry *runtime.Registry
	images   Images
	networks Networks
	volumes  Volumes
	host     Host
	log      *slog.Logger
	store    recordStore
	objects  objects
	jobs     *jobs
	pulls    *puller
	metrics  *metricsSet
	logs     *logs.Reader
	starts   map[string]chan struct{} // by class
	restored chan struct{}            // closed when pods may be started and stopped: see resume
	adopting chan struct{}            // a slot for each adoption under way
	began    time.Time

	ctx    context.Context // ends with Close
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // workers

	mu       sync.Mutex // guards what follows
	byUID    map[types.UID]*worker
	byName   map[string]*worker // by NAMESPACE/NAME
	slices   map[string]*worker // by the name of the slice
	reserved map[string]*runJob // names of pods that are about to be admitted, and by whom
	busyAt   time.Time          // when there was last a pod or a job
}

// New reads what an earlier daemon has left, and goes on with it. It returns as soon as the records
// have been read, which answer for their pods from then on: what still runs is adopted behind.
// Unavailable: the state directory cannot be used.
func New(ctx context.Context, o Options) (*Daemon, error) {
	d := &Daemon{
		config: o.Config, registry: o.Registry, images: o.Images, networks: o.Networks, volumes: o.Volumes, host: o.Host, log: o.Log,
		starts: make(map[string]chan struct{}), restored: make(chan struct{}), adopting: make(chan struct{}, maxAdoptions), began: time.Now(),
		byUID: make(map[types.UID]*worker), byName: make(map[string]*worker), slices: make(map[string]*worker), reserved: make(map[string]*runJob),
		busyAt: time.Now(),
	}
	d.pulls = newPuller(o.Images, d.prepareImage)
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	d.ctx, d.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	d.store = recordStore{config: &d.config}
	d.objects = objects{dir: filepath.Join(o.Config.StateDir, "volumes")}
	d.metrics = newMetrics(d.List)
	d.jobs = newJobs(d.ctx, &d.notices, func(kind string, result pod.JobResult, took time.Duration) {
		if kind != "exec" { // that takes as long as its command
			d.metrics.observeJob(kind, result, took)
		}
		d.touch()
	})
	d.logs = logs.NewReader()
	for _, class := range d.registry.Classes() {
		d.starts[class.Name] = make(chan struct{}, maxStarts)
		if manager, err := d.registry.Get(class.Name); err == nil {
			manager.OnChange(d.changed)
		}
	}
	if err := d.recover(ctx); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// recover makes a worker of every record. An error leaves everything as it is: the next daemon
// begins anew.
func (d *Daemon) recover(ctx context.Context) error {
	l, err := d.store.load()
	if err != nil {
		return err
	}
	var workers []*worker
	warnings := l.warnings
	for _, r := range l.records {
		w, warning := d.adopt(r)
		if warning != "" {
			warnings = append(warnings, warning)
		}
		if w != nil {
			workers = append(workers, w)
		}
	}
	for _, uid := range l.damaged {
		w, warning := d.adoptDamaged(uid)
		warnings = append(warnings, warning)
		if w != nil {
			workers = append(workers, w)
		}
	}
	more, err := d.objects.load(l.has)
	if err != nil {
		return err
	}
	for _, text := range append(warnings, more...) {
		d.log.Warn(text)
	}
	if err := context.Cause(ctx); err != nil {
		return pod.Errorf(pod.Unavailable, "cannot start: %w", err)
	}
	for _, w := range workers {
		d.launch(w)
	}
	d.wg.Go(func() { d.resume(networksOf(l)) })
	return nil
}

// resume makes ready what workers need before they do anything: the networks of the pods that are
// there, and room where images are gone, before a container starts that may need what is removed.
func (d *Daemon) resume(known func(uid types.UID) (netsetup.PodNetwork, bool)) {
	defer close(d.restored)
	d.forgetImages(d.ctx)
	if err := d.networks.Restore(d.ctx, known); err != nil {
		d.log.Error("cannot restore the pods' networks", "error", err)
	}
}

// adopt makes the worker of a record that an earlier daemon has left.
func (d *Daemon) adopt(r *record) (w *worker, warning string) {
	ref := pod.RefOf(r.Pod)
	manager, err := d.registry.Find(pod.ClassOf(r.Pod)) // it may not be able to start anything any more: what runs goes on, and can be stopped and deleted
	if err != nil {
		return nil, "pod " + ref.String() + " is left alone: " + err.Error()
	}
	if d.byName[ref.String()] != nil {
		return nil, "the record of pod " + string(ref.UID) + " is left alone: there is another pod " + ref.String()
	}
	if !r.Committed {
		// Its run never succeeded, and nobody waits for it any more.
		zero := time.Duration(0)
		r.Desired, r.DesiredAt, r.Grace, r.ThenRun = pod.DesiredDelete, time.Now(), &zero, false
	}
	w = d.newWorker(r, manager)
	d.add(w)
	return w, ""
}

// Close ends the workers and jobs. Pods go on.
func (d *Daemon) Close() {
	cause := pod.Errorf(pod.Unavailable, "the daemon is ending")
	d.cancel(cause)
	d.jobs.close(cause)
	d.logs.Close()
	d.wg.Wait()
}

// launch starts the worker's goroutine.
func (d *Daemon) launch(w *worker) {
	d.wg.Go(func() { w.run(d.ctx) })
}

func (d *Daemon) add(w *worker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.byUID[w.ref.UID], d.byName[w.ref.String()], d.slices[d.sliceOf(w.ref)] = w, w, w
	delete(d.reserved, w.ref.String())
}

// removed takes a pod off the lists: its name is free, and then who waits for that hears it.
func (d *Daemon) removed(w *worker) {
	d.mu.Lock()
	delete(d.byUID, w.ref.UID)
	delete(d.byName, w.ref.String())
	delete(d.slices, d.sliceOf(w.ref))
	d.busyAt = time.Now()
	d.mu.Unlock()
	w.publish()
	d.notices.report(pod.Notice{Kind: pod.NoticePodRemoved, Ref: w.ref})
}

// changed wakes the worker of a pod about which the runtime has news.
func (d *Daemon) changed(ref pod.Ref) {
	if w, err := d.find(ref); err == nil {
		w.wake()
	}
}

// find returns the worker of a pod, by its UID if ref has one.
func (d *Daemon) find(ref pod.Ref) (*worker, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.byUID[ref.UID]
	if ref.UID == "" {
		w = d.byName[ref.String()]
	}
	if w == nil {
		return nil, pod.Errorf(pod.NotFound, "cannot find pod %s", ref)
	}
	return w, nil
}

// meet is find for who asks the runtime about the pod, which must know it first.
func (d *Daemon) meet(ctx context.Context, ref pod.Ref) (*worker, error) {
	w, err := d.find(ref)
	if err != nil {
		return nil, err
	}
	return w, w.awaitArrival(ctx)
}

// workers returns all workers, sorted by namespace and name.
func (d *Daemon) workers() []*worker {
	d.mu.Lock()
	list := make([]*worker, 0, len(d.byUID))
	for _, w := range d.byUID {
		list = append(list, w)
	}
	d.mu.Unlock()
	slices.SortFunc(list, func(a, b *worker) int {
		return cmp.Or(strings.Compare(a.ref.Namespace, b.ref.Namespace), strings.Compare(a.ref.Name, b.ref.Name))
	})
	return list
}

func (d *Daemon) bySlice(slice string) *worker {
	if !strings.HasPrefix(slice, "magikpod-") {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.slices[slice]
}

func (d *Daemon) sliceOf(ref pod.Ref) string { return units.Names(ref.Namespace, ref.Name).Slice }

func (d *Daemon) touch() {
	d.mu.Lock()
	d.busyAt = time.Now()
	d.mu.Unlock()
}

// Idle says since when there have been neither pods nor jobs; ok is false while there are some.
func (d *Daemon) Idle() (since time.Time, ok bool) {
	if len(d.jobs.list()) > 0 {
		return time.Time{}, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.busyAt, len(d.byUID)+len(d.reserved) == 0
}

// volumeSources finds the ConfigMaps and Secrets of the pod's namespace.
func (d *Daemon) volumeSources(p *corev1.Pod) volume.Sources {
	return volume.Sources{
		ConfigMap: func(name string) (*corev1.ConfigMap, error) {
			if o := d.objects.get("configmaps", p.Namespace, name); o != nil {
				return o.ConfigMap, nil
			}
			return nil, pod.Errorf(pod.NotFound, "configmap %q not found in namespace %s (put it into the manifest)", name, p.Namespace)
		},
		Secret: func(name string) (*corev1.Secret, error) {
			if o := d.objects.get("secrets", p.Namespace, name); o != nil {
				return o.Secret, nil
			}
			return nil, pod.Errorf(pod.NotFound, "secret %q not found in namespace %s (put it into the manifest)", name, p.Namespace)
		},
	}
}

// envSources is where the environment of the pod's containers comes from.
func (d *Daemon) envSources(p *corev1.Pod, ips []netip.Addr) pod.EnvSources {
	from := d.volumeSources(p)
	return pod.EnvSources{
		ConfigMap: from.ConfigMap, Secret: from.Secret,
		PodIPs: texts(ips), HostIPs: texts(d.hostIPs()), NodeName: d.host.Hostname, Capacity: d.host.Capacity,
	}
}

// hostIPs are the addresses of the host that others can reach it by, the IPv4 one first.
func (d *Daemon) hostIPs() []netip.Addr {
	return slices.DeleteFunc([]netip.Addr{d.host.IPv4, d.host.IPv6}, func(a netip.Addr) bool { return !a.IsValid() })
}

// texts is how addresses are written in a status, an environment and a list.
func texts(addrs []netip.Addr) []string {
	var list []string
	for _, a := range addrs {
		list = append(list, a.String())
	}
	return list
}

// hostnameOf is what the pod calls itself, and its name in DNS if it has a subdomain.
func (d *Daemon) hostnameOf(p *corev1.Pod) (hostname, fqdn string, err error) {
	if p.Spec.HostNetwork {
		return d.host.Hostname, "", nil
	}
	return pod.Hostname(p)
}

func containerNames(p *corev1.Pod) []string {
	var names []string
	for c := range pod.AllContainers(&p.Spec) {
		names = append(names, c.Name)
	}
	return names
}

// ControlHandler answers on the control socket: health, metrics and version in plain HTTP.
func (d *Daemon) ControlHandler() http.Handler {
	return newControlHandler(d.Check, d.metrics.WritePrometheus, d.Info)
}

// Stats reads what the pod uses from its cgroup, and asks the runtime class for its containers.
// Conflict: the pod does not run.
func (d *Daemon) Stats(ctx context.Context, ref pod.Ref) (pod.Stats, error) {
	w, err := d.meet(ctx, ref)
	if err != nil {
		return pod.Stats{}, err
	}
	return statsOf(ctx, d.host.CgroupRoot, units.SlicePath(d.sliceOf(w.ref)), w.ref, w.manager)
}

// Check says whether the daemon is healthy: it can lock what it must lock, and its state directory
// can be read.
func (d *Daemon) Check() error {
	d.workers()
	if _, err := os.Stat(filepath.Join(d.config.StateDir, "pods")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
