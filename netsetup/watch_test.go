package netsetup

import (
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

// TestFlushed: a flush of all rules, as a restart of nftables.service does, is mended at once, and
// leaves no other trace.
func TestFlushed(t *testing.T) {
	m := newManager(t)
	first, r := newPod(t, m, "first", Port{HostPort: 8080, Port: 80})
	serve(t, first, "tcp", ":80")
	before := nftRules(t)
	for _, script := range []string{"flush ruleset", "delete table inet " + tableName, "flush ruleset\ntable ip other {}\ndelete table ip other"} {
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

// TestWatchOwn: our own transactions, and those of other tables, do not count as a loss.
func TestWatchOwn(t *testing.T) {
	m := newManager(t)
	newPod(t, m, "a")
	var wg sync.WaitGroup
	w, err := m.newWatch(m.bridge.link.Attrs().Index, &wg)
	if err != nil {
		t.Fatal(err)
	}
	reported := func() bool {
		t.Helper()
		select {
		case <-w.host:
			time.Sleep(100 * time.Millisecond)
			return w.tableLost()
		case <-time.After(patience):
			t.Fatal("nothing is reported")
			return false
		}
	}
	if err := m.fw.rebuild(t.Context(), m.elements); err != nil {
		t.Fatal(err)
	}
	nft(t, "table inet other {}\ndelete table inet other\ntable ip "+tableName+" {}\ndelete table ip "+tableName)
	if reported() {
		t.Error("a loss was seen that was none")
	}
	nft(t, "delete table inet "+tableName)
	if !reported() {
		t.Error("the loss was not seen")
	}
	w.close()
	wg.Wait()
}

// TestWatchLinks: a link that somebody else removes is looked for, and no other; nor are those that
// are ours to make and to remove.
func TestWatchLinks(t *testing.T) {
	m := newManager(t)
	newPod(t, m, "a")
	var wg sync.WaitGroup
	w, err := m.newWatch(m.bridge.link.Attrs().Index, &wg)
	if err != nil {
		t.Fatal(err)
	}
	newPod(t, m, "b")
	if err := m.Teardown(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if err := m.waitDrained(t.Context()); err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName(linkName(firstIndex))
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	select {
	case <-w.links:
	case <-time.After(patience):
		t.Fatal("nothing is reported")
	}
	if got, want := w.linksLost(), (map[int]bool{firstIndex: true}); !cmp.Equal(got, want) {
		t.Errorf("links that may be lost: %v, want %v", got, want)
	}
	within(t, "mended", func() error { _, err := netlink.LinkByName(linkName(firstIndex)); return err })
	w.close()
	wg.Wait()
}
