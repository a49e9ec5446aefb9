package guest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/magikrun/magikpod/internal/netlist"
	"github.com/magikrun/magikpod/runtime/crun"
	"github.com/magikrun/magikpod/runtime/microvm/wire"
)

// linkTimeout is how long a network interface that is being attached may take to appear.
const linkTimeout = 15 * time.Second

// setLoopback sets up lo, with its addresses.
func setLoopback() error {
	link, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("cannot set up lo: %w", err)
	}
	return nil
}

// setNetwork sets up the VM's interface: name, MTU, addresses and routes. What it has already and
// is asked for stays; an address or a route that is not goes.
func setNetwork(n *wire.Network) error {
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		return wire.Errorf(wire.CodeInvalidRequest, "%v", err)
	}
	link, err := awaitLink(mac)
	if err != nil {
		return err
	}
	const name = "eth0"
	if link.Attrs().Name != name {
		if err := rename(link, name); err != nil {
			return err
		}
	}
	// The host says all there is to know: no router may add to it, and no neighbour has to be asked
	// whether an address is free.
	for _, setting := range []struct{ name, value string }{{"accept_ra", "0"}, {"autoconf", "0"}, {"accept_dad", "0"}, {"dad_transmits", "0"}} {
		err := crun.SetSysctl("net/ipv6/conf/"+name+"/"+setting.name, setting.value)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
			return fmt.Errorf("cannot set up the interface %s: %w", name, err)
		}
	}
	if n.MTU > 0 && n.MTU != link.Attrs().MTU {
		if err := netlink.LinkSetMTU(link, n.MTU); err != nil {
			return fmt.Errorf("cannot set the MTU of the interface %s: %w", name, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("cannot set up the interface %s: %w", name, err)
	}
	if err := setAddresses(link, n.Addresses); err != nil {
		return err
	}
	return setRoutes(link, n.Routes)
}

// awaitLink waits for the interface with a hardware address.
func awaitLink(mac net.HardwareAddr) (netlink.Link, error) {
	for deadline := time.Now().Add(linkTimeout); ; time.Sleep(10 * time.Millisecond) {
		links, err := netlist.Whole(netlink.LinkList)
		if err != nil {
			return nil, fmt.Errorf("cannot list network interfaces: %w", err)
		}
		var names []string
		for _, link := range links {
			if strings.EqualFold(link.Attrs().HardwareAddr.String(), mac.String()) {
				return link, nil
			}
			names = append(names, link.Attrs().Name)
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("cannot find the network interface %s: there are %s", mac, strings.Join(names, " "))
		}
	}
}

func rename(link netlink.Link, name string) error {
	err := netlink.LinkSetDown(link)
	if err == nil {
		err = netlink.LinkSetName(link, name)
	}
	if err != nil {
		return fmt.Errorf("cannot rename the interface %s to %s: %w", link.Attrs().Name, name, err)
	}
	return nil
}

func setAddresses(link netlink.Link, wanted []string) error {
	keep := map[string]bool{}
	for _, text := range wanted {
		address, err := netlink.ParseAddr(text)
		if err != nil {
			return wire.Errorf(wire.CodeInvalidRequest, "%v", err)
		}
		keep[address.IPNet.String()] = true
		if address.IP.To4() == nil {
			address.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(link, address); err != nil {
			return fmt.Errorf("cannot set the address %s: %w", text, err)
		}
	}
	list, err := netlist.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("cannot list addresses: %w", err)
	}
	for _, address := range list {
		if keep[address.IPNet.String()] || address.IP.IsLinkLocalUnicast() {
			continue
		}
		if err := netlink.AddrDel(link, &address); err != nil {
			return fmt.Errorf("cannot remove the address %s: %w", address.IPNet, err)
		}
	}
	return nil
}

// setRoutes makes the default routes of the interface those that are asked for. What is left over
// goes last, so that there is a way at all times.
func setRoutes(link netlink.Link, routes []wire.Route) error {
	keep := map[routeKey]bool{}
	for _, r := range routes {
		to := net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		via := net.ParseIP(r.Via)
		if via.To4() != nil {
			to = net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: via, Dst: &to}
		route.SetFlag(netlink.FLAG_ONLINK)
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("cannot set the route to everywhere: %w", err)
		}
		keep[keyOf(route)] = true
	}
	return pruneRoutes(link, keep)
}

// routeKey identifies a route of the interface.
type routeKey struct {
	to, via string
	metric  int
}

// ipv6Metric is what the kernel makes of a metric of 0 for IPv6 (IP6_RT_PRIO_USER).
const ipv6Metric = 1024

func keyOf(r *netlink.Route) routeKey {
	key := routeKey{to: r.Dst.String(), metric: r.Priority}
	if r.Gw != nil {
		key.via = r.Gw.String()
	}
	if key.metric == 0 && r.Dst.IP.To4() == nil {
		key.metric = ipv6Metric
	}
	return key
}

// pruneRoutes removes the routes of the interface but those to keep and the kernel's own, which
// come and go with the addresses.
func pruneRoutes(link netlink.Link, keep map[routeKey]bool) error {
	filter := &netlink.Route{LinkIndex: link.Attrs().Index, Table: unix.RT_TABLE_MAIN}
	list, err := netlist.Whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("cannot list routes: %w", err)
	}
	for _, route := range list {
		if route.Protocol == unix.RTPROT_KERNEL || route.Dst == nil || keep[keyOf(&route)] {
			continue
		}
		if err := netlink.RouteDel(&route); err != nil && !errors.Is(err, unix.ESRCH) { // it has just gone
			return fmt.Errorf("cannot remove the route to %s: %w", route.Dst, err)
		}
	}
	return nil
}
