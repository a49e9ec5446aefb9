package netsetup

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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

// TestParallel sets up 16 pods at once, some with ports, again and again, and lets the last one of
// a round race with the removal of the bridge.
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

// TestSetupAndTeardownOfOnePod calls both at once: whatever comes last, the Manager and the kernel
// agree.
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

// TestHalfMadeBridge: a daemon that was killed before it had marked its bridge leaves one that the
// next daemon takes.
func TestHalfMadeBridge(t *testing.T) {
	m := newManager(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = DefaultBridge
	attrs.HardwareAddr = hardwareAddr(netip.MustParseAddr("10.1.2.3")) // also of a configuration that was another then
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
	newPod(t, m, "a")
	link, err := netlink.LinkByName(DefaultBridge)
	if err != nil || link.Attrs().Alias != alias {
		t.Errorf("%+v, %v", link, err)
	}
}

// TestIdle: the bridge goes some time after the last pod, and comes back with the next.
func TestIdle(t *testing.T) {
	m := newManager(t, func(c *Config) { c.Idle = 10 * time.Millisecond })
	for range 3 {
		_, r := newPod(t, m, "a")
		if !strings.Contains(nftRules(t), tableName) {
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
