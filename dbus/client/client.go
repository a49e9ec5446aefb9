package client

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

	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/internal/buslink"
	"github.com/magikrun/magikpod/internal/errkind"
	"github.com/magikrun/magikpod/internal/podapi"
)

// Client calls magikpodd. Its errors carry the [errkind.Kind] that the daemon gave them; Unavailable:
// there is no bus or no daemon.
type Client struct {
	conn    *godbus.Conn
	welcome func() error // what the bus said to hello
	signals chan *godbus.Signal
	owner   *godbus.Call // the first answer to who magikpodd is
	listens sync.Once

	mu     sync.Mutex
	jobs   map[godbus.ObjectPath]*jobState
	notify func(Signal)
	done   chan struct{}
}

// properties are the values of one interface of one object.
type properties map[string]godbus.Variant

// Signal is a signal of the manager or of a pod or job, as it came.
type Signal struct {
	Path godbus.ObjectPath
	Name string // of the signal, without its interface
	Body []any
}

// Dial connects to the bus at address; "": the system bus.
func Dial(address string) (*Client, error) {
	isReply := func(m *godbus.Message) bool { return m.Type == godbus.TypeMethodReply }
	conn, welcome, err := buslink.Start(address, isReply, godbus.WithSignalHandler(godbus.NewSequentialSignalHandler()))
	if err != nil {
		return nil, contract.NoBus(err)
	}
	c := &Client{
		conn: conn, welcome: sync.OnceValue(func() error { return <-welcome }), signals: make(chan *godbus.Signal, 16),
		jobs: make(map[godbus.ObjectPath]*jobState), done: make(chan struct{}),
	}
	return c, nil
}

// listen takes in signals from now on, before the first call that any follow. Nobody waits for the
// bus's answers: that of the second comes before any signal of magikpodd's.
func (c *Client) listen() {
	c.listens.Do(func() {
		c.conn.Signal(c.signals)
		c.conn.BusObject().Go(contract.BusDriver+".AddMatch", godbus.FlagNoReplyExpected, nil,
			"type='signal',sender='"+contract.BusDriver+"',member='NameOwnerChanged',arg0='"+contract.BusName+"'")
		c.owner = c.conn.BusObject().Go(contract.BusDriver+".GetNameOwner", 0, make(chan *godbus.Call, 1), contract.BusName)
		go c.read()
	})
}

// Close ends the connection, and with it every process that Exec started.
func (c *Client) Close() {
	c.listens.Do(func() { close(c.done) })
	_ = c.conn.Close()
	<-c.done
}

// Conn is the connection to the bus, for calls that Client has no method for. It has a name, and its
// signals are taken in.
func (c *Client) Conn() *godbus.Conn {
	_ = c.welcome()
	c.listen()
	return c.conn
}

// Lost is closed when the connection is gone.
func (c *Client) Lost() <-chan struct{} { return c.conn.Context().Done() }

// read takes in signals until the connection ends. It runs from before a call that makes a job, so that
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
		if s.Sender == contract.BusDriver {
			if name == "NameOwnerChanged" && len(s.Body) == 3 && s.Body[0] == contract.BusName {
				owner, _ = s.Body[2].(string)
			}
			continue
		}
		if s.Sender != owner {
			continue
		}
		switch name {
		case "PropertiesChanged":
			if len(s.Body) == 3 && strings.HasPrefix(string(s.Path), contract.JobPrefix) {
				if props, ok := s.Body[1].(map[string]godbus.Variant); ok {
					c.update(s.Path, props, false)
				}
			}
		case "InterfacesAdded": // of a job whose owner is known from its beginning
			if len(s.Body) == 2 {
				path, _ := s.Body[0].(godbus.ObjectPath)
				interfaces, _ := s.Body[1].(map[string]map[string]godbus.Variant)
				if props, ok := interfaces[contract.JobInterface]; ok {
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
	defer time.AfterFunc(startCheck, func() { c.watchStart(ctx, cancel) }).Stop()
	call := c.conn.Object(contract.BusName, path).CallWithContext(ctx, method, godbus.FlagAllowInteractiveAuthorization, args...)
	if call.Err != nil {
		if ctx.Err() == nil {
			if err := c.welcome(); err != nil {
				return contract.NoBus(err)
			}
		}
		if _, ok := errors.AsType[*notStarted](context.Cause(ctx)); ok {
			return errkind.WithKind(errkind.Unavailable, context.Cause(ctx))
		}
		err := contract.FromBus(call.Err)
		if errkind.KindOf(err) == errkind.Unavailable && c.conn.Connected() {
			if _, why := c.whyNotStarted(context.WithoutCancel(ctx)); why != nil {
				return errkind.WithKind(errkind.Unavailable, why)
			}
		}
		return err
	}
	if err := call.Store(results...); err != nil {
		return errkind.Errorf(errkind.Internal, "cannot read the answer of magikpodd to %s: %w", method, err)
	}
	return nil
}

func (c *Client) manager(ctx context.Context, method string, args []any, results ...any) error {
	return c.call(ctx, contract.ManagerPath, contract.ManagerInterface+"."+method, args, results...)
}

func (c *Client) pod(ctx context.Context, path godbus.ObjectPath, method string, args []any, results ...any) error {
	return c.call(ctx, path, contract.PodInterface+"."+method, args, results...)
}

// job calls a method that makes a job.
func (c *Client) job(ctx context.Context, path godbus.ObjectPath, method string, args ...any) (job godbus.ObjectPath, err error) {
	c.listen()
	err = c.call(ctx, path, method, args, &job)
	return job, err
}

// Run runs (or, with o.NoStart, creates) the pods of the manifest and returns the job.
func (c *Client) Run(ctx context.Context, manifest []byte, o podapi.RunOptions) (job godbus.ObjectPath, err error) {
	if err := podapi.CheckManifestSize(manifest); err != nil { // a bus drops a client whose message is too large
		return "", err
	}
	opts := given(map[string]any{
		"namespace": o.Namespace, "replace": o.Replace, "wait": string(o.Wait), "timeout_usec": uint64(max(o.Timeout, 0).Microseconds()),
	})
	method := "RunPod"
	if o.NoStart {
		method = "CreatePod"
	}
	if contract.FitText(string(manifest)) != string(manifest) {
		return "", errkind.Errorf(errkind.Invalid, "cannot read the manifest: it is not UTF-8 text")
	}
	return c.job(ctx, contract.ManagerPath, contract.ManagerInterface+"."+method, string(manifest), opts)
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
func (c *Client) List(ctx context.Context, namespace string) ([]podapi.Summary, error) {
	var text string
	if err := c.manager(ctx, "SummarizePods", []any{namespace}, &text); err != nil {
		return nil, err
	}
	var rows []contract.PodSummary
	if err := json.Unmarshal([]byte(text), &rows); err != nil {
		return nil, errkind.Errorf(errkind.Internal, "cannot read the answer of magikpodd: %w", err)
	}
	list := make([]podapi.Summary, len(rows))
	for i, p := range rows {
		list[i] = podapi.Summary{
			Ref:   podapi.Ref{Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID)},
			Phase: p.Phase, State: p.State, Class: p.RuntimeClass, Ready: p.ReadyContainers, Total: p.TotalContainers, Restarts: p.Restarts,
			IPs: p.PodIPs, Created: contract.TimeOf(p.CreatedUSec), Slice: p.Slice,
		}
	}
	return list, nil
}

// summaryOf is the inverse of [summaryProperties].
func summaryOf(p properties) podapi.Summary {
	str := func(key string) string { s, _ := p[key].Value().(string); return s }
	num := func(key string) int { n, _ := p[key].Value().(uint32); return int(n) }
	ips, _ := p["PodIPs"].Value().([]string)
	created, _ := p["CreatedUSec"].Value().(uint64)
	return podapi.Summary{
		Ref:   podapi.Ref{Namespace: str("Namespace"), Name: str("Name"), UID: types.UID(str("UID"))},
		Phase: str("Phase"), State: str("State"), Class: str("RuntimeClass"), Ready: num("ReadyContainers"), Total: num("TotalContainers"),
		Restarts: num("Restarts"), IPs: ips, Created: contract.TimeOf(created), Slice: str("Slice"),
	}
}

// Summary returns the properties of one pod.
func (c *Client) Summary(ctx context.Context, path godbus.ObjectPath) (podapi.Summary, error) {
	var p properties
	if err := c.call(ctx, path, contract.PropertiesInterface+".GetAll", []any{contract.PodInterface}, &p); err != nil {
		return podapi.Summary{}, err
	}
	return summaryOf(p), nil
}

// Manifest returns the v1.Pod with its status, as JSON.
func (c *Client) Manifest(ctx context.Context, path godbus.ObjectPath) (text string, err error) {
	err = c.pod(ctx, path, "GetManifest", nil, &text)
	return text, err
}

// Events returns the newest events of a pod, oldest first.
func (c *Client) Events(ctx context.Context, path godbus.ObjectPath) ([]podapi.Event, error) {
	var rows []contract.EventRow
	if err := c.pod(ctx, path, "ListEvents", nil, &rows); err != nil {
		return nil, err
	}
	events := make([]podapi.Event, len(rows))
	for i, r := range rows {
		events[i] = podapi.Event{Time: contract.TimeOf(r.USec), Type: r.Type, Reason: r.Reason, Container: r.Container, Message: r.Message}
	}
	return events, nil
}

// Start starts a stopped pod.
func (c *Client) Start(ctx context.Context, path godbus.ObjectPath) (job godbus.ObjectPath, err error) {
	return c.job(ctx, path, contract.PodInterface+".Start")
}

// Stop stops a pod. A nil grace keeps the manifest's.
func (c *Client) Stop(ctx context.Context, path godbus.ObjectPath, grace *time.Duration) (job godbus.ObjectPath, err error) {
	return c.job(ctx, path, contract.PodInterface+".Stop", graceArg(grace))
}

func graceArg(grace *time.Duration) uint64 {
	if grace == nil {
		return contract.NoGrace
	}
	return uint64(max(grace.Microseconds(), 0))
}

// Restart stops a pod and starts it again.
func (c *Client) Restart(ctx context.Context, path godbus.ObjectPath) (job godbus.ObjectPath, err error) {
	return c.job(ctx, path, contract.PodInterface+".Restart")
}

// Delete deletes a pod.
func (c *Client) Delete(ctx context.Context, path godbus.ObjectPath, o podapi.StopOptions) (job godbus.ObjectPath, err error) {
	return c.job(ctx, path, contract.PodInterface+".DeleteWithGrace", o.Force, graceArg(o.Grace))
}

// Kill sends a signal to a container, or to all when container is "".
func (c *Client) Kill(ctx context.Context, path godbus.ObjectPath, container string, sig syscall.Signal) error {
	return c.pod(ctx, path, "Kill", []any{container, int32(sig)})
}

// Logs returns a pipe of log lines; the caller closes it.
func (c *Client) Logs(ctx context.Context, path godbus.ObjectPath, o podapi.LogOptions) (*os.File, error) {
	opts := given(map[string]any{
		"follow": o.Follow, "previous": o.Previous, "timestamps": o.Timestamps, "since_usec": contract.USec(o.Since),
	})
	opts["tail"] = godbus.MakeVariant(int64(o.Tail)) // 0 is none, and not all
	var fd godbus.UnixFD
	if err := c.pod(ctx, path, "GetLogs", []any{o.Container, opts}, &fd); err != nil {
		return nil, err
	}
	// Else a Close would not end a Read that waits.
	if err := syscall.SetNonblock(int(fd), true); err != nil {
		_ = syscall.Close(int(fd))
		return nil, errkind.Errorf(errkind.Internal, "cannot read the log: %w", err)
	}
	return os.NewFile(uintptr(fd), "logs"), nil
}

// Exec runs a process in a container and returns its exit status. It copies between pipes and p's
// files, which stay the caller's; what it has read of Stdin is gone, also when the process has not
// taken it. With an error of a command that could not be executed come 126 or 127, and the reason
// is on p's Stderr or terminal already.
func (c *Client) Exec(ctx context.Context, path godbus.ObjectPath, container string, p Process, size podapi.WinSize) (code int, err error) {
	opts := given(map[string]any{
		"tty": p.TTY, "env": p.Env, "working_dir": p.WorkingDir, "user": p.User, "rows": size.Rows, "cols": size.Cols,
	})
	files, err := newStdio(p)
	if err != nil {
		return 0, err
	}
	defer files.Close() // a read of the caller's own input goes on until there is some
	fd := func(i int) godbus.UnixFD { return godbus.UnixFD(files.Process[i].Fd()) }
	job, err := c.job(ctx, path, contract.PodInterface+".Exec", container, p.Args, opts, fd(0), fd(1), fd(2))
	if err != nil {
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
					_ = c.call(ctx, job, contract.JobInterface+".ResizeTerminal", []any{s.Rows, s.Cols})
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
func (c *Client) Subscribe(ctx context.Context) error {
	c.listen()
	return c.manager(ctx, "Subscribe", nil)
}

// Classes lists the runtime classes.
func (c *Client) Classes(ctx context.Context) (list []podapi.ClassInfo, err error) {
	err = c.manager(ctx, "ListRuntimeClasses", nil, &list)
	return list, err
}

// Info describes the daemon and its host.
func (c *Client) Info(ctx context.Context) (info podapi.HostInfo, err error) {
	var text string
	if err := c.manager(ctx, "GetHostInfo", nil, &text); err != nil {
		return info, err
	}
	if err := json.Unmarshal([]byte(text), &info); err != nil {
		return info, errkind.Errorf(errkind.Internal, "cannot read the answer of magikpodd: %w", err)
	}
	return info, nil
}

// Stats returns the resources that a pod uses, as JSON.
func (c *Client) Stats(ctx context.Context, path godbus.ObjectPath) (text string, err error) {
	err = c.pod(ctx, path, "GetStats", nil, &text)
	return text, err
}

// Event returns the event that the signal reports; ok is false when it reports something else.
func (s Signal) Event() (e podapi.Event, ok bool) {
	if s.Name != "Event" {
		return e, false
	}
	var at int64
	var path godbus.ObjectPath
	err := godbus.Store(s.Body, &at, &e.Type, &e.Reason, &path, &e.Object.Namespace, &e.Object.Name, &e.Container, &e.Message)
	e.Time = time.UnixMicro(at)
	e.Object.UID, _ = contract.UIDOfPath(path)
	return e, err == nil
}
