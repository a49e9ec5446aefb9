package attach

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// TestRefused: what cannot be attached is an error that names it. That disks and directories appear
// in a guest, the tests of package supervise show, which boot VMs.
func TestRefused(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	gone := errors.New("it has ended")
	state := func(err error) func() (vmm.State, error) {
		return func() (vmm.State, error) { return vmm.State{}, err }
	}
	for name, c := range map[string]struct {
		attach func(v VM) error
		state  error
		want   string
	}{
		"no name":        {func(v VM) error { return v.Share("", "/src", true) }, nil, `cannot share /src with the VM: "" is not a name`},
		"the parent":     {func(v VM) error { return v.Share("..", "/src", true) }, nil, `cannot share /src with the VM: ".." is not a name`},
		"a path":         {func(v VM) error { return v.Share("a/b", "/src", true) }, nil, `cannot share /src with the VM: "a/b" is not a name`},
		"no share":       {func(v VM) error { return v.Share("a", "/src", true) }, nil, "cannot share /src with the VM: the VM shares no directory"},
		"no VM":          {func(v VM) error { return v.Share("a", "/src", true) }, gone, "cannot share /src with the VM: it has ended"},
		"no file":        {func(v VM) error { _, err := v.ShareDisk(vmm.Disk{Path: disk, Serial: "img-1"}); return err }, nil, "cannot share disk img-1 with the VM: open " + disk},
		"no control":     {func(v VM) error { _, err := v.Disk(t.Context(), vmm.Disk{Path: disk, Serial: "img-1"}); return err }, nil, "cannot connect to QEMU"},
		"unknown driver": {func(v VM) error { v.Config.Driver = "bochs"; _, err := v.Disk(t.Context(), vmm.Disk{}); return err }, nil, `cannot use the VMM "bochs"`},
	} {
		v := VM{Config: &vmm.Config{Driver: "qemu", Control: disk + ".control"}, State: state(c.state)}
		if err := c.attach(v); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
