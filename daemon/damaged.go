package daemon

import (
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// reasonDamaged is the reason of the phase Unknown of a pod whose record cannot be used. It can be
// looked at and deleted, and nothing else.
const reasonDamaged = "RecordDamaged"

// adoptDamaged makes the worker of a pod that an earlier daemon has left without a record that can
// be used. Its name is taken as long as something of it may run: nil when nobody knows the name, or
// when there is another pod of that name.
func (d *Daemon) adoptDamaged(uid types.UID) (w *worker, warning string) {
	warning = "pod " + string(uid) + " has no usable record; what is left of it is kept"
	classes := d.registry.All()
	ref, ok := namedBy(classes, uid)
	if !ok || d.byName[ref.String()] != nil {
		return nil, warning
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ref.Namespace, Name: ref.Name, UID: uid}}
	p.Status = corev1.PodStatus{Phase: corev1.PodUnknown, Reason: reasonDamaged, Message: "The pod's record is damaged; what still runs goes on until the pod is deleted"}
	w = d.newWorker(&record{Version: recordVersion, Committed: true, Pod: p, Observation: pod.Observation{Desired: pod.DesiredRun, DesiredAt: time.Now()}}, everyClass{classes[0], classes})
	w.damaged = true
	w.event(corev1.EventTypeWarning, reasonDamaged, "", p.Status.Message)
	w.publish()
	d.add(w)
	return w, warning + " until pod " + ref.String() + " is deleted"
}

// namedBy asks the classes for the name of a pod.
func namedBy(classes []runtime.PodManager, uid types.UID) (pod.Ref, bool) {
	for _, m := range classes {
		if ref, err := m.Named(uid); err == nil {
			return ref, true
		}
	}
	return pod.Ref{}, false
}

// everyClass is the manager of a pod of which nobody knows the class: it removes what any of them
// may have made.
type everyClass struct {
	runtime.PodManager // one of them, for all that is refused by each
	all                []runtime.PodManager
}

// DeleteSandbox implements [runtime.PodManager].
func (c everyClass) DeleteSandbox(ctx context.Context, ref pod.Ref, grace time.Duration) (state pod.RuntimeState, err error) {
	for _, m := range c.all {
		if state, err = m.DeleteSandbox(ctx, ref, grace); err != nil {
			return state, err
		}
	}
	return state, nil
}

// Forget implements [runtime.PodManager].
func (c everyClass) Forget(ctx context.Context, ref pod.Ref) error {
	var errs []error
	for _, m := range c.all {
		errs = append(errs, m.Forget(ctx, ref))
	}
	return errors.Join(errs...)
}
