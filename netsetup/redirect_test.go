package netsetup

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const testTap = "mvm0"

// openTap makes a tap device in ns and opens it: one frame a read, one a write. It goes when the
// file is closed.
func openTap(t *testing.T, ns *os.File) *os.File {
	t.Helper()
	var f *os.File
	err := inNetns(ns, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq(testTap)
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			unix.Close(fd)
			return err
		}
		f = os.NewFile(uintptr(fd), "tap")
		return nil
	})
	if os.IsNotExist(err) {
		t.Skip("needs /dev/net/tun (try: modprobe tun)")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// newVM is what a VM is to the network: another namespace, all of whose frames pass through a file
// of this process, which is the tap of the pod.
func newVM(t *testing.T, pod *os.File) (vm *os.File) {
	t.Helper()
	vm = newNS(t)
	for _, way := range [][2]*os.File{{openTap(t, pod), openTap(t, vm)}} {
		for _, w := range [][2]*os.File{{way[0], way[1]}, {way[1], way[0]}} {
			go func() {
				frame := make([]byte, 65536)
				for {
					n, err := w[0].Read(frame)
					if err != nil {
						return
					}
					_, _ = w[1].Write(frame[:n]) // a network may lose a frame
				}
			}()
		}
	}
	return vm
}

// connectVM gives the VM what its place in the network needs.
func connectVM(t *testing.T, vm *os.File, link PodLink) {
	t.Helper()
	err := handleIn(vm, func(h *netlink.Handle) error {
		dev, err := h.LinkByName(testTap)
		if err != nil {
			return err
		}
		if err := h.LinkSetHardwareAddr(dev, link.MAC); err != nil {
			return err
		}
		if err := h.LinkSetMTU(dev, link.MTU); err != nil {
			return err
		}
		if err := h.LinkSetUp(dev); err != nil {
			return err
		}
		for _, a := range link.Addresses {
			if err := h.AddrAdd(dev, &netlink.Addr{IPNet: ipNet(a.Addr(), a.Bits()), Flags: addrFlags(a)}); err != nil {
				return fmt.Errorf("address %s: %w", a, err)
			}
		}
		for _, gw := range link.Gateways {
			if err := h.RouteAdd(&netlink.Route{LinkIndex: dev.Attrs().Index, Gw: gw.AsSlice()}); err != nil {
				return fmt.Errorf("route by %s: %w", gw, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestRedirect(t *testing.T) {
	m := newManager(t)
	lan := newLAN(t)
	ns, r := newPod(t, m, "vm", Port{HostPort: 8080, Port: 80})
	other, ro := newPod(t, m, "other")
	vm := newVM(t, ns)
	link, err := Redirect(ns, testTap)
	if err != nil {
		t.Fatal(err)
	}
	if len(link.MAC) != 6 || link.MTU < 1280 || len(link.Addresses) != len(r.IPs) {
		t.Fatalf("the pod's link is %+v", link)
	}
	for i, a := range link.Addresses {
		if a.Addr() != r.IPs[i] {
			t.Errorf("address %d is %s, want %s", i, a, r.IPs[i])
		}
	}
	if diff := cmp.Diff(r.Gateways, link.Gateways, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("gateways: %s", diff)
	}
	connectVM(t, vm, link)
	again, err := Redirect(ns, testTap)
	if err != nil || cmp.Diff(link, again, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })) != "" {
		t.Fatalf("again: %+v, %v", again, err)
	}

	serve(t, vm, "tcp", ":80")
	serve(t, vm, "udp", ":53")
	serve(t, other, "tcp", ":80")
	serve(t, lan, "tcp", ":80")
	for i := range r.IPs {
		wantFrom(t, nil, "tcp", at(r.IPs[i], 80), r.Gateways[i]) // the host
		wantFrom(t, other, "tcp", at(r.IPs[i], 80), ro.IPs[i])   // another pod
		wantFrom(t, other, "udp", at(r.IPs[i], 53), ro.IPs[i])   //
		wantFrom(t, vm, "tcp", at(ro.IPs[i], 80), r.IPs[i])      // and the other way round
		wantFrom(t, vm, "tcp", at(r.IPs[i], 80), r.IPs[i])       // the VM itself
		wantNone(t, ns, "tcp", at(r.IPs[i], 80))                 // the namespace is not in the network any more
		wantNone(t, other, "tcp", at(r.IPs[i], 81))              // nobody listens
	}
	wantFrom(t, vm, "tcp", at(otherLAN4, 80), hostLAN4)              // outwards
	wantFrom(t, lan, "tcp", at(hostLAN4, 8080), otherLAN4)           // a published port
	wantFrom(t, nil, "tcp", "127.0.0.1:8080", r.Gateways[0])         //
	sendMuch(t, other, vm, net.JoinHostPort(r.IPs[0].String(), "9")) // more than a segment, so that offloads count
}

// sendMuch sends some megabytes from one namespace to a server in another, which must get them as
// they are.
func sendMuch(t *testing.T, from, to *os.File, addr string) {
	t.Helper()
	const size = 8 << 20
	want := bytes.Repeat([]byte("0123456789abcde\n"), size/16)
	got := make(chan []byte, 1)
	err := in(to, func() error {
		l, err := net.Listen("tcp", ":9")
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			var data []byte
			if c, err := l.Accept(); err == nil {
				_ = c.SetDeadline(time.Now().Add(2 * patience))
				data, _ = io.ReadAll(c)
				c.Close()
			}
			got <- data
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var c net.Conn
	if err := in(from, func() error { c, err = net.DialTimeout("tcp", addr, patience); return err }); err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(2 * patience))
	if _, err := c.Write(want); err != nil {
		t.Error(err)
	}
	c.Close()
	if data := <-got; !bytes.Equal(data, want) {
		t.Errorf("%d bytes came, which are not the %d that were sent", len(data), len(want))
	}
}

// A VM that has died has another tap in its place, with another number.
func TestRedirectNewTap(t *testing.T) {
	m := newManager(t)
	ns, r := newPod(t, m, "vm")
	first := openTap(t, ns)
	if _, err := Redirect(ns, testTap); err != nil {
		t.Fatal(err)
	}
	first.Close()
	if _, err := Redirect(ns, testTap); err == nil {
		t.Error("redirected to a tap that is gone")
	}
	vm := newVM(t, ns)
	link, err := Redirect(ns, testTap)
	if err != nil {
		t.Fatal(err)
	}
	connectVM(t, vm, link)
	serve(t, vm, "tcp", ":80")
	wantFrom(t, nil, "tcp", at(r.IPs[0], 80), r.Gateways[0])
}

func TestRedirectNothing(t *testing.T) {
	ns := newNS(t)
	if _, err := Redirect(ns, testTap); err == nil {
		t.Error("a namespace without links was redirected")
	}
	if _, err := Redirect(nil, testTap); err == nil {
		t.Error("no namespace was redirected")
	}
}
