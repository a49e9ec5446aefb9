package guest_test

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/guesttest"
	"github.com/magikrun/magikpod/internal/netlist"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// inNetwork calls do in the network namespace of the agent's VM.
func inNetwork(t *testing.T, m *guesttest.Guest, do func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is of no use to others and ends here
		ns, err := os.Open("/proc/" + itoa(m.PID) + "/ns/net")
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = do()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// networkOf speaks to the kernel about the network of the agent's VM.
func networkOf(t *testing.T, m *guesttest.Guest) *netlink.Handle {
	t.Helper()
	var handle *netlink.Handle
	inNetwork(t, m, func() (err error) { handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); return err })
	t.Cleanup(handle.Close)
	return handle
}

// attachLink gives the VM an interface with a hardware address.
func attachLink(t *testing.T, h *netlink.Handle, mac string) {
	t.Helper()
	address, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "attached", HardwareAddr: address}, PeerName: "peer"}
	if err := h.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	peer, err := h.LinkByName("peer")
	if err == nil {
		err = h.LinkSetUp(peer)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// network lists the addresses and routes of an interface, one a line, but for the link-local ones
// that the kernel makes.
func network(t *testing.T, h *netlink.Handle, name string) []string {
	t.Helper()
	link, err := h.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	addresses, err := netlist.Whole(func() ([]netlink.Addr, error) { return h.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		t.Fatal(err)
	}
	routes, err := netlist.Whole(func() ([]netlink.Route, error) { return h.RouteList(link, netlink.FAMILY_ALL) })
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, a := range addresses {
		if !a.IP.IsLinkLocalUnicast() {
			lines = append(lines, a.IPNet.String())
		}
	}
	for _, r := range routes {
		if r.Dst.IP.IsLinkLocalUnicast() || r.Dst.IP.IsMulticast() {
			continue
		}
		line := fmt.Sprintf("to %s metric %d", r.Dst, r.Priority)
		if r.Gw != nil {
			line += fmt.Sprintf(" via %s", r.Gw)
		}
		if r.Src != nil {
			line += fmt.Sprintf(" from %s", r.Src)
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines
}

// TestNetworkConverges: however often the VM is configured, its interface has the addresses and
// routes that were asked for last, and no others.
func TestNetworkConverges(t *testing.T) {
	m := guesttest.Start(t)
	h := networkOf(t, m)
	const mac = "02:00:00:00:00:07"
	attachLink(t, h, mac)
	_, err := os.Stat("/proc/sys/net/ipv6")
	ipv6 := err == nil
	for _, step := range []struct {
		name    string
		network wire.Network
		want    []string
	}{
		{
			"a gateway of each family",
			wire.Network{Addresses: []string{"10.0.0.2/24", "fd00::2/64"}, Routes: []wire.Route{{Via: "10.0.0.1"}, {Via: "fd00::1"}}},
			[]string{
				"10.0.0.2/24", "fd00::2/64", "to 0.0.0.0/0 metric 0 via 10.0.0.1", "to 10.0.0.0/24 metric 0 from 10.0.0.2", "to ::/0 metric 1024 via fd00::1",
				"to fd00::/64 metric 256",
			},
		},
		{
			"other gateways, one of them in no prefix",
			wire.Network{Addresses: []string{"10.0.0.2/24", "fd00::2/64"}, Routes: []wire.Route{{Via: "192.0.2.1"}, {Via: "fd00::9"}}},
			[]string{
				"10.0.0.2/24", "fd00::2/64", "to 0.0.0.0/0 metric 0 via 192.0.2.1", "to 10.0.0.0/24 metric 0 from 10.0.0.2", "to ::/0 metric 1024 via fd00::9",
				"to fd00::/64 metric 256",
			},
		},
		{
			"another address",
			wire.Network{Addresses: []string{"10.1.0.2/24"}, Routes: []wire.Route{{Via: "10.1.0.1"}}},
			[]string{"10.1.0.2/24", "to 0.0.0.0/0 metric 0 via 10.1.0.1", "to 10.1.0.0/24 metric 0 from 10.1.0.2"},
		},
		{"no routes", wire.Network{Addresses: []string{"10.1.0.2/24"}}, []string{"10.1.0.2/24", "to 10.1.0.0/24 metric 0 from 10.1.0.2"}},
		{"nothing", wire.Network{}, nil},
	} {
		step.network.MAC = mac
		if !ipv6 { // of this kernel
			withoutIPv6(&step.network)
			step.want = slices.DeleteFunc(step.want, isIPv6)
		}
		slices.Sort(step.want)
		for _, again := range []string{"", " again"} {
			if err := m.Configure(t.Context(), wire.Configure{Network: &step.network}); err != nil {
				t.Fatalf("%s%s: %v", step.name, again, err)
			}
			if diff := cmp.Diff(step.want, network(t, h, "eth0")); diff != "" {
				t.Errorf("%s%s: -want +got\n%s", step.name, again, diff)
			}
		}
	}
}

func isIPv6(text string) bool { return strings.Contains(text, "::") }

func withoutIPv6(n *wire.Network) {
	n.Addresses = slices.DeleteFunc(n.Addresses, isIPv6)
	n.Routes = slices.DeleteFunc(n.Routes, func(r wire.Route) bool { return isIPv6(r.Via) })
}
