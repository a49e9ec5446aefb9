package netsetup

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/magikrun/magikpod/internal/testutil"
	"github.com/magikrun/magikpod/pod"
	corev1 "k8s.io/api/core/v1"
)

// TestFaults makes each step of Setup fail, with and without another pod: nothing is left, and the
// next Setup succeeds.
func TestFaults(t *testing.T) {
	var mu sync.Mutex // the steps of the ports are called beside others
	var steps []string
	fail := ""
	boom := errors.New("boom")
	m := newManager(t, func(c *Config) {
		c.Idle = time.Hour
		c.Fault = func(step string) error {
			mu.Lock()
			defer mu.Unlock()
			steps = append(steps, step)
			if step == fail {
				return boom
			}
			return nil
		}
	})
	ns := newNS(t)
	want := PodNetwork{UID: "a", Name: "default/a", Ports: []Port{{HostPort: 8080, Port: 80}, {HostPort: 5353, Port: 53, Protocol: corev1.ProtocolUDP}}}
	tearDown := func() {
		t.Helper()
		if err := errors.Join(m.Teardown(context.Background(), "a"), m.Sweep(context.Background())); err != nil {
			t.Fatal(err)
		}
	}
	for _, others := range []int{0, 1} {
		for i := range others {
			newPod(t, m, fmt.Sprint("other", i), Port{HostPort: 7000, Port: 70})
		}
		setUp := func() error {
			_, err := m.Setup(t.Context(), want, ns)
			return err
		}
		before, files := snapshot(t), openFiles(t)
		for range 20 { // the least: a repair may be at work
			time.Sleep(5 * time.Millisecond)
			files = min(files, openFiles(t))
		}
		steps = nil
		if err := setUp(); err != nil {
			t.Fatal(err)
		}
		tearDown()
		all := steps
		if len(all) < 10 {
			t.Fatalf("only the steps %q", all)
		}
		for _, step := range all {
			if step == "teardown" || step == "remove" {
				continue
			}
			fail = step
			err := setUp()
			fail = ""
			if !errors.Is(err, boom) {
				t.Errorf("step %s: %v", step, err)
			}
			if after := snapshot(t); after != before {
				t.Errorf("a failure of %s leaves the host changed: %s", step, cmp.Diff(before, after))
			}
			within(t, "after a failure of "+step, func() error { // a repair has some open meanwhile
				if n := openFiles(t); n > files {
					return fmt.Errorf("%d files are open, before %d", n, files)
				}
				return nil
			})
			if err := setUp(); err != nil {
				t.Errorf("after a failure of %s: %v", step, err)
			}
			tearDown()
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(boom)
	if _, err := m.Setup(ctx, want, ns); !errors.Is(err, boom) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

// TestStuck: what cannot be removed is reported by Sweep, its address stays taken, and the next
// Sweep tries again.
func TestStuck(t *testing.T) {
	var broken atomic.Bool
	m := newManager(t, func(c *Config) {
		c.IPv4 = netip.MustParsePrefix("10.213.0.0/29")
		c.Fault = func(step string) error {
			if step == "remove" && broken.Load() {
				return errors.New("boom")
			}
			return nil
		}
	})
	for i := range 5 {
		newPod(t, m, fmt.Sprint(i))
	}
	broken.Store(true)
	if err := m.Teardown(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	wantKind(t, m.Sweep(t.Context()), pod.Internal, "boom")
	ns := newNS(t)
	_, err := m.Setup(t.Context(), PodNetwork{UID: "x"}, ns)
	wantKind(t, err, pod.Exhausted, "10.213.0.0/29")
	broken.Store(false)
	if err := m.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Setup(t.Context(), PodNetwork{UID: "x"}, ns); err != nil {
		t.Error(err)
	}
}

var openFiles = testutil.OpenFiles
