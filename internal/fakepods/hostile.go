package fakepods

import (
	"context"
	"errors"
	"fmt"
	"os"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/pod"
)

// Text is what a hostile container, registry or archive says: it would set a terminal's title and
// clipboard, clear it, go back in the line, turn the rest of it around, and begin a line of its
// own; it has NUL and bytes that are no UTF-8.
const Text = "red\x1b[31m\x1b]0;title\a\x1b]52;c;cm0=\x1b\\\x1b[2J\u009b2J\x9b2J\rback\b\x7f\u202eexe.\u2066\ufffe\x00\xff\nmagikpodctl: line\ttab\u2028"

// Hostile is a daemon whose containers, images and registries are. An archive with Text in it is an
// image of that name.
type Hostile struct{ *Backend }

func hostileSummary(s pod.Summary) pod.Summary {
	s.Phase, s.State, s.Class, s.Slice, s.IPs = "Running"+Text, Text, Text, Text, []string{Text}
	return s
}

func hostileDetail(d pod.Detail, err error) (pod.Detail, error) {
	if err != nil {
		return d, err
	}
	d.Summary = hostileSummary(d.Summary)
	d.Pod = d.Pod.DeepCopy()
	d.Pod.Annotations = map[string]string{"text": Text}
	d.Pod.Status.Message = Text
	d.Pod.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name: "c", Image: Text, ImageID: Text, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: Text, Message: Text}},
	}}
	d.Events = append(d.Events[:len(d.Events):len(d.Events)], hostileEvent(d.Events[0]))
	return d, nil
}

func hostileEvent(e pod.Event) pod.Event {
	e.Type, e.Reason, e.Container, e.Message = Text, Text, Text, Text
	return e
}

// Get implements dbus.Backend.
func (h Hostile) Get(namespace, name string) (pod.Detail, error) {
	return hostileDetail(h.Backend.Get(namespace, name))
}

// GetByUID implements dbus.Backend.
func (h Hostile) GetByUID(uid types.UID) (pod.Detail, error) {
	return hostileDetail(h.Backend.GetByUID(uid))
}

// List implements dbus.Backend.
func (h Hostile) List() []pod.Summary {
	list := h.Backend.List()
	for i := range list {
		list[i] = hostileSummary(list[i])
	}
	return list
}

func hostileJob(j pod.JobInfo) pod.JobInfo {
	j.Objects, j.Progress, j.Output = []string{Text}, Text, []string{Text}
	if j.Err != nil {
		j.Err = pod.WithKind(pod.KindOf(j.Err), fmt.Errorf("%w: %s", j.Err, Text))
	}
	return j
}

// Jobs implements dbus.Backend.
func (h Hostile) Jobs() []pod.JobInfo {
	list := h.Backend.Jobs()
	for i := range list {
		list[i] = hostileJob(list[i])
	}
	return list
}

// Job implements dbus.Backend.
func (h Hostile) Job(id uint32) (pod.JobInfo, bool) {
	j, ok := h.Backend.Job(id)
	return hostileJob(j), ok
}

// Subscribe implements dbus.Backend.
func (h Hostile) Subscribe(notify func(pod.Notice)) func() {
	return h.Backend.Subscribe(func(n pod.Notice) {
		n.Job, n.Event = hostileJob(n.Job), hostileEvent(n.Event)
		notify(n)
	})
}

// Logs implements dbus.Backend.
func (h Hostile) Logs(context.Context, pod.Ref, pod.LogOptions) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, pod.WithKind(pod.Exhausted, err)
	}
	h.wg.Go(func() {
		defer func() { _ = w.Close() }()
		_, _ = fmt.Fprintln(w, Text)
	})
	return r, nil
}

// ListImages implements dbus.Backend.
func (h Hostile) ListImages(context.Context) ([]pod.ImageSummary, error) {
	return []pod.ImageSummary{{ID: Text, Digest: Text, References: []string{Text}}}, nil
}

// InspectImage implements dbus.Backend.
func (h Hostile) InspectImage(context.Context, string) ([]byte, error) {
	return []byte(`{"config":{"Labels":{"a":"` + "\u009b2J\x9b2J\x7f\u202eexe.\u2066\U000e0041" + `\u001b[2J\u0000"}}}`), nil
}

// RemoveImage implements dbus.Backend.
func (h Hostile) RemoveImage(context.Context, string, bool) error { return errors.New(Text) }

// PruneImages implements dbus.Backend.
func (h Hostile) PruneImages(context.Context) ([]string, error) { return []string{Text}, nil }

// Classes implements dbus.Backend.
func (h Hostile) Classes() []pod.ClassInfo { return []pod.ClassInfo{{Name: Text, Reason: Text}} }

// Info implements dbus.Backend.
func (h Hostile) Info() pod.HostInfo { return pod.HostInfo{Version: Text, OCIRuntime: Text} }
