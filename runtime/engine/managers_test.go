package engine

import (
	"sync/atomic"
	"testing"

	"github.com/magikrun/magikpod/pod"
)

// TestTwoManagers: two managers on one connection to systemd hear each of its own pods, and the end
// of one leaves the other its ears.
func TestTwoManagers(t *testing.T) {
	onSystemd(t)
	one := newWorld(t, "", nil)
	two, err := New(t.Context(), one.config)
	if err != nil {
		t.Fatal(err)
	}
	var heard atomic.Int32
	two.OnChange(func(pod.Ref) { heard.Add(1) })
	p := one.pod("listeners", "exec sleep 1000", "exec sleep 1000")
	one.up(p)
	if err := one.SignalContainer(t.Context(), pod.RefOf(p), "a", unixKILL); err != nil {
		t.Fatal(err)
	}
	one.await(p, "a", pod.ContainerExited)
	if err := two.Close(); err != nil {
		t.Error(err)
	}
	if err := one.SignalContainer(t.Context(), pod.RefOf(p), "b", unixKILL); err != nil {
		t.Fatal(err)
	}
	one.await(p, "b", pod.ContainerExited)
	if heard.Load() > 0 {
		t.Error("a manager has heard of a pod that is not its own")
	}
}
