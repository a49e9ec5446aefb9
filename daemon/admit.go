package daemon

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/magikrun/magikpod/pod"
)

// maxWarnings is after how many of them no pod's own are added: a manifest with many pods would
// have the same ones for each.
const maxWarnings = 100

// rollbackTimeout bounds the removal of the pods of a run that failed.
const rollbackTimeout = time.Minute

// read turns a manifest into values: parsed, defaults filled in, validated, also by the runtime classes.
// The end of ctx ends it between its steps, each of which is short.
func (d *Daemon) read(ctx context.Context, manifest []byte, namespace string) (*pod.Manifest, field.ErrorList, error) {
	m, errs, warnings, err := pod.Read(manifest, namespace, func() error { return context.Cause(ctx) })
	if err != nil {
		return nil, nil, err
	}
	for _, p := range m.Pods {
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		if len(errs) > 0 && len(p.Spec.Containers)+len(p.Spec.InitContainers) > pod.MaxContainers {
			continue // enough is known
		}
		if len(warnings) < maxWarnings {
			warnings = append(warnings, m.Of(p, d.ignoredLimits(p))...)
		}
		manager, err := d.registry.Get(pod.ClassOf(p))
		switch {
		case err == nil:
			errs = append(errs, m.Of(p, manager.Validate(p))...)
		case slices.Contains([]string{pod.ClassContainers, pod.ClassWasm, pod.ClassMicroVM}, pod.ClassOf(p)): // else Validate has said so
			unusable := field.NotSupported(field.NewPath("spec", "runtimeClassName"), pod.ClassOf(p), d.usableClasses())
			errs = append(errs, m.Of(p, field.ErrorList{unusable})...)
		}
	}
	if len(errs) > 0 {
		return nil, warnings, pod.InvalidError(errs)
	}
	return m, warnings, nil
}

func (d *Daemon) usableClasses() []string {
	var names []string
	for _, c := range d.registry.Classes() {
		if c.Available {
			names = append(names, c.Name)
		}
	}
	return names
}

// Validate returns every problem of the manifest on this host.
func (d *Daemon) Validate(ctx context.Context, manifest []byte) ([]pod.Problem, error) {
	_, warnings, err := d.read(ctx, manifest, "")
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return pod.ProblemsOf(err), nil
	}
	return pod.Problems(nil, warnings), nil
}

// Run admits the pods of a manifest and starts them as a job. When one of them cannot be started,
// or the job is cancelled or times out, all of them are removed again.
func (d *Daemon) Run(ctx context.Context, manifest []byte, o pod.RunOptions) (uint32, error) {
	m, warnings, err := d.read(ctx, manifest, o.Namespace)
	if err != nil {
		return 0, err
	}
	o.Wait = cmp.Or(o.Wait, pod.WaitStarted)
	r := &runJob{d: d, options: o, objects: manifestObjects(m)}
	for _, p := range pod.Problems(nil, warnings) {
		r.warnings = append(r.warnings, p.String())
	}
	for _, p := range m.Pods {
		r.pods = append(r.pods, d.newPod(p))
	}
	if err := d.reserve(r); err != nil {
		return 0, err
	}
	kind := "run"
	if o.NoStart {
		kind = "create"
	}
	id, err := d.jobs.start(ctx, kind, r.names(), r.timeout(), r.do)
	if err != nil {
		d.unreserve(r)
	}
	return id, err
}

// newPod gives an admitted pod its identity.
func (d *Daemon) newPod(p *corev1.Pod) *corev1.Pod {
	p.UID = newUID()
	p.Generation = 1
	p.CreationTimestamp = metav1.NewTime(time.Now().Truncate(time.Second))
	p.DeletionTimestamp = nil
	p.Spec.NodeName = d.host.Hostname
	p.Status = corev1.PodStatus{}
	if ips := d.hostIPs(); len(ips) > 0 {
		p.Status.HostIP = ips[0].String()
		p.Status.HostIPs = []corev1.HostIP{{IP: p.Status.HostIP}}
	}
	return p
}

// newUID makes a random UUID (RFC 9562, version 4).
func newUID() types.UID {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return types.UID(fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]))
}

// runJob is one RunPod or CreatePod.
type runJob struct {
	d       *Daemon
	options pod.RunOptions
	pods    []*corev1.Pod
	objects map[objectKey]*object
	// warnings are what of the manifest is not honoured.
	warnings []string
	old      []*worker // pods of the same names that go first
	workers  []*worker
}

func (r *runJob) names() []string {
	names := make([]string, 0, len(r.pods))
	for _, p := range r.pods {
		names = append(names, pod.RefOf(p).String())
	}
	return names
}

func (r *runJob) timeout() time.Duration {
	switch {
	case r.options.Timeout > 0:
		return r.options.Timeout
	case r.options.Wait == pod.WaitCompleted:
		return 0
	}
	return r.d.config.JobTimeout.Duration
}

// reserve takes the names of the pods. AlreadyExists: a name is taken; Exhausted: too many pods.
func (d *Daemon) reserve(r *runJob) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, name := range r.names() {
		if d.reserved[name] != nil {
			return pod.Errorf(pod.AlreadyExists, "cannot run pod %s: it is being created by somebody else", name)
		}
		if w := d.byName[name]; w != nil {
			if !r.options.Replace {
				return pod.Errorf(pod.AlreadyExists, "cannot run pod %s: there is one of that name (delete it, or use --replace)", name)
			}
			r.old = append(r.old, w)
		}
	}
	if have := len(d.byName) + len(d.reserved) - len(r.old); have+len(r.pods) > d.config.MaxPods {
		return pod.Errorf(pod.Exhausted, "cannot run %d pods: the limit is %d pods on this host, and there are %d", len(r.pods), d.config.MaxPods, have)
	}
	for _, name := range r.names() {
		d.reserved[name] = r
	}
	return nil
}

// unreserve gives up the names that r has taken and not used. Others may have taken some meanwhile,
// after a pod of r was deleted.
func (d *Daemon) unreserve(r *runJob) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, name := range r.names() {
		if d.reserved[name] == r {
			delete(d.reserved, name)
		}
	}
}

// do is the job.
func (r *runJob) do(ctx context.Context, job *job) ([]string, error) {
	defer r.d.unreserve(r)
	job.warn(r.warnings)
	err := r.deleteOld(ctx, job)
	if err == nil {
		err = r.admit()
	}
	began := time.Now()
	if err == nil {
		err = r.start(ctx, job)
	}
	if err != nil {
		return nil, r.rollBack(err)
	}
	if !r.options.NoStart && r.options.Wait == pod.WaitStarted {
		r.d.metrics.observeStart(time.Since(began))
	}
	if r.options.Wait == pod.WaitCompleted && !r.options.NoStart {
		err = r.waitCompleted(ctx, job)
	}
	return r.names(), err
}

// deleteOld deletes the pods that are replaced.
func (r *runJob) deleteOld(ctx context.Context, job *job) error {
	for _, w := range r.old {
		w.give(order{desired: pod.DesiredDelete})
	}
	for _, w := range r.old {
		if _, err := w.wait(ctx, func(s *snapshot) bool { job.meets(s.problem); return s.removed }); err != nil {
			return fmt.Errorf("cannot replace pod %s: %w", w.ref, err)
		}
	}
	return nil
}

// admit stores the objects and makes the pods' workers.
func (r *runJob) admit() error {
	var uids []types.UID
	for _, p := range r.pods {
		uids = append(uids, p.UID)
	}
	if err := r.d.objects.add(r.objects, uids, r.options.Replace); err != nil {
		return err
	}
	for _, p := range r.pods {
		desired := pod.DesiredRun
		if r.options.NoStart {
			desired = pod.DesiredStop
		}
		w, err := r.d.admit(p, desired)
		if err != nil {
			return errors.Join(err, r.releaseUnadmitted())
		}
		r.workers = append(r.workers, w)
	}
	return nil
}

// releaseUnadmitted gives up the objects of the pods that have no worker.
func (r *runJob) releaseUnadmitted() error {
	var errs []error
	for _, p := range r.pods[len(r.workers):] {
		errs = append(errs, r.d.objects.release(p.UID))
	}
	return errors.Join(errs...)
}

// start waits until each pod is as far as was asked for, and commits them.
func (r *runJob) start(ctx context.Context, job *job) error {
	waitCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	var first error // what made the others give up
	var once sync.Once
	for _, w := range r.workers {
		wg.Go(func() {
			if err := r.startOne(waitCtx, job, w); err != nil {
				once.Do(func() { first = err })
				cancel(err)
			}
		})
	}
	wg.Wait()
	if first != nil {
		return first
	}
	for _, w := range r.workers {
		if err := w.commitAndWait(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (r *runJob) startOne(ctx context.Context, job *job, w *worker) error {
	if r.options.NoStart || r.options.Wait == pod.WaitNone {
		return nil
	}
	var failure error
	snap, err := w.wait(ctx, func(s *snapshot) bool {
		job.progress(s.detail.State, 0)
		failure = startFailure(s)
		if failure != nil {
			return true
		}
		if r.options.Wait == pod.WaitReady {
			return pod.IsReady(s.Pod, s.Observation) || pod.IsFinished(s.Observation) && pod.Started(s.Pod, s.Observation)
		}
		return pod.Started(s.Pod, s.Observation)
	})
	switch {
	case err != nil:
		return notYet(w, snap, r.options.Wait, err)
	case failure != nil:
		return failure
	case r.options.Wait == pod.WaitReady && !pod.IsReady(snap.Pod, snap.Observation):
		return pod.Errorf(pod.Unavailable, "cannot run pod %s: it ended before it was ready (phase %s)", w.ref, snap.detail.Phase)
	}
	return nil
}

// startFailure is why a pod cannot come up; nil while there is hope. A stop or delete by somebody
// else ends the waiting too.
func startFailure(s *snapshot) error {
	switch {
	case s.removed || s.Desired != pod.DesiredRun:
		return pod.Errorf(pod.Conflict, "cannot run pod %s: somebody else has stopped or deleted it meanwhile", s.detail.Ref)
	case s.sandboxErr != nil:
		return pod.Errorf(pod.KindOf(s.sandboxErr), "cannot start pod %s: %w", s.detail.Ref, s.sandboxErr)
	}
	if err := pod.StartFailure(s.Pod, s.Observation); err != nil {
		return pod.Errorf(pod.KindOf(err), "cannot run pod %s: %w", s.detail.Ref, err)
	}
	return nil
}

// notYet words a wait that was ended by a timeout or a cancel.
func notYet(w *worker, s *snapshot, what pod.WaitMode, err error) error {
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var waiting []string
	for _, cs := range slices.Concat(s.Pod.Status.InitContainerStatuses, s.Pod.Status.ContainerStatuses) {
		switch {
		case cs.State.Waiting != nil:
			waiting = append(waiting, cs.Name+" is waiting ("+cs.State.Waiting.Reason+")")
		case cs.State.Running != nil && !cs.Ready:
			o := s.Containers[cs.Name]
			why := ""
			for _, p := range []pod.ProbeState{o.Startup, o.Readiness} {
				if p.Message != "" {
					why = ": " + p.Message
				}
			}
			waiting = append(waiting, cs.Name+" is not ready"+why)
		}
	}
	detail := ""
	if len(waiting) > 0 {
		detail = ": " + strings.Join(waiting, ", ")
	}
	return pod.Errorf(pod.Unavailable, "cannot wait any longer for pod %s to be %s%s: %w", w.ref, what, detail, err)
}

// rollBack removes the pods of a run that failed.
func (r *runJob) rollBack(cause error) error {
	ctx, cancel := context.WithTimeout(r.d.ctx, rollbackTimeout)
	defer cancel()
	zero := time.Duration(0)
	for _, w := range r.workers {
		w.give(order{desired: pod.DesiredDelete, grace: &zero})
	}
	for _, w := range r.workers {
		if _, err := w.wait(ctx, func(s *snapshot) bool { return s.removed }); err != nil && r.d.ctx.Err() == nil {
			return pod.Errorf(pod.KindOf(cause), "%w; pod %s is still being removed", cause, w.ref)
		}
	}
	return cause
}

// waitCompleted waits until every pod has ended. Unavailable: one of them has failed.
func (r *runJob) waitCompleted(ctx context.Context, job *job) error {
	var errs []error
	for _, w := range r.workers {
		snap, err := w.wait(ctx, func(s *snapshot) bool {
			job.progress(s.detail.State, 0)
			return pod.IsFinished(s.Observation)
		})
		switch {
		case err != nil:
			return notYet(w, snap, pod.WaitCompleted, err)
		case snap.removed:
			errs = append(errs, pod.Errorf(pod.Conflict, "cannot wait for pod %s to complete: it was deleted", w.ref))
		case snap.detail.Phase != string(corev1.PodSucceeded):
			errs = append(errs, pod.Errorf(pod.Unavailable, "pod %s has not succeeded: it is %s", w.ref, describeEnd(snap)))
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return firstKind(errors.Join(errs...), errs[0])
}

// describeEnd is how a pod failed.
func describeEnd(s *snapshot) string {
	text := s.detail.Phase
	for _, cs := range slices.Concat(s.Pod.Status.InitContainerStatuses, s.Pod.Status.ContainerStatuses) {
		if t := cs.State.Terminated; t != nil && t.ExitCode != 0 {
			text += fmt.Sprintf(", container %s ended with exit code %d (%s)", cs.Name, t.ExitCode, t.Reason)
		}
	}
	return text
}

// admit makes the worker of a new pod, whose name is reserved.
func (d *Daemon) admit(p *corev1.Pod, desired pod.Desired) (*worker, error) {
	manager, err := d.registry.Get(pod.ClassOf(p))
	if err != nil {
		return nil, err
	}
	w := d.newWorker(&record{Version: recordVersion, Pod: p, Observation: pod.Observation{Desired: desired, DesiredAt: time.Now()}}, manager)
	w.adopted = true
	// Before anything of the pod exists: a daemon that comes after a crash must know of it.
	r := *w.record
	if err := w.write(&r, false); err != nil {
		return nil, errors.Join(err, d.store.remove(p.UID))
	}
	d.add(w)
	d.notices.report(pod.Notice{Kind: pod.NoticePodNew, Ref: w.ref})
	for _, problem := range pod.Problems(nil, d.ignoredLimits(p)) {
		w.event(corev1.EventTypeWarning, "LimitNotEnforced", "", problem.Path+": "+problem.Message)
	}
	d.launch(w)
	return w, nil
}

// commitAndWait makes the pod one that stays.
func (w *worker) commitAndWait(ctx context.Context) error {
	w.mu.Lock()
	w.commit = true
	w.mu.Unlock()
	w.wake()
	snap, err := w.wait(ctx, func(s *snapshot) bool { return s.Committed || s.commitErr != nil })
	switch {
	case err != nil:
		return err
	case snap.removed:
		return pod.Errorf(pod.Conflict, "cannot run pod %s: somebody else has deleted it meanwhile", w.ref)
	}
	return snap.commitErr
}
