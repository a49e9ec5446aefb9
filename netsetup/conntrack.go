package netsetup

import (
	"errors"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/magikrun/magikpod/internal/netlist"
	"github.com/magikrun/magikpod/pod"
)

// stale matches the tracked flows that a change of ports has made wrong. A client that goes on
// sending from one port, as those of UDP do, would otherwise stay with the host, or with a pod that
// is gone, for as long as it sends.
type stale struct {
	pods  []netip.Addr // flows that are forwarded to these
	ports []Port       // flows to these ports of the host that are not forwarded
	local []netip.Addr // the host's addresses
}

// MatchConntrackFlow implements [netlink.CustomConntrackFilter].
func (s stale) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	if f.Forward.Protocol == unix.IPPROTO_TCP {
		return false // a new connection is a new flow
	}
	dst, from := addrOf(f.Forward.DstIP), addrOf(f.Reverse.SrcIP)
	if slices.Contains(s.pods, from) {
		return dst != from
	}
	if dst != from || !slices.Contains(s.local, dst) {
		return false
	}
	return slices.ContainsFunc(s.ports, func(p Port) bool {
		return int(f.Forward.Protocol) == p.proto() && f.Forward.DstPort == p.HostPort &&
			(dst.Is4() && p.is4() || dst.Is6() && p.is6()) && (p.any() || p.HostIP == dst)
	})
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// dropFlows forgets the flows of ports, to the host or to a pod with the addresses. Pods without
// such ports cost nothing.
func dropFlows(ports []Port, pods []netip.Addr) error {
	if !slices.ContainsFunc(ports, func(p Port) bool { return p.Protocol != corev1.ProtocolTCP }) {
		return nil
	}
	// A handle of its own: the listing may be long, and others would wait for it.
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER, unix.NETLINK_ROUTE)
	if err != nil {
		return pod.Errorf(kindOf(err), "cannot read the tracked flows: %w", err)
	}
	defer h.Close()
	addrs, err := netlist.Whole(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return pod.Errorf(kindOf(err), "cannot read the host's addresses: %w", err)
	}
	s := stale{pods: pods, ports: ports}
	for _, a := range addrs {
		s.local = append(s.local, addrOf(a.IP))
	}
	for _, family := range []netlink.InetFamily{netlink.InetFamily(netlink.FAMILY_V4), netlink.InetFamily(netlink.FAMILY_V6)} {
		_, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, family, s)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return pod.Errorf(kindOf(err), "cannot forget the flows of the ports: %w", err)
		}
	}
	return nil
}
