package netsetup

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/magikrun/magikpod/pod"
	"github.com/vishvananda/netlink"
	"k8s.io/apimachinery/pkg/types"
)

// TestNoLeak: 50 pods leave the host as 1 does.
func TestNoLeak(t *testing.T) {
	m := newManager(t, func(c *Config) { c.Idle = time.Hour })
	round := func() {
		ns, err := NewNamespace()
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		_, err = m.Setup(t.Context(), PodNetwork{UID: "a", Ports: []Port{{HostPort: 8080, Port: 80}, {HostPort: 53, Port: 53, Protocol: "UDP"}}}, ns)
		if err = errors.Join(err, m.Teardown(t.Context(), "a")); err != nil {
			t.Fatal(err)
		}
	}
	state := func() (string, int) {
		if err := m.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		return snapshot(t), openFiles(t)
	}
	round()
	before, files := state()
	for range 50 {
		round()
	}
	after, filesAfter := state()
	if after != before || filesAfter != files {
		t.Errorf("50 pods later %d files are open, before %d, and the host is changed: %s", filesAfter, files, cmp.Diff(before, after))
	}
}

// TestParallel sets up 16 pods at once, some with ports, again and again, and lets the last one of a round race with the removal of the bridge.
func TestParallel(t *testing.T) {
	m := newManager(t, func(c *Config) { c.Idle = time.Millisecond })
	spaces := make([]*os.File, 16)
	for i := range spaces {
		spaces[i] = newNS(t)
	}
	for round := range 4 {
		var wg sync.WaitGroup
		results := make([]Result, len(spaces))
		for i, ns := range spaces {
			wg.Go(func() {
				p := PodNetwork{UID: types.UID(fmt.Sprint("pod", i)), Name: fmt.Sprint("default/", i)}
				if i%2 == 0 {
					p.Ports = []Port{{HostPort: uint16(8000 + i), Port: 80}}
				}
				var err error
				if results[i], err = m.Setup(t.Context(), p, ns); err != nil {
					t.Errorf("pod %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		checkPods(t, spaces, results, round)
		for i := range spaces {
			wg.Go(func() {
				if err := m.Teardown(t.Context(), types.UID(fmt.Sprint("pod", i))); err != nil {
					t.Errorf("pod %d: %v", i, err)
				}
			})
		}
		wg.Wait()
	}
}

func checkPods(t *testing.T, spaces []*os.File, results []Result, round int) {
	t.Helper()
	seen := map[netip.Addr]bool{}
	port := 100 + round // a socket of the last round may still be there
	for i, r := range results {
		if seen[r.IPs[0]] || seen[r.IPs[1]] {
			t.Fatalf("%v is given out twice", r.IPs)
		}
		seen[r.IPs[0]], seen[r.IPs[1]] = true, true
		serve(t, spaces[i], "tcp", fmt.Sprint(":", port))
	}
	for i := range spaces {
		next := (i + 1) % len(spaces)
		wantFrom(t, spaces[i], "tcp", at(results[next].IPs[0], port), results[i].IPs[0])
		wantFrom(t, spaces[i], "tcp", at(results[next].IPs[1], port), results[i].IPs[1])
	}
}

// TestSetupAndTeardownOfOnePod calls both at once: whatever comes last, the Manager and the kernel agree.
func TestSetupAndTeardownOfOnePod(t *testing.T) {
	m := newManager(t)
	ns := newNS(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := m.Setup(t.Context(), PodNetwork{UID: "a", Ports: []Port{{HostPort: 8080, Port: 80}}}, ns); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if err := m.Teardown(t.Context(), "a"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// TestIdle: the bridge goes some time after the last pod, and comes back with the next.
func TestIdle(t *testing.T) {
	m := newManager(t, func(c *Config) { c.Idle = 10 * time.Millisecond })
	for range 3 {
		_, r := newPod(t, m, "a")
		if !strings.Contains(nftRules(t), DefaultTable) {
			t.Error("there is no table")
		}
		if err := m.Teardown(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
			if _, err := netlink.LinkByName(DefaultBridge); isNoLink(err) && nftRules(t) == "" {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("after %s the bridge of %v is still there", patience, r.IPs)
			}
		}
	}
}

// reopen is what a daemon's restart does. The old Manager is left as by a crash, without its hold on the ports and the firewall.
func reopen(t *testing.T, m *Manager, keep ...string) *Manager {
	t.Helper()
	m.hostMu.Lock()
	m.up, m.present = false, false
	m.watch.close()
	m.hostMu.Unlock()
	for _, r := range m.records() {
		r.held.close()
		r.held = nil
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
	if err := n.Restore(t.Context(), func(uid types.UID) bool { return slices.Contains(keep, string(uid)) }); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestRestore(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, m *Manager)
	}{
		{"nothing lost", func(*testing.T, *Manager) {}},
		{"rules flushed", func(t *testing.T, _ *Manager) { nft(t, "flush ruleset") }},
		{"a map flushed", func(t *testing.T, _ *Manager) { nft(t, "flush map inet "+DefaultTable+" ports4") }},
		{"bridge removed", func(t *testing.T, m *Manager) {
			if err := netlink.LinkDel(m.bridge.link); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newManager(t)
			keep, rk := newPod(t, m, "keep", Port{HostPort: 8080, Port: 80})
			_, rg := newPod(t, m, "gone", Port{HostPort: 8081, Port: 80})
			serve(t, keep, "tcp", ":80")
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
			if w := n.Warnings(); len(w) > 0 {
				t.Errorf("warnings %q", w)
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
			m := newManager(t)
			ns, rk := newPod(t, m, "keep", Port{HostPort: 8080, Port: 80})
			newPod(t, m, "gone")
			if err := os.WriteFile(m.cfg.StateFile, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			n := reopen(t, m, "keep")
			aside := m.cfg.StateFile + ".corrupt"
			if w := n.Warnings(); len(w) != 1 || !strings.Contains(w[0], aside) {
				t.Errorf("warnings %q, want one about %s", w, aside)
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

func linksOfPods(t *testing.T) (names []string) {
	t.Helper()
	links, err := netlink.LinkList()
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
	err = n.Restore(t.Context(), func(types.UID) bool { return true })
	wantKind(t, err, pod.Conflict, "10.212.0.0/16")
	m.cfg = other
	o := reopen(t, m)
	_, r := newPod(t, o, "b")
	if !other.IPv4.Contains(r.IPs[0]) {
		t.Errorf("the pod has %s", r.IPs[0])
	}
}

// TestFlushed: a flush of all rules, as a restart of nftables.service does, is mended at once, and leaves no other trace.
func TestFlushed(t *testing.T) {
	m := newManager(t)
	first, r := newPod(t, m, "first", Port{HostPort: 8080, Port: 80})
	serve(t, first, "tcp", ":80")
	before := nftRules(t)
	for _, script := range []string{"flush ruleset", "delete table inet " + DefaultTable, "flush ruleset\ntable ip other {}\ndelete table ip other"} {
		nft(t, script)
		for end := time.Now().Add(patience); nftRules(t) != before; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("after %q the rules are not what they were: %s", script, cmp.Diff(before, nftRules(t)))
			}
		}
		wantFrom(t, nil, "tcp", "127.0.0.1:8080", r.Gateways[0])
	}
	// And where nobody watches, by the next pod with ports.
	m.watch.close()
	m.watches.Wait()
	nft(t, "flush ruleset")
	newPod(t, m, "second", Port{HostPort: 8081, Port: 80})
	wantFrom(t, nil, "tcp", "127.0.0.1:8080", r.Gateways[0])
}

// TestWatchOwn: our own transactions do not count as a loss.
func TestWatchOwn(t *testing.T) {
	m := newManager(t)
	newPod(t, m, "a")
	var wg sync.WaitGroup
	lost := make(chan bool, 100)
	w, err := watchTable(DefaultTable, &wg, func() { lost <- true })
	if err != nil {
		t.Fatal(err)
	}
	if err := m.fw.rebuild(t.Context(), m.elements); err != nil {
		t.Fatal(err)
	}
	nft(t, "table inet other {}\ndelete table inet other\ntable ip "+DefaultTable+" {}\ndelete table ip "+DefaultTable)
	nft(t, "table inet last {}\ndelete table inet last")
	if len(lost) > 0 {
		t.Error("a loss was seen that was none")
	}
	nft(t, "delete table inet "+DefaultTable)
	select {
	case <-lost:
	case <-time.After(patience):
		t.Error("the loss was not seen")
	}
	w.close()
	wg.Wait()
	if n := len(lost); n > 0 {
		t.Errorf("the loss was seen %d times more", n)
	}
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

func BenchmarkSetup(b *testing.B) {
	for _, tt := range []struct {
		name  string
		ports []Port
	}{{"plain", nil}, {"port", []Port{{HostPort: 8080, Port: 80}}}} {
		b.Run(tt.name, func(b *testing.B) {
			m := newManager(b)
			newPod(b, m, "bystander")
			var up, down, all time.Duration
			for b.Loop() {
				ns, err := NewNamespace()
				if err != nil {
					b.Fatal(err)
				}
				start := time.Now()
				if _, err = m.Setup(b.Context(), PodNetwork{UID: "a", Ports: tt.ports}, ns); err != nil {
					b.Fatal(err)
				}
				done := time.Now()
				if err = m.Teardown(b.Context(), "a"); err != nil {
					b.Fatal(err)
				}
				end := time.Now()
				if err = m.Sweep(b.Context()); err != nil {
					b.Fatal(err)
				}
				up, down, all = up+done.Sub(start), down+end.Sub(done), all+time.Since(end)
				ns.Close()
			}
			for unit, d := range map[string]time.Duration{"us/setup": up, "us/teardown": down, "us/background": all} {
				b.ReportMetric(float64(d.Microseconds())/float64(b.N), unit)
			}
		})
	}
}

func BenchmarkNewNamespace(b *testing.B) {
	needNetwork(b)
	for b.Loop() {
		ns, err := NewNamespace()
		if err != nil {
			b.Fatal(err)
		}
		ns.Close()
	}
}
