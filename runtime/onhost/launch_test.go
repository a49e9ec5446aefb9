package onhost

import (
	"slices"
	"testing"

	"github.com/magikrun/magikpod/runtime"
	"github.com/magikrun/magikpod/shim"
)

func TestStageMounts(t *testing.T) {
	mounts, binds := stageMounts("/run/p/tmpfs", "/run/p/c/a", []runtime.Mount{
		{Source: "/v/one", SubPath: "x", Destination: "/one", ReadOnly: true, Propagation: "rslave"},
		{Destination: "/scratch"},
		{SharedTmpfs: "mem", Destination: "/mem"},
	})
	wantMounts := []runtime.Mount{
		{Source: "/run/p/c/a/mnt/0", Destination: "/one", ReadOnly: true, Propagation: "rslave"},
		{Destination: "/scratch"},
		{Source: "/run/p/c/a/mnt/1", Destination: "/mem"},
	}
	wantBinds := []shim.Bind{
		{Source: "/v/one", SubPath: "x", Target: "/run/p/c/a/mnt/0", ReadOnly: true},
		{Source: "/run/p/tmpfs/mem", Target: "/run/p/c/a/mnt/1"},
	}
	if !slices.Equal(mounts, wantMounts) || !slices.Equal(binds, wantBinds) {
		t.Errorf("%+v\n%+v", mounts, binds)
	}
}
