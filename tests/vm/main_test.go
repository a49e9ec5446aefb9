package vm

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/magikrun/magikpod/tests/host"
)

// envVM switches the tests on that boot VMs.
const envVM = "MAGIKPOD_VM"

func needed(t *testing.T) {
	t.Helper()
	if os.Getenv(envVM) == "" {
		t.Skip("this boots VMs in QEMU, which takes minutes (try: make test-vm)")
	}
}

// boot boots a VM for one test.
func boot(t *testing.T, opts Options) *VM {
	t.Helper()
	needed(t)
	opts.Install = os.Getenv(host.EnvInstall)
	began := time.Now()
	m, err := Boot(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("booted in %.1f s", time.Since(began).Seconds())
	t.Cleanup(func() {
		if t.Failed() {
			journal, err := m.Output(context.Background(), "journalctl", "--no-pager", "--lines=200", "--output=short-precise")
			t.Logf("the VM's journal (%v):\n%s\nits console:\n%s", err, journal, m.Console())
		}
		m.Close()
	})
	return m
}

// must runs a command that has to succeed and returns its output.
func must(t *testing.T, m *VM, argv ...string) string {
	t.Helper()
	out, err := m.Output(t.Context(), argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
