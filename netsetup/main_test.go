package netsetup

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

// inside is set in the process that has a network of its own.
const inside = "NETSETUP_TEST_INSIDE"

// TestMain runs the tests in a process with its own network and mount namespaces, which stand for a host's and go with the process.
func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" || os.Geteuid() != 0 {
		if os.Getenv(inside) != "" {
			if err := loopbackUp(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // the signal comes when the thread that has started the child ends
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState == nil {
			fmt.Fprintln(os.Stderr, "cannot run the tests in a network namespace:", err)
		}
		os.Exit(1)
	}
	os.Exit(0)
}

func needNetwork(t testing.TB) {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("needs a network namespace: run as root")
	}
	if _, err := exec.LookPath(findNft()); err != nil {
		t.Skip("needs nft: install the package nftables")
	}
}

// newManager makes a Manager whose Close, at the end of the test, has to leave the host as it was.
func newManager(t testing.TB, change ...func(*Config)) *Manager {
	t.Helper()
	needNetwork(t)
	before := snapshot(t)
	dir := t.TempDir()
	cfg := Config{StateFile: filepath.Join(dir, "net.json")}
	for _, c := range change {
		c(&cfg)
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, r := range m.records() {
			if err := m.Teardown(context.Background(), r.uid); err != nil {
				t.Error(err)
			}
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if after := snapshot(t); after != before {
			t.Errorf("the host is not as it was: %s", cmp.Diff(before, after))
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%d files left: %s", len(left), left[0].Name())
		}
	})
	return m
}

// snapshot is what the host's network is made of, in a form that can be compared.
func snapshot(t testing.TB) string {
	t.Helper()
	var lines []string
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		lines = append(lines, "link "+l.Attrs().Name)
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if a.IP.IsLinkLocalUnicast() {
				continue // the kernel adds it when it sees fit
			}
			lines = append(lines, "address "+a.IPNet.String())
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteList(nil, family)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			if r.Dst != nil && r.Dst.IP.IsLinkLocalUnicast() {
				continue
			}
			lines = append(lines, fmt.Sprintf("route %v %v", r.Dst, r.Gw))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n" + nftRules(t)
}

func nftRules(t testing.TB) string {
	t.Helper()
	out, err := exec.Command(findNft(), "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft list ruleset: %v: %s", err, out)
	}
	return string(out)
}

func nft(t testing.TB, script string) {
	t.Helper()
	cmd := exec.Command(findNft(), "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
}

func newNS(t testing.TB) *os.File {
	t.Helper()
	needNetwork(t)
	ns, err := NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// newPod sets up the network of a pod.
func newPod(t testing.TB, m *Manager, uid string, ports ...Port) (*os.File, Result) {
	t.Helper()
	ns := newNS(t)
	r, err := m.Setup(t.Context(), PodNetwork{UID: types.UID(uid), Name: "default/" + uid, Ports: ports}, ns)
	if err != nil {
		t.Fatal(err)
	}
	return ns, r
}

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

// The addresses of the host and of the other machine on the network between them.
var (
	hostLAN4, hostLAN6   = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	otherLAN4, otherLAN6 = netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
)

// newLAN makes another machine: a namespace behind a link of the host.
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
	setUp := func(a4, a6 netip.Addr) error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
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
	if err := setUp(hostLAN4, hostLAN6); err != nil {
		t.Fatal(err)
	}
	if err := inNetns(ns, func() error { return setUp(otherLAN4, otherLAN6) }); err != nil {
		t.Fatal(err)
	}
	return ns
}
