package netsetup

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// reports collects what a Manager reports.
type reports struct {
	mu    sync.Mutex
	lines []string
}

func (c *reports) add(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines = append(c.lines, text)
}

func (c *reports) count(text string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, line := range c.lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func (c *reports) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines = nil
}

func run(t testing.TB, command string) {
	t.Helper()
	if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
}

// within waits until check finds no fault.
func within(t testing.TB, what string, check func() error) {
	t.Helper()
	for end := time.Now().Add(2 * patience); ; time.Sleep(50 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// TestMended breaks what pods need in the kernel, one thing after the other: each is repaired while
// nothing else happens, is reported once, and a new pod with a published port starts at once.
func TestMended(t *testing.T) {
	var said reports
	m := newManager(t, func(c *Config) { c.Report = said.add })
	lan := newLAN(t)
	server, rs := newPod(t, m, "server", Port{HostPort: 8080, Port: 80}, Port{HostPort: 5353, Port: 53, Protocol: corev1.ProtocolUDP})
	client, _ := newPod(t, m, "client")
	serve(t, server, "tcp", ":80")
	serve(t, server, "udp", ":53")
	routeBack(t, lan, m)
	serve(t, lan, "tcp", ":80")
	conf4, conf6 := "/proc/sys/net/ipv4/", "/proc/sys/net/ipv6/conf/"
	link := linkName(2)
	for _, tt := range []struct {
		break_ string
	}{
		{break_: "ip link del magikpod0"},
		{break_: "ip link set magikpod0 down"},
		{break_: "printf 'link set magikpod0 down\nlink set magikpod0 name other0\n' | ip -batch -"},
		{break_: "ip addr flush dev magikpod0"},
		{break_: "ip -6 addr flush dev magikpod0 scope link"},
		{break_: "ip -4 addr del 10.212.0.1/16 dev magikpod0"},
		{break_: "ip -6 addr del fd6d:6167:696b::1/64 dev magikpod0"},
		{break_: "ip route del 10.212.0.0/16"},
		{break_: "ip -6 route del fd6d:6167:696b::/64"},
		{break_: "ip -6 route del local ::1 dev magikpod0 table local"},
		{break_: "echo 0 >" + conf4 + "conf/magikpod0/route_localnet"},
		{break_: "echo 0 >" + conf4 + "ip_forward"},
		{break_: "echo 0 >" + conf4 + "conf/magikpod0/forwarding"},
		{break_: "echo 0 >" + conf6 + "all/forwarding"},
		{break_: "echo 1 >" + conf6 + "magikpod0/disable_ipv6"},
		{break_: "ip link set " + link + " nomaster"},
		{break_: "ip link set " + link + " down"},
		{break_: "ip link del " + link},
		{break_: "ip link set " + link + " address 02:00:00:00:00:01"},
		{break_: "ip link set magikpod0 address 02:00:00:00:00:01"},
		{break_: "nft flush ruleset"},
		{break_: "nft delete table inet magikpod"},
		{break_: "nft flush map inet magikpod ports4; nft flush map inet magikpod ports6"},
		{break_: "nft delete element inet magikpod ports6 '{ tcp . 8080 }'"},
		{break_: "nft flush chain inet magikpod postrouting"},
		{break_: "nft flush chain inet magikpod guard; ip link del magikpod0; nft flush ruleset"},
	} {
		t.Run(tt.break_, func(t *testing.T) {
			said.reset()
			before := snapshot(t)
			run(t, tt.break_)
			within(t, "the host is not as it was", func() error {
				if snapshot(t) != before {
					return errors.New("it differs")
				}
				return nil
			})
			within(t, "nothing is reported", func() error {
				if said.count("") == 0 {
					return errors.New("silence")
				}
				return nil
			})
			within(t, "the bridge's link-local address", func() error {
				m.hostMu.Lock()
				defer m.hostMu.Unlock()
				has, err := m.bridge.hasLinkLocal()
				if !has && err == nil {
					err = errors.New("it is missing")
				}
				return err
			})
			within(t, "hardware addresses", func() error {
				var errs []error
				for _, name := range []string{"magikpod0", link} {
					l, err := netlink.LinkByName(name)
					if err == nil && !bytes.Equal(l.Attrs().HardwareAddr, hardwareAddr(rs.Gateways[0])) {
						err = fmt.Errorf("%s has %s", name, l.Attrs().HardwareAddr)
					}
					errs = append(errs, err)
				}
				return errors.Join(errs...)
			})
			for network, port := range map[string]int{"tcp": 8080, "udp": 5353} {
				within(t, "published ports", func() error {
					var errs []error
					for _, to := range []string{"127.0.0.1", "127.0.0.2", "[::1]", rs.IPs[0].String(), hostLAN4.String(), "[" + hostLAN6.String() + "]"} {
						p := port
						if to == rs.IPs[0].String() {
							p = map[string]int{"tcp": 80, "udp": 53}[network]
						}
						if _, err := ask(nil, network, fmt.Sprint(to, ":", p), time.Second); err != nil {
							errs = append(errs, fmt.Errorf("%s %s: %w", network, to, err))
						}
					}
					return errors.Join(errs...)
				})
			}
			wantFrom(t, client, "tcp", at(rs.IPs[1], 80), mustLookup(t, m, "client").IPs[1])
			within(t, "the way out", func() error { _, err := ask(server, "tcp", at(otherLAN4, 80), time.Second); return err })
			wantFrom(t, lan, "tcp", at(hostLAN6, 8080), otherLAN6)
			if n := said.count(""); n > 3 {
				t.Errorf("reported %d times: %q", n, said.lines)
			}
		})
	}
	// Quiet again: what was repaired is not repaired over and over.
	time.Sleep(2 * mendEvery)
	said.reset()
	time.Sleep(2 * mendEvery)
	if n := said.count(""); n > 0 {
		t.Errorf("reported %d times without need: %q", n, said.lines)
	}
	// And what comes before anybody could notice.
	for i, break_ := range []string{"ip link del magikpod0", "ip link set magikpod0 down", "nft flush ruleset"} {
		ns := newNS(t)
		uid := types.UID(fmt.Sprint("new", i))
		serve(t, ns, "tcp", ":80")
		run(t, break_)
		if _, err := m.Setup(t.Context(), PodNetwork{UID: uid, Name: string(uid), Ports: []Port{{HostPort: uint16(8090 + i), Port: 80}}}, ns); err != nil {
			t.Errorf("after %s: %v", break_, err)
		}
		within(t, break_, func() error { _, err := ask(nil, "tcp", fmt.Sprint("[::1]:", 8090+i), time.Second); return err })
	}
}

func mustLookup(t testing.TB, m *Manager, uid types.UID) Result {
	t.Helper()
	r, ok := m.Lookup(uid)
	if !ok {
		t.Fatalf("pod %s has no network", uid)
	}
	return r
}

// TestForeignTakesName: another's link in the bridge's place is left alone, reported once, and pods
// are back when it has gone.
func TestForeignTakesName(t *testing.T) {
	var said reports
	m := newManager(t, func(c *Config) { c.Report = said.add })
	server, rs := newPod(t, m, "server", Port{HostPort: 8080, Port: 80})
	serve(t, server, "tcp", ":80")
	within(t, "it is mended in between", func() error {
		return exec.Command("sh", "-c", "ip link del magikpod0; ip link add magikpod0 type veth peer name other0").Run()
	})
	within(t, "it is not reported", func() error {
		if said.count("not magikpod's") == 0 {
			return errors.New("silence")
		}
		return nil
	})
	time.Sleep(3 * mendEvery)
	if n := said.count("not magikpod's"); n != 1 {
		t.Errorf("reported %d times: %q", n, said.lines)
	}
	if link, err := netlink.LinkByName(DefaultBridge); err != nil || link.Type() != "veth" {
		t.Fatalf("the other's link is %v, %v", link, err)
	}
	run(t, "ip link del magikpod0")
	within(t, "no answer", func() error { _, err := ask(nil, "tcp", "127.0.0.1:8080", time.Second); return err })
	wantFrom(t, nil, "tcp", at(rs.IPs[0], 80), rs.Gateways[0])
}

// TestStateLost: the state file is written again when somebody removes it, and found without it by
// the next daemon, ports and all.
func TestStateLost(t *testing.T) {
	var said reports
	m := newManager(t, func(c *Config) { c.Report = said.add })
	server, rs := newPod(t, m, "server", Port{HostPort: 8080, Port: 80})
	serve(t, server, "tcp", ":80")
	want, err := os.ReadFile(m.cfg.StateFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(m.cfg.StateFile); err != nil {
		t.Fatal(err)
	}
	within(t, "the state file", func() error {
		got, err := os.ReadFile(m.cfg.StateFile)
		if err == nil && string(got) != string(want) {
			err = fmt.Errorf("it is %s, was %s", got, want)
		}
		return err
	})
	within(t, "nothing is reported", func() error {
		if said.count("was removed") != 1 {
			return errors.New("silence")
		}
		return nil
	})
	m.watch.close()
	m.watches.Wait()
	if err := os.Remove(m.cfg.StateFile); err != nil {
		t.Fatal(err)
	}
	nft(t, "flush ruleset")
	n := reopen(t, m, "server")
	wantFrom(t, nil, "tcp", "127.0.0.1:8080", rs.Gateways[0])
	wantFrom(t, nil, "tcp", "[::1]:8080", rs.Gateways[1])
	if said.count("did not have 1 pods") != 1 {
		t.Errorf("reported %q", said.lines)
	}
	_, r := newPod(t, n, "new", Port{HostPort: 8081, Port: 80})
	if r.IPs[0] == rs.IPs[0] {
		t.Errorf("the new pod got the address %s of the old one", r.IPs[0])
	}
	if got, err := os.ReadFile(n.cfg.StateFile); err != nil || !strings.Contains(string(got), `"Name":"default/server"`) {
		t.Errorf("the state file is %s, %v", got, err)
	}
}

// TestStateUnreadable: a state that cannot be read is not lost. Nothing is removed, given out again
// or written for it, and when it can be read all is as before.
func TestStateUnreadable(t *testing.T) {
	var said reports
	m := newManager(t, func(c *Config) { c.Report = said.add })
	server, rs := newPod(t, m, "server", Port{HostPort: 8080, Port: 80})
	serve(t, server, "tcp", ":80")
	m.watch.close()
	m.watches.Wait()
	dir := filepath.Dir(m.cfg.StateFile)
	run(t, "mv "+dir+" "+dir+".real; touch "+dir) // ENOTDIR: nobody knows what was in it
	for _, r := range m.records() {
		r.sockets.close()
		r.sockets = nil
		r.release()
	}
	n, err := New(m.cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = n.Restore(t.Context(), only("server"))
	if err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("Restore: %v", err)
	}
	if _, err := n.Setup(t.Context(), PodNetwork{UID: "new"}, newNS(t)); err == nil {
		t.Error("a pod was given an address of unknown state")
	}
	if err := n.Teardown(t.Context(), "new"); err != nil {
		t.Errorf("what was refused cannot be removed: %v", err)
	}
	if err := n.Teardown(t.Context(), "server"); err == nil {
		t.Error("a pod of unknown state was removed")
	}
	wantFrom(t, nil, "tcp", "127.0.0.1:8080", rs.Gateways[0])
	run(t, "rm "+dir+"; mv "+dir+".real "+dir)
	within(t, "restored", func() error {
		if got, ok := n.Lookup("server"); !ok || got.IPs[0] != rs.IPs[0] {
			return fmt.Errorf("server has %v", got)
		}
		return nil
	})
	within(t, "nothing is reported", func() error {
		if said.count("restored after all") != 1 {
			return errors.New("silence")
		}
		return nil
	})
	_, err = n.Setup(t.Context(), PodNetwork{UID: "x", Ports: []Port{{HostPort: 8080, Port: 1}}}, newNS(t))
	if err == nil || !strings.Contains(err.Error(), "default/server has it") {
		t.Errorf("the port is free: %v", err)
	}
	if err := n.Teardown(t.Context(), "server"); err != nil {
		t.Error(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	m.mu.Lock()
	clear(m.pods)
	m.mu.Unlock()
}

// TestLoopbackGuard: the way to ::1 does not open to pods what is published there, whether or not
// bridged packets pass the firewall.
func TestLoopbackGuard(t *testing.T) {
	m := newManager(t)
	from, r := newPod(t, m, "from", Port{HostPort: 8080, Port: 80})
	to, _ := newPod(t, m, "to", Port{HostPort: 5353, Port: 53, Protocol: corev1.ProtocolUDP, HostIP: netip.IPv6Loopback()})
	var server net.PacketConn
	err := inNetns(to, func() (err error) { server, err = net.ListenPacket("udp", ":53"); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	send := func(ns *os.File) error {
		t.Helper()
		err := in(ns, func() error {
			c, err := net.Dial("udp", "[::1]:5353")
			if err == nil {
				_, err = c.Write([]byte("?"))
				c.Close()
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		_ = server.SetReadDeadline(time.Now().Add(impatience))
		_, _, err = server.ReadFrom(make([]byte, 1))
		return err
	}
	// What a pod that may change its network would do.
	err = inNetns(from, func() error {
		return exec.Command("sh", "-c", "ip -6 addr del ::1/128 dev lo; ip -6 route del local ::1 table local 2>/dev/null; ip -6 route add ::1/128 via "+
			r.Gateways[1].String()+" dev eth0 src "+r.IPs[1].String()).Run()
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, filtered := range []string{"0", "1"} {
		_ = writeSysctl("/proc/sys/net/bridge/bridge-nf-call-ip6tables", filtered)
		if err := send(from); err == nil {
			t.Errorf("bridge-nf-call=%s: a pod reached what is published at ::1", filtered)
		}
	}
	if err := send(nil); err != nil {
		t.Errorf("the host does not reach it: %v", err)
	}
}

// TestBridgeLostMeanwhile: a bridge that goes in the middle of a Setup costs the pod nothing.
func TestBridgeLostMeanwhile(t *testing.T) {
	for _, step := range []string{"link", "loopback"} {
		t.Run(step, func(t *testing.T) {
			var once sync.Once
			m := newManager(t, func(c *Config) {
				c.Fault = func(at string) error {
					if at == step {
						once.Do(func() { run(t, "ip link del magikpod0") })
					}
					return nil
				}
			})
			ns, r := newPod(t, m, "a", Port{HostPort: 8080, Port: 80})
			serve(t, ns, "tcp", ":80")
			within(t, "no answer", func() error { _, err := ask(nil, "tcp", "[::1]:8080", time.Second); return err })
			wantFrom(t, nil, "tcp", "127.0.0.1:8080", r.Gateways[0])
		})
	}
}

// TestMendDuringSetup: what a Setup has not done yet is nobody's change.
func TestMendDuringSetup(t *testing.T) {
	var said reports
	var m *Manager
	m = newManager(t, func(c *Config) {
		c.Report = said.add
		c.Fault = func(step string) error {
			if step == "loopback" && m.mend(map[int]bool{allLinks: true}, m.watch) {
				return errors.New("there was something to mend")
			}
			return nil
		}
	})
	ns, rs := newPod(t, m, "a", Port{HostPort: 8080, Port: 80})
	serve(t, ns, "tcp", ":80")
	wantFrom(t, nil, "tcp", "127.0.0.1:8080", rs.Gateways[0])
	if said.count("") > 0 {
		t.Errorf("reported %q", said.lines)
	}
}
