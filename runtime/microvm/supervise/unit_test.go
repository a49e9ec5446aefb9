package supervise

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/magikrun/magikpod/runtime/microvm/vmm"
	"github.com/magikrun/magikpod/tests/host"
	"github.com/magikrun/magikpod/units"
)

// TestUnit runs a VM as the unit that pods have, with all that confines it, and stops it with its slice.
func TestUnit(t *testing.T) {
	if comm, _ := os.ReadFile("/proc/1/comm"); strings.TrimSpace(string(comm)) != "systemd" {
		t.Skip("PID 1 is not systemd (try: MAGIKHOST_ROOT=trixie make host-test PKG=./runtime/microvm/supervise)")
	}
	c := newConfig(t, vmm.QEMU{}, func(c *Config) {
		c.VM.NIC = &vmm.NIC{Tap: "vmtest1", MAC: "02:00:00:00:00:08"}
		if daemon, err := vmm.FindVirtiofsd(); err == nil {
			c.VM.Share = &vmm.Share{Tag: "share", Daemon: daemon}
		}
	})
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(c.Dir, "vm.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), host.Patience(2*time.Minute))
	defer cancel()
	m, err := units.Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "supervise", Name: "unit"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main"}}}}
	names := units.Names(p.Namespace, p.Name)
	start := func(unit string, props []units.Property, aux ...units.Aux) {
		t.Helper()
		job, err := m.StartTransient(ctx, unit, props, aux...)
		if err == nil {
			err = job.Wait(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	guest := &testVM{Config: c, t: t, began: time.Now(), exited: make(chan struct{})}
	t.Cleanup(func() {
		job, err := m.Stop(context.Background(), names.Slice)
		if err == nil {
			err = job.Wait(context.Background())
		}
		if err != nil {
			t.Error(err)
		}
		if state, ok := m.State(names.VM); ok && (state.ExecMainStatus != 0 || state.ExecMainCode != 1) {
			t.Errorf("the unit ended with %+v", state)
		}
		guest.nothingLeft()
	})
	start(names.Pause, units.PauseProps(units.PauseUnit{Namespace: p.Namespace, Pod: p.Name, Names: names, Argv: []string{"/bin/sleep", "infinity"}}), units.PodSlices(p, units.PodLimits(p))...)
	start(names.VM, units.VMProps(units.VMUnit{Pod: p, Names: names, Argv: []string{self, "--config", file}, PowerOff: c.powerOff()}))
	t.Logf("first answer after %v", guest.answers())
	if c.VM.Share != nil {
		if err := attachTo(c).Share("dir", t.TempDir(), false); err != nil {
			t.Fatal(err)
		}
		guest.ask(request{Action: "write", Serial: "share", FSType: "virtiofs", Path: "dir/file"})
	}
	if _, err := attachTo(c).Disk(ctx, vmm.Disk{Path: c.VM.Kernel, Serial: "kernel", ReadOnly: true}); err != nil {
		t.Fatal(err)
	}
	guest.sees("kernel")
}
