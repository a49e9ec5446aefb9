package netsetup

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/magikrun/magikpod/internal/netlist"
	"github.com/magikrun/magikpod/pod"
)

// reopen is what a daemon's restart does. The old Manager is left as by a crash, without its hold
// on the ports and the firewall.
func reopen(t *testing.T, m *Manager, keep ...string) *Manager {
	t.Helper()
	m.hostMu.Lock()
	m.up, m.present = false, false
	m.watch.close()
	m.hostMu.Unlock()
	m.watches.Wait()
	for _, r := range m.records() {
		r.sockets.close()
		r.sockets = nil
	}
	n, err := New(m.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, r := range n.records() {
			if err := n.Teardown(context.Background(), r.uid); err != nil {
				t.Error(err)
			}
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		clear(m.pods)
	})
	if err := n.Restore(t.Context(), only(keep...)); err != nil {
		t.Fatal(err)
	}
	return n
}

// only knows the pods, which publish port 8080.
func only(uids ...string) func(types.UID) (PodNetwork, bool) {
	return func(uid types.UID) (PodNetwork, bool) {
		return PodNetwork{UID: uid, Name: "default/" + string(uid), Ports: []Port{{HostPort: 8080, Port: 80}}}, slices.Contains(uids, string(uid))
	}
}

func TestRestore(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, m *Manager)
	}{
		{"nothing lost", func(*testing.T, *Manager) {}},
		{"rules flushed", func(t *testing.T, _ *Manager) { nft(t, "flush ruleset") }},
		{"a map flushed", func(t *testing.T, _ *Manager) { nft(t, "flush map inet "+tableName+" ports4") }},
		{"bridge removed", func(t *testing.T, m *Manager) {
			if err := netlink.LinkDel(m.bridge.link); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var said reports
			m := newManager(t, func(c *Config) { c.Report = said.add })
			keep, rk := newPod(t, m, "keep", Port{HostPort: 8080, Port: 80})
			_, rg := newPod(t, m, "gone", Port{HostPort: 8081, Port: 80})
			serve(t, keep, "tcp", ":80")
			m.watch.close() // it would mend the damage itself
			m.watches.Wait()
			tt.damage(t, m)
			n := reopen(t, m, "keep")
			if got, ok := n.Lookup("keep"); !ok || got.IPs[0] != rk.IPs[0] {
				t.Errorf("keep has %v, want %v", got.IPs, rk.IPs)
			}
			if _, ok := n.Lookup("gone"); ok {
				t.Error("gone is still there")
			}
			if err := n.Sweep(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := netlink.LinkByName(linkName(int(rg.IPs[0].As4()[3]))); !isNoLink(err) {
				t.Errorf("the link of gone: %v", err)
			}
			wantFrom(t, nil, "tcp", at(rk.IPs[0], 80), rk.Gateways[0])
			wantFrom(t, nil, "tcp", "127.0.0.1:8080", rk.Gateways[0])
			if strings.Contains(nftRules(t), "8081") {
				t.Error("the port of gone is still there")
			}
			_, err := n.Setup(t.Context(), PodNetwork{UID: "x", Ports: []Port{{HostPort: 8080, Port: 1}}}, newNS(t))
			wantKind(t, err, pod.Conflict, "default/keep")
			if said.count("") > 0 {
				t.Errorf("reported %q", said.lines)
			}
			newPod(t, n, "new", Port{HostPort: 8081, Port: 80})
		})
	}
}

// TestRestoreNothing: nothing of pods that are gone is left, not even the bridge.
func TestRestoreNothing(t *testing.T) {
	m := newManager(t)
	before := snapshot(t)
	newPod(t, m, "gone", Port{HostPort: 8081, Port: 80})
	n := reopen(t, m)
	if err := n.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := snapshot(t); after != before {
		t.Errorf("the host is not as it was: %s", cmp.Diff(before, after))
	}
}

func TestRestoreCorrupt(t *testing.T) {
	for _, content := range []string{"", "{", `{"Version": 2}`, `[]`, "\x00\x00"} {
		t.Run(content, func(t *testing.T) {
			var said reports
			m := newManager(t, func(c *Config) { c.Report = said.add })
			ns, rk := newPod(t, m, "keep", Port{HostPort: 8080, Port: 80})
			newPod(t, m, "gone")
			if err := os.WriteFile(m.cfg.StateFile, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			n := reopen(t, m, "keep")
			aside := m.cfg.StateFile + ".corrupt"
			if said.count(" and is now "+aside) != 1 || said.count("") != 2 { // and about the pod that it did not have
				t.Errorf("reported %q, want one line about %s", said.lines, aside)
			}
			if got, err := os.ReadFile(aside); err != nil || string(got) != content {
				t.Errorf("set aside %q, %v", got, err)
			}
			if err := os.Remove(aside); err != nil {
				t.Error(err)
			}
			serve(t, ns, "tcp", ":80")
			wantFrom(t, nil, "tcp", at(rk.IPs[0], 80), rk.Gateways[0])
			got, err := n.Setup(t.Context(), PodNetwork{UID: "keep", Ports: []Port{{HostPort: 8080, Port: 80}}}, ns)
			if err != nil || got.IPs[0] != rk.IPs[0] {
				t.Fatalf("%v, %v; want %v as before", got, err, rk.IPs)
			}
			wantFrom(t, nil, "tcp", "127.0.0.1:8080", rk.Gateways[0])
			if err := n.Sweep(t.Context()); err != nil {
				t.Error(err)
			}
			if got := len(linksOfPods(t)); got != 1 {
				t.Errorf("%d links of pods, want 1", got)
			}
		})
	}
}

// TestRestoreConflict: of two pods that want a port, when nobody knows any more who had it, one
// gets it, and the other's lack is reported.
func TestRestoreConflict(t *testing.T) {
	var said reports
	m := newManager(t, func(c *Config) { c.Report = said.add })
	newPod(t, m, "a", Port{HostPort: 8080, Port: 80})
	newPod(t, m, "b")
	m.watch.close()
	m.watches.Wait()
	if err := os.Remove(m.cfg.StateFile); err != nil {
		t.Fatal(err)
	}
	reopen(t, m, "a", "b")
	if said.count("cannot publish port *:8080/TCP: pod default/") != 1 {
		t.Errorf("reported %q", said.lines)
	}
}

// TestRestoreLater: while Restore cannot go on new pods get networks, and keep them when it does.
func TestRestoreLater(t *testing.T) {
	var said reports
	var failing atomic.Bool
	failing.Store(true)
	m := newManager(t, func(c *Config) {
		c.Report = said.add
		c.Fault = func(at string) error {
			if at == "restore-links" && failing.Load() {
				return errors.New("not now")
			}
			return nil
		}
	})
	old := state{Version: stateVersion, IPv4: m.cfg.IPv4, IPv6: m.cfg.IPv6, Pods: []saved{{UID: "gone", Name: "default/gone", Index: 2}}}
	if err := old.write(m.cfg.StateFile); err != nil {
		t.Fatal(err)
	}
	if err := m.Restore(t.Context(), only()); err == nil {
		t.Fatal("it was restored")
	}
	ns, r := newPod(t, m, "new", Port{HostPort: 8080, Port: 80})
	serve(t, ns, "tcp", ":80")
	failing.Store(false)
	within(t, "it is not restored", func() error {
		if said.count("restored after all") == 0 {
			return errors.New("silence")
		}
		return nil
	})
	if _, ok := m.Lookup("gone"); ok {
		t.Error("gone is still there")
	}
	if got, ok := m.Lookup("new"); !ok || got.IPs[0] != r.IPs[0] {
		t.Fatalf("the new pod has %v, had %v", got.IPs, r.IPs)
	}
	wantFrom(t, nil, "tcp", "127.0.0.1:8080", r.Gateways[0])
}

// TestLinkLost: a pod whose link was removed while no daemon ran is reported, once; nobody has its
// namespace any more to make another one.
func TestLinkLost(t *testing.T) {
	var said reports
	m := newManager(t, func(c *Config) { c.Report = said.add })
	newPod(t, m, "a")
	m.watch.close()
	m.watches.Wait()
	run(t, "ip link del "+linkName(2))
	n := reopen(t, m, "a")
	n.mend(map[int]bool{allLinks: true}, n.watch)
	if said.count("default/a has lost its link") != 1 || said.count("") != 1 {
		t.Errorf("reported %q", said.lines)
	}
}

// TestStateNoFile checks what the start of a daemon must not wait for.
func TestStateNoFile(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"FIFO":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"symlink":   func(path string) error { return os.Symlink("/dev/zero", path) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "network.json")
			if err := make(path); err != nil {
				t.Fatal(err)
			}
			s, warning, err := readState(path)
			if err != nil || len(s.Pods) > 0 || !strings.Contains(warning, "is no regular file") {
				t.Errorf("%+v, %q, %v", s, warning, err)
			}
			if _, err := os.Lstat(path + ".corrupt"); err != nil {
				t.Error(err)
			}
		})
	}
	path := filepath.Join(t.TempDir(), "file", "network.json")
	if err := os.WriteFile(filepath.Dir(path), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, warning, err := readState(path); err == nil { // it cannot be read now: that is not an empty state
		t.Errorf("%+v, %q", s, warning)
	}
}

func linksOfPods(t *testing.T) (names []string) {
	t.Helper()
	links, err := netlist.Whole(netlink.LinkList)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if _, _, ok := ours(l); ok {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}

// TestOtherSubnet: the subnets change between pods, not under them.
func TestOtherSubnet(t *testing.T) {
	m := newManager(t)
	newPod(t, m, "a")
	other := m.cfg
	other.IPv4 = netip.MustParsePrefix("10.213.0.0/16")
	n, err := New(other)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	err = n.Restore(t.Context(), only("a"))
	wantKind(t, err, pod.Conflict, "10.212.0.0/16")
	m.watch.close() // it reads the configuration
	m.watches.Wait()
	m.cfg = other
	o := reopen(t, m)
	_, r := newPod(t, o, "b")
	if !other.IPv4.Contains(r.IPs[0]) {
		t.Errorf("the pod has %s", r.IPs[0])
	}
}

// TestBridgeLost: the next pod mends what somebody has removed, also for the pods that are there.
func TestBridgeLost(t *testing.T) {
	m := newManager(t)
	first, r := newPod(t, m, "first", Port{HostPort: 8080, Port: 80})
	serve(t, first, "tcp", ":80")
	run(t, "ip link del "+DefaultBridge)
	second, _ := newPod(t, m, "second")
	wantFrom(t, second, "tcp", at(r.Gateways[0], 8080), r.Gateways[0])
	wantFrom(t, nil, "tcp", "127.0.0.1:8080", r.Gateways[0])
}

func TestStateFile(t *testing.T) {
	m := newManager(t)
	newPod(t, m, "a", Port{HostPort: 8080, Port: 80, HostIP: netip.MustParseAddr("127.0.0.1")})
	data, err := os.ReadFile(m.cfg.StateFile)
	want := `{"Version":1,"IPv4":"10.212.0.0/16","IPv6":"fd6d:6167:696b::/64","Pods":[{"UID":"a","Name":"default/a","Index":2,` +
		`"Ports":[{"hostIP":"127.0.0.1","hostPort":8080,"port":80,"protocol":"TCP"}]}]}`
	if err != nil || string(data) != want {
		t.Errorf("%s, %v; want %s", data, err, want)
	}
	if left, _ := filepath.Glob(filepath.Dir(m.cfg.StateFile) + "/.*"); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}
