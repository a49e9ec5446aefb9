package dbus

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/dbus/contract"
	"github.com/magikrun/magikpod/internal/buslink"
	"github.com/magikrun/magikpod/internal/bustest"
	"github.com/magikrun/magikpod/internal/fakepods"
	"github.com/magikrun/magikpod/internal/testutil"
	"github.com/magikrun/magikpod/pod"
)

const nobody = 65534

// connectAs connects to the bus as another user.
func connectAs(t *testing.T, address string, uid int) *godbus.Conn {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	_, path, _ := strings.Cut(strings.Split(address, ",")[0], "unix:path=")
	if err := os.Chmod(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	type result struct {
		conn *godbus.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		// The kernel says to the bus who connected: the thread's user. The thread ends with the
		// goroutine.
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), 0); errno != 0 {
			done <- result{nil, errno}
			return
		}
		conn, err := godbus.Connect(address, godbus.WithAuth(godbus.AuthExternal(strconv.Itoa(uid))))
		done <- result{conn, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { _ = r.conn.Close() })
	return r.conn
}

// slow lets root's calls through, and others' when it is to.
type slow struct {
	server  atomic.Pointer[Server]
	asked   atomic.Int32
	through chan struct{}
}

func (a *slow) Check(ctx context.Context, sender string, _ Action, _ bool) error {
	if u := a.server.Load().gate.userOf(sender); u != nil && u.root() {
		return nil
	}
	a.asked.Add(1)
	select {
	case <-a.through:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// until waits for something that comes true in the end.
var until = testutil.Eventually

func TestCallsOfOneUserAreBounded(t *testing.T) {
	auth := &slow{through: make(chan struct{})}
	s, _, c, address := serve(t, auth)
	auth.server.Store(s)
	const clients, each = 5, 100
	answers := make(chan *godbus.Call, clients*each)
	var conns []*godbus.Conn
	for range clients {
		conns = append(conns, connectAs(t, address, nobody))
	}
	for _, conn := range conns {
		for range each {
			conn.Object(BusName, ManagerPath).Go(ManagerInterface+".GetHostInfo", 0, answers)
		}
	}
	next := func() *godbus.Call {
		select {
		case call := <-answers:
			return call
		case <-time.After(30 * time.Second):
			t.Fatal("a call above the limit is not refused")
			return nil
		}
	}
	for range clients*each - maxCalls {
		if err := contract.FromBus(next().Err); pod.KindOf(err) != pod.Exhausted {
			t.Fatalf("a call above the limit: %v, want Exhausted", err)
		}
	}
	if _, err := c.Info(t.Context()); err != nil {
		t.Errorf("root's call meanwhile: %v", err)
	}
	if n := auth.asked.Load(); n > maxCalls {
		t.Errorf("%d calls were taken, %d may be", n, maxCalls)
	}
	close(auth.through)
	for range maxCalls {
		if err := next().Err; err != nil {
			t.Errorf("a call that was taken: %v", err)
		}
	}
	until(t, "no calls", func() bool { _, ok := s.Idle(); return ok })
	if err := conns[0].Object(BusName, ManagerPath).Call(ManagerInterface+".GetHostInfo", 0).Err; err != nil {
		t.Errorf("after the flood: %v", err)
	}
}

// counting is a gate that counts the bytes of the bodies that were read.
type counting struct {
	*gate
	bytes atomic.Int64
}

func (c *counting) Deliver(m *buslink.Message) {
	c.bytes.Add(int64(m.BodyBytes))
	c.gate.Deliver(m)
}

// TestTooLongIsNotRead: what no method takes reaches neither the decoder nor a goroutine of its own.
func TestTooLongIsNotRead(t *testing.T) {
	address := bustest.Start(t)
	s := &Server{ctx: t.Context(), backend: fakepods.New(), auth: rule{}, watches: make(map[string]*watch), log: slog.New(slog.DiscardHandler)}
	s.gate = newGate(s)
	read := &counting{gate: s.gate}
	oracle, err := buslink.Connect(t.Context(), address, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = oracle.Close() }()
	s.gate.ask = func(sender string) (uint32, error) { return askUser(t.Context(), oracle, sender) }
	if s.conn, err = buslink.ConnectThrough(t.Context(), address, read, isCall, godbus.WithHandler(objects{s})); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.conn.Close() }()
	s.serving.Store(true)
	if err := s.own(); err != nil {
		t.Fatal(err)
	}
	other := connectAs(t, address, nobody)
	big := strings.Repeat("x", 8<<20)
	for _, test := range []struct {
		method string
		args   []any
	}{
		{ManagerInterface + ".RunPod", []any{big, properties{}}},
		{ManagerInterface + ".ValidateManifest", []any{big}},
		{ManagerInterface + ".GetPod", []any{"default", big[:maxArguments]}},
		{ManagerInterface + ".ListPods", []any{big}},
		{ManagerInterface + ".ListPods", []any{make([]godbus.Variant, 0)}},
		{"org.freedesktop.DBus.Peer.Ping", []any{big}},
	} {
		err := contract.FromBus(other.Object(BusName, ManagerPath).Call(test.method, 0, test.args...).Err)
		if !strings.HasSuffix(test.method, "Ping") && pod.KindOf(err) != pod.Invalid {
			t.Errorf("%s: %v, want Invalid", test.method, err)
		}
	}
	// A signal to us alone.
	signal := &godbus.Message{Type: godbus.TypeSignal, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldPath: godbus.MakeVariant(ManagerPath), godbus.FieldInterface: godbus.MakeVariant(ManagerInterface),
		godbus.FieldMember: godbus.MakeVariant("Event"), godbus.FieldDestination: godbus.MakeVariant(s.conn.Names()[0]),
		godbus.FieldSignature: godbus.MakeVariant(godbus.SignatureOf(big)),
	}, Body: []any{big}}
	other.Send(signal, nil)
	if err := other.Object(BusName, ManagerPath).Call(ManagerInterface+".GetHostInfo", 0).Err; err != nil {
		t.Error(err)
	}
	if n := read.bytes.Load(); n > 64<<10 {
		t.Errorf("%d bytes were read", n)
	}
}

// TestDeepVariants: godbus ends a connection when it cannot decode a message, and cannot decode all
// that the bus lets through.
func TestDeepVariants(t *testing.T) {
	_, _, c, address := serve(t, rule{})
	other := connectAs(t, address, nobody)
	for depth := 15; depth < 24; depth++ {
		for _, leaf := range []any{"x", properties{}, []string{}, []properties{}} {
			v := godbus.MakeVariant(leaf)
			for range depth {
				v = godbus.MakeVariant(properties{"x": v})
			}
			_ = other.Object(BusName, ManagerPath).Call(ManagerInterface+".CreatePod", 0, webYAML, properties{"namespace": v}).Err
			for range 3 {
				v = godbus.MakeVariant(v)
				_ = other.Object(BusName, ManagerPath).Call(ManagerInterface+".CreatePod", 0, webYAML, properties{"namespace": v}).Err
			}
			if !other.Connected() { // the bus has refused it
				other = connectAs(t, address, nobody)
			}
			if _, err := c.Info(t.Context()); err != nil {
				t.Fatalf("depth %d, %T: the server is gone: %v", depth, leaf, err)
			}
		}
	}
}

func TestUnknownFlagsAreIgnored(t *testing.T) {
	_, _, c, _ := serve(t, rule{})
	if err := c.Conn().Object(BusName, ManagerPath).Call(ManagerInterface+".GetHostInfo", godbus.FlagNoAutoStart).Err; err != nil {
		t.Error(err)
	}
}

func TestSubscribersOfOneUserAreBounded(t *testing.T) {
	s, _, c, address := serve(t, rule{})
	subscribe := func(conn *godbus.Conn) error {
		return contract.FromBus(conn.Object(BusName, ManagerPath).Call(ManagerInterface+".Subscribe", 0).Err)
	}
	var conns []*godbus.Conn
	for i := range maxSubscriptions + 3 {
		conn := connectAs(t, address, nobody)
		conns = append(conns, conn)
		err := subscribe(conn)
		if i < maxSubscriptions && err != nil || i >= maxSubscriptions && pod.KindOf(err) != pod.Exhausted {
			t.Fatalf("subscriber %d: %v", i+1, err)
		}
	}
	if err := c.Subscribe(t.Context()); err != nil {
		t.Errorf("root: %v", err)
	}
	for _, conn := range conns {
		_ = conn.Close()
	}
	until(t, "all but one have left", func() bool { return len(s.subscribers()) == 1 })
	if err := subscribe(connectAs(t, address, nobody)); err != nil {
		t.Errorf("after the others have left: %v", err)
	}
}

// busy is a daemon whose validation takes until its caller leaves.
type busy struct {
	*fakepods.Backend
	running, most, ended atomic.Int32
}

func (b *busy) Validate(ctx context.Context, _ []byte) ([]pod.Problem, error) {
	n := b.running.Add(1)
	for most := b.most.Load(); n > most && !b.most.CompareAndSwap(most, n); most = b.most.Load() {
	}
	<-ctx.Done()
	b.running.Add(-1)
	b.ended.Add(1)
	return nil, ctx.Err()
}

// TestValidationEndsWithItsCaller: and others' validations don't keep root's waiting.
func TestValidationEndsWithItsCaller(t *testing.T) {
	address := bustest.Start(t)
	backend := &busy{Backend: fakepods.New()}
	s, err := Serve(t.Context(), backend, ServerOptions{Address: address, Authorizer: rule{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(); backend.Close() })
	var conns []*godbus.Conn
	for i := range 4 { // of two users
		conn := connectAs(t, address, []int{nobody, 1}[i%2])
		conns = append(conns, conn)
		for range 3 {
			conn.Object(BusName, ManagerPath).Go(ManagerInterface+".ValidateManifest", 0, make(chan *godbus.Call, 1), "x")
		}
	}
	until(t, "one validation of the others", func() bool { return backend.running.Load() == 1 })
	root, err := buslink.Connect(t.Context(), address, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	root.Object(BusName, ManagerPath).Go(ManagerInterface+".ValidateManifest", 0, make(chan *godbus.Call, 1), "x")
	until(t, "root's validation", func() bool { return backend.running.Load() == 2 })
	_ = root.Close()
	until(t, "the end of root's", func() bool { return backend.ended.Load() == 1 })
	for _, conn := range conns {
		_ = conn.Close()
	}
	until(t, "the end of all", func() bool { _, idle := s.Idle(); return idle && backend.running.Load() == 0 })
	if n := backend.most.Load(); n > 2 {
		t.Errorf("%d validations at a time, want 2 at most", n)
	}
}

// TestPodOfOneWhoHasLeft: who asks for a pod need not wait for the answer.
func TestPodOfOneWhoHasLeft(t *testing.T) {
	s, _, c, address := serve(t, rule{})
	for range cap(s.gate.heavyRoot) { // it has to wait
		s.gate.heavyRoot <- struct{}{}
	}
	other, err := buslink.Connect(t.Context(), address, nil)
	if err != nil {
		t.Fatal(err)
	}
	other.Object(BusName, ManagerPath).Go(ManagerInterface+".RunPod", godbus.FlagNoReplyExpected, nil, webYAML, properties{})
	until(t, "the call", func() bool { // who leaves before he is known is nobody
		s.gate.mu.Lock()
		defer s.gate.mu.Unlock()
		return s.gate.running > 0
	})
	_ = other.Close()
	time.Sleep(50 * time.Millisecond)
	for range cap(s.gate.heavyRoot) {
		<-s.gate.heavyRoot
	}
	until(t, "the pod", func() bool { list, err := c.List(t.Context(), ""); return err == nil && len(list) == 1 })
}

// TestForgottenUsers: a user whose client is still there keeps his budget when others are forgotten.
func TestForgottenUsers(t *testing.T) {
	g := newGate(&Server{})
	g.mu.Lock()
	defer g.mu.Unlock()
	here, calling := g.user(maxPeers), g.user(maxPeers+1)
	g.peers[":1.1"] = &peer{user: here}
	calling.add(1, 0)
	for id := range uint32(maxPeers - 2) {
		g.user(id)
	}
	if g.user(maxPeers) != here || g.user(maxPeers+1) != calling || len(g.users) != 2 {
		t.Errorf("%d users are left", len(g.users))
	}
}

// TestPolkitIsAskedLittle: of a flood polkit hears a few questions at a time, and the same one not
// again at once.
func TestPolkitIsAskedLittle(t *testing.T) {
	address := bustest.Start(t)
	a := &crowd{}
	authority, err := buslink.Connect(t.Context(), address, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = authority.Close() }()
	if err := authority.Export(a, polkitPath, polkitInterface); err != nil {
		t.Fatal(err)
	}
	if _, err := authority.RequestName(polkitName, 0); err != nil {
		t.Fatal(err)
	}
	s, err := Serve(t.Context(), fakepods.New(), ServerOptions{Address: address})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	var wg sync.WaitGroup
	for range 10 {
		conn := connectAs(t, address, nobody)
		wg.Go(func() {
			for range 20 {
				if err := contract.FromBus(conn.Object(BusName, ManagerPath).Call(ManagerInterface+".GetHostInfo", 0).Err); pod.KindOf(err) != pod.Denied {
					t.Errorf("got %v, want Denied", err)
				}
			}
		})
	}
	wg.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.most > maxUserQuestions || a.asked > 100 {
		t.Errorf("polkit was asked %d times, %d at a time", a.asked, a.most)
	}
}

// crowd is a polkit that refuses, and counts.
type crowd struct {
	mu                  sync.Mutex
	asked, asking, most int
}

func (c *crowd) CheckAuthorization(subject, string, map[string]string, uint32, string) (answer, *godbus.Error) {
	c.mu.Lock()
	c.asked++
	c.asking++
	c.most = max(c.most, c.asking)
	c.mu.Unlock()
	time.Sleep(2 * time.Millisecond)
	c.mu.Lock()
	c.asking--
	c.mu.Unlock()
	return answer{Details: map[string]string{}}, nil
}
