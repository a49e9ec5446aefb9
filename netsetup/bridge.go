package netsetup

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/netlist"
	"github.com/magikrun/magikpod/pod"
)

// alias marks the bridge and, followed by a UID, the links as ours.
const alias = "magikpod"

// defaultLike is the prefix length below which a route counts as a part of a default route: VPNs
// route 0.0.0.0/1 and 128.0.0.0/1.
const defaultLike = 8

// bridge is the link that the pods of a host share.
type bridge struct {
	cfg  *Config
	nl   *netlink.Handle
	ipv6 bool
	link *netlink.Bridge // nil when it is not known to exist
	open bool            // the host's loopback was opened to published ports
}

// up makes the bridge, with the first address of each subnet, or takes the one that is there. made
// says that there was none, also with an error.
func (b *bridge) up(ctx context.Context) (made bool, err error) {
	if err := b.cfg.step(ctx, "bridge"); err != nil {
		return false, err
	}
	if made, err = b.ensureLink(); err != nil {
		return false, pod.Errorf(kindOf(err), "cannot make bridge %s: %w", b.cfg.Bridge, err)
	}
	if err := b.cfg.step(ctx, "bridge-sysctl"); err != nil {
		return made, err
	}
	if err := b.configure(); err != nil {
		return made, err
	}
	if err := b.cfg.step(ctx, "bridge-address"); err != nil {
		return made, err
	}
	if err := b.address(); err != nil {
		return made, pod.Errorf(kindOf(err), "cannot set up bridge %s: %w", b.cfg.Bridge, err)
	}
	return made, nil
}

func (b *bridge) ensureLink() (made bool, err error) {
	found, err := b.find()
	if err != nil || found {
		return false, err
	}
	if _, err := b.nl.LinkByName(b.cfg.Bridge); !isNoLink(err) {
		return false, pod.Errorf(pod.Conflict, "the host has a link of that name that is not magikpod's")
	}
	if err := b.checkRoutes(); err != nil {
		return false, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = b.cfg.Bridge
	attrs.MTU = b.uplinkMTU()
	attrs.HardwareAddr = hardwareAddr(b.gateway4())
	snooping := false
	link := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := b.nl.LinkAdd(link); err != nil {
		return false, err
	}
	if err := b.nl.LinkSetAlias(link, alias); err != nil {
		return false, join(err, b.nl.LinkDel(link))
	}
	b.link = link
	return true, nil
}

// find looks for our bridge. Another's link of that name does not count.
func (b *bridge) find() (bool, error) {
	b.link = nil
	link, err := b.nl.LinkByName(b.cfg.Bridge)
	if isNoLink(err) {
		return b.findRenamed()
	}
	if err != nil {
		return false, err
	}
	br, ok := link.(*netlink.Bridge)
	switch {
	case !ok:
		return false, nil
	case br.Alias == "" && isOwnAddr(br.HardwareAddr):
		// We were killed between making it and giving it its alias, which the kernel takes in two steps.
		if err := b.nl.LinkSetAlias(br, alias); err != nil {
			return false, err
		}
	case br.Alias != alias:
		return false, nil
	}
	b.link = br
	return true, nil
}

// findRenamed gives our bridge its name back if it has another one.
func (b *bridge) findRenamed() (bool, error) {
	links, err := netlist.Whole(b.nl.LinkList)
	if err != nil {
		return false, err
	}
	for _, link := range links {
		br, ok := link.(*netlink.Bridge)
		if !ok || br.Alias != alias || !bytes.Equal(br.HardwareAddr, hardwareAddr(b.gateway4())) {
			continue
		}
		// Older kernels refuse to rename a link that is up.
		if err := join(b.nl.LinkSetDown(br), b.nl.LinkSetName(br, b.cfg.Bridge)); err != nil {
			return false, err
		}
		br.Name = b.cfg.Bridge
		b.link = br
		return true, nil
	}
	return false, nil
}

func (b *bridge) configure() error {
	if err := enableForwarding(b.ipv6); err != nil {
		return err
	}
	all := b.settings(false)
	if b.ipv6 {
		// Whoever manages the host's links may think otherwise of these later: they matter when the
		// bridge comes up.
		conf := ipv6Conf + "/" + b.cfg.Bridge
		all = append(all, setting{conf + "/accept_ra", "0"}, setting{conf + "/accept_dad", "0"})
	}
	for _, s := range all {
		if err := writeSysctl(s.path, s.value); err != nil {
			return err
		}
	}
	return nil
}

func (b *bridge) address() error {
	if own := hardwareAddr(b.gateway4()); !bytes.Equal(b.link.HardwareAddr, own) {
		if err := b.nl.LinkSetHardwareAddr(b.link, own); err != nil {
			return err
		}
		b.link.HardwareAddr = own
	}
	if err := b.nl.LinkSetUp(b.link); err != nil {
		return err
	}
	for _, p := range b.subnets() {
		whole, err := b.isAddressed(p)
		if err != nil {
			return err
		}
		if whole {
			continue
		}
		addr := &netlink.Addr{IPNet: ipNet(addrAt(p, 1), p.Bits()), Flags: addrFlags(p)}
		// The kernel makes the routes with the address, and only then.
		if err := b.nl.AddrDel(b.link, addr); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return err
		}
		if err := b.nl.AddrReplace(b.link, addr); err != nil {
			return err
		}
	}
	has, err := b.hasLinkLocal()
	if err != nil || has {
		return err
	}
	addr := ipNet(linkLocal(b.link.HardwareAddr), 64)
	return b.nl.AddrReplace(b.link, &netlink.Addr{IPNet: addr, Flags: unix.IFA_F_NODAD})
}

// down removes the bridge. It may be gone.
func (b *bridge) down() error {
	found, err := b.find()
	if err == nil && found {
		err = b.nl.LinkDel(b.link)
	}
	if err != nil && !isNoLink(err) {
		return pod.Errorf(kindOf(err), "cannot remove bridge %s: %w", b.cfg.Bridge, err)
	}
	b.link, b.open = nil, false
	return nil
}

// checkRoutes refuses subnets that the host already has a route to: the bridge would hide a part of
// the host's network.
func (b *bridge) checkRoutes() error {
	for _, p := range b.subnets() {
		routes, err := netlist.Whole(func() ([]netlink.Route, error) { return b.nl.RouteList(nil, familyOf(p)) })
		if err != nil {
			return err
		}
		for _, r := range routes {
			if dst, ok := prefixOf(r.Dst); ok && dst.Bits() >= defaultLike && dst.Overlaps(p) {
				return pod.Errorf(pod.Conflict, "subnet %s overlaps the host's route %s via %s: configure another subnet", p, dst, b.linkName(r.LinkIndex))
			}
		}
	}
	return nil
}

func (b *bridge) linkName(index int) string {
	link, err := b.nl.LinkByIndex(index)
	if err != nil {
		return "an unknown link"
	}
	return link.Attrs().Name
}

// uplinkMTU is the MTU of the link that the host's default route uses; 0, the kernel's default,
// when there is none.
func (b *bridge) uplinkMTU() int {
	routes, err := netlist.Whole(func() ([]netlink.Route, error) { return b.nl.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return 0
	}
	mtu := 0
	for _, r := range routes {
		if dst, ok := prefixOf(r.Dst); ok && dst.Bits() > 0 || r.LinkIndex == 0 {
			continue
		}
		if link, err := b.nl.LinkByIndex(r.LinkIndex); err == nil && (mtu == 0 || link.Attrs().MTU < mtu) {
			mtu = link.Attrs().MTU
		}
	}
	return mtu
}

func (b *bridge) gateway4() netip.Addr { return addrAt(b.cfg.IPv4, 1) }

// subnets are those of the families that the host has.
func (b *bridge) subnets() []netip.Prefix {
	if b.ipv6 {
		return []netip.Prefix{b.cfg.IPv4, b.cfg.IPv6}
	}
	return []netip.Prefix{b.cfg.IPv4}
}

// hardwareAddr is derived from the IPv4 address: an address that is given out again has the
// hardware address that neighbours remember.
func hardwareAddr(a netip.Addr) net.HardwareAddr {
	ip := a.As4()
	return net.HardwareAddr{0x02, 0x6d, ip[0], ip[1], ip[2], ip[3]} // locally administered
}

// isOwnAddr says whether hardwareAddr has made it.
func isOwnAddr(a net.HardwareAddr) bool { return len(a) == 6 && a[0] == 0x02 && a[1] == 0x6d }

func ipNet(a netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}
}

// prefixOf reads a route's destination; false for the default route that has none.
func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones), ok
}

// linkLocal is the IPv6 address that the kernel itself derives from a hardware address (RFC 4291,
// appendix A).
func linkLocal(a net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: a[0] ^ 2, 9: a[1], 10: a[2], 11: 0xff, 12: 0xfe, 13: a[3], 14: a[4], 15: a[5]})
}

// addrFlags switches off duplicate address detection, for which IPv6 would wait a second: the
// addresses are ours to give out.
func addrFlags(p netip.Prefix) int {
	if p.Addr().Is6() {
		return unix.IFA_F_NODAD
	}
	return 0
}

func isNoLink(err error) bool {
	_, ok := errors.AsType[netlink.LinkNotFoundError](err)
	return ok || errors.Is(err, unix.ENODEV) || errors.Is(err, os.ErrNotExist)
}
