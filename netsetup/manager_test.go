package netsetup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/magikrun/magikpod/pod"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

func wantKind(t *testing.T, err error, kind pod.Kind, text string) {
	t.Helper()
	if pod.KindOf(err) != kind || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%s error %v, want %s with %q on one line", pod.KindOf(err), err, kind, text)
	}
}

func TestConfig(t *testing.T) {
	for _, tt := range []struct {
		want string
		cfg  Config
	}{
		{"bridge name", Config{Bridge: "a-name-that-is-too-long"}},
		{"bridge name", Config{Bridge: "a\";"}},
		{"table name", Config{Table: "a b"}},
		{"IPv4 subnet", Config{IPv4: netip.MustParsePrefix("10.0.0.0/30")}},
		{"IPv4 subnet", Config{IPv4: netip.MustParsePrefix("10.0.0.1/24")}},
		{"IPv4 subnet", Config{IPv4: netip.MustParsePrefix("fd00::/64")}},
		{"IPv6 subnet", Config{IPv6: netip.MustParsePrefix("10.0.0.0/16")}},
		{"IPv6 subnet", Config{IPv6: netip.MustParsePrefix("fd00::/126")}},
	} {
		if m, err := New(tt.cfg); err == nil {
			m.Close()
			t.Errorf("%+v was accepted", tt.cfg)
		} else {
			wantKind(t, err, pod.Invalid, tt.want)
		}
	}
}

func TestNetworkOf(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	p := &corev1.Pod{}
	p.Namespace, p.Name, p.UID = "default", "web", "u"
	p.Spec.InitContainers = []corev1.Container{{RestartPolicy: &always, Ports: []corev1.ContainerPort{{HostPort: 1, ContainerPort: 2, Protocol: "UDP", HostIP: "::"}}}}
	p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{ContainerPort: 3}, {HostPort: 4, ContainerPort: 5}}}}
	got, err := NetworkOf(p)
	if want := "{u default/web [[::]:1/UDP *:4/]}"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("%v, %v; want %s", got, err, want)
	}
	p.Spec.Containers[0].Ports[1].HostIP = "localhost"
	_, err = NetworkOf(p)
	wantKind(t, err, pod.Invalid, "localhost")
}

func TestConflicts(t *testing.T) {
	m := newManager(t)
	l, err := net.Listen("tcp", "127.0.0.1:9000")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	u, err := net.ListenPacket("udp6", "[::]:9001")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	newPod(t, m, "first", Port{HostPort: 8080, Port: 80}, Port{HostPort: 8081, Port: 80, HostIP: netip.MustParseAddr("127.0.0.1")})
	ns := newNS(t)
	for _, tt := range []struct {
		name, want string
		kind       pod.Kind
		port       Port
	}{
		{"another pod", "default/first", pod.Conflict, Port{HostPort: 8080, Port: 1}},
		{"another pod, one address", "default/first", pod.Conflict, Port{HostPort: 8080, Port: 1, HostIP: netip.MustParseAddr("127.0.0.1")}},
		{"another pod's address", "default/first", pod.Conflict, Port{HostPort: 8081, Port: 1}},
		{"a process", "*:9000/TCP: a process", pod.Conflict, Port{HostPort: 9000, Port: 1}},
		{"a process, UDP on IPv6", "*:9001/UDP: a process", pod.Conflict, Port{HostPort: 9001, Port: 1, Protocol: corev1.ProtocolUDP}},
		{"a foreign address", "192.0.2.99:1000/TCP: the host does not have", pod.Invalid, Port{HostPort: 1000, Port: 1, HostIP: netip.MustParseAddr("192.0.2.99")}},
		{"::1", "use 127.0.0.1", pod.Unsupported, Port{HostPort: 1000, Port: 1, HostIP: netip.IPv6Loopback()}},
		{"no port", "two ports", pod.Invalid, Port{HostPort: 1000}},
		{"no protocol", "TCP, UDP or SCTP", pod.Invalid, Port{HostPort: 1000, Port: 1, Protocol: "ICMP"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := m.Setup(t.Context(), PodNetwork{UID: "second", Name: "default/second", Ports: []Port{tt.port}}, ns)
			wantKind(t, err, tt.kind, tt.want)
		})
	}
	_, err = m.Setup(t.Context(), PodNetwork{UID: "second", Ports: []Port{{HostPort: 1, Port: 1}, {HostPort: 1, Port: 2}}}, ns)
	wantKind(t, err, pod.Conflict, "the pod publishes")
	// Elsewhere than the other's.
	newPod(t, m, "third", Port{HostPort: 8080, Port: 80, Protocol: corev1.ProtocolUDP}, Port{HostPort: 8081, Port: 80, HostIP: netip.IPv6Unspecified()})

	// A pod's port is taken for processes of the host until it is torn down.
	if l, err := net.Listen("tcp", ":8080"); err == nil {
		l.Close()
		t.Error("a process could listen on a pod's port")
	}
	if err := m.Teardown(t.Context(), "first"); err != nil {
		t.Fatal(err)
	}
	l2, err := net.Listen("tcp", ":8080")
	if err != nil {
		t.Fatal(err)
	}
	l2.Close()
}

// TestLeftConnection: a port whose server has ended, but which has a connection in TIME_WAIT, is free.
func TestLeftConnection(t *testing.T) {
	m := newManager(t)
	l, err := net.Listen("tcp4", "127.0.0.1:9100")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp4", "127.0.0.1:9100")
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s.Close() // first: this end waits
	_, _ = c.Read(make([]byte, 1))
	c.Close()
	l.Close()
	if _, err := bound(Port{HostPort: 9100, Protocol: corev1.ProtocolTCP}, netip.IPv4Unspecified(), false); err == nil {
		t.Skip("the kernel has dropped the connection already")
	}
	newPod(t, m, "a", Port{HostPort: 9100, Port: 80})
}

func TestOverlappingRoute(t *testing.T) {
	for _, tt := range []struct {
		subnet string
		cfg    func(*Config)
	}{
		{"192.0.2.0/24", func(c *Config) { c.IPv4 = netip.MustParsePrefix("192.0.0.0/16") }},
		{"2001:db8::/64", func(c *Config) { c.IPv6 = netip.MustParsePrefix("2001:db8::/56") }},
	} {
		t.Run(tt.subnet, func(t *testing.T) {
			m := newManager(t, tt.cfg)
			newLAN(t)
			_, err := m.Setup(t.Context(), PodNetwork{UID: "a"}, newNS(t))
			wantKind(t, err, pod.Conflict, "overlaps the host's route "+tt.subnet+" via lan0")
		})
	}
}

func TestForeignBridge(t *testing.T) {
	m := newManager(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = DefaultBridge
	br := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(br); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netlink.LinkDel(br); err != nil {
			t.Error(err)
		}
	}()
	_, err := m.Setup(t.Context(), PodNetwork{UID: "a"}, newNS(t))
	wantKind(t, err, pod.Conflict, "not magikpod's")
	if err := m.Restore(t.Context(), func(types.UID) bool { return true }); err != nil {
		t.Error(err)
	}
}

func TestWrongNamespace(t *testing.T) {
	m := newManager(t)
	host, err := os.Open(threadNS)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	_, err = m.Setup(t.Context(), PodNetwork{UID: "a"}, host)
	wantKind(t, err, pod.Invalid, "host's namespace")
	_, err = m.Setup(t.Context(), PodNetwork{UID: "a"}, nil)
	wantKind(t, err, pod.Invalid, "no network namespace")
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err = m.Setup(t.Context(), PodNetwork{UID: "a"}, null); err == nil {
		t.Error("/dev/null was taken for a namespace")
	}
	_, err = m.Setup(t.Context(), PodNetwork{}, newNS(t))
	wantKind(t, err, pod.Invalid, "without uid")
}

func TestNoNft(t *testing.T) {
	m := newManager(t, func(c *Config) { c.NftPath = "/nonexistent/nft" })
	_, err := m.Setup(t.Context(), PodNetwork{UID: "a"}, newNS(t))
	// The removal of the table that was never made fails as well; the text of the first comes first.
	if pod.KindOf(err) != pod.Unsupported || !strings.Contains(err.Error(), "install the package nftables") {
		t.Errorf("%s error %v", pod.KindOf(err), err)
	}
}

func TestExhausted(t *testing.T) {
	m := newManager(t, func(c *Config) { c.IPv4 = netip.MustParsePrefix("10.213.0.0/29") })
	for i := range 5 {
		newPod(t, m, fmt.Sprint(i))
	}
	ns := newNS(t)
	_, err := m.Setup(t.Context(), PodNetwork{UID: "x"}, ns)
	wantKind(t, err, pod.Exhausted, "10.213.0.0/29")
	// The address of a pod that is being removed is waited for.
	r, _ := m.Lookup("3")
	if err := m.Teardown(t.Context(), "3"); err != nil {
		t.Fatal(err)
	}
	got, err := m.Setup(t.Context(), PodNetwork{UID: "x"}, ns)
	if err != nil || got.IPs[0] != r.IPs[0] {
		t.Errorf("%v, %v; want %s", got, err, r.IPs[0])
	}
}

// TestAgain: a second Setup leaves what is as wanted, and makes what is not: a new namespace, other ports, a lost address.
func TestAgain(t *testing.T) {
	m := newManager(t)
	ns, first := newPod(t, m, "a", Port{HostPort: 8080, Port: 80})
	index := func() int {
		t.Helper()
		l, err := netlink.LinkByName(linkName(m.records()[0].index))
		if err != nil {
			t.Fatal(err)
		}
		return l.Attrs().Index
	}
	setup := func(ns *os.File, ports ...Port) {
		t.Helper()
		got, err := m.Setup(t.Context(), PodNetwork{UID: "a", Ports: ports}, ns)
		if err != nil || got.IPs[0] != first.IPs[0] {
			t.Fatalf("%v, %v; want %s as before", got, err, first.IPs[0])
		}
	}
	link := index()
	setup(ns, Port{HostPort: 8080, Port: 80})
	if index() != link {
		t.Error("the link was replaced without need")
	}
	setup(ns, Port{HostPort: 8081, Port: 80})
	serve(t, ns, "tcp", ":80")
	wantFrom(t, nil, "tcp", "127.0.0.1:8081", first.Gateways[0])
	wantNone(t, nil, "tcp", "127.0.0.1:8080")
	setup(ns)
	wantNone(t, nil, "tcp", "127.0.0.1:8081")

	other := newNS(t)
	serve(t, other, "tcp", ":80")
	setup(other, Port{HostPort: 8080, Port: 80})
	wantFrom(t, nil, "tcp", "127.0.0.1:8080", first.Gateways[0])
	if index() == link {
		t.Error("the link still leads to the old namespace")
	}
	err := inNetns(other, func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(eth0)
	})
	if err != nil {
		t.Fatal(err)
	}
	setup(other, Port{HostPort: 8080, Port: 80})
	wantFrom(t, nil, "tcp", "127.0.0.1:8080", first.Gateways[0])
	if err := m.Teardown(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := m.Teardown(t.Context(), "a"); err != nil {
		t.Errorf("second Teardown: %v", err)
	}
	if _, ok := m.Lookup("a"); ok {
		t.Error("the pod is still known")
	}
}

// TestFaults makes each step of Setup fail, with and without another pod: nothing is left, and the next Setup succeeds.
func TestFaults(t *testing.T) {
	var mu sync.Mutex // the steps of the ports are called beside others
	var steps []string
	fail := ""
	boom := errors.New("boom")
	m := newManager(t, func(c *Config) {
		c.Idle = time.Hour
		c.Fault = func(step string) error {
			mu.Lock()
			defer mu.Unlock()
			steps = append(steps, step)
			if step == fail {
				return boom
			}
			return nil
		}
	})
	ns := newNS(t)
	want := PodNetwork{UID: "a", Name: "default/a", Ports: []Port{{HostPort: 8080, Port: 80}, {HostPort: 5353, Port: 53, Protocol: corev1.ProtocolUDP}}}
	tearDown := func() {
		t.Helper()
		if err := errors.Join(m.Teardown(context.Background(), "a"), m.Sweep(context.Background())); err != nil {
			t.Fatal(err)
		}
	}
	for _, others := range []int{0, 1} {
		for i := range others {
			newPod(t, m, fmt.Sprint("other", i), Port{HostPort: 7000, Port: 70})
		}
		setUp := func() error {
			_, err := m.Setup(t.Context(), want, ns)
			return err
		}
		before, files := snapshot(t), openFiles(t)
		steps = nil
		if err := setUp(); err != nil {
			t.Fatal(err)
		}
		tearDown()
		all := steps
		if len(all) < 10 {
			t.Fatalf("only the steps %q", all)
		}
		for _, step := range all {
			if step == "teardown" {
				continue
			}
			fail = step
			err := setUp()
			fail = ""
			if !errors.Is(err, boom) {
				t.Errorf("step %s: %v", step, err)
			}
			if after := snapshot(t); after != before {
				t.Errorf("a failure of %s leaves the host changed: %s", step, cmp.Diff(before, after))
			}
			if n := openFiles(t); n != files {
				t.Errorf("after a failure of %s %d files are open, before %d", step, n, files)
			}
			if err := setUp(); err != nil {
				t.Errorf("after a failure of %s: %v", step, err)
			}
			tearDown()
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(boom)
	if _, err := m.Setup(ctx, want, ns); !errors.Is(err, boom) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
