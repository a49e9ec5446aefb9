package netsetup

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/internal/netlist"
	"github.com/magikrun/magikpod/internal/rawfd"
	"github.com/magikrun/magikpod/pod"
)

// podLink is the name of a pod's link in its own namespace, linkPrefix begins that of the host's end.
const (
	podLink    = "eth0"
	linkPrefix = "mpod"
)

// addrGenNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const addrGenNone = 1

// linkName is the name of the host's end.
func linkName(index int) string { return linkPrefix + strconv.Itoa(index) }

// linkIndex is the inverse of linkName.
func linkIndex(name string) (index int, ok bool) {
	digits, named := strings.CutPrefix(name, linkPrefix)
	index, err := strconv.Atoi(digits)
	return index, named && err == nil && linkName(index) == name
}

// connect makes the pod's link: the pair, the host's end on the bridge, the pod's end in ns with
// the addresses and routes. What is there of an earlier attempt is replaced, unless it is whole. On
// an error nothing is left.
func (m *Manager) connect(ctx context.Context, r *record, br *netlink.Bridge, ns *os.File, again bool) (err error) {
	if err := m.cfg.step(ctx, "link"); err != nil {
		return err
	}
	if again {
		whole, err := m.clear(r, br, ns)
		if err != nil {
			return err
		}
		if whole != nil {
			return m.openLink(r, whole, br)
		}
	}
	defer func() {
		if err != nil {
			err = join(err, m.disconnect(r.index))
		}
	}()
	if err := m.makeLink(ctx, r, br, ns); err != nil {
		return pod.Errorf(kindOf(err), "cannot make link %s: %w", linkName(r.index), err)
	}
	return handleIn(ns, func(h *netlink.Handle) error { return m.configure(ctx, r, h) })
}

// clear removes the link of an earlier Setup, unless it leads to the addresses in ns and is up:
// then it is returned.
func (m *Manager) clear(r *record, br *netlink.Bridge, ns *os.File) (whole netlink.Link, err error) {
	link, err := m.nl.LinkByName(linkName(r.index))
	if err != nil && !isNoLink(err) {
		return nil, err
	}
	if err == nil && link.Attrs().MasterIndex == br.Index {
		ok := false
		err := handleIn(ns, func(h *netlink.Handle) (err error) {
			ok, err = m.isWhole(r, h, link.Attrs().ParentIndex)
			return err
		})
		if err != nil {
			return nil, err
		}
		if ok {
			return link, nil
		}
	}
	return nil, m.disconnect(r.index)
}

// isWhole says whether the pod's end, with the given index, is in the namespace of h, up, and has
// its first address.
func (m *Manager) isWhole(r *record, h *netlink.Handle, index int) (bool, error) {
	link, err := h.LinkByName(podLink)
	if isNoLink(err) {
		return false, nil
	}
	if err != nil || link.Attrs().Index != index || link.Attrs().RawFlags&unix.IFF_UP == 0 {
		return false, err
	}
	addrs, err := netlist.Whole(func() ([]netlink.Addr, error) { return h.AddrList(link, netlink.FAMILY_V4) })
	if err != nil {
		return false, err
	}
	for _, a := range addrs {
		if addrOf(a.IP) == m.addrs(r.index)[0] {
			return true, nil
		}
	}
	return false, nil
}

// makeLink makes the pair. A name may be taken by a leftover of ours, or in ns by a link that is
// being removed.
func (m *Manager) makeLink(ctx context.Context, r *record, br *netlink.Bridge, ns *os.File) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = linkName(r.index), br.MTU, br.Index
	if len(r.ports) > 0 && m.bridge.ipv6 {
		// See openLink. From its birth, or systemd-udevd, which sees a random one, gives it another
		// one later (systemd.link(5), MACAddressPolicy=).
		attrs.HardwareAddr = br.HardwareAddr
	}
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: podLink, PeerHardwareAddr: hardwareAddr(addrAt(m.cfg.IPv4, r.index))}
	err := m.addPair(veth, ns)
	if errors.Is(err, unix.EEXIST) {
		if err := m.waitDrained(ctx); err != nil {
			return err
		}
		if err := m.disconnect(r.index); err != nil {
			return err
		}
		err = m.addPair(veth, ns)
	}
	if err != nil {
		return err
	}
	if err := m.cfg.step(ctx, "link-up"); err != nil {
		return err
	}
	if err := m.nl.LinkSetAlias(veth, alias+" "+string(r.uid)); err != nil {
		return err
	}
	if err := m.openLink(r, veth, br); err != nil {
		return err
	}
	if m.bridge.ipv6 {
		// The bridge's end needs no address; it would announce one in the pod's network.
		if err := m.nl.LinkSetIP6AddrGenMode(veth, addrGenNone); err != nil {
			return err
		}
	}
	return m.nl.LinkSetUp(veth)
}

func (m *Manager) addPair(veth *netlink.Veth, ns *os.File) error {
	return rawfd.Use(ns, func(fd int) error {
		veth.PeerNamespace = netlink.NsFd(fd)
		return m.nl.LinkAdd(veth)
	})
}

// configure sets up the pod's end. It runs in the pod's namespace, which is that of h too.
func (m *Manager) configure(ctx context.Context, r *record, h *netlink.Handle) error {
	if err := m.cfg.step(ctx, "pod-link"); err != nil {
		return err
	}
	link, err := h.LinkByName(podLink)
	if err != nil {
		return pod.Errorf(kindOf(err), "cannot find the pod's %s: %w", podLink, err)
	}
	if m.bridge.ipv6 {
		// Neighbours in the bridge are no routers, and link-local addresses need not wait.
		const conf = ipv6Conf + "/" + podLink
		if err := writePodSysctls(setting{conf + "/disable_ipv6", "0"}, setting{conf + "/accept_ra", "0"}, setting{conf + "/accept_dad", "0"}); err != nil {
			return err
		}
	}
	if err := setLoopbackUp(h); err != nil {
		return err
	}
	if err := h.LinkSetUp(link); err != nil {
		return pod.Errorf(kindOf(err), "cannot bring up the pod's %s: %w", podLink, err)
	}
	if err := m.cfg.step(ctx, "pod-address"); err != nil {
		return err
	}
	for _, p := range m.bridge.subnets() {
		if err := addressAndRoute(h, link, p, r.index); err != nil {
			return pod.Errorf(kindOf(err), "cannot set address %s of the pod: %w", addrAt(p, r.index), err)
		}
	}
	return m.cfg.step(ctx, "pod-done")
}

func addressAndRoute(h *netlink.Handle, link netlink.Link, p netip.Prefix, index int) error {
	addr := &netlink.Addr{IPNet: ipNet(addrAt(p, index), p.Bits()), Flags: addrFlags(p)}
	if err := h.AddrAdd(link, addr); err != nil {
		return err
	}
	return h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: addrAt(p, 1).AsSlice()})
}

// dying is the group of links that are about to be removed together. Its number spells "magk";
// nobody else is expected to use it.
const dying = 0x6d61676b

// disconnect removes the links of indexes, which may have gone with their pods' namespaces, and
// which are left alone when they are another's.
func (m *Manager) disconnect(indexes ...int) error {
	var links []netlink.Link
	for _, index := range indexes {
		link, err := m.nl.LinkByName(linkName(index))
		if err != nil && !isNoLink(err) {
			return pod.Errorf(kindOf(err), "cannot find link %s: %w", linkName(index), err)
		}
		if err == nil {
			if _, _, ok := ours(link); ok {
				links = append(links, link)
			}
		}
	}
	if len(links) > 1 && m.removeGroup(links) == nil {
		return nil
	}
	for _, link := range links {
		// By a socket of its own: requests by m.nl would wait until the link is gone.
		if err := netlink.LinkDel(link); err != nil && !isNoLink(err) {
			return pod.Errorf(kindOf(err), "cannot remove link %s: %w", link.Attrs().Name, err)
		}
	}
	return nil
}

// removeGroup removes links by one request, for which the kernel waits once; by a socket of its own.
func (m *Manager) removeGroup(links []netlink.Link) error {
	for _, link := range links {
		if err := m.nl.LinkSetGroup(link, dying); err != nil && !isNoLink(err) {
			return err
		}
	}
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(dying)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// ours reads a link's name and alias. One without alias comes from a Setup that was cut off.
func ours(link netlink.Link) (index int, uid types.UID, ok bool) {
	index, named := linkIndex(link.Attrs().Name)
	if !named || link.Type() != "veth" {
		return 0, "", false
	}
	id, marked := strings.CutPrefix(link.Attrs().Alias, alias+" ")
	return index, types.UID(id), marked || link.Attrs().Alias == ""
}

// addrs are the addresses of a pod, IPv4 first.
func (m *Manager) addrs(index int) []netip.Addr {
	var out []netip.Addr
	for _, p := range m.bridge.subnets() {
		out = append(out, addrAt(p, index))
	}
	return out
}
