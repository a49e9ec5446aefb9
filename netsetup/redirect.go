package netsetup

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/netlist"
	"github.com/magikrun/magikpod/pod"
)

// PodLink is how a pod's namespace is connected: what a VM that takes the pod's place in the
// network must have.
type PodLink struct {
	MAC       net.HardwareAddr
	MTU       int
	Addresses []netip.Prefix
	Gateways  []netip.Addr // of the default routes
}

// Redirect puts the VM at the end of the tap device in the place of the pod: each frame that comes
// to eth0 goes out by the tap, and each that comes from the tap goes out by eth0. The namespace's
// own network stack sees none of them any more; its eth0 keeps the addresses, which are returned.
// The VM is to have the same hardware address.
//
// It may be called again, for another tap of the same name too. There is nothing to undo: it goes
// with the links.
func Redirect(ns *os.File, tap string) (PodLink, error) {
	var found PodLink
	if err := fileOK(ns); err != nil {
		return found, err
	}
	err := handleIn(ns, func(h *netlink.Handle) (err error) {
		found, err = redirect(h, tap)
		return err
	})
	if err != nil {
		return found, pod.Errorf(kindOf(err), "cannot connect %s and %s of a pod: %w", podLink, tap, err)
	}
	return found, nil
}

// redirect is Redirect in the namespace of the handle.
func redirect(h *netlink.Handle, tap string) (PodLink, error) {
	eth, err := h.LinkByName(podLink)
	if err != nil {
		return PodLink{}, err
	}
	found, err := podLinkOf(h, eth)
	if err != nil {
		return found, err
	}
	dev, err := h.LinkByName(tap)
	if err != nil {
		return found, err
	}
	// The namespace has nothing to say to the guest by itself.
	if err := writePodSysctls(setting{ipv6Conf + "/" + tap + "/disable_ipv6", "1"}); err != nil && !isNotExist(err) {
		return found, err
	}
	if dev.Attrs().MTU != found.MTU {
		if err := h.LinkSetMTU(dev, found.MTU); err != nil {
			return found, err
		}
	}
	if err := h.LinkSetUp(dev); err != nil {
		return found, err
	}
	if err := send(h, eth, dev, unix.ETH_P_ALL, nil, netlink.TCA_EGRESS_REDIR); err != nil {
		return found, err
	}
	return found, send(h, dev, eth, unix.ETH_P_ALL, nil, netlink.TCA_EGRESS_REDIR)
}

// podLinkOf reads addresses and default routes; what the kernel has made of itself is not among them.
func podLinkOf(h *netlink.Handle, eth netlink.Link) (PodLink, error) {
	found := PodLink{MAC: eth.Attrs().HardwareAddr, MTU: eth.Attrs().MTU}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		addrs, err := netlist.Whole(func() ([]netlink.Addr, error) { return h.AddrList(eth, family) })
		if err != nil {
			return found, err
		}
		for _, a := range addrs {
			if a.Scope != unix.RT_SCOPE_UNIVERSE {
				continue
			}
			ones, _ := a.Mask.Size()
			found.Addresses = append(found.Addresses, netip.PrefixFrom(addrOf(a.IP), ones))
		}
		routes, err := netlist.Whole(func() ([]netlink.Route, error) { return h.RouteList(eth, family) })
		if err != nil {
			return found, err
		}
		for _, r := range routes {
			if len(r.Gw) > 0 {
				found.Gateways = append(found.Gateways, addrOf(r.Gw))
			}
		}
	}
	return found, nil
}

// ingress is the handle of the discipline for what comes in.
var ingress = netlink.MakeHandle(0xffff, 0)

// send makes what comes in by one link, of a protocol and as sel matches, go out by another, or
// come in by it: act says which.
//
// The filter is one of u32, which matches everything when sel is nil: matchall is the same thing in
// fewer words, but kernels exist that have only u32.
func send(h *netlink.Handle, from, to netlink.Link, protocol uint16, sel *netlink.TcU32Sel, act netlink.MirredAct) error {
	filters, err := netlist.Whole(func() ([]netlink.Filter, error) { return h.FilterList(from, ingress) })
	if err != nil && kindOf(err) != pod.Internal {
		return err
	}
	if err == nil && slices.ContainsFunc(filters, func(f netlink.Filter) bool { return leadsTo(f, to, act) }) {
		return nil
	}
	discipline := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: from.Attrs().Index, Handle: ingress, Parent: netlink.HANDLE_INGRESS}}
	// What is there leads to a link that is gone, or is without a filter because the link went
	// meanwhile: the kernel refuses to replace it.
	if err := h.QdiscDel(discipline); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	if err := h.QdiscReplace(discipline); err != nil {
		return err
	}
	mirred := netlink.NewMirredAction(to.Attrs().Index)
	mirred.MirredAction = act
	return h.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from.Attrs().Index, Parent: ingress, Priority: 1, Protocol: protocol},
		Sel:         sel,
		Actions:     []netlink.Action{mirred},
	})
}

// leadsTo says whether a filter sends what it matches to a link.
func leadsTo(f netlink.Filter, to netlink.Link, act netlink.MirredAct) bool {
	u, ok := f.(*netlink.U32)
	return ok && slices.ContainsFunc(u.Actions, func(a netlink.Action) bool {
		m, ok := a.(*netlink.MirredAction)
		return ok && m.MirredAction == act && m.Ifindex == to.Attrs().Index
	})
}

// redirectAgain is Redirect for the tap device that the namespace has, if it has one: eth0 is
// another now.
func redirectAgain(ns *os.File) error {
	err := handleIn(ns, func(h *netlink.Handle) error {
		links, err := netlist.Whole(h.LinkList)
		for _, link := range links {
			if err == nil && link.Type() == "tuntap" {
				_, err = redirect(h, link.Attrs().Name)
			}
		}
		return err
	})
	if err != nil {
		return pod.Errorf(kindOf(err), "cannot connect a pod's VM again: %w", err)
	}
	return nil
}
