package netsetup

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

func at(a netip.Addr, port int) string { return netip.AddrPortFrom(a, uint16(port)).String() }

func TestPodsReachEachOther(t *testing.T) {
	m := newManager(t)
	a, ra := newPod(t, m, "a")
	b, rb := newPod(t, m, "b")
	serve(t, b, "tcp", ":80")
	serve(t, b, "udp", ":53")
	serve(t, nil, "tcp", ":7070")
	for i := range ra.IPs {
		wantFrom(t, a, "tcp", at(rb.IPs[i], 80), ra.IPs[i])
		wantFrom(t, a, "udp", at(rb.IPs[i], 53), ra.IPs[i])
		wantFrom(t, b, "tcp", at(rb.IPs[i], 80), rb.IPs[i])
		wantFrom(t, nil, "tcp", at(rb.IPs[i], 80), rb.Gateways[i])
		wantFrom(t, a, "tcp", at(ra.Gateways[i], 7070), ra.IPs[i])
	}
	wantFrom(t, b, "tcp", "127.0.0.1:80", netip.MustParseAddr("127.0.0.1"))
	wantFrom(t, b, "tcp", "[::1]:80", netip.IPv6Loopback())
}

func TestOutwards(t *testing.T) {
	m := newManager(t)
	lan := newLAN(t)
	pod, r := newPod(t, m, "a")
	serve(t, lan, "tcp", ":80")
	serve(t, lan, "udp", ":53")
	serve(t, pod, "tcp", ":80")
	wantFrom(t, pod, "tcp", at(otherLAN4, 80), hostLAN4)
	wantFrom(t, pod, "udp", at(otherLAN4, 53), hostLAN4)
	wantFrom(t, pod, "tcp", at(otherLAN6, 80), hostLAN6)
	// The other host has no business in the pod, even if it knows the way.
	routeBack(t, lan, m)
	for _, ip := range r.IPs {
		wantNone(t, lan, "tcp", at(ip, 80))
	}
	// The same packets get through without that chain: the test would see them. Nobody may mend it.
	m.watch.close()
	m.watches.Wait()
	nft(t, "flush chain inet "+tableName+" forward")
	wantFrom(t, lan, "tcp", at(r.IPs[0], 80), otherLAN4)
	wantFrom(t, lan, "tcp", at(r.IPs[1], 80), otherLAN6)
}

// TestPublished sends packets to published ports from everywhere, whether or not bridged packets
// pass the firewall.
func TestPublished(t *testing.T) {
	for _, filtered := range []string{"0", "1"} {
		t.Run("bridge-nf-call="+filtered, func(t *testing.T) {
			needNetwork(t)
			for _, name := range []string{"iptables", "ip6tables"} {
				path := "/proc/sys/net/bridge/bridge-nf-call-" + name
				old, err := readSysctl(path)
				if os.IsNotExist(err) && filtered == "0" {
					continue
				}
				if err != nil {
					t.Skipf("needs the kernel module br_netfilter: %v", err)
				}
				if err := writeSysctl(path, filtered); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = writeSysctl(path, old) })
			}
			testPublished(t)
		})
	}
}

func testPublished(t *testing.T) {
	m := newManager(t)
	lan := newLAN(t)
	server, rs := newPod(t, m, "server", Port{HostPort: 8080, Port: 80}, Port{HostPort: 5353, Port: 53, Protocol: corev1.ProtocolUDP},
		Port{HostPort: 8081, Port: 80, HostIP: netip.MustParseAddr("127.0.0.1")}, Port{HostPort: 8082, Port: 80, HostIP: hostLAN4},
		Port{HostPort: 8083, Port: 80, HostIP: netip.IPv4Unspecified()}, Port{HostPort: 8084, Port: 80, HostIP: hostLAN6},
		Port{HostPort: 8085, Port: 80, HostIP: netip.IPv6Loopback()}, Port{HostPort: 9999, Port: 99, Protocol: corev1.ProtocolSCTP})
	client, _ := newPod(t, m, "client")
	serve(t, server, "tcp", ":80")
	serve(t, server, "udp", ":53")

	for network, port := range map[string]int{"tcp": 8080, "udp": 5353} {
		wantFrom(t, lan, network, at(hostLAN4, port), otherLAN4)
		wantFrom(t, lan, network, at(hostLAN6, port), otherLAN6)
		wantFrom(t, nil, network, "127.0.0.1:"+strconv.Itoa(port), rs.Gateways[0])
		wantFrom(t, nil, network, "127.0.0.2:"+strconv.Itoa(port), rs.Gateways[0])
		wantFrom(t, nil, network, "[::1]:"+strconv.Itoa(port), rs.Gateways[1])
		wantFrom(t, nil, network, at(hostLAN4, port), hostLAN4)
		wantFrom(t, nil, network, at(hostLAN6, port), hostLAN6)
		for _, pod := range []*os.File{client, server} {
			wantFrom(t, pod, network, at(hostLAN4, port), rs.Gateways[0])
			wantFrom(t, pod, network, at(hostLAN6, port), rs.Gateways[1])
			wantFrom(t, pod, network, at(rs.Gateways[0], port), rs.Gateways[0])
			wantFrom(t, pod, network, at(rs.Gateways[1], port), rs.Gateways[1])
		}
	}

	// An address of the host is that address only.
	wantFrom(t, nil, "tcp", "127.0.0.1:8081", rs.Gateways[0])
	wantNone(t, lan, "tcp", at(hostLAN4, 8081))
	wantFrom(t, lan, "tcp", at(hostLAN4, 8082), otherLAN4)
	wantNone(t, nil, "tcp", "127.0.0.1:8082")
	wantFrom(t, nil, "tcp", "127.0.0.1:8083", rs.Gateways[0])
	wantNone(t, lan, "tcp", at(hostLAN6, 8083))
	wantFrom(t, lan, "tcp", at(hostLAN6, 8084), otherLAN6)
	wantNone(t, lan, "tcp", at(hostLAN4, 8084))
	wantFrom(t, nil, "tcp", "[::1]:8085", rs.Gateways[1])
	wantNone(t, nil, "tcp", "127.0.0.1:8085")
	wantNone(t, lan, "tcp", at(hostLAN6, 8085))
}

// TestGuard: route_localnet must not open the host's 127.0.0.1 to pods.
func TestGuard(t *testing.T) {
	m := newManager(t)
	pod, r := newPod(t, m, "a", Port{HostPort: 8080, Port: 80})
	serve(t, nil, "tcp", "127.0.0.1:7071")
	err := handleIn(pod, func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		// What a pod that may change its network would do: send packets for 127.0.0.1 to the bridge.
		if err := h.LinkSetDown(lo); err != nil {
			return err
		}
		if err := h.AddrDel(lo, &netlink.Addr{IPNet: ipNet(netip.MustParseAddr("127.0.0.1"), 8)}); err != nil {
			return err
		}
		if err := writeSysctl(ipv4Conf+"/eth0/route_localnet", "1"); err != nil {
			return err
		}
		eth0, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		return h.RouteReplace(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: ipNet(netip.MustParseAddr("127.0.0.0"), 8),
			Gw: r.Gateways[0].AsSlice(), Src: r.IPs[0].AsSlice()})
	})
	if err != nil {
		t.Fatal(err)
	}
	wantNone(t, pod, "tcp", "127.0.0.1:7071")
	// The same packets get through without the guard: the test would see them. Nobody may mend it.
	m.watch.close()
	m.watches.Wait()
	nft(t, "flush chain inet "+tableName+" guard")
	wantFrom(t, pod, "tcp", "127.0.0.1:7071", r.IPs[0])
}

// routeBack gives the other host routes to the pods.
func routeBack(t *testing.T, lan *os.File, m *Manager) {
	t.Helper()
	err := handleIn(lan, func(h *netlink.Handle) error {
		return errors.Join(
			h.RouteAdd(&netlink.Route{Dst: ipNet(m.cfg.IPv4.Addr(), m.cfg.IPv4.Bits()), Gw: hostLAN4.AsSlice()}),
			h.RouteAdd(&netlink.Route{Dst: ipNet(m.cfg.IPv6.Addr(), m.cfg.IPv6.Bits()), Gw: hostLAN6.AsSlice()}))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestFlows: a client that keeps sending from one port follows the pods that come and go.
func TestFlows(t *testing.T) {
	m := newManager(t)
	lan := newLAN(t)
	newPod(t, m, "bystander") // flows are tracked as long as there is a table
	port := Port{HostPort: 5353, Port: 53, Protocol: corev1.ProtocolUDP}
	var c net.Conn
	err := inNetns(lan, func() (err error) {
		c, err = net.Dial("udp", at(hostLAN4, 5353))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if from, err := callerOf(c, "udp", impatience); err == nil {
		t.Fatalf("%s answered before there is a pod", from)
	}
	for _, uid := range []string{"one", "two"} {
		pod, _ := newPod(t, m, uid, port)
		serve(t, pod, "udp", ":53")
		// The first attempt may read a refusal from before.
		var from netip.Addr
		for range 3 {
			if from, err = callerOf(c, "udp", impatience); err == nil {
				break
			}
		}
		if err != nil || from != otherLAN4 {
			t.Errorf("pod %s: %s, %v; want an answer", uid, from, err)
		}
		if err := m.Teardown(t.Context(), types.UID(uid)); err != nil {
			t.Fatal(err)
		}
		pod.Close()
	}
}
