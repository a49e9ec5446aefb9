package netsetup

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/magikrun/magikpod/pod"
	"github.com/vishvananda/netlink"
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
	if err := m.Restore(t.Context(), only()); err != nil {
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
	m := newManager(t)
	m.fw.nft = "/nonexistent/nft"
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

// TestAgain: a second Setup leaves what is as wanted, and makes what is not: a new namespace, other
// ports, a lost address.
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
