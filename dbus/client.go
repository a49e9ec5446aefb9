package dbus

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/internal/buslink"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// Client calls magikpodd. Its errors carry the [pod.Kind] that the daemon gave them; Unavailable:
// there is no bus or no daemon.
type Client struct {
	conn    *godbus.Conn
	signals chan *godbus.Signal
	owner   *godbus.Call // the first answer to who magikpodd is

	mu     sync.Mutex
	jobs   map[godbus.ObjectPath]*jobState
	notify func(Signal)
	done   chan struct{}
}

// Signal is a signal of the manager or of a pod or job, as it came.
type Signal struct {
	Path godbus.ObjectPath
	Name string // of the signal, without its interface
	Body []any
}

// Dial connects to the bus at address; "": the system bus.
func Dial(address string) (*Client, error) {
	isReply := func(m *godbus.Message) bool { return m.Type == godbus.TypeMethodReply }
	conn, err := buslink.Connect(context.Background(), address, isReply, godbus.WithSignalHandler(godbus.NewSequentialSignalHandler()))
	if err != nil {
		return nil, noBus(err)
	}
	c := &Client{conn: conn, signals: make(chan *godbus.Signal, 16), jobs: make(map[godbus.ObjectPath]*jobState), done: make(chan struct{})}
	conn.Signal(c.signals)
	// Nobody waits for these answers: that of the second comes before any signal of magikpodd's.
	conn.BusObject().Go(busDriver+".AddMatch", godbus.FlagNoReplyExpected, nil,
		"type='signal',sender='"+busDriver+"',member='NameOwnerChanged',arg0='"+BusName+"'")
	c.owner = conn.BusObject().Go(busDriver+".GetNameOwner", 0, make(chan *godbus.Call, 1), BusName)
	go c.read()
	return c, nil
}

func noBus(err error) error {
	return pod.Errorf(pod.Unavailable, "cannot connect to the system bus: %w", err)
}

// Close ends the connection, and with it every process that Exec started.
func (c *Client) Close() {
	_ = c.conn.Close()
	<-c.done
}

// Lost is closed when the connection is gone.
func (c *Client) Lost() <-chan struct{} { return c.conn.Context().Done() }

// read takes in signals until the connection ends. It runs from before the first call on, so that
// the end of a job that ends at once is not missed. Everybody on the bus may send us signals that
// look like magikpodd's.
func (c *Client) read() {
	defer close(c.done)
	var owner string
	select {
	case call := <-c.owner.Done:
		_ = call.Store(&owner) // it has not been started yet: the bus reports it
	case <-c.Lost():
	}
	for s := range c.signals {
		name := s.Name[strings.LastIndexByte(s.Name, '.')+1:]
		if s.Sender == busDriver {
			if name == "NameOwnerChanged" && len(s.Body) == 3 && s.Body[0] == BusName {
				owner, _ = s.Body[2].(string)
			}
			continue
		}
		if s.Sender != owner {
			continue
		}
		switch name {
		case "PropertiesChanged":
			if len(s.Body) == 3 && strings.HasPrefix(string(s.Path), jobPrefix) {
				if props, ok := s.Body[1].(map[string]godbus.Variant); ok {
					c.update(s.Path, props, false)
				}
			}
		case "InterfacesAdded": // of a job whose owner is known from its beginning
			if len(s.Body) == 2 {
				path, _ := s.Body[0].(godbus.ObjectPath)
				interfaces, _ := s.Body[1].(map[string]map[string]godbus.Variant)
				if props, ok := interfaces[JobInterface]; ok {
					c.update(path, props, false)
				}
			}
		case "JobRemoved":
			if len(s.Body) == 2 {
				if path, ok := s.Body[0].(godbus.ObjectPath); ok {
					result, _ := s.Body[1].(string)
					c.update(path, properties{"State": godbus.MakeVariant(result)}, true)
				}
			}
		}
		c.mu.Lock()
		notify := c.notify
		c.mu.Unlock()
		if notify != nil {
			notify(Signal{Path: s.Path, Name: name, Body: s.Body})
		}
	}
}

// OnSignal sets the function that is called for each signal, in order. It must not block for long;
// Subscribe makes them come.
func (c *Client) OnSignal(notify func(Signal)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.notify = notify
}

// call calls a method. The user may be asked for a password by polkit's agent.
func (c *Client) call(ctx context.Context, path godbus.ObjectPath, method string, args []any, results ...any) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go c.watchStart(ctx, cancel)
	call := c.conn.Object(BusName, path).CallWithContext(ctx, method, godbus.FlagAllowInteractiveAuthorization, args...)
	if call.Err != nil {
		if _, ok := errors.AsType[*notStarted](context.Cause(ctx)); ok {
			return pod.WithKind(pod.Unavailable, context.Cause(ctx))
		}
		err := fromBus(call.Err)
		if pod.KindOf(err) == pod.Unavailable && c.conn.Connected() {
			if _, why := c.whyNotStarted(context.WithoutCancel(ctx)); why != nil {
				return pod.WithKind(pod.Unavailable, why)
			}
		}
		return err
	}
	if err := call.Store(results...); err != nil {
		return pod.Errorf(pod.Internal, "cannot read the answer of magikpodd to %s: %w", method, err)
	}
	return nil
}

func (c *Client) manager(ctx context.Context, method string, args []any, results ...any) error {
	return c.call(ctx, ManagerPath, ManagerInterface+"."+method, args, results...)
}

func (c *Client) pod(ctx context.Context, path godbus.ObjectPath, method string, args []any, results ...any) error {
	return c.call(ctx, path, PodInterface+"."+method, args, results...)
}

// Run runs (or, with o.NoStart, creates) the pods of the manifest and returns the job.
func (c *Client) Run(ctx context.Context, manifest []byte, o pod.RunOptions) (job godbus.ObjectPath, err error) {
	if err := pod.CheckManifestSize(manifest); err != nil { // a bus drops a client whose message is too large
		return "", err
	}
	opts := given(map[string]any{
		"namespace": o.Namespace, "replace": o.Replace, "wait": string(o.Wait), "timeout_usec": uint64(max(o.Timeout, 0).Microseconds()),
	})
	method := "RunPod"
	if o.NoStart {
		method = "CreatePod"
	}
	if fitText(string(manifest)) != string(manifest) {
		return "", pod.Errorf(pod.Invalid, "cannot read the manifest: it is not UTF-8 text")
	}
	err = c.manager(ctx, method, []any{string(manifest), opts}, &job)
	return job, err
}

// given makes an a{sv} of the options that are not zero.
func given(options map[string]any) properties {
	p := make(properties)
	for name, value := range options {
		if !reflect.ValueOf(value).IsZero() {
			p[name] = godbus.MakeVariant(value)
		}
	}
	return p
}

// Pod returns the path of a pod.
func (c *Client) Pod(ctx context.Context, namespace, name string) (path godbus.ObjectPath, err error) {
	err = c.manager(ctx, "GetPod", []any{namespace, name}, &path)
	return path, err
}

// List returns the pods of a namespace; "": of all.
func (c *Client) List(ctx context.Context, namespace string) ([]pod.Summary, error) {
	var rows []podRow
	if err := c.manager(ctx, "DescribePods", []any{namespace}, &rows); err != nil {
		return nil, err
	}
	list := make([]pod.Summary, len(rows))
	for i, r := range rows {
		list[i] = summaryOf(r.Properties)
	}
	return list, nil
}

// summaryOf is the inverse of [summaryProperties].
func summaryOf(p properties) pod.Summary {
	str := func(key string) string { s, _ := p[key].Value().(string); return s }
	num := func(key string) int { n, _ := p[key].Value().(uint32); return int(n) }
	ips, _ := p["PodIPs"].Value().([]string)
	created, _ := p["CreatedUSec"].Value().(uint64)
	return pod.Summary{
		Ref:   pod.Ref{Namespace: str("Namespace"), Name: str("Name"), UID: types.UID(str("UID"))},
		Phase: str("Phase"), State: str("State"), Class: str("RuntimeClass"), Ready: num("ReadyContainers"), Total: num("TotalContainers"),
		Restarts: num("Restarts"), IPs: ips, Created: timeOf(created), Slice: str("Slice"),
	}
}

// Summary returns the properties of one pod.
func (c *Client) Summary(ctx context.Context, path godbus.ObjectPath) (pod.Summary, error) {
	var p properties
	if err := c.call(ctx, path, propertiesInterface+".GetAll", []any{PodInterface}, &p); err != nil {
		return pod.Summary{}, err
	}
	return summaryOf(p), nil
}

// Manifest returns the v1.Pod with its status, as JSON.
func (c *Client) Manifest(ctx context.Context, path godbus.ObjectPath) (text string, err error) {
	err = c.pod(ctx, path, "GetManifest", nil, &text)
	return text, err
}

// Events returns the newest events of a pod, oldest first.
func (c *Client) Events(ctx context.Context, path godbus.ObjectPath) ([]pod.Event, error) {
	var rows []eventRow
	if err := c.pod(ctx, path, "ListEvents", nil, &rows); err != nil {
		return nil, err
	}
	events := make([]pod.Event, len(rows))
	for i, r := range rows {
		events[i] = pod.Event{Time: timeOf(r.USec), Type: r.Type, Reason: r.Reason, Container: r.Container, Message: r.Message}
	}
	return events, nil
}

// Start starts a stopped pod.
func (c *Client) Start(ctx context.Context, path godbus.ObjectPath) (job godbus.ObjectPath, err error) {
	err = c.pod(ctx, path, "Start", nil, &job)
	return job, err
}

// Stop stops a pod. A nil grace keeps the manifest's.
func (c *Client) Stop(ctx context.Context, path godbus.ObjectPath, grace *time.Duration) (job godbus.ObjectPath, err error) {
	err = c.pod(ctx, path, "Stop", []any{graceArg(grace)}, &job)
	return job, err
}

func graceArg(grace *time.Duration) uint64 {
	if grace == nil {
		return NoGrace
	}
	return uint64(max(grace.Microseconds(), 0))
}

// Restart stops a pod and starts it again.
func (c *Client) Restart(ctx context.Context, path godbus.ObjectPath) (job godbus.ObjectPath, err error) {
	err = c.pod(ctx, path, "Restart", nil, &job)
	return job, err
}

// Delete deletes a pod.
func (c *Client) Delete(ctx context.Context, path godbus.ObjectPath, o pod.StopOptions) (job godbus.ObjectPath, err error) {
	err = c.pod(ctx, path, "DeleteWithGrace", []any{o.Force, graceArg(o.Grace)}, &job)
	return job, err
}

// Kill sends a signal to a container, or to all when container is "".
func (c *Client) Kill(ctx context.Context, path godbus.ObjectPath, container string, sig syscall.Signal) error {
	return c.pod(ctx, path, "Kill", []any{container, int32(sig)})
}

// Logs returns a pipe of log lines; the caller closes it.
func (c *Client) Logs(ctx context.Context, path godbus.ObjectPath, o pod.LogOptions) (*os.File, error) {
	opts := given(map[string]any{
		"follow": o.Follow, "previous": o.Previous, "timestamps": o.Timestamps, "since_usec": usec(o.Since),
	})
	opts["tail"] = godbus.MakeVariant(int64(o.Tail)) // 0 is none, and not all
	var fd godbus.UnixFD
	if err := c.pod(ctx, path, "GetLogs", []any{o.Container, opts}, &fd); err != nil {
		return nil, err
	}
	// Else a Close would not end a Read that waits.
	if err := syscall.SetNonblock(int(fd), true); err != nil {
		_ = syscall.Close(int(fd))
		return nil, pod.Errorf(pod.Internal, "cannot read the log: %w", err)
	}
	return os.NewFile(uintptr(fd), "logs"), nil
}

// Exec runs a process in a container and returns its exit status. It copies between pipes and p's
// files, which stay the caller's; what it has read of Stdin is gone, also when the process has not
// taken it. With an error of a command that could not be executed come 126 or 127, and the reason
// is on p's Stderr or terminal already.
func (c *Client) Exec(ctx context.Context, path godbus.ObjectPath, container string, p runtime.Process, size runtime.WinSize) (code int, err error) {
	opts := given(map[string]any{
		"tty": p.TTY, "env": p.Env, "working_dir": p.WorkingDir, "user": p.User, "rows": size.Rows, "cols": size.Cols,
	})
	files, err := newClientStdio(p)
	if err != nil {
		return 0, err
	}
	defer files.close() // a read of the caller's own input goes on until there is some
	var job godbus.ObjectPath
	fd := func(i int) godbus.UnixFD { return godbus.UnixFD(files.process[i].Fd()) }
	if err := c.pod(ctx, path, "Exec", []any{container, p.Args, opts, fd(0), fd(1), fd(2)}, &job); err != nil {
		return 0, err
	}
	files.start()
	done := make(chan struct{})
	defer close(done)
	if p.Resize != nil {
		go func() {
			for {
				select {
				case s := <-p.Resize:
					_ = c.call(ctx, job, JobInterface+".ResizeTerminal", []any{s.Rows, s.Cols})
				case <-done:
					return
				}
			}
		}()
	}
	info, err := c.Wait(ctx, job, nil)
	if info.ExitStatus != nil {
		code = *info.ExitStatus
	}
	if failed := files.wait(ctx); err == nil {
		err = failed
	}
	return code, err
}

// Subscribe makes all signals come; see OnSignal.
func (c *Client) Subscribe(ctx context.Context) error { return c.manager(ctx, "Subscribe", nil) }

// Classes lists the runtime classes.
func (c *Client) Classes(ctx context.Context) (list []pod.ClassInfo, err error) {
	err = c.manager(ctx, "ListRuntimeClasses", nil, &list)
	return list, err
}

// Info describes the daemon and its host.
func (c *Client) Info(ctx context.Context) (info pod.HostInfo, err error) {
	var text string
	if err := c.manager(ctx, "GetHostInfo", nil, &text); err != nil {
		return info, err
	}
	if err := json.Unmarshal([]byte(text), &info); err != nil {
		return info, pod.Errorf(pod.Internal, "cannot read the answer of magikpodd: %w", err)
	}
	return info, nil
}

// Stats returns the resources that a pod uses, as JSON.
func (c *Client) Stats(ctx context.Context, path godbus.ObjectPath) (text string, err error) {
	err = c.pod(ctx, path, "GetStats", nil, &text)
	return text, err
}

// Event returns the event that the signal reports; ok is false when it reports something else.
func (s Signal) Event() (e pod.Event, ok bool) {
	if s.Name != "Event" {
		return e, false
	}
	var at int64
	var path godbus.ObjectPath
	err := godbus.Store(s.Body, &at, &e.Type, &e.Reason, &path, &e.Object.Namespace, &e.Object.Name, &e.Container, &e.Message)
	e.Time = time.UnixMicro(at)
	e.Object.UID, _ = uidOfPath(path)
	return e, err == nil
}
