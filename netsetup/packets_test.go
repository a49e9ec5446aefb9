package netsetup

import (
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// serve answers each connection or packet to addr in ns, the host when nil, with the caller's address.
func serve(t testing.TB, ns *os.File, network, addr string) {
	t.Helper()
	err := in(ns, func() error {
		if strings.HasPrefix(network, "udp") {
			c, err := net.ListenPacket(network, addr)
			if err != nil {
				return err
			}
			t.Cleanup(func() { c.Close() })
			go func() {
				buf := make([]byte, 100)
				for {
					_, from, err := c.ReadFrom(buf)
					if err != nil {
						return
					}
					_, _ = c.WriteTo([]byte(from.String()), from)
				}
			}()
			return nil
		}
		l, err := net.Listen(network, addr)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, c.RemoteAddr().String())
				c.Close()
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// ask connects from ns, the host when nil, and returns the address that the server sees.
func ask(ns *os.File, network, addr string, timeout time.Duration) (from netip.Addr, err error) {
	err = in(ns, func() error {
		c, err := (&net.Dialer{Timeout: timeout}).Dial(network, addr)
		if err != nil {
			return err
		}
		defer c.Close()
		from, err = callerOf(c, network, timeout)
		return err
	})
	return from, err
}

func callerOf(c net.Conn, network string, timeout time.Duration) (netip.Addr, error) {
	_ = c.SetDeadline(time.Now().Add(timeout))
	if strings.HasPrefix(network, "udp") {
		if _, err := c.Write([]byte("?")); err != nil {
			return netip.Addr{}, err
		}
	}
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	if err != nil {
		return netip.Addr{}, err
	}
	a, err := netip.ParseAddrPort(string(buf[:n]))
	return a.Addr().Unmap(), err
}

func in(ns *os.File, fn func() error) error {
	if ns == nil {
		return fn()
	}
	return inNetns(ns, fn)
}

const (
	patience   = 10 * time.Second        // for what has to work
	impatience = 1500 * time.Millisecond // for what must not
)

// wantFrom checks that the server can be reached and sees the caller as from.
func wantFrom(t testing.TB, ns *os.File, network, addr string, from netip.Addr) {
	t.Helper()
	got, err := ask(ns, network, addr, patience)
	if err != nil {
		t.Errorf("%s %s: %v", network, addr, err)
	} else if got != from {
		t.Errorf("%s %s: the server sees %s, want %s", network, addr, got, from)
	}
}

func wantNone(t testing.TB, ns *os.File, network, addr string) {
	t.Helper()
	if from, err := ask(ns, network, addr, impatience); err == nil {
		t.Errorf("%s %s answered %s, want no connection", network, addr, from)
	}
}

// The addresses of the host and of the other host on the network between them.
var (
	hostLAN4, hostLAN6   = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	otherLAN4, otherLAN6 = netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
)

// newLAN makes another host: a namespace behind a link of the host.
func newLAN(t testing.TB) *os.File {
	t.Helper()
	ns := newNS(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "lan0"
	link := &netlink.Veth{LinkAttrs: attrs, PeerName: "lan0", PeerNamespace: netlink.NsFd(ns.Fd())}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(link); err != nil {
			t.Error(err)
		}
	})
	setUp := func(h *netlink.Handle, a4, a6 netip.Addr) error {
		l, err := h.LinkByName("lan0")
		if err != nil {
			return err
		}
		if err := h.AddrAdd(l, &netlink.Addr{IPNet: ipNet(a4, 24)}); err != nil {
			return err
		}
		if err := h.AddrAdd(l, &netlink.Addr{IPNet: ipNet(a6, 64), Flags: unix.IFA_F_NODAD}); err != nil {
			return err
		}
		return h.LinkSetUp(l)
	}
	if err := withHandle(func(h *netlink.Handle) error { return setUp(h, hostLAN4, hostLAN6) }); err != nil {
		t.Fatal(err)
	}
	if err := handleIn(ns, func(h *netlink.Handle) error { return setUp(h, otherLAN4, otherLAN6) }); err != nil {
		t.Fatal(err)
	}
	return ns
}
