package netsetup

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/magikrun/magikpod/pod"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// loopbackPriority ranks our route to ::1 behind the kernel's own, which the host goes on using.
const loopbackPriority = 4096

// openLoopback lets connections that the host makes to its loopback addresses leave by the bridge,
// and their answers come back. For IPv4 there is a setting. For IPv6 it takes a route: the kernel
// looks for ::1 only among the routes of the link that an answer came by, and the bridge has none.
// Neither opens the loopback to pods: the table's guard stands before it, and the kernel itself
// drops packets from or to ::1 that other links bring.
func (b *bridge) openLoopback() error {
	if b.link == nil {
		return pod.Errorf(pod.Unavailable, "bridge %s was removed", b.cfg.Bridge)
	}
	err := writeSysctl(b.localnet(), "1")
	if err == nil && b.ipv6 {
		err = b.nl.RouteReplace(&netlink.Route{
			LinkIndex: b.link.Attrs().Index, Dst: ipNet(netip.IPv6Loopback(), 128),
			Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Priority: loopbackPriority,
		})
	}
	b.open = b.open || err == nil
	return err
}

// localnet is the path of the setting for 127.0.0.0/8.
func (b *bridge) localnet() string { return ipv4Conf + "/" + b.cfg.Bridge + "/route_localnet" }

// loopbackOpen says whether an answer to ::1 that comes by the bridge finds its way.
func (b *bridge) loopbackOpen() (bool, error) {
	if !b.ipv6 {
		return true, nil
	}
	index := b.link.Attrs().Index
	routes, err := b.nl.RouteGetWithOptions(net.IPv6loopback, &netlink.RouteGetOptions{IifIndex: index})
	if noRoute(err) {
		return false, nil
	}
	return len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL, err
}

// openLink makes what the host's end of a pod's link needs for published ports; again, when it was
// on another bridge.
//
// Where bridged packets pass the firewall (br_netfilter) two things are to be minded. What a pod
// sends to its own published port goes back by its own link (hairpin). And the answer to a
// connection from ::1 would get that address back in the bridge, before the kernel refuses packets
// to ::1 from other links. So what is for the host itself goes past the bridge, right into its
// upper side: the link gets the bridge's hardware address, or the kernel would take such a packet
// for somebody else's. The bridge then learns nothing from these packets, and learns from us where
// the pod is.
func (m *Manager) openLink(r *record, link netlink.Link, br *netlink.Bridge) error {
	if len(r.ports) == 0 {
		return nil
	}
	if err := m.nl.LinkSetHairpin(link, true); err != nil || !m.bridge.ipv6 {
		return err
	}
	if err := m.nl.LinkSetHardwareAddr(link, br.HardwareAddr); err != nil {
		return err
	}
	err := m.nl.NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, State: netlink.NUD_NOARP,
		HardwareAddr: hardwareAddr(addrAt(m.cfg.IPv4, r.index)),
	})
	if err != nil {
		return err
	}
	if err := send(m.nl, link, br, unix.ETH_P_IPV6, toAddr6(addrAt(m.cfg.IPv6, 1)), netlink.TCA_INGRESS_REDIR); err != nil {
		m.warn("[::1] does not reach the ports of pod %s where bridged packets pass the firewall: %v", r.name, err)
	}
	return nil
}

// isOdd says whether the host's end of a pod's link should have another hardware address: that of
// [Manager.openLink].
func (b *bridge) isOdd(r *record, addr net.HardwareAddr) bool {
	return b.ipv6 && len(r.ports) > 0 && !bytes.Equal(addr, hardwareAddr(b.gateway4()))
}

// byIndex says whether a pod has the index, and isOdd of its link.
func (m *Manager) byIndex(index int, addr net.HardwareAddr) (known, odd bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.pods {
		if r.index == index {
			return true, m.bridge.isOdd(r, addr)
		}
	}
	return false, false
}

// toAddr6 matches IPv6 packets to an address.
func toAddr6(a netip.Addr) *netlink.TcU32Sel {
	const offset = 24 // of the destination in the header (RFC 8200)
	sel := &netlink.TcU32Sel{Flags: nl.TC_U32_TERMINAL}
	words := a.As16()
	for i := 0; i < len(words); i += 4 {
		sel.Keys = append(sel.Keys, netlink.TcU32Key{Mask: 0xffffffff, Val: binary.BigEndian.Uint32(words[i:]), Off: int32(offset + i)})
	}
	sel.Nkeys = uint8(len(sel.Keys))
	return sel
}
