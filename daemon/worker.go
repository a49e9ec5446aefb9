package daemon

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/shim"
)

const (
	// maxEvents is how many events are remembered of a pod.
	maxEvents = 32
	// firstBackoff and maxBackoff bound the pause after a step that failed.
	firstBackoff = 200 * time.Millisecond
	maxBackoff   = 30 * time.Second
	// maxRepeats is how often the same steps may be carried out in a row without a pause: each is
	// meant to change something.
	maxRepeats = 10
)

// stepBackoff is the pause after a step that failed.
var stepBackoff = pod.Policy{BackoffInitial: firstBackoff, BackoffMax: maxBackoff}

// errNewOrder cuts a step short: a newer order has replaced it.
var errNewOrder = errors.New("a newer order has replaced it")

// order is what a user asks of a pod.
type order struct {
	desired pod.Desired
	at      time.Time
	grace   *time.Duration
	force   bool
	thenRun bool // with DesiredStop: start again when stopped
	fresh   bool // with DesiredRun: how the last run ended counts for nothing
}

// worker is the one goroutine that owns what is mutable about a pod.
type worker struct {
	d       *Daemon
	ref     pod.Ref
	manager runtime.PodManager
	log     *slog.Logger
	wakes   chan struct{} // of size 1: they coalesce
	arrived chan struct{} // closed when the goroutine has begun to sync: see arrive
	ended   chan struct{} // closed when the goroutine has ended

	mu       sync.Mutex // guards the next ones
	newest   *order
	orders   int // given so far
	commit   bool
	probed   []probeResult
	lastSaid []lastWords
	cut      context.CancelCauseFunc // ends the steps under way
	watchers chan struct{}           // closed at the next snapshot

	picture atomic.Pointer[snapshot]

	// Only the worker's goroutine touches what follows.
	record *record
	standing
	sandbox   *sandbox
	backoffs  map[backoffKey]*backoff
	last      []pod.Step // the steps of the last sync
	repeats   int        // how often they came in a row
	prober    *prober
	saved     *record // as last saved
	saveFault bool    // the last save failed
	adopted   bool    // the runtime knows the pod: what it says of it is true
	damaged   bool    // there is no record that could be saved; set before the goroutine runs
}

// backoff keeps a step that failed from being tried again at once.
type backoff struct {
	failures int
	until    time.Time
}

// backoffKey names a step that may have a backoff.
type backoffKey struct {
	op        pod.Op
	container string
}

// probeResult is one result of the prober.
type probeResult struct {
	ref     pod.ProbeRef
	ok      bool
	message string
	at      time.Time
}

// newWorker prepares a worker; run is its goroutine.
func (d *Daemon) newWorker(r *record, manager runtime.PodManager) *worker {
	ref := pod.RefOf(r.Pod)
	r.Policy = d.config.policy()
	w := &worker{
		d: d, ref: ref, manager: manager, record: r,
		log:   d.log.With(shim.FieldPod, ref.Name, shim.FieldNamespace, ref.Namespace, shim.FieldPodUID, string(ref.UID)),
		wakes: make(chan struct{}, 1), arrived: make(chan struct{}), ended: make(chan struct{}), watchers: make(chan struct{}), backoffs: make(map[backoffKey]*backoff),
	}
	w.prober = w.newProber()
	w.publish()
	return w
}

// wake has the worker sync once more; it never blocks.
func (w *worker) wake() {
	select {
	case w.wakes <- struct{}{}:
	default:
	}
}

// give hands the worker an order, which replaces those that it has not taken yet, and returns its
// number.
func (w *worker) give(o order) int {
	o.at = time.Now()
	w.mu.Lock()
	if w.newest != nil && o.desired == pod.DesiredRun && w.newest.fresh {
		o.fresh = true
	}
	w.newest = &o
	w.orders++
	n := w.orders
	if w.cut != nil {
		w.cut(errNewOrder)
	}
	w.mu.Unlock()
	w.wake()
	return n
}

// run syncs until the pod is removed or ctx ends.
func (w *worker) run(ctx context.Context) {
	defer close(w.ended)
	defer w.prober.Close()
	if w.arrive(ctx); ctx.Err() != nil {
		return
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		again, wakeAt := w.sync(ctx)
		if w.removed || ctx.Err() != nil {
			return
		}
		if again {
			continue
		}
		var alarm <-chan time.Time
		if !wakeAt.IsZero() {
			timer.Reset(max(time.Until(wakeAt), time.Millisecond))
			alarm = timer.C
		}
		select {
		case <-w.wakes:
		case <-alarm:
		case <-ctx.Done():
			return
		}
	}
}

// sync is one iteration: take orders, observe, publish, save, decide, act. again: the world was
// changed, look at once. wakeAt: look again then.
func (w *worker) sync(ctx context.Context) (again bool, wakeAt time.Time) {
	w.takeOrder()
	seen := w.adopt(ctx) && w.observe(ctx)
	now := time.Now()
	w.refresh(now)
	w.save()
	plan := w.plan(seen, now)
	w.prober.Set(w.record.Pod, w.record.PodIPs, plan.Probes, w.probeState)
	steps, backoffUntil := w.due(plan.Steps, now)
	wakeAt = earlier(plan.WakeAt, backoffUntil)
	if w.saveFault {
		wakeAt = earlier(wakeAt, now.Add(maxBackoff))
	}
	if len(steps) == 0 {
		return false, wakeAt
	}
	w.act(ctx, steps)
	w.countRepeats(steps)
	return true, wakeAt
}

// earlier is the earlier one of two times; zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// opAdopt is the step that comes before all others, for a pod that an earlier daemon has left.
const opAdopt pod.Op = "adopt"

// plan decides what to do. What is true of the pod may be unknown (seen is false): then nothing is
// done but what its user wants of it in any case, that it ends.
func (w *worker) plan(seen bool, now time.Time) pod.Plan {
	if seen {
		return pod.Next(w.record.Pod, w.record.Observation, now)
	}
	plan := pod.Plan{WakeAt: now.Add(maxBackoff)}
	if b := w.backoffs[backoffKey{op: opAdopt}]; b != nil {
		plan.WakeAt = b.until
	}
	if desired := w.record.Desired; !w.adopted && (desired == pod.DesiredStop || desired == pod.DesiredDelete) {
		plan.Steps = []pod.Step{{Op: pod.OpDeleteSandbox, Grace: pod.GraceLeft(w.record.Pod, w.record.Observation, now), Why: "the pod ends, whatever it is"}}
	}
	return plan
}

// arrive has the runtime know a pod that an earlier daemon has left, or try to. There may be many
// such pods, and each gets its turn; one that somebody gives an order for, or asks the runtime about,
// gets it at once.
func (w *worker) arrive(ctx context.Context) {
	defer close(w.arrived)
	select {
	case <-w.d.restored:
	case <-ctx.Done():
		return
	}
	if w.adopted || w.damaged {
		return
	}
	select {
	case <-w.wakes:
	case w.d.adopting <- struct{}{}:
		defer func() { <-w.d.adopting }()
	case <-ctx.Done():
		return
	}
	for w.tryAdopt(ctx, time.Since(w.d.began) < adoptPatience) {
		select {
		case <-time.After(firstBackoff):
		case <-ctx.Done():
		}
	}
}

// awaitArrival waits until the runtime knows the pod, or could not be made to.
func (w *worker) awaitArrival(ctx context.Context) error {
	select {
	case <-w.arrived:
		return nil
	default:
		w.wake()
	}
	select {
	case <-w.arrived:
		return nil
	case <-ctx.Done():
		return pod.WithKind(pod.Unavailable, context.Cause(ctx))
	}
}

// adoptPatience is for how long after the daemon's start a runtime that is not to be reached is
// asked again without a word: systemd may be executing itself anew.
const adoptPatience = 5 * time.Second

// tryAdopt has the runtime know the pod. again: it could not be reached, and who is patient tries
// again at once.
func (w *worker) tryAdopt(ctx context.Context, patient bool) (again bool) {
	err := w.manager.Adopt(ctx, w.ref)
	switch {
	case err == nil:
		w.adopted, w.problem = true, nil
		delete(w.backoffs, backoffKey{op: opAdopt})
	case ctx.Err() != nil:
	case patient && pod.KindOf(err) == pod.Unavailable:
		return true
	default:
		w.adoptFailed(err)
	}
	return false
}

// adopt tries again what arrive could not do.
func (w *worker) adopt(ctx context.Context) bool {
	if b := w.backoffs[backoffKey{op: opAdopt}]; !w.adopted && !w.damaged && (b == nil || !b.until.After(time.Now())) {
		w.tryAdopt(ctx, false)
	}
	return w.adopted
}

// adoptFailed remembers that the pod could not be adopted. Until it is, nothing is concluded and
// nothing is started.
func (w *worker) adoptFailed(err error) {
	w.failed(pod.Step{Op: opAdopt}, err)
	w.event(corev1.EventTypeWarning, "FailedAdopt", "", err.Error()+"; it is left alone, and adoption is tried again")
}

// countRepeats puts steps into backoff that come again and again: whatever goes wrong, the worker
// does not sync without end.
func (w *worker) countRepeats(steps []pod.Step) {
	if !slices.Equal(steps, w.last) {
		w.last, w.repeats = steps, 0
		return
	}
	if w.repeats++; w.repeats < maxRepeats {
		return
	}
	for _, s := range steps {
		w.log.Warn("the step has no effect: "+s.String(), "times", w.repeats+1)
		w.failed(s, errNoEffect)
	}
}

// errNoEffect is what is wrong with a step that comes again and again.
var errNoEffect = errors.New("the last step has had no effect")

// takeOrder makes the newest order the pod's desired state.
func (w *worker) takeOrder() {
	w.mu.Lock()
	o, n := w.newest, w.orders
	w.newest = nil
	w.mu.Unlock()
	w.taken = n
	r := w.record
	w.takeCommit()
	if o != nil {
		w.obey(o)
	}
	if w.adopted && r.Desired == pod.DesiredStop && r.ThenRun && r.Sandbox.Stage.Absent() {
		r.Desired, r.DesiredAt, r.Grace, r.ThenRun = pod.DesiredRun, time.Now(), nil, false
		r.Restart()
	}
}

// takeCommit makes the pod one that stays, if that was asked for.
func (w *worker) takeCommit() {
	w.mu.Lock()
	commit := w.commit
	w.mu.Unlock()
	if commit && !w.record.Committed && w.commitErr == nil {
		w.commitErr = w.commitNow()
	}
}

// obey applies one order.
func (w *worker) obey(o *order) {
	r := w.record
	switch {
	case r.Desired == pod.DesiredDelete && o.desired != pod.DesiredDelete:
		return // a delete cannot be undone
	case o.desired == pod.DesiredRun && r.Desired == pod.DesiredStop && !r.Sandbox.Stage.Absent():
		r.ThenRun = true // the stop is completed first
	case o.desired == pod.DesiredRun:
		r.Desired, r.DesiredAt, r.Grace, r.ThenRun = pod.DesiredRun, o.at, nil, false
		if o.fresh {
			r.Restart()
		}
		clear(w.backoffs)
	default:
		if r.Desired != o.desired || r.DesiredAt.IsZero() || o.grace != nil {
			r.DesiredAt = o.at
		}
		r.Desired, r.Grace, r.ThenRun = o.desired, o.grace, o.thenRun
		r.Force = r.Force || o.force
		clear(w.backoffs)
	}
}

// observe folds what the runtime sees, and what the probes have found, into the memory. It returns
// false when the runtime could not say: then the memory is as it was.
func (w *worker) observe(ctx context.Context) bool {
	state, err := w.manager.Observe(ctx, w.ref)
	if err != nil {
		if ctx.Err() == nil {
			w.log.Warn("cannot observe the pod", "error", err)
		}
	} else {
		w.fold(state)
	}
	w.mu.Lock()
	probed, said := w.probed, w.lastSaid
	w.probed, w.lastSaid = nil, nil
	w.mu.Unlock()
	for _, s := range said {
		w.foldLastWords(s)
	}
	for _, result := range probed {
		w.foldProbe(result)
	}
	return err == nil
}

// fold takes the runtime's facts in, and reports what ended.
func (w *worker) fold(state pod.RuntimeState) {
	r := w.record
	now := time.Now()
	next := pod.Fold(containerNames(r.Pod), r.Containers, state, now, w.d.config.policy())
	for name, o := range next {
		old := r.Containers[name]
		if o.Stage == pod.ContainerRunning && o.Frozen != old.Frozen && old.Attempt == o.Attempt {
			w.reportFrozen(name, o.Frozen)
		}
		if o.Stage == pod.ContainerExited && (old.Stage != pod.ContainerExited || old.Attempt != o.Attempt) {
			if o.Message == "" {
				o.Message = w.endMessage(name, &o)
				next[name] = o
			}
			w.askLog(name, &o)
			w.reportEnd(name, &o)
		}
	}
	if state.Sandbox.Stage == pod.SandboxDead && r.Sandbox.Stage != pod.SandboxDead {
		why := state.Sandbox.Message
		if state.Sandbox.StoppedByAdmin {
			why = "it was stopped through systemd; the pod stays down until it is started"
		}
		w.event(corev1.EventTypeWarning, "SandboxChanged", "", "The pod's sandbox is dead: "+why)
	}
	r.Containers, r.Sandbox = next, state.Sandbox
}

// save writes the record when it has changed; a new desired state is durable when it returns. A
// disk that is full stops nothing: the pod goes on, and every sync tries again.
func (w *worker) save() {
	if w.damaged {
		return
	}
	r, old := w.toSave(), w.saved
	if old != nil && !w.saveFault && reflect.DeepEqual(r, old) {
		return
	}
	durable := r.Committed && (old == nil || !old.Committed || r.Desired != old.Desired || r.ThenRun != old.ThenRun || r.Finished != old.Finished)
	err := w.write(r, durable)
	if err != nil && !w.saveFault {
		w.event(corev1.EventTypeWarning, "FailedSave", "", err.Error()+"; the pod runs on, and saving is tried again")
	}
	w.saveFault = err != nil
}

// toSave is the record as it is kept.
func (w *worker) toSave() *record {
	r := *w.record
	r.Containers = withoutRuns(r.Containers)
	return &r
}

// write saves r as the newest record.
func (w *worker) write(r *record, durable bool) error {
	r.Serial++
	err := w.d.store.save(r, durable)
	w.record.Serial, w.saved = r.Serial, r
	return err
}

// commitNow makes the pod one that stays: it is on the disk when this returns nil.
func (w *worker) commitNow() error {
	r := w.toSave()
	r.Committed = true
	if err := w.write(r, true); err != nil {
		w.saveFault = true
		return err
	}
	w.record.Committed = true
	return nil
}

// event remembers and reports something that happened.
func (w *worker) event(kind, reason, container, message string) {
	if len(message) > 4096 {
		message = message[:4096] + "..."
	}
	e := pod.Event{Time: time.Now(), Type: kind, Reason: reason, Object: w.ref, Container: container, Message: message}
	events := w.record.Events
	if len(events) >= maxEvents {
		events = events[len(events)-maxEvents+1:]
	}
	// A new slice: pictures hold the old one.
	w.record.Events = append(append(make([]pod.Event, 0, len(events)+1), events...), e)
	level := slog.LevelInfo
	if kind == corev1.EventTypeWarning {
		level = slog.LevelWarn
	}
	w.log.Log(context.Background(), level, message, "reason", reason, shim.FieldContainer, container)
	w.d.notices.report(pod.Notice{Kind: pod.NoticeEvent, Ref: w.ref, Event: e})
}
