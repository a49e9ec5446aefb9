package netsetup

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/netlist"
)

// setting is a sysctl and the value that it must have.
type setting struct{ path, value string }

// settings are those that make the bridge a way to and from pods; open is for published ports.
func (b *bridge) settings(open bool) []setting {
	all := []setting{{ipForward4, "1"}, {ipv4Conf + "/" + b.cfg.Bridge + "/forwarding", "1"}}
	if open {
		all = append(all, setting{b.localnet(), "1"})
	}
	if b.ipv6 {
		conf := ipv6Conf + "/" + b.cfg.Bridge
		all = append(all, setting{ipForward6, "1"}, setting{conf + "/forwarding", "1"}, setting{conf + "/disable_ipv6", "0"})
	}
	return all
}

// isThere says whether the bridge that is known is the one that the kernel has, by index and
// hardware address, and up. It is quick enough for each Setup.
func (b *bridge) isThere() (bool, error) {
	if b.link == nil {
		return false, nil
	}
	link, err := b.nl.LinkByName(b.cfg.Bridge)
	if isNoLink(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	a := link.Attrs()
	return a.Index == b.link.Index && a.RawFlags&unix.IFF_UP != 0 && bytes.Equal(a.HardwareAddr, b.link.HardwareAddr), nil
}

// faults are what somebody has changed about the bridge, for people; none when it is as it should
// be. With an error nothing is known.
func (b *bridge) faults(open bool) (faults []string, err error) {
	there, err := b.isThere()
	if err != nil {
		return nil, err
	}
	if !there {
		return []string{"it was removed, replaced, renamed or set down, or its hardware address was changed"}, nil
	}
	for _, s := range b.settings(open) {
		value, err := readSysctl(s.path)
		if err != nil {
			return nil, err
		}
		if value != s.value {
			faults = append(faults, fmt.Sprintf("%s was %s", s.path, value))
		}
	}
	for _, p := range b.subnets() {
		addressed, err := b.isAddressed(p)
		if err != nil {
			return nil, err
		}
		if !addressed {
			faults = append(faults, fmt.Sprintf("the address or the route of %s was missing", p))
		}
	}
	has, err := b.hasLinkLocal()
	if err != nil {
		return nil, err
	}
	if !has {
		faults = append(faults, "the link-local address was missing")
	}
	if open {
		opened, err := b.loopbackOpen()
		if err != nil {
			return nil, err
		}
		if !opened {
			faults = append(faults, "the route for ::1 was missing")
		}
	}
	return faults, nil
}

// hasLinkLocal says whether the bridge has the address that the kernel looks for pods from when it
// forwards IPv6 packets of others to them (RFC 4861, 7.2.2): it does not generate a lost one again.
func (b *bridge) hasLinkLocal() (bool, error) {
	if !b.ipv6 {
		return true, nil
	}
	addrs, err := netlist.Whole(func() ([]netlink.Addr, error) { return b.nl.AddrList(b.link, netlink.FAMILY_V6) })
	return slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() }), err
}

// isAddressed says whether the bridge has its address in the subnet, and the host the route that
// comes with it.
func (b *bridge) isAddressed(p netip.Prefix) (bool, error) {
	addrs, err := netlist.Whole(func() ([]netlink.Addr, error) { return b.nl.AddrList(b.link, familyOf(p)) })
	if err != nil {
		return false, err
	}
	if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return addrOf(a.IP) == addrAt(p, 1) }) {
		return false, nil
	}
	// Where the host's way to a pod leads over the bridge, the route need not be looked for among
	// what may be very many.
	routes, err := b.nl.RouteGet(addrAt(p, firstIndex).AsSlice())
	if err == nil && len(routes) > 0 && routes[0].LinkIndex == b.link.Index {
		return true, nil
	}
	all, err := netlist.Whole(func() ([]netlink.Route, error) { return b.nl.RouteList(b.link, familyOf(p)) })
	return slices.ContainsFunc(all, func(r netlink.Route) bool { dst, ok := prefixOf(r.Dst); return ok && dst == p }), err
}

func familyOf(p netip.Prefix) int {
	if p.Addr().Is6() {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

// noRoute says whether the kernel has answered that no route leads there.
func noRoute(err error) bool {
	return errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH)
}
