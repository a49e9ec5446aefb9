package dbus

import (
	"encoding/json"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/pod"
)

const (
	// maxReference bounds the reference of an image, in bytes.
	maxReference = 4096
	// maxManifestCall is a manifest of the greatest size with its options; what is a little larger
	// gets an answer that says so.
	maxManifestCall = pod.MaxManifestBytes + 64<<10
)

// managerMethods is org.magikpod1.Manager.
var managerMethods = []method{
	{name: "RunPod", in: "sa{sv}", out: "o", action: ActionManagePods, max: maxManifestCall, heavy: true, handle: func(c *call) ([]any, error) { return c.run(false) }},
	{name: "CreatePod", in: "sa{sv}", out: "o", action: ActionManagePods, max: maxManifestCall, heavy: true, handle: func(c *call) ([]any, error) { return c.run(true) }},
	{name: "ValidateManifest", in: "s", out: "a(sss)", action: ActionRead, max: maxManifestCall, heavy: true, bound: true, handle: (*call).validate},
	{name: "GetPod", in: "ss", out: "o", action: ActionRead, handle: (*call).getPod},
	{name: "GetPodByPID", in: "u", out: "o", action: ActionRead, handle: (*call).getPodByPID},
	{name: "ListPods", out: "a(sssssuo)", action: ActionRead, heavy: true, bound: true, handle: (*call).listPods},
	{name: "DescribePods", in: "s", out: "a(oa{sv})", action: ActionRead, heavy: true, bound: true, handle: (*call).describePods},
	{name: "SummarizePods", in: "s", out: "s", action: ActionRead, heavy: true, bound: true, handle: (*call).summarizePods},
	{name: "ListJobs", out: "a(usso)", action: ActionRead, handle: (*call).listJobs},
	{name: "PullImage", in: "sa{sv}", out: "o", action: ActionManageImages, handle: (*call).pullImage},
	{name: "LoadImage", in: "h", out: "as", action: ActionManageImages, bound: true, handle: (*call).loadImage},
	{name: "LoadImageAs", in: "hs", out: "as", action: ActionManageImages, bound: true, handle: (*call).loadImage},
	{name: "LoadImageWithOptions", in: "ha{sv}", out: "as", action: ActionManageImages, bound: true, handle: (*call).loadImage},
	{name: "SaveImage", in: "ash", action: ActionManageImages, max: 1 << 20, bound: true, handle: (*call).saveImage},
	{name: "ListImages", out: "a(sasstxu)", action: ActionRead, heavy: true, bound: true, handle: (*call).listImages},
	{name: "RemoveImage", in: "sb", action: ActionManageImages, handle: (*call).removeImage},
	{name: "PruneImages", out: "as", action: ActionManageImages, handle: (*call).pruneImages},
	{name: "TagImage", in: "ss", action: ActionManageImages, handle: (*call).tagImage},
	{name: "InspectImage", in: "s", out: "s", action: ActionRead, handle: (*call).inspectImage},
	{name: "ListRuntimeClasses", out: "a(sbs)", action: ActionRead, handle: (*call).listClasses},
	{name: "GetHostInfo", out: "s", action: ActionRead, handle: (*call).hostInfo},
	{name: "Subscribe", action: ActionRead, handle: (*call).subscribe},
	{name: "Unsubscribe", handle: (*call).unsubscribe},
}

// objectManagerMethods is org.freedesktop.DBus.ObjectManager.
var objectManagerMethods = []method{
	{name: "GetManagedObjects", out: "a{oa{sa{sv}}}", action: ActionRead, heavy: true, bound: true, handle: (*call).managedObjects},
}

func (c *call) run(noStart bool) ([]any, error) {
	var manifest string
	var opts map[string]godbus.Variant
	if err := c.store(&manifest, &opts); err != nil {
		return nil, err
	}
	o, wait := pod.RunOptions{NoStart: noStart}, string(pod.WaitStarted)
	if noStart {
		wait = string(pod.WaitNone)
	}
	var timeout uint64
	err := newOptions(opts).take("namespace", &o.Namespace).take("replace", &o.Replace).take("wait", &wait).take("timeout_usec", &timeout).end()
	if err != nil {
		return nil, err
	}
	if o.Timeout, err = duration("timeout_usec", timeout); err != nil {
		return nil, err
	}
	if o.Wait, err = pod.ParseWaitMode(wait); err != nil {
		return nil, pod.Errorf(pod.Invalid, `cannot use option "wait": %w`, err)
	}
	if o.Namespace != "" {
		if err := checkName("namespace", o.Namespace); err != nil {
			return nil, err
		}
	}
	job, err := c.server.backend.Run(c.ctx, []byte(manifest), o)
	return c.job(job, err)
}

// job answers with the path of a job that the sender started.
func (c *call) job(id uint32, err error) ([]any, error) {
	if err != nil {
		return nil, err
	}
	return []any{contract.JobPath(id)}, nil
}

// duration checks a number of microseconds from the bus; 0 stays 0.
func duration(name string, usec uint64) (time.Duration, error) {
	if usec > uint64((365 * 24 * time.Hour).Microseconds()) {
		return 0, pod.Errorf(pod.Invalid, "cannot use option %q: %d is more than a year", name, usec)
	}
	return time.Duration(usec) * time.Microsecond, nil
}

// checkName refuses what can be no name of a pod, container or namespace, before it gets anywhere.
func checkName(what, name string) error {
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		return pod.Errorf(pod.Invalid, "cannot use %s name %q: %s", what, name, problems[0])
	}
	return nil
}

func (c *call) validate() ([]any, error) {
	problems, err := c.server.backend.Validate(c.ctx, []byte(c.body[0].(string)))
	if err != nil {
		return nil, err
	}
	type row struct{ Severity, Path, Message string }
	rows := []row{}
	for _, p := range problems {
		rows = append(rows, row{p.Severity, busText(p.Path), busText(p.Message)})
	}
	return []any{rows}, nil
}

func (c *call) getPod() ([]any, error) {
	var namespace, name string
	if err := c.store(&namespace, &name); err != nil {
		return nil, err
	}
	if namespace == "" {
		namespace = pod.DefaultNamespace
	}
	if err := checkName("namespace", namespace); err != nil {
		return nil, err
	}
	if err := checkName("pod", name); err != nil {
		return nil, err
	}
	d, err := c.server.backend.Get(namespace, name)
	if err != nil {
		return nil, err
	}
	return []any{contract.PodPath(d.UID)}, nil
}

func (c *call) getPodByPID() ([]any, error) {
	pid := c.body[0].(uint32)
	if pid == 0 || pid > 1<<22 { // PID_MAX_LIMIT, proc(5)
		return nil, pod.Errorf(pod.Invalid, "cannot find the pod of process %d: that is no process id", pid)
	}
	ref, err := c.server.backend.GetByPID(int(pid))
	if err != nil {
		return nil, err
	}
	return []any{contract.PodPath(ref.UID)}, nil
}

func (c *call) listPods() ([]any, error) {
	type row struct {
		Namespace, Name, UID, State, Class string
		Restarts                           uint32
		Path                               godbus.ObjectPath
	}
	rows := []row{}
	for _, p := range c.server.backend.List() {
		rows = append(rows, row{p.Namespace, p.Name, string(p.UID), p.State, p.Class, uint32(p.Restarts), contract.PodPath(p.UID)})
	}
	return []any{rows}, nil
}

func (c *call) describePods() ([]any, error) {
	namespace := c.body[0].(string)
	rows := []contract.PodRow{}
	for _, p := range c.server.backend.List() {
		if namespace == "" || p.Namespace == namespace {
			rows = append(rows, contract.PodRow{Path: contract.PodPath(p.UID), Properties: summaryProperties(&p)})
		}
	}
	return []any{rows}, nil
}

// summarizePods is describePods for many pods: a bus, and godbus, take ten times as long for
// dictionaries.
func (c *call) summarizePods() ([]any, error) {
	namespace := c.body[0].(string)
	list := []contract.PodSummary{}
	for _, p := range c.server.backend.List() {
		if namespace == "" || p.Namespace == namespace {
			list = append(list, contract.PodSummary{
				Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Phase: p.Phase, State: p.State, RuntimeClass: p.Class, Slice: p.Slice, Ready: isReady(&p),
				ReadyContainers: p.Ready, TotalContainers: p.Total, Restarts: p.Restarts, CreatedUSec: contract.USec(p.Created), PodIPs: p.IPs,
			})
		}
	}
	text, err := json.Marshal(list)
	return []any{string(text)}, err
}

func (c *call) listJobs() ([]any, error) {
	type row struct {
		ID          uint32
		Kind, State string
		Path        godbus.ObjectPath
	}
	rows := []row{}
	for _, j := range c.server.backend.Jobs() {
		rows = append(rows, row{j.ID, j.Kind, j.State, contract.JobPath(j.ID)})
	}
	return []any{rows}, nil
}

func (c *call) listClasses() ([]any, error) {
	type row struct {
		Name      string
		Available bool
		Reason    string
	}
	rows := []row{}
	for _, class := range c.server.backend.Classes() {
		rows = append(rows, row{class.Name, class.Available, busText(class.Reason)})
	}
	return []any{rows}, nil
}

func (c *call) hostInfo() ([]any, error) {
	return jsonReply(c.server.backend.Info())
}

// jsonReply answers with v as JSON text.
func jsonReply(v any) ([]any, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, pod.Errorf(pod.Internal, "cannot encode the answer: %w", err)
	}
	return []any{string(text)}, nil
}

func (c *call) subscribe() ([]any, error) {
	return nil, c.server.subscribeClient(c.sender, c.ticket.user)
}

func (c *call) unsubscribe() ([]any, error) {
	c.server.unsubscribeClient(c.sender)
	return nil, nil
}

func (c *call) managedObjects() ([]any, error) {
	all := make(map[godbus.ObjectPath]map[string]properties)
	for _, summary := range c.server.backend.List() {
		d, err := c.server.backend.GetByUID(summary.UID)
		if err != nil {
			continue // gone since
		}
		all[contract.PodPath(d.UID)] = map[string]properties{PodInterface: podProperties(&d)}
	}
	for _, j := range c.server.backend.Jobs() {
		all[contract.JobPath(j.ID)] = map[string]properties{JobInterface: jobProperties(j)}
	}
	return []any{all}, nil
}
