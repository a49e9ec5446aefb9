package netsetup

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/magikrun/magikpod/internal/netlist"
)

// TestWithoutIPv6 is a host with ipv6.disable=1.
func TestWithoutIPv6(t *testing.T) {
	m := newManager(t)
	m.bridge.ipv6 = false
	a, ra := newPod(t, m, "a", Port{HostPort: 8080, Port: 80})
	b, rb := newPod(t, m, "b")
	if len(ra.IPs) != 1 || len(ra.Gateways) != 1 {
		t.Errorf("the pod has %v", ra)
	}
	serve(t, a, "tcp4", ":80")
	wantFrom(t, b, "tcp", at(ra.IPs[0], 80), rb.IPs[0])
	wantFrom(t, nil, "tcp", "127.0.0.1:8080", ra.Gateways[0])
}

// TestUplink: the pods' links are as narrow as the host's way out, and the host keeps its IPv6
// default route, which it has from advertisements.
func TestUplink(t *testing.T) {
	m := newManager(t)
	newLAN(t)
	lan, err := netlink.LinkByName("lan0")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetMTU(lan, 1400); err != nil {
		t.Fatal(err)
	}
	route := &netlink.Route{LinkIndex: lan.Attrs().Index, Gw: otherLAN4.AsSlice()}
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatal(err)
	}
	for path, value := range map[string]string{ipForward4: "0", ipForward6: "0", ipv6Conf + "/lan0/accept_ra": "1"} {
		if err := writeSysctl(path, value); err != nil {
			t.Fatal(err)
		}
	}
	ns, _ := newPod(t, m, "a")
	err = inNetns(ns, func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err == nil && eth0.Attrs().MTU != 1400 {
			t.Errorf("the MTU of the pod is %d, want 1400", eth0.Attrs().MTU)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{ipForward4: "1", ipForward6: "1", ipv6Conf + "/lan0/accept_ra": "2",
		ipv6Conf + "/lo/accept_ra": "2", ipv6Conf + "/" + DefaultBridge + "/accept_ra": "0"} {
		if got, err := readSysctl(path); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %s", path, got, err, want)
		}
	}
}

// TestPodLink: nothing in a pod waits for duplicate address detection, listens to advertisements,
// or lacks a way out.
func TestPodLink(t *testing.T) {
	m := newManager(t)
	ns, r := newPod(t, m, "a")
	err := inNetns(ns, func() error {
		for path, want := range map[string]string{ipv6Conf + "/eth0/accept_ra": "0", ipv6Conf + "/eth0/accept_dad": "0"} {
			if got, err := readSysctl(path); err != nil || got != want {
				t.Errorf("%s is %q, %v; want %s", path, got, err, want)
			}
		}
		for i, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := netlist.Whole(func() ([]netlink.Route, error) {
				return netlink.RouteListFiltered(family, &netlink.Route{Gw: r.Gateways[i].AsSlice()}, netlink.RT_FILTER_GW)
			})
			if err != nil {
				return err
			}
			if len(routes) != 1 {
				t.Errorf("%d routes by %s, want 1", len(routes), r.Gateways[i])
			}
		}
		eth0, err := netlink.LinkByName("eth0")
		if err == nil && eth0.Attrs().HardwareAddr.String() != "02:6d:0a:d4:00:02" {
			t.Errorf("the hardware address is %s", eth0.Attrs().HardwareAddr)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName("mpod2")
	if err != nil || link.Attrs().Alias != "magikpod a" {
		t.Errorf("the host's end is %v, %v", link, err)
	}
	if want := []netip.Addr{netip.MustParseAddr("10.212.0.2"), netip.MustParseAddr("fd6d:6167:696b::2")}; r.IPs[0] != want[0] || r.IPs[1] != want[1] {
		t.Errorf("the pod has %v, want %v", r.IPs, want)
	}
}
