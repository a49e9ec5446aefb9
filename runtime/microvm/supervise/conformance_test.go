package supervise

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/magikrun/magikpod/runtime/microvm/disks"
	"github.com/magikrun/magikpod/runtime/microvm/vmm"
)

// TestConformance: what every driver owes, whichever can be used here: it boots, the guest answers
// and finds its disks and its card, it takes disks while it runs, it powers off when it is asked
// to, and ends with its VMM.
func TestConformance(t *testing.T) {
	kinds := map[string]vmm.Config{"qemu-q35": {Driver: "qemu", Machine: "q35"}, "qemu-microvm": {Driver: "qemu", Machine: "microvm"}}
	for _, d := range vmm.Drivers() {
		kinds[d.Name()] = vmm.Config{Driver: d.Name()}
	}
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			driver, err := vmm.Find(kind.Driver)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "disk")
			if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			const address = "02:00:00:00:00:0a"
			c := newConfig(t, driver, func(c *Config) {
				c.VM.Machine = kind.Machine
				c.VM.NIC = &vmm.NIC{Tap: "vmtest2", MAC: address}
				c.VM.Disks = []vmm.Disk{{Path: path, Serial: "first"}}
			})
			want := []string{"first"}
			layers, tree := rootfs(t)
			image, err := disks.NewCache(t.TempDir()).Image(context.Background(), layers)
			if err != nil {
				t.Fatal(err)
			}
			m := launch(t, c)
			m.answers()
			m.sees(want...)
			if got := m.ask(request{Action: "links"}).Lines; !slices.Contains(got, address) {
				t.Errorf("the guest's links: %q", got)
			}
			place, err := m.attach().Disk(context.Background(), vmm.Disk{Path: image.Path, Serial: image.Serial, ReadOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, place.Disk)
			m.sees(want...)
			if diff := cmp.Diff(tree, m.tree(place)); diff != "" {
				t.Errorf("the image in the guest (-want +got):\n%s", diff)
			}
			other, err := m.attach().Disk(context.Background(), vmm.Disk{Path: path, Serial: "other", ReadOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			m.sees(append(want, other.Disk)...)
			if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			m.ends(0, "")
		})
	}
}
