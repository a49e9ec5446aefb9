// Package fakepods is a daemon in memory for tests: it behaves as the real one does, jobs, events
// and conflicts included, but runs nothing except exec, which runs the command on this host.
package fakepods

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/magikrun/magikpod/internal/jobowner"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// Backend is the daemon. It implements dbus.Backend.
type Backend struct {
	mu        sync.Mutex
	pods      map[string]*pod.Detail // by NAMESPACE/NAME
	jobs      map[uint32]pod.JobInfo
	lastJob   uint32
	lastExec  uint32
	listeners map[int]func(pod.Notice)
	lastID    int
	images    map[string]string // reference: id
	wg        sync.WaitGroup
	// Delay is how long a job takes.
	Delay time.Duration
	// Hold, unless it is nil, is called with the kind of a job before that does anything.
	Hold func(kind string)
}

// New returns a daemon without pods.
func New() *Backend {
	return &Backend{pods: map[string]*pod.Detail{}, jobs: map[uint32]pod.JobInfo{}, listeners: map[int]func(pod.Notice){}, images: map[string]string{}}
}

// Close waits for the jobs.
func (b *Backend) Close() { b.wg.Wait() }

// report calls the listeners; b.mu is held.
func (b *Backend) report(n pod.Notice) {
	for _, f := range b.listeners {
		f(n)
	}
}

// begin reports a new job.
func (b *Backend) begin(ctx context.Context, kind, object string) pod.JobInfo {
	b.mu.Lock()
	defer b.mu.Unlock()
	job := pod.JobInfo{Kind: kind, Objects: []string{object}, State: "running", Owner: jobowner.Of(ctx)}
	if kind == "exec" {
		job.ID = pod.FirstExecJob + b.lastExec
		b.lastExec++
	} else {
		b.lastJob++
		job.ID = b.lastJob
	}
	b.jobs[job.ID] = job
	b.report(pod.Notice{Kind: pod.NoticeJobNew, Job: job})
	return job
}

// end reports the end of a job; b.mu is held.
func (b *Backend) end(job pod.JobInfo) {
	delete(b.jobs, job.ID)
	job.State = string(pod.JobDone)
	if job.Err != nil {
		job.State = string(pod.JobFailed)
	}
	b.report(pod.Notice{Kind: pod.NoticeJobRemoved, Job: job})
}

// start runs do as a job, with b.mu held while it does.
func (b *Backend) start(ctx context.Context, kind, object string, do func() ([]string, error)) uint32 {
	job := b.begin(ctx, kind, object)
	b.wg.Go(func() {
		time.Sleep(b.Delay)
		if b.Hold != nil {
			b.Hold(kind)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		job.Output, job.Err = do()
		b.end(job)
	})
	return job.ID
}

// Run implements dbus.Backend.
func (b *Backend) Run(ctx context.Context, manifest []byte, o pod.RunOptions) (uint32, error) {
	var p corev1.Pod
	if err := yaml.UnmarshalStrict(manifest, &p); err != nil {
		return 0, pod.Errorf(pod.Invalid, "cannot read the manifest: %w", err)
	}
	if p.Name == "" {
		return 0, pod.Errorf(pod.Invalid, "cannot run the pod: metadata.name: Required value")
	}
	if p.Namespace = o.Namespace; p.Namespace == "" {
		p.Namespace = pod.DefaultNamespace
	}
	key := p.Namespace + "/" + p.Name
	b.mu.Lock()
	_, taken := b.pods[key]
	b.mu.Unlock()
	if taken && !o.Replace {
		return 0, pod.Errorf(pod.AlreadyExists, "cannot run pod %s: there is one of that name", key)
	}
	return b.start(ctx, "run", key, func() ([]string, error) {
		p.UID = types.UID(fmt.Sprintf("00000000-0000-0000-0000-%012d", b.lastJob))
		p.Status.Phase = corev1.PodRunning
		total := len(p.Spec.Containers)
		d := &pod.Detail{Pod: &p, Summary: pod.Summary{Ref: pod.RefOf(&p), Phase: "Running", State: "Running", Class: pod.ClassContainers,
			Ready: total, Total: total, IPs: []string{"10.0.0.2"}, Created: time.Now(), Slice: "magikpod-default-" + p.Name + ".slice"}}
		if o.NoStart {
			d.Phase, d.State, d.Ready = "Pending", "Stopped", 0
		}
		event := pod.Event{Time: time.Now(), Type: "Normal", Reason: "Started", Object: d.Ref, Message: "started"}
		d.Events = []pod.Event{event}
		b.pods[key] = d
		b.report(pod.Notice{Kind: pod.NoticePodNew, Ref: d.Ref})
		b.report(pod.Notice{Kind: pod.NoticeEvent, Event: event})
		return []string{key}, nil
	}), nil
}

// change replaces the pod's detail by a changed copy, as a job.
func (b *Backend) change(ctx context.Context, kind string, ref pod.Ref, state string, ready bool) (uint32, error) {
	return b.start(ctx, kind, ref.String(), func() ([]string, error) {
		old := b.pods[ref.String()]
		if old == nil {
			return nil, pod.Errorf(pod.NotFound, "cannot %s pod %s: it is gone", kind, ref)
		}
		d := *old
		if d.State, d.Ready = state, 0; ready {
			d.Ready = d.Total
		}
		b.pods[ref.String()] = &d
		b.report(pod.Notice{Kind: pod.NoticePodChanged, Ref: d.Ref})
		return []string{ref.String()}, nil
	}), nil
}

// Start implements dbus.Backend.
func (b *Backend) Start(ctx context.Context, ref pod.Ref) (uint32, error) {
	return b.change(ctx, "start", ref, "Running", true)
}

// Stop implements dbus.Backend.
func (b *Backend) Stop(ctx context.Context, ref pod.Ref, _ pod.StopOptions) (uint32, error) {
	return b.change(ctx, "stop", ref, "Stopped", false)
}

// Restart implements dbus.Backend.
func (b *Backend) Restart(ctx context.Context, ref pod.Ref, _ pod.StopOptions) (uint32, error) {
	return b.change(ctx, "restart", ref, "Running", true)
}

// Delete implements dbus.Backend.
func (b *Backend) Delete(ctx context.Context, ref pod.Ref, _ pod.StopOptions) (uint32, error) {
	return b.start(ctx, "delete", ref.String(), func() ([]string, error) {
		delete(b.pods, ref.String())
		b.report(pod.Notice{Kind: pod.NoticePodRemoved, Ref: ref})
		return []string{ref.String()}, nil
	}), nil
}

// Kill implements dbus.Backend.
func (b *Backend) Kill(_ context.Context, ref pod.Ref, container string, _ syscall.Signal) error {
	d, err := b.Get(ref.Namespace, ref.Name)
	if err != nil {
		return err
	}
	if d.State != "Running" {
		return pod.Errorf(pod.Conflict, "cannot kill pod %s: it does not run", ref)
	}
	return b.container(d, container)
}

func (b *Backend) container(d pod.Detail, name string) error {
	if name == "" || slices.ContainsFunc(d.Pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == name }) {
		return nil
	}
	return pod.Errorf(pod.NotFound, "cannot find container %q in pod %s", name, d.Ref)
}

// Get implements dbus.Backend.
func (b *Backend) Get(namespace, name string) (pod.Detail, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if d := b.pods[namespace+"/"+name]; d != nil {
		return *d, nil
	}
	return pod.Detail{}, pod.Errorf(pod.NotFound, "cannot find pod %s/%s", namespace, name)
}

// GetByUID implements dbus.Backend.
func (b *Backend) GetByUID(uid types.UID) (pod.Detail, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range b.pods {
		if d.UID == uid {
			return *d, nil
		}
	}
	return pod.Detail{}, pod.Errorf(pod.NotFound, "cannot find the pod with UID %s", uid)
}

// GetByPID implements dbus.Backend: no process is in a pod here.
func (b *Backend) GetByPID(pid int) (pod.Ref, error) {
	return pod.Ref{}, pod.Errorf(pod.NotFound, "cannot find the pod of process %d: it is in none", pid)
}

// List implements dbus.Backend.
func (b *Backend) List() []pod.Summary {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := []pod.Summary{}
	for _, d := range b.pods {
		list = append(list, d.Summary)
	}
	slices.SortFunc(list, func(x, y pod.Summary) int { return strings.Compare(x.String(), y.String()) })
	return list
}

// Stats implements dbus.Backend.
func (b *Backend) Stats(context.Context, pod.Ref) (pod.Stats, error) {
	return pod.Stats{Time: time.Now(), Pod: pod.ResourceUse{Processes: new(uint64(1))}}, nil
}

// Jobs implements dbus.Backend.
func (b *Backend) Jobs() []pod.JobInfo {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := []pod.JobInfo{}
	for _, j := range b.jobs {
		list = append(list, j)
	}
	slices.SortFunc(list, func(x, y pod.JobInfo) int { return cmp.Compare(x.ID, y.ID) })
	return list
}

// Job implements dbus.Backend.
func (b *Backend) Job(id uint32) (pod.JobInfo, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	j, ok := b.jobs[id]
	return j, ok
}

// CancelJob implements dbus.Backend.
func (b *Backend) CancelJob(id uint32) error {
	if _, ok := b.Job(id); !ok {
		return pod.Errorf(pod.NotFound, "cannot cancel job %d: no such job", id)
	}
	return pod.Errorf(pod.Conflict, "cannot cancel job %d: it is nearly done", id)
}

// Exec implements dbus.Backend: it runs the command on this host.
func (b *Backend) Exec(ctx context.Context, ref pod.Ref, container string, p runtime.Process, _ runtime.WinSize, finish func(context.Context)) (uint32, error) {
	job := b.begin(ctx, "exec", ref.String())
	b.wg.Go(func() {
		code, err := b.exec(ctx, ref, container, p)
		finish(ctx)
		if job.Err = err; err == nil || code != 0 {
			job.ExitStatus = &code
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.end(job)
	})
	return job.ID, nil
}

func (b *Backend) exec(ctx context.Context, ref pod.Ref, container string, p runtime.Process) (code int, err error) {
	d, err := b.Get(ref.Namespace, ref.Name)
	if err != nil {
		return 0, err
	}
	if err := b.container(d, container); err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, p.Args[0], p.Args[1:]...)
	cmd.Env = append(os.Environ(), p.Env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.Stdin, p.Stdout, p.Stderr
	err = cmd.Run()
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode(), nil
	}
	if err != nil {
		return runtime.ExitNotFound, pod.Errorf(pod.Invalid, "cannot exec %q: %w", p.Args[0], err)
	}
	return 0, nil
}

// ResizeTerminal implements dbus.Backend: there are no terminals here.
func (b *Backend) ResizeTerminal(job uint32, _ runtime.WinSize) error {
	return pod.Errorf(pod.Conflict, "cannot resize the terminal of job %d: it has none", job)
}

// Logs implements dbus.Backend.
func (b *Backend) Logs(_ context.Context, ref pod.Ref, o pod.LogOptions) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, pod.WithKind(pod.Exhausted, err)
	}
	lines := []string{"one", "two", "three"}
	if o.Tail >= 0 {
		lines = lines[max(0, len(lines)-o.Tail):]
	}
	b.wg.Go(func() {
		defer func() { _ = w.Close() }()
		for _, l := range lines {
			_, _ = fmt.Fprintln(w, l)
		}
	})
	return r, nil
}

// PullImage implements dbus.Backend.
func (b *Backend) PullImage(ctx context.Context, ref string, _ pod.PullOptions) (uint32, error) {
	return b.start(ctx, "pull", ref, func() ([]string, error) {
		if strings.Contains(ref, "missing") {
			return nil, pod.Errorf(pod.NotFound, "cannot pull %s: the registry has no such image", ref)
		}
		b.images[ref] = "sha256:" + strings.Repeat("ab", 32)
		return []string{ref}, nil
	}), nil
}

// LoadImage implements dbus.Backend.
func (b *Backend) LoadImage(_ context.Context, archive *os.File, o pod.LoadOptions) ([]string, error) {
	tag := o.Tag
	text, err := io.ReadAll(archive)
	if err != nil {
		return nil, pod.Errorf(pod.Invalid, "cannot read the archive: %w", err)
	}
	if tag == "" {
		tag = strings.TrimSpace(string(text))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.images[tag] = "sha256:" + strings.Repeat("cd", 32)
	return []string{tag}, nil
}

// SaveImage implements dbus.Backend.
func (b *Backend) SaveImage(_ context.Context, refs []string, archive *os.File) error {
	_, err := fmt.Fprintln(archive, strings.Join(refs, " "))
	return err
}

// ListImages implements dbus.Backend.
func (b *Backend) ListImages(context.Context) ([]pod.ImageSummary, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := []pod.ImageSummary{}
	for ref, id := range b.images {
		list = append(list, pod.ImageSummary{ID: id, References: []string{ref}, Size: 12345678, Created: time.Now()})
	}
	slices.SortFunc(list, func(x, y pod.ImageSummary) int { return strings.Compare(x.References[0], y.References[0]) })
	return list, nil
}

// RemoveImage implements dbus.Backend.
func (b *Backend) RemoveImage(_ context.Context, ref string, _ bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.images[ref]; !ok {
		return pod.Errorf(pod.NotFound, "cannot remove image %s: no such image", ref)
	}
	delete(b.images, ref)
	return nil
}

// PruneImages implements dbus.Backend: there is always one image without a name.
func (b *Backend) PruneImages(context.Context) ([]string, error) {
	return []string{"sha256:" + strings.Repeat("ef", 32)}, nil
}

// TagImage implements dbus.Backend.
func (b *Backend) TagImage(_ context.Context, ref, newRef string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.images[newRef] = b.images[ref]
	return nil
}

// InspectImage implements dbus.Backend.
func (b *Backend) InspectImage(_ context.Context, ref string) ([]byte, error) {
	return fmt.Appendf(nil, `{"references":[%q]}`, ref), nil
}

// Classes implements dbus.Backend.
func (b *Backend) Classes() []pod.ClassInfo {
	return []pod.ClassInfo{{Name: pod.ClassContainers, Available: true, Reason: "crun 1.21"}}
}

// Info implements dbus.Backend.
func (b *Backend) Info() pod.HostInfo { return pod.HostInfo{Version: "0.0-test", Pods: len(b.List())} }

// Validate implements dbus.Backend.
func (b *Backend) Validate(_ context.Context, manifest []byte) ([]pod.Problem, error) {
	var p corev1.Pod
	if err := yaml.UnmarshalStrict(manifest, &p); err != nil {
		return []pod.Problem{{Severity: "error", Message: err.Error()}}, nil
	}
	return nil, nil
}

// Subscribe implements dbus.Backend.
func (b *Backend) Subscribe(notify func(pod.Notice)) func() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lastID++
	id := b.lastID
	b.listeners[id] = notify
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.listeners, id)
	}
}

// Change reports that the pod has changed, n times.
func (b *Backend) Change(ref pod.Ref, n int) {
	for i := range n {
		b.mu.Lock()
		d := *b.pods[ref.String()]
		d.Restarts = i + 1
		b.pods[ref.String()] = &d
		b.report(pod.Notice{Kind: pod.NoticePodChanged, Ref: ref})
		b.mu.Unlock()
	}
}
