package dbus

import (
	"context"
	"encoding/xml"
	"errors"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/magikrun/magikpod/dbus/client"
	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/internal/bustest"
	"github.com/magikrun/magikpod/internal/fakepods"
	"github.com/magikrun/magikpod/internal/podapi"
	"github.com/magikrun/magikpod/pod"
	"github.com/magikrun/magikpod/runtime"
)

// rule is an Authorizer that refuses the actions that are in it.
type rule map[Action]bool

func (r rule) Check(_ context.Context, _ string, action Action, _ bool) error {
	if r[action] {
		return errors.New("not today")
	}
	return nil
}

const webYAML = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: i}]}\n"

// serve runs a server with a fake daemon behind it and returns a client.
func serve(t *testing.T, auth Authorizer) (*Server, *fakepods.Backend, *client.Client, string) {
	t.Helper()
	address := bustest.Start(t)
	backend := fakepods.New()
	s, err := Serve(t.Context(), backend, ServerOptions{Address: address, Authorizer: auth})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(); backend.Close() })
	c, err := client.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return s, backend, c, address
}

// runWeb runs a pod called web.
func runWeb(t *testing.T, c *client.Client) godbus.ObjectPath {
	t.Helper()
	job, err := c.Run(t.Context(), []byte(webYAML), pod.RunOptions{})
	if err != nil {
		t.Fatal(err)
	}
	info, err := c.Wait(t.Context(), job, nil)
	if err != nil || !slices.Equal(info.Output, []string{"default/web"}) {
		t.Fatalf("job = %+v, %v; want the output default/web", info, err)
	}
	path, err := c.Pod(t.Context(), "default", "web")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPodLife(t *testing.T) {
	_, _, c, _ := serve(t, rule{})
	path := runWeb(t, c)
	list, err := c.List(t.Context(), "")
	if err != nil || len(list) != 1 || list[0].Name != "web" || list[0].Ready != 1 {
		t.Fatalf("list = %+v, %v", list, err)
	}
	if one, err := c.Summary(t.Context(), path); err != nil || !reflect.DeepEqual(one, list[0]) {
		t.Errorf("its properties are %+v (%v), in the list they are %+v", one, err, list[0])
	}
	if list, err := c.List(t.Context(), "other"); err != nil || len(list) != 0 {
		t.Errorf("another namespace has %+v, %v", list, err)
	}
	if _, err := c.Run(t.Context(), []byte(webYAML), pod.RunOptions{}); pod.KindOf(err) != pod.AlreadyExists {
		t.Errorf("second run: %v, want AlreadyExists", err)
	}
	job, err := c.Delete(t.Context(), path, pod.StopOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(t.Context(), job, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Manifest(t.Context(), path); pod.KindOf(err) != pod.NotFound {
		t.Errorf("manifest of a deleted pod: %v, want NotFound", err)
	}
	job, err = c.PullImage(t.Context(), "example.org/missing", pod.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(t.Context(), job, nil); pod.KindOf(err) != pod.NotFound {
		t.Errorf("failed job: %v, want its own NotFound", err)
	}
}

func TestEveryActionIsAsked(t *testing.T) {
	all := rule{ActionRead: true, ActionManagePods: true, ActionExec: true, ActionReadLogs: true, ActionManageImages: true}
	s, _, c, _ := serve(t, all)
	for path, set := range map[godbus.ObjectPath]map[string][]method{ManagerPath: managerObject, contract.PodPath("x"): podObject, contract.JobPath(7): jobObject} {
		for name, methods := range set {
			for _, m := range methods {
				if m.name == "Unsubscribe" || m.name == "ResizeTerminal" || m.name == "Set" {
					continue // need none: they concern the caller's own things, or always fail
				}
				args := zeroArgs(t, m.in)
				err := contract.FromBus(c.Conn().Object(BusName, path).Call(name+"."+m.name, 0, args...).Err)
				if pod.KindOf(err) != pod.Denied {
					t.Errorf("%s.%s: %v, want Denied", name, m.name, err)
				}
			}
		}
	}
	if since, ok := s.Idle(); !ok || since.IsZero() {
		t.Errorf("the server says that it is not idle")
	}
}

// zeroArgs makes arguments of a signature.
func zeroArgs(t *testing.T, sig string) []any {
	known := []struct {
		sig   string
		value any
	}{{"a{sv}", properties{}}, {"as", []string{}}, {"s", ""}, {"u", uint32(0)}, {"t", uint64(0)}, {"b", false}, {"i", int32(0)},
		{"q", uint16(0)}, {"v", godbus.MakeVariant("")}, {"h", godbus.UnixFD(os.Stderr.Fd())}}
	var args []any
next:
	for sig != "" {
		for _, k := range known {
			if rest, ok := strings.CutPrefix(sig, k.sig); ok {
				args, sig = append(args, k.value), rest
				continue next
			}
		}
		t.Fatalf("no value for %q", sig)
	}
	return args
}

type xmlNode struct {
	Interfaces []struct {
		Name    string `xml:"name,attr"`
		Methods []struct {
			Name string `xml:"name,attr"`
			Args []struct {
				Type      string `xml:"type,attr"`
				Direction string `xml:"direction,attr"`
			} `xml:"arg"`
		} `xml:"method"`
		Properties []struct {
			Name string `xml:"name,attr"`
			Type string `xml:"type,attr"`
		} `xml:"property"`
	} `xml:"interface"`
}

// TestIntrospection holds what is served to what is implemented: methods, signatures and properties.
func TestIntrospection(t *testing.T) {
	_, _, c, _ := serve(t, rule{})
	path := runWeb(t, c)
	detail := pod.Detail{}
	cases := []struct {
		path  godbus.ObjectPath
		iface string
		props properties
	}{
		{ManagerPath, ManagerInterface, properties{"Version": godbus.MakeVariant("")}},
		{path, PodInterface, podProperties(&detail)},
		{contract.JobPath(1), JobInterface, jobProperties(pod.JobInfo{})},
	}
	for _, test := range cases {
		var text string
		if err := c.Conn().Object(BusName, test.path).Call(introspectableInterface+".Introspect", 0).Store(&text); err != nil {
			t.Fatal(err)
		}
		var node xmlNode
		if err := xml.Unmarshal([]byte(text), &node); err != nil {
			t.Fatal(err)
		}
		served, implemented := map[string]string{}, map[string]string{}
		for _, i := range node.Interfaces {
			if i.Name == "org.freedesktop.DBus.Peer" {
				continue // godbus answers it
			}
			for _, m := range i.Methods {
				in, out := "", ""
				for _, a := range m.Args {
					if a.Direction == "in" {
						in += a.Type
					} else {
						out += a.Type
					}
				}
				served[i.Name+"."+m.Name] = in + "->" + out
			}
			for _, p := range i.Properties {
				served[i.Name+"."+p.Name] = p.Type
			}
		}
		set := maps.Clone((&Server{}).interfaces(test.path))
		set[introspectableInterface] = introspectMethods
		for name, methods := range set {
			for _, m := range methods {
				implemented[name+"."+m.name] = m.in + "->" + m.out
			}
		}
		for name, v := range test.props {
			implemented[test.iface+"."+name] = v.Signature().String()
		}
		if !maps.Equal(served, implemented) {
			t.Errorf("%s: served\n%v\nimplemented\n%v", test.path, served, implemented)
		}
	}
}

func TestReplySignatures(t *testing.T) {
	_, _, c, _ := serve(t, rule{})
	path := runWeb(t, c)
	for p, set := range map[godbus.ObjectPath]map[string][]method{ManagerPath: managerObject, path: podObject} {
		for name, methods := range set {
			for _, m := range methods {
				if m.out == "" || m.in != "" && m.in != "s" || m.action != ActionRead {
					continue
				}
				call := c.Conn().Object(BusName, p).Call(name+"."+m.name, 0, zeroArgs(t, m.in)...)
				if call.Err != nil {
					if m.name != "InspectImage" { // "" is no reference
						t.Errorf("%s: %v", m.name, call.Err)
					}
					continue
				}
				if got := len(call.Body); got != 1 {
					t.Errorf("%s returned %d values", m.name, got)
				}
			}
		}
	}
}

func TestNonsense(t *testing.T) {
	_, _, c, _ := serve(t, rule{})
	path := runWeb(t, c)
	big := strings.Repeat("#", 2<<20)
	v := func(x any) properties { return properties{"wait": godbus.MakeVariant(x)} }
	tests := []struct {
		name   string
		path   godbus.ObjectPath
		method string
		args   []any
		want   pod.Kind
		text   string
	}{
		{"2 MiB manifest", ManagerPath, "Manager.RunPod", []any{big, properties{}}, pod.Invalid, "1114112 are allowed"},
		{"unknown option", ManagerPath, "Manager.RunPod", []any{webYAML, properties{"color": godbus.MakeVariant("red")}}, pod.Invalid, `"color"`},
		{"option type", ManagerPath, "Manager.RunPod", []any{webYAML, v(true)}, pod.Invalid, `"wait"`},
		{"option value", ManagerPath, "Manager.RunPod", []any{webYAML, v("forever")}, pod.Invalid, `"wait": "forever" is none of none, started, ready, completed`},
		{"signature", ManagerPath, "Manager.RunPod", []any{uint32(1)}, pod.Invalid, "sa{sv}"},
		{"name", ManagerPath, "Manager.GetPod", []any{"default", "../etc"}, pod.Invalid, "../etc"},
		{"pid", ManagerPath, "Manager.GetPodByPID", []any{uint32(0)}, pod.Invalid, "process 0"},
		{"signal", path, "Pod.Kill", []any{"", int32(99)}, pod.Invalid, "99"},
		{"container", path, "Pod.Kill", []any{"other", int32(9)}, pod.NotFound, "other"},
		{"grace", path, "Pod.Stop", []any{uint64(301e6)}, pod.Invalid, "301 s"},
		{"no such pod", contract.PodPath("no"), "Pod.Start", nil, pod.NotFound, ""},
		{"no such job", contract.JobPath(99), "Job.Cancel", nil, pod.NotFound, "99"},
		{"no such method", path, "Pod.Fly", nil, pod.Unsupported, ""},
		{"no such object", "/org/magikpod1/nothing", "Pod.Start", nil, pod.Unsupported, ""},
		{"exec nothing", path, "Pod.Exec", []any{"", []string{}, properties{}, godbus.UnixFD(0), godbus.UnixFD(1), godbus.UnixFD(2)}, pod.Invalid, "no command"},
		{"image reference", ManagerPath, "Manager.PullImage", []any{"a b", properties{}}, pod.Invalid, "white space"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := contract.FromBus(c.Conn().Object(BusName, test.path).Call("org.magikpod1."+test.method, 0, test.args...).Err)
			if pod.KindOf(err) != test.want || !strings.Contains(err.Error(), test.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %s: %v; want one line, %s, with %q", pod.KindOf(err), err, test.want, test.text)
			}
		})
	}
}

func TestExec(t *testing.T) {
	s, _, c, _ := serve(t, rule{})
	path := runWeb(t, c)
	inR, inW, _ := os.Pipe()
	outR, outW, _ := os.Pipe()
	go func() { _, _ = io.WriteString(inW, "hello"); _ = inW.Close() }()
	p := client.Process{Args: []string{"sh", "-c", "cat; exit 7"}, Stdin: inR, Stdout: outW, Stderr: outW}
	code, err := c.Exec(t.Context(), path, "c", p, podapi.WinSize{})
	_ = outW.Close()
	text, _ := io.ReadAll(outR) // ends only if the server has closed its copies
	if err != nil || code != 7 || string(text) != "hello" {
		t.Fatalf("exec = %d, %v, output %q; want 7, hello", code, err, text)
	}
	logs, err := c.Logs(t.Context(), path, pod.LogOptions{Tail: 1})
	if err != nil {
		t.Fatal(err)
	}
	if text, _ := io.ReadAll(logs); string(text) != "three\n" {
		t.Errorf("logs = %q", text)
	}
	_ = logs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	p = client.Process{Args: []string{"/no/such/command"}, Stdin: null, Stdout: null, Stderr: null}
	if code, err := c.Exec(t.Context(), path, "c", p, podapi.WinSize{}); pod.KindOf(err) != pod.Invalid || code != runtime.ExitNotFound {
		t.Errorf("exec of a missing command = %d, %v; want 127, Invalid", code, err)
	}
	waitIdle(t, s)
}

func waitIdle(t *testing.T, s *Server) {
	t.Helper()
	for range 500 {
		if _, ok := s.Idle(); ok {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the server is still busy after 5 s")
}

// TestVanishedCaller checks that a process started by exec dies with the client that started it.
func TestVanishedCaller(t *testing.T) {
	s, _, c, address := serve(t, rule{})
	path := runWeb(t, c)
	other, err := client.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	r, w, _ := os.Pipe()
	go func() {
		p := client.Process{Args: []string{"sh", "-c", "echo up; exec sleep 1000"}, Stdin: os.Stdin, Stdout: w, Stderr: w}
		_, _ = other.Exec(context.Background(), path, "", p, podapi.WinSize{})
	}()
	go func() { _, _ = r.Read(make([]byte, 3)); close(started) }()
	<-started
	if _, ok := s.Idle(); ok {
		t.Error("the server says that it is idle while a process runs by exec")
	}
	other.Close()
	waitIdle(t, s)
}

// TestSlowClient checks that a subscriber that reads nothing holds nobody up, and that one that
// reads sees the last change.
func TestSlowClient(t *testing.T) {
	_, backend, c, address := serve(t, rule{})
	path := runWeb(t, c)
	slow, err := godbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = slow.Close() }()
	block := make(chan struct{})
	defer close(block)
	if err := slow.Object(BusName, ManagerPath).Call(ManagerInterface+".Subscribe", 0).Err; err != nil {
		t.Fatal(err)
	}
	slow.Signal(make(chan *godbus.Signal)) // nobody receives from it
	var last atomic.Uint32
	c.OnSignal(func(s client.Signal) {
		if s.Name == "PropertiesChanged" && s.Path == path {
			if n, ok := s.Body[1].(map[string]godbus.Variant)["Restarts"].Value().(uint32); ok {
				last.Store(n)
			}
		}
	})
	if err := c.Subscribe(t.Context()); err != nil {
		t.Fatal(err)
	}
	d, err := backend.Get("default", "web")
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	backend.Change(d.Ref, 20000)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("reporting 20000 changes took %s", took)
	}
	for range 500 {
		if last.Load() == 20000 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("the last change seen is %d, want 20000", last.Load())
}

func TestLeave(t *testing.T) {
	s, _, c, address := serve(t, rule{})
	runWeb(t, c)
	if err := c.Subscribe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.Leave() {
		t.Error("left although a client is subscribed")
	}
	c.Close()
	waitIdle(t, s)
	if !s.Leave() {
		t.Fatal("did not leave although idle")
	}
	other, err := client.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.List(t.Context(), ""); pod.KindOf(err) != pod.Unavailable {
		t.Errorf("list without a daemon: %v, want Unavailable", err)
	}
}

func TestErrorNames(t *testing.T) {
	for _, kind := range contract.Kinds {
		e := toBus(pod.Errorf(kind, "cannot x: \xff\x00y"))
		back := contract.FromBus(*e)
		if pod.KindOf(back) != kind || back.Error() != "cannot x: \uFFFD\uFFFDy" {
			t.Errorf("%s came back as %s: %v", kind, pod.KindOf(back), back)
		}
	}
}

func TestPaths(t *testing.T) {
	uid := "0d5c2a9e-1111-4222-8333-444455556666"
	path := contract.PodPath("0d5c2a9e-1111-4222-8333-444455556666")
	if path != "/org/magikpod1/pod/0d5c2a9e_2d1111_2d4222_2d8333_2d444455556666" || !path.IsValid() {
		t.Errorf("PodPath = %s", path)
	}
	if got, ok := contract.UIDOfPath(path); !ok || string(got) != uid {
		t.Errorf("uidOfPath = %s, %v", got, ok)
	}
	for _, bad := range []godbus.ObjectPath{"/org/magikpod1/pod/", "/org/magikpod1/pod/a_2", "/org/magikpod1/pod/a_2D", "/org/magikpod1/pod/_61", "/x"} {
		if uid, ok := contract.UIDOfPath(bad); ok {
			t.Errorf("uidOfPath(%s) = %q", bad, uid)
		}
	}
}

// TestForgedSignals checks that a client takes signals from magikpodd alone, also from one that was
// started after it.
func TestForgedSignals(t *testing.T) {
	address := bustest.Start(t)
	c, err := client.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	backend := fakepods.New()
	backend.Delay = time.Second
	s, err := Serve(t.Context(), backend, ServerOptions{Address: address, Authorizer: rule{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(); backend.Close() })
	other, err := godbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	job, err := c.Run(t.Context(), []byte(webYAML), pod.RunOptions{})
	if err != nil {
		t.Fatal(err)
	}
	forged := properties{"State": godbus.MakeVariant("failed"), "ErrorName": godbus.MakeVariant(contract.ErrorPrefix + "Denied"), "ErrorMessage": godbus.MakeVariant("forged")}
	me := c.Conn().Names()[0]
	_ = emitTo(other, me, "/org/freedesktop/DBus", "org.freedesktop.DBus.NameOwnerChanged", BusName, "", other.Names()[0])
	_ = emitTo(other, me, job, propertiesInterface+".PropertiesChanged", JobInterface, forged, []string{})
	_ = emitTo(other, me, ManagerPath, ManagerInterface+".JobRemoved", job, "failed")
	if info, err := c.Wait(t.Context(), job, nil); err != nil || !slices.Equal(info.Output, []string{"default/web"}) {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestServeWithoutABus(t *testing.T) {
	_, err := Serve(t.Context(), fakepods.New(), ServerOptions{Address: "unix:path=" + t.TempDir() + "/bus"})
	if pod.KindOf(err) != pod.Unavailable || strings.Count(err.Error(), "cannot connect to the system bus") != 1 {
		t.Errorf("got %v", err)
	}
}
