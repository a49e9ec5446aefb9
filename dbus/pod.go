package dbus

import (
	"syscall"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/pod"
)

// podMethods is org.magikpod1.Pod.
var podMethods = []method{
	{name: "Start", out: "o", action: ActionManagePods, handle: podJob((*call).start)},
	{name: "Stop", in: "t", out: "o", action: ActionManagePods, handle: podJob((*call).stop)},
	{name: "Restart", out: "o", action: ActionManagePods, handle: podJob((*call).restart)},
	{name: "Kill", in: "si", action: ActionManagePods, handle: (*call).kill},
	{name: "Delete", in: "b", out: "o", action: ActionManagePods, handle: podJob((*call).delete)},
	{name: "DeleteWithGrace", in: "bt", out: "o", action: ActionManagePods, handle: podJob((*call).delete)},
	{name: "Exec", in: "sasa{sv}hhh", out: "o", action: ActionExec, max: maxExecCall, handle: (*call).exec},
	{name: "OpenTerminal", in: "sasa{sv}", out: "oh", action: ActionExec, max: maxExecCall, handle: (*call).openTerminal},
	{name: "GetLogs", in: "sa{sv}", out: "h", action: ActionReadLogs, handle: (*call).getLogs},
	{name: "GetStats", out: "s", action: ActionRead, handle: (*call).getStats},
	{name: "GetManifest", out: "s", action: ActionRead, handle: (*call).getManifest},
	{name: "ListEvents", out: "a(tssss)", action: ActionRead, handle: (*call).listEvents},
}

// podJob answers with the path of a job that do starts for the pod that the call is for.
func podJob(do func(c *call, ref pod.Ref) (uint32, error)) func(*call) ([]any, error) {
	return func(c *call) ([]any, error) {
		ref, err := c.ref()
		if err != nil {
			return nil, err
		}
		id, err := do(c, ref)
		return c.job(id, err)
	}
}

// detail returns the pod that the call is for.
func (c *call) detail() (pod.Detail, error) {
	uid, _ := contract.UIDOfPath(c.path)
	return c.server.backend.GetByUID(uid)
}

// ref names the pod that the call is for.
func (c *call) ref() (pod.Ref, error) {
	d, err := c.detail()
	return d.Ref, err
}

func (c *call) start(ref pod.Ref) (uint32, error) { return c.server.backend.Start(c.ctx, ref) }

func (c *call) stop(ref pod.Ref) (uint32, error) {
	grace, err := grace(c.body[0].(uint64))
	if err != nil {
		return 0, err
	}
	return c.server.backend.Stop(c.ctx, ref, pod.StopOptions{Grace: grace})
}

// grace reads a grace_usec argument.
func grace(usec uint64) (*time.Duration, error) {
	if usec == NoGrace {
		return nil, nil
	}
	if usec > uint64(pod.MaxGracePeriod.Microseconds()) {
		return nil, pod.Errorf(pod.Invalid, "cannot use the grace period: %d s are more than the %d s that are allowed", usec/1e6, int(pod.MaxGracePeriod.Seconds()))
	}
	return new(time.Duration(usec) * time.Microsecond), nil
}

func (c *call) restart(ref pod.Ref) (uint32, error) {
	return c.server.backend.Restart(c.ctx, ref, pod.StopOptions{})
}

func (c *call) kill() ([]any, error) {
	container, sig := c.body[0].(string), c.body[1].(int32)
	if sig < 1 || sig > 64 { // signal(7): SIGRTMAX
		return nil, pod.Errorf(pod.Invalid, "cannot send signal %d: signals are 1 to 64", sig)
	}
	if err := checkContainer(container); err != nil {
		return nil, err
	}
	ref, err := c.ref()
	if err != nil {
		return nil, err
	}
	return nil, c.server.backend.Kill(c.ctx, ref, container, syscall.Signal(sig))
}

func checkContainer(name string) error {
	if name == "" {
		return nil
	}
	return checkName("container", name)
}

// delete serves Delete(b) and DeleteWithGrace(bt).
func (c *call) delete(ref pod.Ref) (_ uint32, err error) {
	o := pod.StopOptions{Force: c.body[0].(bool)}
	if len(c.body) > 1 {
		if o.Grace, err = grace(c.body[1].(uint64)); err != nil {
			return 0, err
		}
	}
	return c.server.backend.Delete(c.ctx, ref, o)
}

func (c *call) getLogs() ([]any, error) {
	var opts map[string]godbus.Variant
	o := pod.LogOptions{Tail: -1}
	if err := c.store(&o.Container, &opts); err != nil {
		return nil, err
	}
	tail, since := int64(-1), uint64(0)
	err := newOptions(opts).take("follow", &o.Follow).take("previous", &o.Previous).take("timestamps", &o.Timestamps).
		take("tail", &tail).take("since_usec", &since).end()
	if err != nil {
		return nil, err
	}
	if tail < -1 || tail > 1<<31-1 {
		return nil, pod.Errorf(pod.Invalid, `cannot use option "tail": %d is no number of lines`, tail)
	}
	o.Tail, o.Since = int(tail), contract.TimeOf(since)
	if err := checkContainer(o.Container); err != nil {
		return nil, err
	}
	ref, err := c.ref()
	if err != nil {
		return nil, err
	}
	ctx := c.ctx
	if o.Follow { // it waits for a container that has not been started yet, but not longer than the client does
		there, release := c.server.whileThere(ctx, c.sender)
		defer release()
		ctx = there
	}
	f, err := c.server.backend.Logs(ctx, ref, o)
	if err != nil {
		return nil, err
	}
	return c.reply(f)
}

func (c *call) getStats() ([]any, error) {
	ref, err := c.ref()
	if err != nil {
		return nil, err
	}
	stats, err := c.server.backend.Stats(c.ctx, ref)
	if err != nil {
		return nil, err
	}
	return jsonReply(stats)
}

func (c *call) getManifest() ([]any, error) {
	d, err := c.detail()
	if err != nil {
		return nil, err
	}
	return jsonReply(d.Pod)
}

func (c *call) listEvents() ([]any, error) {
	d, err := c.detail()
	if err != nil {
		return nil, err
	}
	rows := []contract.EventRow{}
	for _, e := range d.Events {
		rows = append(rows, contract.EventRow{USec: contract.USec(e.Time), Type: e.Type, Reason: e.Reason, Container: e.Container, Message: busText(e.Message)})
	}
	return []any{rows}, nil
}
